/* graph_logits.c: logit nodes: which tokens most likely follow, and what their logits read. */
#include <math.h>

#include "graph/graph.h"

static double real_item(const void *x, int64_t i) { return (double)((const asp_real *)x)[i]; }

static void softmax(double *probability, const asp_real *logits, int64_t n) {
    double largest = (double)logits[0];
    for (int64_t i = 1; i < n; i++) largest = fmax(largest, (double)logits[i]);
    for (int64_t i = 0; i < n; i++) probability[i] = exp((double)logits[i] - largest);
    const double sum = asp_sum_numbers(probability, n);
    for (int64_t i = 0; i < n; i++) probability[i] /= sum;
}

asp_status asp_graph_logits_likely(double *probability, int64_t *tokens, int64_t *n_tokens, const asp_real *logits,
                                   int64_t n_vocab, int64_t most, double desired, const asp_context *context,
                                   asp_error *err) {
    ASP_ENVIRONMENT;
    *n_tokens = 0;
    if (n_vocab < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "there are no logits");
    softmax(probability, logits, n_vocab);
    if (asp_parallel_stopped(context)) return ASP_STOPPED;
    if (most < 1) return ASP_OK;
    asp_graph_choose_item *items = asp_allocate(n_vocab, sizeof *items);
    if (!items) return asp_fail(err, ASP_NO_MEMORY, "no memory to rank the logits of %lld tokens", (long long)n_vocab);
    for (int64_t i = 0; i < n_vocab; i++) items[i] = (asp_graph_choose_item){probability[i], i};
    asp_graph_choose_sort(items, n_vocab);
    double sum = 0;
    while (*n_tokens < asp_min(most, n_vocab)) {
        tokens[*n_tokens] = items[*n_tokens].number;
        sum += items[*n_tokens].score;
        ++*n_tokens;
        if (sum >= desired) break;
    }
    asp_release(items);
    return ASP_OK;
}

/* ---- what they read ------------------------------------------------------------------------------- */

typedef struct {
    asp_real *vectors;
    const asp_model *model;
    const asp_graph_outputs *outputs;
} reading;

enum { COLUMNS = 64 };

/* sums (COLUMNS) = sum over tokens (n; NULL: the first n) of columns [begin, end) of the unembedding, one by one. */
static void add_rows(double *sums, const reading *r, const int64_t *tokens, int64_t n, int64_t begin, int64_t end) {
    const int64_t e = r->model->config.d_model;
    const asp_real *unembed = r->model->data + r->model->unembed_w;
    for (int64_t j = begin; j < end; j++) sums[j - begin] = 0;
    for (int64_t i = 0; i < n; i++) {
        const asp_real *row = unembed + (tokens ? tokens[i] : i) * e;
        for (int64_t j = begin; j < end; j++) sums[j - begin] += (double)row[j];
    }
    for (int64_t j = begin; j < end; j++) sums[j - begin] /= (double)n;
}

/* Some columns of all vectors. */
static void columns_item(void *arg, int64_t block, int thread) {
    (void)thread;
    const reading *r = arg;
    const asp_graph_outputs *o = r->outputs;
    const int64_t e = r->model->config.d_model, begin = block * COLUMNS, end = asp_min(e, begin + COLUMNS);
    const asp_real *unembed = r->model->data + r->model->unembed_w;
    double less[COLUMNS], mean[COLUMNS];
    add_rows(less, r, o->n_wrong ? o->wrong : NULL, o->n_wrong ? o->n_wrong : r->model->config.n_vocab, begin, end);
    if (o->n_wrong) {
        add_rows(mean, r, o->tokens, o->n_tokens, begin, end);
        for (int64_t j = begin; j < end; j++) r->vectors[j] = (asp_real)(mean[j - begin] - less[j - begin]);
        return;
    }
    for (int64_t i = 0; i < o->n_tokens; i++)
        for (int64_t j = begin; j < end; j++)
            r->vectors[i * e + j] = (asp_real)((double)unembed[o->tokens[i] * e + j] - less[j - begin]);
}

typedef struct {
    const asp_real *values;
    const int64_t *tokens;
} picked;

static double picked_item(const void *arg, int64_t i) {
    const picked *p = arg;
    return (double)p->values[p->tokens[i]];
}

static double mean_of(const asp_real *values, const int64_t *tokens, int64_t n) {
    return asp_sum(picked_item, &(picked){values, tokens}, n) / (double)n;
}

/* out (1 or n_tokens) written; values (V) read, NULL: zeros. */
static void combine(double *out, const asp_real *values, const asp_graph_outputs *o, int64_t n_vocab) {
    const double mean = values && !o->n_wrong ? asp_sum(real_item, values, n_vocab) / (double)n_vocab : 0;
    if (o->n_wrong)
        out[0] = values ? mean_of(values, o->tokens, o->n_tokens) - mean_of(values, o->wrong, o->n_wrong) : 0;
    for (int64_t i = 0; !o->n_wrong && i < o->n_tokens; i++) out[i] = values ? (double)values[o->tokens[i]] - mean : 0;
}

asp_status asp_graph_logits_reads(asp_real *vectors, double *constant, double *value, const asp_model *model,
                                  const asp_graph_outputs *outputs, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t v = model->config.n_vocab;
    for (int64_t i = 0; i < outputs->n_tokens + outputs->n_wrong; i++) {
        const int64_t token = i < outputs->n_tokens ? outputs->tokens[i] : outputs->wrong[i - outputs->n_tokens];
        if (token < 0 || token >= v)
            return asp_fail(err, ASP_BAD_INDEX, "token id %lld is out of range 0..%lld", (long long)token,
                            (long long)(v - 1));
    }
    if (!outputs->n_tokens) return asp_fail(err, ASP_BAD_ARGUMENT, "a graph needs at least one token to explain");
    combine(constant, asp_at_const(model->data, model->unembed_b), outputs, v);
    combine(value, outputs->logits, outputs, v);
    reading r = {.vectors = vectors, .model = model, .outputs = outputs};
    return asp_parallel_for(context, (model->config.d_model + COLUMNS - 1) / COLUMNS, columns_item, &r);
}
