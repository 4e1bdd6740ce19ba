/* component_values.c: the metric of circuits of component edges or of neurons, block of prompts by block. */
#include <string.h>

#include "component/component.h"

typedef struct {
    const uint8_t *masks;   /* (n,S,R); NULL for circuits of neurons */
    const uint8_t *neurons; /* (n,S,E) */
    int64_t n;
    asp_patch_size size; /* for all circuits */
    asp_arena arena;     /* of a plan's slots, and built */
    uint8_t *built;      /* (S,R) mask of the circuit of neurons at hand */
} circuits;

static int64_t values_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    const circuits *all = own;
    return asp_patch_needed(s, n, &all->size, n_threads);
}

/* Component edges over which a part of a sender's current output flows, as patch->except asks for them. */
static void build_mask(uint8_t *mask, const asp_config *c, const uint8_t *neurons, int except) {
    const int64_t n_receivers = asp_nodes_n_receivers(c), e = c->d_model;
    for (int64_t s = 0; s < asp_nodes_n_senders(c); s++) {
        int64_t inside = 0;
        for (int64_t i = 0; i < e; i++) inside += neurons[s * e + i] != 0;
        memset(mask + s * n_receivers, except ? inside == e : inside > 0, (size_t)n_receivers);
    }
}

/* Plans circuit i. */
static void plan_circuit(const circuits *all, asp_patch *patch, int64_t i) {
    const asp_component_setting *s = patch->setting;
    const asp_config *c = &s->model->config;
    const int64_t n_senders = asp_nodes_n_senders(c);
    if (all->masks) patch->mask = all->masks + i * n_senders * asp_nodes_n_receivers(c);
    else {
        patch->mask = all->built;
        patch->neurons = all->neurons + i * n_senders * c->d_model;
        build_mask(all->built, c, patch->neurons, patch->except);
    }
    asp_patch_make_plan(&patch->plan, c, patch->mask, patch->except, s);
}

static asp_status plan_all(circuits *all, asp_patch *patch, const asp_context *context) {
    for (int64_t i = 0; i < all->n; i++) {
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        plan_circuit(all, patch, i);
        all->size.n_slots = asp_max(all->size.n_slots, patch->plan.n_slots);
        all->size.most_inputs = asp_max(all->size.most_inputs, patch->plan.most_inputs);
    }
    return ASP_OK;
}

/* All circuits on the block's prompts. */
static asp_status run_values_block(double *values, const circuits *all, asp_patch *patch, const asp_context *context,
                                   asp_error *err) {
    const asp_component_setting *s = patch->setting;
    const int64_t n_prompts = s->task->clean.n_prompts;
    asp_status status = asp_patch_open(patch, &all->size, context->n_threads, err);
    if (!status) status = asp_blas_enter(context, err);
    const int entered = !status;
    for (int64_t i = 0; !status && i < all->n; i++) {
        plan_circuit(all, patch, i);
        status = asp_patch_run(patch, values + i * n_prompts + s->first, context);
        if (!status)
            status = asp_context_progress(context, s->stage, all->n * s->first + (i + 1) * s->n, all->n * n_prompts);
    }
    if (entered) asp_blas_leave();
    asp_arena_free(&patch->arena);
    return status;
}

static asp_status allocate_values(circuits *all, asp_patch *patch, int64_t *bytes, const asp_config *c,
                                  asp_error *err) {
    const int64_t n_senders = asp_nodes_n_senders(c);
    asp_arena_part parts[] = {ASP_PART(patch->plan.slot, n_senders, 1),
                              ASP_PART(all->built, all->masks ? 0 : n_senders, asp_nodes_n_receivers(c))};
    *bytes = asp_arena_lay_out(&all->arena, parts, 2);
    if (!asp_arena_commit(&all->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "circuits: no memory for the senders of a model");
    asp_arena_wire(&all->arena, parts, 2);
    return ASP_OK;
}

static asp_status measure_circuits(double *values, circuits *all, const asp_model *model, const asp_task *task,
                                   const asp_component_options *options, const asp_context *context, asp_error *err) {
    const asp_context own = asp_context_of(context, err);
    asp_component_setting s = {
        .model = model, .task = task, .stage = "circuits", .options = *options, .own_bytes = values_bytes, .own = all};
    asp_patch patch = {.setting = &s, .except = options->denoising, .n_copies = 1, .receiver = -1};
    asp_status status = asp_component_setting_check(&s, err);
    if (status) return status;
    status = allocate_values(all, &patch, &s.stays, &model->config, err);
    if (!status) status = plan_all(all, &patch, &own);
    s.n_sent = all->size.n_slots + all->size.most_inputs;
    if (!status) status = asp_component_setting_open(&s, &own, err);
    if (!status) status = asp_context_progress(&own, s.stage, 0, all->n * task->clean.n_prompts);
    if (!status) status = asp_component_setting_next(&s, &own, err);
    while (!status && s.n) {
        status = run_values_block(values, all, &patch, &own, err);
        if (!status) status = asp_component_setting_next(&s, &own, err);
    }
    asp_component_setting_close(&s);
    asp_arena_free(&all->arena);
    return status;
}

asp_status asp_component_values(double *values, const asp_model *model, const asp_task *task, const uint8_t *masks,
                                int64_t n, const asp_component_options *options, const asp_context *context,
                                asp_error *err) {
    ASP_ENVIRONMENT;
    circuits all = {.masks = masks, .n = n, .size = {1, 1, 1}};
    return measure_circuits(values, &all, model, task, options, context, err);
}

asp_status asp_component_values_of_neurons(double *values, const asp_model *model, const asp_task *task,
                                           const uint8_t *neurons, int64_t n, const asp_component_options *options,
                                           const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    circuits all = {.neurons = neurons, .n = n, .size = {1, 1, 1}};
    return measure_circuits(values, &all, model, task, options, context, err);
}
