/* model.h: the model, its forward and backward pass, and what they keep. */
#ifndef ASP_MODEL_H
#define ASP_MODEL_H

#include "kernels/kernels.h"

/* ---- model.c ------------------------------------------------------------------- */

/* Offsets into the arena of one layer's weights; -1 where the model has none. */
typedef struct {
    int64_t ln1_w, ln1_b, qkv_w, qkv_b, proj_w, proj_b, ln2_w, ln2_b, fc_w, fc_b, out_w, out_b;
} asp_layer_offsets;

struct asp_model {
    asp_config config;
    int64_t n_parameters;
    asp_parameter *parameters; /* (n_parameters) */
    asp_layer_offsets *layers; /* (L) */
    int64_t wte, wpe, lnf_w, lnf_b, unembed_w, unembed_b;
    int64_t size;   /* elements */
    asp_real *data; /* (size) */
    int shared;     /* descriptor of the memory in which it lies, or -1 */
    struct {
        int64_t model, heads, head, mlp;
    } k_block; /* of skinny products with k = E, C, D, M */
};

static inline asp_real *asp_at(asp_real *data, int64_t offset) { return offset < 0 ? NULL : data + offset; }
static inline const asp_real *asp_at_const(const asp_real *data, int64_t offset) {
    return offset < 0 ? NULL : data + offset;
}

/* ---- kv_cache.c ---------------------------------------------------------------- */

/* Keys and values of sequences that grow: of each layer, sequence and head what the attention kernel keeps. */
typedef struct {
    int64_t n_layer, n_head, n_sequences;
    int64_t *room;  /* (B) positions of each sequence, at most */
    int64_t *start; /* (B+1) where the (L,H) blocks of each sequence begin */
    asp_real *data;
} asp_kv_cache;
/* Sets start from room, and the sizes.  Elements of the data, INT64_MAX if they do not fit in 64 bits. */
int64_t asp_kv_cache_lay_out(asp_kv_cache *cache, const asp_config *config, int64_t n_sequences);
/* The block of one head. */
asp_real *asp_kv_cache_at(const asp_kv_cache *cache, int64_t layer, int64_t sequence, int64_t head);
/* Copies all blocks of a sequence to another one with as much room. */
void asp_kv_cache_copy(asp_kv_cache *cache, int64_t to, int64_t from);

/* ---- dropout.c ----------------------------------------------------------------- */

/* Dropout of one training step. */
typedef struct {
    const double *rates[ASP_N_DROPS]; /* (L) each, read: in [0,1), heads' in [0,1]; NULL: 0 */
    uint64_t seed, step, first_sequence;
} asp_dropout;

/* 0 where dropout is NULL. */
double asp_dropout_rate(const asp_dropout *dropout, asp_drop what, int64_t layer);
/* Sets what the task of a head drops. */
void asp_dropout_attention(const asp_dropout *dropout, int64_t sequence, int64_t layer, int64_t head,
                           asp_attention_task *task);

/* ---- forward.c, attention.c ---------------------------------------------------- */

/* Where a forward pass writes.  Every array is a start and a stride from layer to layer; stride 0
 * means one buffer reused by all layers.  NULL: not wanted.  Rows: R >= N, the rest is padding. */
typedef struct {
    asp_real *data;
    int64_t stride;
} asp_slot;

/* The data of a layer; NULL: not wanted. */
static inline asp_real *asp_slot_at(asp_slot slot, int64_t layer) {
    return slot.data ? slot.data + layer * slot.stride : NULL;
}

typedef struct {
    int64_t n_tokens, n_rows, n_sequences, max_length;
    int64_t stop_at;             /* the pass ends before this layer; 0: behind the final LayerNorm */
    int by_row;                  /* on every machine, the bits of a row depend on no other row */
    const int32_t *tokens;       /* (N) */
    const int64_t *offsets;      /* (B+1) */
    const int64_t *first;        /* (B) position of each sequence's first token; NULL: 0 */
    const asp_kv_cache *cache;   /* keys and values of the positions before, to which those of the pass are added; NULL:
                                  * there are none before */
    const int64_t *square_start; /* (B+1) of pattern, scores and gate; may be NULL where none is recorded */
    asp_slot resid;              /* L+1 slots of (R,E) */
    asp_slot mid, ln1, ln2;      /* (R,E); ln1 and ln2 are LayerNorm outputs */
    asp_slot ln1_scale, ln2_scale, ln1_normalized, ln2_normalized;
    asp_slot qkv;               /* (R,3,H,D) */
    asp_slot z;                 /* (R,H,D) */
    asp_slot lse;               /* (H,N) */
    asp_slot mlp_pre, mlp_post; /* (R,M); pre may be NULL */
    asp_slot result, attn_out, mlp_out;
    asp_real *embed, *pos_embed, *ln_final, *ln_final_scale, *ln_final_normalized;
    asp_real *pattern, *scores; /* packed per sequence */
    uint8_t *gate;
    uint32_t layer_squares;           /* bits ASP_AT_SCORES, GATE and PATTERN: this one holds one layer at a time */
    asp_real *seen_result, *seen_out; /* (N,H,E), (N,E) scratch where visitors see RESULT, ATTN_OUT or MLP_OUT */
    asp_real *added_to;               /* (N,E) scratch, the same */
    struct asp_edge_builder *edges;   /* NULL: not wanted */
    const asp_hooks *hooks;           /* NULL: none */
    const asp_dropout *dropout;       /* NULL: none; else what is recorded of attention and MLPs is after it */
} asp_activations;

/* Layers that a pass computes. */
static inline int64_t asp_layers_of(const asp_model *model, const asp_activations *acts) {
    return acts->stop_at ? acts->stop_at : model->config.n_layer;
}

/* out (N,E) = x (N,E) with values of an output dropped, + residual (N,E) unless it is NULL; out may be x. */
asp_status asp_dropout_rows(const asp_model *model, const asp_activations *acts, asp_drop what, int64_t layer,
                            asp_real *out, const asp_real *x, const asp_real *residual, const asp_context *context);

/* Gate of a forward or backward pass. */
typedef struct {
    int gated;
    int noisy;            /* training: logistic noise */
    int straight_through; /* backward: gradient through the gate */
    const double *bias;   /* (L) */
    uint64_t seed, step, first_sequence;
    const double *edge_coefficient; /* (L,ASP_N_ENTRY_KINDS): gradient of the loss per unit of sigmoid(g); NULL: 0 */
    const uint8_t *const *held;     /* (B) of each sequence: (L,H,T,T) read: gates of another pass, in place of its own;
                                     * NULL: its own */
} asp_gate;

/* Elements of a square record, whose sequences' (L,H,T,T) blocks lie one after the other; -1 if they pass INT64_MAX. */
int64_t asp_shape_squares_size(const asp_config *config, const int64_t *offsets, int64_t n_sequences);
/* start (B+1) written: where each block begins; -1 where that passes INT64_MAX. */
void asp_shape_squares_start(int64_t *start, const asp_config *config, const int64_t *offsets, int64_t n_sequences);
const int64_t *asp_run_square_start(const asp_run *run); /* (B+1) */

typedef struct {
    asp_real *data; /* (n_threads, per_thread) */
    int64_t per_thread;
} asp_scratch;
int64_t asp_attention_scratch(const asp_config *config, int64_t max_length, int backward);
/* Elements of the keys and values of one head, for so many positions. */
int64_t asp_attention_cache(const asp_config *config, int64_t room);

/* Tokens of the longest sequence. */
int64_t asp_shape_longest(const int64_t *offsets, int64_t n_sequences);
asp_status asp_shape_check_batch(const asp_config *config, const int32_t *tokens, const int64_t *offsets,
                                 int64_t n_sequences, asp_error *err);
/* Rows R >= n_tokens to reserve: where skinny products serve the small ones, no more than a few; else so
 * many that no product of the forward pass takes BLAS's small-matrix path, whose bits differ. */
int64_t asp_shape_rows(const asp_model *model, int64_t n_tokens, int with_result);
/* The same for the LM head. */
int64_t asp_shape_logit_rows(const asp_model *model, int64_t n_rows);

/* Embedding and all layers; ends with the final LayerNorm in acts->ln_final. */
asp_status asp_forward_layers(const asp_model *model, const asp_activations *acts, const asp_gate *gate,
                              const asp_scratch *scratch, const asp_context *context);
/* One layer in its three parts: LayerNorm, q, k, v, z; from z to the residual stream; the MLP.  asp_forward_qkv is the
 * first one without z. */
asp_status asp_forward_qkv(const asp_model *model, const asp_activations *acts, int64_t layer,
                           const asp_context *context);
asp_status asp_forward_attention(const asp_model *model, const asp_activations *acts, int64_t layer,
                                 const asp_gate *gate, const asp_scratch *scratch, const asp_context *context);
asp_status asp_forward_output(const asp_model *model, const asp_activations *acts, int64_t layer,
                              const asp_context *context);
asp_status asp_forward_mlp(const asp_model *model, const asp_activations *acts, int64_t layer,
                           const asp_context *context);
asp_status asp_forward_final(const asp_model *model, const asp_activations *acts, const asp_context *context);
asp_status asp_attention_forward(const asp_model *model, const asp_activations *acts, int64_t layer,
                                 const asp_gate *gate, const asp_scratch *scratch, const asp_context *context);
/* Attention of one head of one sequence, for those who call the kernel themselves. */
asp_attention_task asp_attention_describe(const asp_model *model, const asp_activations *acts, int64_t layer,
                                          const asp_gate *gate, const asp_scratch *scratch, int64_t sequence,
                                          int64_t head, int thread);

/* ---- unembed.c ----------------------------------------------------------------- */

/* logits (n_padded,V) written = hidden (n_padded,E) W_U^T, bias added on the first n_rows rows. */
asp_status asp_unembed(const asp_model *model, asp_real *logits, const asp_real *hidden, int64_t n_rows,
                       int64_t n_padded, const asp_context *context);
/* The same, and on every machine the bits of a row depend on no other row. */
asp_status asp_unembed_by_row(const asp_model *model, asp_real *logits, const asp_real *hidden, int64_t n_rows,
                              int64_t n_padded, const asp_context *context);

/* ---- sampling.c ---------------------------------------------------------------- */

typedef struct {
    double *weights; /* (n) */
    int32_t *ids;    /* (n) */
} asp_sampling_scratch;
/* The token with the highest of n logits; of equal ones the first. */
int32_t asp_sampling_best(const asp_real *logits, int64_t n);
/* One of n tokens, by a number in [0,1): see asp_generation_options. */
int32_t asp_sampling_draw(const asp_real *logits, int64_t n, double temperature, int64_t top_k, double top_p,
                          double uniform, const asp_sampling_scratch *scratch);

/* ---- metric.c ------------------------------------------------------------------ */

/* Whether the metric needs the logits of all tokens. */
int asp_metric_needs_all(asp_metric_kind kind);
/* The metric of one sequence from its logits (V); not for CUSTOM. */
double asp_metric_value(const asp_metric *metric, int64_t sequence, const asp_real *logits, int64_t n_vocab);
/* The metric of n rows of logits, of which several may be of one sequence.
 *   values (n) written    sequence (n) read; NULL: row i is of sequence i    logits (n,V) read */
asp_status asp_metric_rows(double *values, const asp_metric *metric, const int64_t *sequence, int64_t n,
                           const asp_real *logits, int64_t n_vocab, const asp_context *context);
/* The same from the final LayerNorm's output (E), for metrics that do not need all tokens. */
double asp_metric_from_hidden(const asp_metric *metric, int64_t sequence, const asp_model *model,
                              const asp_real *hidden);
/* dlogits (V) written: the metric's gradient with respect to logits (V); not for CUSTOM. */
void asp_metric_gradient(const asp_metric *metric, int64_t sequence, asp_real *dlogits, const asp_real *logits,
                         int64_t n_vocab);

/* ---- edges.c ------------------------------------------------------------------- */

/* Built layer by layer: rows are counted, then the layer's edges are filled in the order (sequence, head,
 * query), and asp_edges_finish sorts the layers into the order of asp_edges. */
typedef struct {
    int64_t *start;
    int32_t *key;
    asp_real *weight;
} asp_layer_edges;
typedef struct asp_edge_builder {
    double threshold;
    int64_t n_layer, n_head, n_sequences, n_tokens;
    int64_t asked, max_bytes; /* for all, and for keys and weights */
    const int64_t *offsets;
    asp_layer_edges *layers; /* (L); start (H*N+1) */
    asp_edges edges;
    int64_t *start; /* owned memory of edges */
    int32_t *key;
    asp_real *weight;
} asp_edge_builder;
asp_status asp_edges_new(asp_edge_builder **builder, const asp_config *config, const int64_t *offsets,
                         int64_t n_sequences, double threshold, int64_t max_bytes, asp_error *err);
/* Turns the counts in layers[layer].start[1..] into starts and makes room for the layer's edges. */
asp_status asp_edges_count_done(asp_edge_builder *builder, int64_t layer, asp_error *err);
asp_status asp_edges_finish(asp_edge_builder *builder, asp_error *err);
void asp_edges_free(asp_edge_builder *builder);

/* ---- run.c --------------------------------------------------------------------- */

/* Dims, strides and byte size of one record; rows of padding (R - N) lie behind the N rows. */
typedef struct {
    asp_array array;
    int64_t items;        /* elements to reserve, padding included */
    int64_t layer_stride; /* elements from layer to layer, 0 if there is no layer axis */
} asp_record_shape;
/* Bytes that a run takes for its records and while it computes; what open edges take comes on top. */
int64_t asp_run_needed(const asp_model *model, const int64_t *offsets, int64_t n_sequences,
                       const asp_run_options *options, int n_threads);
asp_record_shape asp_shape_of_record(const asp_config *config, asp_record record, const int64_t *offsets,
                                     int64_t n_sequences, int64_t n_rows);

/* ---- tape.c, loss.c, backward.c ------------------------------------------------ */

/* Gradients that a backward pass writes.  Slots as in asp_activations: with stride 0 one buffer serves all
 * layers, and resid, mid may be the same buffer. */
typedef struct {
    asp_real *parameters; /* laid out as the model's arena, added to; NULL: not wanted */
    asp_slot resid, mid;  /* (L+1) and L times (R,E) */
    asp_slot qkv, z, mlp_pre;
    asp_slot mlp_post;          /* NULL: not wanted by itself */
    asp_real *ln;               /* (R,E) gradient of a LayerNorm output; on entry that of the final one */
    asp_real *pattern, *scores; /* packed per sequence, or NULL */
    asp_real *out;              /* (R,E): gradient of an output before its dropout; only if that is wanted */
    asp_edge_sum *edge_sums;    /* (B*H,ASP_N_ENTRY_KINDS) of one layer */
} asp_activation_gradients;

enum { ASP_LOSS_CHUNK = 256 }; /* rows of logits at once */

/* Everything between a forward and its backward pass; reused from step to step, grows when it must. */
typedef struct {
    asp_arena arena;
    int64_t capacity;
    asp_activations acts;
    asp_activation_gradients grads;
    asp_scratch scratch;
    asp_real *hidden, *dhidden, *logits; /* (loss_rows, E), (loss_rows, E), (loss_rows, V) */
    int64_t loss_rows;
    double *row_loss;     /* (N) */
    int64_t *row_index;   /* (N) rows with a weight */
    asp_real *ln_partial; /* (ASP_LN_CHUNKS, 2, E) */
    int drops_outputs;    /* set before it is prepared: grads.out is wanted */
} asp_tape;
/* Lays the tape out for this batch and wires acts and grads to it. */
asp_status asp_tape_prepare(asp_tape *tape, const asp_model *model, const asp_batch *batch, int n_threads,
                            int64_t max_bytes, asp_error *err);
/* Bytes of the arena of a tape for this batch, into whose acts and grads only sizes are written. */
int64_t asp_tape_needed(asp_tape *tape, const asp_model *model, const asp_batch *batch, int n_threads);
void asp_tape_free(asp_tape *tape);

/* Cross-entropy sum(w ce) of the rows with a weight; tape->grads.ln receives coefficient * its gradient
 * with respect to the final LayerNorm's output, parameters those of the unembedding. */
asp_status asp_loss_cross_entropy(const asp_model *model, asp_tape *tape, const asp_batch *batch, double coefficient,
                                  double *sum, const asp_context *context);
/* The same for sum(dlogits * logits). */
asp_status asp_loss_linear(const asp_model *model, asp_tape *tape, const asp_real *dlogits, double *sum,
                           const asp_context *context);

/* The same for the sum of a metric over the sequences, of which there may be a multiple of the metric's: sequence b is
 * measured as its sequence b modulo their number.  copies scratch: (n_threads,V), for CUSTOM (loss_rows,V). */
asp_status asp_loss_metric(const asp_model *model, asp_tape *tape, const asp_metric *metric, asp_real *copies,
                           double *sum, const asp_context *context);

/* From tape->grads.ln back to the embeddings.  sums (L,ASP_N_ENTRY_KINDS) added to if the model is gated; NULL: not
 * wanted. */
asp_status asp_backward_layers(const asp_model *model, asp_tape *tape, const asp_gate *gate, asp_edge_sum *sums,
                               const asp_context *context);
asp_status asp_attention_backward(const asp_model *model, const asp_activations *acts,
                                  const asp_activation_gradients *grads, int64_t layer, const asp_gate *gate,
                                  const asp_scratch *scratch, const asp_context *context);

#endif
