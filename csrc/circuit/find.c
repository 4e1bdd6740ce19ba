/* find.c: the steps of a search besides the ranking: the whole model and the empty one, the sizes at which the ranking
 * is evaluated, random orders beside it, and the interval over prompts. */
#include <math.h>
#include <string.h>

#include "circuit/circuit.h"

enum {
    EXACT_SIZES = 32, /* up to here every number of items is evaluated, above it steps of 1 / STEP */
    STEP = 20,
    REFINE_ROUNDS = 3,
    REFINE_POINTS = 4, /* in each of two gaps */
    RANDOM_SIZES = 24  /* at most, for each random order */
};
static const char *const RANDOM_STAGE = "random orders";
static const double FRACTION = 0.9; /* where sizes are made finer */
static const double SAME = 1e-7;    /* relative difference of two metrics that is rounding */

/* ---- what the steps share ------------------------------------------------------------------------- */

asp_context asp_find_quiet(const asp_context *context) {
    asp_context quiet = *context;
    quiet.progress = NULL;
    return quiet;
}

static int tell_share(void *state, const char *stage, int64_t done, int64_t total) {
    (void)stage;
    return asp_context_share(state, (double)done / (double)asp_max(1, total)) != ASP_OK;
}

asp_context asp_find_within(const asp_context *whole) {
    asp_context inner = asp_find_quiet(whole);
    inner.stage = NULL;
    if (!whole->progress) return inner;
    inner.progress = tell_share;
    inner.progress_state = (void *)(uintptr_t)whole; /* read alone */
    return inner;
}

static asp_status refuse_unless_finite(const asp_circuit *c, const double *x, int64_t n, const char *what,
                                       asp_error *err) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "metric '%s' of task '%s': %s is not finite with some items ablated; are all weights of "
                            "the model finite?",
                            c->options.metric_name, c->options.task_name, what);
    return ASP_OK;
}

asp_status asp_find_check_finite(const asp_circuit *c, const double *x, int64_t n, asp_error *err) {
    return refuse_unless_finite(c, x, n, "it", err);
}

/* ---- what is measured ----------------------------------------------------------------------------------- */

/* The measurer of a search that has none of its own; state: the search. */
static asp_status measure_here(void *state, double *values, const asp_circuit_question *q, int64_t n_values,
                               const asp_context *context, asp_error *err) {
    (void)n_values;
    const asp_circuit *c = state;
    const asp_task *task = q->of_ranking ? c->ranking : c->evaluation;
    const asp_effect_options *o = &c->options.effects;
    switch (q->kind) {
    case ASP_ASK_KNOCK_OUT: return asp_effects_knock_out(values, c->model, task, q->items, o, context, err);
    case ASP_ASK_KEEP_ONLY:
        return asp_effects_keep_only(values, c->model, task, q->items, q->sizes, q->n_sizes, o, context, err);
    case ASP_ASK_LEAVE_ONE_OUT:
        return asp_effects_leave_one_out(values, c->model, task, q->items, NULL, q->items.n, o, context, err);
    default: return asp_effects_attribution(values, c->model, task, o, q->steps, 0, context, err);
    }
}

/* Numbers of the answer. */
static int64_t count_values(const asp_circuit *c, const asp_circuit_question *q) {
    const asp_prompts *clean = &(q->of_ranking ? c->ranking : c->evaluation)->clean;
    if (q->kind == ASP_ASK_ATTRIBUTION)
        return asp_setting_places(asp_model_config(c->model), c->options.effects.unit, clean->offsets[1]);
    return (q->kind == ASP_ASK_KEEP_ONLY ? q->n_sizes : q->items.n) * clean->n_prompts;
}

asp_status asp_find_ask(double *values, const asp_circuit *c, const asp_circuit_question *question,
                        const asp_context *context, asp_error *err) {
    const asp_circuit_measurer here = {(void *)(uintptr_t)c, measure_here}; /* read alone */
    const asp_circuit_measurer *m = c->measurer ? c->measurer : &here;
    const char *what = question->kind == ASP_ASK_ATTRIBUTION ? "its gradient" : "it";
    const int64_t n = count_values(c, question);
    const asp_status status = m->measure(m->state, values, question, n, context, err);
    return status ? status : refuse_unless_finite(c, values, n, what, err);
}

double *asp_find_line(const asp_circuit *c, asp_circuit_part part) {
    return c->lines + (part - ASP_CIRCUIT_EFFECT) * c->max_sizes;
}

/* What `values` (n_sizes,P) explain. */
static asp_curve curve_of(const asp_circuit *c, const double *values, int64_t n_sizes) {
    return (asp_curve){values, c->full, c->empty, n_sizes, c->n_prompts, c->options.normalization};
}

/* The metric on the evaluation prompts with the first so many of `items` kept.  values (n,P) written */
static asp_status keep_first_sizes(double *values, const asp_circuit *c, const int32_t *items, const int64_t *sizes,
                                   int64_t n, const asp_context *context, asp_error *err) {
    const asp_circuit_question asked = {.kind = ASP_ASK_KEEP_ONLY,
                                        .items = {items, c->n_items},
                                        .sizes = sizes,
                                        .n_sizes = n};
    return asp_find_ask(values, c, &asked, context, err);
}

/* ---- the whole model and the empty one ---------------------------------------------------------------- */

static double mean_size(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += fabs(x[i]);
    return sum / (double)n;
}

/* Fails if the normalization would divide by 0, but for rounding. */
static asp_status check_divisor(const asp_circuit *c, asp_error *err) {
    static const char *const names[] = {"heads", "heads at a position", "attention edges"};
    const int64_t p = c->n_prompts;
    const double whole = asp_curve_mean(c->full, p), nothing = asp_curve_mean(c->empty, p);
    const double scale = SAME * fmax(mean_size(c->full, p), mean_size(c->empty, p));
    if (c->options.normalization == ASP_NORMALIZE_MIB && fabs(whole - nothing) <= scale)
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "ablating all %s does not change the metric (mean %.6g with, %.6g without), so "
                        "normalize='mib' would divide by 0; try another ablation, or normalize='none'",
                        names[c->options.effects.unit], whole, nothing);
    if (c->options.normalization == ASP_NORMALIZE_RATIO && fabs(whole) <= scale)
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "the whole model's metric is %.6g, so normalize='ratio' would divide by 0; use 'mib'", whole);
    return ASP_OK;
}

static asp_status measure_whole(asp_circuit *c, const asp_context *context, asp_error *err) {
    const asp_context quiet = asp_find_quiet(context);
    const int64_t none = 0;
    asp_status status = asp_effects_whole(c->full, c->model, c->evaluation, context, err);
    if (!status) status = asp_find_check_finite(c, c->full, c->n_prompts, err);
    if (!status) status = keep_first_sizes(c->empty, c, c->candidates, &none, 1, &quiet, err);
    if (!status) status = check_divisor(c, err);
    if (!status) c->place->stage = ASP_FIND_RANKING;
    else memset(c->full, 0, (size_t)c->n_prompts * sizeof *c->full);
    return status;
}

/* ---- sizes ---------------------------------------------------------------------------------------- */

/* 0..n, or 0..EXACT_SIZES, then steps of 1 / STEP, and n.  Returns how many; sizes written unless it is NULL. */
static int64_t default_sizes(int64_t *sizes, int64_t n, int every) {
    int64_t count = 0;
    for (int64_t size = 0;; count++) {
        if (sizes) sizes[count] = size;
        if (size == n) return count + 1;
        const int64_t step = every || size < EXACT_SIZES ? 1 : asp_max(1, size / STEP);
        size = asp_min(n, size + step);
    }
}

int64_t asp_find_most_sizes(const asp_circuit_options *options, int64_t n_items) {
    if (options->sizes) return options->n_sizes;
    return default_sizes(NULL, n_items, options->effects.unit == ASP_UNIT_HEAD) +
           (int64_t)REFINE_ROUNDS * 2 * REFINE_POINTS;
}

/* The metric with only the best so many items kept; with none it is known.  values (n,P) written */
static asp_status keep_best_items(double *values, const asp_circuit *c, const int64_t *sizes, int64_t n,
                                  const asp_context *context, asp_error *err) {
    const int64_t known = sizes[0] == 0;
    if (known) memcpy(values, c->empty, (size_t)c->n_prompts * sizeof *values);
    return n == known
               ? ASP_OK
               : keep_first_sizes(values + known * c->n_prompts, c, c->items, sizes + known, n - known, context, err);
}

static asp_status evaluate(asp_circuit *c, const asp_context *context, asp_error *err) {
    const asp_circuit_options *o = &c->options;
    int64_t n = o->n_sizes;
    if (o->sizes) memcpy(c->sizes, o->sizes, (size_t)n * sizeof *c->sizes);
    else n = default_sizes(c->sizes, c->n_items, o->effects.unit == ASP_UNIT_HEAD);
    const asp_status status = keep_best_items(c->values, c, c->sizes, n, context, err);
    if (status) return status;
    c->place->n_sizes = n;
    c->place->stage = ASP_FIND_FINER;
    return ASP_OK;
}

/* Sizes that divide the gap before size number i. */
static int64_t divide_gap(int64_t *more, const asp_circuit *c, int64_t i) {
    if (i == 0 || i >= c->place->n_sizes) return 0;
    const int64_t below = c->sizes[i - 1], gap = c->sizes[i] - below, n = asp_min(REFINE_POINTS, gap - 1);
    const double step = (double)gap / (double)(n + 1);
    for (int64_t k = 0; k < n; k++) more[k] = (int64_t)rint((double)(k + 1) * step + (double)below);
    return n;
}

/* Sizes that divide the gaps in which FRACTION is first reached, and from which on it stays reached. */
static int64_t finer_sizes(int64_t *more, const asp_circuit *c) {
    double *effect = asp_find_line(c, ASP_CIRCUIT_EFFECT);
    const asp_curve curve = curve_of(c, c->values, c->place->n_sizes);
    int64_t first, stays;
    asp_curve_effect(effect, &curve);
    asp_curve_needed(&first, &stays, effect, 1, c->place->n_sizes, FRACTION);
    const int64_t n = divide_gap(more, c, first);
    return stays == first ? n : n + divide_gap(more + n, c, stays);
}

/* Puts sizes (n) and their values (n,P) among the others; all ascend. */
static void insert_size(asp_circuit *c, const int64_t *sizes, const double *values, int64_t n) {
    const int64_t p = c->n_prompts;
    int64_t old = c->place->n_sizes - 1;
    for (int64_t at = old + n, more = n - 1; more >= 0; at--) {
        const int is_old = old >= 0 && c->sizes[old] > sizes[more];
        const double *row = is_old ? c->values + old * p : values + more * p;
        c->sizes[at] = is_old ? c->sizes[old] : sizes[more];
        memmove(c->values + at * p, row, (size_t)p * sizeof *row);
        if (is_old) old--;
        else more--;
    }
    c->place->n_sizes += n;
}

/* One round of finer sizes, if sizes are not given and the effect is a share; after the last one the effect. */
static asp_status refine(asp_circuit *c, const asp_context *context, asp_error *err) {
    const int may = !c->options.sizes && c->options.normalization != ASP_NORMALIZE_NONE;
    int64_t more[2 * REFINE_POINTS];
    const int64_t n = may && c->place->n_rounds < REFINE_ROUNDS ? finer_sizes(more, c) : 0;
    if (!n) {
        const asp_curve curve = curve_of(c, c->values, c->place->n_sizes);
        asp_curve_effect(asp_find_line(c, ASP_CIRCUIT_EFFECT), &curve);
        c->place->stage = ASP_FIND_ORDERS;
        return ASP_OK;
    }
    double *values = asp_allocate(n, (size_t)c->n_prompts * sizeof *values); /* (n,P) */
    if (!values) return asp_fail(err, ASP_NO_MEMORY, "no memory for the metric at %lld more sizes", (long long)n);
    const asp_context quiet = asp_find_quiet(context);
    const asp_status status = keep_best_items(values, c, more, n, &quiet, err);
    if (!status) {
        insert_size(c, more, values, n);
        c->place->n_rounds++;
    }
    asp_release(values);
    return status;
}

/* ---- random orders ------------------------------------------------------------------------------------ */

static int is_end(const asp_circuit *c, int64_t i) { return c->sizes[i] == 0 || c->sizes[i] == c->n_items; }

/* Indices of the sizes at which random orders are evaluated, about evenly in their logarithm: RANDOM_SIZES at most.
 * With no items and with all of them an order makes no difference. */
static int64_t choose_sizes(int64_t chosen[RANDOM_SIZES], const asp_circuit *c) {
    const int64_t n = c->place->n_sizes;
    const double step = log10((double)c->sizes[n - 1]) / (RANDOM_SIZES - 1);
    int64_t count = 0;
    for (int64_t k = 0, i = 0, last = -1; k < RANDOM_SIZES; k++) {
        if (n <= RANDOM_SIZES) i = k;
        else if (k == RANDOM_SIZES - 1) i = n - 1;
        else
            while (i < n - 1 && (double)c->sizes[i] < (k ? pow(10, (double)k * step) : 1)) i++;
        if (i < n && i != last && !is_end(c, i)) chosen[count++] = i;
        last = i;
    }
    return count;
}

typedef struct {
    asp_arena arena;
    int64_t *order; /* (n) */
    int32_t *items; /* (n,w) */
    double *values; /* (RANDOM_SIZES,P) */
} order_work;

static asp_status allocate_order(order_work *w, const asp_circuit *c, asp_error *err) {
    asp_arena_part parts[] = {ASP_PART(w->order, c->n_items, 1), ASP_PART(w->items, c->n_items, c->width),
                              ASP_PART(w->values, RANDOM_SIZES, c->n_prompts)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    asp_arena_lay_out(&w->arena, parts, PARTS);
    if (!asp_arena_commit(&w->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "no memory for a random order of %lld items", (long long)c->n_items);
    asp_arena_wire(&w->arena, parts, PARTS);
    return ASP_OK;
}

/* effect (n_chosen) written: of the items in random order number `place->n_orders`. */
static asp_status measure_order(double *effect, const asp_circuit *c, const int64_t *chosen, int64_t n_chosen,
                                const asp_context *context, asp_error *err) {
    int64_t sizes[RANDOM_SIZES];
    order_work w = {0};
    asp_status status = allocate_order(&w, c, err);
    if (!status)
        status = asp_random_permutation(w.order, c->n_items, c->options.seed, ASP_RANDOM_CIRCUITS, ASP_RANDOM_ORDERS,
                                        (uint64_t)c->place->n_orders, err);
    if (!status) {
        asp_ranking_gather(w.items, c, w.order, c->n_items);
        for (int64_t k = 0; k < n_chosen; k++) sizes[k] = c->sizes[chosen[k]];
        status = keep_first_sizes(w.values, c, w.items, sizes, n_chosen, context, err);
    }
    const asp_curve curve = curve_of(c, w.values, n_chosen);
    if (!status) asp_curve_effect(effect, &curve);
    asp_arena_free(&w.arena);
    return status;
}

/* Adds one order's effects to the sum, the smallest and the largest ones. */
static void add_order(asp_circuit *c, const int64_t *chosen, int64_t n_chosen, const double *found) {
    double *sum = asp_find_line(c, ASP_CIRCUIT_RANDOM_EFFECT), *low = asp_find_line(c, ASP_CIRCUIT_RANDOM_LOW),
           *high = asp_find_line(c, ASP_CIRCUIT_RANDOM_HIGH);
    const double *effect = asp_find_line(c, ASP_CIRCUIT_EFFECT);
    const int is_first = c->place->n_orders == 0;
    for (int64_t i = 0, k = 0; i < c->place->n_sizes; i++) {
        const int is_chosen = k < n_chosen && chosen[k] == i;
        const double value = is_chosen ? found[k++] : is_end(c, i) ? effect[i] : NAN;
        sum[i] = (is_first ? 0 : sum[i]) + value;
        low[i] = is_first || value < low[i] ? value : low[i];
        high[i] = is_first || value > high[i] ? value : high[i];
    }
}

/* The mean of all orders; NaN everywhere without any. */
static void finish_orders(asp_circuit *c, int64_t n_orders) {
    for (int64_t i = 0; i < c->place->n_sizes; i++) {
        double *sum = asp_find_line(c, ASP_CIRCUIT_RANDOM_EFFECT) + i;
        *sum = n_orders ? *sum / (double)n_orders : NAN;
        if (n_orders) continue;
        asp_find_line(c, ASP_CIRCUIT_RANDOM_LOW)[i] = NAN;
        asp_find_line(c, ASP_CIRCUIT_RANDOM_HIGH)[i] = NAN;
    }
}

/* The next random order; after the last one the mean. */
static asp_status try_order(asp_circuit *c, const asp_context *context, asp_error *err) {
    const int64_t n_orders = c->options.n_random;
    if (c->place->n_orders == n_orders) {
        finish_orders(c, n_orders);
        c->place->stage = ASP_FIND_INTERVAL;
        return ASP_OK;
    }
    int64_t chosen[RANDOM_SIZES];
    double found[RANDOM_SIZES];
    const int64_t n_chosen = choose_sizes(chosen, c);
    const int64_t runs = asp_max(1, n_chosen), done = c->place->n_orders * runs;
    const asp_context whole = asp_context_stage(context, RANDOM_STAGE, done, done + runs, n_orders * runs);
    const asp_context inner = asp_find_within(&whole);
    asp_status status = done ? ASP_OK : asp_context_progress(context, RANDOM_STAGE, 0, n_orders * runs);
    if (!status && n_chosen) status = measure_order(found, c, chosen, n_chosen, &inner, err);
    if (status) return status;
    add_order(c, chosen, n_chosen, found);
    c->place->n_orders++;
    return asp_context_progress(context, RANDOM_STAGE, done + runs, n_orders * runs);
}

/* ---- the interval over prompts -------------------------------------------------------------------------- */

static asp_status resample_interval(asp_circuit *c, const asp_context *context, asp_error *err) {
    const asp_circuit_options *o = &c->options;
    const asp_curve curve = curve_of(c, c->values, c->place->n_sizes);
    int64_t n_valid;
    double *curves = asp_allocate(o->n_bootstrap, (size_t)curve.n_sizes * sizeof *curves); /* (n_bootstrap,S) */
    if (!curves)
        return asp_fail(err, ASP_NO_MEMORY, "no memory for the curves of %lld resamples at %lld sizes",
                        (long long)o->n_bootstrap, (long long)curve.n_sizes);
    asp_status status = asp_curve_bootstrap(curves, &n_valid, &curve, o->n_bootstrap, o->seed, context, err);
    if (!status)
        status = asp_curve_band(asp_find_line(c, ASP_CIRCUIT_EFFECT_LOW), asp_find_line(c, ASP_CIRCUIT_EFFECT_HIGH),
                                curves, n_valid, curve.n_sizes, o->confidence, context, err);
    asp_release(curves);
    if (!status) c->place->stage = ASP_FIND_DONE;
    return status;
}

asp_status asp_find_step(asp_circuit *c, const asp_context *context, asp_error *err) {
    switch (c->place->stage) {
    case ASP_FIND_WHOLE: return measure_whole(c, context, err);
    case ASP_FIND_SIZES: return evaluate(c, context, err);
    case ASP_FIND_FINER: return refine(c, context, err);
    case ASP_FIND_ORDERS: return try_order(c, context, err);
    default: return resample_interval(c, context, err);
    }
}
