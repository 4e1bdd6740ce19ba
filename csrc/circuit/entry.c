/* entry.c: the entry from one position of a prompt to another in every head: what the metric loses without it in each
 * of them, and how much of it is left with the entries of the best few heads alone, over the prompts of a task.
 *
 * Neighbouring prompts that are as long and have the entry at the same place are measured together, some at a time, so
 * that a call can be stopped between them and continue. */
#include "circuit/circuit.h"

enum { BLOCK_PROMPTS = 64 }; /* measured together, at most */

typedef struct {
    asp_entry_effects *found;
    const asp_model *model;
    const asp_task *task;
    const asp_entries *entries;
    asp_effect_options options;
    int64_t n, n_heads; /* heads that have the entry in some prompt; all heads */
    asp_arena arena;
    int64_t *heads;   /* (n) layer * H + head: in rising order, at last by falling effect */
    int32_t *rows;    /* (n,4) items of a block */
    double *values;   /* (n+1,P) of the metric in a block */
    double *mean;     /* (n) effects, of heads in rising order */
    double *keys;     /* (n) minus that */
    int64_t *order;   /* (n) */
    int64_t *other;   /* (n) */
    int64_t *sizes;   /* (n+1): 0..n */
    int64_t *offsets; /* (P+1) of a block */
} entry_work;

static asp_status check_question(const asp_model *model, const asp_task *task, const asp_entries *entries,
                                 const asp_effect_options *options, asp_error *err) {
    asp_status status = asp_task_check(model, task, err);
    if (status) return status;
    if (options->unit != ASP_UNIT_EDGE)
        return asp_fail(err, ASP_BAD_ARGUMENT, "effects of an entry need edges as the unit");
    for (int64_t p = 0; p < task->clean.n_prompts; p++) {
        const int64_t length = task->clean.offsets[p + 1] - task->clean.offsets[p];
        const int64_t key = entries->key[p], query = entries->query[p];
        if (key < 0 || key > query || query >= length)
            return asp_fail(err, ASP_BAD_INDEX,
                            "an entry leads from a key to a query not before it, both in 0..%lld in prompt %lld, got "
                            "key %lld and query %lld",
                            (long long)length - 1, (long long)p, (long long)key, (long long)query);
    }
    return ASP_OK;
}

static int has_entry(const entry_work *w, int64_t head) {
    for (int64_t p = 0; p < w->task->clean.n_prompts; p++)
        if (w->entries->weight[p * w->n_heads + head] != 0) return 1;
    return 0;
}

static asp_status allocate_entry(entry_work *w, asp_error *err) {
    const int64_t n = w->n, n_prompts = w->task->clean.n_prompts;
    asp_arena_part parts[] = {
        ASP_PART(w->heads, n, 1), ASP_PART(w->rows, n, 4),      ASP_PART(w->values, n + 1, n_prompts),
        ASP_PART(w->mean, n, 1),  ASP_PART(w->keys, n, 1),      ASP_PART(w->order, n, 1),
        ASP_PART(w->other, n, 1), ASP_PART(w->sizes, n + 1, 1), ASP_PART(w->offsets, n_prompts + 1, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    asp_arena_lay_out(&w->arena, parts, PARTS);
    if (!asp_arena_commit(&w->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the effects of an entry in %lld heads", (long long)n);
    asp_arena_wire(&w->arena, parts, PARTS);
    return ASP_OK;
}

/* ---- blocks of prompts ---------------------------------------------------------------------------------- */

static int64_t entry_block_end(const entry_work *w, int64_t first) {
    const asp_prompts *clean = &w->task->clean;
    const asp_entries *e = w->entries;
    const int64_t length = clean->offsets[first + 1] - clean->offsets[first];
    int64_t end = first + 1;
    while (end < clean->n_prompts && end - first < BLOCK_PROMPTS &&
           clean->offsets[end + 1] - clean->offsets[end] == length && e->query[end] == e->query[first] &&
           e->key[end] == e->key[first])
        end++;
    return end;
}

static asp_task entry_block(const entry_work *w, int64_t first, int64_t end) {
    const asp_task *task = w->task;
    const asp_prompts clean = {asp_task_block(w->offsets, &task->clean, first, end), w->offsets, end - first};
    asp_task block = {.clean = clean};
    block.metric = asp_metric_part(&task->metric, first, end - first, w->model->config.n_vocab);
    if (!task->corrupted.n_prompts) return block;
    block.corrupted = clean;
    block.corrupted.tokens = task->corrupted.tokens + task->clean.offsets[first];
    return block;
}

/* The entries of the heads, in their order, as items of a block that begins with a prompt. */
static asp_items list_entries_of_heads(const entry_work *w, int64_t prompt) {
    const int64_t n_head = w->model->config.n_head;
    for (int64_t i = 0; i < w->n; i++) {
        int32_t *row = w->rows + 4 * i;
        row[0] = (int32_t)(w->heads[i] / n_head);
        row[1] = (int32_t)(w->heads[i] % n_head);
        row[2] = (int32_t)w->entries->query[prompt];
        row[3] = (int32_t)w->entries->key[prompt];
    }
    return (asp_items){w->rows, w->n};
}

/* ---- measurements --------------------------------------------------------------------------------------- */

/* Effects of a block, whose values with each entry ablated alone are (n, end - first).  An entry that is 0 is ablated
 * to 0 without any effect: not even that of rounding. */
static void put_effects(const entry_work *w, int64_t first, int64_t end) {
    const asp_entry_effects *f = w->found;
    for (int64_t i = 0; i < w->n; i++)
        for (int64_t p = first; p < end; p++) {
            const int64_t at = p * w->n_heads + w->heads[i];
            const int none = w->options.ablation == ASP_ABLATE_ZERO && w->entries->weight[at] == 0;
            f->effect[at] = none ? 0 : f->full[p] - w->values[i * (end - first) + p - first];
        }
}

/* Values of a block with the first 0..n entries kept: from (n+1, end - first) to (n+1,P). */
static void put_kept(const entry_work *w, int64_t first, int64_t end) {
    for (int64_t i = 0; i <= w->n; i++)
        for (int64_t p = first; p < end; p++)
            w->found->values[i * w->task->clean.n_prompts + p] = w->values[i * (end - first) + p - first];
}

/* Block by block: each entry ablated alone, or the first so many kept with everything that is no such entry.
 * before: prompts of the stages before. */
static asp_status measure_blocks(const entry_work *w, asp_measurement asked, int64_t before, const asp_context *context,
                                 asp_error *err) {
    const int64_t n_prompts = w->task->clean.n_prompts, rows = asked.sizes ? asked.n_sizes : w->n;
    const int64_t done = asp_max(0, w->found->n_done - before);
    asp_status status = asp_context_progress(context, asked.stage, rows * done, rows * n_prompts);
    for (int64_t first = 0, end; !status && first < n_prompts; first = end) {
        end = entry_block_end(w, first);
        if (end <= done) continue;
        const asp_context whole = asp_context_stage(context, asked.stage, rows * first, rows * end, rows * n_prompts);
        const asp_context inner = asp_find_within(&whole);
        const asp_task block = entry_block(w, first, end);
        asked.items = list_entries_of_heads(w, first);
        status = asp_measure(w->model, &block, &asked, &w->options, &inner, err);
        if (status) break;
        (asked.sizes ? put_kept : put_effects)(w, first, end);
        w->found->n_done = before + end;
        status = asp_context_progress(context, asked.stage, rows * end, rows * n_prompts);
    }
    return status;
}

/* Largest mean effect first; of equal ones the first. */
static void sort_heads(entry_work *w) {
    asp_entry_effects *f = w->found;
    const int64_t n_prompts = w->task->clean.n_prompts;
    for (int64_t i = 0; i < w->n; i++) {
        double sum = 0;
        for (int64_t p = 0; p < n_prompts; p++) sum += f->effect[p * w->n_heads + w->heads[i]];
        w->mean[i] = sum / (double)n_prompts;
        w->keys[i] = -w->mean[i];
        w->order[i] = i;
    }
    asp_ranking_sort(w->order, w->other, w->keys, w->n);
    for (int64_t i = 0; i < w->n; i++) {
        f->mean[i] = w->mean[w->order[i]];
        w->other[i] = w->heads[w->order[i]];
    }
    for (int64_t i = 0; i < w->n; i++) {
        w->heads[i] = w->other[i];
        f->heads[2 * i] = (int32_t)(w->heads[i] / w->model->config.n_head);
        f->heads[2 * i + 1] = (int32_t)(w->heads[i] % w->model->config.n_head);
    }
}

static asp_status measure_entry(entry_work *w, const asp_context *context, asp_error *err) {
    asp_measurement asked = {.stage = "knock-out", .others = ASP_RANK_KEPT, .n_sizes = -1, .values = w->values};
    asp_status status = ASP_OK;
    if (!w->found->n_done) status = asp_effects_whole(w->found->full, w->model, w->task, context, err);
    if (!status) status = measure_blocks(w, asked, 0, context, err);
    if (status) return status;
    sort_heads(w);
    for (int64_t i = 0; i <= w->n; i++) w->sizes[i] = i;
    asked.stage = "keep only";
    asked.sizes = w->sizes;
    asked.n_sizes = w->n + 1;
    return measure_blocks(w, asked, w->task->clean.n_prompts, context, err);
}

asp_status asp_entry_measure(asp_entry_effects *found, const asp_model *model, const asp_task *task,
                             const asp_entries *entries, const asp_effect_options *options, const asp_context *context,
                             asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    entry_work w = {.found = found, .model = model, .task = task, .entries = entries, .options = *options};
    found->n = 0;
    asp_status status = check_question(model, task, entries, options, err);
    if (!status && (found->n_done < 0 || found->n_done > 2 * task->clean.n_prompts))
        status = asp_fail(err, ASP_BAD_ARGUMENT, "effects of an entry: %lld prompts are kept, of twice %lld",
                          (long long)found->n_done, (long long)task->clean.n_prompts);
    if (status) return status;
    if (options->ablation == ASP_ABLATE_MEAN && !options->reference) w.options.reference = &task->clean;
    w.n_heads = model->config.n_layer * model->config.n_head;
    for (int64_t i = 0; i < w.n_heads; i++) w.n += has_entry(&w, i);
    status = allocate_entry(&w, err);
    if (!status) {
        for (int64_t i = 0; !found->n_done && i < w.n_heads * task->clean.n_prompts; i++) found->effect[i] = 0;
        for (int64_t i = 0, n = 0; i < w.n_heads; i++)
            if (has_entry(&w, i)) w.heads[n++] = i;
        status = measure_entry(&w, &own, err);
    }
    if (!status) found->n = w.n;
    asp_arena_free(&w.arena);
    return status;
}
