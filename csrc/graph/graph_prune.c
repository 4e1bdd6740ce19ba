/* graph_prune.c: influence of nodes and edges on the logits, and what is left when the rest goes.
 * Definitions: circuit-tracer (prune_graph, compute_node_influence, compute_edge_influence). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph.h"

static const double LEAST_SUM = 1e-10;

/* normalized (m) = |weight| over its row's sum; edges not in `kept` (NULL: all are) count as 0. */
static asp_status normalize(double *normalized, const asp_adjacency *graph, const uint8_t *kept,
                            const asp_context *context) {
    for (int64_t t = 0; t < graph->n_nodes; t++) {
        double sum = 0;
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        for (int64_t i = graph->start[t]; i < graph->start[t + 1]; i++) {
            normalized[i] = kept && !kept[i] ? 0 : fabs((double)graph->weight[i]);
            sum += normalized[i];
        }
        for (int64_t i = graph->start[t]; i < graph->start[t + 1]; i++) normalized[i] /= fmax(sum, LEAST_SUM);
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
    return asp_fail(err, ASP_BAD_ARGUMENT, "the edges of this graph run in a circle");
}

asp_status asp_graph_prune_influence(double *influence, const asp_adjacency *graph, const double *weights,
                                     const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = graph->n_nodes, m = graph->start[n];
    double *work = asp_allocate(m + 2 * n + 1, sizeof *work);
    if (!work) return asp_fail(err, ASP_NO_MEMORY, "no memory for the influence of %lld edges", (long long)m);
    asp_status status = normalize(work, graph, NULL, context);
    if (!status) status = propagate(influence, graph, work, weights, work + m, work + m + n, context, err);
    asp_release(work);
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
    const asp_adjacency *graph;
    const asp_prune_options *options;
    uint8_t *nodes, *edges, *has_in, *has_out;
    double *normalized, *influence, *scores, *sorted, *other, *now, *next;
    const asp_context *context;
} pruning;

/* Nodes without the edges that they need go, and their edges with them, until none does. */
static asp_status drop_loose(pruning *p) {
    const asp_adjacency *g = p->graph;
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
            const int loose = !p->options->always[i] && (!p->has_out[i] || (p->options->feature[i] && !p->has_in[i]));
            if (p->nodes[i] && loose) {
                p->nodes[i] = 0;
                changed = 1;
            }
        }
    }
    return ASP_OK;
}

typedef struct {
    double influence, number;
} ranked;

static int by_rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->influence != y->influence) return (x->influence < y->influence) - (x->influence > y->influence);
    return (x->number > y->number) - (x->number < y->number);
}

/* cumulative (n): share of the influence that nodes of at least this influence have, equal ones by number. */
static void accumulate(double *cumulative, const pruning *p) {
    const int64_t n = p->graph->n_nodes;
    ranked *nodes = (ranked *)p->now; /* now and next lie behind each other */
    double sum = 0, above = 0;
    for (int64_t i = 0; i < n; i++) nodes[i] = (ranked){p->influence[i], (double)i};
    qsort(nodes, (size_t)n, sizeof *nodes, by_rank);
    for (int64_t i = 0; i < n; i++) sum += nodes[i].influence;
    for (int64_t i = 0; i < n; i++) {
        above += nodes[i].influence;
        cumulative[(int64_t)nodes[i].number] = sum > 0 ? above / sum : 1;
    }
}

/* Nodes with most influence, and the edges between them. */
static asp_status keep_nodes(pruning *p, asp_error *err) {
    const asp_adjacency *g = p->graph;
    double least;
    asp_status status = normalize(p->normalized, g, NULL, p->context);
    if (!status)
        status = propagate(p->influence, g, p->normalized, p->options->weights, p->now, p->next, p->context, err);
    if (!status)
        status =
            threshold(&least, p->influence, g->n_nodes, p->options->node_threshold, p->sorted, p->other, p->context);
    if (status) return status;
    for (int64_t i = 0; i < g->n_nodes; i++) p->nodes[i] = p->options->always[i] || p->influence[i] >= least;
    for (int64_t t = 0; t < g->n_nodes; t++)
        for (int64_t i = g->start[t]; i < g->start[t + 1]; i++) p->edges[i] = p->nodes[t] && p->nodes[g->source[i]];
    return ASP_OK;
}

/* Of these the edges with most influence.  among (n) scratch. */
static asp_status keep_edges(pruning *p, double *among, asp_error *err) {
    const asp_adjacency *g = p->graph;
    const int64_t m = g->start[g->n_nodes];
    double least;
    asp_status status = normalize(p->normalized, g, p->edges, p->context);
    if (!status) status = propagate(among, g, p->normalized, p->options->weights, p->now, p->next, p->context, err);
    if (status) return status;
    for (int64_t t = 0; t < g->n_nodes; t++)
        for (int64_t i = g->start[t]; i < g->start[t + 1]; i++)
            p->scores[i] = p->normalized[i] * (among[t] + p->options->weights[t]);
    status = threshold(&least, p->scores, m, p->options->edge_threshold, p->sorted, p->other, p->context);
    for (int64_t i = 0; !status && i < m; i++) p->edges[i] = p->edges[i] && p->scores[i] >= least;
    return status;
}

asp_status asp_graph_prune(uint8_t *nodes, uint8_t *edges, double *cumulative, const asp_adjacency *graph,
                           const asp_prune_options *options, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = graph->n_nodes, m = graph->start[n], most = asp_max(n, m);
    double *work = asp_allocate(2 * m + 2 * most + 4 * n + 1, sizeof *work);
    uint8_t *flags = asp_allocate(2 * n + 1, 1);
    asp_status status = ASP_NO_MEMORY;
    if (work && flags) {
        pruning p = {.graph = graph,
                     .options = options,
                     .nodes = nodes,
                     .edges = edges,
                     .has_in = flags,
                     .has_out = flags + n,
                     .normalized = work,
                     .scores = work + m,
                     .influence = work + 2 * m + n,
                     .now = work + 2 * m + 2 * n,
                     .next = work + 2 * m + 3 * n,
                     .sorted = work + 2 * m + 4 * n,
                     .other = work + 2 * m + 4 * n + most,
                     .context = context};
        status = keep_nodes(&p, err);
        if (!status) status = keep_edges(&p, p.scores + m, err);
        if (!status) status = drop_loose(&p);
        if (!status) accumulate(cumulative, &p);
    } else {
        asp_fail(err, ASP_NO_MEMORY, "no memory to prune a graph of %lld edges", (long long)m);
    }
    asp_release(work);
    asp_release(flags);
    return status;
}
