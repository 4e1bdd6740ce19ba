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
    /* (n) of each list: not 0 where the value is added to what is there; NULL: nowhere */
    const uint8_t *heads_added, *mlps_added, *resids_added;
} asp_interventions;

/* Hooks that make these interventions in one pass at a time, for asp_run_options.  given is read until they are freed.
 * What is out of range makes the run fail with BAD_INDEX. */
asp_status asp_interventions_hooks(asp_hooks **hooks, const asp_interventions *given, asp_error *err);
void asp_interventions_free(asp_hooks *hooks);

/* ---- what a pass takes from another run ------------------------------------------ */

/* A run, read, whose sequences from `first` on are as long as those of the pass. */
typedef struct {
    const asp_run *run; /* NULL: the pass computes its own */
    int64_t first;
} asp_frozen_part;
typedef struct {
    asp_frozen_part pattern, gate; /* of a run that recorded PATTERN, GATE */
    asp_frozen_part scales;        /* LN1_SCALE, LN2_SCALE, LN_FINAL_SCALE */
} asp_frozen;
/* A visitor that puts them in place of those of a pass over these sequences, for asp_run_options; or over n_texts
 * texts of each of them, for asp_generation_options, whose new tokens have their own.  The runs are read until it is
 * freed.
 *   offsets (n_sequences+1) read
 * Errors: BAD_ARGUMENT for runs of other sizes, BAD_STATE for what they did not record, NO_MEMORY. */
asp_status asp_frozen_visitor(asp_visitor **visitor, const asp_frozen *given, const asp_config *config,
                              const int64_t *offsets, int64_t n_sequences, int64_t n_texts, asp_error *err);
void asp_frozen_free(asp_visitor *visitor);

/* ---- effects over a task --------------------------------------------------------- */

/* What is kept or ablated as a whole: a head, a head at one position, an attention entry. */
typedef enum { ASP_UNIT_HEAD, ASP_UNIT_POSITION, ASP_UNIT_EDGE } asp_unit;

/* What replaces an ablated item: zero; its mean at that position (of an entry: the mean of A v) over reference
 * prompts; what it is in the corrupted prompt. */
typedef enum { ASP_ABLATE_ZERO, ASP_ABLATE_MEAN, ASP_ABLATE_COUNTERFACTUAL } asp_ablation;

/* Prompts without padding. */
typedef struct {
    const int32_t *tokens;  /* (N) read */
    const int64_t *offsets; /* (n_prompts+1) read, from 0 on */
    int64_t n_prompts;
} asp_prompts;

typedef struct {
    asp_prompts clean;     /* P prompts */
    asp_prompts corrupted; /* n_prompts 0: none; else as many and as long as the clean ones */
    asp_metric metric;     /* of the clean prompts.  Its reference is NULL: KL compares with the whole model */
} asp_task;

typedef struct {
    asp_unit unit;
    asp_ablation ablation;
    const asp_prompts *reference; /* MEAN: what is averaged over; NULL: the clean prompts */
    int64_t max_bytes;            /* fail with NO_MEMORY before allocating more than this */
    int others_stay;              /* keep only: items that are not listed are never ablated */
} asp_effect_options;

/* Rows of a unit: (layer, head), (layer, head, position) or (layer, head, query, key); all different. */
typedef struct {
    const int32_t *rows; /* (n, 2 | 3 | 4) read */
    int64_t n;
} asp_items;

/* Items with positions and means need prompts of one length T.  Errors of all: BAD_INDEX for tokens and items,
 * BAD_ARGUMENT for lengths, metrics, items that are listed twice and what an ablation lacks, NO_MEMORY, STOPPED.
 * Stages of progress: "knock-out", "keep only", "leave one out" (variants of prompts), "attribution" (prompts). */

/* Every item that can have an effect, in rising order: entries only if the gate is open in a clean prompt.
 * *rows (n, 2 | 3 | 4) is freed with asp_effects_free_items. */
asp_status asp_effects_candidates(int32_t **rows, int64_t *n, const asp_model *model, const asp_task *task,
                                  asp_unit unit, const asp_context *context, asp_error *err);
void asp_effects_free_items(int32_t *rows);

/* The metric of the whole model.  values (P) written */
asp_status asp_effects_whole(double *values, const asp_model *model, const asp_task *task, const asp_context *context,
                             asp_error *err);

/* The metric with each item alone ablated.  values (n,P) written */
asp_status asp_effects_knock_out(double *values, const asp_model *model, const asp_task *task, asp_items items,
                                 const asp_effect_options *options, const asp_context *context, asp_error *err);

/* The metric with the first sizes[s] items kept and everything else of the unit ablated (with others_stay: the rest of
 * the list).  Entries whose gate no clean prompt opens contribute nothing, whatever their mean or their value in a
 * corrupted prompt.
 *   values (n_sizes,P) written    sizes (n_sizes) read, each 0..n */
asp_status asp_effects_keep_only(double *values, const asp_model *model, const asp_task *task, asp_items items,
                                 const int64_t *sizes, int64_t n_sizes, const asp_effect_options *options,
                                 const asp_context *context, asp_error *err);

/* The same with all items kept but one in turn.
 *   values (n_dropped,P) written    dropped (n_dropped) read: the numbers of these, each 0..n-1; NULL: each of n */
asp_status asp_effects_leave_one_out(double *values, const asp_model *model, const asp_task *task, asp_items items,
                                     const int64_t *dropped, int64_t n_dropped, const asp_effect_options *options,
                                     const asp_context *context, asp_error *err);

/* First-order effects of all items at once, summed over the prompts: with z = m z + (1 - m) reference for one m per
 * item, the derivative of the metric with respect to each item's m, averaged over m = (j - 1/2) / steps, j = 1..steps
 * (steps 1: m = 1).  With through_gate (entries of a gated model, ablated to zero), the share that goes through the
 * gate instead: gate logit times its straight-through derivative.
 *   scores (L,H), (L,H,T) or (L,H,T,T) written */
asp_status asp_effects_attribution(double *scores, const asp_model *model, const asp_task *task,
                                   const asp_effect_options *options, int64_t steps, int through_gate,
                                   const asp_context *context, asp_error *err);

/* entries (L,H,T,T,D) written where key <= query: mean over the sequences of a run, all of T tokens, of A[q,k] v[k]. */
asp_status asp_reference_mean_entries(asp_real *entries, const asp_run *run, const asp_context *context,
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

/* shares (n+1) written: the sum of the first 0..n effects above 0, as a share of the sum of all of them.
 *   effect (n) read */
void asp_curve_shares(double *shares, const double *effect, int64_t n);

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

/* ---- finding a circuit ---------------------------------------------------------- */

typedef enum {
    ASP_RANKING_EXACT,       /* each item ablated alone */
    ASP_RANKING_ATTRIBUTION, /* gradient of the metric times what ablation would change */
    ASP_RANKING_IG,          /* the same integrated over steps from all ablated to none */
    ASP_RANKING_GREEDY       /* backward elimination */
} asp_ranking;

typedef struct {
    asp_effect_options effects; /* MEAN without a reference: over the clean prompts of the ranking task */
    asp_ranking ranking;
    asp_normalization normalization;
    int absolute;          /* rank by the absolute value of the score */
    int smaller_is_better; /* the metric: scores change their sign */
    int64_t steps;         /* of IG */
    double greedy_step;    /* share of the kept items that a round of GREEDY drops at most, one at least */
    const int64_t *sizes;  /* (n_sizes) read: ascending, in 0..n; NULL: the default ones, finer around 0.9 */
    int64_t n_sizes, n_bootstrap, n_random;
    double confidence;
    uint64_t seed;                       /* of resamples and random orders */
    const char *task_name, *metric_name; /* for the texts of errors */
} asp_circuit_options;

/* A ranking of n items with its evaluation at S sizes on the P prompts of the evaluation task, in one arena.
 *
 * It is made by steps: one call of effects.c or a round of elimination or a random order each.  Between two steps all
 * that a search has found is one block of bytes, which another search of the same question can go on from, to the same
 * bits.  A step that fails (STOPPED too) changes nothing. */
typedef struct asp_circuit asp_circuit;

/* What a search has measured: the metric as in effects.c, on one of its two tasks, with its options; MEAN without a
 * reference: over the prompts of the ranking in both. */
typedef struct {
    enum { ASP_ASK_KNOCK_OUT, ASP_ASK_KEEP_ONLY, ASP_ASK_LEAVE_ONE_OUT, ASP_ASK_ATTRIBUTION } kind;
    int of_ranking;       /* else of the evaluation */
    asp_items items;      /* none of ATTRIBUTION, which is of all of the unit */
    const int64_t *sizes; /* (n_sizes) read: of KEEP_ONLY */
    int64_t n_sizes, steps;
} asp_circuit_question;
/* Who measures: in pieces, say, or on other machines. */
typedef struct {
    void *state;
    /* values (n_values) written: (n,P), (n_sizes,P), or scores of all items.  Tells progress as effects.c does. */
    asp_status (*measure)(void *state, double *values, const asp_circuit_question *question, int64_t n_values,
                          const asp_context *context, asp_error *err);
} asp_circuit_measurer;

/* Begins a search.  All that is given is read until the last step.  items: those to be ranked, all different.
 * Errors: BAD_ARGUMENT for options, NO_MEMORY. */
asp_status asp_circuit_new(asp_circuit **circuit, const asp_model *model, const asp_task *ranking,
                           const asp_task *evaluation, const asp_items *items, const asp_circuit_options *options,
                           asp_error *err);
/* *done written: the search has ended.  measurer: NULL: effects.c.  Errors: those of effects.c, and BAD_ARGUMENT for a
 * metric that is not finite or that the normalization would divide by 0. */
asp_status asp_circuit_step(asp_circuit *circuit, int *done, const asp_circuit_measurer *measurer,
                            const asp_context *context, asp_error *err);
/* Bytes of the state, whose start goes to *state; valid until the next step. */
int64_t asp_circuit_state(const asp_circuit *circuit, const void **state);
/* Continues from a state of the same question.  BAD_ARGUMENT: it cannot be one. */
asp_status asp_circuit_restore(asp_circuit *circuit, const void *state, int64_t n_bytes, asp_error *err);
/* All steps. */
asp_status asp_circuit_find(asp_circuit **circuit, const asp_model *model, const asp_task *ranking,
                            const asp_task *evaluation, const asp_items *items, const asp_circuit_options *options,
                            const asp_context *context, asp_error *err);
void asp_circuit_free(asp_circuit *circuit);

typedef enum {
    ASP_CIRCUIT_ITEMS,         /* (n, 2 | 3 | 4) int32, best first */
    ASP_CIRCUIT_SCORES,        /* (n) */
    ASP_CIRCUIT_SIZES,         /* (S) int64, ascending */
    ASP_CIRCUIT_VALUES,        /* (S,P) the metric with only the best so many items kept */
    ASP_CIRCUIT_FULL,          /* (P) of the whole model */
    ASP_CIRCUIT_EMPTY,         /* (P) with all items ablated */
    ASP_CIRCUIT_EFFECT,        /* (S) */
    ASP_CIRCUIT_EFFECT_LOW,    /* (S) ends of its bootstrap interval; NaN without one */
    ASP_CIRCUIT_EFFECT_HIGH,   /* (S) */
    ASP_CIRCUIT_RANDOM_EFFECT, /* (S) mean, smallest and largest of random orders; NaN where not evaluated */
    ASP_CIRCUIT_RANDOM_LOW,    /* (S) */
    ASP_CIRCUIT_RANDOM_HIGH,   /* (S) */
    ASP_CIRCUIT_N_PARTS
} asp_circuit_part;
typedef struct {
    const void *data; /* NULL before the last step */
    int item_bytes;   /* 4: int32; 8: int64 for sizes, else double */
    int n_dims;
    int64_t dims[2];
} asp_circuit_array_view;
asp_circuit_array_view asp_circuit_array(const asp_circuit *circuit, asp_circuit_part part);

#endif
