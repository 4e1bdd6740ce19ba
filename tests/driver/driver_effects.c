/* driver_effects.c: effects of items over a whole task. */
#include "driver.h"

enum { L = 2, H = 3 };

static asp_task task_of(const fixture *f, int kind) {
    const asp_prompts clean = {f->tokens, kind % 3 ? f->offsets : f->ragged, N_SEQUENCES};
    const asp_prompts corrupted = {f->targets, clean.offsets, N_SEQUENCES};
    asp_metric metric = small_metric(N_SEQUENCES, (asp_metric_kind)(kind % ASP_CUSTOM));
    metric.reference = NULL;
    return (asp_task){clean, corrupted, metric};
}

/* Items of a unit, every result about three of them. */
static asp_status use_effects_of(const fixture *f, int kind, const asp_context *context, uint64_t *digest,
                                 asp_error *err) {
    const asp_model *model = kind == 4 ? f->dense : f->gated;
    const asp_unit unit = (asp_unit)(kind % 3);
    const asp_task task = task_of(f, kind);
    const asp_effect_options options = {.unit = unit,
                                        .ablation = unit == ASP_UNIT_HEAD && kind / 3 == 1 ? ASP_ABLATE_ZERO
                                                                                           : (asp_ablation)(kind / 3),
                                        .reference = kind == 5 ? &task.corrupted : NULL,
                                        .max_bytes = INT64_MAX};
    const int64_t sizes[] = {0, 3, 2};
    double values[3 * N_SEQUENCES], scores[L * H * T * T] = {0};
    int32_t *rows = NULL;
    int64_t n;
    asp_status status = asp_effects_candidates(&rows, &n, model, &task, unit, context, err);
    if (!status) add_bytes(digest, rows, n * (2 + (int)unit) * (int64_t)sizeof *rows);
    const asp_items items = {rows, n < 3 ? n : 3};
    if (!status) status = asp_effects_whole(values, model, &task, context, err);
    if (!status) add_bytes(digest, values, N_SEQUENCES * (int64_t)sizeof *values);
    if (!status) status = asp_effects_knock_out(values, model, &task, items, &options, context, err);
    if (!status) add_bytes(digest, values, sizeof values);
    if (!status) status = asp_effects_keep_only(values, model, &task, items, sizes, 3, &options, context, err);
    if (!status) add_bytes(digest, values, sizeof values);
    if (!status) status = asp_effects_leave_one_out(values, model, &task, items, NULL, items.n, &options, context, err);
    if (!status) add_bytes(digest, values, sizeof values);
    if (!status) status = asp_effects_attribution(scores, model, &task, &options, 1 + kind % 2, 0, context, err);
    if (!status) add_bytes(digest, scores, sizeof scores);
    asp_effect_options staying = options;
    staying.others_stay = 1;
    if (!status) status = asp_effects_keep_only(values, model, &task, items, sizes, 3, &staying, context, err);
    if (!status) add_bytes(digest, values, sizeof values);
    asp_effects_free_items(rows);
    return status;
}

/* Each by itself, because every allocation of an operation fails once. */
asp_status use_effects_of_heads(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    return use_effects_of(f, 6, context, digest, err);
}

asp_status use_effects_of_positions(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    return use_effects_of(f, 4, context, digest, err);
}

asp_status use_effects_of_edges(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    return use_effects_of(f, 2, context, digest, err);
}

asp_status use_effects_of_means(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    return use_effects_of(f, 5, context, digest, err);
}

asp_status use_effects_of_pairs(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    return use_effects_of(f, 8, context, digest, err);
}

/* Counts what it is told, and stops at the end of its patience. */
typedef struct {
    int told, patience;
} listener;

static int listen(void *state, const char *stage, int64_t done, int64_t total) {
    listener *l = state;
    return !stage || done > total || ++l->told >= l->patience;
}

/* Effects that are refused, stopped by progress, or do not fit. */
asp_status use_wrong_effects(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)digest;
    const int32_t far[] = {0, 0, 1, 9}, late[] = {0, 0, 8, 0}, twice[] = {0, 1, 1, 2, 0, 1}, right[] = {0, 0, 1, 0};
    const asp_items outside = {far, 2}, beyond = {late, 1}, repeated = {twice, 3}, good = {right, 2};
    const int64_t sizes[] = {3};
    double values[3 * N_SEQUENCES], scores[L * H];
    asp_task task = task_of(f, 1), ragged = task_of(f, 0);
    asp_effect_options options = {.max_bytes = INT64_MAX}, small = {.max_bytes = 1000};
    asp_effect_options edges = {.unit = ASP_UNIT_EDGE, .max_bytes = INT64_MAX};
    listener l = {.patience = 2};
    asp_context told = *context;
    told.progress = listen;
    told.progress_state = &l;
    if (asp_effects_knock_out(values, f->gated, &task, outside, &options, context, err) != ASP_BAD_INDEX ||
        asp_effects_knock_out(values, f->gated, &task, beyond, &edges, context, err) != ASP_BAD_INDEX ||
        asp_effects_knock_out(values, f->gated, &ragged, good, &edges, context, err) != ASP_BAD_ARGUMENT ||
        asp_effects_knock_out(values, f->gated, &task, good, &small, context, err) != ASP_NO_MEMORY)
        return ASP_BAD_STATE;
    asp_status status = asp_effects_leave_one_out(values, f->gated, &task, repeated, NULL, 2, &options, context, err);
    if (status != ASP_BAD_ARGUMENT && status != ASP_NO_MEMORY) return ASP_BAD_STATE;
    if (asp_effects_keep_only(values, f->gated, &task, good, sizes, 1, &options, context, err) != ASP_BAD_ARGUMENT)
        return ASP_BAD_STATE;
    status = asp_effects_knock_out(values, f->gated, &task, good, &options, &told, err);
    if (status != ASP_STOPPED && status != ASP_NO_MEMORY) return ASP_BAD_STATE;
    if (status == ASP_STOPPED && l.told != 2) return ASP_BAD_STATE;
    for (int patience = 1; patience < 8; patience++) {
        l = (listener){.patience = patience};
        status = asp_effects_attribution(scores, f->gated, &task, &options, 2, 0, &told, err);
        if (status != ASP_STOPPED && status != ASP_NO_MEMORY) return ASP_BAD_STATE;
    }
    task.corrupted.n_prompts = 0;
    options.ablation = ASP_ABLATE_COUNTERFACTUAL;
    if (asp_effects_knock_out(values, f->gated, &task, good, &options, context, err) != ASP_BAD_ARGUMENT)
        return ASP_BAD_STATE;
    task.metric.n_sequences = 1;
    return asp_effects_whole(values, f->gated, &task, context, err) == ASP_BAD_ARGUMENT ? ASP_OK : ASP_BAD_STATE;
}
