/* graph.h: what graph.c and graph_heads.c share: a run with its patterns and scales held. */
#ifndef ASP_GRAPH_INTERNAL_H
#define ASP_GRAPH_INTERNAL_H

#include "model/model.h"

typedef struct {
    const asp_model *model;
    const asp_held_run *given;
    int64_t n_tokens;
    asp_array ln1_scale, ln2_scale, final_scale;
    const asp_real *pattern; /* (L,H,T,T) */
} asp_flow;

/* BAD_STATE or BAD_ARGUMENT if the run cannot be held. */
asp_status asp_flow_open(asp_flow *flow, const asp_model *model, const asp_held_run *frozen, asp_error *err);
asp_status asp_flow_check_writes(const asp_flow *flow, const asp_writes *writes, asp_error *err);
/* order (n_targets) written: targets by falling point, then as given. */
asp_status asp_flow_check_reads(const asp_flow *flow, const asp_reads *reads, int64_t *order, asp_error *err);

static inline asp_real asp_flow_weight(const asp_flow *flow, int64_t layer, int64_t head, int64_t query, int64_t key) {
    const int64_t t = flow->n_tokens;
    return flow->pattern[((layer * flow->model->config.n_head + head) * t + query) * t + key];
}
/* Scale of the LayerNorm at a point. */
asp_real asp_flow_scale(const asp_flow *flow, int64_t point, int64_t position);
/* direction (E) written: gradient of a target with respect to the residual stream at its point.  Returns what the
 * LayerNorm's bias adds to the target. */
double asp_flow_direction(const asp_flow *flow, const asp_reads *reads, int64_t target, asp_real *direction);
/* x (E) = (x - mean) / scale, which is its own transpose.  With weight (E): forward x = (x - mean) / scale * weight;
 * backward x = center(x * weight) / scale. */
void asp_flow_normalize(asp_real *x, const asp_real *weight, asp_real scale, int64_t width);
void asp_flow_normalize_back(asp_real *x, const asp_real *weight, asp_real scale, int64_t width);

typedef struct {
    double key;
    int64_t number;
} asp_graph_heads_key;
/* By falling key, equal ones by number. */
void asp_graph_heads_sort(asp_graph_heads_key *keys, int64_t n);

/* out (m,n) = a (m,k) op(b), rows of a lda and of out ldc apart. */
typedef struct {
    asp_real *out;
    int64_t ldc;
    const asp_real *a;
    int64_t lda;
    const asp_real *b;
    int64_t ldb, m, n, k;
    int transpose_b, accumulate;
} asp_flow_product;
asp_status asp_flow_multiply(const asp_flow_product *product, const asp_context *context);

#endif
