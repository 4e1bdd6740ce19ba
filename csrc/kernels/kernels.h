/* kernels.h: the table of inner loops.  One table per instruction set (kernels_base.c, kernels_avx2.c,
 * kernels_avx512.c, all from the same templates); isa.c chooses one at run time.
 * Kernels are serial, never allocate and cannot fail. */
#ifndef ASP_KERNELS_H
#define ASP_KERNELS_H

#include "base/base.h"

/* ---- layernorm.c --------------------------------------------------------------- */

/* LayerNorm of n rows: out, scale, normalized written where not NULL. */
typedef struct {
    const asp_real *x;             /* (n,E) */
    const asp_real *weight, *bias; /* (E); bias may be NULL */
    asp_real *out;                 /* (n,E) */
    asp_real *scale;               /* (n) */
    asp_real *normalized;          /* (n,E) */
    const asp_real *given_scale;   /* (n) read: divided by in place of its own; NULL: its own */
    const asp_real *given;         /* (n,E) read: weight and bias are applied to it; NULL: to the normalized rows */
    int64_t n, width;
    double eps;
} asp_layernorm;
asp_status asp_layernorm_forward(const asp_layernorm *ln, const asp_context *context);

/* The number of chunks in which rows are added up, for any number of threads. */
enum { ASP_LN_CHUNKS = 32 };
typedef struct {
    asp_real *dx;              /* (n,E) added to */
    const asp_real *dout, *x;  /* (n,E) read: gradient of the output, the input */
    const asp_real *weight;    /* (E) read */
    const asp_real *scale;     /* (n) read, of the forward pass */
    asp_real *dweight, *dbias; /* (E) added to; NULL: not wanted */
    asp_real *partial;         /* (ASP_LN_CHUNKS,2,E) scratch */
    int64_t n, width;
} asp_layernorm_backward_job;
asp_status asp_layernorm_backward(const asp_layernorm_backward_job *job, const asp_context *context);

/* ---- gemm.c -------------------------------------------------------------------- */

typedef enum {
    ASP_EPILOGUE_NONE,
    ASP_EPILOGUE_BIAS,        /* c += bias */
    ASP_EPILOGUE_BIAS_ACT,    /* c += bias; out2 = activation(c) (out2 may be c) */
    ASP_EPILOGUE_RESIDUAL,    /* c = residual + a b + bias (residual may be c) */
    ASP_EPILOGUE_ACT_BACKWARD /* c = c * activation'(out2) */
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
    const asp_real *bias;     /* (n) or NULL */
    const asp_real *residual; /* (m,n), leading dimension ldc */
    asp_real *out2;           /* (m,n), leading dimension ldc */
    asp_activation activation;
    int64_t n_rows;  /* rows that hold tokens; the rest are padding */
    int64_t k_block; /* of skinny products, 0: leave it to BLAS */
    int by_row;      /* a skinny product, however many rows: their bits depend on no other row on any machine */
} asp_gemm;
/* The block of k of such a product where none is known that gives BLAS's bits. */
enum { ASP_K_BLOCK = 384 };
/* BAD_ARGUMENT: a size that BLAS is given exceeds INT_MAX. */
asp_status asp_gemm_run(const asp_gemm *gemm, const asp_context *context);
/* sums (columns) += column sums of x (n, columns). */
asp_status asp_gemm_column_sums(asp_real *sums, const asp_real *x, int64_t n, int64_t columns,
                                const asp_context *context);
/* Rows below which some product with a (k,n) weight would take BLAS's small-matrix path. */
int64_t asp_gemm_min_rows(int64_t n, int64_t k);

/* ---- isa.c --------------------------------------------------------------------- */

typedef struct {
    double expected, open; /* sum of sigmoid(g), number of open gates */
} asp_edge_sum;

/* Causal attention of one head of one sequence.  Rows of q, k, v, dq ... are `stride` apart.  Forward, the first
 * positions may be in a cache: then q, k, v, z and what is written for queries begin with position `first`. */
typedef struct {
    const asp_real *q, *k, *v; /* (T,D) read */
    int64_t stride, n_tokens, d_head;
    int64_t first;         /* position of the first query, below n_tokens; 0 without a cache */
    asp_real *cache;       /* asp_attention_cache elements, read and written: keys and values of the positions before
                      * `first`, behind which those of the task are put; NULL: none */
    int64_t room;          /* positions for which the cache was made */
    asp_real scale;        /* of the scores */
    int cut;               /* the softmax is over some entries: one of the next three is not 0 */
    int64_t window, top_k; /* as in asp_config */
    asp_real min_weight;
    int gated, noisy, straight_through;
    int self_closed; /* as in asp_config */
    asp_real gate_bias;
    uint64_t noise_key; /* of (seed, step, sequence, layer, head) */
    asp_real *z;        /* (T,D) written (forward), read (backward) */
    int64_t z_stride;
    asp_real *lse;              /* (T) written if not NULL (forward), read (backward) */
    asp_real *pattern, *scores; /* (T,T) written if not NULL */
    uint8_t *gate;              /* (T,T) written if not NULL */
    /* open edges: rows counted (edge_key NULL) or filled */
    int64_t *edge_count;       /* (T) written if not NULL */
    const int64_t *edge_start; /* (T) read */
    int32_t *edge_key;
    asp_real *edge_weight;
    asp_real edge_threshold;
    const uint8_t *held_gate; /* gated only: (T,T) read: open entries, whatever their scores; NULL: where g > 0 */
    /* Dropout: the entries kept are multiplied by kept_scale, 0 if the whole head is dropped. */
    int thinned;
    asp_real dropout_rate, kept_scale;
    uint64_t dropout_key;   /* of (seed, step, sequence, layer, head) */
    const uint8_t *dropped; /* forward only: (T,T) read: entries taken out of the pattern; NULL: none */
    /* forward only: (T,T) read up to the key of each query, in place of what is computed; NULL: nothing */
    const asp_real *given_scores, *given_pattern;
    /* attention_rows only: q of every position and z of every query, wherever they are; k and v lie as far behind q
     * as above. */
    const asp_real *const *rows; /* (T) read up to the last query */
    const asp_real **held;       /* (T) read and written: rows whose k and v the scratch holds; NULL at first */
    asp_real *const *z_rows;     /* (T) read at the queries */
    const int64_t *queries;      /* (n_queries) read: positions, rising */
    int64_t n_queries;           /* one at least */
    /* backward only */
    const asp_real *dz; /* (T,D), rows dz_stride apart, read */
    int64_t dz_stride;
    asp_real *dq, *dk, *dv;                       /* (T,D), rows `stride` apart, written */
    int priced;                                   /* some coefficient is not 0 */
    asp_real edge_coefficient[ASP_N_ENTRY_KINDS]; /* gradient of the loss per unit of sigmoid(g) */
    asp_real *dpattern, *dscores;                 /* (T,T) written if not NULL */
    asp_edge_sum *edge_sums;                      /* (ASP_N_ENTRY_KINDS) added to if not NULL */
    asp_real *scratch;                            /* asp_attention_scratch elements */
} asp_attention_task;

typedef struct {
    double lr, beta1, beta2, eps, decay, correction1, correction2, gradient_scale;
} asp_adamw;

typedef struct {
    const char *name;
    int level; /* 1 baseline, 2 avx2, 3 avx512 */
    void (*exp_array)(asp_real *out, const asp_real *x, int64_t n);
    /* u (n) written: uniform in (0,1), one per key */
    void (*noise_row)(asp_real *u, int64_t n, uint64_t row_key);
    /* out (n) = x / (1 - rate), or 0 where the uniform number of the key is below the rate; out may be x */
    void (*drop_row)(asp_real *out, const asp_real *x, int64_t n, asp_real rate, uint64_t row_key);
    void (*layernorm_row)(const asp_layernorm *ln, int64_t row);
    /* dx, dweight, dbias (E) += gradients of one row */
    void (*layernorm_backward_row)(asp_real *dx, asp_real *dweight, asp_real *dbias, const asp_real *dout,
                                   const asp_real *x, const asp_real *weight, asp_real scale, int64_t width);
    /* out (n) = activation(x); out may be x */
    void (*activate)(asp_real *out, const asp_real *x, int64_t n, asp_activation kind);
    /* d (n) *= activation'(x) */
    void (*activate_backward)(asp_real *d, const asp_real *x, int64_t n, asp_activation kind);
    void (*add)(asp_real *out, const asp_real *x, int64_t n);              /* out += x */
    void (*axpy)(asp_real *out, asp_real a, const asp_real *x, int64_t n); /* out += a x */
    asp_real (*dot)(const asp_real *x, const asp_real *y, int64_t n);
    /* Returns -log softmax(logits)[target]; if dlogits is given, dlogits (V) = weight * (softmax - onehot). */
    double (*cross_entropy_row)(asp_real *dlogits, const asp_real *logits, int64_t n, int64_t target, double weight);
    void (*attention_forward)(const asp_attention_task *task);
    /* The same for some queries of rows that lie anywhere. */
    void (*attention_rows)(const asp_attention_task *task);
    void (*attention_backward)(const asp_attention_task *task);
    /* scores (n_keys) of one query against keys 0..n_keys */
    void (*score_row)(const asp_attention_task *task, int64_t query, asp_real *scores);
    /* sums (rows,columns) += a (rows,n) b (n,columns), rows in fours, columns in 64s; b has rows_left rows */
    void (*skinny_block)(asp_real *sums, int64_t rows, int64_t columns, const asp_real *a, int64_t lda, int64_t n,
                         const asp_real *b, int64_t ldb, int64_t rows_left);
    /* sums (8,16) += b (8,n) a_t (n,16) */
    void (*skinny_dots)(asp_real *sums, const asp_real *a_t, int64_t n, const asp_real *b, int64_t ldb, int prefetch);
    void (*adamw)(asp_real *p, asp_real *m, asp_real *v, const asp_real *g, int64_t n, const asp_adamw *step);
    /* sums (columns) += column sums of x (n, columns), columns <= 16, rows ld apart */
    void (*column_sums)(asp_real *sums, const asp_real *x, int64_t n, int64_t ld, int64_t columns);
    double (*sum_squares)(const asp_real *x, int64_t n);
} asp_kernels;

extern const asp_kernels asp_kernels_base;
#if defined(__x86_64__)
extern const asp_kernels asp_kernels_avx2, asp_kernels_avx512;
#endif
const asp_kernels *asp_isa_kernels(void);

/* ---- adamw.c -------------------------------------------------------------------- */

/* A piece of the weights that one thread updates at a time; weight decay is for matrices only. */
typedef struct {
    int64_t offset, size;
    int decay;
} asp_adamw_chunk;
typedef struct {
    asp_real *data, *m, *v; /* weights and moments, read and written */
    int64_t moments_from;   /* the offset of the first moment that is there */
    asp_real *gradients;    /* read */
    int64_t n_chunks;
    asp_adamw_chunk *chunks; /* (n_chunks) */
    double *squares;         /* (n_chunks) scratch */
} asp_adamw_weights;
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, clip;
    double norm; /* of the gradients: they are scaled to `clip` if it is larger, and clip > 0 */
    double step; /* 1 in the first */
} asp_adamw_options;
/* None can be stopped: a step that has begun to change weights is finished. */
void asp_adamw_squares(const asp_adamw_weights *weights, const asp_context *context); /* of the gradients' chunks */
double asp_adamw_norm(const asp_adamw_weights *weights, const asp_context *context);
void asp_adamw_update(const asp_adamw_weights *weights, const asp_adamw_options *options, const asp_context *context);

/* Keys per vector in all kernels, whatever the instruction set: so reductions add in one order. */
enum { ASP_LANES = 16 };

/* How many of the k that are left go into the next block (OpenBLAS's rule with its block size Q). */
static inline int64_t asp_k_block(int64_t left, int64_t block) {
    if (left >= 2 * block) return block;
    return left > block ? (left / 2 + 15) / 16 * 16 : left;
}

static inline uint64_t asp_splitmix64(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}
/* The key of random numbers of one place: words are step, sequence, layer and so on. */
static inline uint64_t asp_noise_key(uint64_t seed, const uint64_t *words, int n_words) {
    uint64_t key = asp_splitmix64(seed);
    for (int i = 0; i < n_words; i++) key = asp_splitmix64(key ^ words[i]);
    return key;
}

#endif
