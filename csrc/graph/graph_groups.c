/* graph_groups.c: influence of nodes through features, what drives a feature, and what flows between groups. */
#include <math.h>
#include <string.h>

#include "graph/graph.h"

static asp_status check_activations(const asp_graph *g, asp_error *err) {
    for (int64_t i = 0; i < g->sizes.n_nodes && g->arrays.kind[i] == ASP_GRAPH_FEATURE; i++)
        if (isnan(g->arrays.value[i]))
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "this graph has no activations, so effects through features cannot be computed");
    return ASP_OK;
}

/* factors (n) written: effect of one unit of a node's pre-activation on the logits.  flags (2,n) scratch. */
static asp_status factors_of(double *factors, const asp_graph *g, uint8_t *flags, const asp_context *context,
                             asp_error *err) {
    const asp_adjacency edges = asp_graph_adjacency(g);
    const int64_t n = g->sizes.n_nodes;
    const asp_status status = check_activations(g, err);
    if (status) return status;
    for (int64_t i = 0; i < n; i++) flags[i] = g->arrays.kind[i] == ASP_GRAPH_LOGIT;
    memset(flags + n, 0, (size_t)n);
    return asp_graph_prune_factors(factors, &edges, g->arrays.value, flags, flags + n, context);
}

asp_status asp_graph_groups_influence(double *influence, const asp_graph *graph, const asp_context *context,
                                      asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = graph->sizes.n_nodes;
    const asp_graph_arrays *a = &graph->arrays;
    double *factors;
    uint8_t *flags;
    asp_arena arena = {0};
    asp_arena_part parts[] = {ASP_PART(factors, n, 1), ASP_PART(flags, n, 2)};
    asp_arena_lay_out(&arena, parts, 2);
    if (!asp_arena_commit(&arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the influence of %lld nodes", (long long)n);
    asp_arena_wire(&arena, parts, 2);
    asp_status status = factors_of(factors, graph, flags, context, err);
    memset(influence, 0, (size_t)n * sizeof *influence);
    for (int64_t t = 0; !status && t < n; t++) {
        for (int64_t i = a->start[t]; i < a->start[t + 1]; i++)
            influence[a->source[i]] += (double)a->weights[i] * factors[t];
        if (asp_parallel_stopped(context)) status = ASP_STOPPED;
    }
    asp_arena_free(&arena);
    return status;
}

/* ---- drivers ------------------------------------------------------------------------------------------- */

/* out (n_tokens) = sum of weight times what each source passes on, per unit of its own value. */
static void drive(double *out, const asp_graph *g, int64_t feature, const double *drivers, int64_t first_token,
                  int64_t n_tokens) {
    const asp_graph_arrays *a = &g->arrays;
    memset(out, 0, (size_t)n_tokens * sizeof *out);
    for (int64_t i = a->start[feature]; i < a->start[feature + 1]; i++) {
        const int64_t s = a->source[i];
        const double weight = (double)a->weights[i];
        if (a->kind[s] == ASP_GRAPH_TOKEN) out[s - first_token] += weight;
        if (a->kind[s] != ASP_GRAPH_FEATURE || s >= feature) continue;
        const double *from = drivers + s * n_tokens, value = (double)a->value[s];
        for (int64_t k = 0; k < n_tokens; k++) out[k] += weight * (from[k] / value);
    }
}

asp_status asp_graph_groups_drivers(double *drivers, const asp_graph *graph, const asp_context *context,
                                    asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n_features = asp_graph_count(graph, ASP_KIND(FEATURE));
    const int64_t n_tokens = asp_graph_count(graph, ASP_KIND(TOKEN));
    const int64_t first_token = n_features + asp_graph_count(graph, ASP_KIND(ERROR));
    asp_status status = check_activations(graph, err);
    for (int64_t f = 0; !status && f < n_features; f++) { /* by layer: edges come from nodes before it */
        drive(drivers + f * n_tokens, graph, f, drivers, first_token, n_tokens);
        if (asp_parallel_stopped(context)) status = ASP_STOPPED;
    }
    return status;
}

/* ---- flows ---------------------------------------------------------------------------------------------- */

static asp_status check_groups(const asp_graph *g, const int64_t *group, int64_t n_groups, asp_error *err) {
    for (int64_t i = 0; i < g->sizes.n_nodes; i++)
        if (group[i] < -1 || group[i] >= n_groups)
            return asp_fail(err, ASP_BAD_INDEX, "node %lld is in group %lld, there are %lld", (long long)i,
                            (long long)group[i], (long long)n_groups);
    return ASP_OK;
}

/* What the sources of a target send to groups by way of it; reach (n,G) added to. */
static void send(double *reach, const asp_graph *g, int64_t t, int64_t group, double factor, int64_t n_groups) {
    const asp_graph_arrays *a = &g->arrays;
    for (int64_t i = a->start[t]; i < a->start[t + 1]; i++) {
        double *to = reach + a->source[i] * n_groups;
        const double weight = (double)a->weights[i];
        if (group >= 0) to[group] += weight * factor;
        for (int64_t k = 0; group < 0 && k < n_groups; k++)
            to[k] += weight * (reach[t * n_groups + k] / (double)a->value[t]);
    }
}

asp_status asp_graph_groups_flows(double *flows, const asp_graph *graph, const int64_t *group, int64_t n_groups,
                                  const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = graph->sizes.n_nodes;
    double *factors, *reach;
    uint8_t *flags;
    asp_arena arena = {0};
    asp_status status = check_groups(graph, group, n_groups, err);
    if (status) return status;
    for (int64_t i = 0; i < n; i++)
        if (graph->arrays.kind[i] == ASP_GRAPH_LOGIT && group[i] < 0)
            return asp_fail(err, ASP_BAD_ARGUMENT, "flows need a group that holds the logits");
    asp_arena_part parts[] = {ASP_PART(factors, n, 1), ASP_PART(reach, n, n_groups), ASP_PART(flags, n, 2)};
    asp_arena_lay_out(&arena, parts, 3);
    if (!asp_arena_commit(&arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for what flows from %lld nodes to %lld groups", (long long)n,
                        (long long)n_groups);
    asp_arena_wire(&arena, parts, 3);
    status = factors_of(factors, graph, flags, context, err);
    for (int64_t t = n - 1; !status && t >= 0; t--) {
        send(reach, graph, t, group[t], factors[t], n_groups);
        if (asp_parallel_stopped(context)) status = ASP_STOPPED;
    }
    memset(flows, 0, (size_t)(n_groups * n_groups) * sizeof *flows);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; group[i] >= 0 && k < n_groups; k++)
            if (k != group[i]) flows[group[i] * n_groups + k] += reach[i * n_groups + k];
    asp_arena_free(&arena);
    return status;
}

/* ---- layers ---------------------------------------------------------------------------------------------- */

/* layers (2) written: first and last of the fewest neighbouring layers that have `most`; -1 if none have. */
static void main_layers(int64_t *layers, const double *profile, int64_t n_layer, double most) {
    layers[0] = layers[1] = -1;
    for (int64_t n = 1; n <= n_layer; n++)
        for (int64_t first = 0; first + n <= n_layer; first++)
            if (asp_sum_numbers(profile + first, n) >= most) {
                layers[0] = first;
                layers[1] = first + n - 1;
                return;
            }
}

static void normalize_flow(double *profile, int64_t n_layer) {
    const double sum = asp_sum_numbers(profile, n_layer);
    for (int64_t l = 0; l < n_layer; l++) profile[l] /= sum == 0 ? 1 : sum;
}

asp_status asp_graph_groups_profile(double *profile, int64_t *layers, const asp_graph *graph, int64_t n_layer,
                                    const int64_t *group, int64_t n_groups, double most, const asp_context *context,
                                    asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = graph->sizes.n_nodes;
    const asp_graph_arrays *a = &graph->arrays;
    asp_status status = check_groups(graph, group, n_groups, err);
    if (status) return status;
    double *influence = asp_allocate(n + 1, sizeof *influence);
    if (!influence) return asp_fail(err, ASP_NO_MEMORY, "no memory for the influence of %lld nodes", (long long)n);
    status = asp_graph_groups_influence(influence, graph, context, err);
    memset(profile, 0, (size_t)(n_groups * n_layer) * sizeof *profile);
    for (int64_t i = 0; !status && i < n; i++)
        if (group[i] >= 0 && a->kind[i] == ASP_GRAPH_FEATURE && a->layer[i] >= 0 && a->layer[i] < n_layer)
            profile[group[i] * n_layer + a->layer[i]] += fabs(influence[i]);
    asp_release(influence);
    for (int64_t k = 0; !status && k < n_groups; k++) {
        normalize_flow(profile + k * n_layer, n_layer);
        main_layers(layers + 2 * k, profile + k * n_layer, n_layer, most);
    }
    for (int64_t i = 0; !status && i < n; i++)
        if (group[i] >= 0 && a->kind[i] == ASP_GRAPH_LOGIT) {
            int64_t *mine = layers + 2 * group[i];
            mine[0] = mine[0] < 0 ? n_layer : mine[0];
            mine[1] = n_layer;
        }
    return status;
}
