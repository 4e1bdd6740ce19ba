/* setting.c: what a measurement over a task replaces ablated items by: means over reference prompts, made once, and
 * runs of corrupted prompts, made for one block of prompts after the other; and what KL compares with.
 *
 * A block holds about ASP_TASK_BLOCK_BYTES of activations, or less where max_bytes asks for it.  What the whole
 * measurement takes is known, and refused if it is too much, before anything large is allocated. */
#include <stdio.h>

#include "circuit/circuit.h"

enum { GRADIENT_TOKENS = 4096 }; /* of one backward pass, at most */

/* ---- checks ------------------------------------------------------------------------------------------ */

static asp_status check_reference(const asp_setting *s, asp_error *err) {
    const asp_prompts *reference = s->options.reference;
    const asp_status status =
        asp_shape_check_batch(&s->model->config, reference->tokens, reference->offsets, reference->n_prompts, err);
    for (int64_t i = 0; !status && i < reference->n_prompts; i++) {
        const int64_t found = reference->offsets[i + 1] - reference->offsets[i];
        if (found != s->length)
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "means are taken per position: reference prompt %lld has %lld tokens, the task %lld",
                            (long long)i, (long long)found, (long long)s->length);
    }
    return status;
}

asp_status asp_setting_check(asp_setting *s, asp_error *err) {
    const asp_prompts *clean = &s->task->clean;
    const asp_effect_options *o = &s->options;
    asp_status status = asp_task_check(s->model, s->task, err);
    if (status) return status;
    s->length = asp_shape_longest(clean->offsets, clean->n_prompts);
    if (o->ablation == ASP_ABLATE_COUNTERFACTUAL && !s->task->corrupted.n_prompts)
        return asp_fail(err, ASP_BAD_ARGUMENT, "%s: the task has no corrupted prompts to take values from", s->stage);
    if (o->reference && o->ablation != ASP_ABLATE_MEAN)
        return asp_fail(err, ASP_BAD_ARGUMENT, "%s: reference prompts are for means alone", s->stage);
    if (o->ablation == ASP_ABLATE_MEAN)
        status = asp_task_check_lengths(clean, "means are taken per position, so they", err);
    if (!status && o->unit != ASP_UNIT_HEAD) status = asp_task_check_lengths(clean, "items with positions", err);
    if (!status && o->reference) status = check_reference(s, err);
    return status;
}

int64_t asp_setting_places(const asp_config *c, asp_unit unit, int64_t length) {
    const int64_t heads = c->n_layer * c->n_head;
    return unit == ASP_UNIT_HEAD ? heads : unit == ASP_UNIT_POSITION ? heads * length : heads * length * length;
}

/* ---- memory ------------------------------------------------------------------------------------------ */

/* What a run records of which ablated items take their values. */
static uint64_t sources(const asp_setting *s) {
    const uint64_t z = (uint64_t)1 << ASP_Z;
    return s->options.unit == ASP_UNIT_EDGE ? z | (uint64_t)1 << ASP_PATTERN | (uint64_t)1 << ASP_QKV : z;
}

static const asp_prompts *averaged(const asp_setting *s) {
    return s->options.reference ? s->options.reference : &s->task->clean;
}

/* Sum of sizes, INT64_MAX if it does not fit. */
static int64_t sum(int64_t a, int64_t b) {
    int64_t both;
    return __builtin_add_overflow(a, b, &both) ? INT64_MAX : both;
}

static int64_t run_needed(const asp_setting *s, int64_t n, uint64_t records, int logits, int n_threads) {
    const asp_run_options options = {.records = records, .logits = logits};
    return asp_run_needed(s->model, s->offsets, n, &options, n_threads);
}

/* Bytes of the block at the offsets, of n prompts. */
static int64_t block_needed(const asp_setting *s, int64_t n, int n_threads) {
    const uint64_t kept = (uint64_t)1 << ASP_RESID | (uint64_t)1 << ASP_QKV;
    int64_t bytes = 0;
    if (s->options.ablation == ASP_ABLATE_COUNTERFACTUAL)
        bytes = sum(bytes, run_needed(s, n, sources(s), ASP_LOGITS_NONE, n_threads));
    if (s->task->metric.kind == ASP_KL) bytes = sum(bytes, run_needed(s, n, 0, ASP_LOGITS_LAST, n_threads));
    if (s->by_gradient)
        return sum(bytes,
                   asp_attribution_needed(s->model, s->offsets, n, s->options.unit, s->task->metric.kind, n_threads));
    bytes = sum(bytes, run_needed(s, n, kept, ASP_LOGITS_NONE, n_threads));
    return sum(bytes, asp_sweep_needed(s->model, s->length, s->n_variants, s->task->metric.kind, n_threads));
}

/* Bytes of the largest block; what stops the call is seen later. */
static int64_t largest_prompt_block(const asp_setting *s, int n_threads) {
    const asp_prompts *clean = &s->task->clean;
    int64_t bytes = 0;
    for (int64_t first = 0, end; first < clean->n_prompts; first = end) {
        end = asp_task_block_end(clean, first, s->most_tokens);
        asp_task_block(s->offsets, clean, first, end);
        bytes = asp_max(bytes, block_needed(s, end - first, n_threads));
    }
    return bytes;
}

/* Bytes besides the blocks: of what stays, and of what is there before the first block. */
static int64_t preparation(const asp_setting *s, int n_threads) {
    int64_t bytes = 0;
    if (s->options.ablation == ASP_ABLATE_MEAN) {
        const asp_prompts *reference = averaged(s);
        asp_task_block(s->offsets, reference, 0, reference->n_prompts);
        bytes = run_needed(s, reference->n_prompts, sources(s), ASP_LOGITS_NONE, n_threads);
    }
    if (s->leaves_closed)
        bytes = asp_max(bytes, asp_task_open_needed(s->model, &s->task->clean, s->offsets, n_threads));
    return bytes;
}

static asp_status too_large(const asp_setting *s, int64_t bytes, asp_error *err) {
    char size[32], items[32] = "all";
    if (s->n_items >= 0) snprintf(items, sizeof items, "%lld", (long long)s->n_items);
    return asp_fail(err, ASP_NO_MEMORY,
                    "%s of %s items over %lld prompts needs %s even one prompt at a time, above max_bytes=%lld; use "
                    "shorter prompts, fewer reference prompts or threads, or a larger max_bytes",
                    s->stage, items, (long long)s->task->clean.n_prompts, asp_fail_size(size, (double)bytes),
                    (long long)s->options.max_bytes);
}

/* Sizes of the blocks, so that all fits in max_bytes. */
static asp_status plan(asp_setting *s, int64_t stays, int n_threads, asp_error *err) {
    const asp_config *c = &s->model->config;
    const int64_t width = c->n_head * c->d_head, item = (int64_t)sizeof(asp_real);
    const int64_t per_token = s->by_gradient ? c->n_layer * (12 * c->d_model + 4 * c->d_mlp) * item
                                             : 8 * ((c->n_layer + 1) * c->d_model + 3 * c->n_layer * width);
    s->most_tokens = asp_max(1, ASP_TASK_BLOCK_BYTES / per_token);
    if (s->by_gradient) s->most_tokens = asp_min(s->most_tokens, GRADIENT_TOKENS);
    const int64_t before = preparation(s, n_threads);
    for (;; s->most_tokens /= 2) {
        const int64_t bytes = sum(sum(stays, s->own_bytes), asp_max(before, largest_prompt_block(s, n_threads)));
        if (bytes <= s->options.max_bytes) return ASP_OK;
        if (!s->most_tokens) return too_large(s, bytes, err);
    }
}

/* ---- life --------------------------------------------------------------------------------------------- */

static asp_status make_means(asp_setting *s, const asp_context *context, asp_error *err) {
    const asp_prompts *reference = averaged(s);
    asp_run *run = NULL;
    s->n = reference->n_prompts;
    const int32_t *tokens = asp_task_block(s->offsets, reference, 0, s->n);
    asp_status status = asp_setting_run(&run, s, tokens, sources(s), ASP_LOGITS_NONE, NULL, context, err);
    if (!status) status = asp_reference_mean_z(s->mean_z, run, context);
    if (!status && s->mean_entries) status = asp_reference_mean_entries(s->mean_entries, run, context, err);
    asp_run_free(run);
    s->n = 0;
    return status;
}

asp_status asp_setting_open(asp_setting *s, const asp_context *context, asp_error *err) {
    const asp_config *c = &s->model->config;
    const int64_t heads = c->n_layer * c->n_head, t = s->length;
    const int means = s->options.ablation == ASP_ABLATE_MEAN, edges = s->options.unit == ASP_UNIT_EDGE;
    asp_arena_part parts[] = {ASP_PART(s->open, s->leaves_closed ? heads * t : 0, t),
                              ASP_PART(s->mean_z, means ? heads * t : 0, c->d_head),
                              ASP_PART(s->mean_entries, means && edges ? heads * t * t : 0, c->d_head)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&s->arena, parts, PARTS);
    s->offsets = asp_allocate(asp_max(s->task->clean.n_prompts, averaged(s)->n_prompts) + 1, sizeof *s->offsets);
    if (!s->offsets) return asp_fail(err, ASP_NO_MEMORY, "%s: no memory for the prompts", s->stage);
    asp_status status = plan(s, bytes, context->n_threads, err);
    if (status) return status;
    if (bytes && !asp_arena_commit(&s->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "%s: no memory for means and open entries, which take %s", s->stage,
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&s->arena, parts, PARTS);
    if (!s->leaves_closed) s->open = NULL;
    if (!means) s->mean_z = NULL;
    if (!means || !edges) s->mean_entries = NULL;
    if (means) status = make_means(s, context, err);
    if (!status && s->open)
        status = asp_task_open_entries(s->open, s->model, &s->task->clean, s->offsets, context, err);
    if (!status && s->open && s->mean_entries && s->by_gradient)
        status = asp_reference_close(s->mean_z, s->mean_entries, s->open, c, t, context);
    return status;
}

static void close_block(asp_setting *s) {
    asp_run_free(s->paired);
    asp_run_free(s->whole);
    s->paired = s->whole = NULL;
}

void asp_setting_close(asp_setting *s) {
    close_block(s);
    asp_arena_free(&s->arena);
    asp_release(s->offsets);
    s->offsets = NULL;
}

/* ---- blocks ------------------------------------------------------------------------------------------- */

asp_status asp_setting_run(asp_run **run, const asp_setting *s, const int32_t *tokens, uint64_t records, int logits,
                           const asp_hooks *hooks, const asp_context *context, asp_error *err) {
    const asp_run_options options = {.records = records, .logits = logits, .max_bytes = INT64_MAX, .hooks = hooks};
    return asp_run_new(run, s->model, tokens, s->offsets, s->n, &options, context, err);
}

asp_status asp_setting_next(asp_setting *s, const asp_context *context, asp_error *err) {
    const asp_task *task = s->task;
    asp_status status = ASP_OK;
    close_block(s);
    s->first += s->n;
    s->n = s->first < task->clean.n_prompts ? asp_task_block_end(&task->clean, s->first, s->most_tokens) - s->first : 0;
    if (!s->n) return ASP_OK;
    s->tokens = asp_task_block(s->offsets, &task->clean, s->first, s->first + s->n);
    if (s->options.ablation == ASP_ABLATE_COUNTERFACTUAL)
        status = asp_setting_run(&s->paired, s, task->corrupted.tokens + task->corrupted.offsets[s->first], sources(s),
                                 ASP_LOGITS_NONE, NULL, context, err);
    s->replacement = (asp_reference){s->paired, s->mean_z, s->mean_entries};
    s->metric = asp_metric_part(&task->metric, s->first, s->n, s->model->config.n_vocab);
    if (status || task->metric.kind != ASP_KL) return status;
    status = asp_setting_run(&s->whole, s, s->tokens, 0, ASP_LOGITS_LAST, NULL, context, err);
    if (!status) s->metric.reference = asp_run_array(s->whole, ASP_LOGITS).data;
    return status;
}
