/* driver_build.c: attribution graphs as objects: made, pruned, and asked about groups of nodes. */
#include <math.h>
#include <string.h>

#include "driver.h"

enum { E = 24, L = 2, MOST_VOCAB = 64, FEATURES = 10, FIXED = (L + 2) * T, MOST_WRITES = FIXED + 2 * FEATURES };

static void add_graph(uint64_t *digest, const asp_graph *graph) {
    const asp_graph_sizes *s = asp_graph_get_sizes(graph);
    const asp_graph_arrays *a = asp_graph_get_arrays(graph);
    const int64_t heads = s->n_layer * s->n_head * s->d_head;
    for (int64_t i = 0; i < s->n_nodes; i++) {
        const int32_t node[] = {a->kind[i], a->layer[i], a->position[i], a->feature[i], isnan(a->value[i]) != 0};
        add_bytes(digest, node, sizeof node);
        if (!isnan(a->value[i])) add_reals(digest, a->value + i, 1);
    }
    add_bytes(digest, a->start, (s->n_nodes + 1) * (int64_t)sizeof *a->start);
    add_bytes(digest, a->source, s->n_edges * (int64_t)sizeof *a->source);
    add_reals(digest, a->weights, s->n_edges);
    add_reals(digest, a->carried, s->n_placed * heads);
    add_reals(digest, a->received, s->n_targets * heads);
    add_reals(digest, a->received_alone, s->n_targets * heads);
}

/* ---- made from a run ----------------------------------------------------------------------------------- */

typedef struct {
    int32_t layer[FEATURES], position[FEATURES], number[FEATURES], point[FEATURES];
    int32_t logit_point[3], logit_position[3], logit_number[3];
    int32_t write_layer[MOST_WRITES], write_position[MOST_WRITES], write_source[MOST_WRITES];
    int64_t rows[MOST_WRITES], tokens[MOST_VOCAB];
    uint8_t reading[FEATURES], logit_reading[3];
    asp_real vectors[FEATURES * E], logit_vectors[3 * E], writes[MOST_WRITES * E], logits[MOST_VOCAB], value[FEATURES];
    double constant[FEATURES], values[FEATURES], logit_constant[3], logit_value[3], probability[MOST_VOCAB], p[3];
    asp_held_run held;
    asp_writes all;
    asp_graph_inputs inputs;
} ingredients;

/* Features of both layers, which write to all later MLP outputs, and their places among the writes. */
static asp_status add_features(ingredients *g, const fixture *f, asp_error *err) {
    const int64_t n_outputs[L] = {2, 1};
    int64_t n_writes;
    for (int i = 0; i < FEATURES; i++) {
        g->layer[i] = i / 6;
        g->position[i] = i % T;
        g->number[i] = 3 * i;
        g->point[i] = 2 * g->layer[i] + 1;
        g->reading[i] = ASP_READ_NORMALIZED;
        g->constant[i] = 0.25 * i;
    }
    fill(g->value, FEATURES, 1, 81);
    for (int i = 0; i < FEATURES; i++) g->values[i] = (double)g->value[i];
    fill(g->vectors, FEATURES * E, 1, 82);
    fill(g->writes, MOST_WRITES * E, 1, 83);
    const asp_graph_found found = {L, T, FEATURES, g->layer, g->position, n_outputs};
    asp_status status = asp_graph_sources_count(&n_writes, &found, err);
    if (!status)
        status = asp_graph_sources_order(g->write_layer, g->write_position, g->write_source, g->rows, &found, err);
    g->held = (asp_held_run){.run = f->last};
    g->all = (asp_writes){FEATURES + FIXED, n_writes, g->write_layer, g->write_position, g->write_source, g->writes};
    g->inputs.features = (asp_graph_targets){{FEATURES, g->point, g->position, g->reading, g->vectors},
                                             g->constant,
                                             g->values,
                                             g->number};
    return status;
}

/* The most likely tokens, or with `wrong` one against another. */
static asp_status add_logits(ingredients *g, const fixture *f, int wrong, const asp_context *context, asp_error *err) {
    const int64_t v = asp_model_config(f->gated)->n_vocab, other[] = {1};
    int64_t n;
    fill(g->logits, v, 2, 84);
    asp_status status = asp_graph_logits_likely(g->probability, g->tokens, &n, g->logits, v, 3, 0.999, context, err);
    if (status) return status;
    g->tokens[0] = wrong && g->tokens[0] == 1 ? 2 : g->tokens[0];
    const asp_graph_outputs outputs = {g->logits, g->tokens, other, n, wrong};
    status =
        asp_graph_logits_reads(g->logit_vectors, g->logit_constant, g->logit_value, f->gated, &outputs, context, err);
    n = wrong ? 1 : n;
    for (int i = 0; i < n; i++) {
        g->logit_point[i] = 2 * L;
        g->logit_position[i] = T - 1;
        g->logit_reading[i] = ASP_READ_LAYERNORM;
        g->logit_number[i] = wrong ? -1 : (int32_t)g->tokens[i];
        g->p[i] = wrong ? NAN : g->probability[g->tokens[i]];
    }
    g->inputs.logits = (asp_graph_targets){{n, g->logit_point, g->logit_position, g->logit_reading, g->logit_vectors},
                                           g->logit_constant,
                                           g->logit_value,
                                           g->logit_number};
    return status;
}

static asp_status make(asp_graph **graph, asp_graph_closure *closure, int64_t *chosen, const fixture *f, int64_t most,
                       const asp_context *context, asp_error *err) {
    ingredients g;
    memset(&g, 0, sizeof g);
    asp_status status = add_features(&g, f, err);
    if (!status) status = add_logits(&g, f, most == 4, context, err);
    g.inputs.held = &g.held;
    g.inputs.writes = &g.all;
    g.inputs.probability = g.p;
    g.inputs.tokens = f->tokens;
    g.inputs.most = most;
    g.inputs.max_bytes = most < FEATURES + 1 ? INT64_MAX : 1000; /* refused */
    return status ? status : asp_graph_build(graph, chosen, closure, f->gated, &g.inputs, context, err);
}

/* Stops at the heads. */
static int stop_at_heads(void *state, const char *stage, int64_t done, int64_t total) {
    *(int *)state += 1;
    return done > total || strcmp(stage, "graph heads") == 0;
}

asp_status use_build(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const int64_t most[] = {-1, 0, 4, 9};
    int64_t chosen[FEATURES];
    asp_graph_closure closure;
    asp_graph *graph = NULL;
    for (int i = 0; i < 4; i++) {
        const asp_status status = make(&graph, &closure, chosen, f, most[i], context, err);
        if (status) return status;
        add_graph(digest, graph);
        add_bytes(digest, &closure, sizeof closure);
        for (int64_t k = 0; k < most[i]; k++) add_bytes(digest, chosen + k, sizeof *chosen);
        asp_graph_free(graph);
    }
    int told = 0;
    asp_context stopping = *context;
    stopping.progress = stop_at_heads;
    stopping.progress_state = &told;
    const asp_status stopped = make(&graph, &closure, chosen, f, 4, &stopping, err);
    if (stopped != ASP_STOPPED) return stopped ? stopped : ASP_BAD_STATE;
    if (told < 4) return ASP_BAD_STATE;
    const asp_status refused = make(&graph, &closure, chosen, f, FEATURES + 1, context, err);
    return refused == ASP_NO_MEMORY && strstr(err->text, "max_bytes=1000") ? ASP_OK : refused ? refused : ASP_BAD_STATE;
}

/* ---- made from arrays ------------------------------------------------------------------------------------ */

enum { NODES = 12, N_FEATURES = 5, N_EDGES = 40, UNITS = L * 3, WIDTH = 2 };
static const int32_t kinds[NODES] = {0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 6, 6};

/* Edges from all features before it and from the errors into each feature, and from all into the two logits. */
static asp_status small_graph(asp_graph **graph, asp_error *err) {
    const asp_graph_sizes sizes = {NODES, N_EDGES, 9, N_FEATURES + 2, L, 3, WIDTH};
    const asp_status status = asp_graph_new(graph, &sizes, err);
    if (status) return status;
    const asp_graph_arrays *a = asp_graph_get_arrays(*graph);
    int64_t n = 0;
    fill(a->value, NODES, 1, 62);
    for (int32_t t = 0; t < NODES; t++) {
        const int feature = kinds[t] == ASP_GRAPH_FEATURE, logit = kinds[t] == ASP_GRAPH_LOGIT;
        a->kind[t] = kinds[t];
        a->layer[t] = feature ? t / 3 : logit ? L : -1;
        a->probability[t] = (asp_real)(t == NODES - 1 ? 0.25 : NAN);
        if (!feature && !logit) a->value[t] = (asp_real)NAN;
        for (int32_t s = 0; s < 10; s++)
            if (logit || (feature && (s < t || kinds[s] == ASP_GRAPH_ERROR))) a->source[n++] = s;
        a->start[t + 1] = n;
    }
    fill(a->weights, N_EDGES, 1, 61);
    fill(a->carried, 9 * UNITS * WIDTH, 1, 63);
    fill(a->received, (N_FEATURES + 2) * UNITS * WIDTH, 1, 64);
    return n == N_EDGES ? asp_graph_check(*graph, err) : ASP_BAD_STATE;
}

static asp_status prune(asp_graph *graph, const asp_context *context, uint64_t *digest, asp_error *err) {
    double influence[NODES], cumulative[NODES], factors[NODES], parts[NODES];
    int64_t positions[NODES] = {0};
    uint8_t nodes[NODES], wanted[NODES] = {0}, blocked[NODES] = {1};
    asp_graph_scores scores;
    asp_graph *pruned = NULL;
    const asp_graph_arrays *a = asp_graph_get_arrays(graph);
    const asp_adjacency edges = {NODES, a->start, a->source, a->weights};
    wanted[NODES - 1] = 1;
    asp_status status = asp_graph_prune_influence(influence, graph, context, err);
    if (!status) status = asp_graph_prune_factors(factors, &edges, a->value, wanted, blocked, context);
    if (!status) status = asp_graph_prune_within(parts, &edges, a->value, positions, blocked, context);
    if (!status) status = asp_graph_prune_scores(&scores, graph, context, err);
    if (!status) status = asp_graph_prune(&pruned, nodes, cumulative, graph, 0.8, 0.9, context, err);
    if (status) return status;
    add_graph(digest, pruned);
    add_bytes(digest, influence, sizeof influence);
    add_bytes(digest, factors, sizeof factors);
    add_bytes(digest, parts, sizeof parts);
    add_bytes(digest, &scores, sizeof scores);
    add_bytes(digest, cumulative, sizeof cumulative);
    add_bytes(digest, nodes, sizeof nodes);
    asp_graph_free(pruned);
    return ASP_OK;
}

asp_status use_prune(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    double influence[NODES];
    asp_graph *graph = NULL;
    (void)f;
    asp_status status = small_graph(&graph, err);
    if (!status) status = prune(graph, context, digest, err);
    if (!status) {
        const asp_graph_arrays *a = asp_graph_get_arrays(graph);
        a->source[0] = 1; /* a circle: refused, as long as memory suffices */
        a->source[2] = 0;
        const asp_status refused = asp_graph_prune_influence(influence, graph, context, err);
        status = refused == ASP_BAD_ARGUMENT ? ASP_OK : refused == ASP_NO_MEMORY ? refused : ASP_BAD_STATE;
        a->start[3] = N_EDGES + 1;
        if (!status && !asp_graph_check(graph, err)) status = ASP_BAD_STATE;
    }
    asp_graph_free(graph);
    return status;
}

static asp_status ask_groups(asp_graph *graph, const asp_context *context, uint64_t *digest, asp_error *err) {
    const int64_t group[NODES] = {0, -1, 0, 1, -1, 1, 2, 0, -1, -1, 2, 2};
    double influence[NODES], drivers[N_FEATURES], flows[9], profile[3 * L];
    int64_t layers[6];
    asp_status status = asp_graph_groups_influence(influence, graph, context, err);
    if (!status) status = asp_graph_groups_drivers(drivers, graph, context, err);
    if (!status) status = asp_graph_groups_flows(flows, graph, group, 3, context, err);
    if (!status) status = asp_graph_groups_profile(profile, layers, graph, L, group, 3, 0.8, context, err);
    if (status) return status;
    add_bytes(digest, influence, sizeof influence);
    add_bytes(digest, drivers, sizeof drivers);
    add_bytes(digest, flows, sizeof flows);
    add_bytes(digest, profile, sizeof profile);
    add_bytes(digest, layers, sizeof layers);
    if (asp_graph_groups_flows(flows, graph, group, 2, context, err) != ASP_BAD_INDEX) return ASP_BAD_STATE;
    asp_graph_get_arrays(graph)->value[2] = (asp_real)NAN; /* no activation is known: refused */
    const asp_status refused = asp_graph_groups_drivers(drivers, graph, context, err);
    return refused == ASP_BAD_ARGUMENT ? ASP_OK : ASP_BAD_STATE;
}

asp_status use_groups(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_graph *graph = NULL;
    (void)f;
    asp_status status = small_graph(&graph, err);
    if (!status) status = ask_groups(graph, context, digest, err);
    asp_graph_free(graph);
    return status;
}
