/* graph_prune.c: influence of nodes and edges on the logits, and what is left when the rest goes.
 * Definitions: circuit-tracer (prune_graph, compute_node_influence, compute_edge_influence). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph.h"

enum {
    ALWAYS = ASP_KIND(TOKEN) | ASP_KIND(POSITION) | ASP_KIND(BIAS) | ASP_KIND(OTHER) | ASP_KIND(LOGIT),
    IN_CIRCUIT_TRACER = ASP_KIND(FEATURE) | ASP_KIND(ERROR) | ASP_KIND(TOKEN) | ASP_KIND(LOGIT),
    ALL = (1 << ASP_N_GRAPH_KINDS) - 1
};

/* weights (n) written: of the logits; 0 of the rest. */
static void weigh(double *weights, const asp_graph *g) {
    for (int64_t i = 0; i < g->sizes.n_nodes; i++)
        weights[i] = asp_graph_is(g, i, ASP_KIND(LOGIT)) ? asp_graph_weight((double)g->arrays.probability[i]) : 0;
}

/* normalized (m) = |weight| over its row's sum; edges not in `kept` (NULL: all are) count as 0. */
static asp_status normalize_influence(double *normalized, const asp_adjacency *graph, const uint8_t *kept,
                                      const asp_context *context) {
    for (int64_t t = 0; t < graph->n_nodes; t++) {
        double sum = 0;
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        for (int64_t i = graph->start[t]; i < graph->start[t + 1]; i++) {
            normalized[i] = kept && !kept[i] ? 0 : fabs((double)graph->weight[i]);
            sum += normalized[i];
        }
        for (int64_t i = graph->start[t]; i < graph->start[t + 1]; i++) normalized[i] /= fmax(sum, ASP_GRAPH_LEAST_SUM);
    }
    return ASP_OK;
}

/* influence (n) = sum of weights A^i, i >= 1.  now, next (n) scratch. */
static asp_status propagate(double *influence, const asp_adjacency *graph, const double *normalized,
                            const double *weights, double *now, double *next, const asp_context *context,
                            asp_error *err) {
    const int64_t n = graph->n_nodes;
    memset(influence, 0, (size_t)n * sizeof *influence);
    memcpy(now, weights, (size_t)n * sizeof *now);
    for (int64_t round = 0; round <= n; round++) {
        int any = 0;
        memset(next, 0, (size_t)n * sizeof *next);
        for (int64_t t = 0; t < n; t++) {
            if (asp_parallel_stopped(context)) return ASP_STOPPED;
            for (int64_t i = graph->start[t]; now[t] != 0 && i < graph->start[t + 1]; i++)
                next[graph->source[i]] += now[t] * normalized[i];
        }
        for (int64_t s = 0; s < n; s++) {
            influence[s] += next[s];
            any |= next[s] != 0;
        }
        if (!any) return ASP_OK;
        memcpy(now, next, (size_t)n * sizeof *now);
    }
    return asp_graph_circle(err);
}

asp_status asp_graph_prune_influence(double *influence, const asp_graph *graph, const asp_context *context,
                                     asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_adjacency edges = asp_graph_adjacency(graph);
    const int64_t n = edges.n_nodes, m = edges.start[n];
    double *normalized, *weights, *now, *next;
    asp_arena arena = {0};
    asp_arena_part parts[] = {ASP_PART(normalized, m, 1), ASP_PART(weights, n, 1), ASP_PART(now, n, 1),
                              ASP_PART(next, n, 1)};
    asp_arena_lay_out(&arena, parts, 4);
    if (!asp_arena_commit(&arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the influence of %lld edges", (long long)m);
    asp_arena_wire(&arena, parts, 4);
    weigh(weights, graph);
    asp_status status = normalize_influence(normalized, &edges, NULL, context);
    if (!status) status = propagate(influence, &edges, normalized, weights, now, next, context, err);
    asp_arena_free(&arena);
    return status;
}

asp_status asp_graph_prune_factors(double *factors, const asp_adjacency *graph, const asp_real *value,
                                   const uint8_t *wanted, const uint8_t *blocked, const asp_context *context) {
    ASP_ENVIRONMENT;
    for (int64_t i = 0; i < graph->n_nodes; i++) factors[i] = wanted[i];
    for (int64_t t = graph->n_nodes - 1; t >= 0; t--) {
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        if (blocked[t]) factors[t] = 0;
        for (int64_t i = graph->start[t]; factors[t] != 0 && i < graph->start[t + 1]; i++) {
            const int64_t s = graph->source[i];
            if (isfinite(value[s]) && value[s] != 0)
                factors[s] += (double)graph->weight[i] * factors[t] / (double)value[s];
        }
    }
    return ASP_OK;
}

asp_status asp_graph_prune_within(double *parts, const asp_adjacency *graph, const asp_real *value,
                                  const int64_t *position, const uint8_t *origin, const asp_context *context) {
    ASP_ENVIRONMENT;
    for (int64_t i = 0; i < graph->n_nodes; i++) parts[i] = origin[i] && position[i] >= 0;
    for (int64_t t = 0; t < graph->n_nodes; t++) {
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        if (origin[t] || position[t] < 0 || !isfinite(value[t]) || value[t] == 0) continue;
        double sum = 0;
        for (int64_t i = graph->start[t]; i < graph->start[t + 1]; i++) {
            const int64_t s = graph->source[i];
            if (position[s] == position[t]) sum += (double)graph->weight[i] * parts[s];
        }
        parts[t] = sum / (double)value[t];
    }
    return ASP_OK;
}

/* ---- pruning ------------------------------------------------------------------------------------------ */

static int falling(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* x (n) in falling order: runs sorted one by one, then merged two by two.  other (n) scratch. */
static asp_status sort_falling(double *x, double *other, int64_t n, const asp_context *context) {
    enum { RUN = 1 << 14 };
    double *from = x, *to = other;
    for (int64_t at = 0; at < n; at += RUN) {
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        qsort(x + at, (size_t)asp_min(RUN, n - at), sizeof *x, falling);
    }
    for (int64_t width = RUN; width < n; width *= 2) {
        for (int64_t at = 0; at < n; at += 2 * width) {
            if (asp_parallel_stopped(context)) return ASP_STOPPED;
            const int64_t middle = asp_min(n, at + width), end = asp_min(n, at + 2 * width);
            for (int64_t i = at, j = middle, k = at; k < end; k++)
                to[k] = j == end || (i < middle && from[i] >= from[j]) ? from[i++] : from[j++];
        }
        double *swap = from;
        from = to;
        to = swap;
    }
    if (from != x) memcpy(x, from, (size_t)n * sizeof *x);
    return ASP_OK;
}

/* least = the score down to which the largest scores make up `share` of the sum.  sorted, other (n) scratch. */
static asp_status threshold(double *least, const double *scores, int64_t n, double share, double *sorted, double *other,
                            const asp_context *context) {
    double sum = 0, running = 0;
    memcpy(sorted, scores, (size_t)n * sizeof *sorted);
    const asp_status status = sort_falling(sorted, other, n, context);
    for (int64_t i = 0; i < n; i++) sum += sorted[i];
    *least = n ? sorted[n - 1] : 0;
    for (int64_t i = 0; i < n; i++) {
        running += sorted[i];
        if (!(running / sum >= share)) continue;
        *least = sorted[i];
        break;
    }
    return status;
}

typedef struct {
    const asp_graph *of;
    asp_adjacency graph;
    double node_threshold, edge_threshold;
    uint8_t *nodes;                                   /* (n) */
    uint8_t *edges;                                   /* (m) */
    uint8_t *has_in, *has_out;                        /* (n) */
    double *weights, *influence, *among, *now, *next; /* (n) */
    double *normalized, *scores;                      /* (m) */
    double *sorted, *other;                           /* (n or m, whichever is more) */
    asp_graph_choose_item *items;                     /* (n) */
    int64_t *number;                                  /* (n) of each node among those that are kept */
    asp_arena arena;
    const asp_context *context;
} pruning;

static asp_status allocate_pruning(pruning *p, asp_error *err) {
    const int64_t n = p->graph.n_nodes, m = p->graph.start[n], most = asp_max(n, m);
    asp_arena_part parts[] = {ASP_PART(p->edges, m, 1),   ASP_PART(p->has_in, n, 1),    ASP_PART(p->has_out, n, 1),
                              ASP_PART(p->weights, n, 1), ASP_PART(p->influence, n, 1), ASP_PART(p->among, n, 1),
                              ASP_PART(p->now, n, 1),     ASP_PART(p->next, n, 1),      ASP_PART(p->normalized, m, 1),
                              ASP_PART(p->scores, m, 1),  ASP_PART(p->sorted, most, 1), ASP_PART(p->other, most, 1),
                              ASP_PART(p->items, n, 1),   ASP_PART(p->number, n, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    asp_arena_lay_out(&p->arena, parts, PARTS);
    if (!asp_arena_commit(&p->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "no memory to prune a graph of %lld edges", (long long)m);
    asp_arena_wire(&p->arena, parts, PARTS);
    return ASP_OK;
}

/* Nodes without the edges that they need go, and their edges with them, until none does. */
static asp_status drop_loose(pruning *p) {
    const asp_adjacency *g = &p->graph;
    for (int changed = 1; changed;) {
        changed = 0;
        memset(p->has_in, 0, (size_t)g->n_nodes);
        memset(p->has_out, 0, (size_t)g->n_nodes);
        for (int64_t t = 0; t < g->n_nodes; t++) {
            if (asp_parallel_stopped(p->context)) return ASP_STOPPED;
            for (int64_t i = g->start[t]; i < g->start[t + 1]; i++) {
                p->edges[i] = p->edges[i] && p->nodes[t] && p->nodes[g->source[i]];
                if (!p->edges[i]) continue;
                p->has_in[t] = 1;
                p->has_out[g->source[i]] = 1;
            }
        }
        for (int64_t i = 0; i < g->n_nodes; i++) {
            const int feature = asp_graph_is(p->of, i, ASP_KIND(FEATURE));
            const int loose = !asp_graph_is(p->of, i, ALWAYS) && (!p->has_out[i] || (feature && !p->has_in[i]));
            if (p->nodes[i] && loose) {
                p->nodes[i] = 0;
                changed = 1;
            }
        }
    }
    return ASP_OK;
}

/* cumulative (n): share of the influence that nodes of at least this influence have, equal ones by number. */
static void accumulate(double *cumulative, const pruning *p) {
    const int64_t n = p->graph.n_nodes;
    double sum = 0, above = 0;
    for (int64_t i = 0; i < n; i++) p->items[i] = (asp_graph_choose_item){p->influence[i], i};
    asp_graph_choose_sort(p->items, n);
    for (int64_t i = 0; i < n; i++) sum += p->items[i].score;
    for (int64_t i = 0; i < n; i++) {
        above += p->items[i].score;
        cumulative[p->items[i].number] = sum > 0 ? above / sum : 1;
    }
}

/* Nodes with most influence, and the edges between them. */
static asp_status keep_nodes(pruning *p, asp_error *err) {
    const asp_adjacency *g = &p->graph;
    double least;
    asp_status status = normalize_influence(p->normalized, g, NULL, p->context);
    if (!status) status = propagate(p->influence, g, p->normalized, p->weights, p->now, p->next, p->context, err);
    if (!status)
        status = threshold(&least, p->influence, g->n_nodes, p->node_threshold, p->sorted, p->other, p->context);
    if (status) return status;
    for (int64_t i = 0; i < g->n_nodes; i++) p->nodes[i] = asp_graph_is(p->of, i, ALWAYS) || p->influence[i] >= least;
    for (int64_t t = 0; t < g->n_nodes; t++)
        for (int64_t i = g->start[t]; i < g->start[t + 1]; i++) p->edges[i] = p->nodes[t] && p->nodes[g->source[i]];
    return ASP_OK;
}

/* Of these the edges with most influence. */
static asp_status keep_edges(pruning *p, asp_error *err) {
    const asp_adjacency *g = &p->graph;
    const int64_t m = g->start[g->n_nodes];
    double least;
    asp_status status = normalize_influence(p->normalized, g, p->edges, p->context);
    if (!status) status = propagate(p->among, g, p->normalized, p->weights, p->now, p->next, p->context, err);
    if (status) return status;
    for (int64_t t = 0; t < g->n_nodes; t++)
        for (int64_t i = g->start[t]; i < g->start[t + 1]; i++)
            p->scores[i] = p->normalized[i] * (p->among[t] + p->weights[t]);
    status = threshold(&least, p->scores, m, p->edge_threshold, p->sorted, p->other, p->context);
    for (int64_t i = 0; !status && i < m; i++) p->edges[i] = p->edges[i] && p->scores[i] >= least;
    return status;
}

/* ---- what is left ----------------------------------------------------------------------------------------- */

static asp_graph_sizes sizes_left(const pruning *p) {
    asp_graph_sizes sizes = p->of->sizes;
    sizes.n_nodes = sizes.n_edges = sizes.n_placed = sizes.n_targets = 0;
    for (int64_t i = 0; i < p->graph.n_nodes; i++) {
        if (!p->nodes[i]) continue;
        p->number[i] = sizes.n_nodes++;
        sizes.n_placed += i < p->of->sizes.n_placed;
        sizes.n_targets += asp_graph_is(p->of, i, ASP_KIND(FEATURE) | ASP_KIND(LOGIT));
    }
    for (int64_t i = 0; i < p->graph.start[p->graph.n_nodes]; i++) sizes.n_edges += p->edges[i];
    return sizes;
}

static void copy_node(asp_graph_arrays *to, int64_t at, const asp_graph_arrays *from, int64_t node) {
    to->kind[at] = from->kind[node];
    to->layer[at] = from->layer[node];
    to->position[at] = from->position[node];
    to->feature[at] = from->feature[node];
    to->value[at] = from->value[node];
    to->probability[at] = from->probability[node];
}

/* The nodes that are kept and the edges to them, with new numbers. */
static void copy_edges(asp_graph_arrays *to, const pruning *p) {
    const asp_graph_arrays *from = &p->of->arrays;
    int64_t n_edges = 0;
    for (int64_t t = 0; t < p->graph.n_nodes; t++) {
        if (!p->nodes[t]) continue;
        copy_node(to, p->number[t], from, t);
        for (int64_t i = from->start[t]; i < from->start[t + 1]; i++) {
            if (!p->edges[i]) continue;
            to->source[n_edges] = (int32_t)p->number[from->source[i]];
            to->weights[n_edges++] = from->weights[i];
        }
        to->start[p->number[t] + 1] = n_edges;
    }
}

static void copy_row(asp_real *to, int64_t at, const asp_real *from, int64_t row, int64_t width) {
    memcpy(to + at * width, from + row * width, (size_t)width * sizeof *to);
}

static asp_status copy_heads(asp_graph_arrays *to, const pruning *p) {
    const asp_graph_sizes *s = &p->of->sizes;
    const asp_graph_arrays *from = &p->of->arrays;
    const int64_t width = s->n_layer * s->n_head * s->d_head;
    for (int64_t i = 0, placed = 0, row = 0, target = 0; i < s->n_nodes; i++) {
        const int is_target = asp_graph_is(p->of, i, ASP_KIND(FEATURE) | ASP_KIND(LOGIT));
        if (asp_parallel_stopped(p->context)) return ASP_STOPPED;
        if (p->nodes[i] && i < s->n_placed) copy_row(to->carried, placed++, from->carried, i, width);
        if (p->nodes[i] && is_target) {
            copy_row(to->received, target, from->received, row, width);
            copy_row(to->received_alone, target++, from->received_alone, row, width);
        }
        row += is_target;
    }
    return ASP_OK;
}

asp_status asp_graph_prune(asp_graph **pruned, uint8_t *nodes, double *cumulative, const asp_graph *graph,
                           double node_threshold, double edge_threshold, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    asp_graph *left = NULL;
    pruning p = {.of = graph,
                 .graph = asp_graph_adjacency(graph),
                 .node_threshold = node_threshold,
                 .edge_threshold = edge_threshold,
                 .nodes = nodes,
                 .context = context};
    asp_status status = allocate_pruning(&p, err);
    if (status) return status;
    weigh(p.weights, graph);
    status = keep_nodes(&p, err);
    if (!status) status = keep_edges(&p, err);
    if (!status) status = drop_loose(&p);
    if (!status) {
        accumulate(cumulative, &p);
        const asp_graph_sizes sizes = sizes_left(&p);
        status = asp_graph_new(&left, &sizes, err);
    }
    if (!status) {
        copy_edges(&left->arrays, &p);
        status = copy_heads(&left->arrays, &p);
    }
    asp_arena_free(&p.arena);
    if (status) asp_graph_free(left);
    else *pruned = left;
    return status;
}

/* ---- scores ------------------------------------------------------------------------------------------------- */

typedef struct {
    const asp_graph *graph;
    unsigned nodes, inputs, errors;       /* kinds: those that count, what explains, what does not */
    double *normalized;                   /* (m) */
    double *weights, *now, *next, *terms; /* (n) */
    double *influence, *share;            /* (n); share of a target's edges that come from errors */
    uint8_t *edges;                       /* (m) */
    asp_arena arena;
} scoring;

/* Sum of the influence of some kinds of nodes. */
static double influence_of(const scoring *s, unsigned kinds) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->graph->sizes.n_nodes; i++)
        if (asp_graph_is(s->graph, i, kinds)) s->terms[n++] = s->influence[i];
    return asp_sum_numbers(s->terms, n);
}

static void share_errors(const scoring *s) {
    const asp_graph_arrays *a = &s->graph->arrays;
    for (int64_t t = 0; t < s->graph->sizes.n_nodes; t++) {
        double whole = 0, wrong = 0;
        for (int64_t i = a->start[t]; i < a->start[t + 1]; i++) {
            const double size = s->edges[i] ? fabs((double)a->weights[i]) : 0;
            whole += size;
            if (asp_graph_is(s->graph, a->source[i], s->errors)) wrong += size;
        }
        s->share[t] = wrong / fmax(whole, ASP_GRAPH_LEAST_SUM);
    }
}

/* replacement and completeness written. */
static asp_status score(scoring *s, double *replacement, double *completeness, const asp_context *context,
                        asp_error *err) {
    const asp_adjacency edges = asp_graph_adjacency(s->graph);
    const int64_t n = edges.n_nodes;
    for (int64_t i = 0; i < edges.start[n]; i++)
        s->edges[i] = (uint8_t)asp_graph_is(s->graph, edges.source[i], s->nodes);
    asp_status status = normalize_influence(s->normalized, &edges, s->edges, context);
    if (!status) status = propagate(s->influence, &edges, s->normalized, s->weights, s->now, s->next, context, err);
    if (status) return status;
    const double explained = influence_of(s, s->inputs), unexplained = influence_of(s, s->errors);
    *replacement = *completeness = NAN;
    if (explained + unexplained == 0) return ASP_OK;
    share_errors(s);
    for (int64_t i = 0; i < n; i++)
        s->terms[i] = asp_graph_is(s->graph, i, s->nodes) ? s->influence[i] + s->weights[i] : 0;
    const double output = asp_sum_numbers(s->terms, n);
    for (int64_t i = 0; i < n; i++) s->terms[i] *= 1 - s->share[i];
    *replacement = explained / (explained + unexplained);
    *completeness = asp_sum_numbers(s->terms, n) / output;
    return ASP_OK;
}

asp_status asp_graph_prune_scores(asp_graph_scores *scores, const asp_graph *graph, const asp_context *context,
                                  asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = graph->sizes.n_nodes, m = graph->sizes.n_edges;
    scoring s = {.graph = graph, .nodes = IN_CIRCUIT_TRACER, .inputs = ASP_KIND(TOKEN), .errors = ASP_KIND(ERROR)};
    asp_arena_part parts[] = {ASP_PART(s.normalized, m, 1), ASP_PART(s.weights, n, 1), ASP_PART(s.now, n, 1),
                              ASP_PART(s.next, n, 1),       ASP_PART(s.terms, n, 1),   ASP_PART(s.influence, n, 1),
                              ASP_PART(s.share, n, 1),      ASP_PART(s.edges, m, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    asp_arena_lay_out(&s.arena, parts, PARTS);
    if (!asp_arena_commit(&s.arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the scores of a graph of %lld edges", (long long)m);
    asp_arena_wire(&s.arena, parts, PARTS);
    weigh(s.weights, graph);
    asp_status status = score(&s, &scores->replacement, &scores->completeness, context, err);
    s.nodes = ALL;
    s.inputs = ASP_KIND(TOKEN) | ASP_KIND(POSITION) | ASP_KIND(BIAS);
    s.errors = ASP_KIND(ERROR) | ASP_KIND(OTHER);
    if (!status) status = score(&s, &scores->replacement_closed, &scores->completeness_closed, context, err);
    asp_arena_free(&s.arena);
    return status;
}
