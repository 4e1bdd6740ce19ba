/* driver_components.c: scores of component edges, nodes and neurons. */
#include "driver.h"

enum { L = 2, H = 3, SENDERS = 1 + L * (H + 1), RECEIVERS = L * (3 * H + 1) + 1, MOST_WIDTH = 64 };

static asp_task component_task(const fixture *f, asp_metric_kind kind) {
    const asp_prompts clean = {f->tokens, f->ragged, N_SEQUENCES}, corrupted = {f->targets, f->ragged, N_SEQUENCES};
    asp_metric metric = small_metric(N_SEQUENCES, kind);
    metric.reference = NULL;
    return (asp_task){clean, corrupted, metric};
}

static asp_status use_scores(const asp_model *model, const asp_task *task, const asp_component_options *options,
                             const asp_context *context, uint64_t *digest, asp_error *err) {
    static const asp_component_level levels[] = {ASP_COMPONENT_EDGE, ASP_COMPONENT_NODE, ASP_COMPONENT_NEURON};
    double scores[SENDERS * MOST_WIDTH];
    asp_status status = ASP_OK;
    for (int i = 0; !status && i < 3; i++) {
        asp_component_options own = *options;
        int64_t dims[2];
        own.level = levels[i];
        own.mlp_input = i == 2;
        if (own.method == ASP_COMPONENT_ROUTES && i) continue;
        asp_component_scores_shape(dims, asp_model_config(model), own.level);
        if (dims[0] * dims[1] > SENDERS * MOST_WIDTH) return ASP_BAD_STATE;
        status = asp_component_scores(scores, model, task, &own, context, err);
        if (!status) add_bytes(digest, scores, dims[0] * dims[1] * (int64_t)sizeof *scores);
    }
    return status;
}

/* Each method by itself, because every allocation of an operation fails once. */
asp_status use_component_scores(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = component_task(f, ASP_KL);
    const asp_component_options options = {.ablation = ASP_COMPONENT_COUNTERFACTUAL,
                                           .steps = 1,
                                           .max_bytes = INT64_MAX,
                                           .smaller_is_better = 1};
    return use_scores(f->gated, &task, &options, context, digest, err);
}

asp_status use_component_inputs(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = component_task(f, ASP_LOGIT_DIFF);
    const asp_component_options options = {.method = ASP_COMPONENT_IG_INPUTS,
                                           .ablation = ASP_COMPONENT_COUNTERFACTUAL,
                                           .steps = 3,
                                           .denoising = 1,
                                           .held_gate = 1,
                                           .max_bytes = INT64_MAX};
    return use_scores(f->gated, &task, &options, context, digest, err);
}

asp_status use_component_activations(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = component_task(f, ASP_PROB_DIFF);
    const asp_component_options options = {.method = ASP_COMPONENT_IG_ACTIVATIONS,
                                           .ablation = ASP_COMPONENT_MEAN_POSITIONAL,
                                           .steps = 2,
                                           .reference = &task.corrupted,
                                           .max_bytes = INT64_MAX};
    return use_scores(f->dense, &task, &options, context, digest, err);
}

asp_status use_component_routes(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = component_task(f, ASP_LOGIT_DIFF);
    const asp_component_options options = {.method = ASP_COMPONENT_ROUTES, .steps = 1, .max_bytes = INT64_MAX};
    return use_scores(f->gated, &task, &options, context, digest, err);
}

static int stop_at_once(void *state, const char *stage, int64_t done, int64_t total) {
    (void)state;
    return stage && done <= total;
}

/* Scores that are refused, stopped by progress, or do not fit. */
asp_status use_wrong_components(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)digest;
    double scores[SENDERS * RECEIVERS];
    const asp_task task = component_task(f, ASP_LOGIT_DIFF);
    const asp_prompts start = {f->tokens, f->ragged, 1};
    asp_task alone = task;
    alone.corrupted.n_prompts = 0;
    asp_context told = *context;
    told.progress = stop_at_once;
    const asp_component_options good = {.ablation = ASP_COMPONENT_COUNTERFACTUAL, .steps = 2, .max_bytes = INT64_MAX};
    asp_component_options wrong[7] = {good, good, good, good, good, good, good};
    wrong[0].steps = 0;
    wrong[1].method = ASP_COMPONENT_IG_INPUTS, wrong[1].ablation = ASP_COMPONENT_ZERO;
    wrong[2].denoising = 1, wrong[2].ablation = ASP_COMPONENT_MEAN;
    wrong[3].method = ASP_COMPONENT_ROUTES, wrong[3].level = ASP_COMPONENT_NODE;
    wrong[4].reference = &start;
    wrong[5].steps = INT64_MAX;
    wrong[6].method = ASP_COMPONENT_ROUTES, wrong[6].denoising = 1;
    for (int i = 0; i < 7; i++)
        if (asp_component_scores(scores, f->gated, &task, &wrong[i], context, err) != ASP_BAD_ARGUMENT)
            return ASP_BAD_STATE;
    if (asp_component_scores(scores, f->gated, &alone, &good, context, err) != ASP_BAD_ARGUMENT) return ASP_BAD_STATE;
    asp_component_options other = good;
    other.max_bytes = 1000;
    asp_status status = asp_component_scores(scores, f->gated, &task, &other, context, err);
    if (status != ASP_NO_MEMORY) return ASP_BAD_STATE;
    status = asp_component_scores(scores, f->gated, &task, &good, &told, err);
    if (status != ASP_STOPPED && status != ASP_NO_MEMORY) return ASP_BAD_STATE;
    other = good;
    other.ablation = ASP_COMPONENT_MEAN_POSITIONAL;
    other.reference = &start;
    status = asp_component_scores(scores, f->gated, &task, &other, context, err);
    return status == ASP_BAD_ARGUMENT || status == ASP_NO_MEMORY ? ASP_OK : ASP_BAD_STATE;
}
