/* driver_patch.c: circuits of component edges: evaluated, chosen, compared; each component edge patched alone. */
#include "driver.h"

enum { L = 2, H = 3, S = 1 + L * (H + 1), R = L * (3 * H + 1) + 1, EDGES = 75, MOST_WIDTH = 64 };

static asp_task pairs_of(const fixture *f, int ragged, asp_metric_kind kind) {
    const asp_prompts clean = {f->tokens, ragged ? f->ragged : f->offsets, N_SEQUENCES};
    const asp_prompts corrupted = {f->targets, clean.offsets, N_SEQUENCES};
    asp_metric metric = small_metric(N_SEQUENCES, kind);
    metric.reference = NULL;
    return (asp_task){clean, corrupted, metric};
}

/* Every third place, everything, nothing. */
static void fill_masks(uint8_t masks[3][S][R]) {
    for (int i = 0; i < S * R; i++) {
        masks[0][i / R][i % R] = i % 3 == 0;
        masks[1][i / R][i % R] = 1;
        masks[2][i / R][i % R] = 0;
    }
}

static int stop_later(void *state, const char *stage, int64_t done, int64_t total) {
    int *left = state;
    return stage && done <= total && !(*left)--;
}

/* Each component edge alone: all at once, stopped, and in two ranges, whose sum is written. */
static asp_status use_exact(double *scores, const asp_model *model, const asp_task *task,
                            const asp_component_options *options, const asp_context *context, asp_error *err) {
    double whole[S * R], more[S * R];
    asp_context told = *context;
    int left = 3;
    told.progress = stop_later;
    told.progress_state = &left;
    asp_status status = asp_component_exact(whole, model, task, 0, EDGES, options, &told, err);
    if (status != ASP_STOPPED) return status ? status : ASP_BAD_STATE;
    status = asp_component_exact(whole, model, task, 0, EDGES, options, context, err);
    if (!status) status = asp_component_exact(scores, model, task, 0, 20, options, context, err);
    if (!status) status = asp_component_exact(more, model, task, 20, EDGES, options, context, err);
    if (status) return status;
    for (int i = 0; i < S * R; i++) {
        if (scores[i] != 0 && more[i] != 0) return ASP_BAD_STATE;
        scores[i] += more[i];
        if (!(scores[i] - whole[i] < 1e-4 && whole[i] - scores[i] < 1e-4)) return ASP_BAD_STATE;
    }
    status = asp_component_exact(more, model, task, 20, EDGES + 1, options, context, err);
    return status == ASP_BAD_INDEX ? ASP_OK : status == ASP_NO_MEMORY ? status : ASP_BAD_STATE;
}

static asp_status use_patches(const fixture *f, const asp_model *model, const asp_task *task,
                              const asp_component_options *options, const asp_context *context, uint64_t *digest,
                              asp_error *err) {
    uint8_t masks[3][S][R];
    double values[2 * N_SEQUENCES], scores[S * R];
    (void)f;
    fill_masks(masks);
    asp_status status = asp_component_values(values, model, task, &masks[1][0][0], 2, options, context, err);
    if (!status) add_bytes(digest, values, sizeof values);
    if (options->ablation == ASP_COMPONENT_ZERO) return status;
    if (!status) status = use_exact(scores, model, task, options, context, err);
    if (!status) add_bytes(digest, scores, sizeof scores);
    return status;
}

/* The same of circuits of neurons: all, none, some. */
asp_status use_neuron_circuits(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    enum { N = 3, MOST = S * MOST_WIDTH };
    const asp_task task = pairs_of(f, 1, ASP_LOGIT_DIFF);
    const asp_config *c = asp_model_config(f->gated);
    const int64_t places = S * c->d_model, sizes[N] = {places, 0, places / 3};
    uint8_t masks[N * MOST];
    int64_t order[MOST], kept[N];
    double scores[MOST], values[N * N_SEQUENCES];
    asp_component_options options = {.ablation = ASP_COMPONENT_COUNTERFACTUAL, .max_bytes = INT64_MAX};
    if (places > MOST) return ASP_BAD_STATE;
    for (int64_t i = 0; i < places; i++) scores[i] = (double)(i * 7 % 11) - 5;
    asp_status status = asp_component_select_best(order, scores, places, 1, err);
    if (!status) status = asp_component_select_neurons(masks, kept, c, c->d_model, order, sizes, N, 1, err);
    for (int i = 0; !status && i < 2; i++) {
        options.denoising = i;
        status = asp_component_values_of_neurons(values, f->gated, &task, masks, N, &options, context, err);
        if (!status) add_bytes(digest, values, sizeof values);
    }
    return status;
}

asp_status use_patched_pairs(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = pairs_of(f, 1, ASP_KL);
    const asp_component_options options = {.ablation = ASP_COMPONENT_COUNTERFACTUAL,
                                           .held_gate = 1,
                                           .smaller_is_better = 1,
                                           .denoising = 1,
                                           .max_bytes = INT64_MAX};
    return use_patches(f, f->gated, &task, &options, context, digest, err);
}

asp_status use_patched_means(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = pairs_of(f, 0, ASP_LOGIT_DIFF);
    const asp_component_options options = {.ablation = ASP_COMPONENT_MEAN_POSITIONAL,
                                           .reference = &task.corrupted,
                                           .max_bytes = INT64_MAX};
    return use_patches(f, f->dense, &task, &options, context, digest, err);
}

asp_status use_patched_zeros(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = pairs_of(f, 1, ASP_LOG_PROB);
    const asp_component_options options = {.ablation = ASP_COMPONENT_ZERO, .max_bytes = INT64_MAX};
    return use_patches(f, f->gated, &task, &options, context, digest, err);
}

/* Circuits of scores, which need no model. */
asp_status use_selection(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_config *c = asp_model_config(f->gated);
    const int64_t sizes[] = {0, 30, EDGES};
    const double curve[] = {0, 0.5, 1}, shares[] = {0.1, 0.5, 1};
    double scores[S * R], areas[2], rates[2][EDGES + 1];
    int64_t order[EDGES], kept[3];
    uint8_t masks[3][S][R];
    asp_component_roc roc = {.false_rate = rates[0], .true_rate = rates[1]};
    asp_status status = ASP_OK;
    if (asp_nodes_n_edges(c) != EDGES) return ASP_BAD_STATE;
    for (int i = 0; i < S * R; i++) scores[i] = (i * 7919 % 101 - 50) / 10.0;
    for (int greedy = 0; !status && greedy < 2; greedy++) {
        status = asp_component_select_order(order, c, scores, greedy, greedy, err);
        if (!status) status = asp_component_select(&masks[0][0][0], kept, c, order, sizes, 3, 1, err);
        if (!status) add_bytes(digest, order, sizeof order);
        if (!status) add_bytes(digest, masks, sizeof masks);
        if (!status && kept[2] != EDGES) return ASP_BAD_STATE;
    }
    if (!status) status = asp_component_curve_roc(&roc, c, scores, &masks[1][0][0], 1, context, err);
    if (!status) add_bytes(digest, rates[1], roc.n * (int64_t)sizeof *rates[1]);
    if (!status) status = asp_component_curve_areas(areas, curve, 1, shares, 3, context, err);
    if (!status) add_bytes(digest, areas, sizeof areas);
    return status;
}

/* What is refused or does not fit. */
asp_status use_wrong_patches(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)digest;
    const asp_config *c = asp_model_config(f->gated);
    uint8_t masks[3][S][R];
    double values[3 * N_SEQUENCES], scores[S * R] = {0}, rates[2][EDGES + 1];
    int64_t order[EDGES] = {S * R}, kept[1];
    const int64_t sizes[] = {EDGES + 1};
    asp_component_roc roc = {.false_rate = rates[0], .true_rate = rates[1]};
    asp_task task = pairs_of(f, 1, ASP_LOGIT_DIFF);
    const asp_component_options zero = {.denoising = 1, .max_bytes = INT64_MAX},
                                referred = {.reference = &task.clean, .max_bytes = INT64_MAX},
                                small = {.max_bytes = 1000},
                                pairs = {.ablation = ASP_COMPONENT_COUNTERFACTUAL, .max_bytes = INT64_MAX};
    fill_masks(masks);
    if (asp_component_exact(scores, f->gated, &task, 0, EDGES, &zero, context, err) != ASP_BAD_ARGUMENT ||
        asp_component_exact(scores, f->gated, &task, 0, EDGES, &referred, context, err) != ASP_BAD_ARGUMENT ||
        asp_component_values(values, f->gated, &task, &masks[0][0][0], 1, &small, context, err) != ASP_NO_MEMORY ||
        asp_component_select(&masks[0][0][0], kept, c, order, sizes, 1, 1, err) != ASP_BAD_INDEX)
        return ASP_BAD_STATE;
    order[0] = 0;
    asp_status status = asp_component_select(&masks[0][0][0], kept, c, order, sizes, 1, 1, err);
    if (status != ASP_BAD_ARGUMENT) return ASP_BAD_STATE;
    status = asp_component_curve_roc(&roc, c, scores, &masks[2][0][0], 1, context, err);
    if (status != ASP_BAD_ARGUMENT && status != ASP_NO_MEMORY) return ASP_BAD_STATE;
    scores[0] = 1 / (scores[1] * scores[1]);
    status = asp_component_select_order(order, c, scores, 1, 1, err);
    if (status != ASP_BAD_ARGUMENT) return ASP_BAD_STATE;
    const double infinite[] = {1, scores[0]};
    int64_t far[S] = {S}, too_many[] = {S + 1};
    if (asp_component_select_best(order, infinite, 2, 1, err) != ASP_BAD_ARGUMENT ||
        asp_component_select_neurons(&masks[0][0][0], kept, c, 1, far, sizes, 1, 1, err) != ASP_BAD_INDEX)
        return ASP_BAD_STATE;
    far[0] = 0;
    if (asp_component_select_neurons(&masks[0][0][0], kept, c, 1, far, too_many, 1, 1, err) != ASP_BAD_ARGUMENT)
        return ASP_BAD_STATE;
    task.corrupted.n_prompts = 0;
    return asp_component_exact(scores, f->gated, &task, 0, EDGES, &pairs, context, err) == ASP_BAD_ARGUMENT
               ? ASP_OK
               : ASP_BAD_STATE;
}
