/* asp_circuit.h: the part of the public C API about interventions, effects and curves; asp.h includes it. */
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

/* ---- curves -------------------------------------------------------------------- */

/* How a metric becomes the faithfulness (explained effect) of a circuit C; m is its mean over prompts, M the whole
 * model, 0 the model with everything ablated. */
typedef enum {
    ASP_NORMALIZE_MIB,   /* (m(C) - m(0)) / (m(M) - m(0)) */
    ASP_NORMALIZE_RATIO, /* m(C) / m(M) */
    ASP_NORMALIZE_NONE   /* m(C) */
} asp_normalization;

/* What was measured, on P prompts, with the n best items kept for S numbers n.  No model: also for a circuit that was
 * read from a file. */
typedef struct {
    const double *values; /* (S,P) read */
    const double *full;   /* (P) read: of the whole model */
    const double *empty;  /* (P) read: with everything ablated */
    int64_t n_sizes, n_prompts;
    asp_normalization normalization;
} asp_curve;

/* Resamples of the prompts: each draws as many as there are, with replacement, the same ones for the circuit, the
 * whole model and the model with everything ablated. */
typedef struct {
    int64_t n_resamples;
    uint64_t seed;
    double confidence; /* share of the resamples inside an interval, above 0 and below 1 */
} asp_bootstrap;

/* effect (S) written; infinite or NaN where the divisor is 0. */
void asp_curve_effect(double *effect, const asp_curve *curve);

/* The effects of resamples, without those that are not finite (whose divisor is 0).
 *   curves (n_resamples,S) written, the first *n_valid rows of it
 * Errors, here and below: BAD_ARGUMENT for a curve without prompts or resamples below 0, NO_MEMORY, STOPPED. */
asp_status asp_curve_bootstrap(double *curves, int64_t *n_valid, const asp_curve *curve, int64_t n_resamples,
                               uint64_t seed, const asp_context *context, asp_error *err);

/* Percentile interval at every size, interpolated between resamples; NaN without curves.
 *   low, high (S) written    curves (n_curves,S) read, finite */
asp_status asp_curve_band(double *low, double *high, const double *curves, int64_t n_curves, int64_t n_sizes,
                          double confidence, const asp_context *context, asp_error *err);

/* Where curves first reach the fraction, and from where on they stay at or above it: indices into the sizes, S where a
 * curve never does.
 *   first, stays (n_curves) written    curves (n_curves,S) read */
void asp_curve_needed(int64_t *first, int64_t *stays, const double *curves, int64_t n_curves, int64_t n_sizes,
                      double fraction);

/* The same of one curve, with the percentile intervals over resamples, rounded outwards to indices that were drawn.  S
 * for the ends of the intervals if there is no resample.
 *   effect (S) read: of the curve, as it was evaluated */
typedef struct {
    int64_t first, stays, first_low, first_high, stays_low, stays_high;
} asp_needed;
asp_status asp_curve_needed_interval(asp_needed *needed, const asp_curve *curve, const double *effect, double fraction,
                                     const asp_bootstrap *bootstrap, const asp_context *context, asp_error *err);

/* How many times more items one circuit needs than another to reach the fraction, with the percentile interval over
 * resamples, which draw the same prompts for both if they have equally many.  All NaN if one of them never reaches it. */
typedef struct {
    asp_curve curve;
    const double *effect; /* (S) read */
    const int64_t *sizes; /* (S) read, ascending */
} asp_measured;
typedef struct {
    double value, low, high; /* low and high may be infinite */
} asp_ratio;
asp_status asp_curve_ratio(asp_ratio *ratio, const asp_measured *circuit, const asp_measured *other, double fraction,
                           int stays, const asp_bootstrap *bootstrap, const asp_context *context, asp_error *err);

#endif
