/* graph_edges.c: linear effects of sources on targets through a held run.  Targets are followed backwards, many at
 * once: those of one position together, joined by others as the layers go down. */
#include <string.h>

#include "graph/graph.h"

enum { ROWS_AT_ONCE = 4096 };

/* ---- many targets of one position, backwards ------------------------------------------------------ */

typedef struct {
    const asp_flow *flow;
    const asp_writes *writes;
    const asp_reads *reads;
    asp_real *edges;
    double *bias;
    int64_t *order;                 /* (n_targets): by position, then falling point */
    const int64_t *targets;         /* (n) of this group, by falling point */
    int64_t n, active, query, rows; /* rows = query + 1 of each target */
    asp_real *g, *z, *v, *dx;       /* (n,rows,E), (n,rows,C), (n,rows,C), (n,rows,E) */
    asp_real *out;                  /* (n, most writes of one layer and position) */
    asp_real *constant;             /* (C): what the constants add to the values of the layer at hand */
    int64_t layer, most_writes;
    asp_arena arena;
} group;

static void join_targets(group *w, int64_t point) {
    const int64_t e = w->flow->model->config.d_model;
    while (w->active < w->n && w->reads->point[w->targets[w->active]] == point) {
        asp_real *rows = w->g + w->active * w->rows * e;
        memset(rows, 0, (size_t)(w->rows * e) * sizeof *rows);
        w->bias[w->targets[w->active]] +=
            asp_flow_direction(w->flow, w->reads, w->targets[w->active], rows + w->query * e);
        w->active++;
    }
}

static double dot_rows(const asp_real *a, const asp_real *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

/* Effects of what is written before `layer`; first: the first of its writes.  Returns the first of the layer below. */
static asp_status collect(group *w, int64_t layer, int64_t *first, const asp_context *context) {
    const asp_writes *writes = w->writes;
    const int64_t e = w->flow->model->config.d_model;
    int64_t end = *first;
    while (*first > 0 && writes->layer[*first - 1] == layer) (*first)--;
    for (int64_t begin = *first, next; begin < end; begin = next) {
        const int64_t position = writes->position[begin];
        for (next = begin + 1; next < end && writes->position[next] == position;) next++;
        if (position > w->query) break;
        const int64_t n = next - begin;
        const asp_flow_product p = {.out = w->out,
                                    .ldc = n,
                                    .a = w->g + position * e,
                                    .lda = w->rows * e,
                                    .k = e,
                                    .b = writes->vectors + begin * e,
                                    .ldb = e,
                                    .m = w->active,
                                    .n = n,
                                    .transpose_b = 1};
        const asp_status status = asp_flow_multiply(&p, context);
        if (status) return status;
        for (int64_t t = 0; t < w->active; t++) {
            asp_real *row = w->edges + w->targets[t] * writes->n_sources;
            for (int64_t i = 0; i < n; i++) row[writes->source[begin + i]] += w->out[t * n + i];
        }
    }
    const asp_real *constant = w->flow->given->output_bias;
    for (int64_t t = 0; constant && layer > 0 && t < w->active; t++)
        for (int64_t q = 0; q < w->rows; q++)
            w->bias[w->targets[t]] += dot_rows(w->g + (t * w->rows + q) * e, constant + (layer - 1) * e, e);
    return ASP_OK;
}

/* constant (C) = b_V + LayerNorm's bias through W_V. */
static void value_constant(group *w) {
    const asp_model *m = w->flow->model;
    const asp_layer_offsets *o = &m->layers[w->layer];
    const int64_t width = m->config.n_head * m->config.d_head;
    for (int64_t c = 0; c < width; c++) {
        double sum = o->qkv_b >= 0 ? (double)m->data[o->qkv_b + 2 * width + c] : 0;
        for (int64_t j = 0; o->ln1_b >= 0 && j < m->config.d_model; j++)
            sum += (double)m->data[o->ln1_b + j] * (double)m->data[o->qkv_w + j * 3 * width + 2 * width + c];
        w->constant[c] = (asp_real)sum;
    }
}

/* v[k] = sum over q >= k of A[q,k] z[q], of one target; its constants. */
static void attend_item(void *arg, int64_t t, int thread) {
    (void)thread;
    const group *w = arg;
    const asp_model *m = w->flow->model;
    const int64_t d = m->config.d_head, width = m->config.n_head * d, e = m->config.d_model;
    const int64_t b_o = m->layers[w->layer].proj_b;
    double *bias = &w->bias[w->targets[t]];
    for (int64_t q = 0; b_o >= 0 && q < w->rows; q++) *bias += dot_rows(w->g + (t * w->rows + q) * e, m->data + b_o, e);
    for (int64_t k = 0; k < w->rows; k++) {
        asp_real *v = w->v + (t * w->rows + k) * width;
        memset(v, 0, (size_t)width * sizeof *v);
        for (int64_t h = 0; h < m->config.n_head; h++)
            for (int64_t q = k; q < w->rows; q++) {
                const asp_real weight = asp_flow_weight(w->flow, w->layer, h, q, k);
                const asp_real *z = w->z + (t * w->rows + q) * width + h * d;
                for (int64_t j = 0; weight != 0 && j < d; j++) v[h * d + j] += weight * z[j];
            }
        *bias += dot_rows(v, w->constant, width);
    }
}

/* g[k] += what the values' LayerNorm gives back. */
static void add_item(void *arg, int64_t t, int thread) {
    (void)thread;
    const group *w = arg;
    const asp_model *m = w->flow->model;
    const int64_t e = m->config.d_model;
    for (int64_t k = 0; k < w->rows; k++) {
        asp_real *dx = w->dx + (t * w->rows + k) * e, *g = w->g + (t * w->rows + k) * e;
        asp_flow_normalize_back(dx, m->data + m->layers[w->layer].ln1_w, asp_flow_scale(w->flow, 2 * w->layer, k), e);
        asp_isa_kernels()->add(g, dx, e);
    }
}

static void skip_item(void *arg, int64_t t, int thread) {
    (void)thread;
    const group *w = arg;
    const int64_t e = w->flow->model->config.d_model;
    for (int64_t k = 0; k < w->rows; k++) {
        asp_real *dx = w->dx + (t * w->rows + k) * e;
        if (!w->flow->given->skip_from_resid)
            asp_flow_normalize(dx, NULL, asp_flow_scale(w->flow, 2 * w->layer + 1, k), e);
        asp_isa_kernels()->add(w->g + (t * w->rows + k) * e, dx, e);
    }
}

/* From after layer w->layer to before it. */
static asp_status layer_back(group *w, const asp_context *context) {
    const asp_model *m = w->flow->model;
    const asp_layer_offsets *o = &m->layers[w->layer];
    const int64_t e = m->config.d_model, width = m->config.n_head * m->config.d_head;
    asp_status status = ASP_OK;
    if (w->flow->given->skip) {
        const asp_flow_product p = {.out = w->dx,
                                    .ldc = e,
                                    .a = w->g,
                                    .lda = e,
                                    .b = w->flow->given->skip + w->layer * e * e,
                                    .ldb = e,
                                    .m = w->active * w->rows,
                                    .n = e,
                                    .k = e};
        status = asp_flow_multiply(&p, context);
        if (!status) status = asp_parallel_for(context, w->active, skip_item, w);
    }
    join_targets(w, 2 * w->layer + 1);
    const int64_t rows = w->active * w->rows;
    const asp_flow_product to_heads = {.out = w->z,
                                       .ldc = width,
                                       .a = w->g,
                                       .lda = e,
                                       .b = m->data + o->proj_w,
                                       .ldb = e,
                                       .m = rows,
                                       .n = width,
                                       .k = e,
                                       .transpose_b = 1};
    const asp_flow_product to_stream = {.out = w->dx,
                                        .ldc = e,
                                        .a = w->v,
                                        .lda = width,
                                        .b = m->data + o->qkv_w + 2 * width,
                                        .ldb = 3 * width,
                                        .m = rows,
                                        .n = e,
                                        .k = width,
                                        .transpose_b = 1};
    value_constant(w);
    if (!status) status = asp_flow_multiply(&to_heads, context);
    if (!status) status = asp_parallel_for(context, w->active, attend_item, w);
    if (!status) status = asp_flow_multiply(&to_stream, context);
    return status ? status : asp_parallel_for(context, w->active, add_item, w);
}

static asp_status follow_group(group *w, const asp_context *context) {
    int64_t first = w->writes->n_writes;
    asp_status status = ASP_OK;
    w->active = 0;
    for (int64_t l = w->flow->model->config.n_layer; !status && l >= 0; l--) {
        join_targets(w, 2 * l);
        status = collect(w, l, &first, context);
        w->layer = l - 1;
        if (!status && l > 0) status = layer_back(w, context);
    }
    return status;
}

static int64_t most_writes(const asp_writes *writes) {
    int64_t most = 1;
    for (int64_t i = 0, begin = 0; i < writes->n_writes; i++) {
        if (writes->layer[i] != writes->layer[begin] || writes->position[i] != writes->position[begin]) begin = i;
        most = asp_max(most, i - begin + 1);
    }
    return most;
}

/* Buffers for groups of at most ROWS_AT_ONCE rows, or of one target. */
static asp_status allocate_group(group *w, asp_error *err) {
    const asp_config *c = &w->flow->model->config;
    const int64_t rows = asp_max(ROWS_AT_ONCE, w->flow->n_tokens), width = c->n_head * c->d_head;
    const int64_t targets = asp_min(ROWS_AT_ONCE, asp_max(1, w->reads->n_targets));
    asp_arena_part parts[] = {ASP_PART(w->g, rows, c->d_model),
                              ASP_PART(w->z, rows, width),
                              ASP_PART(w->v, rows, width),
                              ASP_PART(w->dx, rows, c->d_model),
                              ASP_PART(w->out, targets, w->most_writes),
                              ASP_PART(w->constant, width, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&w->arena, parts, PARTS);
    if (!asp_arena_commit(&w->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "a graph with %lld writes needs %s", (long long)w->writes->n_writes,
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&w->arena, parts, PARTS);
    return ASP_OK;
}

/* Groups the targets by position, each in order of falling point, and follows one group after the other. */
static asp_status follow_all(group *w, int64_t *grouped, const asp_context *context) {
    int64_t done = 0;
    asp_status status = asp_context_progress(context, "graph edges", 0, w->reads->n_targets);
    for (int64_t q = 0; !status && q < w->flow->n_tokens; q++) {
        int64_t n = 0;
        const int64_t most = asp_max(1, ROWS_AT_ONCE / (q + 1));
        for (int64_t i = 0; i < w->reads->n_targets; i++)
            if (w->reads->position[w->order[i]] == q) grouped[n++] = w->order[i];
        for (int64_t begin = 0; !status && begin < n; begin += most) {
            w->targets = grouped + begin;
            w->n = asp_min(most, n - begin);
            w->query = q;
            w->rows = q + 1;
            status = follow_group(w, context);
            done += w->n;
            if (!status) status = asp_context_progress(context, "graph edges", done, w->reads->n_targets);
        }
    }
    return status;
}

asp_status asp_graph_edges(asp_real *edges, double *bias, const asp_model *model, const asp_held_run *frozen,
                           const asp_writes *writes, const asp_reads *reads, const asp_context *context,
                           asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    asp_flow flow;
    asp_status status = asp_flow_open(&flow, model, frozen, err);
    if (!status) status = asp_flow_check_writes(&flow, writes, err);
    if (status) return status;
    group w = {.flow = &flow,
               .writes = writes,
               .reads = reads,
               .edges = edges,
               .bias = bias,
               .most_writes = most_writes(writes)};
    w.order = asp_allocate(2 * reads->n_targets + 1, sizeof *w.order);
    if (!w.order)
        return asp_fail(err, ASP_NO_MEMORY, "no memory for a graph of %lld targets", (long long)reads->n_targets);
    status = asp_flow_check_reads(&flow, reads, w.order, err);
    if (!status) status = allocate_group(&w, err);
    if (!status) {
        memset(edges, 0, (size_t)(reads->n_targets * writes->n_sources) * sizeof *edges);
        memset(bias, 0, (size_t)reads->n_targets * sizeof *bias);
        status = asp_blas_enter(context, err);
    }
    if (!status) {
        status = follow_all(&w, w.order + reads->n_targets, context);
        asp_blas_leave();
    }
    asp_arena_free(&w.arena);
    asp_release(w.order);
    return status;
}
