/* measure.c: the metric with items of a task kept, or dropped in turn: ranks of all items, the variants of each block
 * of prompts, and sweeps over them.
 *
 * Items are ranked in the order given.  An item that is dropped in turn changes nothing before its layer and position;
 * where everything that is not listed is ablated, the variants differ from a run in which that is so already. */
#include "circuit/circuit.h"

enum { SWEEP_VARIANTS = 8192 }; /* of one sweep, at most; progress is told after each */

typedef struct {
    const asp_measurement *asked;
    asp_setting setting;
    int64_t n_variants;  /* of one prompt; dropped in turn, the last one drops nothing */
    int64_t total, told; /* variants of all prompts; those that a sweep has been begun for */
    int starts_ablated;  /* the clean run has ablated what no variant keeps */
    asp_arena arena;
    int32_t *order;        /* (L,H), (L,H,T) or (L,H,T,T) */
    asp_variant *variants; /* (SWEEP_VARIANTS) */
    double *values;        /* (SWEEP_VARIANTS) */
    int64_t *rows;         /* (SWEEP_VARIANTS) number of each variant among those of its prompt */
    int64_t n_filled;
    double *all;                 /* (P) */
    asp_variant *everything;     /* (P) of the clean run that starts ablated */
    asp_variant_scratch scratch; /* (n_threads) of each, for that run */
    int32_t *own, *places;       /* (P,T) of that run: 0, every row is computed; its position */
} measure;

/* ---- ranks -------------------------------------------------------------------------------------------- */

static int n_columns(asp_unit unit) { return 2 + (int)unit; }

static asp_status check_item(const measure *m, int64_t i, const int32_t *row, asp_error *err) {
    static const char *const names[] = {"layer", "head", "position", "key"};
    const asp_config *c = &m->setting.model->config;
    const int64_t limits[] = {c->n_layer, c->n_head, m->setting.length, m->setting.length};
    for (int j = 0; j < n_columns(m->setting.options.unit); j++)
        if (row[j] < 0 || row[j] >= limits[j])
            return asp_fail(err, ASP_BAD_INDEX, "item %lld has %s %lld, which is out of range 0..%lld", (long long)i,
                            names[j], (long long)row[j], (long long)limits[j] - 1);
    if (m->setting.options.unit == ASP_UNIT_EDGE && row[3] > row[2])
        return asp_fail(err, ASP_BAD_INDEX, "item %lld has key %lld after its query %lld", (long long)i,
                        (long long)row[3], (long long)row[2]);
    return ASP_OK;
}

typedef struct {
    int32_t *order;
    const uint8_t *open;
    int64_t per_head;
    int32_t others;
} fill_job;

static void fill_ranks_item(void *arg, int64_t head_index, int thread) {
    (void)thread;
    const fill_job *job = arg;
    for (int64_t i = head_index * job->per_head; i < (head_index + 1) * job->per_head; i++)
        job->order[i] = job->open && !job->open[i] ? ASP_RANK_CLOSED : job->others;
}

/* Ranks of all items of the unit; also sees whether an item is listed twice. */
static asp_status rank_items(const measure *m, const asp_context *context, asp_error *err) {
    const asp_items *items = &m->asked->items;
    const asp_config *c = &m->setting.model->config;
    const asp_unit unit = m->setting.options.unit;
    const int64_t t = m->setting.length, heads = c->n_layer * c->n_head;
    fill_job job = {m->order, m->setting.open, asp_setting_places(c, unit, t) / heads, m->asked->others};
    const asp_status status = asp_parallel_for(context, heads, fill_ranks_item, &job);
    for (int64_t i = 0; !status && i < items->n; i++) {
        const int32_t *row = items->rows + i * n_columns(unit);
        int64_t place = row[0] * c->n_head + row[1];
        for (int j = 2; j < n_columns(unit); j++) place = place * t + row[j];
        if (m->order[place] >= 0 && m->order[place] < i)
            return asp_fail(err, ASP_BAD_ARGUMENT, "items must be unique; row %lld repeats row %lld", (long long)i,
                            (long long)m->order[place]);
        m->order[place] = (int32_t)i;
    }
    return status;
}

static int in_turn(const measure *m) { return m->asked->n_sizes < 0; }

/* How many items are dropped in turn. */
static int64_t n_turns(const measure *m) { return m->asked->dropped ? m->asked->n_dropped : m->asked->items.n; }

/* The item that turn i drops. */
static int64_t item_of_turn(const measure *m, int64_t i) { return m->asked->dropped ? m->asked->dropped[i] : i; }

/* ---- variants ----------------------------------------------------------------------------------------- */

/* Number i of the variants of one prompt of t tokens. */
static asp_variant variant_of(const measure *m, int64_t i, int64_t sequence, int64_t t) {
    const asp_items *items = &m->asked->items;
    const int64_t last_layer = m->setting.model->config.n_layer - 1;
    const asp_unit unit = m->setting.options.unit;
    if (!in_turn(m)) return (asp_variant){.sequence = sequence, .keep_end = m->asked->sizes[i], .dropped = -1};
    if (i == n_turns(m)) return (asp_variant){sequence, last_layer, t - 1, ASP_SCOPE_ALL, 0, items->n, -1};
    const int64_t item = item_of_turn(m, i);
    const int32_t *row = items->rows + item * n_columns(unit);
    asp_variant v = {.sequence = sequence, .start_layer = row[0], .keep_end = items->n, .dropped = item};
    if (unit == ASP_UNIT_HEAD) return v;
    v.first_position = row[2];
    if (row[0] < last_layer) v.scope = m->starts_ablated ? ASP_SCOPE_LATER : ASP_SCOPE_POINT;
    return v;
}

/* Not an item of the last layer before the last token: nothing reads it. */
static int reaches(const measure *m, int64_t i, int64_t t) {
    const asp_items *items = &m->asked->items;
    const asp_unit unit = m->setting.options.unit;
    if (!in_turn(m) || unit == ASP_UNIT_HEAD || i == n_turns(m)) return 1;
    const int32_t *row = items->rows + item_of_turn(m, i) * n_columns(unit);
    return row[0] < m->setting.model->config.n_layer - 1 || row[2] == t - 1;
}

static void put_value(const measure *m, int64_t i, int64_t prompt, double value) {
    if (in_turn(m) && i == n_turns(m)) m->all[prompt] = value;
    else m->asked->values[i * m->setting.task->clean.n_prompts + prompt] = value;
}

/* ---- one block of prompts ------------------------------------------------------------------------------ */

/* A clean run of the block in which everything that no variant keeps is ablated. */
static asp_status run_ablated(measure *m, asp_run **clean, uint64_t records, const asp_context *context,
                              asp_error *err) {
    const asp_setting *s = &m->setting;
    asp_variants view = {.config = &s->model->config,
                         .variants = m->everything,
                         .unit = s->options.unit,
                         .order = m->order,
                         .clean_qkv.data = s->model->data, /* of rows before the first position: there are none */
                         .longest = s->length,
                         .own = m->own,
                         .before = m->places,
                         .after = m->places,
                         .scratch = m->scratch};
    asp_status status = asp_reference_open(&view.replacement, &s->replacement, &s->model->config, s->offsets, s->n,
                                           s->options.unit != ASP_UNIT_HEAD, s->stage, err);
    if (status) return status;
    for (int64_t b = 0; b < s->n; b++) {
        m->everything[b] = (asp_variant){.sequence = b, .keep_end = m->asked->items.n, .dropped = -1};
        for (int64_t t = 0; t < s->length; t++) m->places[b * s->length + t] = (int32_t)t;
    }
    const asp_hooks hooks = asp_variants_hooks(&view);
    return asp_setting_run(clean, s, s->tokens, records, ASP_LOGITS_NONE, &hooks, context, err);
}

/* done: how many variants are, when these are. */
static asp_status sweep_filled(measure *m, const asp_run *clean, int64_t done, const asp_context *context,
                               asp_error *err) {
    const asp_setting *s = &m->setting;
    const asp_sweep_options options = {.unit = s->options.unit,
                                       .order = m->order,
                                       .reference = s->replacement,
                                       .metric = s->metric};
    if (!m->n_filled) return ASP_OK;
    const asp_context inner = asp_context_stage(context, s->stage, m->told, done, m->total);
    const asp_status status = asp_sweep(m->values, s->model, clean, m->variants, m->n_filled, &options, &inner, err);
    m->told = done;
    if (status) return status;
    for (int64_t i = 0; i < m->n_filled; i++)
        put_value(m, m->rows[i], s->first + m->variants[i].sequence, m->values[i]);
    m->n_filled = 0;
    return ASP_OK;
}

/* Variants of the block's prompts, in order; those that cannot reach the metric are left out. */
static asp_status sweep_block(measure *m, const asp_run *clean, const asp_context *context, asp_error *err) {
    const asp_setting *s = &m->setting;
    int64_t done = m->n_variants * s->first;
    for (int64_t b = 0; b < s->n; b++) {
        const int64_t t = s->offsets[b + 1] - s->offsets[b];
        for (int64_t i = 0; i < m->n_variants; i++, done++) {
            if (!reaches(m, i, t)) continue;
            if (m->n_filled == s->n_variants) {
                asp_status status = sweep_filled(m, clean, done, context, err);
                if (!status) status = asp_context_progress(context, s->stage, done, m->total);
                if (status) return status;
            }
            m->rows[m->n_filled] = i;
            m->variants[m->n_filled++] = variant_of(m, i, b, t);
        }
    }
    asp_status status = sweep_filled(m, clean, done, context, err);
    for (int64_t b = 0; !status && b < s->n; b++)
        for (int64_t i = 0; i < m->n_variants; i++)
            if (!reaches(m, i, s->offsets[b + 1] - s->offsets[b])) put_value(m, i, s->first + b, m->all[s->first + b]);
    return status ? status : asp_context_progress(context, s->stage, done, m->total);
}

static asp_status measure_block(measure *m, const asp_context *context, asp_error *err) {
    const uint64_t records = (uint64_t)1 << ASP_RESID | (uint64_t)1 << ASP_QKV;
    const asp_setting *s = &m->setting;
    asp_run *clean = NULL;
    asp_status status = m->starts_ablated
                            ? run_ablated(m, &clean, records, context, err)
                            : asp_setting_run(&clean, s, s->tokens, records, ASP_LOGITS_NONE, NULL, context, err);
    if (!status) status = sweep_block(m, clean, context, err);
    asp_run_free(clean);
    return status;
}

/* ---- the call ------------------------------------------------------------------------------------------ */

static asp_status check_asked(const measure *m, asp_error *err) {
    const asp_measurement *asked = m->asked;
    asp_status status = ASP_OK;
    if (asked->items.n >= ASP_RANK_NEVER)
        return asp_fail(err, ASP_BAD_ARGUMENT, "%s: at most %d items can be ranked", asked->stage, ASP_RANK_NEVER);
    for (int64_t i = 0; !status && i < asked->items.n; i++)
        status = check_item(m, i, asked->items.rows + i * n_columns(m->setting.options.unit), err);
    for (int64_t i = 0; !status && i < asked->n_sizes; i++)
        if (asked->sizes[i] < 0 || asked->sizes[i] > asked->items.n)
            return asp_fail(err, ASP_BAD_ARGUMENT, "sizes must be in 0..%lld, the number of items, got %lld",
                            (long long)asked->items.n, (long long)asked->sizes[i]);
    for (int64_t i = 0; !status && asked->dropped && i < asked->n_dropped; i++)
        if (asked->dropped[i] < 0 || asked->dropped[i] >= asked->items.n)
            return asp_fail(err, ASP_BAD_INDEX, "dropped item %lld is out of range 0..%lld",
                            (long long)asked->dropped[i], (long long)asked->items.n - 1);
    return status;
}

static asp_status open_measure(measure *m, const asp_context *context, asp_error *err) {
    asp_setting *s = &m->setting;
    const asp_measurement *asked = m->asked;
    const int64_t places = asp_setting_places(&s->model->config, s->options.unit, s->length);
    const int64_t n_prompts = s->task->clean.n_prompts;
    m->n_variants = in_turn(m) ? n_turns(m) + 1 : asked->n_sizes;
    if (!asp_multiply(m->n_variants, n_prompts, &m->total)) m->total = INT64_MAX;
    s->n_variants = asp_max(1, asp_min(SWEEP_VARIANTS, m->total));
    m->starts_ablated = in_turn(m) && asked->others == ASP_RANK_NEVER && asked->items.n < places;
    const int64_t n_ablated = m->starts_ablated ? n_prompts : 0, t = s->length;
    const int64_t n_threads = m->starts_ablated ? context->n_threads : 0;
    asp_arena_part parts[] = {ASP_PART(m->order, places, 1),
                              ASP_PART(m->variants, s->n_variants, 1),
                              ASP_PART(m->values, s->n_variants, 1),
                              ASP_PART(m->rows, s->n_variants, 1),
                              ASP_PART(m->all, n_prompts, 1),
                              ASP_PART(m->everything, n_ablated, 1),
                              ASP_PART(m->own, n_ablated, t),
                              ASP_PART(m->places, n_ablated, t),
                              ASP_PART(m->scratch.rows, n_threads, t),
                              ASP_PART(m->scratch.held, n_threads, t),
                              ASP_PART(m->scratch.z_rows, n_threads, t),
                              ASP_PART(m->scratch.queries, n_threads, t),
                              ASP_PART(m->scratch.attending, n_threads, t),
                              ASP_PART(m->scratch.mask, n_threads * t, t)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    s->own_bytes = asp_arena_lay_out(&m->arena, parts, PARTS);
    asp_status status = asp_setting_open(s, context, err);
    if (status) return status;
    if (!asp_arena_commit(&m->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "%s: no memory for the order of %lld items", s->stage, (long long)places);
    asp_arena_wire(&m->arena, parts, PARTS);
    return rank_items(m, context, err);
}

asp_status asp_measure(const asp_model *model, const asp_task *task, const asp_measurement *asked,
                       const asp_effect_options *options, const asp_context *context, asp_error *err) {
    const int closes = options->unit == ASP_UNIT_EDGE && options->ablation != ASP_ABLATE_ZERO && model->config.gated &&
                       asked->others == ASP_RANK_NEVER;
    measure m = {.asked = asked,
                 .setting = {.model = model,
                             .task = task,
                             .stage = asked->stage,
                             .options = *options,
                             .n_items = asked->items.n,
                             .leaves_closed = closes}};
    asp_status status = asp_setting_check(&m.setting, err);
    if (!status) status = check_asked(&m, err);
    if (!status) status = open_measure(&m, context, err);
    if (!status) status = asp_context_progress(context, asked->stage, 0, m.total);
    if (!status) status = asp_setting_next(&m.setting, context, err);
    while (!status && m.setting.n) {
        status = measure_block(&m, context, err);
        if (!status) status = asp_setting_next(&m.setting, context, err);
    }
    for (int64_t i = 0; !status && asked->all && i < task->clean.n_prompts; i++) asked->all[i] = m.all[i];
    asp_setting_close(&m.setting);
    asp_arena_free(&m.arena);
    return status;
}
