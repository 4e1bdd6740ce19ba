/* asp_train.h: the part of the public C API about training; asp.h includes it. */
#ifndef ASP_TRAIN_H
#define ASP_TRAIN_H

#include "asp.h"

/* What training drops at random, each by itself: entries of the pattern, whole heads (of a sequence at once), values
 * that attention and MLPs add to the residual stream.  What is kept is divided by 1 - rate. */
typedef enum { ASP_DROP_ENTRIES, ASP_DROP_HEADS, ASP_DROP_ATTN_OUT, ASP_DROP_MLP_OUT, ASP_N_DROPS } asp_drop;
/* Kinds of attention entries that have prices of their own.  An entry is of the first kind that fits it. */
typedef enum { ASP_ENTRY_SELF, ASP_ENTRY_PREVIOUS, ASP_ENTRY_FIRST, ASP_ENTRY_OTHER, ASP_N_ENTRY_KINDS } asp_entry_kind;

/* What is compared with the target that moves the multiplier: the step's cross-entropy; that of the same sequences
 * with hard gates and nothing dropped; one that was measured elsewhere; or the step's open edges for each token. */
typedef enum {
    ASP_CONSTRAINT_TRAINING,
    ASP_CONSTRAINT_HARD,
    ASP_CONSTRAINT_MEASURED,
    ASP_CONSTRAINT_EDGES
} asp_constraint;

typedef struct {
    double lr, beta1, beta2, eps, weight_decay, clip;
    uint64_t seed;
    const double *dropout[ASP_N_DROPS];           /* (L) each, read: rates in [0,1), heads' in [0,1]; NULL: 0 */
    int gate_noise;                               /* gates have noise; 0: hard gates, with gradients as with it */
    const double *gate_bias;                      /* (L) read; NULL: the model's gate_bias */
    const double *edge_weight[ASP_N_ENTRY_KINDS]; /* (L) each, read: price of an edge; NULL: as OTHER, or 1 */
    double tau, geco_rate, geco_clip, geco_ema, lambda_min, lambda_max;
    int geco_relative;
    asp_constraint constraint;
    double measured;        /* for MEASURED; NaN: not yet, and the multiplier only stays within its limits */
    double edges_per_token; /* for EDGES: the target, above 0 */
} asp_step_options;

typedef struct {
    double loss, cross_entropy, expected_edges, open_edges, multiplier, ema, grad_norm;
    double open_self;                       /* open self edges, as a share of all entries like open_edges */
    double edges_per_token, self_per_token; /* open edges, and of them self edges, for each token */
    double constrained;                     /* what was compared with the target; NaN: nothing */
    int64_t n_tokens;
} asp_step_result;

typedef struct {
    int64_t step;
    double multiplier, ema; /* ema NaN before the first gated step */
} asp_trainer_state;

typedef struct asp_trainer asp_trainer;

/* Of n_ranks processes that train one model together, process `rank` keeps the moments of a slice of the weights and
 * updates that; a process alone is rank 0 of 1. */
asp_status asp_trainer_new(asp_trainer **trainer, asp_model *model, int64_t rank, int64_t n_ranks, asp_error *err);
void asp_trainer_free(asp_trainer *trainer);
/* One optimiser step over n_micro micro-batches: forward, backward, clipping, AdamW, multiplier.  The sequences of all
 * micro-batches are cut into n_parts neighbouring parts, whose gradients are summed up each by itself; the order in
 * which parts are added depends on n_parts alone.
 * Errors: DIVERGED before anything is changed; STOPPED, NO_MEMORY likewise; BAD_INDEX, BAD_ARGUMENT. */
asp_status asp_trainer_step(asp_trainer *trainer, const asp_batch *micro, int64_t n_micro, int64_t n_parts,
                            const asp_step_options *options, const asp_context *context, asp_step_result *result,
                            asp_error *err);

/* The same step of several processes, which pass each other what lies between the functions:
 *   asp_trainer_gradients: sums over the process's own parts; errors as of asp_trainer_step, nothing is changed.
 *   asp_trainer_combine:   the sum over all parts for the process's slice, from the sums of all processes.
 *   asp_trainer_update:    weights and moments of the slice, and the multiplier, from the numbers of all parts and the
 *                          squares of all chunks.  DIVERGED: nothing is changed.
 *   asp_trainer_adopt:     the weights of the others. */

/* The sum of the gradients of parts first..first+n, laid out as the model's arena or as a slice of it. */
typedef struct {
    int64_t first, n;
    asp_real *data;
} asp_part_sum;
/* A slice of the arena and its chunks, begin..end of each. */
typedef struct {
    int64_t begin, end, first_chunk, end_chunk;
} asp_trainer_slice;
asp_trainer_slice asp_trainer_slice_of(const asp_trainer *trainer, int64_t rank);
int64_t asp_trainer_n_numbers(const asp_trainer *trainer); /* what is found in one part */
/* Parts first..first+n of n_parts.  numbers (n,n_numbers) written. */
asp_status asp_trainer_gradients(asp_trainer *trainer, const asp_batch *micro, int64_t n_micro, int64_t n_parts,
                                 int64_t first, int64_t n, const asp_step_options *options, double *numbers,
                                 const asp_context *context, asp_error *err);
/* *sums (n) as they were left, in order, owned by the trainer. */
int64_t asp_trainer_sums(const asp_trainer *trainer, const asp_part_sum **sums);
/* sums (n): of the slice, all parts in order; their data are read and changed.  squares (chunks of the slice) written:
 * squares of the gradients. */
asp_status asp_trainer_combine(asp_trainer *trainer, const asp_part_sum *sums, int64_t n, double *squares,
                               const asp_context *context, asp_error *err);
/* numbers (n_parts,n_numbers) and squares (all chunks) read; weights (arena) written where the slice is, or NULL. */
asp_status asp_trainer_update(asp_trainer *trainer, const double *numbers, const double *squares,
                              const asp_step_options *options, asp_real *weights, const asp_context *context,
                              asp_step_result *result, asp_error *err);
/* weights (arena) read where the slice is not. */
void asp_trainer_adopt(asp_trainer *trainer, const asp_real *weights);

asp_trainer_state *asp_trainer_get_state(asp_trainer *trainer);
asp_real *asp_trainer_first_moment(asp_trainer *trainer); /* laid out as the process's slice of the arena */
asp_real *asp_trainer_second_moment(asp_trainer *trainer);

#endif
