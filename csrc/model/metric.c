/* metric.c: one number for the logits after the last token of a sequence, and its gradient. */
#include <math.h>

#include "model/model.h"

static const char *const names[ASP_N_METRICS] = {"logit_diff", "logit_diff_max", "prob_diff", "log_prob",
                                                 "kl",         "custom"};

const char *asp_metric_name(asp_metric_kind kind) { return names[kind]; }

int asp_metric_is_of_answers(asp_metric_kind kind) { return kind <= ASP_PROB_DIFF; }

int asp_metric_needs_all(asp_metric_kind kind) { return kind != ASP_LOGIT_DIFF && kind != ASP_LOGIT_DIFF_MAX; }

static asp_status check_tokens(const int64_t *start, const int32_t *ids, int64_t n_sequences, int64_t n_vocab,
                               const char *what, asp_error *err) {
    for (int64_t b = 0; b < n_sequences; b++) {
        if (start[b + 1] <= start[b])
            return asp_fail(err, ASP_BAD_ARGUMENT, "metric: prompt %lld has no %s", (long long)b, what);
        for (int64_t i = start[b]; i < start[b + 1]; i++)
            if (ids[i] < 0 || ids[i] >= n_vocab)
                return asp_fail(err, ASP_BAD_INDEX, "metric: %s %lld of prompt %lld is out of range 0..%lld", what,
                                (long long)ids[i], (long long)b, (long long)n_vocab - 1);
    }
    return ASP_OK;
}

asp_status asp_metric_check(const asp_metric *metric, int64_t n_vocab, asp_error *err) {
    const int64_t n = metric->n_sequences;
    if (metric->kind == ASP_CUSTOM)
        return metric->custom ? ASP_OK : asp_fail(err, ASP_BAD_ARGUMENT, "a custom metric needs its functions");
    if (metric->kind == ASP_KL)
        return metric->reference ? ASP_OK : asp_fail(err, ASP_BAD_ARGUMENT, "metric kl needs reference logits");
    asp_status status = check_tokens(metric->answer_start, metric->answers, n, n_vocab, "answer", err);
    if (!status && metric->kind != ASP_LOG_PROB)
        status = check_tokens(metric->wrong_start, metric->wrong, n, n_vocab, "wrong answer", err);
    return status;
}

asp_metric asp_metric_part(const asp_metric *metric, int64_t first, int64_t n, int64_t n_vocab) {
    asp_metric part = *metric;
    part.n_sequences = n;
    part.first_sequence += first;
    if (part.answer_start) part.answer_start += first;
    if (part.wrong_start) part.wrong_start += first;
    if (part.reference) part.reference += first * n_vocab;
    return part;
}

/* ---- values ------------------------------------------------------------------------------- */

/* What reads a logit: from an array of all, or from the hidden state on demand. */
typedef struct {
    const asp_real *logits, *hidden;
    const asp_model *model;
} logit_source;

static double logit_of(const logit_source *s, int32_t token) {
    if (!s->model) return (double)s->logits[token];
    const int64_t e = s->model->config.d_model;
    const asp_real *row = s->model->data + s->model->unembed_w + token * e;
    double sum = s->model->unembed_b < 0 ? 0 : (double)s->model->data[s->model->unembed_b + token];
    for (int64_t i = 0; i < e; i++) sum += (double)s->hidden[i] * (double)row[i];
    return sum;
}

static double mean_logit(const logit_source *s, const int64_t *start, const int32_t *ids, int64_t b) {
    double sum = 0;
    for (int64_t i = start[b]; i < start[b + 1]; i++) sum += logit_of(s, ids[i]);
    return sum / (double)(start[b + 1] - start[b]);
}

/* Index into `wrong` of the largest wrong logit, which goes to *value. */
static int64_t largest_wrong(const asp_metric *m, const logit_source *s, int64_t b, double *value) {
    int64_t best = m->wrong_start[b];
    *value = logit_of(s, m->wrong[best]);
    for (int64_t i = best + 1; i < m->wrong_start[b + 1]; i++) {
        const double x = logit_of(s, m->wrong[i]);
        if (x > *value) {
            *value = x;
            best = i;
        }
    }
    return best;
}

static double logit_difference(const asp_metric *m, const logit_source *s, int64_t b) {
    const double right = mean_logit(s, m->answer_start, m->answers, b);
    double wrong;
    if (m->kind == ASP_LOGIT_DIFF) return right - mean_logit(s, m->wrong_start, m->wrong, b);
    largest_wrong(m, s, b, &wrong);
    return right - wrong;
}

static double log_sum_exp(const asp_real *logits, int64_t n) {
    double top = (double)logits[0], sum = 0;
    for (int64_t i = 1; i < n; i++) top = fmax(top, (double)logits[i]);
    for (int64_t i = 0; i < n; i++) sum += exp((double)logits[i] - top);
    return top + log(sum);
}

/* Probability of all tokens of sequence b together. */
static double probability(const asp_real *logits, double lse, const int64_t *start, const int32_t *ids, int64_t b) {
    double sum = 0;
    for (int64_t i = start[b]; i < start[b + 1]; i++) sum += exp((double)logits[ids[i]] - lse);
    return sum;
}

static double log_probability(const asp_metric *m, const asp_real *logits, double lse, int64_t b) {
    double top = -INFINITY, sum = 0;
    for (int64_t i = m->answer_start[b]; i < m->answer_start[b + 1]; i++)
        top = fmax(top, (double)logits[m->answers[i]]);
    for (int64_t i = m->answer_start[b]; i < m->answer_start[b + 1]; i++)
        sum += exp((double)logits[m->answers[i]] - top);
    return top + log(sum) - lse;
}

static double divergence(const asp_real *reference, const asp_real *logits, double lse, int64_t n) {
    const double wanted = log_sum_exp(reference, n);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const double p = (double)reference[i] - wanted;
        sum += exp(p) * (p - ((double)logits[i] - lse));
    }
    return sum;
}

double asp_metric_value(const asp_metric *m, int64_t b, const asp_real *logits, int64_t n) {
    if (!asp_metric_needs_all(m->kind)) return logit_difference(m, &(logit_source){.logits = logits}, b);
    const double lse = log_sum_exp(logits, n);
    if (m->kind == ASP_KL) return divergence(m->reference + b * n, logits, lse, n);
    if (m->kind == ASP_LOG_PROB) return log_probability(m, logits, lse, b);
    return probability(logits, lse, m->answer_start, m->answers, b) -
           probability(logits, lse, m->wrong_start, m->wrong, b);
}

double asp_metric_from_hidden(const asp_metric *m, int64_t b, const asp_model *model, const asp_real *hidden) {
    return logit_difference(m, &(logit_source){.hidden = hidden, .model = model}, b);
}

/* ---- gradients -------------------------------------------------------------------------------- */

static void logit_difference_gradient(const asp_metric *m, int64_t b, asp_real *dlogits, const asp_real *logits) {
    const int64_t n_right = m->answer_start[b + 1] - m->answer_start[b],
                  n_wrong = m->wrong_start[b + 1] - m->wrong_start[b];
    for (int64_t i = m->answer_start[b]; i < m->answer_start[b + 1]; i++)
        dlogits[m->answers[i]] += (asp_real)(1.0 / (double)n_right);
    if (m->kind == ASP_LOGIT_DIFF_MAX) {
        double value;
        dlogits[m->wrong[largest_wrong(m, &(logit_source){.logits = logits}, b, &value)]] -= 1;
        return;
    }
    for (int64_t i = m->wrong_start[b]; i < m->wrong_start[b + 1]; i++)
        dlogits[m->wrong[i]] -= (asp_real)(1.0 / (double)n_wrong);
}

/* d = sum of the answers' p minus sum of the wrong ones': gradient p_j (1 or -1 or 0 - d). */
static void probability_gradient(const asp_metric *m, int64_t b, asp_real *dlogits, const asp_real *logits, int64_t n,
                                 double lse) {
    const double value = probability(logits, lse, m->answer_start, m->answers, b) -
                         probability(logits, lse, m->wrong_start, m->wrong, b);
    for (int64_t i = 0; i < n; i++) dlogits[i] = (asp_real)(-value * exp((double)logits[i] - lse));
    for (int64_t i = m->answer_start[b]; i < m->answer_start[b + 1]; i++)
        dlogits[m->answers[i]] += (asp_real)exp((double)logits[m->answers[i]] - lse);
    for (int64_t i = m->wrong_start[b]; i < m->wrong_start[b + 1]; i++)
        dlogits[m->wrong[i]] -= (asp_real)exp((double)logits[m->wrong[i]] - lse);
}

static void log_probability_gradient(const asp_metric *m, int64_t b, asp_real *dlogits, const asp_real *logits,
                                     int64_t n, double lse) {
    const double all = log_probability(m, logits, lse, b) + lse;
    for (int64_t i = 0; i < n; i++) dlogits[i] = (asp_real)-exp((double)logits[i] - lse);
    for (int64_t i = m->answer_start[b]; i < m->answer_start[b + 1]; i++)
        dlogits[m->answers[i]] += (asp_real)exp((double)logits[m->answers[i]] - all);
}

void asp_metric_gradient(const asp_metric *m, int64_t b, asp_real *dlogits, const asp_real *logits, int64_t n) {
    for (int64_t i = 0; i < n; i++) dlogits[i] = 0;
    if (!asp_metric_needs_all(m->kind)) {
        logit_difference_gradient(m, b, dlogits, logits);
        return;
    }
    const double lse = log_sum_exp(logits, n);
    if (m->kind == ASP_PROB_DIFF) probability_gradient(m, b, dlogits, logits, n, lse);
    else if (m->kind == ASP_LOG_PROB) log_probability_gradient(m, b, dlogits, logits, n, lse);
    else {
        const asp_real *reference = m->reference + b * n;
        const double wanted = log_sum_exp(reference, n);
        for (int64_t i = 0; i < n; i++)
            dlogits[i] = (asp_real)(exp((double)logits[i] - lse) - exp((double)reference[i] - wanted));
    }
}

/* ---- many rows -------------------------------------------------------------------------------- */

typedef struct {
    const asp_metric *metric;
    const int64_t *sequence; /* (n), or NULL */
    const asp_real *logits;  /* (n,V) */
    int64_t n_vocab;
    double *values;    /* (n) */
    asp_real *dlogits; /* (n,V) */
} rows_job;

static int64_t sequence_of(const rows_job *job, int64_t row) { return job->sequence ? job->sequence[row] : row; }

static void value_item(void *arg, int64_t row, int thread) {
    (void)thread;
    const rows_job *job = arg;
    const int64_t v = job->n_vocab;
    job->values[row] = asp_metric_value(job->metric, sequence_of(job, row), job->logits + row * v, v);
}

static void gradient_item(void *arg, int64_t row, int thread) {
    (void)thread;
    const rows_job *job = arg;
    const int64_t at = row * job->n_vocab;
    asp_metric_gradient(job->metric, sequence_of(job, row), job->dlogits + at, job->logits + at, job->n_vocab);
}

/* Asks the caller's functions for values, or for the gradient if there are none, a chunk of rows at a time. */
static asp_status ask_custom(const rows_job *job, int64_t n, const asp_context *context) {
    const asp_custom_metric *custom = job->metric->custom;
    int64_t numbers[ASP_LOSS_CHUNK];
    for (int64_t first = 0; first < n; first += ASP_LOSS_CHUNK) {
        const int64_t rows = asp_min(ASP_LOSS_CHUNK, n - first), at = first * job->n_vocab;
        for (int64_t i = 0; i < rows; i++) numbers[i] = job->metric->first_sequence + sequence_of(job, first + i);
        const int failed = job->values
                               ? custom->values(custom->state, rows, numbers, job->logits + at, job->values + first)
                               : custom->gradient(custom->state, rows, numbers, job->logits + at, job->dlogits + at);
        if (failed) return asp_fail(context->err, ASP_STOPPED, "the function of a custom metric ended the call");
        if (asp_parallel_stopped(context)) return ASP_STOPPED;
    }
    return ASP_OK;
}

asp_status asp_metric_rows(double *values, const asp_metric *metric, const int64_t *sequence, int64_t n,
                           const asp_real *logits, int64_t n_vocab, const asp_context *context) {
    rows_job job = {metric, sequence, logits, n_vocab, values, NULL};
    return metric->kind == ASP_CUSTOM ? ask_custom(&job, n, context) : asp_parallel_for(context, n, value_item, &job);
}

asp_status asp_metric_values(double *values, const asp_metric *metric, const asp_real *logits, int64_t n_vocab,
                             const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_status status = asp_metric_check(metric, n_vocab, err);
    return status ? status : asp_metric_rows(values, metric, NULL, metric->n_sequences, logits, n_vocab, &own);
}

asp_status asp_metric_gradients(asp_real *dlogits, const asp_metric *metric, const asp_real *logits, int64_t n_vocab,
                                const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    rows_job job = {metric, NULL, logits, n_vocab, NULL, dlogits};
    const asp_status status = asp_metric_check(metric, n_vocab, err);
    if (status) return status;
    if (metric->kind != ASP_CUSTOM) return asp_parallel_for(&own, metric->n_sequences, gradient_item, &job);
    return metric->custom->gradient ? ask_custom(&job, metric->n_sequences, &own)
                                    : asp_fail(err, ASP_BAD_ARGUMENT, "the custom metric has no gradient");
}
