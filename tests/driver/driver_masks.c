/* driver_masks.c: gradients of masks of component edges, and their training. */
#include <string.h>

#include "driver.h"

enum { L = 2, H = 3, S = 1 + L * (H + 1), R = L * (3 * H + 1) + 1, MASKS = S * R + S, STEPS = 5 };

static asp_task masked_pairs(const fixture *f, asp_metric_kind kind) {
    const asp_prompts clean = {f->tokens, f->ragged, N_SEQUENCES}, corrupted = {f->targets, f->ragged, N_SEQUENCES};
    asp_metric metric = small_metric(N_SEQUENCES, kind);
    metric.reference = NULL;
    return (asp_task){clean, corrupted, metric};
}

static asp_component_options measured(asp_component_ablation ablation, int denoising, int held, int smaller) {
    return (asp_component_options){.ablation = ablation,
                                   .denoising = denoising,
                                   .held_gate = held,
                                   .smaller_is_better = smaller,
                                   .max_bytes = INT64_MAX};
}

static asp_status slopes(const asp_model *model, const asp_task *task, const asp_component_options *options,
                         const asp_context *context, uint64_t *digest, asp_error *err) {
    double masks[2 * S * R], gradients[2 * S * R], values[2 * N_SEQUENCES];
    for (int i = 0; i < 2 * S * R; i++) masks[i] = (double)(i % 7) / 6;
    const asp_status status = asp_component_gradients(values, gradients, model, task, masks, 2, options, context, err);
    if (status) return status;
    add_bytes(digest, values, sizeof values);
    add_bytes(digest, gradients, sizeof gradients);
    return ASP_OK;
}

asp_status use_mask_gradients(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task pairs = masked_pairs(f, ASP_LOGIT_DIFF), divergence = masked_pairs(f, ASP_KL);
    const asp_component_options paired = measured(ASP_COMPONENT_COUNTERFACTUAL, 1, 1, 1),
                                means = measured(ASP_COMPONENT_MEAN_POSITIONAL, 0, 0, 0);
    const asp_status status = slopes(f->gated, &divergence, &paired, context, digest, err);
    return status ? status : slopes(f->dense, &pairs, &means, context, digest, err);
}

/* Masks are trained to the end in two calls. */
static asp_status train(const asp_model *model, const asp_task *task, const asp_component_masks_options *options,
                        const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_real parameters[3 * MASKS], multipliers[12];
    double history[STEPS * ASP_COMPONENT_MASKS_HISTORY], expected[MASKS];
    memset(parameters, 0, sizeof parameters);
    memset(multipliers, 0, sizeof multipliers);
    for (int i = 0; i < MASKS; i++) parameters[i] = 1;
    asp_component_masks_state state = {0, parameters, multipliers};
    asp_status status = asp_component_masks(&state, history, expected, 2, model, task, options, context, err);
    if (!status)
        status = asp_component_masks(&state, history + 2 * ASP_COMPONENT_MASKS_HISTORY, expected, STEPS, model, task,
                                     options, context, err);
    if (status) return status;
    if (state.step != STEPS) return ASP_BAD_STATE;
    add_bytes(digest, parameters, sizeof parameters);
    add_bytes(digest, history, sizeof history);
    add_bytes(digest, expected, sizeof expected);
    return ASP_OK;
}

static asp_component_masks_options training(asp_component_options measure, int pruning) {
    return (asp_component_masks_options){.measure = measure,
                                         .steps = STEPS,
                                         .batch = 2,
                                         .lr = 0.3,
                                         .beta1 = 0.9,
                                         .beta2 = 0.999,
                                         .eps = 1e-8,
                                         .weight_decay = 0.01,
                                         .lr_steps = 1,
                                         .lr_falls = pruning,
                                         .penalty = 2,
                                         .pruning = pruning,
                                         .nodes = pruning,
                                         .sparsity = 0.8,
                                         .node_sparsity = 0.5,
                                         .sparsity_steps = 3,
                                         .multiplier_lr = 0.5,
                                         .seed = 3};
}

asp_status use_masks_of_probing(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = masked_pairs(f, ASP_KL);
    const asp_component_masks_options options = training(measured(ASP_COMPONENT_COUNTERFACTUAL, 0, 0, 1), 0);
    return train(f->gated, &task, &options, context, digest, err);
}

asp_status use_masks_of_pruning(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = masked_pairs(f, ASP_LOG_PROB);
    const asp_component_masks_options options = training(measured(ASP_COMPONENT_ZERO, 0, 0, 0), 1);
    return train(f->dense, &task, &options, context, digest, err);
}

asp_status use_wrong_masks(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = masked_pairs(f, ASP_KL);
    const asp_component_options measure = measured(ASP_COMPONENT_COUNTERFACTUAL, 0, 0, 1);
    uint64_t unused = *digest;
    asp_component_masks_options options = training(measure, 0);
    options.measure.max_bytes = 1000;
    if (train(f->dense, &task, &options, context, &unused, err) != ASP_NO_MEMORY) return ASP_BAD_STATE;
    asp_component_masks_options wrong[8];
    for (int i = 0; i < 8; i++) wrong[i] = training(measure, 0);
    wrong[0].steps = 1;
    wrong[1].batch = 0;
    wrong[2].lr = -1;
    wrong[3].beta2 = 1;
    wrong[4].nodes = 1;
    wrong[5].sparsity = 3;
    wrong[6].sparsity_steps = STEPS + 1;
    wrong[7].weight_decay = -1;
    for (int i = 0; i < 8; i++)
        if (train(f->dense, &task, &wrong[i], context, &unused, err) != ASP_BAD_ARGUMENT) return ASP_BAD_STATE;
    return ASP_OK;
}
