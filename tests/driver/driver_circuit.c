/* driver_circuit.c: circuits found in one go, and by steps of which each is made by another search. */
#include <stdlib.h>
#include <string.h>

#include "driver.h"

enum { P = N_SEQUENCES };

/* Two tasks of P prompts each, and prompts of the same length to average over. */
typedef struct {
    int32_t tokens[3][N];
    asp_task ranking, evaluation;
} halves;

static void halves_open(halves *h, const fixture *f, asp_metric_kind kind) {
    for (int half = 0; half < 3; half++)
        for (int i = 0; i < N; i++) h->tokens[half][i] = (i * (13 + 4 * half) + 1 + half) % 50;
    asp_metric metric = small_metric(P, kind);
    metric.reference = NULL;
    const asp_prompts first = {f->tokens, f->offsets, P}, others = {h->tokens[0], f->offsets, P};
    h->ranking = (asp_task){first, others, metric};
    h->evaluation = (asp_task){{h->tokens[1], f->offsets, P}, {h->tokens[2], f->offsets, P}, metric};
}

static void add_circuit(uint64_t *digest, const asp_circuit *circuit) {
    for (int part = 0; part < ASP_CIRCUIT_N_PARTS; part++) {
        const asp_circuit_array_view view = asp_circuit_array(circuit, (asp_circuit_part)part);
        const int64_t n = view.dims[0] * (view.n_dims > 1 ? view.dims[1] : 1);
        add_bytes(digest, view.data, n * view.item_bytes);
    }
}

typedef struct {
    const asp_model *model;
    halves h;
    asp_items items;
    asp_circuit_options options;
} question;

/* The state of `circuit` goes to a new search, which takes its place. */
static asp_status hand_over(asp_circuit **circuit, const question *q, asp_error *err) {
    const void *state;
    const int64_t n = asp_circuit_state(*circuit, &state);
    void *copy = malloc((size_t)n);
    if (!copy) return ASP_BAD_STATE;
    memcpy(copy, state, (size_t)n);
    asp_circuit_free(*circuit);
    *circuit = NULL;
    asp_status status =
        asp_circuit_new(circuit, q->model, &q->h.ranking, &q->h.evaluation, &q->items, &q->options, err);
    if (!status) status = asp_circuit_restore(*circuit, copy, n, err);
    free(copy);
    return status;
}

/* Goes on as long as what it is told makes sense. */
static int follow(void *state, const char *stage, int64_t done, int64_t total) {
    (void)state;
    return !stage || done < 0 || done > total;
}

/* Measures for a search, whose question is the state. */
static asp_status measure(void *state, double *values, const asp_circuit_question *asked, int64_t n_values,
                          const asp_context *context, asp_error *err) {
    const question *q = state;
    const asp_task *task = asked->of_ranking ? &q->h.ranking : &q->h.evaluation;
    asp_effect_options own = q->options.effects;
    const asp_effect_options *o = &own;
    if (own.ablation == ASP_ABLATE_MEAN && !own.reference) own.reference = &q->h.ranking.clean;
    if (n_values < 1) return ASP_BAD_STATE;
    switch (asked->kind) {
    case ASP_ASK_KNOCK_OUT: return asp_effects_knock_out(values, q->model, task, asked->items, o, context, err);
    case ASP_ASK_KEEP_ONLY:
        return asp_effects_keep_only(values, q->model, task, asked->items, asked->sizes, asked->n_sizes, o, context,
                                     err);
    case ASP_ASK_LEAVE_ONE_OUT:
        return asp_effects_leave_one_out(values, q->model, task, asked->items, NULL, asked->items.n, o, context, err);
    default: return asp_effects_attribution(values, q->model, task, o, asked->steps, 0, context, err);
    }
}

/* Every second time each step is another search's, whose measurements are made elsewhere, and it tells how far it
 * is. */
static asp_status ask(const question *q, int by_steps, const asp_context *outer, uint64_t *digest, asp_error *err) {
    asp_circuit *circuit = NULL;
    asp_context told = *outer;
    if (by_steps) told.progress = follow;
    const asp_context *context = &told;
    const asp_circuit_measurer measurer = {(void *)(uintptr_t)q, measure}; /* read alone */
    asp_status status;
    if (by_steps) {
        status = asp_circuit_new(&circuit, q->model, &q->h.ranking, &q->h.evaluation, &q->items, &q->options, err);
        for (int done = 0; !status && !done;) {
            status = asp_circuit_step(circuit, &done, &measurer, context, err);
            if (!status) status = hand_over(&circuit, q, err);
        }
    } else
        status =
            asp_circuit_find(&circuit, q->model, &q->h.ranking, &q->h.evaluation, &q->items, &q->options, context, err);
    if (!status) add_circuit(digest, circuit);
    asp_circuit_free(circuit);
    return status;
}

static asp_status find(const fixture *f, asp_ranking ranking, int by_steps, const asp_context *context,
                       uint64_t *digest, asp_error *err) {
    static const asp_metric_kind metrics[] = {ASP_LOGIT_DIFF, ASP_PROB_DIFF, ASP_LOGIT_DIFF_MAX, ASP_KL};
    static const asp_unit units[] = {ASP_UNIT_POSITION, ASP_UNIT_EDGE, ASP_UNIT_EDGE, ASP_UNIT_HEAD};
    enum { MOST_ITEMS = 7 };
    question q = {.model = f->gated};
    const asp_metric_kind metric = metrics[ranking];
    int32_t *rows;
    halves_open(&q.h, f, metric);
    asp_status status = asp_effects_candidates(&rows, &q.items.n, f->gated, &q.h.ranking, units[ranking], context, err);
    if (status) return status;
    q.items.rows = rows;
    if (q.items.n > MOST_ITEMS) q.items.n = MOST_ITEMS;
    q.options = (asp_circuit_options){.effects = {units[ranking], (asp_ablation)(ranking % 3), NULL, INT64_MAX},
                                      .ranking = ranking,
                                      .normalization = ASP_NORMALIZE_NONE,
                                      .absolute = ranking % 2,
                                      .smaller_is_better = metric == ASP_KL,
                                      .steps = 2,
                                      .greedy_step = 0.6,
                                      .n_bootstrap = 5,
                                      .n_random = 2,
                                      .confidence = 0.9,
                                      .seed = 3,
                                      .task_name = "driver",
                                      .metric_name = asp_metric_name(metric)};
    status = ask(&q, by_steps, context, digest, err);
    asp_effects_free_items(rows);
    return status;
}

/* Both ways must give the same bits. */
static asp_status find_both(const fixture *f, asp_ranking ranking, const asp_context *context, uint64_t *digest,
                            asp_error *err) {
    uint64_t whole = 1, by_steps = 1;
    asp_status status = find(f, ranking, 0, context, &whole, err);
    if (!status) status = find(f, ranking, 1, context, &by_steps, err);
    if (!status && whole != by_steps) status = asp_fail(err, ASP_BAD_STATE, "a continued search has other bits");
    add_bytes(digest, &whole, sizeof whole);
    return status;
}

asp_status use_exact_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    return find_both(f, ASP_RANKING_EXACT, context, digest, err);
}
asp_status use_attribution_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    return find_both(f, ASP_RANKING_ATTRIBUTION, context, digest, err);
}
asp_status use_ig_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    return find_both(f, ASP_RANKING_IG, context, digest, err);
}
asp_status use_greedy_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    return find_both(f, ASP_RANKING_GREEDY, context, digest, err);
}

/* ---- what is refused --------------------------------------------------------------------------- */

/* States that no search has: none may be taken, and nothing in them may be believed. */
static asp_status refuse_states(const question *q, asp_error *err) {
    asp_circuit *circuit;
    const void *state;
    asp_status status =
        asp_circuit_new(&circuit, q->model, &q->h.ranking, &q->h.evaluation, &q->items, &q->options, err);
    if (status) return status;
    const int64_t n = asp_circuit_state(circuit, &state);
    uint8_t *wrong = malloc((size_t)n);
    if (!wrong) status = ASP_BAD_STATE;
    for (int64_t value = -1; !status && value < 200; value += 67)
        for (int64_t at = 0; !status && at < n; at += (int64_t)sizeof value) {
            memset(wrong, 0, (size_t)n);
            memcpy(wrong + at, &value, sizeof value);
            status = asp_circuit_restore(circuit, wrong, n, err);
            if (status == ASP_BAD_ARGUMENT) status = ASP_OK; /* or it is harmless */
        }
    if (!status && asp_circuit_restore(circuit, wrong, n - 1, err) != ASP_BAD_ARGUMENT) status = ASP_BAD_STATE;
    free(wrong);
    asp_circuit_free(circuit);
    return status;
}

asp_status use_wrong_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)digest, (void)context;
    static const int32_t rows[] = {0, 0, 0, 1};
    static const int64_t falling[] = {2, 1}, large[] = {0, 3};
    const asp_circuit_options good = {.effects = {.max_bytes = INT64_MAX}, .steps = 1, .n_sizes = 2, .confidence = 0.5};
    asp_circuit_options bad[6] = {good, good, good, good, good, good};
    bad[0].steps = 0;
    bad[1].greedy_step = 1;
    bad[2].confidence = 1;
    bad[3].n_random = -1;
    bad[4].sizes = falling;
    bad[5].sizes = large;
    question q = {.model = f->gated, .items = {rows, 2}, .options = good};
    halves_open(&q.h, f, ASP_LOGIT_DIFF);
    for (int i = 0; i < 6; i++) {
        asp_circuit *circuit;
        if (asp_circuit_new(&circuit, q.model, &q.h.ranking, &q.h.evaluation, &q.items, &bad[i], err) !=
            ASP_BAD_ARGUMENT)
            return ASP_BAD_STATE;
    }
    return refuse_states(&q, err);
}
