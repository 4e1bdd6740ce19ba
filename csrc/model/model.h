/* internal.h: struct bodies and helpers shared by the core files.  Never included by py_*.c. */
#ifndef ASP_INTERNAL_H
#define ASP_INTERNAL_H

#include "asp.h"

/* ---- environment.c ------------------------------------------------------------- */

#if defined(__x86_64__)
typedef struct { unsigned mxcsr; } asp_control;
#elif defined(__aarch64__)
typedef struct { uint64_t fpcr, fpsr; } asp_control;
#else
#include <fenv.h>
typedef struct { fenv_t environment; } asp_control;
#endif
/* What a calling thread had, on the stack of the public function that it called. */
struct asp_environment {
    asp_control control;
    int outermost; /* not of a call within a call */
};
void asp_environment_enter(asp_environment *environment);
void asp_environment_leave(asp_environment *environment);
void asp_environment_of_worker(void);
/* First in every public function that computes (tests/rules/test_source.py asks for it). */
#define ASP_ENVIRONMENT                                                                    \
    asp_environment environment_ __attribute__((cleanup(asp_environment_leave)));         \
    asp_environment_enter(&environment_)

/* ---- memory.c ---------------------------------------------------------------- */

/* n * size zeroed bytes, 64-byte aligned; NULL on overflow or when out of memory. */
void *asp_allocate(int64_t n, size_t size);
void asp_release(void *block);
/* Address space that is held and never used; NULL if there is none. */
void *asp_hold_space(size_t bytes);
void asp_give_space(void *start, size_t bytes);
/* Multiplies; returns 0 and leaves *out alone when it would pass INT64_MAX or a factor is negative. */
int asp_multiply(int64_t a, int64_t b, int64_t *out);

/* A block laid out first (reserve), then allocated once (commit), then read by offset. */
typedef struct {
    char *base;
    int64_t bytes;
    int overflow;
} asp_arena;
int64_t asp_arena_reserve(asp_arena *arena, int64_t n, int64_t item_bytes); /* offset, 64-byte aligned */
/* 0: out of memory.  Not zeroed, a large block may hold what an earlier run left there. */
int asp_arena_commit(asp_arena *arena, int zeroed);
void asp_arena_free(asp_arena *arena);

static inline int64_t asp_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t asp_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t asp_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* ---- parallel.c --------------------------------------------------------------- */

/* One item of work; thread is in [0, n_threads). */
typedef void (*asp_task)(void *arg, int64_t item, int thread);
/* Runs task for items [0, n), in any order, on at most context->n_threads threads.
 * Which thread runs an item must not change what it writes.  Returns ASP_OK or ASP_STOPPED. */
asp_status asp_parallel_for(const asp_context *context, int64_t n, asp_task task, void *arg);
/* 1 if the call should stop: for loops that no asp_parallel_for runs. */
int asp_stopped(const asp_context *context);
enum { ASP_MOST_THREADS = 64 };

/* ---- blas.c -------------------------------------------------------------------- */

/* BLAS uses one thread from enter to leave, and there is room for its buffers; leave restores what was set.
 * NO_MEMORY: there is no room, and leave must not be called. */
asp_status asp_blas_enter(const asp_context *context, asp_error *err);
void asp_blas_leave(void);
/* Around every call of BLAS, so that a fork and the end of the process can wait for it. */
void asp_blas_call_begin(void);
void asp_blas_call_end(void);

/* ---- params.c ------------------------------------------------------------------ */

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
    int64_t size;              /* elements */
    asp_real *data;            /* (size) */
    struct { int64_t model, heads, head, mlp; } k_block; /* of skinny products with k = E, C, D, M */
};

static inline asp_real *asp_at(asp_real *data, int64_t offset) { return offset < 0 ? NULL : data + offset; }
static inline const asp_real *asp_at_const(const asp_real *data, int64_t offset) {
    return offset < 0 ? NULL : data + offset;
}

/* ---- linear.c ------------------------------------------------------------------- */

typedef enum {
    ASP_EPILOGUE_NONE,
    ASP_EPILOGUE_BIAS,          /* c += bias */
    ASP_EPILOGUE_BIAS_ACT,      /* c += bias; out2 = activation(c) (out2 may be c) */
    ASP_EPILOGUE_RESIDUAL,      /* c = residual + a b + bias (residual may be c) */
    ASP_EPILOGUE_ACT_BACKWARD   /* c = c * activation'(out2) */
} asp_epilogue;

/* C (m,n) = op(A) op(B) [+ C if accumulate], then the epilogue on the first n_rows rows. */
typedef struct {
    int trans_a, trans_b;
    int64_t m, n, k;
    const asp_real *a, *b;
    int64_t lda, ldb;
    asp_real *c;
    int64_t ldc;
    int accumulate;
    asp_epilogue epilogue;
    const asp_real *bias;      /* (n) or NULL */
    const asp_real *residual;  /* (m,n), leading dimension ldc */
    asp_real *out2;            /* (m,n), leading dimension ldc */
    asp_activation activation;
    int64_t n_rows;            /* rows that hold tokens; the rest are padding */
    int64_t k_block;           /* of skinny products, 0: leave it to BLAS */
} asp_gemm;
/* BAD_ARGUMENT without a text: a size that BLAS is given passes INT_MAX. */
asp_status asp_gemm_run(const asp_gemm *gemm, const asp_context *context);
/* Rows below which some product with a (k,n) weight would take BLAS's small-matrix path. */
int64_t asp_gemm_min_rows(int64_t n, int64_t k);

/* ---- run.c, forward.c, attention.c ------------------------------------------------ */

/* Where a forward pass writes.  Every array is a start and a stride from layer to layer; stride 0
 * means one buffer reused by all layers.  NULL: not wanted.  Rows: R >= N, the rest is padding. */
typedef struct { asp_real *data; int64_t stride; } asp_slot;

typedef struct {
    int64_t n_tokens, n_rows, n_sequences, max_length;
    const int32_t *tokens;  /* (N) */
    const int64_t *offsets; /* (B+1) */
    const int64_t *square_start; /* (B+1) of pattern, scores and gate; may be NULL where none is recorded */
    asp_slot resid;         /* L+1 slots of (R,E) */
    asp_slot mid, ln1, ln2; /* (R,E); ln1 and ln2 are LayerNorm outputs */
    asp_slot ln1_scale, ln2_scale, ln1_normalized, ln2_normalized;
    asp_slot qkv;           /* (R,3,H,D) */
    asp_slot z;             /* (R,H,D) */
    asp_slot lse;           /* (H,N) */
    asp_slot mlp_pre, mlp_post;   /* (R,M); pre may be NULL */
    asp_slot result, attn_out, mlp_out;
    asp_real *embed, *pos_embed, *ln_final, *ln_final_scale, *ln_final_normalized;
    asp_real *pattern, *scores;   /* packed per sequence */
    uint8_t *gate;
    struct asp_edge_builder *edges;  /* NULL: not wanted */
    const struct asp_changes *changes;   /* intervene.c; NULL: none */
    const struct asp_variants *variants; /* variants.c; NULL: the sequences are whole */
    const struct asp_mix *mix;           /* attribution.c; NULL: none */
    const asp_mlp_substitute *substitute; /* NULL: none; else mlp_out is wanted */
} asp_activations;

/* Gate of a forward or backward pass. */
typedef struct {
    int gated;
    int noisy;              /* training: logistic noise */
    int straight_through;   /* backward: gradient through the gate */
    const double *bias;     /* (L) */
    uint64_t seed, step, first_sequence;
    const double *edge_coefficient; /* (L): gradient of the loss per unit of sigmoid(g); NULL: 0 */
} asp_gate;

/* Elements of a square record, whose sequences' (L,H,T,T) blocks lie one after the other; -1 if they pass INT64_MAX. */
int64_t asp_squares_size(const asp_config *config, const int64_t *offsets, int64_t n_sequences);
/* start (B+1) written: where each block begins; -1 where that passes INT64_MAX. */
void asp_squares_start(int64_t *start, const asp_config *config, const int64_t *offsets, int64_t n_sequences);
const int64_t *asp_run_square_start(const asp_run *run); /* (B+1) */

typedef struct {
    asp_real *data;         /* (n_threads, per_thread) */
    int64_t per_thread;
} asp_scratch;
int64_t asp_attention_scratch(const asp_config *config, int64_t max_length, int backward);

asp_status asp_check_batch(const asp_config *config, const int32_t *tokens, const int64_t *offsets,
                           int64_t n_sequences, asp_error *err);
/* Rows R >= n_tokens to reserve: where skinny products serve the small ones, no more than a few; else so
 * many that no product of the forward pass takes BLAS's small-matrix path, whose bits differ. */
int64_t asp_rows_needed(const asp_model *model, int64_t n_tokens, int with_result);
/* The same for the LM head. */
int64_t asp_logit_rows_needed(const asp_model *model, int64_t n_rows);

/* Embedding and all layers; ends with the final LayerNorm in acts->ln_final. */
asp_status asp_forward_layers(const asp_model *model, const asp_activations *acts, const asp_gate *gate,
                              const asp_scratch *scratch, const asp_context *context);
/* One layer in its three parts: LayerNorm, q, k, v, z; from z to the residual stream; the MLP. */
asp_status asp_forward_attention(const asp_model *model, const asp_activations *acts, int64_t layer,
                                 const asp_gate *gate, const asp_scratch *scratch, const asp_context *context);
asp_status asp_forward_output(const asp_model *model, const asp_activations *acts, int64_t layer,
                              const asp_context *context);
asp_status asp_forward_mlp(const asp_model *model, const asp_activations *acts, int64_t layer,
                           const asp_context *context);
asp_status asp_forward_final(const asp_model *model, const asp_activations *acts, const asp_context *context);
asp_status asp_attention_forward(const asp_model *model, const asp_activations *acts, int64_t layer,
                                 const asp_gate *gate, const asp_scratch *scratch,
                                 const asp_context *context);

/* ---- intervene.c --------------------------------------------------------------------- */

/* Interventions of one pass, with its entries sorted by (layer, sequence, head). */
typedef struct asp_changes {
    const asp_interventions *given;
    const int64_t *offsets;
    int64_t n_sequences, n_head, longest;
    int64_t *entry_start;   /* (L*B*H+1) */
    int64_t *entry_index;   /* (n_entries) */
    uint8_t *masks;         /* (n_threads, longest^2) */
    asp_real *rows;         /* (n_mlps, E): the residual stream that a replaced MLP output is added to */
} asp_changes;
asp_status asp_changes_new(asp_changes **changes, const asp_interventions *given, const asp_model *model,
                           const int64_t *offsets, int64_t n_sequences, int n_threads, asp_error *err);
void asp_changes_free(asp_changes *changes);
/* The (T,T) mask of one head of one sequence, NULL if none of its entries is replaced. */
const uint8_t *asp_changes_mask(const asp_changes *changes, int64_t layer, int64_t sequence, int64_t head, int thread);
/* Adds the new contributions of replaced entries to z, rows z_stride apart. */
void asp_changes_entries(const asp_changes *changes, int64_t layer, int64_t sequence, int64_t head, asp_real *z,
                         int64_t z_stride, int64_t d_head);
void asp_changes_heads(const asp_changes *changes, int64_t layer, asp_real *z, int64_t d_head);
void asp_changes_resid(const asp_changes *changes, int half, int64_t layer, asp_real *x, int64_t width);
/* Before the MLP: keep the rows that its replaced output will be added to; afterwards: add it.
 * out: the MLP's output if it is recorded, or NULL. */
void asp_changes_before_mlp(const asp_changes *changes, int64_t layer, const asp_real *mid, int64_t width);
void asp_changes_after_mlp(const asp_changes *changes, int64_t layer, asp_real *resid, asp_real *out, int64_t width);

/* ---- reference.c -------------------------------------------------------------------------- */

/* What ablated items of sequences with these offsets are replaced by. */
typedef struct {
    const asp_reference *given;
    const asp_config *config;
    const int64_t *offsets;     /* (B+1) of the sequences and of the paired run */
    asp_array z, pattern, qkv;  /* of the paired run; data NULL if there is none or it did not record them */
    const int64_t *square_start; /* (B+1) of its pattern */
} asp_replacement;
/* Checks lengths: `alike` if all sequences must have as many tokens.  caller: begins the error's text. */
asp_status asp_replacement_open(asp_replacement *replacement, const asp_reference *given, const asp_config *config,
                                const int64_t *offsets, int64_t n_sequences, int alike, const char *caller,
                                asp_error *err);
/* What z (D) of an ablated head is at one position, or NULL for zero. */
const asp_real *asp_replacement_z(const asp_replacement *replacement, int64_t layer, int64_t sequence, int64_t head,
                                  int64_t position);

/* ---- variants.c ------------------------------------------------------------------------ */

/* Packed variants of clean sequences; sequence i of the pass is variants[i], from its first position on. */
typedef struct asp_variants {
    const asp_config *config;
    const asp_variant *variants;
    asp_unit unit;
    const int32_t *order;
    asp_replacement replacement;          /* its offsets are the clean run's */
    asp_array clean_qkv;
    uint8_t *masks;                       /* (n_threads, longest^2) */
    int64_t longest;
    int last_only;                        /* z of the last position only */
} asp_variants;
/* Rows of a clean sequence from the variant's first position on. */
static inline int64_t asp_variant_rows(const asp_variant *v, const int64_t *offsets) {
    return offsets[v->sequence + 1] - offsets[v->sequence] - v->first;
}

/* ---- attribution.c ------------------------------------------------------------------------- */

/* z of all heads mixed with its reference, and what the backward pass collects: see asp_attribution. */
typedef struct asp_mix {
    const asp_model *model;
    const asp_attribution_options *options;
    double m, share;         /* 1 - m is the reference's part; share of the result: 1 / steps */
    asp_replacement replacement;
    asp_real *mixed;         /* (R,H,D) of one layer */
    asp_real *open_z;        /* (D) scratch */
    double *scores;
} asp_mix;
/* Writes mix->mixed for one layer and returns it. */
const asp_real *asp_mix_forward(const asp_mix *mix, const asp_activations *acts, int64_t layer);
/* Adds to the scores from dz (R,H,D) of the mixed z, and makes dz that of z itself. */
asp_status asp_mix_backward(const asp_mix *mix, const asp_activations *acts, int64_t layer, asp_real *dz,
                            const asp_context *context);

/* ---- metric.c ---------------------------------------------------------------------------- */

/* Whether the metric needs the logits of all tokens. */
int asp_metric_needs_all(asp_metric_kind kind);
/* The metric of one sequence from its logits (V). */
double asp_metric_value(const asp_metric *metric, int64_t sequence, const asp_real *logits, int64_t n_vocab);
/* The same from the final LayerNorm's output (E), for metrics that do not need all tokens. */
double asp_metric_from_hidden(const asp_metric *metric, int64_t sequence, const asp_model *model,
                              const asp_real *hidden);
/* dlogits (V) written: the metric's gradient with respect to logits (V). */
void asp_metric_gradient(const asp_metric *metric, int64_t sequence, asp_real *dlogits, const asp_real *logits,
                         int64_t n_vocab);

/* LayerNorm of n rows: out, scale, normalized written where not NULL. */
typedef struct {
    const asp_real *x;      /* (n,E) */
    const asp_real *weight, *bias; /* (E); bias may be NULL */
    asp_real *out;          /* (n,E) */
    asp_real *scale;        /* (n) */
    asp_real *normalized;   /* (n,E) */
    int64_t n, width;
    double eps;
} asp_layernorm;
asp_status asp_layernorm_forward(const asp_layernorm *ln, const asp_context *context);

/* ---- edges.c ---------------------------------------------------------------------- */

/* Built layer by layer: rows are counted, then the layer's edges are filled in the order (sequence, head,
 * query), and asp_edges_finish sorts the layers into the order of asp_edges. */
typedef struct { int64_t *start; int32_t *key; asp_real *weight; } asp_layer_edges;
typedef struct asp_edge_builder {
    double threshold;
    int64_t n_layer, n_head, n_sequences, n_tokens, max_bytes;
    const int64_t *offsets;
    asp_layer_edges *layers; /* (L); start (H*N+1) */
    asp_edges edges;
    int64_t *start;          /* owned memory of edges */
    int32_t *key;
    asp_real *weight;
} asp_edge_builder;
asp_status asp_edges_new(asp_edge_builder **builder, const asp_config *config, const int64_t *offsets,
                         int64_t n_sequences, double threshold, int64_t max_bytes);
/* Turns the counts in layers[layer].start[1..] into starts and makes room for the layer's edges. */
asp_status asp_edges_count_done(asp_edge_builder *builder, int64_t layer);
asp_status asp_edges_finish(asp_edge_builder *builder);
void asp_edges_free(asp_edge_builder *builder);

/* ---- run.c ---------------------------------------------------------------------------- */

/* Dims, strides and byte size of one record; rows of padding (R - N) lie behind the N rows. */
typedef struct {
    asp_array array;
    int64_t items;          /* elements to reserve, padding included */
    int64_t layer_stride;   /* elements from layer to layer, 0 if there is no layer axis */
} asp_record_shape;
asp_record_shape asp_shape_of(const asp_config *config, asp_record record, const int64_t *offsets,
                              int64_t n_sequences, int64_t n_rows);

/* ---- tape.c, loss.c, backward.c ------------------------------------------------------- */

/* Gradients that a backward pass writes.  Slots as in asp_activations: with stride 0 one buffer serves all
 * layers, and resid, mid may be the same buffer. */
typedef struct {
    asp_real *parameters;   /* laid out as the model's arena, added to; NULL: not wanted */
    asp_slot resid, mid;    /* (L+1) and L times (R,E) */
    asp_slot qkv, z, mlp_pre;
    asp_slot mlp_post;      /* NULL: not wanted by itself */
    asp_real *ln;           /* (R,E) gradient of a LayerNorm output; on entry that of the final one */
    asp_real *pattern, *scores; /* packed per sequence, or NULL */
    double *edge_sums;      /* (B*H,2): sum of sigmoid(g), open gates, of one layer */
} asp_activation_gradients;

enum { ASP_LN_CHUNKS = 32, ASP_LOSS_CHUNK = 256 };

/* Everything between a forward and its backward pass; reused from step to step, grows when it must. */
typedef struct {
    asp_arena arena;
    int64_t capacity;
    asp_activations acts;
    asp_activation_gradients grads;
    asp_scratch scratch;
    asp_real *hidden, *dhidden, *logits; /* (loss_rows, E), (loss_rows, E), (loss_rows, V) */
    int64_t loss_rows;
    double *row_loss;       /* (N) */
    int64_t *row_index;     /* (N) rows with a weight */
    asp_real *ln_partial;   /* (ASP_LN_CHUNKS, 2, E) */
} asp_tape;
/* Lays the tape out for this batch and wires acts and grads to it. */
asp_status asp_tape_prepare(asp_tape *tape, const asp_model *model, const asp_batch *batch, int n_threads,
                            int64_t max_bytes, asp_error *err);
void asp_tape_free(asp_tape *tape);

/* Cross-entropy sum(w ce) of the rows with a weight; tape->grads.ln receives coefficient * its gradient
 * with respect to the final LayerNorm's output, parameters those of the unembedding. */
asp_status asp_cross_entropy(const asp_model *model, asp_tape *tape, const asp_batch *batch, double coefficient,
                             double *sum, const asp_context *context);
/* The same for sum(dlogits * logits). */
asp_status asp_linear_loss(const asp_model *model, asp_tape *tape, const asp_real *dlogits, double *sum,
                           const asp_context *context);

/* The same for the sum of a metric over the sequences.  copies (n_threads,V) scratch. */
asp_status asp_metric_loss(const asp_model *model, asp_tape *tape, const asp_metric *metric, asp_real *copies,
                           double *sum, const asp_context *context);

/* From tape->grads.ln back to the embeddings.  expected (L) added to: sum of sigmoid(g); open added to. */
asp_status asp_backward_layers(const asp_model *model, asp_tape *tape, const asp_gate *gate, double *expected,
                               double *open, const asp_context *context);
asp_status asp_attention_backward(const asp_model *model, const asp_activations *acts,
                                  const asp_activation_gradients *grads, int64_t layer, const asp_gate *gate,
                                  const asp_scratch *scratch, const asp_context *context);
/* sums (columns) += column sums of x (n, columns). */
asp_status asp_column_sums(asp_real *sums, const asp_real *x, int64_t n, int64_t columns,
                           const asp_context *context);

/* ---- linear.c, the rest ----------------------------------------------------------------- */

/* logits (n_padded,V) written = hidden (n_padded,E) W_U^T, bias added on the first n_rows rows. */
asp_status asp_unembed(const asp_model *model, asp_real *logits, const asp_real *hidden, int64_t n_rows,
                       int64_t n_padded, const asp_context *context);

#endif
