/* driver_ops.c: models, runs, gradients, sweeps, attribution; and the list of all operations. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "circuit/circuit.h"
#include "driver.h"

enum { L = 2, H = 3, D = 8, E = 24, V = 50 };

static asp_real mean_entries[L * H * T * T * D], mean_z[L * T * H * D];

/* ---- what is shared ---------------------------------------------------------------------------- */

void fill(asp_real *x, int64_t n, double size, uint64_t seed) {
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = (asp_real)(size * ((double)(state >> 33) / (double)(1u << 30) - 1));
    }
}

void add_bytes(uint64_t *digest, const void *data, int64_t n) {
    for (int64_t i = 0; i < n; i++) *digest = (*digest ^ ((const uint8_t *)data)[i]) * 1099511628211u;
}

void add_reals(uint64_t *digest, const asp_real *data, int64_t n) {
    add_bytes(digest, data, n * (int64_t)sizeof *data);
}

static void add_array(uint64_t *digest, const asp_array *a, int dim, int64_t offset) {
    const int64_t size = a->is_byte ? 1 : (int64_t)sizeof(asp_real);
    if (dim == a->n_dims) {
        add_bytes(digest, (const char *)a->data + offset * size, size);
        return;
    }
    for (int64_t i = 0; i < a->dims[dim]; i++) add_array(digest, a, dim + 1, offset + i * a->strides[dim]);
}

void add_run(uint64_t *digest, const asp_run *run) {
    for (asp_record record = 0; record < ASP_N_RECORDS; record++) {
        const asp_array array = asp_run_array(run, record);
        if (array.data) add_array(digest, &array, 0, 0);
    }
    const asp_edges edges = asp_run_edges(run);
    if (!edges.start) return;
    add_bytes(digest, edges.start, (edges.n_rows + 1) * (int64_t)sizeof *edges.start);
    add_bytes(digest, edges.key, edges.n_edges * (int64_t)sizeof *edges.key);
    add_reals(digest, edges.weight, edges.n_edges);
}

asp_status small_model(asp_model **model, int kind, asp_error *err) {
    const int gated = kind == 1, ruled = kind == 2;
    const asp_config config = {.n_layer = L,
                               .n_head = H,
                               .d_model = E,
                               .d_head = D,
                               .d_mlp = 40,
                               .n_ctx = 16,
                               .n_vocab = V,
                               .activation = gated ? ASP_GELU_NEW : ASP_GELU,
                               .ln_eps = 1e-5,
                               .gated = gated,
                               .gate_bias = 0.1,
                               .tied = !gated,
                               .bias = 1,
                               .unembed_bias = gated,
                               .scale_attn = 1,
                               .scale_by_inverse_layer = !gated,
                               .window = 9 * ruled,
                               .top_k = 4 * ruled,
                               .min_weight = 0.1 * ruled};
    const asp_status status = asp_model_new(model, &config, err);
    if (!status) fill(asp_model_data(*model), asp_model_size(*model), 0.4, (uint64_t)kind + 1);
    return status;
}

static asp_status run_of(asp_run **run, const fixture *f, const int32_t *tokens, int64_t n, const asp_context *context,
                         asp_error *err) {
    const asp_run_options options = {.records = ((uint64_t)1 << ASP_N_RECORDS) - 1,
                                     .logits = ASP_LOGITS_ALL,
                                     .edges = 1,
                                     .edge_threshold = 0.01,
                                     .max_bytes = INT64_MAX};
    return asp_run_new(run, f->gated, tokens, f->offsets, n, &options, context, err);
}

asp_status fixture_open(fixture *f, const asp_context *context, asp_error *err) {
    int32_t others[N];
    for (int i = 0; i < N; i++) {
        f->tokens[i] = (i * 7 + 3) % V;
        f->targets[i] = (i * 11 + 5) % V;
        others[i] = (i * 13 + 1) % V;
        f->weights[i] = (asp_real)(i % 3);
    }
    for (int b = 0; b <= N_SEQUENCES; b++) f->offsets[b] = b * T;
    fill(mean_z, L * T * H * D, 0.5, 6);
    fill(mean_entries, L * H * T * T * D, 0.5, 7);
    const int64_t ragged[] = {0, 1, 13, N};
    memcpy(f->ragged, ragged, sizeof ragged);
    asp_status status = small_model(&f->gated, 1, err);
    if (!status) status = small_model(&f->dense, 0, err);
    if (!status) status = run_of(&f->clean, f, f->tokens, N_SEQUENCES, context, err);
    if (!status) status = run_of(&f->paired, f, others, N_SEQUENCES, context, err);
    if (!status) status = run_of(&f->last, f, f->tokens, 1, context, err);
    return status;
}

void fixture_close(fixture *f) {
    asp_run_free(f->clean);
    asp_run_free(f->paired);
    asp_run_free(f->last);
    asp_model_free(f->gated);
    asp_model_free(f->dense);
}

/* A logit of each row that depends on its sequence, less another. */
static int custom_values(void *state, int64_t n, const int64_t *sequence, const asp_real *logits, double *values) {
    (void)state;
    for (int64_t i = 0; i < n; i++) values[i] = (double)logits[i * V + sequence[i]] - (double)logits[i * V + 9];
    return 0;
}

static int custom_gradient(void *state, int64_t n, const int64_t *sequence, const asp_real *logits,
                           asp_real *gradient) {
    (void)state, (void)logits;
    memset(gradient, 0, (size_t)(n * V) * sizeof *gradient);
    for (int64_t i = 0; i < n; i++) {
        gradient[i * V + sequence[i]] = 1;
        gradient[i * V + 9] = -1;
    }
    return 0;
}

asp_metric small_metric(int64_t n_sequences, asp_metric_kind kind) {
    static const int64_t start[] = {0, 1, 2, 3};
    static const int32_t answers[] = {4, 8, 15}, wrong[] = {16, 23, 42};
    static const asp_real reference[N_SEQUENCES * V];
    static const asp_custom_metric custom = {custom_values, custom_gradient, NULL};
    return (asp_metric){.kind = kind,
                        .n_sequences = n_sequences,
                        .answer_start = start,
                        .wrong_start = start,
                        .answers = answers,
                        .wrong = wrong,
                        .reference = kind == ASP_KL ? reference : NULL,
                        .custom = kind == ASP_CUSTOM ? &custom : NULL};
}

/* ---- runs ---------------------------------------------------------------------------------------- */

static asp_status use_run(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    for (int kind = 0; kind < 6; kind++) {
        const asp_model *model = kind % 2 ? f->dense : f->gated;
        const asp_run_options options = {.records = kind < 2 ? ((uint64_t)1 << ASP_N_RECORDS) - 1
                                                             : (uint64_t)1 << (kind == 2 ? ASP_GATE : ASP_Z),
                                         .logits = kind < 2 ? ASP_LOGITS_ALL : kind % 3,
                                         .edges = kind != 3,
                                         .edge_threshold = 0.02,
                                         .max_bytes = INT64_MAX};
        asp_run *run = NULL;
        const asp_status status = asp_run_new(&run, model, f->tokens, f->ragged, N_SEQUENCES, &options, context, err);
        if (!status) add_run(digest, run);
        asp_run_free(run);
        if (status) return status;
    }
    return ASP_OK;
}

static asp_status use_interventions(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const int64_t heads[] = {0, 0, 1, 2, 1, 2, 0, 0}, entries[] = {1, 1, 0, 5, 3, 0, 0, 2, 0, 0};
    const int64_t mlps[] = {0, 1, 4}, resids[] = {0, 2, 0, 7, 1, 1, 2, 0};
    asp_real values[8 * E];
    const uint8_t added[] = {1, 0, 1};
    fill(values, 8 * E, 0.5, 9);
    const asp_interventions given = {
        2,    2,     1,        2, heads, values, entries, values + E, mlps, values + 3 * E, resids, values + 5 * E,
        NULL, added, added + 1};
    asp_hooks *hooks;
    asp_status status = asp_interventions_hooks(&hooks, &given, err);
    if (status) return status;
    const asp_run_options options = {.records = (uint64_t)1 << ASP_Z | (uint64_t)1 << ASP_RESID,
                                     .logits = ASP_LOGITS_LAST,
                                     .max_bytes = INT64_MAX,
                                     .hooks = hooks};
    asp_run *run = NULL;
    status = asp_run_new(&run, f->gated, f->tokens, f->offsets, N_SEQUENCES, &options, context, err);
    if (!status) add_run(digest, run);
    asp_run_free(run);
    asp_interventions_free(hooks);
    return status;
}

static asp_status use_norms(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_real norms[3][L * H * N], scores[2], direction[E];
    const int64_t layer[] = {0, 1}, head[] = {2, 0}, query[] = {5, 3}, key[] = {1, 3};
    fill(direction, E, 1, 3);
    asp_status status =
        asp_run_value_norms(f->gated, f->clean, 0, N, direction, norms[0], norms[1], norms[2], context, err);
    if (!status)
        status = asp_attention_entry_scores(f->gated, f->clean, 2, layer, head, query, key, scores, context, err);
    if (status) return status;
    add_reals(digest, norms[0], 3 * L * H * N);
    add_reals(digest, scores, 2);
    return ASP_OK;
}

/* Values beyond every limit of the kernels: an undefined conversion or shift is a report of the sanitizers. */
static asp_status use_extremes(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)f, (void)context, (void)err;
    const asp_real most = sizeof(asp_real) == 8 ? (asp_real)DBL_MAX : (asp_real)FLT_MAX;
    const asp_real least = sizeof(asp_real) == 8 ? (asp_real)DBL_MIN : (asp_real)FLT_MIN;
    const asp_real x[] = {0,
                          -0.0f,
                          1,
                          -1,
                          88.7f,
                          -87.4f,
                          710,
                          -710,
                          1e9f,
                          -1e9f,
                          1e30f,
                          -1e30f,
                          most,
                          -most,
                          least,
                          -least,
                          least / 4,
                          (asp_real)INFINITY,
                          (asp_real)-INFINITY,
                          (asp_real)NAN,
                          (asp_real)-NAN};
    enum { N_EXTREMES = sizeof x / sizeof x[0] };
    asp_real out[N_EXTREMES];
    asp_isa_exp_array(out, x, N_EXTREMES);
    add_reals(digest, out, N_EXTREMES - 2); /* the sign of a NaN is nobody's */
    return isnan(out[N_EXTREMES - 1]) && isnan(out[N_EXTREMES - 2]) ? ASP_OK : ASP_BAD_STATE;
}

/* What is refused: nothing may be kept, and no memory touched that is not there. */
static asp_status use_wrong(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)digest;
    int32_t tokens[N];
    memcpy(tokens, f->tokens, sizeof tokens);
    const asp_run_options options = {.records = 1, .logits = ASP_LOGITS_ALL, .max_bytes = INT64_MAX},
                          small = {.max_bytes = 10};
    asp_run *run = NULL;
    tokens[N - 1] = V;
    if (asp_run_new(&run, f->gated, tokens, f->offsets, N_SEQUENCES, &options, context, err) == ASP_OK)
        return ASP_BAD_STATE;
    tokens[N - 1] = -1;
    if (asp_run_new(&run, f->gated, tokens, f->offsets, N_SEQUENCES, &options, context, err) == ASP_OK)
        return ASP_BAD_STATE;
    const int64_t falling[] = {0, 9, 8, N}, long_one[] = {0, N};
    if (asp_run_new(&run, f->gated, f->tokens, falling, N_SEQUENCES, &options, context, err) == ASP_OK)
        return ASP_BAD_STATE;
    if (asp_run_new(&run, f->gated, f->tokens, long_one, 1, &options, context, err) == ASP_OK) return ASP_BAD_STATE;
    if (asp_run_new(&run, f->gated, f->tokens, f->offsets, 1, &small, context, err) != ASP_NO_MEMORY)
        return ASP_BAD_STATE;
    asp_model *model = NULL;
    asp_config config = *asp_model_config(f->gated);
    config.n_vocab = INT64_MAX / 3;
    return asp_model_new(&model, &config, err) == ASP_OK ? ASP_BAD_STATE : ASP_OK;
}

/* ---- gradients ------------------------------------------------------------------------------------- */

static asp_status use_gradients(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_record records[] = {ASP_RESID,   ASP_RESID_MID, ASP_QKV,     ASP_SCORES,
                                  ASP_PATTERN, ASP_Z,         ASP_MLP_PRE, ASP_MLP_POST};
    asp_real dlogits[N * V];
    fill(dlogits, N * V, 1, 4);
    for (int kind = 0; kind < 4; kind++) {
        asp_gradient_options options = {.parameters = kind != 2, .gate_gradient = kind % 2, .max_bytes = INT64_MAX};
        for (int i = 0; kind != 1 && i < 8; i++) options.records |= (uint64_t)1 << records[i];
        if (kind > 1) options.dlogits = dlogits;
        else {
            options.targets = f->targets;
            options.weights = f->weights;
        }
        asp_gradients *gradients = NULL;
        const asp_model *model = kind == 3 ? f->dense : f->gated;
        const asp_status status =
            asp_gradients_new(&gradients, model, f->tokens, f->ragged, N_SEQUENCES, &options, context, err);
        for (int i = 0; !status && i < 8; i++) {
            const asp_array array = asp_gradients_array(gradients, records[i]);
            if (array.data) add_array(digest, &array, 0, 0);
        }
        if (!status && options.parameters)
            add_reals(digest, asp_gradients_parameters(gradients), asp_model_size(model));
        const double loss = status ? 0 : asp_gradients_loss(gradients);
        add_bytes(digest, &loss, sizeof loss);
        asp_gradients_free(gradients);
        if (status) return status;
    }
    return ASP_OK;
}

/* ---- sweeps and attribution -------------------------------------------------------------------------- */

static asp_reference reference_of(const fixture *f, int kind) {
    return kind == 0   ? (asp_reference){0}
           : kind == 1 ? (asp_reference){.run = f->paired}
                       : (asp_reference){NULL, mean_z, mean_entries};
}

static asp_status use_sweep(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const int64_t n_items[] = {L * H, L * H * T, L * H * T * T};
    int32_t order[L * H * T * T];
    for (int i = 0; i < L * H * T * T; i++) order[i] = i % 17 == 5 ? -1 : i % 19 == 7 ? ASP_RANK_CLOSED : i;
    for (int kind = 0; kind < 9; kind++) {
        const int64_t items = n_items[kind % 3];
        const asp_variant variants[] = {{0, 1, 0, 0, 0, items, items / 2 + 1},
                                        {1, 0, 0, 0, items / 3, items, -1},
                                        {2, 0, 0, 0, 0, 0, -1},
                                        {2, 0, 0, 0, 0, items / 2, -1},
                                        {2, 0, 0, 0, 0, items / 2 + 1, -1},
                                        {2, 0, 0, 0, 0, items / 2 + 1, -1},
                                        {2, 0, 3, 0, 0, items, items - 1}};
        enum { N_VARIANTS = sizeof variants / sizeof variants[0] };
        int64_t rows[2] = {0};
        const asp_sweep_options options = {(asp_unit)(kind % 3), order, reference_of(f, kind / 3),
                                           small_metric(N_SEQUENCES, (asp_metric_kind)(kind % ASP_N_METRICS)), rows};
        double values[N_VARIANTS];
        const asp_status status = asp_sweep(values, f->gated, f->clean, variants, N_VARIANTS, &options, context, err);
        if (!status && (rows[0] >= rows[1] || memcmp(&values[4], &values[5], sizeof *values) != 0))
            return asp_fail(err, ASP_BAD_STATE, "the sweep shared no row, or a variant given twice has two values");
        if (status) return status;
        add_bytes(digest, values, sizeof values);
    }
    asp_real entries[L * H * T * T * D] = {0};
    const asp_status status = asp_reference_mean_entries(entries, f->clean, context, err);
    if (!status) add_reals(digest, entries, L * H * T * T * D);
    return status;
}

static asp_status use_attribution(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    for (int kind = 0; kind < 10; kind++) {
        double scores[L * H * T * T] = {0};
        const asp_attribution_options options = {.unit = kind == 9 ? ASP_UNIT_EDGE : (asp_unit)(kind % 3),
                                                 .steps = 1 + kind % 2,
                                                 .through_gate = kind == 9,
                                                 .reference =
                                                     kind == 9 ? (asp_reference){0} : reference_of(f, kind / 3),
                                                 .metric =
                                                     small_metric(N_SEQUENCES, (asp_metric_kind)(kind % ASP_N_METRICS)),
                                                 .max_bytes = INT64_MAX};
        const asp_status status =
            asp_attribution(scores, f->gated, f->tokens, f->offsets, N_SEQUENCES, &options, context, err);
        if (status) return status;
        add_bytes(digest, scores, sizeof scores);
    }
    return ASP_OK;
}

static asp_status use_kernels(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)f;
    (void)context;
    (void)err;
    asp_real row[37], x[37];
    fill(x, 37, 80, 8);
    asp_isa_noise_row(row, 37, 1, 2, 3, 4, 5, 6);
    add_reals(digest, row, 37);
    asp_isa_exp_array(row, x, 37);
    add_reals(digest, row, 37);
    x[3] = (asp_real)NAN;
    int64_t first;
    return asp_model_count_nonfinite(x, 37, &first) == 1 && first == 3 ? ASP_OK : ASP_BAD_STATE;
}

const operation operations[] = {
    {"run", use_run},
    {"interventions", use_interventions},
    {"greedy texts", use_greedy_texts},
    {"drawn texts", use_drawn_texts},
    {"changed texts", use_changed_texts},
    {"visited texts", use_visited_texts},
    {"frozen texts", use_frozen_texts},
    {"steered texts", use_steered_texts},
    {"steering", use_steering},
    {"wrong steering", use_wrong_steering},
    {"stopped run", use_stopped_run},
    {"wrong arguments", use_wrong_texts},
    {"visitors", use_visitors},
    {"visitors that stop", use_stopping_visitors},
    {"frozen", use_frozen},
    {"wrong arguments", use_wrong_frozen},
    {"norms", use_norms},
    {"extremes", use_extremes},
    {"wrong arguments", use_wrong},
    {"gradients", use_gradients},
    {"training", use_training},
    {"training in pieces", use_pieces},
    {"wrong pieces of training", use_wrong_pieces},
    {"shared weights", use_shared_weights},
    {"sweep", use_sweep},
    {"attribution", use_attribution},
    {"metrics", use_metrics},
    {"curves", use_curves},
    {"effects of heads", use_effects_of_heads},
    {"effects of heads at positions", use_effects_of_positions},
    {"effects of edges", use_effects_of_edges},
    {"effects of edges, means", use_effects_of_means},
    {"effects of edges, pairs", use_effects_of_pairs},
    {"wrong arguments", use_wrong_effects},
    {"component scores", use_component_scores},
    {"component scores by mixed inputs", use_component_inputs},
    {"component scores by mixed activations", use_component_activations},
    {"information flow routes", use_component_routes},
    {"wrong arguments", use_wrong_components},
    {"patching of layers", use_patching_of_layers},
    {"patching of heads", use_patching_of_heads},
    {"path patching", use_paths},
    {"wrong arguments", use_wrong_patching},
    {"exact circuit", use_exact_circuit},
    {"circuit by attribution", use_attribution_circuit},
    {"circuit by integrated gradients", use_ig_circuit},
    {"greedy circuit", use_greedy_circuit},
    {"wrong arguments", use_wrong_circuit},
    {"acdc", use_acdc},
    {"acdc, means", use_acdc_of_means},
    {"acdc, kept", use_kept_acdc},
    {"wrong arguments", use_wrong_acdc},
    {"mask gradients", use_mask_gradients},
    {"masks, probing", use_masks_of_probing},
    {"masks, pruning", use_masks_of_pruning},
    {"wrong arguments", use_wrong_masks},
    {"circuits of component edges, pairs", use_patched_pairs},
    {"circuits of neurons", use_neuron_circuits},
    {"circuits of component edges, means", use_patched_means},
    {"circuits of component edges, zeros", use_patched_zeros},
    {"selection of component edges", use_selection},
    {"wrong arguments", use_wrong_patches},
    {"features", use_features},
    {"replacement", use_replacement},
    {"graph edges", use_graph},
    {"graph heads", use_graph_heads},
    {"graph", use_build},
    {"graph pruning", use_prune},
    {"graph groups", use_groups},
    {"kernels", use_kernels},
    {"training of transcoders", use_coder_training},
    {"contexts", use_contexts},
    {"first weights", use_first_weights},
    {"token losses", use_token_losses},
    {"logit lens", use_lens},
    {"direct attribution", use_attribution_to_parts},
    {"stacks of the residual stream", use_stacks},
    {"head detectors", use_detectors},
    {"composition of heads", use_composition},
    {"wrong arguments", use_wrong_lens},
};
const int n_operations = sizeof operations / sizeof *operations;
