/* asp_transcoder.h: the part of the public C API about transcoders; asp.h includes it. */
#ifndef ASP_TRANSCODER_H
#define ASP_TRANSCODER_H

#include "asp.h"

/* ---- features ------------------------------------------------------------------ */

typedef enum { ASP_TRANSCODER_RELU, ASP_TRANSCODER_JUMP_RELU, ASP_TRANSCODER_TOPK } asp_transcoder_activation;

/* A dictionary for each layer, or of some, which reads the MLP's input and writes to MLP outputs.  Where a layer has
 * none nothing is active, the reconstruction is 0 and a substitute leaves the MLP as it is. */
typedef struct {
    asp_transcoder_activation activation;
    int64_t top_k;         /* of TOPK: the k largest positive ones, of equal ones the lower feature */
    int cross_layer;       /* features of layer l write to layers l .. L-1; else to l alone */
    int from_mid;          /* reads RESID_MID; else LN2_NORMALIZED */
    const uint8_t *absent; /* (L) read, copied: not 0 where a layer has no dictionary; NULL: every layer has one */
} asp_transcoder;

typedef struct {
    int64_t n_features;        /* F */
    const asp_real *weight;    /* (F,E) */
    const asp_real *bias;      /* (F) */
    const asp_real *threshold; /* (F) of JUMP_RELU, else NULL */
} asp_encoder;

typedef struct {
    const asp_real *bias; /* (E) added to the layer's output */
    const asp_real *skip; /* (E,E) or NULL: x skip^T is added to the layer's output */
} asp_transcoder_output;

/* Where weights come from, asked from the calling thread in rising order of layers.  What a call gives stays
 * until the same call for the next layer (rows: until the next call).  A status other than OK ends the work. */
typedef struct {
    asp_status (*output)(void *state, int64_t layer, asp_transcoder_output *output);
    asp_status (*encoder)(void *state, int64_t layer, asp_encoder *encoder);
    /* rows (n,n_writes,E) of features (n), which rise */
    asp_status (*rows)(void *state, int64_t layer, const int64_t *features, int64_t n, int64_t n_writes,
                       const asp_real **rows);
    void *state;
} asp_transcoder_source;

typedef struct asp_features asp_features;

/* Nothing yet, for n_tokens rows.  Errors: BAD_ARGUMENT, NO_MEMORY (of all that follows: above max_bytes). */
asp_status asp_features_new(asp_features **features, const asp_model *model, int64_t n_tokens,
                            const asp_transcoder *coder, int64_t max_bytes, asp_error *err);
void asp_features_free(asp_features *features);
/* The next layer that has a dictionary, from x (N,E) read; the last one completes the list.  Errors: those of source;
 * BAD_ARGUMENT if something is not finite; BAD_STATE after the last layer; NO_MEMORY, STOPPED. */
asp_status asp_features_layer(asp_features *features, const asp_transcoder_source *source, const asp_real *x,
                              const asp_context *context, asp_error *err);
/* All layers, from rows first.. of a run that recorded the coder's input and MLP_OUT; and the error. */
asp_status asp_features_of_run(asp_features *features, const asp_run *run, int64_t first,
                               const asp_transcoder_source *source, const asp_context *context, asp_error *err);

/* Active features, activation not 0, sorted by (layer, position, feature); NULL before the last layer. */
typedef struct {
    int64_t n;
    const int64_t *start;                      /* (L+1) by layer */
    const int32_t *layer, *position, *feature; /* (n) */
    const asp_real *activation;                /* (n) */
} asp_feature_list;
asp_feature_list asp_features_list(const asp_features *features);
asp_array asp_features_reconstruction(const asp_features *features); /* (L,N,E)  with skip and bias */
asp_array asp_features_error(const asp_features *features);          /* (L,N,E)  MLP_OUT minus that; only of a run */
int64_t asp_features_bytes(const asp_features *features);
const uint8_t *asp_features_absent(const asp_features *features); /* (L) as asp_transcoder.absent, or NULL */

/* What an experiment makes of active features: an activation a becomes factor a + added, after everything that the
 * coder's activation function does.  Sorted by (layer, row, feature), each once. */
typedef struct {
    int64_t n;
    const int32_t *layer, *row, *feature; /* (n) read */
    const asp_real *factor, *added;       /* (n) read */
    const asp_features *held;             /* read: complete and of as many rows; NULL: no layer is held */
    const uint8_t *held_layers; /* (L) read: not 0 where features, before they are changed, are those of `held` */
} asp_feature_changes;

/* State for asp_mlp_substitute.layer = asp_features_substitute, whose `kept` is asp_features_absent: the features are
 * found on the way. */
typedef struct {
    asp_features *features; /* new */
    const asp_transcoder_source *source;
    const asp_real *errors; /* (L,N,E) read: added to the outputs; or NULL */
    asp_error *err;
    const asp_feature_changes *changes; /* read; NULL: none.  Errors: BAD_INDEX, BAD_ARGUMENT for `held` */
} asp_feature_substitute;
asp_status asp_features_substitute(void *state, int64_t layer, const asp_real *x, asp_real *out,
                                   const asp_context *context);

/* ---- features that are changed in a pass ----------------------------------------- */

typedef enum { ASP_STEER_ADD, ASP_STEER_SET, ASP_STEER_SCALE } asp_steering_kind;

/* Features of one layer. */
typedef struct {
    int64_t n_features;      /* that are changed somewhere */
    asp_encoder encoder;     /* of these; of a TOPK of all features of the layer */
    const int64_t *row;      /* (n_features) read: of the encoder */
    int64_t n_writes;        /* layers that they write to, from their own on */
    const asp_real *decoder; /* (n_features,n_writes,E) read */
} asp_steered_layer;

/* What becomes of features: their activation, as it is in this pass, is increased by a number, takes its value or is
 * multiplied by it.  The model keeps its own MLPs: the change times what the feature writes is added to their outputs.
 * A position is changed in each of the n_texts sequences of the pass that a sequence given here has. */
typedef struct {
    asp_transcoder coder;            /* activation, top_k and from_mid are read */
    const asp_steered_layer *layers; /* (L) read; n_features 0: nothing changes there */
    int64_t n, n_texts;
    const int64_t *at; /* (n,4) read: layer, sequence, position, which of the layer's features; sorted, all different */
    const int32_t *kind;    /* (n) read: ASP_STEER_* */
    const asp_real *number; /* (n) read */
} asp_steering;
/* A visitor that makes these changes, for asp_run_options and asp_generation_options.  What `given` points to is read
 * until it is freed.
 * Errors: BAD_ARGUMENT for what is out of range or order, NO_MEMORY.  The pass fails with BAD_ARGUMENT if what a feature
 * reads is not finite. */
asp_status asp_steering_visitor(asp_visitor **visitor, const asp_steering *given, const asp_model *model,
                                asp_error *err);
void asp_steering_free(asp_visitor *visitor);

/* ---- contexts of features ------------------------------------------------------ */

typedef struct {
    int64_t n_features;    /* of a layer */
    const int64_t *wanted; /* (n_wanted) read, copied: rising; NULL: all features */
    int64_t n_wanted;
    int64_t top, before, after; /* contexts kept of each, and tokens around their position */
} asp_contexts_options;

/* The strongest contexts of the n wanted features, at most one of each prompt, by falling activation, of equal ones
 * the earlier prompt first; float in both precisions. */
typedef struct {
    int64_t n, top, width;            /* width = before + 1 + after */
    const int32_t *prompt, *position; /* (n,top) -1 where there are fewer */
    const float *activation;          /* (n,top) */
    const int32_t *tokens;            /* (n,top,width) -1 outside the prompt */
    const float *activations;         /* (n,top,width) of the feature at those tokens */
    const int64_t *count;             /* (n) tokens on which it was active */
} asp_contexts_table;

/* A batch of prompts, as the run had it in which the features were found. */
typedef struct {
    const int32_t *tokens;    /* (N) read */
    const int64_t *offsets;   /* (n_prompts+1) read */
    int64_t n_prompts, first; /* number of the first prompt */
} asp_contexts_prompts;

typedef struct asp_contexts asp_contexts;

/* An empty table.  Errors: BAD_ARGUMENT, BAD_INDEX for wanted, NO_MEMORY. */
asp_status asp_contexts_new(asp_contexts **contexts, const asp_contexts_options *options, asp_error *err);
void asp_contexts_free(asp_contexts *contexts);
/* Its arrays, which every addition changes. */
asp_contexts_table asp_contexts_read(const asp_contexts *contexts);
/* The active features of a layer in a batch of prompts.  Errors: BAD_INDEX for a feature or position out of range and
 * BAD_ARGUMENT for another order than that of asp_features_list, with nothing changed; STOPPED, with some of the prompts
 * added. */
asp_status asp_contexts_add(asp_contexts *contexts, const asp_feature_list *active, int64_t layer,
                            const asp_contexts_prompts *prompts, const asp_context *context, asp_error *err);
/* The k tokens whose logits features raise most, and lower most, per unit of activation on the direct path: their rows
 * summed over W, less the mean, times the final LayerNorm's weight and the unembedding, less the mean over tokens.
 *   tokens, effects (2,n,k) written: raised, lowered, strongest first; of equal ones the lower token
 *   rows (n,W,E) read
 * Errors: BAD_ARGUMENT for k outside 1..V, NO_MEMORY, STOPPED. */
asp_status asp_contexts_promoted(int32_t *tokens, float *effects, int64_t k, const asp_model *model, const double *rows,
                                 int64_t n, int64_t n_writes, const asp_context *context, asp_error *err);

/* ---- first weights of a transcoder --------------------------------------------- */

/* Weights of one layer before they are trained; F features. */
typedef struct {
    double *w_enc;         /* (F,E) written */
    double *b_enc;         /* (F) written */
    double *w_dec;         /* (F,E) written: rows of length 1, or 0 */
    double *b_dec;         /* (E) written */
    double *log_threshold; /* (F) written; NULL: not wanted */
} asp_first_weights_out;

/* Rows of the text, and numbers drawn for them. */
typedef struct {
    int64_t n_rows, width, n_features; /* N, E, F */
    const asp_real *x, *y;             /* (N,E) read: inputs and outputs of the MLP */
    double scale;                      /* outputs are divided by it */
    const double *draws;               /* (F) read: uniform in 0..1, which rows become features */
    const double *random;              /* (2,F,E) read: normal, directions of features beyond the different rows */
} asp_first_weights_text;
/* Features that represent rows far from each other, see first_weights.c; no thresholds.
 *   chosen (F) written: numbers of the *n_chosen rows, as they were drawn; fewer than F if fewer are different
 * Errors: BAD_ARGUMENT for no rows, NO_MEMORY, STOPPED. */
asp_status asp_first_weights_from_text(const asp_first_weights_out *out, int64_t *chosen, int64_t *n_chosen,
                                       const asp_first_weights_text *text, const asp_context *context, asp_error *err);

/* A set that training starts from. */
typedef struct {
    int64_t width, n_features, n_writes;         /* E, F, W: outputs that its features write to */
    const double *w_enc, *b_enc, *w_dec, *b_dec; /* (F,E), (F), (F,W,E), (E) read */
    const double *threshold;                     /* (F) read; NULL: it has none */
    const double *scale;                         /* (W) read: what each of these outputs is divided by */
} asp_first_weights_set;
/* The same weights with rows of w_dec, here (F,W,E), of length 1.  Errors: BAD_ARGUMENT for W or a scale, STOPPED. */
asp_status asp_first_weights_from_set(const asp_first_weights_out *out, const asp_first_weights_set *set,
                                      const asp_context *context, asp_error *err);

/* *scale = the standard deviation of all of y (N,E) read, from the mean of each column; 1e-10 at least.
 * Errors: BAD_ARGUMENT for no numbers, NO_MEMORY, STOPPED. */
asp_status asp_first_weights_scale(double *scale, const asp_real *y, int64_t n_rows, int64_t width,
                                   const asp_context *context, asp_error *err);
/* *threshold = that above which the rows of x (N,E) read have l0 features on average, 1e-3 at least.
 *   w_enc (F,E), b_enc (F) read
 * Errors: BAD_ARGUMENT for no rows or features or l0 below 0, NO_MEMORY, STOPPED. */
asp_status asp_first_weights_threshold(double *threshold, const double *w_enc, const double *b_enc, int64_t n_features,
                                       const asp_real *x, int64_t n_rows, int64_t width, double l0,
                                       const asp_context *context, asp_error *err);

/* ---- training of a transcoder -------------------------------------------------- */

/* The layers that are trained together: one layer of a set, or all L of a cross-layer transcoder.
 *   a[l] = activation(x[l] W_enc[l]^T + b_enc[l])    output[t] = scale[t] (sum over l <= t of a[l] W_dec[l,t] + b_dec[t])
 * A row of W_dec[l], its parts for outputs l .. L-1 one after the other, has length 1.  Letters here: L layers trained
 * together, I width of x, O width of y, F features of a layer. */
typedef struct {
    asp_transcoder_activation activation;
    int64_t top_k;          /* in 1..F */
    const double *sparsity; /* (L) read: weight of the penalty */
    double sharpness;
    double bandwidth;   /* thresholds learn from the pre within half of it (Rajamanoharan et al. 2024) */
    int64_t dead_after; /* a feature that has not been active for this many steps is dead */
    int64_t aux_k;      /* dead features, those of a layer with the largest pre, that explain a row's error */
    double aux_weight;
    const double *output_scale; /* (L) read: y is divided by it */
    double lr, beta1, beta2, eps, clip;
} asp_transcoder_step_options;

/* Means over rows, of one layer: error and aux of its output, the rest of its features.
 * loss = error + sparsity * penalty + aux_weight * aux; the step lowers the sum over layers. */
typedef struct {
    double loss, error, penalty, aux, l0, grad_norm;
    int64_t n_dead; /* before the step */
} asp_transcoder_step_result;

typedef struct asp_transcoder_trainer asp_transcoder_trainer;

/* Weights of a layer in the order of the block: W_enc (F,I), b_enc (F), W_dec (F,(L-layer) O), b_dec (O),
 * log_threshold (F). */
enum { ASP_TRANSCODER_N_WEIGHTS = 5 };
typedef struct {
    const char *name;
    int n_dims;
    int64_t dims[2], size, offset;
} asp_transcoder_weight;

/* All zero; the caller fills the weights, with rows of W_dec of length 1.
 *   n_features (L) read
 * Errors: BAD_ARGUMENT, NO_MEMORY. */
asp_status asp_transcoder_trainer_new(asp_transcoder_trainer **coder, int64_t n_layers, int64_t n_in, int64_t n_out,
                                      const int64_t *n_features, asp_error *err);
void asp_transcoder_trainer_free(asp_transcoder_trainer *coder);
int64_t asp_transcoder_trainer_n_layers(const asp_transcoder_trainer *coder);
const asp_transcoder_weight *asp_transcoder_trainer_weights(const asp_transcoder_trainer *coder, int64_t layer);
/* Blocks of a layer's weights, Adam's moments and the last step's gradients: which 0, 1, 2, 3. */
asp_real *asp_transcoder_trainer_block(asp_transcoder_trainer *coder, int64_t layer, int which);
/* A layer's weights in the units of the model: out[i] written as the i-th weight, with a threshold for log_threshold.
 * Rows of W_dec have length 1 here too, so activations are as large as what they write.
 *   scale (L) read: those of all outputs */
void asp_transcoder_trainer_scaled(const asp_transcoder_trainer *coder, int64_t layer, const double *scale,
                                   asp_real *const *out);
/* (F) steps since a feature of the layer was active */
int64_t *asp_transcoder_trainer_silent(asp_transcoder_trainer *coder, int64_t layer);
int64_t *asp_transcoder_trainer_step_count(asp_transcoder_trainer *coder);
/* One optimiser step of all layers on n rows: forward, backward, clipping of each layer's gradients, AdamW, rows of
 * W_dec back to length 1.
 *   x (L,n,I) read    y (L,n,O) read    results (L) written
 * error of a layer is sum (output / scale - y / scale)^2 / (n O).  The gradient of W_dec leaves out its part along the
 * row.  Errors: DIVERGED before anything is changed; STOPPED, NO_MEMORY, BAD_ARGUMENT likewise. */
asp_status asp_transcoder_trainer_step(asp_transcoder_trainer *coder, const asp_real *x, const asp_real *y, int64_t n,
                                       const asp_transcoder_step_options *options, const asp_context *context,
                                       asp_transcoder_step_result *results, asp_error *err);

#endif
