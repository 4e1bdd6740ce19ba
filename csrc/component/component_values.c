/* component_values.c: the metric of circuits of component edges, block of prompts by block. */
#include "component/component.h"

typedef struct {
    const uint8_t *masks; /* (n,S,R) */
    int64_t n;
    asp_patch_size size; /* for all circuits */
} circuits;

static int64_t values_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    const circuits *all = own;
    return asp_patch_needed(s, n, &all->size, n_threads);
}

static const uint8_t *circuit_mask(const circuits *all, const asp_config *c, int64_t i) {
    return all->masks + i * asp_nodes_n_senders(c) * asp_nodes_n_receivers(c);
}

static asp_status plan_all(circuits *all, asp_patch *patch, const asp_context *context) {
    const asp_component_setting *s = patch->setting;
    const asp_config *c = &s->model->config;
    for (int64_t i = 0; i < all->n; i++) {
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        asp_patch_make_plan(&patch->plan, c, circuit_mask(all, c, i), s->options.denoising, s);
        all->size.n_slots = asp_max(all->size.n_slots, patch->plan.n_slots);
        all->size.most_inputs = asp_max(all->size.most_inputs, patch->plan.most_inputs);
    }
    return ASP_OK;
}

/* All circuits on the block's prompts. */
static asp_status run_values_block(double *values, const circuits *all, asp_patch *patch, const asp_context *context,
                                   asp_error *err) {
    const asp_component_setting *s = patch->setting;
    const asp_config *c = &s->model->config;
    const int64_t n_prompts = s->task->clean.n_prompts;
    asp_status status = asp_patch_open(patch, &all->size, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    for (int64_t i = 0; !status && i < all->n; i++) {
        patch->mask = circuit_mask(all, c, i);
        asp_patch_make_plan(&patch->plan, c, patch->mask, patch->except, s);
        status = asp_patch_run(patch, values + i * n_prompts + s->first, context);
        if (!status)
            status = asp_context_progress(context, s->stage, all->n * s->first + (i + 1) * s->n, all->n * n_prompts);
    }
    if (entered) asp_blas_leave();
    asp_arena_free(&patch->arena);
    return status;
}

asp_status asp_component_values(double *values, const asp_model *model, const asp_task *task, const uint8_t *masks,
                                int64_t n, const asp_component_options *options, const asp_context *context,
                                asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    circuits all = {masks, n, {1, 1, 1}};
    asp_component_setting s = {
        .model = model, .task = task, .stage = "circuits", .options = *options, .own_bytes = values_bytes, .own = &all};
    asp_patch patch = {.setting = &s, .except = options->denoising, .n_copies = 1, .receiver = -1};
    asp_status status = asp_component_setting_check(&s, err);
    if (status) return status;
    s.stays = asp_nodes_n_senders(&model->config) * (int64_t)sizeof *patch.plan.slot;
    patch.plan.slot = asp_allocate(s.stays, 1);
    if (!patch.plan.slot) return asp_fail(err, ASP_NO_MEMORY, "circuits: no memory for the senders of a model");
    status = plan_all(&all, &patch, &own);
    s.n_sent = all.size.n_slots + all.size.most_inputs;
    if (!status) status = asp_component_setting_open(&s, &own, err);
    if (!status) status = asp_context_progress(&own, s.stage, 0, n * task->clean.n_prompts);
    if (!status) status = asp_component_setting_next(&s, &own, err);
    while (!status && s.n) {
        status = run_values_block(values, &all, &patch, &own, err);
        if (!status) status = asp_component_setting_next(&s, &own, err);
    }
    asp_component_setting_close(&s);
    asp_release(patch.plan.slot);
    return status;
}
