/* circuit.c: a circuit while it is searched for, and afterwards.
 *
 * Everything that a search has found is in one arena, together with how far it is; no pointer is in there, so the bytes
 * can be kept in a file and put back.  The steps themselves are in ranking.c and find.c: what they compute goes into
 * the arena last, when nothing can fail any more. */
#include <math.h>
#include <string.h>

#include "circuit/circuit.h"

/* ---- begin ------------------------------------------------------------------------------------ */

static asp_status check_sizes(const asp_circuit_options *o, int64_t n_items, asp_error *err) {
    if (!o->sizes) return ASP_OK;
    int good = o->n_sizes > 0;
    for (int64_t i = 0; good && i < o->n_sizes; i++)
        good = o->sizes[i] >= 0 && o->sizes[i] <= n_items && (i == 0 || o->sizes[i] > o->sizes[i - 1]);
    if (good) return ASP_OK;
    return asp_fail(err, ASP_BAD_ARGUMENT, "circuit: sizes must ascend in 0..%lld, the number of items",
                    (long long)n_items);
}

static asp_status check_search(const asp_task *ranking, const asp_task *evaluation, const asp_items *items,
                               const asp_circuit_options *o, asp_error *err) {
    if (items->n < 1 || ranking->clean.n_prompts < 1 || evaluation->clean.n_prompts < 1)
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "circuit: needs items and prompts of both tasks, got %lld items, %lld and %lld prompts",
                        (long long)items->n, (long long)ranking->clean.n_prompts,
                        (long long)evaluation->clean.n_prompts);
    if (o->steps < 1 || o->n_bootstrap < 0 || o->n_random < 0)
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "circuit: steps must be at least 1, numbers of resamples and random orders at least 0, got "
                        "%lld, %lld and %lld",
                        (long long)o->steps, (long long)o->n_bootstrap, (long long)o->n_random);
    if (!(o->greedy_step >= 0 && o->greedy_step < 1 && o->confidence > 0 && o->confidence < 1))
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "circuit: the greedy step must be in [0, 1) and the confidence in (0, 1), got %g and %g",
                        o->greedy_step, o->confidence);
    return check_sizes(o, items->n, err);
}

static asp_status allocate_circuit(asp_circuit *c, asp_error *err) {
    asp_arena_part parts[] = {ASP_PART(c->place, 1, 1),
                              ASP_PART(c->order, c->n_items, 1),
                              ASP_PART(c->scores, c->n_items, 1),
                              ASP_PART(c->items, c->n_items, c->width),
                              ASP_PART(c->sizes, c->max_sizes, 1),
                              ASP_PART(c->values, c->max_sizes, c->n_prompts),
                              ASP_PART(c->full, c->n_prompts, 1),
                              ASP_PART(c->empty, c->n_prompts, 1),
                              ASP_PART(c->lines, ASP_CIRCUIT_N_PARTS - ASP_CIRCUIT_EFFECT, c->max_sizes)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&c->arena, parts, PARTS);
    if (!asp_arena_commit(&c->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY,
                        "a circuit of %lld items at %lld sizes needs %s, which could not be allocated",
                        (long long)c->n_items, (long long)c->max_sizes, asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&c->arena, parts, PARTS);
    return ASP_OK;
}

asp_status asp_circuit_new(asp_circuit **circuit, const asp_model *model, const asp_task *ranking,
                           const asp_task *evaluation, const asp_items *items, const asp_circuit_options *options,
                           asp_error *err) {
    *circuit = NULL;
    asp_status status = check_search(ranking, evaluation, items, options, err);
    if (status) return status;
    asp_circuit *c = asp_allocate(1, sizeof *c);
    if (!c) return asp_fail(err, ASP_NO_MEMORY, "no memory for a circuit");
    c->model = model;
    c->ranking = ranking;
    c->evaluation = evaluation;
    c->candidates = items->rows;
    c->options = *options;
    if (options->effects.ablation == ASP_ABLATE_MEAN && !options->effects.reference)
        c->options.effects.reference = &ranking->clean;
    c->n_items = items->n;
    c->width = 2 + (int)options->effects.unit;
    c->n_prompts = evaluation->clean.n_prompts;
    c->max_sizes = asp_find_most_sizes(options, items->n);
    status = allocate_circuit(c, err);
    if (status) asp_circuit_free(c);
    else *circuit = c;
    return status;
}

void asp_circuit_free(asp_circuit *circuit) {
    if (!circuit) return;
    asp_arena_free(&circuit->arena);
    asp_release(circuit);
}

/* ---- steps ------------------------------------------------------------------------------------- */

asp_status asp_circuit_step(asp_circuit *circuit, int *done, const asp_circuit_measurer *measurer,
                            const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    asp_status status = ASP_OK;
    circuit->measurer = measurer;
    if (circuit->place->stage == ASP_FIND_RANKING) status = asp_ranking_step(circuit, &own, err);
    else if (circuit->place->stage != ASP_FIND_DONE) status = asp_find_step(circuit, &own, err);
    *done = circuit->place->stage == ASP_FIND_DONE;
    return status;
}

asp_status asp_circuit_find(asp_circuit **circuit, const asp_model *model, const asp_task *ranking,
                            const asp_task *evaluation, const asp_items *items, const asp_circuit_options *options,
                            const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    asp_status status = asp_circuit_new(circuit, model, ranking, evaluation, items, options, err);
    for (int done = 0; !status && !done;) status = asp_circuit_step(*circuit, &done, NULL, context, err);
    if (status) {
        asp_circuit_free(*circuit);
        *circuit = NULL;
    }
    return status;
}

/* ---- the state ----------------------------------------------------------------------------------- */

int64_t asp_circuit_state(const asp_circuit *circuit, const void **state) {
    *state = circuit->arena.base;
    return circuit->arena.bytes;
}

static int all_finite(const double *x, int64_t n) {
    int64_t i = 0;
    while (i < n && isfinite(x[i])) i++;
    return i == n;
}

/* Whether order (n) holds each of 0..n-1 once.  seen (n) zeros, written. */
static int is_permutation(const int64_t *order, uint8_t *seen, int64_t n) {
    int64_t i = 0;
    while (i < n && order[i] >= 0 && order[i] < n && !seen[order[i]]) seen[order[i++]] = 1;
    return i == n;
}

static int is_sound(const asp_circuit *c, uint8_t *seen) {
    const asp_find_place *p = c->place;
    const int64_t n = c->n_items;
    int good = p->stage >= ASP_FIND_WHOLE && p->stage <= ASP_FIND_DONE && p->n_left >= 0 && p->n_left <= n &&
               p->n_sizes >= (p->stage > ASP_FIND_SIZES) && p->n_sizes <= c->max_sizes && p->n_rounds >= 0 &&
               p->n_orders >= 0 && p->n_orders <= c->options.n_random && isfinite(p->now) && isfinite(p->small);
    if (good && (p->stage > ASP_FIND_RANKING || p->n_left > 0)) good = is_permutation(c->order, seen, n);
    for (int64_t i = 1; good && i < p->n_left; i++) good = c->order[i] > c->order[i - 1];
    for (int64_t i = 0; good && i < p->n_sizes; i++)
        good = c->sizes[i] >= 0 && c->sizes[i] <= n && (i == 0 || c->sizes[i] > c->sizes[i - 1]);
    return good && all_finite(c->values, p->n_sizes * c->n_prompts) && all_finite(c->full, c->n_prompts) &&
           all_finite(c->empty, c->n_prompts) && all_finite(c->scores, n);
}

asp_status asp_circuit_restore(asp_circuit *circuit, const void *state, int64_t n_bytes, asp_error *err) {
    if (n_bytes != circuit->arena.bytes)
        return asp_fail(err, ASP_BAD_ARGUMENT, "the state of this search has %lld bytes, got %lld",
                        (long long)circuit->arena.bytes, (long long)n_bytes);
    uint8_t *seen = asp_allocate(circuit->n_items, sizeof *seen);
    if (!seen)
        return asp_fail(err, ASP_NO_MEMORY, "no memory to check the order of %lld items", (long long)circuit->n_items);
    memcpy(circuit->arena.base, state, (size_t)n_bytes);
    const int good = is_sound(circuit, seen);
    asp_release(seen);
    if (good) {
        if (circuit->place->stage > ASP_FIND_RANKING)
            asp_ranking_gather(circuit->items, circuit, circuit->order, circuit->n_items);
        return ASP_OK;
    }
    memset(circuit->arena.base, 0, (size_t)n_bytes);
    return asp_fail(err, ASP_BAD_ARGUMENT, "the state has an order, a size or a value that no search can have");
}

/* ---- the result ------------------------------------------------------------------------------------ */

asp_circuit_array_view asp_circuit_array(const asp_circuit *circuit, asp_circuit_part part) {
    const asp_circuit *c = circuit;
    const int64_t n = c->n_items, s = c->place->n_sizes, p = c->n_prompts;
    if (c->place->stage != ASP_FIND_DONE) return (asp_circuit_array_view){0};
    switch (part) {
    case ASP_CIRCUIT_ITEMS: return (asp_circuit_array_view){c->items, sizeof *c->items, 2, {n, c->width}};
    case ASP_CIRCUIT_SCORES: return (asp_circuit_array_view){c->scores, sizeof *c->scores, 1, {n}};
    case ASP_CIRCUIT_SIZES: return (asp_circuit_array_view){c->sizes, sizeof *c->sizes, 1, {s}};
    case ASP_CIRCUIT_VALUES: return (asp_circuit_array_view){c->values, sizeof *c->values, 2, {s, p}};
    case ASP_CIRCUIT_FULL: return (asp_circuit_array_view){c->full, sizeof *c->full, 1, {p}};
    case ASP_CIRCUIT_EMPTY: return (asp_circuit_array_view){c->empty, sizeof *c->empty, 1, {p}};
    default: return (asp_circuit_array_view){asp_find_line(c, part), sizeof *c->lines, 1, {s}};
    }
}
