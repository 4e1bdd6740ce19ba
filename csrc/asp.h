/* asp.h: the public C API of attnsparse.
 *
 * Objects and owners
 *   asp_model    config and weights, in one arena.  Read-only while it is run.
 *   asp_run      what one forward pass was asked to record, in one arena.
 *   asp_gradients  gradients of one scalar with respect to weights and activations.
 *   asp_features  what transcoders find active in one forward pass, and what they write.
 *   asp_trainer  gradients, Adam moments, multiplier and scratch of a training run.
 *   asp_context  how a call runs: number of threads, and callbacks that can stop it and that hear how far it is.
 * Every new/free pair: free accepts NULL and half-built objects.
 *
 * Letters used for shapes, everywhere
 *   B sequences    N tokens of all sequences    T tokens of one sequence
 *   L layers       H heads        D head width    C = H*D
 *   E model width  M MLP width    V vocabulary    P positions of the table (context)
 *
 * Sequences are packed without padding: tokens[offsets[b] .. offsets[b+1]) is sequence b.
 * No function here prints, exits, aborts or calls Python. */
#ifndef ASP_H
#define ASP_H

#include <stddef.h>
#include <stdint.h>

#ifdef ASP_DOUBLE
typedef double asp_real;
#else
typedef float asp_real;
#endif

/* ---- status -------------------------------------------------------------------- */

typedef enum {
    ASP_OK = 0,
    ASP_NO_MEMORY,    /* an allocation failed, or a stated limit would be passed */
    ASP_BAD_ARGUMENT, /* right kind, wrong value */
    ASP_BAD_INDEX,    /* token id, layer or head out of range */
    ASP_BAD_STATE,    /* for example: the weights changed since the run */
    ASP_DIVERGED,     /* loss or gradient not finite; nothing was changed */
    ASP_STOPPED       /* a callback asked to stop */
} asp_status;

typedef struct {
    asp_status status;
    char text[256]; /* one sentence: what, found, expected */
} asp_error;

/* Fill err and return status. */
asp_status asp_fail(asp_error *err, asp_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- how a call runs ----------------------------------------------------------- */

typedef struct {
    int n_threads;            /* >= 1 */
    int (*poll)(void *state); /* called now and then from the calling thread; nonzero stops. May be NULL */
    void *poll_state;
    /* Called now and then from the calling thread: `done` of `total` of a stage such as "knock-out" are done, 0 first.
     * Nonzero stops.  May be NULL.  stage: a static string. */
    int (*progress)(void *state, const char *stage, int64_t done, int64_t total);
    void *progress_state;
    asp_error *err; /* for the core: where what fails inside a call says what it is.  Callers leave it NULL */
    /* For the core: a call inside takes this stage from stage_done to stage_next of stage_total, and may tell how far
     * it is.  Callers leave it NULL */
    const char *stage;
    double stage_done, stage_next;
    int64_t stage_total;
} asp_context;

/* Everything is computed with rounding to nearest, subnormal numbers and no traps, whatever the calling thread has
 * set, and that is put back at the end.  A callback that runs somebody else's code asks for the caller's environment
 * meanwhile: resume takes what pause returned. */
typedef struct asp_environment asp_environment;
asp_environment *asp_environment_pause(void);
void asp_environment_resume(asp_environment *environment);

/* ---- model --------------------------------------------------------------------- */

typedef enum { ASP_GELU_NEW = 0, ASP_GELU = 1, ASP_RELU = 2 } asp_activation;

typedef struct {
    int64_t n_layer, n_head, d_model, d_head, d_mlp, n_ctx, n_vocab;
    asp_activation activation;
    double ln_eps;
    int gated;
    double gate_bias;
    int self_closed; /* no gate opens the entry of a token to itself.  Of gated models alone. */
    int tied, bias, unembed_bias;
    int scale_attn, scale_by_inverse_layer;
    /* Entries over which the softmax of a query is taken, each restriction among what the ones before leave: the last
     * `window` keys, the top_k largest scores with those equal to the last of them, those whose share of the softmax is
     * at least min_weight, and the largest in any case.  0: no restriction.  Of dense models alone. */
    int64_t window, top_k;
    double min_weight;
} asp_config;

typedef struct asp_model asp_model;

typedef struct {
    char name[48];
    int n_dims;
    int64_t dims[2];
    int64_t size;   /* elements */
    int64_t offset; /* elements from the start of the arena */
} asp_parameter;

/* A model with zero weights.  Errors: BAD_ARGUMENT, NO_MEMORY. */
asp_status asp_model_new(asp_model **model, const asp_config *config, asp_error *err);
void asp_model_free(asp_model *model);
const asp_config *asp_model_config(const asp_model *model);
int64_t asp_model_n_parameters(const asp_model *model); /* arrays in the table */
const asp_parameter *asp_model_parameter(const asp_model *model, int64_t index);
asp_real *asp_model_data(asp_model *model);     /* start of the arena */
int64_t asp_model_size(const asp_model *model); /* elements in the arena */

/* Moves the weights into sealed memory that other processes of the machine can map, and that goes with the last process
 * that has it; nobody changes the weights meanwhile, and one thread of the caller does this.  *descriptor: of that
 * memory, owned by the model; -1 if it cannot be shared (it is small, or the system has no such memory). */
asp_status asp_model_share(asp_model *model, int *descriptor, const asp_context *context);
/* Maps such memory, read through `descriptor`, in place of weights that hold the same numbers, so that both processes
 * have one copy; a page that is changed becomes the model's own.  *taken: 0 if they differ, or it cannot be mapped;
 * else the descriptor is the model's.  Both: ASP_OK or ASP_STOPPED. */
asp_status asp_model_take_shared(asp_model *model, int descriptor, int *taken, const asp_context *context);

/* Counts non-finite values of data[0..n); *first is the index of the first one, or -1. */
int64_t asp_model_count_nonfinite(const asp_real *data, int64_t n, int64_t *first);

/* ---- batches ------------------------------------------------------------------- */

typedef struct {
    const int32_t *tokens;  /* (N) read */
    const int64_t *offsets; /* (B+1) read */
    int64_t n_sequences;
    const int32_t *targets;  /* (N) read where weights is not 0 */
    const asp_real *weights; /* (N) read */
} asp_batch;

/* ---- forward ------------------------------------------------------------------- */

/* What a run keeps.  Shapes are those of the packed arrays, see asp_run_array. */
typedef enum {
    ASP_EMBED,               /* (N,E)  token embedding */
    ASP_POS_EMBED,           /* (N,E)  position embedding */
    ASP_RESID,               /* (L+1,N,E)  residual stream before layer l; [L] is after the last */
    ASP_RESID_MID,           /* (L,N,E)  between attention and MLP */
    ASP_LN1_SCALE,           /* (L,N)  sqrt(var + eps) */
    ASP_LN1_NORMALIZED,      /* (L,N,E)  (x - mean) / scale, before weight and bias */
    ASP_QKV,                 /* (L,N,3,H,D) */
    ASP_SCORES,              /* per sequence (L,H,T,T), packed; -inf for key > query */
    ASP_PATTERN,             /* per sequence (L,H,T,T), packed; 0 for key > query */
    ASP_GATE,                /* per sequence (L,H,T,T) bytes, packed; 0 for key > query */
    ASP_LSE,                 /* (L,H,N)  log sum exp of each score row */
    ASP_Z,                   /* (L,N,H,D) */
    ASP_RESULT,              /* (L,N,H,E)  z of one head times its rows of W_O */
    ASP_ATTN_OUT,            /* (L,N,E)  sum of heads plus bias */
    ASP_LN2_SCALE,           /* (L,N) */
    ASP_LN2_NORMALIZED,      /* (L,N,E) */
    ASP_MLP_PRE,             /* (L,N,M) */
    ASP_MLP_POST,            /* (L,N,M) */
    ASP_MLP_OUT,             /* (L,N,E) */
    ASP_LN_FINAL_SCALE,      /* (N) */
    ASP_LN_FINAL_NORMALIZED, /* (N,E) */
    ASP_LOGITS,              /* (N,V), or (B,V) for the last token of each sequence */
    ASP_TOKEN_LOSS,          /* (N)  cross-entropy of the next token; 0 at the last of a sequence */
    ASP_N_RECORDS
} asp_record;

enum { ASP_LOGITS_NONE = 0, ASP_LOGITS_LAST = 1, ASP_LOGITS_ALL = 2 };

/* Name of a record as Python knows it ("pattern", "qkv", ...). */
const char *asp_run_record_name(asp_record record);

/* Where an experiment steps into a pass; see model/hooks.h. */
typedef struct asp_hooks asp_hooks;

/* What takes the place of the MLPs, called once for each layer but those where `kept` is not 0, in rising order, from
 * the calling thread.
 *   x (N,E) read: the MLP's LayerNorm before weight and bias, or with from_mid the residual stream before it
 *   out (N,E) written: what is added to the residual stream */
typedef struct {
    int from_mid;
    const uint8_t *kept; /* (L) read: not 0 where the model's own MLP stays; NULL: nowhere */
    asp_status (*layer)(void *state, int64_t layer, const asp_real *x, asp_real *out, const asp_context *context);
    void *state;
} asp_mlp_substitute;

/* Activations of a pass that a visitor sees and may change, in the order in which a layer computes them.  The embeddings
 * belong to layer 0, the final LayerNorm to layer L. */
typedef enum {
    ASP_AT_EMBED,          /* (N,E) */
    ASP_AT_POS_EMBED,      /* (N,E) */
    ASP_AT_RESID_PRE,      /* (N,E) */
    ASP_AT_LN1_SCALE,      /* (N) */
    ASP_AT_LN1_NORMALIZED, /* (N,E) */
    ASP_AT_Q,              /* (N,H D), so are K, V and Z */
    ASP_AT_K,
    ASP_AT_V,
    ASP_AT_SCORES,  /* of each sequence (H,queries,keys), where the queries are the rows of this pass and the keys all
                     * positions so far; only keys up to the query are read again.  So are GATE and PATTERN */
    ASP_AT_GATE,    /* bytes */
    ASP_AT_PATTERN, /* used as it is: rows need not sum to 1, a closed gate closes no entry of it any more */
    ASP_AT_Z,
    ASP_AT_RESULT,   /* (N,H E) */
    ASP_AT_ATTN_OUT, /* (N,E) */
    ASP_AT_RESID_MID,
    ASP_AT_LN2_SCALE,
    ASP_AT_LN2_NORMALIZED,
    ASP_AT_MLP_PRE, /* (N,M) */
    ASP_AT_MLP_POST,
    ASP_AT_MLP_OUT,    /* (N,E) */
    ASP_AT_RESID_POST, /* before it is RESID_PRE of the next layer, in the same memory */
    ASP_AT_LN_FINAL_SCALE,
    ASP_AT_LN_FINAL_NORMALIZED,
    ASP_N_PLACES
} asp_place;

/* One activation, for all sequences.  A sequence without rows is not in this pass. */
typedef struct {
    asp_place place;
    int64_t layer, n_sequences;
    const int64_t *offsets; /* (B+1) read */
    const int64_t *first;   /* (B) read: position of each sequence's first row; NULL: 0 */
    int64_t width, stride;  /* of a row, and from row to row */
    asp_real *rows;         /* (N,width) read and written; NULL for SCORES, GATE and PATTERN */
    asp_real *squares;      /* SCORES and PATTERN, read and written: sequence b from asp_visit_square on */
    uint8_t *gates;         /* GATE, the same */
    const int64_t *square_start;
    int64_t n_layer;
    int one_layer; /* squares and gates hold no other layer */
} asp_visit;
int64_t asp_visit_square(const asp_visit *visit, int64_t sequence);
static inline int64_t asp_visit_first(const asp_visit *visit, int64_t sequence) {
    return visit->first ? visit->first[sequence] : 0;
}

/* What sees activations while a pass computes them.  What it leaves as it is does not change a bit of the pass. */
typedef struct {
    const uint32_t *places; /* (L+1) read: bit p of a layer set: called at place p */
    /* Called from the calling thread. */
    asp_status (*visit)(void *state, const asp_visit *visit, const asp_context *context);
    void *state;
} asp_visitor;

typedef struct {
    uint64_t records;       /* bit r set: keep record r */
    int logits;             /* ASP_LOGITS_* */
    int edges;              /* keep the open edges as CSR, see asp_run_edges */
    double edge_threshold;  /* an edge is open if its gate is and its weight is above this (dense: weight above) */
    int64_t max_bytes;      /* fail with NO_MEMORY before allocating more than this */
    const asp_hooks *hooks; /* of an experiment, see asp_interventions_hooks; NULL: none */
    const asp_mlp_substitute *substitute; /* NULL: the model's own MLPs; else there is no MLP_PRE and MLP_POST */
    const asp_visitor
        *visitors; /* (n_visitors) read, called in this order; with a substitute not at MLP_PRE and POST */
    int n_visitors;
    int64_t stop_at; /* 1..L: the pass ends before this layer; records have so many layers, and there is no final
                      * LayerNorm, no logits and no TOKEN_LOSS.  0: nothing is left out */
} asp_run_options;

typedef struct asp_run asp_run;

/* Forward pass over B packed sequences.
 *   tokens (N) read, copied    offsets (B+1) read, copied
 * Errors: BAD_INDEX for a token id, BAD_ARGUMENT for lengths, NO_MEMORY, STOPPED. */
asp_status asp_run_new(asp_run **run, const asp_model *model, const int32_t *tokens, const int64_t *offsets,
                       int64_t n_sequences, const asp_run_options *options, const asp_context *context, asp_error *err);
void asp_run_free(asp_run *run);

typedef struct {
    void *data; /* NULL: not recorded */
    int n_dims;
    int64_t dims[5];
    int64_t strides[5]; /* elements; rows of padding may follow the N rows */
    int is_byte;        /* gate: bytes; everything else asp_real */
} asp_array;

/* The packed array of one record; data NULL if it was not recorded. */
asp_array asp_run_array(const asp_run *run, asp_record record);
const int64_t *asp_run_offsets(const asp_run *run); /* (B+1) */
int64_t asp_run_n_sequences(const asp_run *run);
int64_t asp_run_stop_at(const asp_run *run); /* of its options */
int64_t asp_run_bytes(const asp_run *run);

/* Open edges in CSR, row = ((sequence, layer, head), query): for row r the entries
 * [start[r], start[r+1]) hold key and weight.  start (sum over sequences of L*H*T, plus 1). */
typedef struct {
    int64_t n_rows, n_edges;
    const int64_t *start;   /* (n_rows+1) */
    const int32_t *key;     /* (n_edges) */
    const asp_real *weight; /* (n_edges) */
} asp_edges;
asp_edges asp_run_edges(const asp_run *run);

/* Norms of what each key would carry, for all layers, heads and the n tokens from `first` on of a run with QKV.
 *   value_norm (L,H,n) written: |v|      output_norm (L,H,n) written: |v W_O of the head|
 *   projection (L,H,n) written if direction is given: (v W_O) . direction
 *   direction (E) read, or NULL */
asp_status asp_run_value_norms(const asp_model *model, const asp_run *run, int64_t first, int64_t n_tokens,
                               const asp_real *direction, asp_real *value_norm, asp_real *output_norm,
                               asp_real *projection, const asp_context *context, asp_error *err);

/* Scores of chosen entries, exactly as the forward pass computed them.
 *   layer, head, query, key (n) read: token rows of the packed batch    scores (n) written
 * BAD_INDEX: a number is out of range. */
asp_status asp_attention_entry_scores(const asp_model *model, const asp_run *run, int64_t n, const int64_t *layer,
                                      const int64_t *head, const int64_t *query, const int64_t *key, asp_real *scores,
                                      const asp_context *context, asp_error *err);

/* ---- generation ---------------------------------------------------------------- */

typedef struct {
    int64_t max_new_tokens; /* of each text, one at least */
    int64_t n_samples;      /* texts of each prompt, one at least */
    double temperature;     /* 0: always the most probable token; else logits are divided by it */
    int64_t top_k;          /* only so many tokens of the highest logits can come; 0: all */
    double top_p;           /* of these, only the fewest whose probabilities add up to it, in (0,1]; 1: all */
    uint64_t seed;
    const uint8_t *stop;    /* (V) read: not 0 for the tokens that end a text; NULL: none */
    const asp_hooks *hooks; /* as of one run of all texts at full length: prompt and max_new_tokens; NULL: none */
    /* (n_visitors) read, called in this order: for a block of prompts, each as its first text, and then for the newest
     * token of every text that has not ended.  Sequences are texts. */
    const asp_visitor *visitors;
    int n_visitors;
    int64_t max_bytes; /* fail with NO_MEMORY before allocating more than this */
} asp_generation_options;

/* What the caller gets, of B = n_prompts n_samples texts, those of prompt 0 first.  After STOPPED too, the first
 * n_new[b] tokens of each text are those that it begins with. */
typedef struct {
    int64_t *n_new;   /* (B) written: new tokens, a stop token among them */
    int32_t *tokens;  /* (B,max_new_tokens) the first n_new of each row written */
    double *logprobs; /* (B,max_new_tokens) the same: log of the token's probability, whatever the temperature */
    asp_real *logits; /* (B,max_new_tokens,V) the same, if given: those that the token was chosen by */
} asp_generated;

/* Continues prompts token by token; keys and values of earlier tokens are kept.  Of tokens with equal logits the one
 * with the lower id comes first.  A random number is a function of the seed, the prompt's tokens, the number of the
 * sample and that of the new token, so that a text depends on no other one.
 *   tokens (N), offsets (n_prompts+1) read
 * Errors as asp_run_new; BAD_ARGUMENT for options and for texts longer than n_ctx; BAD_STATE for logits that are not a
 * number.  Stage of progress: "generation" (new tokens). */
asp_status asp_generation_run(asp_generated *generated, const asp_model *model, const int32_t *tokens,
                              const int64_t *offsets, int64_t n_prompts, const asp_generation_options *options,
                              const asp_context *context, asp_error *err);

/* ---- gradients ----------------------------------------------------------------- */

enum { ASP_GATE_GRADIENT_NONE = 0, ASP_GATE_GRADIENT_STRAIGHT_THROUGH = 1 };

typedef struct {
    int parameters;    /* gradients of all weights */
    uint64_t records;  /* gradients of activations: RESID, RESID_MID, QKV, SCORES, PATTERN, Z, MLP_PRE, MLP_POST */
    int gate_gradient; /* ASP_GATE_GRADIENT_* */
    const asp_real *dlogits; /* (N,V) read, or NULL: cross-entropy with targets and weights below */
    const int32_t *targets;  /* (N) read; used where the weight is not 0 */
    const asp_real *weights; /* (N) read; the loss is sum(w * ce) / sum(w) */
    int64_t max_bytes;
} asp_gradient_options;

typedef struct asp_gradients asp_gradients;

/* Forward and backward over B packed sequences, gates as at evaluation.  Errors as asp_run_new. */
asp_status asp_gradients_new(asp_gradients **gradients, const asp_model *model, const int32_t *tokens,
                             const int64_t *offsets, int64_t n_sequences, const asp_gradient_options *options,
                             const asp_context *context, asp_error *err);
void asp_gradients_free(asp_gradients *gradients);
double asp_gradients_loss(const asp_gradients *gradients); /* cross-entropy, or sum(dlogits * logits) */
asp_array asp_gradients_array(const asp_gradients *gradients, asp_record record);
asp_real *asp_gradients_parameters(const asp_gradients *gradients); /* laid out as the model's arena */

/* ---- metrics ------------------------------------------------------------------- */

typedef enum {
    ASP_LOGIT_DIFF,     /* mean logit of the answers minus the mean of the wrong ones */
    ASP_LOGIT_DIFF_MAX, /* ... minus the largest of the wrong ones */
    ASP_PROB_DIFF,      /* probability of all answers minus that of all wrong ones */
    ASP_LOG_PROB,       /* log-probability of all answers together */
    ASP_KL,             /* KL(reference || logits) */
    ASP_CUSTOM,         /* what the caller's functions say */
    ASP_N_METRICS
} asp_metric_kind;

/* A metric of the caller's own.  The functions are called from the calling thread, with up to some hundred rows of
 * logits at once; anything but 0 ends the call with STOPPED. */
typedef struct {
    /* sequence (n) read: of which sequence each row is    logits (n,V) read    values (n) written */
    int (*values)(void *state, int64_t n, const int64_t *sequence, const asp_real *logits, double *values);
    /* gradient (n,V) written: of each row's value with respect to its logits.  NULL: there is no attribution */
    int (*gradient)(void *state, int64_t n, const int64_t *sequence, const asp_real *logits, asp_real *gradient);
    void *state;
} asp_custom_metric;

/* One number for the logits after the last token of each sequence. */
typedef struct {
    asp_metric_kind kind;
    int64_t n_sequences;
    const int64_t *answer_start, *wrong_start; /* (B+1) read: sequence b has answers [start[b], start[b+1]) */
    const int32_t *answers, *wrong;            /* token ids, read */
    const asp_real *reference;                 /* (B,V) read: logits for KL; else NULL */
    const asp_custom_metric *custom;           /* read, for CUSTOM; else NULL */
    int64_t
        first_sequence; /* of CUSTOM: number of the first sequence, as the functions are told; see asp_metric_part */
} asp_metric;
const char *asp_metric_name(asp_metric_kind kind);
/* Whether it compares the answers with the wrong ones and needs nothing else. */
int asp_metric_is_of_answers(asp_metric_kind kind);
/* Sequences first .. first + n - 1 of a metric, as a metric of n sequences that points to the same arrays. */
asp_metric asp_metric_part(const asp_metric *metric, int64_t first, int64_t n, int64_t n_vocab);
/* BAD_ARGUMENT, BAD_INDEX unless every sequence has what the kind needs, in a vocabulary of n_vocab. */
asp_status asp_metric_check(const asp_metric *metric, int64_t n_vocab, asp_error *err);
/* The metric of each sequence.
 *   values (B) written    logits (B,V) read
 * Errors as asp_metric_check, and STOPPED. */
asp_status asp_metric_values(double *values, const asp_metric *metric, const asp_real *logits, int64_t n_vocab,
                             const asp_context *context, asp_error *err);
/* Its gradient with respect to the logits.
 *   dlogits (B,V) written    logits (B,V) read
 * Errors as asp_metric_values, and BAD_ARGUMENT for a CUSTOM metric without a gradient. */
asp_status asp_metric_gradients(asp_real *dlogits, const asp_metric *metric, const asp_real *logits, int64_t n_vocab,
                                const asp_context *context, asp_error *err);

/* ---- losses -------------------------------------------------------------------- */

/* Cross-entropy in nats of a target under each row of logits, computed in float64.
 *   losses (n) written    logits (n,V) read    targets (n) read
 * BAD_INDEX: a target that is not in 0..V-1.  NaN where logits are. */
asp_status asp_loss_tokens(double *losses, const asp_real *logits, const int32_t *targets, int64_t n, int64_t n_vocab,
                           const asp_context *context, asp_error *err);

/* ---- machine ------------------------------------------------------------------- */

int asp_parallel_default_threads(void); /* from affinity and cgroup quota */
const char *asp_isa_name(void);         /* "avx512", "avx2", "baseline" */
/* Chooses kernels by CPU, or by name ("baseline", ...) if it is one that this CPU runs. */
asp_status asp_isa_select(const char *name, asp_error *err);
const char *asp_blas_config(void);
const char *asp_blas_core(void);
/* What is kept of the BLAS library, for the other precision in the same process, which must share it. */
typedef struct asp_blas_state asp_blas_state;
asp_blas_state *asp_blas_get_state(void);
void asp_blas_share_state(asp_blas_state *shared);

typedef struct {
    int64_t live_bytes, live_blocks, n_allocations;
} asp_memory_stats;
asp_memory_stats asp_memory_get_stats(void);
/* The n-th allocation from now fails (n >= 1); 0 switches this off. */
void asp_memory_fail_at(int64_t n);

/* ---- single kernels, for tests ------------------------------------------------- */

/* u and open-gate noise of one row: u (T) written, in (0,1). */
void asp_isa_noise_row(asp_real *u, int64_t n, uint64_t seed, uint64_t step, uint64_t sequence, uint64_t layer,
                       uint64_t head, uint64_t query);
void asp_isa_exp_array(asp_real *out, const asp_real *x, int64_t n);

#include "asp_circuit.h"
#include "asp_component.h"
#include "asp_graph.h"
#include "asp_lens.h"
#include "asp_train.h"
#include "asp_transcoder.h"

#endif
