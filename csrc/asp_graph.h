/* asp_graph.h: the part of the public C API about transcoders and attribution graphs; asp.h includes it. */
#ifndef ASP_GRAPH_API_H
#define ASP_GRAPH_API_H

#include "asp.h"

/* ---- transcoders ------------------------------------------------------------------ */

typedef enum { ASP_CODER_RELU, ASP_CODER_JUMP_RELU, ASP_CODER_TOPK } asp_coder_activation;

/* A dictionary for each layer, or of some, which reads the MLP's input and writes to MLP outputs.  Where a layer has
 * none nothing is active, the reconstruction is 0 and a substitute leaves the MLP as it is. */
typedef struct {
    asp_coder_activation activation;
    int64_t top_k;    /* of TOPK: the k largest positive ones, of equal ones the lower feature */
    int cross_layer;  /* features of layer l write to layers l .. L-1; else to l alone */
    int from_mid;     /* reads RESID_MID; else LN2_NORMALIZED */
    const uint8_t *absent; /* (L) read, copied: not 0 where a layer has no dictionary; NULL: every layer has one */
} asp_coder;

typedef struct {
    int64_t n_features;        /* F */
    const asp_real *weight;    /* (F,E) */
    const asp_real *bias;      /* (F) */
    const asp_real *threshold; /* (F) of JUMP_RELU, else NULL */
} asp_encoder;

typedef struct {
    const asp_real *bias; /* (E) added to the layer's output */
    const asp_real *skip; /* (E,E) or NULL: x skip^T is added to the layer's output */
} asp_coder_output;

/* Where weights come from, asked from the calling thread in rising order of layers.  What a call gives stays
 * until the same call for the next layer (rows: until the next call).  A status other than OK ends the work. */
typedef struct {
    asp_status (*output)(void *state, int64_t layer, asp_coder_output *output);
    asp_status (*encoder)(void *state, int64_t layer, asp_encoder *encoder);
    /* rows (n,n_writes,E) of features (n), which rise */
    asp_status (*rows)(void *state, int64_t layer, const int64_t *features, int64_t n, int64_t n_writes,
                       const asp_real **rows);
    void *state;
} asp_coder_source;

typedef struct asp_features asp_features;

/* Nothing yet, for n_tokens rows.  Errors: BAD_ARGUMENT, NO_MEMORY (of all that follows: above max_bytes). */
asp_status asp_features_new(asp_features **features, const asp_model *model, int64_t n_tokens, const asp_coder *coder,
                            int64_t max_bytes, asp_error *err);
void asp_features_free(asp_features *features);
/* The next layer that has a dictionary, from x (N,E) read; the last one completes the list.  Errors: those of source; BAD_ARGUMENT if
 * something is not finite; BAD_STATE after the last layer; NO_MEMORY, STOPPED. */
asp_status asp_features_layer(asp_features *features, const asp_coder_source *source, const asp_real *x,
                              const asp_context *context, asp_error *err);
/* All layers, from rows first.. of a run that recorded the coder's input and MLP_OUT; and the error. */
asp_status asp_features_of_run(asp_features *features, const asp_run *run, int64_t first,
                               const asp_coder_source *source, const asp_context *context, asp_error *err);

/* Active features, activation not 0, sorted by (layer, position, feature); NULL before the last layer. */
typedef struct {
    int64_t n;
    const int64_t *start;              /* (L+1) by layer */
    const int32_t *layer, *position, *feature; /* (n) */
    const asp_real *activation;        /* (n) */
} asp_feature_list;
asp_feature_list asp_features_list(const asp_features *features);
asp_array asp_features_reconstruction(const asp_features *features); /* (L,N,E)  with skip and bias */
asp_array asp_features_error(const asp_features *features); /* (L,N,E)  MLP_OUT minus that; only of a run */
int64_t asp_features_bytes(const asp_features *features);
const uint8_t *asp_features_absent(const asp_features *features); /* (L) as asp_coder.absent, or NULL */

/* State for asp_mlp_substitute.layer = asp_features_substitute, whose `kept` is asp_features_absent: the features are
 * found on the way. */
typedef struct {
    asp_features *features;   /* new */
    const asp_coder_source *source;
    const asp_real *errors;   /* (L,N,E) read: added to the outputs; or NULL */
    asp_error *err;
} asp_feature_substitute;
asp_status asp_features_substitute(void *state, int64_t layer, const asp_real *x, asp_real *out,
                                   const asp_context *context);

/* ---- attribution graph ------------------------------------------------------------ */

/* A run of one prompt taken as it is: with its patterns, gates and LayerNorm scales held, the residual stream is
 * linear between what the MLPs add.  `point` 2 l is the residual stream before layer l (2 L: before the final
 * LayerNorm), 2 l + 1 that between attention and MLP of layer l. */
typedef struct {
    const asp_run *run;             /* recorded PATTERN, LN1_SCALE, LN2_SCALE, LN_FINAL_SCALE */
    const asp_real *output_bias;    /* (L,E) read: what is added to every MLP's output, at all positions; or NULL */
    const asp_real *skip;           /* (L,E,E) read: added to an MLP's output: skip times its input; or NULL */
    int skip_from_resid;            /* that input is the residual stream, not the LayerNorm before weight and bias */
} asp_frozen;

/* What is written into the residual stream.  Writes in order of their layer, then position. */
typedef struct {
    int64_t n_sources, n_writes;
    const int32_t *layer;           /* (n_writes) read: 0..L: there from before this layer on */
    const int32_t *position;        /* (n_writes) read */
    const int32_t *source;          /* (n_writes) read: whose it is; all writes of a source are at one position */
    const asp_real *vectors;        /* (n_writes,E) read */
} asp_writes;

typedef enum {
    ASP_READ_RESID,       /* vector . x */
    ASP_READ_NORMALIZED,  /* vector . (x - mean) / scale */
    ASP_READ_LAYERNORM    /* vector . ((x - mean) / scale * weight + bias) */
} asp_reading;

/* What reads the residual stream. */
typedef struct {
    int64_t n_targets;
    const int32_t *point, *position; /* (n_targets) read */
    const uint8_t *reading;         /* (n_targets) read: asp_reading */
    const asp_real *vectors;        /* (n_targets,E) read */
} asp_reads;

/* Linear effect of every source on every target, along all paths through residual stream, attention and skip.
 *   edges (n_targets,n_sources) written    bias (n_targets) written: that of all constants
 * Errors: BAD_STATE for what the run lacks, BAD_INDEX, BAD_ARGUMENT for order, NO_MEMORY, STOPPED. */
asp_status asp_graph_edges(asp_real *edges, double *bias, const asp_model *model, const asp_frozen *frozen,
                           const asp_writes *writes, const asp_reads *reads, const asp_context *context,
                           asp_error *err);
/* What each head's values hold of each source, carried at its own position by the residual stream and by attention
 * to itself.  carried (n_sources,L,H,D) written */
asp_status asp_graph_carried(asp_real *carried, const asp_model *model, const asp_frozen *frozen,
                             const asp_writes *writes, const asp_context *context, asp_error *err);
/* Derivative of each target with respect to z of each head at the target's position, on paths that stay there;
 * with `alone` through the residual stream only.  received (n_targets,L,H,D) written */
asp_status asp_graph_received(asp_real *received, const asp_model *model, const asp_frozen *frozen,
                              const asp_reads *reads, int alone, const asp_context *context, asp_error *err);

/* loadings (n,L,H) written: factor times what each head moves from a source to a target; received_alone serves
 * pairs within one position.
 *   carried (n_sources,L,H,D), received, received_alone (n_targets,L,H,D), pattern (L,H,T,T) read
 *   pairs (n,2) read: source, target    places (n,2) read: position of source, of target    factor (n) read */
typedef struct {
    int64_t n_layer, n_head, d_head, n_tokens, n_pairs;
    const asp_real *carried, *received, *received_alone, *pattern;
    const int64_t *pairs, *places;
    const double *factor;
} asp_loading_inputs;
asp_status asp_graph_loadings(double *loadings, const asp_loading_inputs *inputs, const asp_context *context);

/* Edges by target in CSR: those into node t are [start[t], start[t + 1]). */
typedef struct {
    int64_t n_nodes;
    const int64_t *start;    /* (n_nodes+1) */
    const int32_t *source;
    const asp_real *weight;
} asp_adjacency;

/* influence (n_nodes) written: weights (n_nodes) times the sum of all powers of the adjacency, whose rows are
 * made absolute and normalised.  BAD_ARGUMENT if edges run in a circle. */
asp_status asp_graph_influence(double *influence, const asp_adjacency *graph, const double *weights,
                               const asp_context *context, asp_error *err);
/* factors (n_nodes) written: derivative of the sum of some nodes (`wanted`) with respect to each node's input, where
 * a feature (value finite) passes on what it gets divided by its value; `blocked` nodes pass nothing on.
 *   value (n_nodes) read    wanted, blocked (n_nodes) read: 0 or 1.  Edges lead to nodes of higher number. */
asp_status asp_graph_factors(double *factors, const asp_adjacency *graph, const asp_real *value, const uint8_t *wanted,
                             const uint8_t *blocked, const asp_context *context);

/* Nodes and edges with most influence, as circuit-tracer prunes.
 *   nodes (n_nodes), edges (start[n_nodes]) written: 1 kept    cumulative (n_nodes) written
 *   always, feature (n_nodes) read: kept whatever their influence; needs an edge to it */
typedef struct {
    const double *weights;   /* (n_nodes): of the logits */
    const uint8_t *always, *feature;
    double node_threshold, edge_threshold;
} asp_prune_options;
asp_status asp_graph_prune(uint8_t *nodes, uint8_t *edges, double *cumulative, const asp_adjacency *graph,
                           const asp_prune_options *options, const asp_context *context, asp_error *err);

/* ---- training of a transcoder --------------------------------------------------- */

/* One layer's transcoder: pre = x W_enc^T + b_enc (F), a = activation(pre), output scale (a W_dec + b_dec), rows of
 * W_dec of length 1.  Letters here: I width of x, O width of y, F features. */
typedef struct {
    asp_coder_activation activation;
    int64_t top_k;         /* in 1..F */
    double sparsity;       /* weight of the penalty */
    double sharpness;
    double bandwidth;      /* thresholds learn from the pre within half of it (Rajamanoharan et al. 2024) */
    int64_t dead_after;    /* a feature that has not been active for so many steps is dead */
    int64_t aux_k;         /* so many dead features with the largest pre explain a row's error; 0: none do */
    double aux_weight;
    double output_scale;   /* y is divided by it */
    double lr, beta1, beta2, eps, clip;
} asp_coder_step_options;

/* Means over rows; loss = error + sparsity * penalty + aux_weight * aux. */
typedef struct {
    double loss, error, penalty, aux, l0, grad_norm;
    int64_t n_dead;        /* before the step */
} asp_coder_step_result;

typedef struct asp_coder_trainer asp_coder_trainer;

/* Weights in the order of the block: W_enc (F,I), b_enc (F), W_dec (F,O), b_dec (O), log_threshold (F). */
enum { ASP_CODER_N_WEIGHTS = 5 };
typedef struct { const char *name; int n_dims; int64_t dims[2], size, offset; } asp_coder_weight;

/* All zero; the caller fills the weights, with rows of W_dec of length 1. */
asp_status asp_coder_trainer_new(asp_coder_trainer **coder, int64_t n_in, int64_t n_out, int64_t n_features,
                                 asp_error *err);
void asp_coder_trainer_free(asp_coder_trainer *coder);
const asp_coder_weight *asp_coder_trainer_weights(const asp_coder_trainer *coder);
/* Blocks of weights, Adam's moments and the last step's gradients: which 0, 1, 2, 3. */
asp_real *asp_coder_trainer_block(asp_coder_trainer *coder, int which);
int64_t *asp_coder_trainer_silent(asp_coder_trainer *coder); /* (F) steps since a feature was active */
int64_t *asp_coder_trainer_step_count(asp_coder_trainer *coder);
/* One optimiser step on n rows: forward, backward, clipping, AdamW, rows of W_dec back to length 1.
 *   x (n,I) read    y (n,O) read
 * error is sum (output / scale - y / scale)^2 / (n O).  The gradient of W_dec leaves out its part along the row.
 * Errors: DIVERGED before anything is changed; STOPPED, NO_MEMORY, BAD_ARGUMENT likewise. */
asp_status asp_coder_trainer_step(asp_coder_trainer *coder, const asp_real *x, const asp_real *y, int64_t n,
                                  const asp_coder_step_options *options, const asp_context *context,
                                  asp_coder_step_result *result, asp_error *err);

#endif
