/* entry.c: the entry from one position of a prompt to another in every head: what the metric loses without it in each
 * of them, and how much of it is left with the entries of the best few heads alone. */
#include "circuit/circuit.h"

typedef struct {
    asp_entry_effects *found;
    const asp_entry *entry;
    int64_t n; /* heads that have the entry */
    asp_arena arena;
    int32_t *rows, *sorted; /* (n,4) items, by head, and by falling effect */
    double *values;         /* (n+1) of the metric */
    double *effect, *keys;  /* (n) by head; minus that */
    int64_t *order, *other; /* (n) */
    int64_t *sizes;         /* (n+1): 0..n */
} entry_work;

static asp_status check_question(const asp_model *model, const asp_task *task, const asp_entry *entry,
                                 const asp_effect_options *options, asp_error *err) {
    asp_status status = asp_task_check(model, task, err);
    if (status) return status;
    if (options->unit != ASP_UNIT_EDGE || task->clean.n_prompts != 1)
        return asp_fail(err, ASP_BAD_ARGUMENT, "effects of an entry need edges as the unit and 1 prompt, got %lld",
                        (long long)task->clean.n_prompts);
    const int64_t length = task->clean.offsets[1];
    if (entry->key < 0 || entry->key > entry->query || entry->query >= length)
        return asp_fail(err, ASP_BAD_INDEX,
                        "an entry leads from a key to a query not before it, both in 0..%lld, got key %lld and "
                        "query %lld",
                        (long long)length - 1, (long long)entry->key, (long long)entry->query);
    return ASP_OK;
}

static asp_status allocate_entry(entry_work *w, asp_error *err) {
    const int64_t n = w->n;
    asp_arena_part parts[] = {ASP_PART(w->rows, n, 4),   ASP_PART(w->sorted, n, 4),   ASP_PART(w->values, n + 1, 1),
                              ASP_PART(w->effect, n, 1), ASP_PART(w->keys, n, 1),     ASP_PART(w->order, n, 1),
                              ASP_PART(w->other, n, 1),  ASP_PART(w->sizes, n + 1, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    asp_arena_lay_out(&w->arena, parts, PARTS);
    if (!asp_arena_commit(&w->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the effects of an entry in %lld heads", (long long)n);
    asp_arena_wire(&w->arena, parts, PARTS);
    return ASP_OK;
}

/* Items of the heads that have the entry. */
static void list_heads(entry_work *w, const asp_config *config) {
    int32_t *row = w->rows;
    for (int64_t i = 0; i < config->n_layer * config->n_head; i++) {
        if (w->entry->weight[i] == 0) continue;
        *row++ = (int32_t)(i / config->n_head);
        *row++ = (int32_t)(i % config->n_head);
        *row++ = (int32_t)w->entry->query;
        *row++ = (int32_t)w->entry->key;
    }
}

/* Largest effect first; of equal ones the first. */
static void sort_heads(entry_work *w, const asp_config *config) {
    asp_entry_effects *f = w->found;
    for (int64_t i = 0; i < w->n; i++) {
        w->effect[i] = f->full - w->values[i];
        w->keys[i] = -w->effect[i];
        w->order[i] = i;
    }
    asp_ranking_sort(w->order, w->other, w->keys, w->n);
    for (int64_t i = 0; i < w->n; i++) {
        const int32_t *row = w->rows + 4 * w->order[i];
        for (int j = 0; j < 4; j++) w->sorted[4 * i + j] = row[j];
        f->heads[2 * i] = row[0];
        f->heads[2 * i + 1] = row[1];
        f->weight[i] = w->entry->weight[row[0] * config->n_head + row[1]];
        f->effect[i] = w->effect[w->order[i]];
    }
}

/* Effects one by one, then with the first 0..n of the entries kept, and everything that is no such entry. */
static asp_status measure_entry(entry_work *w, const asp_model *model, const asp_task *task,
                                const asp_effect_options *options, const asp_context *context, asp_error *err) {
    asp_entry_effects *f = w->found;
    asp_measurement asked = {
        .stage = "knock-out", .items = {w->rows, w->n}, .others = ASP_RANK_KEPT, .n_sizes = -1, .values = w->values};
    asp_status status = asp_effects_whole(&f->full, model, task, context, err);
    if (!status) status = asp_measure(model, task, &asked, options, context, err);
    if (status) return status;
    sort_heads(w, &model->config);
    for (int64_t i = 0; i <= w->n; i++) w->sizes[i] = i;
    asked = (asp_measurement){.stage = "keep only",
                              .items = {w->sorted, w->n},
                              .others = ASP_RANK_KEPT,
                              .sizes = w->sizes,
                              .n_sizes = w->n + 1,
                              .values = w->values};
    status = asp_measure(model, task, &asked, options, context, err);
    if (status) return status;
    f->without = w->values[0];
    for (int64_t i = 0; i <= w->n; i++) f->kept[i] = (w->values[i] - f->without) / (f->full - f->without);
    return ASP_OK;
}

asp_status asp_entry_measure(asp_entry_effects *found, const asp_model *model, const asp_task *task,
                             const asp_entry *entry, const asp_effect_options *options, const asp_context *context,
                             asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    entry_work w = {.found = found, .entry = entry};
    found->n = 0;
    asp_status status = check_question(model, task, entry, options, err);
    if (status) return status;
    for (int64_t i = 0; i < model->config.n_layer * model->config.n_head; i++) w.n += entry->weight[i] != 0;
    status = allocate_entry(&w, err);
    if (!status) {
        list_heads(&w, &model->config);
        status = measure_entry(&w, model, task, options, &own, err);
    }
    if (!status) found->n = w.n;
    asp_arena_free(&w.arena);
    return status;
}
