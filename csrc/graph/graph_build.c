/* graph_build.c: the graph of a prompt: effects of all sources on the chosen features and the logits, made sparse;
 * the features that are not chosen added up; and the arrays of the heads. */
#include <math.h>
#include <string.h>

#include "graph/graph.h"

/* Made for one graph; the arrays of the graph itself are in its own arena. */
typedef struct {
    const asp_model *model;
    const asp_graph_inputs *in;
    asp_graph_choose_rows rows;
    int64_t n_tokens, n_layer, n_rows, n_sources, n_columns, n_unkept;
    int64_t *chosen;     /* (n_kept) features, rising */
    int64_t *unkept;     /* (n_unkept) features, rising */
    int64_t *node;       /* (n_sources) of each source, -1: none */
    double *values;      /* (threads,n_columns) incoming edges of a target, by node */
    double *sum, *whole; /* (rows) of a target's edges, and of their sizes */
    int64_t *count;      /* (rows) edges that are not 0 */
    asp_graph *graph;    /* NULL until the edges are counted */
    asp_arena arena;
} building;

/* ---- incoming edges of one target --------------------------------------------------------------------- */

/* Target t of the graph: the chosen features, then the logits. */
static int64_t row_of_target(const building *b, int64_t t) {
    const int64_t n_kept = b->rows.n_kept;
    return b->rows.row[t < n_kept ? b->chosen[t] : b->rows.n_active + t - n_kept];
}

typedef struct {
    const asp_real *effects;
    const int64_t *unkept;
} others;

static double other_term(const void *arg, int64_t i) {
    const others *o = arg;
    return (double)o->effects[o->unkept[i]];
}

static double size_term(const void *x, int64_t i) { return fabs(((const double *)x)[i]); }

/* values (n_columns) written: what comes from each node before the logits. */
static void read_values(double *values, const building *b, int64_t t) {
    const int64_t row = row_of_target(b, t), n_kept = b->rows.n_kept, n_active = b->rows.n_active;
    const asp_real *effects = b->rows.effects + row * b->n_sources;
    for (int64_t i = 0; i < n_kept; i++) values[i] = (double)effects[b->chosen[i]];
    for (int64_t s = n_active; s < b->n_sources; s++) values[n_kept + s - n_active] = (double)effects[s];
    const int64_t bias = n_kept + b->n_sources - n_active;
    values[bias] = b->rows.bias[row];
    if (b->n_unkept) values[bias + 1] = asp_sum(other_term, &(others){effects, b->unkept}, b->n_unkept);
}

static void count_item(void *arg, int64_t t, int thread) {
    const building *b = arg;
    double *values = b->values + thread * b->n_columns;
    read_values(values, b, t);
    b->sum[t] = asp_sum_numbers(values, b->n_columns);
    b->whole[t] = asp_sum(size_term, values, b->n_columns);
    b->count[t] = 0;
    for (int64_t i = 0; i < b->n_columns; i++) b->count[t] += values[i] != 0;
}

static int64_t node_of_target(const building *b, int64_t t) {
    return t < b->rows.n_kept ? t : b->n_columns + t - b->rows.n_kept;
}

static void fill_edges_item(void *arg, int64_t t, int thread) {
    const building *b = arg;
    const asp_graph_arrays *a = asp_graph_get_arrays(b->graph);
    double *values = b->values + thread * b->n_columns;
    int64_t at = a->start[node_of_target(b, t)];
    read_values(values, b, t);
    for (int64_t i = 0; i < b->n_columns; i++) {
        if (values[i] == 0) continue;
        a->source[at] = (int32_t)i;
        a->weights[at++] = (asp_real)values[i];
    }
}

static double value_of(const building *b, int64_t t) {
    return t < b->rows.n_kept ? b->in->features.value[b->chosen[t]] : b->in->logits.value[t - b->rows.n_kept];
}

static asp_graph_closure close(const building *b) {
    asp_graph_closure closure = {0, 0};
    for (int64_t t = 0; t < b->n_rows; t++) {
        const double value = value_of(b, t), off = fabs(b->sum[t] - value);
        if (!(off > 0)) continue;
        closure.relative = fmax(closure.relative, off / fabs(value));
        closure.absolute = fmax(closure.absolute, off / b->whole[t]);
    }
    return closure;
}

/* ---- nodes ------------------------------------------------------------------------------------------------ */

static void set_node(asp_graph_arrays *a, int64_t *i, asp_graph_kind kind, int64_t layer, int64_t position,
                     int64_t feature) {
    a->kind[*i] = (int32_t)kind;
    a->layer[*i] = (int32_t)layer;
    a->position[*i] = (int32_t)position;
    a->feature[*i] = (int32_t)feature;
    a->value[*i] = a->probability[*i] = (asp_real)NAN;
    ++*i;
}

static void name_nodes(const building *b) {
    asp_graph_arrays a = *asp_graph_get_arrays(b->graph);
    const asp_graph_targets *features = &b->in->features, *logits = &b->in->logits;
    const int64_t t = b->n_tokens;
    int64_t n = 0;
    for (int64_t i = 0; i < b->rows.n_kept; i++) {
        const int64_t f = b->chosen[i];
        set_node(&a, &n, ASP_GRAPH_FEATURE, features->reads.point[f] / 2, features->reads.position[f],
                 features->number[f]);
    }
    for (int64_t i = 0; i < b->n_layer * t; i++) set_node(&a, &n, ASP_GRAPH_ERROR, i / t, i % t, -1);
    for (int64_t p = 0; p < t; p++) set_node(&a, &n, ASP_GRAPH_TOKEN, -1, p, b->in->tokens[p]);
    for (int64_t p = 0; p < t; p++) set_node(&a, &n, ASP_GRAPH_POSITION, -1, p, -1);
    set_node(&a, &n, ASP_GRAPH_BIAS, -1, -1, -1);
    if (b->n_unkept) set_node(&a, &n, ASP_GRAPH_OTHER, -1, -1, -1);
    for (int64_t i = 0; i < b->rows.n_logits; i++)
        set_node(&a, &n, ASP_GRAPH_LOGIT, b->n_layer, logits->reads.position[i], logits->number[i]);
    for (int64_t i = 0; i < b->n_rows; i++) a.value[node_of_target(b, i)] = (asp_real)value_of(b, i);
    for (int64_t i = 0; i < b->rows.n_logits; i++) a.probability[b->n_columns + i] = (asp_real)b->in->probability[i];
}

static void start_edges(const building *b) {
    const asp_graph_arrays *a = asp_graph_get_arrays(b->graph);
    const int64_t n = b->n_columns + b->rows.n_logits;
    for (int64_t t = 0; t < b->n_rows; t++) a->start[node_of_target(b, t) + 1] = b->count[t];
    for (int64_t i = 0; i < n; i++) a->start[i + 1] += a->start[i];
}

/* ---- sizes and memory ---------------------------------------------------------------------------------------- */

/* The graph with so many edges. */
static asp_graph_sizes sizes_of(const building *b, int64_t n_edges) {
    const asp_config *c = &b->model->config;
    return (asp_graph_sizes){.n_nodes = b->n_columns + b->rows.n_logits,
                             .n_edges = n_edges,
                             .n_placed = b->rows.n_kept + b->n_sources - b->rows.n_active,
                             .n_targets = b->n_rows,
                             .n_layer = c->n_layer,
                             .n_head = c->n_head,
                             .d_head = c->d_head};
}

/* NO_MEMORY if the graph and all that makes it would take more than they may, or cannot be allocated. */
static asp_status allocate_building(building *b, int n_threads, asp_error *err) {
    asp_graph_choose_rows *r = &b->rows;
    const int64_t n = b->n_rows, targets = r->n_active + r->n_logits, s = b->n_sources;
    asp_arena_part parts[] = {ASP_PART(r->effects, n, s),
                              ASP_PART(r->bias, n, 1),
                              ASP_PART(r->sums, n, 1),
                              ASP_PART(r->target, n, 1),
                              ASP_PART(r->row, targets, 1),
                              ASP_PART(r->point, n, 1),
                              ASP_PART(r->position, n, 1),
                              ASP_PART(r->reading, n, 1),
                              ASP_PART(r->vectors, n, b->model->config.d_model),
                              ASP_PART(r->from, n, 1),
                              ASP_PART(r->weights, r->n_logits, 1),
                              ASP_PART(r->influence, s, 1),
                              ASP_PART(r->now, s, 1),
                              ASP_PART(r->next, s, 1),
                              ASP_PART(r->items, r->n_active, 1),
                              ASP_PART(b->unkept, b->n_unkept, 1),
                              ASP_PART(b->node, s, 1),
                              ASP_PART(b->values, n_threads, b->n_columns),
                              ASP_PART(b->sum, n, 1),
                              ASP_PART(b->whole, n, 1),
                              ASP_PART(b->count, n, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    int64_t most_edges;
    if (!asp_multiply(n, b->n_columns, &most_edges)) most_edges = INT64_MAX;
    const asp_graph_sizes sizes = sizes_of(b, most_edges);
    const double needed = (double)asp_arena_lay_out(&b->arena, parts, PARTS) + (double)asp_graph_bytes_of(&sizes);
    if (needed > (double)b->in->max_bytes)
        return asp_fail(err, ASP_NO_MEMORY,
                        "a graph of %lld features and logits, with %lld active features, takes %s, above max_bytes="
                        "%lld; set max_feature_nodes lower",
                        (long long)n, (long long)r->n_active, asp_fail_size((char[32]){0}, needed),
                        (long long)b->in->max_bytes);
    if (!asp_arena_commit(&b->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the effects of %lld sources on %lld features and logits",
                        (long long)s, (long long)n);
    asp_arena_wire(&b->arena, parts, PARTS);
    return ASP_OK;
}

/* chosen, unkept and node, from the rows. */
static void sort_sources(building *b) {
    int64_t n_kept = 0, n_unkept = 0;
    for (int64_t f = 0; f < b->rows.n_active; f++) {
        const int kept = b->rows.row[f] >= 0;
        b->node[f] = kept ? n_kept : -1;
        if (kept) b->chosen[n_kept++] = f;
        else b->unkept[n_unkept++] = f;
    }
    for (int64_t s = b->rows.n_active; s < b->n_sources; s++) b->node[s] = n_kept + s - b->rows.n_active;
}

/* ---- heads ----------------------------------------------------------------------------------------------------- */

static asp_status fill_heads(building *b, const asp_context *context, asp_error *err) {
    const asp_graph_arrays *a = asp_graph_get_arrays(b->graph);
    const asp_held_run *held = b->in->held;
    for (int64_t t = 0; t < b->n_rows; t++)
        b->rows.target[t] = t < b->rows.n_kept ? b->chosen[t] : b->rows.n_active + t - b->rows.n_kept;
    const asp_reads reads = asp_graph_choose_reads(&b->rows, 0, b->n_rows, b->model->config.d_model);
    static const char stage[] = "graph heads";
    asp_status status = asp_context_progress(context, stage, 0, 3);
    if (!status)
        status = asp_graph_heads_sources(a->carried, b->model, held, b->in->writes, b->node, b->graph->sizes.n_placed,
                                         context, err);
    if (!status) status = asp_context_progress(context, stage, 1, 3);
    if (!status) status = asp_graph_heads_targets(a->received, b->model, held, &reads, 0, context, err);
    if (!status) status = asp_context_progress(context, stage, 2, 3);
    if (!status) status = asp_graph_heads_targets(a->received_alone, b->model, held, &reads, 1, context, err);
    return status ? status : asp_context_progress(context, stage, 3, 3);
}

static asp_status fill_graph(building *b, const asp_context *context, asp_error *err) {
    asp_status status = asp_parallel_for(context, b->n_rows, count_item, b);
    if (status) return status;
    int64_t n_edges = 0;
    for (int64_t t = 0; t < b->n_rows; t++) n_edges += b->count[t];
    const asp_graph_sizes sizes = sizes_of(b, n_edges);
    status = asp_graph_new(&b->graph, &sizes, err);
    if (status) return status;
    name_nodes(b);
    start_edges(b);
    status = asp_parallel_for(context, b->n_rows, fill_edges_item, b);
    return status ? status : fill_heads(b, context, err);
}

/* ---- all of it ------------------------------------------------------------------------------------------------- */

static asp_status check_inputs(const building *b, asp_error *err) {
    const int64_t fixed = (b->n_layer + 2) * b->n_tokens, n_active = b->rows.n_active;
    if (b->n_sources != n_active + fixed)
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "a graph of %lld active features and %lld tokens has %lld sources, the writes have %lld",
                        (long long)n_active, (long long)b->n_tokens, (long long)n_active + fixed,
                        (long long)b->n_sources);
    for (int64_t i = 0; i < n_active; i++)
        if (b->in->features.reads.point[i] % 2 != 1)
            return asp_fail(err, ASP_BAD_ARGUMENT, "feature %lld reads at point %d, which is not before an MLP",
                            (long long)i, b->in->features.reads.point[i]);
    return ASP_OK;
}

asp_status asp_graph_build(asp_graph **graph, int64_t *chosen, asp_graph_closure *closure, const asp_model *model,
                           const asp_graph_inputs *inputs, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    asp_flow flow;
    asp_status status = asp_flow_open(&flow, model, inputs->held, err);
    if (status) return status;
    const int64_t n_active = inputs->features.reads.n_targets, most = inputs->most < 0 ? n_active : inputs->most;
    building b = {.model = model,
                  .in = inputs,
                  .n_tokens = flow.n_tokens,
                  .n_layer = model->config.n_layer,
                  .n_sources = inputs->writes->n_sources,
                  .chosen = chosen,
                  .rows = {.inputs = inputs, .n_active = n_active, .n_kept = asp_min(most, n_active)}};
    b.rows.n_logits = inputs->logits.reads.n_targets;
    b.n_rows = b.rows.n_kept + b.rows.n_logits;
    b.n_unkept = n_active - b.rows.n_kept;
    b.n_columns = b.rows.n_kept + b.n_sources - n_active + 1 + (b.n_unkept > 0);
    status = check_inputs(&b, err);
    if (!status) status = allocate_building(&b, own.n_threads, err);
    if (!status) status = asp_graph_choose(&b.rows, model, &own, err);
    if (!status) {
        sort_sources(&b);
        status = fill_graph(&b, &own, err);
    }
    if (!status) *closure = close(&b);
    asp_arena_free(&b.arena);
    if (status) asp_graph_free(b.graph);
    else *graph = b.graph;
    return status;
}
