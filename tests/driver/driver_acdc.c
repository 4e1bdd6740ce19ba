/* driver_acdc.c: circuits of component edges that are found by taking them away one after the other. */
#include "driver.h"

enum { L = 2, H = 3, S = 1 + L * (H + 1), R = L * (3 * H + 1) + 1 };

static asp_task pairs_of(const fixture *f, asp_metric_kind kind) {
    const asp_prompts clean = {f->tokens, f->ragged, N_SEQUENCES}, corrupted = {f->targets, f->ragged, N_SEQUENCES};
    asp_metric metric = small_metric(N_SEQUENCES, kind);
    metric.reference = NULL;
    return (asp_task){clean, corrupted, metric};
}

static asp_status find(const asp_model *model, const asp_task *task, double threshold,
                       const asp_component_options *options, const asp_context *context, uint64_t *digest,
                       asp_error *err) {
    uint8_t mask[S * R];
    double scores[S * R];
    asp_component_kept kept = {0, 0, 0};
    const asp_status status = asp_component_acdc(mask, scores, &kept, model, task, threshold, options, context, err);
    if (status) return status;
    add_bytes(digest, mask, sizeof mask);
    add_bytes(digest, scores, sizeof scores);
    return ASP_OK;
}

asp_status use_acdc(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = pairs_of(f, ASP_KL);
    const asp_component_options options = {.ablation = ASP_COMPONENT_COUNTERFACTUAL,
                                           .held_gate = 1,
                                           .smaller_is_better = 1,
                                           .max_bytes = INT64_MAX};
    return find(f->gated, &task, 0.01, &options, context, digest, err);
}

asp_status use_acdc_of_means(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = pairs_of(f, ASP_LOGIT_DIFF);
    const asp_component_options options = {.ablation = ASP_COMPONENT_MEAN, .max_bytes = INT64_MAX};
    return find(f->dense, &task, 0.01, &options, context, digest, err);
}

static int stop_asking(void *state, const char *stage, int64_t done, int64_t total) {
    int *left = state;
    return stage && done <= total && !(*left)--;
}

/* Stopped after a while, and continued from there. */
asp_status use_kept_acdc(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = pairs_of(f, ASP_KL);
    const asp_component_options options = {.ablation = ASP_COMPONENT_MEAN,
                                           .smaller_is_better = 1,
                                           .max_bytes = INT64_MAX};
    uint8_t mask[S * R];
    double scores[S * R];
    asp_component_kept kept = {0, 0, 0};
    asp_context told = *context;
    int left = 9;
    told.progress = stop_asking;
    told.progress_state = &left;
    asp_status status = asp_component_acdc(mask, scores, &kept, f->gated, &task, 0.01, &options, &told, err);
    if (status != ASP_STOPPED) return status ? status : ASP_BAD_STATE;
    if (!kept.n_done) return ASP_BAD_STATE;
    status = asp_component_acdc(mask, scores, &kept, f->gated, &task, 0.01, &options, context, err);
    if (status) return status;
    add_bytes(digest, mask, sizeof mask);
    add_bytes(digest, scores, sizeof scores);
    kept.size = 0;
    status = asp_component_acdc(mask, scores, &kept, f->gated, &task, 0.01, &options, context, err);
    return status == ASP_BAD_ARGUMENT ? ASP_OK : status == ASP_NO_MEMORY ? status : ASP_BAD_STATE;
}

asp_status use_wrong_acdc(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_task task = pairs_of(f, ASP_LOGIT_DIFF);
    asp_component_options options = {.ablation = ASP_COMPONENT_COUNTERFACTUAL, .max_bytes = 1000};
    uint64_t unused = *digest;
    if (find(f->dense, &task, 0.01, &options, context, &unused, err) != ASP_NO_MEMORY) return ASP_BAD_STATE;
    options = (asp_component_options){.ablation = ASP_COMPONENT_COUNTERFACTUAL, .denoising = 1, .max_bytes = INT64_MAX};
    if (find(f->dense, &task, 0.01, &options, context, &unused, err) != ASP_BAD_ARGUMENT) return ASP_BAD_STATE;
    return ASP_OK;
}
