/* graph_choose.c: which active features become nodes when there are too many: those with most influence on the logits.
 * As circuit-tracer does: the logits are followed back first, then, in rounds, the features that have most influence
 * by what is known so far. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph.h"

enum { ROUNDS = 8, COLUMNS = 4096 };

static int by_rank(const void *a, const void *b) {
    const asp_graph_choose_item *x = a, *y = b;
    if (x->score != y->score) return (x->score < y->score) - (x->score > y->score);
    return (x->number > y->number) - (x->number < y->number);
}

void asp_graph_choose_sort(asp_graph_choose_item *items, int64_t n) { qsort(items, (size_t)n, sizeof *items, by_rank); }

/* ---- rows of effects -------------------------------------------------------------------------------- */

/* What the target of a row reads, at its place in r->reads. */
static void gather(asp_graph_choose_rows *r, int64_t row, int64_t width) {
    const int64_t target = r->target[row], i = target < r->n_active ? target : target - r->n_active;
    const asp_reads *from = target < r->n_active ? &r->inputs->features.reads : &r->inputs->logits.reads;
    r->point[row] = from->point[i];
    r->position[row] = from->position[i];
    r->reading[row] = from->reading[i];
    memcpy(r->vectors + row * width, from->vectors + i * width, (size_t)width * sizeof *r->vectors);
}

asp_reads asp_graph_choose_reads(asp_graph_choose_rows *r, int64_t begin, int64_t end, int64_t width) {
    for (int64_t row = begin; row < end; row++) gather(r, row, width);
    return (asp_reads){.n_targets = end - begin,
                       .point = r->point + begin,
                       .position = r->position + begin,
                       .reading = r->reading + begin,
                       .vectors = r->vectors + begin * width};
}

static void sum_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const asp_graph_choose_rows *r = arg;
    const int64_t n = r->inputs->writes->n_sources, row = r->n_known + i;
    const asp_real *effects = r->effects + row * n;
    double sum = 0;
    for (int64_t s = 0; s < n; s++) sum += fabs((double)effects[s]);
    r->sums[row] = fmax(sum, ASP_GRAPH_LEAST_SUM);
}

/* What is known of all rows while a call follows those from `begin` on. */
typedef struct {
    const asp_context *outer;
    int64_t begin, n_rows;
} part_of_rows;

static int tell_part(void *state, const char *stage, int64_t done, int64_t total) {
    (void)total;
    const part_of_rows *p = state;
    return asp_context_progress(p->outer, stage, p->begin + done, p->n_rows) != ASP_OK;
}

/* The effects on the targets of the rows from r->n_known to `end`, which are known then. */
static asp_status follow_rows(asp_graph_choose_rows *r, int64_t end, const asp_model *model, const asp_context *context,
                              asp_error *err) {
    const int64_t begin = r->n_known, n = r->inputs->writes->n_sources;
    const asp_reads reads = asp_graph_choose_reads(r, begin, end, model->config.d_model);
    part_of_rows part = {context, begin, r->n_kept + r->n_logits};
    asp_context own = *context;
    own.progress = tell_part;
    own.progress_state = &part;
    asp_status status = asp_graph_edges(r->effects + begin * n, r->bias + begin, model, r->inputs->held,
                                        r->inputs->writes, &reads, &own, err);
    for (int64_t row = begin; !status && row < end; row++) {
        const int64_t target = r->target[row];
        r->bias[row] += target < r->n_active ? r->inputs->features.constant[target]
                                             : r->inputs->logits.constant[target - r->n_active];
        r->row[target] = row;
    }
    if (!status) status = asp_parallel_for(context, end - begin, sum_item, r);
    r->n_known = end;
    return status;
}

/* ---- influence of sources through the rows known ------------------------------------------------------- */

typedef struct {
    const asp_graph_choose_rows *rows;
    const int64_t *from; /* (n_from) rows that pass on `now`, by rising target */
    const double *now;   /* of each of their targets */
    int64_t n_from, first_target;
} passing;

/* What comes to some sources in one step. */
static void pass_item(void *arg, int64_t block, int thread) {
    (void)thread;
    const passing *p = arg;
    const asp_graph_choose_rows *r = p->rows;
    const int64_t n = r->inputs->writes->n_sources, begin = block * COLUMNS, end = asp_min(n, begin + COLUMNS);
    for (int64_t s = begin; s < end; s++) r->next[s] = 0;
    for (int64_t i = 0; i < p->n_from; i++) {
        const int64_t row = p->from[i];
        const double now = p->now[r->target[row] - p->first_target], sum = r->sums[row];
        const asp_real *effects = r->effects + row * n;
        for (int64_t s = begin; now != 0 && s < end; s++) r->next[s] += now * (fabs((double)effects[s]) / sum);
    }
}

/* 1 if anything came to a source. */
static int add_next(const asp_graph_choose_rows *r) {
    int any = 0;
    for (int64_t s = 0; s < r->inputs->writes->n_sources; s++) {
        r->influence[s] += r->next[s];
        any |= r->next[s] != 0;
    }
    return any;
}

/* influence (n_sources) of r: as asp_graph_prune_influence through the logits and the features known. */
static asp_status influence(asp_graph_choose_rows *r, const asp_context *context, asp_error *err) {
    const int64_t n = r->inputs->writes->n_sources, n_blocks = (n + COLUMNS - 1) / COLUMNS;
    int64_t n_features = 0;
    for (int64_t f = 0; f < r->n_active; f++)
        if (r->row[f] >= 0) r->from[n_features++] = r->row[f];
    for (int64_t i = 0; i < r->n_logits; i++) r->from[n_features + i] = r->row[r->n_active + i];
    for (int64_t i = 0; i < r->n_logits; i++) r->weights[i] = asp_graph_weight(r->inputs->probability[i]);
    memset(r->influence, 0, (size_t)n * sizeof *r->influence);
    passing p = {r, r->from + n_features, r->weights, r->n_logits, r->n_active};
    for (int64_t step = 0; step <= n + r->n_logits; step++) {
        const asp_status status = asp_parallel_for(context, n_blocks, pass_item, &p);
        if (status || !add_next(r)) return status;
        memcpy(r->now, r->next, (size_t)n * sizeof *r->now);
        p = (passing){r, r->from, r->now, n_features, 0};
    }
    return asp_graph_circle(err);
}

/* ---- rounds ----------------------------------------------------------------------------------------------- */

/* The targets of the next `wanted` rows: features with most influence. */
static void take_largest(asp_graph_choose_rows *r, int64_t wanted) {
    int64_t n = 0;
    for (int64_t f = 0; f < r->n_active; f++)
        if (r->row[f] < 0) r->items[n++] = (asp_graph_choose_item){r->influence[f], f};
    asp_graph_choose_sort(r->items, n);
    for (int64_t i = 0; i < wanted; i++) r->target[r->n_known + i] = r->items[i].number;
}

asp_status asp_graph_choose(asp_graph_choose_rows *r, const asp_model *model, const asp_context *context,
                            asp_error *err) {
    const int64_t n_rows = r->n_kept + r->n_logits, in_round = asp_max(1, (r->n_kept + ROUNDS - 1) / ROUNDS);
    for (int64_t i = 0; i < r->n_active + r->n_logits; i++) r->row[i] = -1;
    r->n_known = 0;
    if (r->n_kept == r->n_active) {
        for (int64_t i = 0; i < n_rows; i++) r->target[i] = i;
        return follow_rows(r, n_rows, model, context, err);
    }
    for (int64_t i = 0; i < r->n_logits; i++) r->target[i] = r->n_active + i;
    asp_status status = follow_rows(r, r->n_logits, model, context, err);
    while (!status && r->n_known < n_rows) {
        const int64_t wanted = asp_min(n_rows - r->n_known, in_round);
        status = influence(r, context, err);
        if (status) break;
        take_largest(r, wanted);
        status = follow_rows(r, r->n_known + wanted, model, context, err);
    }
    return status;
}
