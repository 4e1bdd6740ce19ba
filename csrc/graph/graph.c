/* graph.c: an attribution graph as an object: its arrays in one arena, and whether they fit each other. */
#include "graph/graph.h"

/* Lays the arrays out; with `commit` allocates them too, zeroed: 0 if that fails. */
static int place(asp_graph *g, int commit) {
    const asp_graph_sizes *s = &g->sizes;
    asp_graph_arrays *a = &g->arrays;
    int64_t units, heads;
    if (!asp_multiply(s->n_layer, s->n_head, &units) || !asp_multiply(units, s->d_head, &heads)) heads = -1;
    asp_arena_part parts[] = {
        ASP_PART(a->kind, s->n_nodes, 1),           ASP_PART(a->layer, s->n_nodes, 1),
        ASP_PART(a->position, s->n_nodes, 1),       ASP_PART(a->feature, s->n_nodes, 1),
        ASP_PART(a->value, s->n_nodes, 1),          ASP_PART(a->probability, s->n_nodes, 1),
        ASP_PART(a->start, s->n_nodes + 1, 1),      ASP_PART(a->source, s->n_edges, 1),
        ASP_PART(a->weights, s->n_edges, 1),        ASP_PART(a->carried, s->n_placed, heads),
        ASP_PART(a->received, s->n_targets, heads), ASP_PART(a->received_alone, s->n_targets, heads)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    asp_arena_lay_out(&g->arena, parts, PARTS);
    if (!commit) return 1;
    if (!asp_arena_commit(&g->arena, 1)) return 0;
    asp_arena_wire(&g->arena, parts, PARTS);
    return 1;
}

int64_t asp_graph_bytes_of(const asp_graph_sizes *sizes) {
    asp_graph graph = {.sizes = *sizes};
    place(&graph, 0);
    return graph.arena.overflow ? INT64_MAX : graph.arena.bytes;
}

asp_status asp_graph_new(asp_graph **graph, const asp_graph_sizes *sizes, asp_error *err) {
    if (sizes->n_nodes < 0 || sizes->n_nodes >= INT32_MAX || sizes->n_placed > sizes->n_nodes ||
        sizes->n_targets > sizes->n_nodes)
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "a graph cannot have %lld nodes, %lld of them with a place and %lld with edges to them",
                        (long long)sizes->n_nodes, (long long)sizes->n_placed, (long long)sizes->n_targets);
    asp_graph *g = asp_allocate(1, sizeof *g);
    if (g) g->sizes = *sizes;
    if (!g || !place(g, 1)) {
        asp_graph_free(g);
        return asp_fail(err, ASP_NO_MEMORY, "no memory for a graph of %lld nodes and %lld edges, which takes %s",
                        (long long)sizes->n_nodes, (long long)sizes->n_edges,
                        asp_fail_size((char[32]){0}, (double)asp_graph_bytes_of(sizes)));
    }
    *graph = g;
    return ASP_OK;
}

void asp_graph_free(asp_graph *graph) {
    if (!graph) return;
    asp_arena_free(&graph->arena);
    asp_release(graph);
}

const asp_graph_sizes *asp_graph_get_sizes(const asp_graph *graph) { return &graph->sizes; }
const asp_graph_arrays *asp_graph_get_arrays(const asp_graph *graph) { return &graph->arrays; }
int64_t asp_graph_bytes(const asp_graph *graph) { return graph->arena.bytes; }

asp_adjacency asp_graph_adjacency(const asp_graph *g) {
    return (asp_adjacency){g->sizes.n_nodes, g->arrays.start, g->arrays.source, g->arrays.weights};
}

int64_t asp_graph_count(const asp_graph *graph, unsigned kinds) {
    int64_t n = 0;
    for (int64_t i = 0; i < graph->sizes.n_nodes; i++) n += asp_graph_is(graph, i, kinds);
    return n;
}

asp_status asp_graph_circle(asp_error *err) {
    return asp_fail(err, ASP_BAD_ARGUMENT, "the edges of this graph run in a circle");
}

/* ---- arrays from elsewhere ------------------------------------------------------------------------ */

static asp_status check_kinds(const asp_graph *g, asp_error *err) {
    const asp_graph_sizes *s = &g->sizes;
    for (int64_t i = 0; i < s->n_nodes; i++) {
        const int32_t kind = g->arrays.kind[i], before = i ? g->arrays.kind[i - 1] : 0;
        if (kind < before || kind >= ASP_N_GRAPH_KINDS)
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "nodes must be in the order of their kinds, node %lld (kind %d after %d) is not",
                            (long long)i, kind, before);
    }
    const unsigned placed = ASP_KIND(FEATURE) | ASP_KIND(ERROR) | ASP_KIND(TOKEN) | ASP_KIND(POSITION);
    const int64_t n_placed = asp_graph_count(g, placed);
    const int64_t n_targets = asp_graph_count(g, ASP_KIND(FEATURE) | ASP_KIND(LOGIT));
    if (n_placed == s->n_placed && n_targets == s->n_targets) return ASP_OK;
    return asp_fail(err, ASP_BAD_ARGUMENT,
                    "carried must have a row for each of the %lld nodes before the bias, and received for each of the "
                    "%lld features and logits; they have %lld and %lld",
                    (long long)n_placed, (long long)n_targets, (long long)s->n_placed, (long long)s->n_targets);
}

asp_status asp_graph_check(const asp_graph *g, asp_error *err) {
    const int64_t n = g->sizes.n_nodes, m = g->sizes.n_edges;
    const int64_t *start = g->arrays.start;
    int good = start[0] == 0 && start[n] == m;
    for (int64_t t = 0; good && t < n; t++) good = start[t] <= start[t + 1] && start[t + 1] <= m;
    if (!good)
        return asp_fail(err, ASP_BAD_ARGUMENT, "start must rise from 0 to the number of edges, %lld", (long long)m);
    for (int64_t i = 0; i < m; i++)
        if (g->arrays.source[i] < 0 || g->arrays.source[i] >= n)
            return asp_fail(err, ASP_BAD_ARGUMENT, "edge %lld comes from node %d, the graph has %lld", (long long)i,
                            g->arrays.source[i], (long long)n);
    return check_kinds(g, err);
}
