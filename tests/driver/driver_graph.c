/* driver_graph.c: transcoders and attribution graphs. */
#include <string.h>

#include "driver.h"

enum { E = 24, L = 2, H = 3, D = 8, F = 40, MOST_WRITES = 4 * T };

/* ---- transcoders from arrays ------------------------------------------------------------------- */

typedef struct {
    asp_transcoder coder;
    int skip, fail_at, asked;
    asp_real encoder[F * E], bias[F], threshold[F], output_bias[E], skip_matrix[E * E];
    asp_real rows[F * L * E];
} coder_arrays;

static asp_status asked(coder_arrays *c) { return c->fail_at && ++c->asked >= c->fail_at ? ASP_BAD_STATE : ASP_OK; }

static asp_status give_output(void *state, int64_t layer, asp_transcoder_output *output) {
    coder_arrays *c = state;
    *output = (asp_transcoder_output){c->output_bias, c->skip && layer ? c->skip_matrix : NULL};
    return asked(c);
}

static asp_status give_encoder(void *state, int64_t layer, asp_encoder *encoder) {
    coder_arrays *c = state;
    *encoder = (asp_encoder){layer ? F : F / 2, c->encoder, c->bias,
                             c->coder.activation == ASP_TRANSCODER_JUMP_RELU ? c->threshold : NULL};
    return asked(c);
}

static asp_status give_rows(void *state, int64_t layer, const int64_t *features, int64_t n, int64_t n_writes,
                            const asp_real **rows) {
    coder_arrays *c = state;
    (void)features;
    fill(c->rows, n * n_writes * E, 0.3, (uint64_t)layer + 40);
    *rows = c->rows;
    return asked(c);
}

static asp_transcoder_source source_of(coder_arrays *c, asp_transcoder_activation activation, int cross_layer) {
    c->coder = (asp_transcoder){activation, 5, cross_layer, activation == ASP_TRANSCODER_TOPK, NULL};
    fill(c->encoder, F * E, 0.4, 31);
    fill(c->bias, F, 0.1, 32);
    fill(c->output_bias, E, 0.1, 33);
    fill(c->skip_matrix, E * E, 0.05, 34);
    for (int i = 0; i < F; i++) c->threshold[i] = (asp_real)0.2;
    return (asp_transcoder_source){give_output, give_encoder, give_rows, c};
}

static void add_features(uint64_t *digest, const asp_features *features) {
    const asp_feature_list list = asp_features_list(features);
    const asp_array out = asp_features_reconstruction(features);
    add_bytes(digest, list.start, (L + 1) * (int64_t)sizeof *list.start);
    add_bytes(digest, list.feature, list.n * (int64_t)sizeof *list.feature);
    add_bytes(digest, list.layer, list.n * (int64_t)sizeof *list.layer);
    add_bytes(digest, list.position, list.n * (int64_t)sizeof *list.position);
    add_reals(digest, list.activation, list.n);
    add_reals(digest, out.data, out.dims[0] * out.dims[1] * out.dims[2]);
}

asp_status use_features(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const uint8_t absent[L] = {1};
    for (int kind = 0; kind < 7; kind++) {
        coder_arrays arrays = {.skip = kind % 2};
        const asp_transcoder_source source = source_of(&arrays, (asp_transcoder_activation)(kind / 2 % 3), kind % 2);
        if (kind == 6) arrays.coder.absent = absent;
        asp_features *features = NULL;
        asp_status status = asp_features_new(&features, f->gated, T, &arrays.coder, INT64_MAX, err);
        if (!status) status = asp_features_of_run(features, f->clean, T, &source, context, err);
        if (!status) {
            const asp_array error = asp_features_error(features);
            add_features(digest, features);
            add_reals(digest, error.data, error.dims[0] * error.dims[1] * error.dims[2]);
            if (!asp_features_layer(features, &source, f->weights, context, err)) status = ASP_BAD_STATE;
        }
        asp_features_free(features);
        if (status) return status;
    }
    return ASP_OK;
}

/* New features and the run in which they are found, both freed by the caller. */
static asp_status replace_mlps(const fixture *f, coder_arrays *arrays, const asp_feature_changes *changes,
                               asp_features **features, asp_run **run, const asp_context *context, asp_error *err) {
    const asp_transcoder_source source = source_of(arrays, ASP_TRANSCODER_JUMP_RELU, 1);
    asp_status status = asp_features_new(features, f->gated, N, &arrays->coder, INT64_MAX, err);
    asp_feature_substitute state = {*features, &source, NULL, err, changes};
    const asp_mlp_substitute substitute = {0, NULL, asp_features_substitute, &state};
    const asp_run_options options = {.records = 1 << ASP_MLP_OUT,
                                     .logits = ASP_LOGITS_ALL,
                                     .max_bytes = INT64_MAX,
                                     .substitute = &substitute};
    if (!status) status = asp_run_new(run, f->gated, f->tokens, f->offsets, N_SEQUENCES, &options, context, err);
    return status;
}

/* Features that are changed on the way, with those of a layer held; and changes of what is not there. */
static asp_status use_feature_changes(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    static const int32_t layers[] = {0, 0, L - 1}, rows[] = {0, 2, 1}, numbers[] = {1, 0, F - 1}, wrong[] = {1, F, 0};
    static const asp_real factor[] = {0, 1, 2}, added[] = {2, (asp_real)0.5, 0};
    static const uint8_t held_layers[L] = {1};
    coder_arrays arrays = {0};
    asp_features *plain = NULL, *empty = NULL;
    asp_run *run = NULL;
    asp_status status = replace_mlps(f, &arrays, NULL, &plain, &run, context, err);
    asp_run_free(run);
    if (!status) status = asp_features_new(&empty, f->gated, N, &arrays.coder, INT64_MAX, err);
    const asp_feature_changes given[] = {{3, layers, rows, numbers, factor, added, plain, held_layers},
                                         {3, layers, rows, wrong, factor, added, NULL, NULL},
                                         {0, layers, rows, numbers, factor, added, empty, held_layers}};
    static const asp_status expected[] = {ASP_OK, ASP_BAD_INDEX, ASP_BAD_ARGUMENT};
    for (int i = 0; !status && i < 3; i++) {
        asp_features *features = NULL;
        run = NULL;
        status = replace_mlps(f, &arrays, &given[i], &features, &run, context, err);
        if (!status && i == 0) add_run(digest, run);
        if (!status && i == 0) add_features(digest, features);
        asp_run_free(run);
        asp_features_free(features);
        if (status == expected[i]) status = ASP_OK;
        else if (!status) status = ASP_BAD_STATE;
    }
    asp_features_free(plain);
    asp_features_free(empty);
    return status;
}

/* The MLPs replaced in a pass; and passes that end where the source fails. */
asp_status use_replacement(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const uint8_t absent[L] = {1}; /* of the last pass, whose source does not fail */
    for (int fail_at = 0; fail_at < 6; fail_at++) {
        coder_arrays arrays = {.skip = 1, .fail_at = fail_at % 5};
        const asp_transcoder_source source = source_of(&arrays, ASP_TRANSCODER_JUMP_RELU, fail_at < 5);
        asp_features *features = NULL;
        asp_run *run = NULL;
        if (fail_at == 5) arrays.coder.absent = absent;
        asp_status status = asp_features_new(&features, f->gated, N, &arrays.coder, INT64_MAX, err);
        asp_feature_substitute state = {features, &source, NULL, err, NULL};
        const asp_mlp_substitute substitute = {0, arrays.coder.absent, asp_features_substitute, &state};
        const asp_run_options options = {.records = 1 << ASP_MLP_OUT,
                                         .logits = ASP_LOGITS_ALL,
                                         .max_bytes = INT64_MAX,
                                         .substitute = &substitute};
        if (!status) status = asp_run_new(&run, f->gated, f->tokens, f->offsets, N_SEQUENCES, &options, context, err);
        if (!status && fail_at % 5 == 0) add_run(digest, run);
        if (!status && fail_at % 5 == 0) add_features(digest, features);
        asp_run_free(run);
        asp_features_free(features);
        if (fail_at % 5 && status == ASP_BAD_STATE) continue;
        if (status) return status;
        if (fail_at % 5) return ASP_BAD_STATE; /* the source failed, the run did not */
    }
    return use_feature_changes(f, context, digest, err);
}

/* ---- graphs ------------------------------------------------------------------------------------ */

typedef struct {
    int32_t layer[MOST_WRITES], position[MOST_WRITES], source[MOST_WRITES], point[T], target_position[T];
    uint8_t reading[T];
    asp_real writes[MOST_WRITES * E], reads[T * E], bias[L * E], skip[L * E * E];
} graph_arrays;

/* A source at each position, which writes before each layer, and targets of every kind. */
static void graph_open(graph_arrays *g, const fixture *f, asp_held_run *frozen, asp_writes *writes, asp_reads *reads) {
    int n = 0;
    for (int layer = 0; layer <= L; layer++)
        for (int position = 0; position < T; position++, n++) {
            g->layer[n] = layer;
            g->position[n] = g->source[n] = position;
        }
    for (int i = 0; i < T; i++) {
        g->point[i] = i % (2 * L + 1);
        g->target_position[i] = (3 * i) % T;
        g->reading[i] = (uint8_t)(i % 3);
    }
    fill(g->writes, n * E, 1, 51);
    fill(g->reads, T * E, 1, 52);
    fill(g->bias, L * E, 0.1, 53);
    fill(g->skip, L * E * E, 0.05, 54);
    *frozen = (asp_held_run){f->last, g->bias, g->skip, 0};
    *writes = (asp_writes){T, n, g->layer, g->position, g->source, g->writes};
    *reads = (asp_reads){T, g->point, g->target_position, g->reading, g->reads};
}

asp_status use_graph(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    graph_arrays g;
    asp_held_run frozen;
    asp_writes writes;
    asp_reads reads;
    graph_open(&g, f, &frozen, &writes, &reads);
    for (int kind = 0; kind < 3; kind++) {
        asp_real edges[T * T];
        double bias[T];
        frozen.skip_from_resid = kind == 1;
        if (kind == 2) frozen.skip = frozen.output_bias = NULL;
        const asp_status status = asp_graph_edges(edges, bias, f->gated, &frozen, &writes, &reads, context, err);
        if (status) return status;
        add_reals(digest, edges, T * T);
        add_bytes(digest, bias, sizeof bias);
    }
    g.position[0] = T; /* refused */
    asp_real edges[T * T];
    double bias[T];
    return asp_graph_edges(edges, bias, f->gated, &frozen, &writes, &reads, context, err) ? ASP_OK : ASP_BAD_STATE;
}

/* Sums over the pairs of loadings, shares of heads, single entries, and the pairs of a score. */
static asp_status use_between(const asp_loading_inputs *pairs, const asp_context *context, uint64_t *digest,
                              asp_error *err) {
    enum { UNITS = L * H, NODES = 5 };
    asp_real weight[T], values[L * T * H * D], rows[2][D * NODES];
    double factor[T], by_head[UNITS], rest[2], share[UNITS + 2], cumulative[UNITS + 2], whole, total, effects[2];
    double weights[2 * T], moved[UNITS * T], square[NODES * NODES], score, merged[9], bias[D];
    int64_t order[UNITS], entries[] = {1, 2, T - 1, 3, 0, 0, T - 1, 0}, number[T], kept[3];
    const int64_t node[] = {0, 1, 1, 3, 3};
    int32_t position[T];
    uint8_t used[NODES];
    fill(weight, T, 1, 65);
    fill(values, L * T * H * D, 1, 66);
    fill(rows[0], 2 * D * NODES, 1, 67);
    for (int i = 0; i < T; i++) {
        factor[i] = 0.25 * i - 1;
        number[i] = position[i] = i;
    }
    for (int i = 0; i < 2 * T; i++) weights[i] = i < T ? 1 : factor[i - T];
    for (int i = 0; i < D; i++) bias[i] = 0.5 * i;
    const asp_between_inputs between = {*pairs, weight, T, weight, factor};
    const asp_shares_inputs shares[] = {{by_head, rest, UNITS, 2, 0}, {by_head, rest, UNITS, 2, 1}};
    const asp_entry_inputs entry = {L, H, D, T, T, 2, 2, pairs->received, pairs->pattern, values, entries, weights};
    const asp_moved_inputs from = {
        L, H, D, T, T, T, T - 1, pairs->carried, pairs->received, pairs->pattern, position, number, factor};
    const asp_pairs_inputs of = {NODES, NODES, D, {rows[0], rows[1]}, {bias, bias}, node, 2, 0.5};
    asp_status status = asp_graph_heads_total(&total, weight, factor, T, context);
    if (!status) status = asp_graph_heads_between(by_head, rest, rest + 1, &between, context, err);
    for (int i = 0; !status && i < 2; i++) {
        status = asp_graph_heads_shares(share, cumulative, order, &whole, &shares[i], context, err);
        if (!status) add_bytes(digest, order, sizeof order);
        if (!status) add_bytes(digest, share, sizeof share);
    }
    if (!status) status = asp_graph_heads_entries(effects, &entry, context);
    if (!status) status = asp_graph_heads_moved(moved, &from, context, err);
    if (!status) status = asp_graph_pairs(square, used, &score, &of, context, err);
    if (!status) status = asp_graph_pairs_largest(kept, merged, square, NODES, 2, 3, context, err);
    if (status) return status;
    add_bytes(digest, by_head, sizeof by_head);
    add_bytes(digest, rest, sizeof rest);
    add_bytes(digest, effects, sizeof effects);
    add_bytes(digest, moved, sizeof moved);
    add_bytes(digest, square, sizeof square);
    add_bytes(digest, kept, sizeof kept);
    add_bytes(digest, merged, sizeof merged);
    double all = 0;
    for (int i = 0; i < 9; i++) all += merged[i];
    const double error = all - score, off = cumulative[UNITS + 1] - 1;
    return error * error < 1e-20 && off * off < 1e-20 && used[2] && !used[4] ? ASP_OK : ASP_BAD_STATE;
}

asp_status use_graph_heads(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    graph_arrays g;
    asp_held_run frozen;
    asp_writes writes;
    asp_reads reads;
    graph_open(&g, f, &frozen, &writes, &reads);
    asp_real carried[T * L * H * D], received[T * L * H * D], alone[T * L * H * D];
    int64_t row[T];
    for (int i = 0; i < T; i++) row[i] = i == 3 ? -1 : i > 3 ? i - 1 : i; /* source 3 has none */
    memset(carried, 0, sizeof carried);
    asp_status status = asp_graph_heads_sources(carried, f->gated, &frozen, &writes, row, T - 1, context, err);
    if (!status) status = asp_graph_heads_targets(received, f->gated, &frozen, &reads, 0, context, err);
    if (!status) status = asp_graph_heads_targets(alone, f->gated, &frozen, &reads, 1, context, err);
    if (status) return status;
    int64_t pairs[2 * T], places[2 * T];
    double factor[T], loadings[T * L * H];
    for (int i = 0; i < T; i++) {
        pairs[2 * i] = places[2 * i] = i < g.target_position[i] ? i : g.target_position[i];
        pairs[2 * i + 1] = i;
        places[2 * i + 1] = g.target_position[i];
        factor[i] = 0.5 + i;
    }
    const asp_loading_inputs in = {L,        H,      D,
                                   T,        T,      carried,
                                   received, alone,  asp_run_array(f->last, ASP_PATTERN).data,
                                   pairs,    places, factor};
    status = asp_graph_heads_loadings(loadings, &in, context);
    if (!status) status = use_between(&in, context, digest, err);
    if (status) return status;
    add_reals(digest, carried, T * L * H * D);
    add_reals(digest, received, T * L * H * D);
    add_reals(digest, alone, T * L * H * D);
    add_bytes(digest, loadings, sizeof loadings);
    return ASP_OK;
}

/* Three steps of the layers together, from weights that are written here. */
static asp_status use_coders(const asp_transcoder_step_options *options, int64_t n_layers, const asp_context *context,
                             uint64_t *digest, asp_error *err) {
    const int64_t counts[] = {F, F - 1};
    asp_real x[2 * T * E], y[2 * T * E], w_enc[F * E], b_enc[F], w_dec[2 * F * E], b_dec[E], threshold[F];
    asp_real *const out[] = {w_enc, b_enc, w_dec, b_dec, threshold};
    asp_transcoder_trainer *coder = NULL;
    asp_transcoder_step_result results[2] = {0};
    fill(x, n_layers * T * E, 1, 71);
    fill(y, n_layers * T * E, 1, 72);
    asp_status status = asp_transcoder_trainer_new(&coder, n_layers, E, E, counts, err);
    for (int64_t l = 0; !status && l < n_layers; l++)
        for (int i = 0; i < ASP_TRANSCODER_N_WEIGHTS; i++) {
            const asp_transcoder_weight *w = asp_transcoder_trainer_weights(coder, l) + i;
            fill(asp_transcoder_trainer_block(coder, l, 0) + w->offset, w->size, 0.2, (uint64_t)(i + 5 * l) + 73);
        }
    for (int step = 0; !status && step < 3; step++)
        status = asp_transcoder_trainer_step(coder, x, y, T, options, context, results, err);
    for (int64_t l = 0; !status && l < n_layers; l++) {
        for (int which = 0; which < 4; which++)
            for (int i = 0; i < ASP_TRANSCODER_N_WEIGHTS; i++) {
                const asp_transcoder_weight *w = asp_transcoder_trainer_weights(coder, l) + i;
                add_reals(digest, asp_transcoder_trainer_block(coder, l, which) + w->offset, w->size);
            }
        asp_transcoder_trainer_scaled(coder, l, options->output_scale, out);
        add_reals(digest, w_dec, counts[l] * (n_layers - l) * E);
        add_bytes(digest, &results[l].loss, sizeof results[l].loss);
    }
    asp_transcoder_trainer_free(coder);
    return status;
}

asp_status use_coder_training(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)f;
    static const double sparsity[] = {0.05, 0.1}, output_scale[] = {2, 0.5};
    asp_status status = ASP_OK;
    for (int kind = 0; !status && kind < 6; kind++) {
        const asp_transcoder_step_options options = {.activation = (asp_transcoder_activation)(kind % 3),
                                                     .top_k = 3,
                                                     .sparsity = sparsity,
                                                     .sharpness = 2,
                                                     .bandwidth = 0.5,
                                                     .dead_after = 1,
                                                     .aux_k = 4,
                                                     .aux_weight = 0.25,
                                                     .output_scale = output_scale,
                                                     .lr = 1e-2,
                                                     .beta1 = 0.9,
                                                     .beta2 = 0.99,
                                                     .eps = 1e-8,
                                                     .clip = 1};
        status = use_coders(&options, kind < 3 ? 1 : 2, context, digest, err);
    }
    return status;
}
