/* graph_heads.c: which heads carry an edge: sources carried forwards at their own position, targets followed
 * backwards at theirs, and the hop between. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph.h"

/* Rows that stay at one position: sources going up, or targets going down. */
typedef struct {
    const asp_flow *flow;
    int64_t n, layer;
    const int64_t *order; /* (n): what row i stands for */
    int32_t *position;    /* (n) of each row */
    asp_real *x, *dx;     /* (n,E) */
    asp_real *z;          /* (n,C) */
    asp_arena arena;
} rows;

static asp_status allocate_heads(rows *w, int64_t n, asp_error *err) {
    const asp_config *c = &w->flow->model->config;
    asp_arena_part parts[] = {ASP_PART(w->x, n, c->d_model), ASP_PART(w->dx, n, c->d_model),
                              ASP_PART(w->z, n, c->n_head * c->d_head), ASP_PART(w->order, n, 1),
                              ASP_PART(w->position, n, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&w->arena, parts, PARTS);
    if (!asp_arena_commit(&w->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "the heads of a graph need %s of scratch",
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&w->arena, parts, PARTS);
    return ASP_OK;
}

/* z (n,C) of each row times the head's attention of its position to itself. */
static void to_itself(const rows *w) {
    const asp_config *c = &w->flow->model->config;
    for (int64_t i = 0; i < w->n; i++)
        for (int64_t h = 0; h < c->n_head; h++) {
            const asp_real weight = asp_flow_weight(w->flow, w->layer, h, w->position[i], w->position[i]);
            asp_real *z = w->z + (i * c->n_head + h) * c->d_head;
            for (int64_t j = 0; j < c->d_head; j++) z[j] *= weight;
        }
}

/* ---- sources, upwards ------------------------------------------------------------------------------- */

static void normalize_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows *w = arg;
    const asp_model *m = w->flow->model;
    const int64_t e = m->config.d_model;
    memcpy(w->dx + i * e, w->x + i * e, (size_t)e * sizeof *w->x);
    asp_flow_normalize(w->dx + i * e, m->data + m->layers[w->layer].ln1_w,
                       asp_flow_scale(w->flow, 2 * w->layer, w->position[i]), e);
}

static void skip_input_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows *w = arg;
    const int64_t e = w->flow->model->config.d_model;
    memcpy(w->dx + i * e, w->x + i * e, (size_t)e * sizeof *w->x);
    if (!w->flow->given->skip_from_resid)
        asp_flow_normalize(w->dx + i * e, NULL, asp_flow_scale(w->flow, 2 * w->layer + 1, w->position[i]), e);
}

/* Values of one layer into carried, and the rows through attention to themselves and skip. */
static asp_status layer_up(rows *w, asp_real *carried, const asp_context *context) {
    const asp_model *m = w->flow->model;
    const asp_layer_offsets *o = &m->layers[w->layer];
    const int64_t e = m->config.d_model, width = m->config.n_head * m->config.d_head;
    const asp_flow_product values = {.out = w->z,
                                     .ldc = width,
                                     .a = w->dx,
                                     .lda = e,
                                     .b = m->data + o->qkv_w + 2 * width,
                                     .ldb = 3 * width,
                                     .m = w->n,
                                     .n = width,
                                     .k = e};
    const asp_flow_product output = {.out = w->x,
                                     .ldc = e,
                                     .a = w->z,
                                     .lda = width,
                                     .b = m->data + o->proj_w,
                                     .ldb = e,
                                     .m = w->n,
                                     .n = e,
                                     .k = width,
                                     .accumulate = 1};
    asp_status status = asp_parallel_for(context, w->n, normalize_item, w);
    if (!status) status = asp_flow_multiply(&values, context);
    if (status) return status;
    for (int64_t i = 0; i < w->n; i++)
        memcpy(carried + (i * m->config.n_layer + w->layer) * width, w->z + i * width, (size_t)width * sizeof *carried);
    to_itself(w);
    status = asp_flow_multiply(&output, context);
    if (status || !w->flow->given->skip) return status;
    const asp_flow_product skip = {.out = w->x,
                                   .ldc = e,
                                   .a = w->dx,
                                   .lda = e,
                                   .b = w->flow->given->skip + w->layer * e * e,
                                   .ldb = e,
                                   .m = w->n,
                                   .n = e,
                                   .k = e,
                                   .transpose_b = 1,
                                   .accumulate = 1};
    status = asp_parallel_for(context, w->n, skip_input_item, w);
    return status ? status : asp_flow_multiply(&skip, context);
}

asp_status asp_graph_heads_sources(asp_real *carried, const asp_model *model, const asp_held_run *frozen,
                                   const asp_writes *writes, const int64_t *row, int64_t n_rows,
                                   const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    asp_flow flow;
    const int64_t e = model->config.d_model;
    asp_status status = asp_flow_open(&flow, model, frozen, err);
    if (!status) status = asp_flow_check_writes(&flow, writes, err);
    if (status) return status;
    rows w = {.flow = &flow, .n = n_rows};
    status = allocate_heads(&w, n_rows, err);
    for (int64_t i = 0; !status && i < writes->n_writes; i++)
        if (row[writes->source[i]] >= 0) w.position[row[writes->source[i]]] = writes->position[i];
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    for (int64_t l = 0, next = 0; !status && l < model->config.n_layer; l++) {
        for (; next < writes->n_writes && writes->layer[next] == l; next++)
            if (row[writes->source[next]] >= 0)
                asp_isa_kernels()->add(w.x + row[writes->source[next]] * e, writes->vectors + next * e, e);
        w.layer = l;
        status = layer_up(&w, carried, context);
    }
    if (entered) asp_blas_leave();
    asp_arena_free(&w.arena);
    return status;
}

/* ---- targets, downwards -------------------------------------------------------------------------------- */

static void return_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows *w = arg;
    const asp_model *m = w->flow->model;
    const int64_t e = m->config.d_model;
    asp_flow_normalize_back(w->dx + i * e, m->data + m->layers[w->layer].ln1_w,
                            asp_flow_scale(w->flow, 2 * w->layer, w->position[i]), e);
    asp_isa_kernels()->add(w->x + i * e, w->dx + i * e, e);
}

static void return_skip_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const rows *w = arg;
    const int64_t e = w->flow->model->config.d_model;
    if (!w->flow->given->skip_from_resid)
        asp_flow_normalize(w->dx + i * e, NULL, asp_flow_scale(w->flow, 2 * w->layer + 1, w->position[i]), e);
    asp_isa_kernels()->add(w->x + i * e, w->dx + i * e, e);
}

/* Targets that read at `point` become rows. */
static void join_reads(rows *w, const asp_reads *reads, int64_t point) {
    const int64_t e = w->flow->model->config.d_model;
    for (; w->n < reads->n_targets && reads->point[w->order[w->n]] == point; w->n++) {
        asp_flow_direction(w->flow, reads, w->order[w->n], w->x + w->n * e);
        w->position[w->n] = reads->position[w->order[w->n]];
    }
}

static asp_status layer_down(rows *w, const asp_reads *reads, asp_real *received, int alone,
                             const asp_context *context) {
    const asp_model *m = w->flow->model;
    const asp_layer_offsets *o = &m->layers[w->layer];
    const int64_t e = m->config.d_model, width = m->config.n_head * m->config.d_head;
    asp_status status = ASP_OK;
    if (w->flow->given->skip) {
        const asp_flow_product skip = {.out = w->dx,
                                       .ldc = e,
                                       .a = w->x,
                                       .lda = e,
                                       .b = w->flow->given->skip + w->layer * e * e,
                                       .ldb = e,
                                       .m = w->n,
                                       .n = e,
                                       .k = e};
        status = asp_flow_multiply(&skip, context);
        if (!status) status = asp_parallel_for(context, w->n, return_skip_item, w);
    }
    join_reads(w, reads, 2 * w->layer + 1);
    const asp_flow_product heads = {.out = w->z,
                                    .ldc = width,
                                    .a = w->x,
                                    .lda = e,
                                    .b = m->data + o->proj_w,
                                    .ldb = e,
                                    .m = w->n,
                                    .n = width,
                                    .k = e,
                                    .transpose_b = 1};
    if (!status) status = asp_flow_multiply(&heads, context);
    if (status) return status;
    for (int64_t i = 0; i < w->n; i++)
        memcpy(received + (w->order[i] * m->config.n_layer + w->layer) * width, w->z + i * width,
               (size_t)width * sizeof *received);
    if (alone) return ASP_OK;
    to_itself(w);
    const asp_flow_product stream = {.out = w->dx,
                                     .ldc = e,
                                     .a = w->z,
                                     .lda = width,
                                     .b = m->data + o->qkv_w + 2 * width,
                                     .ldb = 3 * width,
                                     .m = w->n,
                                     .n = e,
                                     .k = width,
                                     .transpose_b = 1};
    status = asp_flow_multiply(&stream, context);
    return status ? status : asp_parallel_for(context, w->n, return_item, w);
}

asp_status asp_graph_heads_targets(asp_real *received, const asp_model *model, const asp_held_run *frozen,
                                   const asp_reads *reads, int alone, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    asp_flow flow;
    const int64_t size = reads->n_targets * model->config.n_layer * model->config.n_head * model->config.d_head;
    asp_status status = asp_flow_open(&flow, model, frozen, err);
    if (status) return status;
    rows w = {.flow = &flow};
    status = allocate_heads(&w, reads->n_targets, err);
    if (!status) status = asp_flow_check_reads(&flow, reads, (int64_t *)(uintptr_t)w.order, err);
    if (!status) memset(received, 0, (size_t)size * sizeof *received);
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    for (int64_t l = model->config.n_layer; !status && l >= 0; l--) {
        join_reads(&w, reads, 2 * l);
        w.layer = l - 1;
        if (l > 0) status = layer_down(&w, reads, received, alone, context);
    }
    if (entered) asp_blas_leave();
    asp_arena_free(&w.arena);
    return status;
}

/* ---- the hop ---------------------------------------------------------------------------------------------- */

typedef struct {
    double *loadings;
    const asp_loading_inputs *in;
} loading_job;

/* What head `unit` moves along pair i. */
static double loading(const asp_loading_inputs *in, int64_t i, int64_t unit) {
    const int64_t units = in->n_layer * in->n_head, d = in->d_head, t = in->n_tokens;
    const int64_t k = in->places[2 * i], q = in->places[2 * i + 1];
    const asp_real *from = in->carried + (in->pairs[2 * i] * units + unit) * d;
    const asp_real *to = (k == q ? in->received_alone : in->received) + (in->pairs[2 * i + 1] * units + unit) * d;
    const double weight = k > q ? 0 : (double)in->pattern[(unit * t + q) * t + k];
    double sum = 0;
    for (int64_t j = 0; weight != 0 && j < d; j++) sum += (double)from[j] * (double)to[j];
    return in->factor[i] * weight * sum;
}

static void loading_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const loading_job *job = arg;
    const int64_t units = job->in->n_layer * job->in->n_head;
    for (int64_t u = 0; u < units; u++) job->loadings[i * units + u] = loading(job->in, i, u);
}

asp_status asp_graph_heads_loadings(double *loadings, const asp_loading_inputs *inputs, const asp_context *context) {
    ASP_ENVIRONMENT;
    loading_job job = {loadings, inputs};
    return asp_parallel_for(context, inputs->n_pairs, loading_item, &job);
}

/* ---- from some nodes to others ------------------------------------------------------------------------------ */

typedef struct {
    const asp_real *weight;
    const double *factor;
} weighted;

static double weighted_term(const void *arg, int64_t i) {
    const weighted *w = arg;
    return (double)w->weight[i] * w->factor[i];
}

asp_status asp_graph_heads_total(double *total, const asp_real *weight, const double *factor, int64_t n,
                                 const asp_context *context) {
    ASP_ENVIRONMENT;
    *total = asp_sum(weighted_term, &(weighted){weight, factor}, n);
    return asp_parallel_stopped(context) ? ASP_STOPPED : ASP_OK;
}

typedef struct {
    const asp_between_inputs *in;
    double *within, *across; /* (L,H) loadings of pairs at one position, and of others */
    double *same, *other;    /* (n_pairs) weights of those, each list from its start */
    asp_arena arena;
} between_job;

static void between_item(void *arg, int64_t unit, int thread) {
    (void)thread;
    const between_job *job = arg;
    const asp_loading_inputs *in = &job->in->placed;
    for (int64_t i = 0; i < in->n_pairs; i++) {
        const int at_one = in->places[2 * i] == in->places[2 * i + 1];
        (at_one ? job->within : job->across)[unit] += loading(in, i, unit);
    }
}

asp_status asp_graph_heads_between(double *by_head, double *direct, double *remainder, const asp_between_inputs *inputs,
                                   const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_loading_inputs *in = &inputs->placed;
    const int64_t units = in->n_layer * in->n_head;
    between_job job = {.in = inputs};
    asp_arena_part parts[] = {ASP_PART(job.within, units, 1), ASP_PART(job.across, units, 1),
                              ASP_PART(job.same, in->n_pairs, 1), ASP_PART(job.other, in->n_pairs, 1)};
    const int64_t bytes = asp_arena_lay_out(&job.arena, parts, 4);
    if (!asp_arena_commit(&job.arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "the heads of a graph need %s of scratch",
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&job.arena, parts, 4);
    int64_t n_same = 0, n_other = 0;
    for (int64_t i = 0; i < in->n_pairs; i++) {
        const double weight = (double)inputs->weight[i] * in->factor[i];
        if (in->places[2 * i] == in->places[2 * i + 1]) job.same[n_same++] = weight;
        else job.other[n_other++] = weight;
    }
    const asp_status status = asp_parallel_for(context, units, between_item, &job);
    for (int64_t u = 0; u < units; u++) by_head[u] = job.across[u] + job.within[u];
    *direct = asp_sum_numbers(job.same, n_same) - asp_sum_numbers(job.within, units);
    *remainder = asp_sum_numbers(job.other, n_other) - asp_sum_numbers(job.across, units) +
                 asp_sum(weighted_term, &(weighted){inputs->loose_weight, inputs->loose_factor}, inputs->n_loose);
    asp_arena_free(&job.arena);
    return status;
}

/* ---- shares ------------------------------------------------------------------------------------------------------ */

asp_status asp_graph_heads_shares(double *share, double *cumulative, int64_t *order, double *whole,
                                  const asp_shares_inputs *inputs, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = inputs->n_parts;
    asp_graph_choose_item *keys = asp_allocate(n, sizeof *keys);
    if (!keys) return asp_fail(err, ASP_NO_MEMORY, "no memory for the shares of %lld heads", (long long)n);
    *whole = asp_sum_numbers(inputs->parts, n);
    for (int64_t i = 0; i < inputs->n_rest; i++) *whole += inputs->rest[i];
    for (int64_t i = 0; i < n; i++) {
        const double part = inputs->parts[i], falling = *whole < 0 ? -part : part;
        keys[i] = (asp_graph_choose_item){inputs->absolute ? fabs(part) : falling, i};
    }
    asp_graph_choose_sort(keys, n);
    double sum = 0;
    for (int64_t i = 0; i < n + inputs->n_rest; i++) {
        if (i < n) order[i] = keys[i].number;
        share[i] = (i < n ? inputs->parts[order[i]] : inputs->rest[i - n]) / *whole;
        cumulative[i] = sum += share[i];
    }
    asp_release(keys);
    return asp_parallel_stopped(context) ? ASP_STOPPED : ASP_OK;
}

/* ---- entries of the pattern ------------------------------------------------------------------------------------- */

asp_status asp_graph_heads_entries(double *effects, const asp_entry_inputs *in, const asp_context *context) {
    ASP_ENVIRONMENT;
    const int64_t units = in->n_layer * in->n_head, d = in->d_head, t = in->n_tokens;
    for (int64_t k = 0; k < in->n_weights; k++) effects[k] = 0;
    for (int64_t i = 0; i < in->n_entries; i++) {
        const int64_t layer = in->entries[4 * i], head = in->entries[4 * i + 1], unit = layer * in->n_head + head;
        const int64_t query = in->entries[4 * i + 2], key = in->entries[4 * i + 3];
        const double entry = (double)in->pattern[(unit * t + query) * t + key];
        const asp_real *value = in->values + ((layer * t + key) * in->n_head + head) * d;
        for (int64_t r = 0; r < in->n_targets; r++) {
            const asp_real *received = in->received + (r * units + unit) * d;
            double effect = 0;
            for (int64_t j = 0; j < d; j++) effect += (double)received[j] * (entry * (double)value[j]);
            for (int64_t k = 0; k < in->n_weights; k++) effects[k] += effect * in->weights[k * in->n_targets + r];
        }
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
    }
    return ASP_OK;
}

typedef struct {
    double *moved;
    double *values; /* (n_threads,T,D) scratch */
    const asp_moved_inputs *in;
} moved_job;

static void moved_item(void *arg, int64_t unit, int thread) {
    const moved_job *job = arg;
    const asp_moved_inputs *in = job->in;
    const int64_t units = in->n_layer * in->n_head, d = in->d_head, t = in->n_tokens;
    double *values = job->values + thread * t * d, *moved = job->moved + unit * t;
    memset(values, 0, (size_t)(t * d) * sizeof *values);
    for (int64_t s = 0; s < in->n_sources; s++)
        for (int64_t j = 0; j < d; j++)
            values[in->position[s] * d + j] += (double)in->carried[(s * units + unit) * d + j];
    const asp_real *entries = in->pattern + (unit * t + in->query) * t;
    for (int64_t key = 0; key < t; key++)
        for (int64_t k = 0; k < in->n_rows; k++) {
            const asp_real *received = in->received + (in->rows[k] * units + unit) * d;
            double effect = 0;
            for (int64_t j = 0; j < d; j++) effect += values[key * d + j] * (double)received[j];
            moved[key] += fabs(effect * (double)entries[key]) * in->weights[k];
        }
}

asp_status asp_graph_heads_moved(double *moved, const asp_moved_inputs *inputs, const asp_context *context,
                                 asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t units = inputs->n_layer * inputs->n_head, size = inputs->n_tokens * inputs->d_head;
    moved_job job = {.moved = moved, .in = inputs};
    asp_arena arena = {0};
    asp_arena_part parts[] = {ASP_PART(job.values, context->n_threads, size)};
    const int64_t bytes = asp_arena_lay_out(&arena, parts, 1);
    if (!asp_arena_commit(&arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "the heads of a graph need %s of scratch",
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&arena, parts, 1);
    memset(moved, 0, (size_t)(units * inputs->n_tokens) * sizeof *moved);
    const asp_status status = asp_parallel_for(context, units, moved_item, &job);
    asp_arena_free(&arena);
    return status;
}
