/* graph_pairs.c: the score of an attention entry as a sum over pairs of sources: what each node gives to the query
 * times what each gives to the key. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph.h"

typedef struct {
    const asp_pairs_inputs *in;
    double *sides[2]; /* (n_nodes,D) of query and key */
    double *pairs;    /* (n_nodes,n_nodes) */
    asp_arena arena;
} pairs_job;

/* What each node gives to one side: a node may stand for several sources, whose effects are added up. */
static void fill_side(const asp_pairs_inputs *in, double *side, const asp_real *rows, const double *bias) {
    const int64_t d = in->d_head;
    memset(side, 0, (size_t)(in->n_nodes * d) * sizeof *side);
    for (int64_t j = 0; j < d; j++)
        for (int64_t s = 0; s < in->n_sources; s++) side[in->node[s] * d + j] += (double)rows[j * in->n_sources + s];
    for (int64_t j = 0; j < d; j++) side[in->bias_node * d + j] += bias[j];
}

static void pairs_item(void *arg, int64_t query, int thread) {
    (void)thread;
    const pairs_job *job = arg;
    const int64_t n = job->in->n_nodes, d = job->in->d_head;
    for (int64_t key = 0; key < n; key++) {
        double sum = 0;
        for (int64_t j = 0; j < d; j++) sum += job->sides[0][query * d + j] * job->sides[1][key * d + j];
        job->pairs[query * n + key] = sum * job->in->scale;
    }
}

asp_status asp_graph_pairs(double *pairs, uint8_t *used, double *score, const asp_pairs_inputs *inputs,
                           const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = inputs->n_nodes;
    pairs_job job = {.in = inputs, .pairs = pairs};
    asp_arena_part parts[] = {ASP_PART(job.sides[0], n, inputs->d_head), ASP_PART(job.sides[1], n, inputs->d_head)};
    const int64_t bytes = asp_arena_lay_out(&job.arena, parts, 2);
    if (!asp_arena_commit(&job.arena, 0))
        return asp_fail(err, ASP_NO_MEMORY, "the pairs of sources of a score need %s of scratch",
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&job.arena, parts, 2);
    for (int side = 0; side < 2; side++) fill_side(inputs, job.sides[side], inputs->rows[side], inputs->bias[side]);
    const asp_status status = asp_parallel_for(context, n, pairs_item, &job);
    asp_arena_free(&job.arena);
    if (status) return status;
    memset(used, 0, (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
        for (int64_t j = 0; j < n; j++)
            if (pairs[i * n + j] != 0) used[i] = used[j] = 1;
    }
    used[inputs->bias_node] = 1;
    *score = asp_sum_numbers(pairs, n * n);
    return ASP_OK;
}

/* ---- the largest ---------------------------------------------------------------------------------------------- */

typedef struct {
    asp_graph_choose_item *keys; /* (p) */
    double *rows, *columns;      /* (p) largest |pair| of each */
    int64_t *place;              /* (p) among those that stay */
    asp_arena arena;
} largest_job;

static int by_number(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

asp_status asp_graph_pairs_largest(int64_t *kept, double *merged, const double *pairs, int64_t p, int64_t rest,
                                   int64_t n_kept, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    largest_job job = {0};
    asp_arena_part parts[] = {ASP_PART(job.keys, p, 1), ASP_PART(job.rows, p, 1), ASP_PART(job.columns, p, 1),
                              ASP_PART(job.place, p, 1)};
    const int64_t bytes = asp_arena_lay_out(&job.arena, parts, 4);
    if (!asp_arena_commit(&job.arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "the largest pairs of sources need %s of scratch",
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&job.arena, parts, 4);
    for (int64_t i = 0; i < p * p; i++) {
        const double size = fabs(pairs[i]);
        job.rows[i / p] = fmax(job.rows[i / p], size);
        job.columns[i % p] = fmax(job.columns[i % p], size);
    }
    for (int64_t i = 0; i < p; i++)
        job.keys[i] = (asp_graph_choose_item){i == rest ? INFINITY : job.columns[i] + job.rows[i], i};
    asp_graph_choose_sort(job.keys, p);
    for (int64_t i = 0; i < n_kept; i++) kept[i] = job.keys[i].number;
    qsort(kept, (size_t)n_kept, sizeof *kept, by_number);
    for (int64_t i = 0; i < p; i++) job.place[i] = -1;
    for (int64_t i = 0; i < n_kept; i++) job.place[kept[i]] = i;
    for (int64_t i = 0; i < p; i++)
        if (job.place[i] < 0) job.place[i] = job.place[rest];
    memset(merged, 0, (size_t)(n_kept * n_kept) * sizeof *merged);
    for (int64_t i = 0; i < p * p; i++) merged[job.place[i / p] * n_kept + job.place[i % p]] += pairs[i];
    asp_arena_free(&job.arena);
    return asp_parallel_stopped(context) ? ASP_STOPPED : ASP_OK;
}
