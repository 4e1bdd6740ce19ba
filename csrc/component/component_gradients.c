/* component_gradients.c: the metric of masks of component edges, and its gradient, block of prompts by block. */
#include <string.h>

#include "component/component.h"

static int64_t gradients_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    (void)own;
    return asp_soft_needed(s, n, n_threads);
}

/* All n masks on the block's prompts. */
static asp_status gradients_of_block(double *values, double *gradients, const double *masks, int64_t n,
                                     const asp_component_setting *s, const asp_context *context, asp_error *err) {
    const asp_config *c = &s->model->config;
    const int64_t places = asp_nodes_n_senders(c) * asp_nodes_n_receivers(c), n_prompts = s->task->clean.n_prompts;
    asp_soft soft = {.setting = s};
    asp_status status = asp_soft_open(&soft, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    for (int64_t i = 0; !status && i < n; i++) {
        status = asp_soft_run(&soft, masks + i * places, values + i * n_prompts + s->first, gradients + i * places,
                              1 / (double)n_prompts, context);
        if (!status) status = asp_context_progress(context, s->stage, n * s->first + (i + 1) * s->n, n * n_prompts);
    }
    if (entered) asp_blas_leave();
    asp_arena_free(&soft.arena);
    return status;
}

asp_status asp_component_gradients(double *values, double *gradients, const asp_model *model, const asp_task *task,
                                   const double *masks, int64_t n, const asp_component_options *options,
                                   const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_config *c = &model->config;
    asp_component_setting s = {.model = model,
                               .task = task,
                               .stage = "mask gradients",
                               .options = *options,
                               .n_sent = 2 * asp_nodes_n_senders(c) + 6 * c->n_head,
                               .own_bytes = gradients_bytes};
    asp_status status = asp_soft_check(&s, err);
    if (status) return status;
    memset(gradients, 0, (size_t)(n * asp_nodes_n_senders(c) * asp_nodes_n_receivers(c)) * sizeof *gradients);
    status = asp_component_setting_open(&s, &own, err);
    if (!status) status = asp_context_progress(&own, s.stage, 0, n * task->clean.n_prompts);
    if (!status) status = asp_component_setting_next(&s, &own, err);
    while (!status && s.n) {
        status = gradients_of_block(values, gradients, masks, n, &s, &own, err);
        if (!status) status = asp_component_setting_next(&s, &own, err);
    }
    asp_component_setting_close(&s);
    return status;
}
