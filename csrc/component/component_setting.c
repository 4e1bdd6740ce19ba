/* component_setting.c: the runs behind a measurement of component edges, one block of prompts after the other: what
 * senders are replaced by, with the residual stream in which every one is replaced; the gates that are held; what KL
 * compares with.
 *
 * Replacements are rows of a run of the other prompts of each pair, or means or zeros laid out like such a run.  A block
 * holds about ASP_TASK_BLOCK_BYTES, or less where max_bytes asks for it; what the whole measurement takes is known, and
 * refused if it is too much, before anything large is allocated. */
#include <string.h>

#include "component/component.h"

/* ---- checks ------------------------------------------------------------------------------------------ */

static int by_mean(const asp_component_setting *s) { return s->options.ablation >= ASP_COMPONENT_MEAN; }
static int by_pair(const asp_component_setting *s) { return s->options.ablation == ASP_COMPONENT_COUNTERFACTUAL; }
static const asp_prompts *averaged_prompts(const asp_component_setting *s) {
    return s->options.reference ? s->options.reference : &s->task->clean;
}

asp_status asp_component_setting_check(asp_component_setting *s, asp_error *err) {
    const asp_component_options *o = &s->options;
    const asp_status status = asp_task_check(s->model, s->task, err);
    if (status) return status;
    s->longest = asp_shape_longest(s->task->clean.offsets, s->task->clean.n_prompts);
    if (by_pair(s) && !s->task->corrupted.n_prompts)
        return asp_fail(err, ASP_BAD_ARGUMENT, "%s: the task has no corrupted prompts to take values from", s->stage);
    if (o->denoising && !by_pair(s))
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "%s: denoising puts clean values into corrupted prompts, so the ablation must be "
                        "counterfactual",
                        s->stage);
    if (!o->reference) return ASP_OK;
    if (!by_mean(s)) return asp_fail(err, ASP_BAD_ARGUMENT, "%s: reference prompts are for means alone", s->stage);
    return asp_shape_check_batch(&s->model->config, o->reference->tokens, o->reference->offsets,
                                 o->reference->n_prompts, err);
}

/* ---- memory ------------------------------------------------------------------------------------------ */

static int64_t sum_bytes(int64_t a, int64_t b) {
    int64_t both;
    return __builtin_add_overflow(a, b, &both) ? INT64_MAX : both;
}

static uint64_t bit(asp_record record) { return (uint64_t)1 << record; }
static uint64_t sent(void) { return bit(ASP_RESID) | bit(ASP_RESID_MID) | bit(ASP_Z); }

static int64_t component_run_needed(const asp_component_setting *s, int64_t n, uint64_t records, int logits,
                                    int n_threads) {
    const asp_run_options options = {.records = records, .logits = logits};
    return asp_run_needed(s->model, s->offsets, n, &options, n_threads);
}

static int holds(const asp_component_setting *s) { return s->options.held_gate && s->model->config.gated; }
static uint64_t base_records(const asp_component_setting *s) {
    return (s->with_base ? sent() | bit(ASP_QKV) : 0) | (holds(s) ? bit(ASP_GATE) : 0);
}

/* The arrays that means and zeros are laid out in, for the block of n prompts at s->offsets. */
enum { BLOCK_PARTS = 5 };
static int64_t lay_out_block(asp_component_setting *s, asp_arena_part parts[BLOCK_PARTS], int64_t n) {
    const asp_config *c = &s->model->config;
    const int64_t n_tokens = s->offsets[n], l = c->n_layer, filled = !by_pair(s);
    s->n_rows = asp_shape_rows(s->model, n_tokens, 0);
    const int64_t rows = filled ? s->n_rows : 0;
    const asp_arena_part list[BLOCK_PARTS] = {ASP_PART(s->filled.resid.data, (l + 1) * rows, c->d_model),
                                              ASP_PART(s->filled.mid.data, l * rows, c->d_model),
                                              ASP_PART(s->filled.z.data, l * rows, c->n_head * c->d_head),
                                              ASP_PART(s->post, by_mean(s) ? rows : 0, c->d_mlp),
                                              ASP_PART(s->held, holds(s) ? n : 0, 1)};
    memcpy(parts, list, sizeof list);
    s->block_arena = (asp_arena){0};
    return asp_arena_lay_out(&s->block_arena, parts, BLOCK_PARTS);
}

/* Bytes of the block at the offsets, of n prompts. */
static int64_t component_block_needed(asp_component_setting *s, int64_t n, int n_threads) {
    asp_arena_part parts[BLOCK_PARTS];
    int64_t bytes = sum_bytes(lay_out_block(s, parts, n), s->own_bytes(s->own, s, n, n_threads));
    if (by_pair(s)) bytes = sum_bytes(bytes, component_run_needed(s, n, sent() | s->also, ASP_LOGITS_NONE, n_threads));
    if (base_records(s))
        bytes = sum_bytes(bytes, component_run_needed(s, n, base_records(s), ASP_LOGITS_NONE, n_threads));
    if (s->task->metric.kind == ASP_KL)
        bytes = sum_bytes(bytes, component_run_needed(s, n, 0, ASP_LOGITS_LAST, n_threads));
    return bytes;
}

static int64_t largest_block(asp_component_setting *s, int n_threads) {
    const asp_prompts *clean = &s->task->clean;
    int64_t bytes = 0;
    for (int64_t first = 0, end; first < clean->n_prompts; first = end) {
        end = asp_task_block_end(clean, first, s->most_tokens);
        asp_task_block(s->offsets, clean, first, end);
        bytes = asp_max(bytes, component_block_needed(s, end - first, n_threads));
    }
    return bytes;
}

/* Sizes of the blocks, so that all fits in max_bytes. */
static asp_status plan_prompt_blocks(asp_component_setting *s, int64_t stays, int64_t before, int n_threads,
                                     asp_error *err) {
    const asp_config *c = &s->model->config;
    const int64_t row =
        (int64_t)sizeof(asp_real) * ((5 * c->n_layer + s->n_sent) * c->d_model + c->n_layer * c->n_head * c->d_head);
    s->most_tokens = s->at_once ? INT64_MAX : asp_max(1, ASP_TASK_BLOCK_BYTES / row);
    for (;; s->most_tokens /= 2) {
        const int64_t bytes = sum_bytes(stays, asp_max(before, largest_block(s, n_threads)));
        if (bytes <= s->options.max_bytes) return ASP_OK;
        if (!s->most_tokens || s->at_once)
            return asp_fail(err, ASP_NO_MEMORY,
                            "%s over %lld prompts needs %s %s, above max_bytes=%lld; use %s prompts, fewer threads, or "
                            "a larger max_bytes",
                            s->stage, (long long)s->task->clean.n_prompts, asp_fail_size((char[32]){0}, (double)bytes),
                            s->at_once ? "for all of them at once" : "even one prompt at a time",
                            (long long)s->options.max_bytes, s->at_once ? "fewer or shorter" : "shorter");
    }
}

/* ---- runs ----------------------------------------------------------------------------------------------- */

static asp_component_rows rows_of_block(const asp_run *run) {
    const asp_array resid = asp_run_array(run, ASP_RESID), mid = asp_run_array(run, ASP_RESID_MID),
                    z = asp_run_array(run, ASP_Z), qkv = asp_run_array(run, ASP_QKV);
    return (asp_component_rows){.resid = {resid.data, resid.strides[0]},
                                .mid = {mid.data, mid.strides[0]},
                                .z = {z.data, z.strides[0]},
                                .qkv = {qkv.data, qkv.strides[0]}};
}

static asp_status run_component_block(asp_run **run, const asp_component_setting *s, const int32_t *tokens,
                                      uint64_t records, int logits, const asp_context *context, asp_error *err) {
    const asp_run_options options = {.records = records, .logits = logits, .max_bytes = INT64_MAX};
    return asp_run_new(run, s->model, tokens, s->offsets, s->n, &options, context, err);
}

/* ---- rows of zeros and means ----------------------------------------------------------------------------- */

typedef struct {
    const asp_component_setting *s;
    int64_t layer; /* of z and the MLP; -1: the input */
} fill_job;

/* Writes n numbers: the mean's, or 0. */
static void fill_row(asp_real *to, const asp_real *mean, int64_t n) {
    if (mean) memcpy(to, mean, (size_t)n * sizeof *to);
    else memset(to, 0, (size_t)n * sizeof *to);
}

static void fill_item(void *arg, int64_t b, int thread) {
    (void)thread;
    const fill_job *job = arg;
    const asp_component_setting *s = job->s;
    const asp_model *m = s->model;
    const asp_node_activations *a = &s->means.activations;
    const int64_t e = m->config.d_model, c = m->config.n_head * m->config.d_head, hidden = m->config.d_mlp;
    const int means = by_mean(s);
    for (int64_t r = s->offsets[b]; r < s->offsets[b + 1]; r++) {
        const int64_t position = r - s->offsets[b], at = s->means.n_positions > 1 ? position : 0;
        if (job->layer < 0) {
            fill_row(s->filled.resid.data + r * e, means ? a->embed + at * e : NULL, e);
            asp_isa_kernels()->add(s->filled.resid.data + r * e, m->data + m->wpe + position * e, e);
            continue;
        }
        fill_row(asp_slot_at(s->filled.z, job->layer) + r * c, means ? asp_slot_at(a->z, job->layer) + at * c : NULL,
                 c);
        if (means) fill_row(s->post + r * hidden, asp_slot_at(a->post, job->layer) + at * hidden, hidden);
    }
}

/* The residual stream behind an MLP that gave its mean, or nothing. */
static asp_status add_filled_output(const asp_component_setting *s, int64_t layer, const asp_context *context) {
    const asp_model *m = s->model;
    const int64_t e = m->config.d_model;
    const asp_real *mid = s->filled.mid.data + layer * s->filled.mid.stride;
    asp_real *next = s->filled.resid.data + (layer + 1) * s->filled.resid.stride;
    if (!by_mean(s)) {
        memcpy(next, mid, (size_t)(s->offsets[s->n] * e) * sizeof *next);
        return ASP_OK;
    }
    const asp_gemm g = {.m = s->n_rows,
                        .n = e,
                        .k = m->config.d_mlp,
                        .a = s->post,
                        .lda = m->config.d_mlp,
                        .b = m->data + m->layers[layer].out_w,
                        .ldb = e,
                        .c = next,
                        .ldc = e,
                        .epilogue = ASP_EPILOGUE_RESIDUAL,
                        .bias = asp_at_const(m->data, m->layers[layer].out_b),
                        .residual = mid,
                        .n_rows = s->offsets[s->n],
                        .k_block = m->k_block.mlp};
    return asp_gemm_run(&g, context);
}

/* What a run would record whose senders all gave zeros or means. */
static asp_status fill_rows(asp_component_setting *s, const asp_context *context) {
    s->filled.resid.stride = s->filled.mid.stride = s->n_rows * s->model->config.d_model;
    s->filled.z.stride = s->n_rows * s->model->config.n_head * s->model->config.d_head;
    const asp_activations acts = {.n_tokens = s->offsets[s->n],
                                  .n_rows = s->n_rows,
                                  .resid = s->filled.resid,
                                  .mid = s->filled.mid,
                                  .z = s->filled.z};
    fill_job job = {s, -1};
    asp_status status = asp_parallel_for(context, s->n, fill_item, &job);
    for (job.layer = 0; !status && job.layer < s->model->config.n_layer; job.layer++) {
        status = asp_parallel_for(context, s->n, fill_item, &job);
        if (!status) status = asp_forward_output(s->model, &acts, job.layer, context);
        if (!status) status = add_filled_output(s, job.layer, context);
    }
    s->replaced = s->filled;
    return status;
}

/* ---- life --------------------------------------------------------------------------------------------- */

asp_status asp_component_setting_open(asp_component_setting *s, const asp_context *context, asp_error *err) {
    int64_t means[2] = {0, 0};
    const int64_t n = s->task->clean.n_prompts + 1;
    if (by_mean(s))
        asp_means_needed(means, s->model, averaged_prompts(s), s->longest, s->options.ablation, context->n_threads);
    s->offsets = asp_allocate(n, sizeof *s->offsets);
    if (!s->offsets) return asp_fail(err, ASP_NO_MEMORY, "%s: no memory for the prompts", s->stage);
    const asp_status status = plan_prompt_blocks(s, sum_bytes(means[0], s->stays), means[1], context->n_threads, err);
    s->block_arena = (asp_arena){0};
    if (status || !by_mean(s)) return status;
    return asp_means_new(&s->means, s->model, averaged_prompts(s), s->longest, s->options.ablation, context, err);
}

static void close_component_block(asp_component_setting *s) {
    asp_run_free(s->paired);
    asp_run_free(s->base);
    asp_run_free(s->whole);
    s->paired = s->base = s->whole = NULL;
    asp_arena_free(&s->block_arena);
}

void asp_component_setting_close(asp_component_setting *s) {
    close_component_block(s);
    asp_means_free(&s->means);
    asp_release(s->offsets);
}

/* ---- blocks ------------------------------------------------------------------------------------------- */

/* The gates of the base run. */
static void hold_gates(asp_component_setting *s) {
    const uint8_t *gate = asp_run_array(s->base, ASP_GATE).data;
    const int64_t *start = asp_run_square_start(s->base);
    for (int64_t b = 0; b < s->n; b++) s->held[b] = gate + start[b];
}

static asp_status open_component_block(asp_component_setting *s, asp_error *err) {
    asp_arena_part parts[BLOCK_PARTS];
    const int64_t bytes = lay_out_block(s, parts, s->n);
    if (!bytes) return ASP_OK;
    if (!asp_arena_commit(&s->block_arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "%s: no memory for what replaces senders in %lld prompts, which takes %s",
                        s->stage, (long long)s->n, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&s->block_arena, parts, BLOCK_PARTS);
    if (!holds(s)) s->held = NULL;
    return ASP_OK;
}

static asp_status run_replaced(asp_component_setting *s, const int32_t *other, const asp_context *context,
                               asp_error *err) {
    if (!by_pair(s)) {
        asp_status status = asp_blas_enter(context, err);
        if (status) return status;
        status = fill_rows(s, context);
        asp_blas_leave();
        return status;
    }
    const asp_status status =
        run_component_block(&s->paired, s, other, sent() | s->also, ASP_LOGITS_NONE, context, err);
    if (!status) s->replaced = rows_of_block(s->paired);
    return status;
}

asp_status asp_component_setting_next(asp_component_setting *s, const asp_context *context, asp_error *err) {
    const asp_task *task = s->task;
    close_component_block(s);
    s->first += s->n;
    s->n = s->first < task->clean.n_prompts ? asp_task_block_end(&task->clean, s->first, s->most_tokens) - s->first : 0;
    if (!s->n) return ASP_OK;
    const int32_t *clean = asp_task_block(s->offsets, &task->clean, s->first, s->first + s->n);
    const int32_t *corrupted = by_pair(s) ? task->corrupted.tokens + task->corrupted.offsets[s->first] : NULL;
    s->tokens = s->options.denoising ? corrupted : clean;
    asp_status status = open_component_block(s, err);
    if (!status) status = run_replaced(s, s->options.denoising ? clean : corrupted, context, err);
    if (!status && base_records(s)) {
        status = run_component_block(&s->base, s, s->tokens, base_records(s), ASP_LOGITS_NONE, context, err);
        if (!status) s->plain = rows_of_block(s->base);
        if (!status && s->held) hold_gates(s);
    }
    s->metric = asp_metric_part(&task->metric, s->first, s->n, s->model->config.n_vocab);
    if (status || task->metric.kind != ASP_KL) return status;
    status = run_component_block(&s->whole, s, clean, 0, ASP_LOGITS_LAST, context, err);
    if (!status) s->metric.reference = asp_run_array(s->whole, ASP_LOGITS).data;
    return status;
}

/* ---- the metric ----------------------------------------------------------------------------------------- */

typedef struct {
    const asp_model *model;
    const asp_hidden_rows *rows;
    double *values;
} value_job;

static void component_value_item(void *arg, int64_t row, int thread) {
    (void)thread;
    const value_job *job = arg;
    const int64_t *sequence = job->rows->sequence;
    job->values[row] = asp_metric_from_hidden(job->rows->metric, sequence ? sequence[row] : row, job->model,
                                              job->rows->hidden + row * job->model->config.d_model);
}

asp_status asp_component_setting_metric(double *values, const asp_model *m, const asp_hidden_rows *rows, int64_t n,
                                        const asp_context *context) {
    const int64_t e = m->config.d_model, v = m->config.n_vocab;
    value_job job = {m, rows, values};
    if (!asp_metric_needs_all(rows->metric->kind)) return asp_parallel_for(context, n, component_value_item, &job);
    asp_status status = ASP_OK;
    int64_t sequence[ASP_LOSS_CHUNK];
    for (int64_t first = 0; !status && first < n; first += ASP_LOSS_CHUNK) {
        const int64_t some = asp_min(ASP_LOSS_CHUNK, n - first);
        for (int64_t i = 0; i < some; i++) sequence[i] = rows->sequence ? rows->sequence[first + i] : first + i;
        status = asp_unembed(m, rows->logits, rows->hidden + first * e, some, rows->logit_rows, context);
        if (!status) status = asp_metric_rows(values + first, rows->metric, sequence, some, rows->logits, v, context);
    }
    return status;
}
