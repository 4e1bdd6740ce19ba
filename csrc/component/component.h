/* component.h: outputs of senders and inputs of receivers. */
#ifndef ASP_COMPONENT_INTERNAL_H
#define ASP_COMPONENT_INTERNAL_H

#include "circuit/circuit.h"

/* ---- nodes.c ------------------------------------------------------------------- */

/* Numbers of the senders of a layer: its heads from the first one on, and its MLP. */
static inline int64_t asp_nodes_head(const asp_config *c, int64_t layer) { return 1 + layer * (c->n_head + 1); }
static inline int64_t asp_nodes_mlp(const asp_config *c, int64_t layer) { return (layer + 1) * (c->n_head + 1); }
/* Numbers of the receivers of a layer: all q from the first one on, then all k and all v, and its MLP. */
static inline int64_t asp_nodes_qkv(const asp_config *c, int64_t layer) { return layer * (3 * c->n_head + 1); }
static inline int64_t asp_nodes_mlp_input(const asp_config *c, int64_t layer) {
    return (layer + 1) * (3 * c->n_head + 1) - 1;
}

/* Receivers of a sender's own node: first, first + step, ... */
typedef struct {
    int64_t first, step, count;
} asp_node_inputs;
static inline asp_node_inputs asp_nodes_inputs(const asp_config *c, int64_t sender) { /* not 0 */
    const int64_t layer = (sender - 1) / (c->n_head + 1), head = (sender - 1) % (c->n_head + 1);
    if (head == c->n_head) return (asp_node_inputs){asp_nodes_mlp_input(c, layer), 1, 1};
    return (asp_node_inputs){asp_nodes_qkv(c, layer) + head, c->n_head, 3};
}

/* Activations from which the outputs of senders follow, of N tokens.  Products read R rows, which a run may not have
 * reserved: they take copies. */
typedef struct {
    const asp_real *embed; /* (N,E) read: token embedding */
    asp_slot z;            /* L times (N,H,D), read */
    asp_slot post;         /* L times (N,M), read */
} asp_node_activations;
/* What a run must record for them. */
static const uint64_t ASP_NODES_RECORDS = (uint64_t)1 << ASP_EMBED | (uint64_t)1 << ASP_Z | (uint64_t)1 << ASP_MLP_POST;
asp_node_activations asp_nodes_of_run(const asp_run *run);

/* Outputs of the senders of one layer: heads, and the MLP.
 *   out (H+1,R,E) written    z (R,H,D), post (R,M) read    n_rows: R, a multiple of 4
 *   bias: add that of the MLP's output (not to a difference of activations) */
asp_status asp_nodes_layer_outputs(asp_real *out, const asp_model *model, int64_t layer, const asp_real *z,
                                   const asp_real *post, int64_t n_rows, int bias, const asp_context *context);

/* A layer's MLP on rows of its input. */
typedef struct {
    const asp_model *model;
    int64_t layer, n_tokens, n_rows; /* N, R: rows from N on are padding */
    const asp_real *x;               /* (R,E) read, behind the LayerNorm */
    asp_real *pre, *post;            /* (R,M) written: before and behind the nonlinearity; may be one */
    asp_real *out;                   /* (R,E) written: the output */
    const asp_real *residual;        /* (R,E) read: added to it; may be out; NULL: none */
} asp_mlp_rows;
asp_status asp_nodes_mlp_output(const asp_mlp_rows *rows, const asp_context *context);

/* What a difference is taken with, and where it is computed. */
typedef struct {
    asp_node_activations activations; /* embed NULL: zeros, also for the outputs of MLPs */
    const int64_t *row;               /* (N) read: which row of them takes the place of each row */
    asp_real *z, *post;               /* (R,H,D), (R,M) scratch */
} asp_node_reference;
/* Outputs of the reference minus outputs of what is given, of all senders.  out (S,R,E) written, N rows of tokens first */
asp_status asp_nodes_differences(asp_real *out, const asp_model *model, const asp_node_reference *reference,
                                 const asp_node_activations *given, int64_t n_tokens, int64_t n_rows,
                                 const asp_context *context);
/* Outputs of all senders.  out (S,R,E) written, N rows of tokens first    z (R,H,D), post (R,M) scratch */
asp_status asp_nodes_outputs(asp_real *out, const asp_model *model, const asp_node_activations *activations,
                             asp_real *z, asp_real *post, int64_t n_tokens, int64_t n_rows, const asp_context *context);

/* ---- means.c ------------------------------------------------------------------- */

/* Mean activations over reference prompts. */
typedef struct {
    asp_arena arena;
    int64_t n_positions; /* rows: 1 if all positions share one mean */
    asp_node_activations activations;
} asp_means;
/* Takes the means.  Errors: BAD_ARGUMENT for positions that no reference prompt has, of `longest`; NO_MEMORY. */
asp_status asp_means_new(asp_means *means, const asp_model *model, const asp_prompts *reference, int64_t longest,
                         asp_component_ablation ablation, const asp_context *context, asp_error *err);
void asp_means_free(asp_means *means);
/* Bytes that stay, and bytes that it takes meanwhile besides. */
void asp_means_needed(int64_t bytes[2], const asp_model *model, const asp_prompts *reference, int64_t longest,
                      asp_component_ablation ablation, int n_threads);

/* ---- receivers.c --------------------------------------------------------------- */

/* One of several runs of the same prompts.  Group 0: the input is r + (1 - share) (o - r), 1 + 2l: all heads of layer
 * l are, 2 + 2l: its MLP is; through those but the input no gradient goes.  -1: none. */
typedef struct {
    int64_t group;
    double share;
    int replaced; /* the prompts are those that the reference is of */
} asp_receiver_point;

/* Collects scores from the backward pass of n_points runs of a block of prompts, which lie one after the other. */
typedef struct {
    const asp_model *model;
    asp_tape *tape;
    const asp_receiver_point *points;
    const asp_real *differences; /* (S,R,E) read: reference minus output, for the prompts of the block */
    int64_t n_rows;              /* R */
    const int64_t *offsets;      /* (B+1) of the block */
    int64_t n_prompts, n_points;
    asp_component_level level;
    int mlp_input;       /* as in the options */
    double weight;       /* of every product */
    double *scores;      /* added to */
    asp_real *gradients; /* (3H,R,E) scratch; for nodes and neurons (R,E) */
    asp_real *dout;      /* (n_points N,E) scratch, for edges */
    asp_real *parts;     /* (S,3H) scratch, for edges */
} asp_receivers;
/* Hooks of these runs; the struct is read while they are used. */
asp_hooks asp_receivers_hooks(asp_receivers *receivers);
/* After the backward pass. */
asp_status asp_receivers_finish(asp_receivers *receivers, const asp_context *context);

/* ---- routes.c ------------------------------------------------------------------ */

/* Information flow routes of a run with ASP_NODES_RECORDS, RESID and RESID_MID.
 *   scores (S,R) added to: the mean over the positions of each sequence
 *   outputs (S,R,E) read    shares (N,S) scratch */
asp_status asp_routes_add(double *scores, const asp_model *model, const asp_run *run, const asp_real *outputs,
                          int64_t n_rows, double *shares, const asp_context *context);

/* ---- component_setting.c --------------------------------------------------------- */

/* Activations of the rows of a block, as a run records them. */
typedef struct {
    asp_slot resid, mid; /* L+1 and L times (R,E), read */
    asp_slot z, qkv;     /* L times (R,H,D) and (R,3,H,D), read; of a replacement there is no qkv */
} asp_component_rows;

/* What a measurement puts in place of outputs of senders, one block of prompts after the other. */
typedef struct asp_component_setting {
    /* Given. */
    const asp_model *model;
    const asp_task *task;
    const char *stage; /* of progress and errors */
    asp_component_options options;
    int with_base;  /* the run of the prompts as they are is wanted */
    uint64_t also;  /* what the run of the other prompts of each pair records besides */
    int largest;    /* blocks are as large as max_bytes allows */
    int64_t n_sent; /* arrays (R,E) of a block that the caller needs, about: for the size of blocks */
    int64_t stays;  /* bytes that the caller allocates for all blocks */
    /* Bytes that the caller allocates for a block of n prompts, whose offsets are in the setting. */
    int64_t (*own_bytes)(const void *own, const struct asp_component_setting *setting, int64_t n, int n_threads);
    const void *own;
    /* From asp_component_setting_check on. */
    int64_t longest; /* tokens of the longest prompt */
    /* From asp_component_setting_open on. */
    int64_t most_tokens; /* of a block */
    asp_means means;
    int64_t *offsets; /* (P+1) of the block */
    /* The block: prompts [first, first + n). */
    int64_t first, n, n_rows;
    const int32_t *tokens;       /* of the prompts as they are */
    asp_component_rows replaced; /* what ablated senders hold: resid and mid with all of them ablated; the output of an
                                  * MLP is the difference of the residual stream behind and before it */
    asp_component_rows plain;    /* with_base: of the prompts as they are */
    const uint8_t **held;        /* (n) of each prompt: (L,H,T,T) read, gates that are held; NULL: none */
    asp_metric metric;
    asp_run *paired, *base, *whole;
    asp_arena block_arena;
    asp_component_rows filled; /* zeros or means */
    asp_real *post;            /* (R,M) means of a layer */
} asp_component_setting;
asp_status asp_component_setting_check(asp_component_setting *setting, asp_error *err);
asp_status asp_component_setting_open(asp_component_setting *setting, const asp_context *context, asp_error *err);
/* Goes to the next block; n is 0 after the last one. */
asp_status asp_component_setting_next(asp_component_setting *setting, const asp_context *context, asp_error *err);
void asp_component_setting_close(asp_component_setting *setting);

/* Final LayerNorms whose metric is asked for. */
typedef struct {
    asp_real *hidden; /* (n,E), and rows behind it that skinny products may read */
    asp_real *logits; /* (logit_rows,V) scratch, where the metric needs them */
    int64_t logit_rows;
    const asp_metric *metric;
    const int64_t *sequence; /* (n) read: of which sequence each row is; NULL: row i is of sequence i */
} asp_hidden_rows;
/* values (n) written */
asp_status asp_component_setting_metric(double *values, const asp_model *model, const asp_hidden_rows *rows, int64_t n,
                                        const asp_context *context);

/* ---- patch.c --------------------------------------------------------------------- */

/* What of a pass must be computed for one circuit. */
typedef struct {
    int32_t *slot; /* (S) number of a sender among those whose current output is computed, or one of the below */
    int64_t n_slots;
    int64_t most_inputs; /* receivers of one layer that are computed, at most */
} asp_patch_plan;
enum { ASP_PATCH_UNREAD = -1, ASP_PATCH_GIVEN = -2 };

/* Plans a circuit.  plan->slot (S) written
 *   mask (S,R) read    except: 0, or 1: component edges in the mask carry ablated outputs, the others current ones */
void asp_patch_make_plan(asp_patch_plan *plan, const asp_config *config, const uint8_t *mask, int except,
                         const asp_component_setting *setting);
/* Plans what follows from a change of the inputs of a node: itself, whose slot is UNREAD if nothing does, and all that it
 * flows into and that is read; others are GIVEN.  node S: the logits; node -1: all that is read.
 * plan->slot (S) written    mask (S,R) read */
void asp_patch_plan_behind(asp_patch_plan *plan, const asp_config *config, const uint8_t *mask, int64_t node);

/* How large arrays are: for so many slots of one copy of the prompts, and so many copies of anything else.  A pass over
 * more copies has fewer slots. */
typedef struct {
    int64_t n_slots, most_inputs, n_copies;
} asp_patch_size;

/* A pass over a block in which every receiver has an input of its own. */
typedef struct {
    const asp_component_setting *setting;
    const uint8_t *mask; /* (S,R) read */
    int except;
    asp_patch_plan plan;
    /* Copies of the prompts, one after the other, that differ in what one receiver reads: in copy i not the senders
     * sender - i .. sender, into which GIVEN ones up to there are all to be.  n_copies 1 and receiver -1: none lacks. */
    int64_t n_copies, receiver, sender;
    const asp_real *given;  /* (S,setting->n_rows,E) read: current minus ablated output of GIVEN senders */
    const uint8_t *neurons; /* (S,E) read: coordinates in which the changes of senders flow, or with except in which
                             * they do not; NULL: all flow */
    asp_arena arena;
    /* Below, n and R are of all copies. */
    int64_t n, n_rows;
    int64_t *offsets, *prompts; /* (n+1) rows, (n) which prompt of the block */
    const uint8_t **held;       /* (n) as in the setting; NULL: none */
    asp_real *changes;          /* (n_slots,R,E) current minus ablated output of the senders computed */
    asp_real *inputs;           /* (most_inputs,R,E) of the receivers of a layer, normalised */
    asp_real *qkv, *z, *mlp, *logits;
    int32_t *senders;   /* (most_inputs,S) slots whose changes a receiver reads; -1 - sender: given */
    int64_t *n_senders; /* (most_inputs) */
    int64_t *heads;     /* (H) heads of a layer that are computed */
    double *gate_bias;  /* (L) */
    int64_t logit_rows;
    asp_scratch scratch;
} asp_patch;
/* Bytes of a pass over n prompts at setting->offsets. */
int64_t asp_patch_needed(const asp_component_setting *setting, int64_t n, const asp_patch_size *size, int n_threads);
/* Allocates for the block of the setting; freed by asp_arena_free(&patch->arena). */
asp_status asp_patch_open(asp_patch *patch, const asp_patch_size *size, int n_threads, asp_error *err);
/* How many copies a pass with so many slots may have. */
int64_t asp_patch_most_copies(const asp_component_setting *setting, const asp_patch_size *size, int64_t n_slots);
/* The metric of the block's prompts.  values (n_copies,setting->n) written; all that is given is set. */
asp_status asp_patch_run(asp_patch *patch, double *values, const asp_context *context);

/* ---- soft.c, soft_nodes.c --------------------------------------------------------- */

/* A pass over a block, forward and backward, in which a receiver reads the ablated output of each sender before it plus
 * a share of what changes it: mask, or 1 - mask if denoising. */
typedef struct {
    const asp_component_setting *setting;
    asp_arena arena;
    int64_t n_tokens, n_rows, logit_rows; /* N, R */
    asp_real *shares;                     /* (S,receivers) */
    asp_real *changes, *dchanges;         /* (S,R,E) current minus ablated output, and the gradient of it */
    asp_real *inputs, *dinputs;           /* (3H,R,E) of the receivers of a group, and their gradients */
    asp_real *scale;                      /* (3H,R) of their LayerNorms */
    asp_real *dout;                       /* (R,E) gradient of the output of one of these */
    asp_real *qkv, *z, *lse, *pre;        /* (L,R,3,H,D), (L,R,H,D), (L,H,N), (L,R,M): of each layer */
    asp_real *mlp, *dqkv, *heads;         /* (R,M), (R,3,H,D), (R,H,D) scratch */
    asp_real *last;                       /* (4,logit_rows,E) scratch */
    asp_real *logits, *dlogits;           /* (logit_rows,V) */
    asp_real *partial, *parts;            /* of asp_layernorm_backward; (S,3H) */
    double *gate_bias;                    /* (L) */
    asp_scratch scratch;
} asp_soft;
/* asp_component_setting_check, and that the metric has a gradient. */
asp_status asp_soft_check(asp_component_setting *setting, asp_error *err);
/* Bytes of a pass over n prompts at setting->offsets. */
int64_t asp_soft_needed(const asp_component_setting *setting, int64_t n, int n_threads);
/* Allocates for the block of the setting; freed by asp_arena_free(&soft->arena). */
asp_status asp_soft_open(asp_soft *soft, int n_threads, asp_error *err);
/* The metric of the block's prompts, and weight times the gradient of its sum.
 *   mask (S,R) read at component edges    values (setting->n) written    gradient (S,R) added to */
asp_status asp_soft_run(asp_soft *soft, const double *mask, double *values, double *gradient, double weight,
                        const asp_context *context);

/* Receivers that read the same senders, behind one LayerNorm. */
typedef struct {
    int64_t first, n, n_senders;
    const asp_real *ablated; /* (N,E) the residual stream with every sender ablated */
    int64_t weight, bias;    /* of the LayerNorm */
} asp_soft_group;
/* inputs written: what the receivers read. */
asp_status asp_soft_mix(const asp_soft *soft, const asp_soft_group *group, const asp_context *context);
/* Their LayerNorm: in place, or only its scale. */
asp_status asp_soft_norm(const asp_soft *soft, const asp_soft_group *group, int in_place, const asp_context *context);
/* dinputs of the i-th receiver, from dout. */
asp_status asp_soft_norm_backward(const asp_soft *soft, const asp_soft_group *group, int64_t i,
                                  const asp_context *context);
/* From dinputs to the gradients of the mask and of the changes, both added to. */
asp_status asp_soft_add(const asp_soft *soft, const asp_soft_group *group, double *gradient, double weight,
                        const asp_context *context);
/* The change of the input (layer -1), or of an MLP whose output is in its place. */
asp_status asp_soft_take_change(const asp_soft *soft, int64_t layer, const asp_context *context);

/* Changes of a layer's heads, of its MLP; and backwards, from their gradients. */
asp_status asp_soft_nodes_heads(const asp_soft *soft, int64_t layer, const asp_context *context);
asp_status asp_soft_nodes_mlp(const asp_soft *soft, int64_t layer, const asp_context *context);
asp_status asp_soft_nodes_heads_backward(const asp_soft *soft, int64_t layer, double *gradient, double weight,
                                         const asp_context *context);
asp_status asp_soft_nodes_mlp_backward(const asp_soft *soft, int64_t layer, double *gradient, double weight,
                                       const asp_context *context);

/* ---- concrete.c -------------------------------------------------------------------- */

/* A hard concrete mask, see asp_component_masks_options, and its derivative with respect to the log alpha.
 *   random: 64 random bits, from which u follows */
typedef struct {
    double z, slope;
} asp_concrete;
asp_concrete asp_concrete_sample(double log_alpha, uint64_t random);
/* The probability that a mask is not 0, and its derivative. */
asp_concrete asp_concrete_expected(double log_alpha);

/* ---- replay.c -------------------------------------------------------------------- */

typedef enum { ASP_REPLAY_HEADS, ASP_REPLAY_MLP, ASP_REPLAY_LOGITS } asp_replay_kind;

/* A receiver that reads one sender's output changed, in one prompt of a block. */
typedef struct {
    int64_t receiver, sender, prompt;
} asp_replay_variant;

/* A pass of variants of receivers of one layer and kind; those of one receiver are neighbours. */
typedef struct {
    const asp_component_setting *setting; /* with_base */
    asp_real *changes;                    /* (S,R,E) read: what is added to a sender's output */
    int64_t *first;                       /* (B) read: first position of a prompt at which anything is changed */
    int64_t max_rows, logit_rows;
    int64_t layer, n, n_rows;
    asp_replay_variant *variants; /* (n) read */
    int64_t *offsets;             /* (n+1) read: the variants' rows, from the first position on; for logits, and for the
                                   * MLP of the last layer, one row each */
    int64_t *prompts;             /* (n) of a caller */
    double *values;               /* (n) of a caller */
    asp_real *x;                  /* (max_rows,E) written: final LayerNorms (n,E) */
    asp_real *ln, *qkv, *z, *mlp, *logits;
    double *gate_bias; /* (L) */
    asp_scratch scratch;
    const asp_real **rows, **keys_held; /* (n_threads,longest) */
    asp_real **z_rows;
    int64_t *queries;
} asp_replay;
asp_status asp_replay_run(asp_replay *replay, asp_replay_kind kind, const asp_context *context);
/* Activations of a pass over so many rows whose residual stream is resid and whose LayerNorms go to ln. */
asp_activations asp_replay_over(const asp_replay *replay, int64_t rows, asp_real *resid, asp_real *ln);
/* out (rows,E) = z (rows,H,D) of one head W_O, added to out or not. */
asp_status asp_replay_head_output(const asp_model *model, int64_t layer, int64_t head, asp_real *out, const asp_real *z,
                                  int64_t rows, int accumulate, const asp_context *context);

/* ---- last.c ----------------------------------------------------------------------- */

/* Rows of the residual stream behind the last layer, whose metric is asked for. */
typedef struct {
    int64_t capacity;
    asp_real *rows;   /* (capacity,E) read */
    asp_real *hidden; /* (capacity,E) and logit_rows more: written */
    asp_real *logits; /* (logit_rows,V) scratch, where the metric needs them */
    int64_t logit_rows;
    int64_t *sequence; /* (capacity) read: of which prompt of the block each row is */
} asp_last_rows;
/* values (n) written: of the first n rows */
asp_status asp_last_values(double *values, const asp_component_setting *setting, const asp_last_rows *last, int64_t n,
                           const asp_context *context);
/* values (setting->n) written: of the block's prompts in a run.  last: all is written    resid (L+1,R,E) read */
asp_status asp_last_of_run(double *values, const asp_component_setting *setting, const asp_last_rows *last,
                           asp_slot resid, const asp_context *context);

#endif
