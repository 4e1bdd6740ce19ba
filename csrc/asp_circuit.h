/* asp_circuit.h: the part of the public C API about interventions and effects; asp.h includes it. */
#ifndef ASP_CIRCUIT_H
#define ASP_CIRCUIT_H

#include "asp.h"

/* ---- interventions in one pass ------------------------------------------------- */

/* What a pass puts in place of activations.  Positions count within a sequence.  Lists in any order; of two
 * values for one place the later one stays; entries must differ from each other. */
typedef struct {
    int64_t n_heads, n_entries, n_mlps, n_resids;
    const int64_t *heads;         /* (n,4) layer, sequence, head, position: z is replaced */
    const asp_real *head_values;  /* (n,D) */
    const int64_t *entries;       /* (n,5) layer, sequence, head, query, key: A[query,key] v[key] is replaced */
    const asp_real *entry_values; /* (n,D), or NULL: by 0 */
    const int64_t *mlps;          /* (n,3) layer, sequence, position: the MLP's output is replaced */
    const asp_real *mlp_values;   /* (n,E) */
    const int64_t *resids;        /* (n,4) half, layer, sequence, position: the residual stream before layer
                                    * 0..L (half 0), or between attention and MLP of layer 0..L-1 (half 1) */
    const asp_real *resid_values; /* (n,E) */
} asp_interventions;

/* Hooks that make these interventions in one pass at a time, for asp_run_options.  given is read until they are freed.
 * What is out of range makes the run fail with BAD_INDEX. */
asp_status asp_interventions_hooks(asp_hooks **hooks, const asp_interventions *given, asp_error *err);
void asp_interventions_free(asp_hooks *hooks);

/* ---- sweeps and attribution ---------------------------------------------------- */

/* What is kept or ablated as a whole: a head, a head at one position, an attention entry. */
typedef enum { ASP_UNIT_HEAD, ASP_UNIT_POSITION, ASP_UNIT_EDGE } asp_unit;

enum { ASP_RANK_CLOSED = INT32_MAX };

/* A sequence of a clean run in which some items are ablated: those with a rank of 0 or more that is not in
 * [begin, end), or is `except`.  What lies before layer `start` and position `first` is taken from the clean run;
 * with `narrow`, so is all of layer `start` but that position (1: and only there something is ablated; 2: also in
 * later layers).  The clean run itself may have items ablated, if the variants ablate them too. */
typedef struct {
    int64_t sequence, start_layer, first_position, scope, keep_begin, keep_end, dropped;
} asp_variant;

/* What ablated items are replaced by: nothing given = zero. */
typedef struct {
    const asp_run *run;      /* paired prompts: z for heads, pattern and qkv for entries; or NULL */
    const asp_real *z;       /* (L,T,H,D) read: one for all sequences; or NULL */
    const asp_real *entries; /* (L,H,T,T,D) read: contributions A v, one for all sequences; or NULL */
} asp_reference;

typedef struct {
    asp_unit unit;
    const int32_t *order; /* (L,H), (L,H,T) or (L,H,T,T) read: rank of each item, < 0: never ablated;
                                * ASP_RANK_CLOSED: always ablated, and replaced by nothing */
    asp_reference reference;
    asp_metric metric;
    int64_t *rows; /* (2) added to: rows of layers that were computed, and those of the variants each for itself; NULL:
                    * not wanted.  A row is one position in one layer; in the last layer there is one of a variant */
} asp_sweep_options;

/* The metric of every variant of a clean run that recorded RESID and QKV.
 *   values (n_variants) written    variants read
 * With positions in the unit all sequences have T tokens.  Errors: BAD_STATE for what the runs lack, BAD_INDEX
 * for variants, NO_MEMORY, STOPPED. */
asp_status asp_sweep(double *values, const asp_model *model, const asp_run *clean, const asp_variant *variants,
                     int64_t n_variants, const asp_sweep_options *options, const asp_context *context, asp_error *err);

/* entries (L,H,T,T,D) written where key <= query: mean over the sequences of a run, all of T tokens, of A[q,k] v[k]. */
asp_status asp_reference_mean_entries(asp_real *entries, const asp_run *run, const asp_context *context,
                                      asp_error *err);

/* First-order effects of all items at once: with z = m z + (1 - m) reference for one m per item, the derivative
 * of the metric with respect to each item's m, averaged over m = (j - 1/2) / steps, j = 1..steps (steps 1: m = 1).
 * Summed over the sequences.  With through_gate (entries of a gated model), the share that goes through
 * the gate instead: gate logit times its straight-through derivative.
 *   scores (L,H), (L,H,T) or (L,H,T,T) added to */
typedef struct {
    asp_unit unit;
    int64_t steps;
    int through_gate;
    asp_reference reference;
    const uint8_t *closed; /* (L,H,T,T) read: entries that have no reference, with reference.run; or NULL */
    asp_metric metric;
    int64_t max_bytes;
} asp_attribution_options;
asp_status asp_attribution(double *scores, const asp_model *model, const int32_t *tokens, const int64_t *offsets,
                           int64_t n_sequences, const asp_attribution_options *options, const asp_context *context,
                           asp_error *err);

#endif
