/* circuit.h: what is ablated, what replaces it, and how it is measured. */
#ifndef ASP_CIRCUIT_INTERNAL_H
#define ASP_CIRCUIT_INTERNAL_H

#include "model/hooks.h"

/* ---- sweep.c ------------------------------------------------------------------- */

enum {
    ASP_RANK_KEPT = -1,             /* never ablated */
    ASP_RANK_NEVER = INT32_MAX - 1, /* never kept: above the ranks of all items */
    ASP_RANK_CLOSED = INT32_MAX     /* never kept, and replaced by nothing */
};

/* What of its first layer a variant computes, and where its items are ablated. */
typedef enum {
    ASP_SCOPE_ALL,   /* all positions from the first one on; in every layer */
    ASP_SCOPE_POINT, /* the first position alone; only there */
    ASP_SCOPE_LATER  /* the first position alone; there and in later layers */
} asp_scope;

/* A sequence of a clean run in which some items are ablated: those with a rank of 0 or more that is not in
 * [keep_begin, keep_end), or is `dropped`.  What lies before layer `start_layer` and position `first_position` is
 * taken from the clean run; so are the other positions of that layer, unless the scope is ASP_SCOPE_ALL.  The clean
 * run itself may have items ablated, if the variants ablate them too. */
typedef struct {
    int64_t sequence, start_layer, first_position;
    asp_scope scope;
    int64_t keep_begin, keep_end, dropped;
} asp_variant;

/* What ablated items are replaced by: nothing given = zero. */
typedef struct {
    const asp_run *run;      /* paired prompts: z for heads, pattern and qkv for entries; or NULL */
    const asp_real *z;       /* (L,T,H,D) read: one for all sequences; or NULL */
    const asp_real *entries; /* (L,H,T,T,D) read: contributions A v, one for all sequences; or NULL */
} asp_reference;

typedef struct {
    asp_unit unit;
    const int32_t *order; /* (L,H), (L,H,T) or (L,H,T,T) read: rank of each item, see ASP_RANK_* */
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
/* Bytes that a sweep takes at most. */
int64_t asp_sweep_needed(const asp_model *model, int64_t longest, int64_t n_variants, asp_metric_kind kind,
                         int n_threads);

/* ---- attribution.c ------------------------------------------------------------- */

typedef struct {
    asp_unit unit;
    int64_t steps;
    int through_gate;
    asp_reference reference;
    const uint8_t *closed; /* (L,H,T,T) read: entries that have no reference, with reference.run; or NULL */
    asp_metric metric;
    int64_t max_bytes;
} asp_attribution_options;
/* What asp_effects_attribution computes, summed over packed sequences.
 *   scores (L,H), (L,H,T) or (L,H,T,T) added to */
asp_status asp_attribution(double *scores, const asp_model *model, const int32_t *tokens, const int64_t *offsets,
                           int64_t n_sequences, const asp_attribution_options *options, const asp_context *context,
                           asp_error *err);
/* Bytes that it takes besides. */
int64_t asp_attribution_needed(const asp_model *model, const int64_t *offsets, int64_t n_sequences, asp_unit unit,
                               asp_metric_kind kind, int n_threads);

/* ---- reference.c --------------------------------------------------------------- */

/* What ablated items of sequences with these offsets are replaced by. */
typedef struct {
    const asp_reference *given;
    const asp_config *config;
    const int64_t *offsets;      /* (B+1) of the sequences and of the paired run */
    asp_array z, pattern, qkv;   /* of the paired run; data NULL if there is none or it did not record them */
    const int64_t *square_start; /* (B+1) of its pattern */
} asp_reference_view;
/* Checks lengths: `alike` if all sequences must have as many tokens.  caller: begins the error's text. */
asp_status asp_reference_open(asp_reference_view *replacement, const asp_reference *given, const asp_config *config,
                              const int64_t *offsets, int64_t n_sequences, int alike, const char *caller,
                              asp_error *err);
/* What z (D) of an ablated head is at one position, or NULL for zero. */
const asp_real *asp_reference_z(const asp_reference_view *replacement, int64_t layer, int64_t sequence, int64_t head,
                                int64_t position);
/* mean (L,T,H,D) written: mean over the sequences of a run, all of T tokens, of its z. */
asp_status asp_reference_mean_z(asp_real *mean, const asp_run *run, const asp_context *context);
/* Takes what is not open (L,H,T,T) out of mean entries (L,H,T,T,D).  z (L,T,H,D) written: the sum of the others. */
asp_status asp_reference_close(asp_real *z, asp_real *entries, const uint8_t *open, const asp_config *config,
                               int64_t length, const asp_context *context);

/* ---- variants.c ---------------------------------------------------------------- */

/* Of each thread. */
typedef struct {
    const asp_real **rows, **held; /* (longest) */
    asp_real **z_rows;             /* (longest) */
    int64_t *queries, *attending;  /* (longest) */
    uint8_t *mask;                 /* (longest^2) */
} asp_variant_scratch;

/* Variants of clean sequences.  Every row of the residual stream is computed
 * once: the rows of the pass are those that some variant has as its own, in any order. */
typedef struct asp_variants {
    const asp_config *config;
    const asp_variant *variants;
    asp_unit unit;
    const int32_t *order;
    asp_reference_view replacement; /* its offsets are the clean run's */
    asp_array clean_qkv;
    const uint8_t *const
        *held_gates; /* of each sequence: (L,H,T,T) read, in place of those of the scores; NULL: none */
    int64_t longest;
    int32_t *own;            /* (n_variants,longest) the layer before which a row is first the variant's own */
    int32_t *before, *after; /* (n_variants,longest) row of the pass before and behind the layer; -1: the clean one */
    asp_variant_scratch scratch; /* (n_threads) of each */
    int last_only;               /* z of the last position only */
} asp_variants;
/* Tokens of a variant's sequence. */
static inline int64_t asp_variant_length(const asp_variants *vs, const asp_variant *v) {
    return vs->replacement.offsets[v->sequence + 1] - vs->replacement.offsets[v->sequence];
}
/* The gate (T,T) that is held in a head of a sequence; NULL: none. */
static inline const uint8_t *asp_variants_gate(const asp_variants *vs, int64_t sequence, int64_t layer, int64_t head) {
    const int64_t t = vs->replacement.offsets[sequence + 1] - vs->replacement.offsets[sequence];
    return vs->held_gates ? vs->held_gates[sequence] + (layer * vs->config->n_head + head) * t * t : NULL;
}
/* Hooks of a run of whole sequences, each of which is a variant; the struct is read while they are used. */
asp_hooks asp_variants_hooks(asp_variants *variants);
/* Attention of one layer of the first n variants.  acts: q, k and v of the rows are read, z is written. */
asp_status asp_variants_attention(const asp_variants *variants, const asp_model *model, const asp_activations *acts,
                                  int64_t layer, int64_t n, const asp_gate *gate, const asp_scratch *scratch,
                                  const asp_context *context);

/* ---- sharing.c ----------------------------------------------------------------- */

/* Whether a variant may share rows with the one before it, instead of with the clean run. */
int asp_sharing_follows(const asp_variant *variant, const asp_variant *before);
/* own (T) written: the lowest layer before which the row at a position is not that of the parent (NULL: of the clean
 * run), L + 1 if there is none.  Returns how many rows a pass must have for them. */
int64_t asp_sharing_own_rows(int32_t *own, const asp_variants *vs, const asp_variant *variant,
                             const asp_variant *parent);

/* ---- task.c -------------------------------------------------------------------- */

/* What a task must be for this model. */
asp_status asp_task_check(const asp_model *model, const asp_task *task, asp_error *err);
/* Prompts of one length; what: begins the error's text and needs them. */
asp_status asp_task_check_lengths(const asp_prompts *prompts, const char *what, asp_error *err);
/* End of the block of prompts that begins at `first`: one at least, and more up to a number of tokens. */
int64_t asp_task_block_end(const asp_prompts *prompts, int64_t first, int64_t most_tokens);
/* Prompts [first, end).  offsets (end-first+1) written: theirs, from 0 on; returns their tokens. */
const int32_t *asp_task_block(int64_t *offsets, const asp_prompts *prompts, int64_t first, int64_t end);
/* Activations of prompts that are held at once. */
static const int64_t ASP_TASK_BLOCK_BYTES = (int64_t)1 << 28;
/* open (L,H,T,T) written: 1 where the gate is open in at least one prompt.  offsets (n_prompts+1) scratch. */
asp_status asp_task_open_entries(uint8_t *open, const asp_model *model, const asp_prompts *prompts, int64_t *offsets,
                                 const asp_context *context, asp_error *err);
/* Bytes that this takes besides. */
int64_t asp_task_open_needed(const asp_model *model, const asp_prompts *prompts, int64_t *offsets, int n_threads);

/* ---- setting.c ----------------------------------------------------------------- */

/* What a measurement over a task replaces ablated items by, one block of prompts after the other. */
typedef struct {
    /* Given. */
    const asp_model *model;
    const asp_task *task;
    const char *stage; /* of progress and errors: "knock-out" */
    asp_effect_options options;
    int64_t n_items;    /* of errors; -1: all of the unit */
    int by_gradient;    /* asp_attribution; else asp_sweep */
    int leaves_closed;  /* entries that no clean prompt opens contribute nothing when they are ablated */
    int64_t n_variants; /* of one sweep, at most */
    int64_t own_bytes;  /* that the caller allocates besides */
    /* From asp_setting_check on. */
    int64_t length; /* tokens of the longest prompt */
    /* From asp_setting_open on. */
    int64_t most_tokens; /* of a block */
    int64_t *offsets;    /* (P+1) of the block */
    asp_arena arena;
    uint8_t *open;                   /* (L,H,T,T), with leaves_closed */
    asp_real *mean_z, *mean_entries; /* (L,T,H,D), (L,H,T,T,D), of ASP_ABLATE_MEAN */
    /* The block. */
    int64_t first, n; /* prompts [first, first + n) */
    const int32_t *tokens;
    asp_run *paired, *whole;
    asp_reference replacement;
    asp_metric metric;
} asp_setting;
asp_status asp_setting_check(asp_setting *setting, asp_error *err);
asp_status asp_setting_open(asp_setting *setting, const asp_context *context, asp_error *err);
/* Goes to the next block; n is 0 after the last one. */
asp_status asp_setting_next(asp_setting *setting, const asp_context *context, asp_error *err);
void asp_setting_close(asp_setting *setting);
/* Items of the unit, listed or not, in prompts of this length. */
int64_t asp_setting_places(const asp_config *config, asp_unit unit, int64_t length);
/* A run of the block that records this. */
asp_status asp_setting_run(asp_run **run, const asp_setting *setting, const int32_t *tokens, uint64_t records,
                           int logits, const asp_hooks *hooks, const asp_context *context, asp_error *err);

/* ---- measure.c ----------------------------------------------------------------- */

/* What is measured: items kept, or each one dropped in turn. */
typedef struct {
    const char *stage;
    asp_items items;
    int32_t others;         /* rank of items that are not listed: ASP_RANK_KEPT or ASP_RANK_NEVER */
    const int64_t *sizes;   /* (n_sizes) read: the first so many kept */
    int64_t n_sizes;        /* -1: all but one in turn */
    const int64_t *dropped; /* (n_dropped) read, each 0..n-1: which ones in turn; NULL: each of them */
    int64_t n_dropped;
    double *values; /* (n_sizes,P), or (n_dropped,P) or (n,P) written */
    double *all;    /* (P) written if given, with each one in turn: no item dropped */
} asp_measurement;
asp_status asp_measure(const asp_model *model, const asp_task *task, const asp_measurement *asked,
                       const asp_effect_options *options, const asp_context *context, asp_error *err);
/* ---- curve.c --------------------------------------------------------------------- */

/* Mean of x (n), added in NumPy's order. */
double asp_curve_mean(const double *x, int64_t n);

/* ---- circuit.c ------------------------------------------------------------------- */

enum { /* stages of a search */
       ASP_FIND_WHOLE,
       ASP_FIND_RANKING,
       ASP_FIND_SIZES,
       ASP_FIND_FINER,
       ASP_FIND_ORDERS,
       ASP_FIND_INTERVAL,
       ASP_FIND_DONE
};

/* How far a search is. */
typedef struct {
    int64_t stage;
    int64_t n_left;    /* elimination: items still kept */
    int64_t n_sizes;   /* evaluated */
    int64_t n_rounds;  /* of finer sizes */
    int64_t n_orders;  /* random orders evaluated */
    double now, small; /* elimination: the metric with what is kept, and the change that is too little to matter */
} asp_find_place;

struct asp_circuit {
    const asp_model *model;
    const asp_task *ranking, *evaluation;
    const int32_t *candidates; /* (n,w) read */
    asp_circuit_options options;
    const asp_circuit_measurer *measurer;         /* of this step; NULL: effects.c */
    int64_t n_items, width, n_prompts, max_sizes; /* n, w, P of the evaluation */
    asp_arena arena;                              /* all that follows, and no pointer */
    asp_find_place *place;                        /* (1) */
    int64_t *order; /* (n) indices of candidates, best first; in elimination those still kept, ascending, come first */
    double *scores; /* (n) in this order */
    int32_t *items; /* (n,w) in this order */
    int64_t *sizes; /* (max_sizes) */
    double *values; /* (max_sizes,P) */
    double *full, *empty; /* (P) */
    double *lines;        /* (6,max_sizes): effect and the parts after it, see asp_find_line */
};

/* ---- ranking.c ------------------------------------------------------------------- */

/* Ranks, or does one round of elimination. */
asp_status asp_ranking_step(asp_circuit *c, const asp_context *context, asp_error *err);
/* Sorts index (n) by rising key[index]; equal keys keep their order.  other (n) scratch. */
void asp_ranking_sort(int64_t *index, int64_t *other, const double *key, int64_t n);
/* rows (n,w) written: the candidates with these indices (n). */
void asp_ranking_gather(int32_t *rows, const asp_circuit *c, const int64_t *index, int64_t n);

/* ---- find.c ---------------------------------------------------------------------- */

/* One step of any stage but the ranking. */
asp_status asp_find_step(asp_circuit *c, const asp_context *context, asp_error *err);
/* Sizes at which a circuit of n items is evaluated, at most. */
int64_t asp_find_most_sizes(const asp_circuit_options *options, int64_t n_items);
/* Values (S) of a part from ASP_CIRCUIT_EFFECT on. */
double *asp_find_line(const asp_circuit *c, asp_circuit_part part);
/* The context of a small part of something larger, which is not shown. */
asp_context asp_find_quiet(const asp_context *context);
/* The context of a call with a stage of its own, which is shown as the part of a stage that `whole` is the context of
 * (asp_context_stage); whole stays where it is. */
asp_context asp_find_within(const asp_context *whole);
/* What is asked; fails unless all of it is finite.  values (n,P), (n_sizes,P), or of all items of the unit written */
asp_status asp_find_ask(double *values, const asp_circuit *c, const asp_circuit_question *question,
                        const asp_context *context, asp_error *err);
/* Fails unless the metric x (n) is finite. */
asp_status asp_find_check_finite(const asp_circuit *c, const double *x, int64_t n, asp_error *err);

#endif
