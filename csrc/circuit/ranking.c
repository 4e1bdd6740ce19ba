/* ranking.c: the order of items: by scores that are measured or estimated one item at a time, or by backward
 * elimination. */
#include <math.h>
#include <string.h>

#include "circuit/circuit.h"

enum { MOST_BATCHES = 64 }; /* a batch is halved until it has one item */
/* Of a batch that is dropped at once: its cost against the sum of its parts, and the share of the whole effect that is
 * too little to matter. */
static const double JOINT_COST = 2, SMALL_SHARE = 1e-3;

/* ---- order ---------------------------------------------------------------------------------------- */

/* Merges the sorted runs [begin, middle) and [middle, end) of index into out; equal keys keep their order. */
static void merge(int64_t *out, const int64_t *index, const double *key, int64_t begin, int64_t middle, int64_t end) {
    int64_t a = begin, b = middle;
    for (int64_t i = begin; i < end; i++)
        out[i] = a < middle && (b == end || !(key[index[b]] < key[index[a]])) ? index[a++] : index[b++];
}

void asp_ranking_sort(int64_t *index, int64_t *other, const double *key, int64_t n) {
    int64_t *from = index, *to = other;
    for (int64_t width = 1; width < n; width *= 2) {
        for (int64_t begin = 0; begin < n; begin += 2 * width)
            merge(to, from, key, begin, asp_min(begin + width, n), asp_min(begin + 2 * width, n));
        int64_t *const swap = from;
        from = to;
        to = swap;
    }
    if (from != index) memcpy(index, from, (size_t)n * sizeof *index);
}

static double sign_of(const asp_circuit *c) { return c->options.smaller_is_better ? -1 : 1; }

void asp_ranking_gather(int32_t *rows, const asp_circuit *c, const int64_t *index, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        memcpy(rows + i * c->width, c->candidates + index[i] * c->width, (size_t)c->width * sizeof *rows);
}

/* ---- scores --------------------------------------------------------------------------------------- */

typedef struct {
    asp_arena arena;
    double *values; /* (n,P) of knock-outs, or scores of all items of the unit */
    double *whole;  /* (P) */
    double *scores; /* (n) */
    double *keys;   /* (n) */
    int64_t *index, *other;
} score_work;

/* Tokens of a prompt, where all have as many. */
static int64_t prompt_length(const asp_circuit *c) {
    return c->ranking->clean.offsets[1] - c->ranking->clean.offsets[0];
}

/* Items of the unit that a model has: the size of what attribution gives. */
static int64_t unit_size(const asp_circuit *c) {
    const asp_config *config = asp_model_config(c->model);
    int64_t size = config->n_layer * config->n_head;
    for (int64_t i = 2; i < c->width; i++) size *= prompt_length(c);
    return size;
}

static asp_status allocate_scores(score_work *w, const asp_circuit *c, asp_error *err) {
    const int exact = c->options.ranking == ASP_RANKING_EXACT;
    const int64_t n = c->n_items, p = c->ranking->clean.n_prompts;
    asp_arena_part parts[] = {ASP_PART(w->values, exact ? n : unit_size(c), exact ? p : 1),
                              ASP_PART(w->whole, p, 1),
                              ASP_PART(w->scores, n, 1),
                              ASP_PART(w->keys, n, 1),
                              ASP_PART(w->index, n, 1),
                              ASP_PART(w->other, n, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&w->arena, parts, PARTS);
    if (!asp_arena_commit(&w->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "the scores of %lld items need %s, which could not be allocated",
                        (long long)n, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&w->arena, parts, PARTS);
    return ASP_OK;
}

/* What the metric loses without each item. */
static asp_status score_exactly(score_work *w, const asp_circuit *c, const asp_context *context, asp_error *err) {
    const int64_t n = c->n_items, p = c->ranking->clean.n_prompts;
    asp_status status = asp_effects_whole(w->whole, c->model, c->ranking, context, err);
    if (!status) status = asp_find_check_finite(c, w->whole, p, err);
    const asp_circuit_question asked = {.kind = ASP_ASK_KNOCK_OUT, .of_ranking = 1, .items = {c->candidates, n}};
    if (!status) status = asp_find_ask(w->values, c, &asked, context, err);
    if (status) return status;
    const double whole = asp_curve_mean(w->whole, p);
    for (int64_t i = 0; i < n; i++) w->scores[i] = sign_of(c) * (whole - asp_curve_mean(w->values + i * p, p));
    return ASP_OK;
}

/* Its estimate by gradients. */
static asp_status estimate_scores(score_work *w, const asp_circuit *c, const asp_context *context, asp_error *err) {
    const int64_t steps = c->options.ranking == ASP_RANKING_IG ? c->options.steps : 1;
    const int64_t n_head = asp_model_config(c->model)->n_head;
    const asp_circuit_question asked = {.kind = ASP_ASK_ATTRIBUTION, .of_ranking = 1, .steps = steps};
    const asp_status status = asp_find_ask(w->values, c, &asked, context, err);
    for (int64_t i = 0; !status && i < c->n_items; i++) {
        const int32_t *item = c->candidates + i * c->width;
        int64_t at = item[0] * n_head + item[1];
        for (int64_t k = 2; k < c->width; k++) at = at * prompt_length(c) + item[k];
        w->scores[i] = sign_of(c) * w->values[at] / (double)c->ranking->clean.n_prompts;
    }
    return status;
}

/* Best first; of equal ones the first. */
static void order_by_scores(score_work *w, asp_circuit *c) {
    const int64_t n = c->n_items;
    for (int64_t i = 0; i < n; i++) {
        w->index[i] = i;
        w->keys[i] = -(c->options.absolute ? fabs(w->scores[i]) : w->scores[i]);
    }
    asp_ranking_sort(w->index, w->other, w->keys, n);
    for (int64_t i = 0; i < n; i++) {
        c->order[i] = w->index[i];
        c->scores[i] = w->scores[w->index[i]] + 0.0; /* no -0 */
    }
}

static asp_status rank_by_scores(asp_circuit *c, const asp_context *context, asp_error *err) {
    score_work w = {0};
    asp_status status = allocate_scores(&w, c, err);
    if (!status)
        status = c->options.ranking == ASP_RANKING_EXACT ? score_exactly(&w, c, context, err)
                                                         : estimate_scores(&w, c, context, err);
    if (!status) order_by_scores(&w, c);
    asp_arena_free(&w.arena);
    return status;
}

/* ---- backward elimination ----------------------------------------------------------------------------- */

static const char *const GREEDY_STAGE = "backward elimination";

/* How many of n items a round drops, unless they replace each other. */
static int64_t batch_of(const asp_circuit *c, int64_t n) {
    return asp_max(1, (int64_t)(c->options.greedy_step * (double)n));
}

/* Of one round, in which n items are still kept. */
typedef struct {
    asp_arena arena;
    int64_t n, n_prompts;
    int32_t *rows;    /* (n,w) of these items */
    double *values;   /* (n,P) without each */
    double *costs;    /* (n) */
    double *cheapest; /* (n) absolute costs, rising with `index` */
    int64_t *index;   /* (n) into the items that are kept, cheapest first */
    int64_t *other;   /* (n) */
    int64_t *kept;    /* (n) indices of the items */
    int64_t counts[MOST_BATCHES], sizes[MOST_BATCHES];
    double *without; /* (MOST_BATCHES,P) */
} round_work;

static asp_status allocate_round(round_work *w, const asp_circuit *c, asp_error *err) {
    asp_arena_part parts[] = {ASP_PART(w->rows, w->n, c->width), ASP_PART(w->values, w->n, w->n_prompts),
                              ASP_PART(w->costs, w->n, 1),       ASP_PART(w->cheapest, w->n, 1),
                              ASP_PART(w->index, w->n, 1),       ASP_PART(w->other, w->n, 1),
                              ASP_PART(w->kept, w->n, 1),        ASP_PART(w->without, MOST_BATCHES, w->n_prompts)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&w->arena, parts, PARTS);
    if (!asp_arena_commit(&w->arena, 0))
        return asp_fail(err, ASP_NO_MEMORY,
                        "a round of elimination among %lld items needs %s, which could not be allocated",
                        (long long)w->n, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&w->arena, parts, PARTS);
    memcpy(w->kept, c->order, (size_t)w->n * sizeof *w->kept);
    return ASP_OK;
}

/* Measures what each kept item costs, and sorts them; of equal ones the last goes first. */
static asp_status sort_by_cost(round_work *w, const asp_circuit *c, const asp_context *context, asp_error *err) {
    asp_ranking_gather(w->rows, c, w->kept, w->n);
    const asp_circuit_question asked = {.kind = ASP_ASK_LEAVE_ONE_OUT, .of_ranking = 1, .items = {w->rows, w->n}};
    const asp_status status = asp_find_ask(w->values, c, &asked, context, err);
    if (status) return status;
    for (int64_t i = 0; i < w->n; i++) {
        const double cost = sign_of(c) * (c->place->now - asp_curve_mean(w->values + i * w->n_prompts, w->n_prompts));
        w->costs[i] = c->options.absolute ? fabs(cost) : cost;
        w->index[i] = w->n - 1 - i;
    }
    asp_ranking_sort(w->index, w->other, w->costs, w->n);
    for (int64_t i = 0; i < w->n; i++) w->cheapest[i] = fabs(w->costs[w->index[i]]);
    return ASP_OK;
}

/* How many of the cheapest go at once, and in *now the metric without them: a batch that costs more than JOINT_COST
 * times the sum of its parts holds items that replace each other, and is halved. */
static asp_status choose_batch(round_work *w, const asp_circuit *c, int64_t *n_dropped, double *now,
                               const asp_context *context, asp_error *err) {
    int n_batches = 0;
    int64_t count = batch_of(c, w->n);
    for (; count > 0; count /= 2, n_batches++) {
        w->counts[n_batches] = count;
        w->sizes[n_batches] = w->n - count;
    }
    for (int64_t i = 0; i < w->n; i++) w->other[i] = w->kept[w->index[w->n - 1 - i]];
    asp_ranking_gather(w->rows, c, w->other, w->n);
    const asp_circuit_question asked = {
        .kind = ASP_ASK_KEEP_ONLY, .of_ranking = 1, .items = {w->rows, w->n}, .sizes = w->sizes, .n_sizes = n_batches};
    const asp_status status = asp_find_ask(w->without, c, &asked, context, err);
    for (int i = 0; !status && i < n_batches; i++) {
        *n_dropped = w->counts[i];
        *now = asp_curve_mean(w->without + i * w->n_prompts, w->n_prompts);
        if (fabs(*now - c->place->now) <= JOINT_COST * asp_sum_numbers(w->cheapest, w->counts[i]) + c->place->small)
            break;
    }
    return status;
}

/* order: the items still kept, by rising index, then those dropped, the last one first. */
static void drop(round_work *w, asp_circuit *c, int64_t n_dropped, double now) {
    for (int64_t i = 0; i < n_dropped; i++) {
        c->order[w->n - 1 - i] = w->kept[w->index[i]];
        w->kept[w->index[i]] = -1;
    }
    int64_t n_kept = 0;
    for (int64_t i = 0; i < w->n; i++)
        if (w->kept[i] >= 0) c->order[n_kept++] = w->kept[i];
    c->place->n_left = n_kept;
    c->place->now = now;
}

static asp_status eliminate_some(asp_circuit *c, const asp_context *context, asp_error *err) {
    round_work w = {.n = c->place->n_left, .n_prompts = c->ranking->clean.n_prompts};
    const asp_context quiet = asp_find_quiet(context);
    const int64_t done = c->n_items - w.n;
    const asp_context whole = asp_context_stage(context, GREEDY_STAGE, done, done + batch_of(c, w.n), c->n_items);
    const asp_context inner = asp_find_within(&whole);
    int64_t n_dropped = 0;
    double now = 0;
    asp_status status = allocate_round(&w, c, err);
    if (!status) status = sort_by_cost(&w, c, &inner, err);
    if (!status) status = choose_batch(&w, c, &n_dropped, &now, &quiet, err);
    if (!status) drop(&w, c, n_dropped, now);
    asp_arena_free(&w.arena);
    return status;
}

/* The metric with all items and with none. */
static asp_status begin_elimination(asp_circuit *c, const asp_context *context, asp_error *err) {
    const int64_t p = c->ranking->clean.n_prompts, n = c->n_items, sizes[] = {n, 0};
    double *values = asp_allocate(p, 2 * sizeof *values); /* (2,P) */
    if (!values) return asp_fail(err, ASP_NO_MEMORY, "no memory for the metric of %lld prompts", (long long)p);
    const asp_context quiet = asp_find_quiet(context);
    const asp_circuit_question asked = {
        .kind = ASP_ASK_KEEP_ONLY, .of_ranking = 1, .items = {c->candidates, n}, .sizes = sizes, .n_sizes = 2};
    const asp_status status = asp_find_ask(values, c, &asked, &quiet, err);
    if (!status) {
        c->place->now = asp_curve_mean(values, p);
        c->place->small = SMALL_SHARE * fabs(c->place->now - asp_curve_mean(values + p, p));
        c->place->n_left = n;
        for (int64_t i = 0; i < n; i++) {
            c->order[i] = i;
            c->scores[i] = (double)(n - i);
        }
    }
    asp_release(values);
    return status;
}

/* ---- one step ------------------------------------------------------------------------------------------ */

asp_status asp_ranking_step(asp_circuit *c, const asp_context *context, asp_error *err) {
    asp_status status;
    if (c->options.ranking != ASP_RANKING_GREEDY) status = rank_by_scores(c, context, err);
    else if (c->place->n_left == 0) status = begin_elimination(c, context, err);
    else status = eliminate_some(c, context, err);
    if (status) return status;
    const int64_t n_left = c->place->n_left;
    if (n_left == 0) {
        asp_ranking_gather(c->items, c, c->order, c->n_items);
        c->place->stage = ASP_FIND_SIZES;
    }
    if (c->options.ranking != ASP_RANKING_GREEDY) return ASP_OK;
    return asp_context_progress(context, GREEDY_STAGE, c->n_items - n_left, c->n_items);
}
