/* asp_lens.h: the residual stream read in the vocabulary, what each part of a model adds to a logit, and heads compared
 * by pattern and by weights.  Letters as in asp.h. */
#ifndef ASP_LENS_H
#define ASP_LENS_H

#include "asp.h"

/* ---- what rows of logits say ------------------------------------------------------ */

/* Logits and probabilities (softmax over the whole row, in float64) of the most likely tokens of each row, equal ones
 * in the order of their ids, and of tokens that are asked for. */
typedef struct {
    int64_t n_top, n_asked;
    int32_t *token;                          /* (n,n_top) written */
    double *logit, *probability;             /* (n,n_top) written */
    const int32_t *asked;                    /* (n,n_asked) read */
    double *asked_logit, *asked_probability; /* (n,n_asked) written */
    int64_t *asked_place;                    /* (n,n_asked) written: 0 for the most likely token */
} asp_lens_readout;
/* Of n rows of logits (n,V) read.  BAD_INDEX: a token is not in 0..V-1.  BAD_ARGUMENT: n_top exceeds V. */
asp_status asp_lens_read(const asp_lens_readout *out, const asp_real *logits, int64_t n, int64_t n_vocab,
                         const asp_context *context, asp_error *err);

/* ---- logit lens ------------------------------------------------------------------- */

/* Logits of the residual stream of a run at points 2 l (before layer l), 2 l + 1 (between its attention and its MLP)
 * and 2 L (at the end), through the final LayerNorm and W_U.
 *   out (n,...) written    point, row (n) read: where, and which token row of the packed batch
 *   held: divide by the scale of the run's final LayerNorm, else by that of the row itself
 * BAD_STATE: the run did not record RESID, RESID_MID or LN_FINAL_SCALE, whichever is needed.  BAD_INDEX, BAD_ARGUMENT
 * as asp_lens_read.  NO_MEMORY. */
asp_status asp_lens_logits(const asp_lens_readout *out, const asp_model *model, const asp_run *run, int64_t n,
                           const int64_t *point, const int64_t *row, int held, const asp_context *context,
                           asp_error *err);

/* ---- direct attribution ------------------------------------------------------------ */

/* At each of n token rows of a run: the logit of `right`, minus that of `wrong` if it is given. */
typedef struct {
    int64_t n;
    const int64_t *row;           /* (n) read */
    const int32_t *right, *wrong; /* (n) read; wrong may be NULL */
} asp_lens_targets;

/* What each part adds to it, with the scale of the run's final LayerNorm held: linear in what was written into the
 * residual stream, so that all parts of one kind add up to the value.  NULL: not wanted. */
typedef struct {
    double *value;                  /* (n) the logit (difference) itself */
    double *ln_bias, *unembed_bias; /* (n) of the final LayerNorm's bias, and b_U */
    double *embed, *pos_embed;      /* (n) */
    double *head;                   /* (n,L,H) without the value bias */
    double *value_bias;             /* (n,L) of b_V through all heads: each counts as its row of the pattern sums to */
    double *attn_bias;              /* (n,L) of b_O */
    double *mlp;                    /* (n,L) b_out included */
    double *key;      /* (n,longest) of all heads by the position they read from, without the value bias */
    double *neuron;   /* (n,L,M) without b_out */
    double *mlp_bias; /* (n,L) of b_out */
} asp_lens_parts;
/* BAD_INDEX: a row or token is out of range.  BAD_STATE: the run did not record what a wanted part needs: all need
 * LN_FINAL_SCALE, value LN_FINAL_NORMALIZED, embed EMBED, pos_embed POS_EMBED, head and value_bias Z and PATTERN, mlp
 * MLP_OUT, key QKV and PATTERN, neuron MLP_POST.  NO_MEMORY, STOPPED. */
asp_status asp_lens_attribute(const asp_lens_parts *parts, const asp_model *model, const asp_run *run,
                              const asp_lens_targets *targets, const asp_context *context, asp_error *err);

/* The same for vectors of the caller's: each of n_parts x n rows, at a scale that is given.
 *   out (n_parts,n) written    x (n_parts,n,E) read    scale (n) read    targets: row is not read */
asp_status asp_lens_project(double *out, const asp_model *model, const asp_real *x, int64_t n_parts,
                            const asp_real *scale, const asp_lens_targets *targets, const asp_context *context,
                            asp_error *err);
/* (x - mean) / scale of each row; scale NULL: sqrt(variance + eps) of the row itself.
 *   out (n_parts,n,E) written    x (n_parts,n,E) read    scale (n) read */
asp_status asp_lens_normalize(asp_real *out, const asp_real *x, int64_t n_parts, int64_t n, int64_t width,
                              const asp_real *scale, double eps, const asp_context *context);

/* ---- heads by pattern ---------------------------------------------------------------- */

enum { ASP_DETECT_MUL = 0, ASP_DETECT_ABS = 1 };
typedef struct {
    int64_t n_patterns;
    const double *patterns; /* (n_patterns, sum of T*T) read: per sequence (T,T), packed; 0 for key > query */
    int measure;            /* ASP_DETECT_* */
    int exclude_first, exclude_current; /* leave out the first key, and keys at their own query */
} asp_detect_options;
/* How well the pattern of each head of each sequence matches.  MUL: the sum of its entries times the pattern's, divided
 * by the sum of its entries; 0 for a head without any.  ABS: 1 - the sum of |entry - pattern's| / T.
 *   scores (n_patterns,B,L,H) written
 * BAD_STATE: the run did not record PATTERN. */
asp_status asp_detect_heads(double *scores, const asp_run *run, const asp_detect_options *options,
                            const asp_context *context, asp_error *err);

/* ---- heads by weights ------------------------------------------------------------------ */

/* Composition of each pair of heads of different layers, |OV R| / (|OV| |R|) in the Frobenius norm, where R of the later
 * head is QK, QK transposed or OV: how much it reads of what the earlier one writes, in its queries, keys or values.
 *   scores (3,L,H,L,H) written: 0 unless the first head's layer comes before the second's, and where a norm is 0
 * NO_MEMORY, STOPPED. */
asp_status asp_composition_scores(double *scores, const asp_model *model, const asp_context *context, asp_error *err);

#endif
