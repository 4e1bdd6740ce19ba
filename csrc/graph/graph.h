/* graph.h: internal declarations of attribution graphs: a held run (fixed attention patterns and LayerNorm scales), and
 * the steps that build, prune and group a graph. */
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

struct asp_graph {
    asp_graph_sizes sizes;
    asp_graph_arrays arrays;
    asp_arena arena;
};

/* The bytes of a graph of these sizes; INT64_MAX if they do not fit in 64 bits. */
int64_t asp_graph_bytes_of(const asp_graph_sizes *sizes);
asp_adjacency asp_graph_adjacency(const asp_graph *graph);
static inline int asp_graph_is(const asp_graph *graph, int64_t node, unsigned kinds) {
    return (kinds >> graph->arrays.kind[node] & 1) != 0;
}
/* Of a set of kinds. */
#define ASP_KIND(kind) (1U << ASP_GRAPH_##kind)
int64_t asp_graph_count(const asp_graph *graph, unsigned kinds);
/* What a logit weighs: its probability, or 1 where there is none. */
static inline double asp_graph_weight(double probability) { return probability - probability == 0 ? probability : 1; }

/* Divides rows of |weights|: smaller sums count as this. */
#define ASP_GRAPH_LEAST_SUM 1e-10
asp_status asp_graph_circle(asp_error *err);

/* ---- graph_choose.c ----------------------------------------------------------------- */

typedef struct {
    double score;
    int64_t number;
} asp_graph_choose_item;
/* By falling score, equal ones by number. */
void asp_graph_choose_sort(asp_graph_choose_item *items, int64_t n);

/* Effects of all sources on the logits and on the features that are chosen, in the order in which they are. */
typedef struct {
    const asp_graph_inputs *inputs;
    int64_t n_active, n_kept, n_logits, n_known; /* rows n_kept + n_logits, of which n_known are filled */
    asp_real *effects;                           /* (rows,n_sources) */
    double *bias;                                /* (rows) what the constants do */
    double *sums;                                /* (rows) of |effects|, at least ASP_GRAPH_LEAST_SUM */
    int64_t *target;                             /* (rows) the feature, or n_active + the logit */
    int64_t *row;                                /* (n_active+n_logits) of each target, -1: none */
    int32_t *point, *position;                   /* (rows) as in asp_reads */
    uint8_t *reading;                            /* (rows) */
    asp_real *vectors;                           /* (rows,E) */
    int64_t *from;                               /* (rows) scratch, as the next ones */
    double *weights;                             /* (n_logits) */
    double *influence, *now, *next;              /* (n_sources) */
    asp_graph_choose_item *items;                /* (n_active) */
} asp_graph_choose_rows;
/* What the targets of rows [begin, end) read, copied to those rows. */
asp_reads asp_graph_choose_reads(asp_graph_choose_rows *rows, int64_t begin, int64_t end, int64_t width);
/* Fills target, row, effects and bias. */
asp_status asp_graph_choose(asp_graph_choose_rows *rows, const asp_model *model, const asp_context *context,
                            asp_error *err);

#endif
