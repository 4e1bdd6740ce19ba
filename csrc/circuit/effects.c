/* effects.c: what is asked about the items of a task: which there are, the metric of the whole model, of the model
 * without each of them, with some of them alone, and first-order effects of all. */
#include <string.h>

#include "circuit/circuit.h"

/* ---- items ------------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *open; /* (L,H,T,T), or NULL: all entries */
    asp_unit unit;
    int64_t n_head, length;
    int64_t *start; /* (L*H+1): items of each head, then where they begin */
    int32_t *rows;  /* NULL: only count */
} list_job;

static void list_entries(const list_job *job, int64_t head_index, int64_t *n) {
    for (int64_t q = 0; q < job->length; q++)
        for (int64_t k = 0; k <= q; k++) {
            if (job->open && !job->open[(head_index * job->length + q) * job->length + k]) continue;
            if (job->rows) {
                int32_t *row = job->rows + 4 * *n;
                row[0] = (int32_t)(head_index / job->n_head);
                row[1] = (int32_t)(head_index % job->n_head);
                row[2] = (int32_t)q;
                row[3] = (int32_t)k;
            }
            ++*n;
        }
}

/* Counts or lists the items of one head. */
static void list_item(void *arg, int64_t head_index, int thread) {
    (void)thread;
    const list_job *job = arg;
    const int n_columns = 2 + (int)job->unit;
    int64_t n = job->rows ? job->start[head_index] : 0;
    const int64_t positions = job->unit == ASP_UNIT_HEAD ? 1 : job->length;
    if (job->unit == ASP_UNIT_EDGE) list_entries(job, head_index, &n);
    else
        for (int64_t p = 0; p < positions; p++, n++) {
            if (!job->rows) continue;
            int32_t *row = job->rows + n_columns * n;
            row[0] = (int32_t)(head_index / job->n_head);
            row[1] = (int32_t)(head_index % job->n_head);
            if (job->unit == ASP_UNIT_POSITION) row[2] = (int32_t)p;
        }
    if (!job->rows) job->start[head_index + 1] = n;
}

static asp_status list_items(list_job *job, int64_t n_heads, int32_t **rows, int64_t *n, const asp_context *context,
                             asp_error *err) {
    asp_status status = asp_parallel_for(context, n_heads, list_item, job);
    if (status) return status;
    for (int64_t i = 0; i < n_heads; i++) job->start[i + 1] += job->start[i];
    *n = job->start[n_heads];
    *rows = job->rows = asp_allocate(asp_max(1, *n), (size_t)(2 + (int)job->unit) * sizeof **rows);
    if (!job->rows) return asp_fail(err, ASP_NO_MEMORY, "no memory for a list of %lld items", (long long)*n);
    return asp_parallel_for(context, n_heads, list_item, job);
}

asp_status asp_effects_candidates(int32_t **rows, int64_t *n, const asp_model *model, const asp_task *task,
                                  asp_unit unit, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_config *c = &model->config;
    const int64_t n_heads = c->n_layer * c->n_head;
    *rows = NULL;
    *n = 0;
    asp_status status = asp_task_check(model, task, err);
    if (!status && unit != ASP_UNIT_HEAD) status = asp_task_check_lengths(&task->clean, "items with positions", err);
    if (status) return status;
    list_job job = {.unit = unit, .n_head = c->n_head, .length = task->clean.offsets[1] - task->clean.offsets[0]};
    const int has_gates = unit == ASP_UNIT_EDGE && c->gated;
    uint8_t *open;
    int64_t *offsets;
    asp_arena arena = {0};
    asp_arena_part parts[] = {ASP_PART(job.start, n_heads + 1, 1), ASP_PART(offsets, task->clean.n_prompts + 1, 1),
                              ASP_PART(open, has_gates ? n_heads * job.length : 0, job.length)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    asp_arena_lay_out(&arena, parts, PARTS);
    if (!asp_arena_commit(&arena, 1)) return asp_fail(err, ASP_NO_MEMORY, "no memory for the open entries of a task");
    asp_arena_wire(&arena, parts, PARTS);
    if (has_gates) {
        job.open = open;
        status = asp_task_open_entries(open, model, &task->clean, offsets, &own, err);
    }
    if (!status) status = list_items(&job, n_heads, rows, n, &own, err);
    asp_arena_free(&arena);
    if (status) {
        asp_release(*rows);
        *rows = NULL;
        *n = 0;
    }
    return status;
}

void asp_effects_free_items(int32_t *rows) { asp_release(rows); }

/* ---- exact effects ------------------------------------------------------------------------------------- */

asp_status asp_effects_whole(double *values, const asp_model *model, const asp_task *task, const asp_context *context,
                             asp_error *err) {
    ASP_ENVIRONMENT;
    asp_context own = asp_context_of(context, err);
    own.progress = NULL;
    const asp_effect_options options = {.max_bytes = INT64_MAX};
    const asp_measurement asked = {.stage = "whole model", .others = ASP_RANK_KEPT, .n_sizes = -1, .all = values};
    return asp_measure(model, task, &asked, &options, &own, err);
}

asp_status asp_effects_knock_out(double *values, const asp_model *model, const asp_task *task, asp_items items,
                                 const asp_effect_options *options, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_measurement asked = {
        .stage = "knock-out", .items = items, .others = ASP_RANK_KEPT, .n_sizes = -1, .values = values};
    return asp_measure(model, task, &asked, options, &own, err);
}

asp_status asp_effects_keep_only(double *values, const asp_model *model, const asp_task *task, asp_items items,
                                 const int64_t *sizes, int64_t n_sizes, const asp_effect_options *options,
                                 const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_measurement asked = {.stage = "keep only",
                                   .items = items,
                                   .others = options->others_stay ? ASP_RANK_KEPT : ASP_RANK_NEVER,
                                   .sizes = sizes,
                                   .n_sizes = n_sizes,
                                   .values = values};
    return asp_measure(model, task, &asked, options, &own, err);
}

asp_status asp_effects_leave_one_out(double *values, const asp_model *model, const asp_task *task, asp_items items,
                                     const int64_t *dropped, int64_t n_dropped, const asp_effect_options *options,
                                     const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_measurement asked = {.stage = "leave one out",
                                   .items = items,
                                   .others = ASP_RANK_NEVER,
                                   .n_sizes = -1,
                                   .dropped = dropped,
                                   .n_dropped = n_dropped,
                                   .values = values};
    return asp_measure(model, task, &asked, options, &own, err);
}

/* ---- first-order effects --------------------------------------------------------------------------------- */

/* Adds the scores of all blocks, each of which is summed in part (n). */
static asp_status add_blocks(double *scores, double *part, int64_t n, asp_setting *s, asp_attribution_options *options,
                             const asp_context *context, asp_error *err) {
    const int64_t n_prompts = s->task->clean.n_prompts, runs = options->steps, total = runs * n_prompts;
    asp_status status = asp_setting_next(s, context, err);
    while (!status && s->n) {
        const int64_t end = s->first + s->n;
        options->reference = s->replacement;
        options->metric = s->metric;
        memset(part, 0, (size_t)n * sizeof *part);
        const asp_context inner = asp_context_stage(context, s->stage, runs * s->first, runs * end, total);
        status = asp_attribution(part, s->model, s->tokens, s->offsets, s->n, options, &inner, err);
        for (int64_t i = 0; !status && i < n; i++) scores[i] += part[i];
        if (!status) status = asp_context_progress(context, s->stage, runs * end, total);
        if (!status) status = asp_setting_next(s, context, err);
    }
    return status;
}

static asp_status check_gate(const asp_model *model, const asp_effect_options *o, int64_t steps, asp_error *err) {
    if (o->unit == ASP_UNIT_EDGE && model->config.gated && o->ablation == ASP_ABLATE_ZERO && steps == 1) return ASP_OK;
    return asp_fail(err, ASP_BAD_ARGUMENT,
                    "attribution through the gate is for attention edges of a gated model, ablated to zero in 1 step");
}

asp_status asp_effects_attribution(double *scores, const asp_model *model, const asp_task *task,
                                   const asp_effect_options *options, int64_t steps, int through_gate,
                                   const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const int paired = options->ablation == ASP_ABLATE_COUNTERFACTUAL;
    asp_setting s = {.model = model,
                     .task = task,
                     .stage = "attribution",
                     .options = *options,
                     .n_items = -1,
                     .by_gradient = 1,
                     .leaves_closed =
                         options->unit == ASP_UNIT_EDGE && options->ablation != ASP_ABLATE_ZERO && model->config.gated};
    asp_attribution_options each = {.unit = options->unit,
                                    .steps = steps,
                                    .through_gate = through_gate,
                                    .max_bytes = INT64_MAX};
    asp_status status = through_gate ? check_gate(model, options, steps, err) : ASP_OK;
    if (!status) status = asp_setting_check(&s, err);
    if (status) return status;
    const int64_t n = asp_setting_places(&model->config, options->unit, s.length);
    s.own_bytes = n * (int64_t)sizeof(double);
    status = asp_setting_open(&s, &own, err);
    double *part = status ? NULL : asp_allocate(n, sizeof *part);
    if (!status && !part)
        status = asp_fail(err, ASP_NO_MEMORY, "attribution: no memory for the scores of %lld items", (long long)n);
    if (!status) status = asp_context_progress(&own, s.stage, 0, steps * task->clean.n_prompts);
    if (!status) {
        memset(scores, 0, (size_t)n * sizeof *scores);
        for (int64_t i = 0; s.open && i < n; i++) s.open[i] = !s.open[i]; /* as closed entries are given */
        if (paired) each.closed = s.open;
        status = add_blocks(scores, part, n, &s, &each, &own, err);
    }
    asp_release(part);
    asp_setting_close(&s);
    return status;
}
