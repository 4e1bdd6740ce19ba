/* loss.c: the LM head with its loss, forward and backward together, for the rows that have a weight only,
 * in chunks of rows so that no (N,V) array is needed; and the loss of logits that are there already. */
#include <math.h>
#include <string.h>

#include "model/model.h"

typedef struct {
    const asp_model *model;
    asp_tape *tape;
    const asp_batch *batch;
    const asp_real *dlogits; /* (N,V) given by the caller, or NULL */
    const asp_metric *metric;
    asp_real *copies; /* (n_threads,V), of a custom metric (loss_rows,V) */
    double coefficient;
    int64_t first; /* in row_index */
} loss_job;

static void cross_entropy_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const loss_job *job = arg;
    const int64_t row = job->tape->row_index[job->first + item], v = job->model->config.n_vocab;
    const double weight = (double)job->batch->weights[row];
    asp_real *logits = job->tape->logits + item * v;
    job->tape->row_loss[job->first + item] =
        weight *
        asp_isa_kernels()->cross_entropy_row(logits, logits, v, job->batch->targets[row], weight * job->coefficient);
}

/* logits become the caller's dlogits; the loss is their product. */
static void linear_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const loss_job *job = arg;
    const int64_t row = job->tape->row_index[job->first + item], v = job->model->config.n_vocab;
    asp_real *logits = job->tape->logits + item * v;
    const asp_real *dlogits = job->dlogits + row * v;
    double sum = 0;
    for (int64_t i = 0; i < v; i++) sum += (double)logits[i] * (double)dlogits[i];
    job->tape->row_loss[job->first + item] = sum;
    memcpy(logits, dlogits, (size_t)v * sizeof *logits);
}

/* The last row of sequence `first + item`: its logits become the metric's gradient. */
static void metric_item(void *arg, int64_t item, int thread) {
    const loss_job *job = arg;
    const int64_t row = job->first + item, b = row % job->metric->n_sequences, v = job->model->config.n_vocab;
    asp_real *logits = job->tape->logits + item * v, *copy = job->copies + thread * v;
    memcpy(copy, logits, (size_t)v * sizeof *copy);
    job->tape->row_loss[row] = asp_metric_value(job->metric, b, copy, v);
    asp_metric_gradient(job->metric, b, logits, copy, v);
}

/* The same for n rows of a custom metric, whose functions take them together. */
static asp_status custom_rows(const loss_job *job, int64_t n, const asp_context *context) {
    const int64_t v = job->model->config.n_vocab;
    asp_real *logits = job->tape->logits;
    asp_status status = ASP_OK;
    for (int64_t i = 0, rows; !status && i < n; i += rows) {
        const int64_t b = (job->first + i) % job->metric->n_sequences;
        rows = asp_min(n - i, job->metric->n_sequences - b);
        const asp_metric part = asp_metric_part(job->metric, b, rows, v);
        double *values = job->tape->row_loss + job->first + i;
        status = asp_metric_values(values, &part, logits + i * v, v, context, context->err);
        if (!status)
            status = asp_metric_gradients(job->copies + i * v, &part, logits + i * v, v, context, context->err);
    }
    if (!status) memcpy(logits, job->copies, (size_t)(n * v) * sizeof *logits);
    return status;
}

static asp_status unembed_backward(const asp_model *m, asp_tape *tape, int64_t rows, const asp_context *context) {
    const int64_t e = m->config.d_model, v = m->config.n_vocab;
    const asp_gemm to_hidden = {.m = rows,
                                .n = e,
                                .k = v,
                                .a = tape->logits,
                                .lda = v,
                                .b = m->data + m->unembed_w,
                                .ldb = e,
                                .c = tape->dhidden,
                                .ldc = e,
                                .n_rows = rows};
    asp_status status = asp_gemm_run(&to_hidden, context);
    asp_real *gradient = tape->grads.parameters;
    if (status || !gradient) return status;
    const asp_gemm to_weight = {.trans_a = 1,
                                .m = v,
                                .n = e,
                                .k = rows,
                                .a = tape->logits,
                                .lda = v,
                                .b = tape->hidden,
                                .ldb = e,
                                .c = gradient + m->unembed_w,
                                .ldc = e,
                                .accumulate = 1,
                                .n_rows = v};
    status = asp_gemm_run(&to_weight, context);
    if (!status && m->unembed_b >= 0)
        status = asp_gemm_column_sums(gradient + m->unembed_b, tape->logits, rows, v, context);
    return status;
}

/* Runs the chunks of the rows listed in tape->row_index; item NULL: of a custom metric. */
static asp_status run_chunks(loss_job *job, int64_t n_rows, asp_work item, double *sum, const asp_context *context) {
    asp_tape *tape = job->tape;
    const int64_t e = job->model->config.d_model;
    asp_status status = ASP_OK;
    memset(tape->grads.ln, 0, (size_t)(tape->acts.n_tokens * e) * sizeof(asp_real));
    for (int64_t first = 0; !status && first < n_rows; first += ASP_LOSS_CHUNK) {
        const int64_t rows = asp_min(ASP_LOSS_CHUNK, n_rows - first);
        for (int64_t i = 0; i < rows; i++)
            memcpy(tape->hidden + i * e, tape->acts.ln_final + tape->row_index[first + i] * e,
                   (size_t)e * sizeof(asp_real));
        status = asp_unembed(job->model, tape->logits, tape->hidden, rows, tape->loss_rows, context);
        job->first = first;
        if (!status && item) status = asp_parallel_for(context, rows, item, job);
        else if (!status) status = custom_rows(job, rows, context);
        if (!status) status = unembed_backward(job->model, tape, rows, context);
        for (int64_t i = 0; !status && i < rows; i++)
            memcpy(tape->grads.ln + tape->row_index[first + i] * e, tape->dhidden + i * e,
                   (size_t)e * sizeof(asp_real));
    }
    *sum = 0;
    for (int64_t i = 0; i < n_rows; i++) *sum += tape->row_loss[i];
    return status;
}

asp_status asp_loss_cross_entropy(const asp_model *model, asp_tape *tape, const asp_batch *batch, double coefficient,
                                  double *sum, const asp_context *context) {
    loss_job job = {.model = model, .tape = tape, .batch = batch, .coefficient = coefficient};
    int64_t n = 0;
    for (int64_t r = 0; r < tape->acts.n_tokens; r++)
        if (batch->weights[r] != 0) tape->row_index[n++] = r;
    return run_chunks(&job, n, cross_entropy_item, sum, context);
}

asp_status asp_loss_linear(const asp_model *model, asp_tape *tape, const asp_real *dlogits, double *sum,
                           const asp_context *context) {
    loss_job job = {.model = model, .tape = tape, .dlogits = dlogits};
    for (int64_t r = 0; r < tape->acts.n_tokens; r++) tape->row_index[r] = r;
    return run_chunks(&job, tape->acts.n_tokens, linear_item, sum, context);
}

asp_status asp_loss_metric(const asp_model *model, asp_tape *tape, const asp_metric *metric, asp_real *copies,
                           double *sum, const asp_context *context) {
    loss_job job = {.model = model, .tape = tape, .metric = metric, .copies = copies};
    for (int64_t b = 0; b < tape->acts.n_sequences; b++) tape->row_index[b] = tape->acts.offsets[b + 1] - 1;
    return run_chunks(&job, tape->acts.n_sequences, metric->kind == ASP_CUSTOM ? NULL : metric_item, sum, context);
}

/* ---- of given logits ------------------------------------------------------------------------------- */

typedef struct {
    double *losses;         /* (n) */
    const asp_real *logits; /* (n,V) */
    const int32_t *targets; /* (n) */
    int64_t n_vocab;
} token_job;

typedef struct {
    const asp_real *logits; /* (V) */
    double top;
} token_row;

static double token_term(const void *arg, int64_t i) {
    const token_row *row = arg;
    return exp((double)row->logits[i] - row->top);
}

static void token_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const token_job *job = arg;
    const asp_real *logits = job->logits + i * job->n_vocab;
    asp_real top = logits[0];
    for (int64_t v = 1; v < job->n_vocab; v++) top = logits[v] > top ? logits[v] : top;
    const token_row row = {logits, (double)top};
    job->losses[i] = log(asp_sum(token_term, &row, job->n_vocab)) - ((double)logits[job->targets[i]] - row.top);
}

asp_status asp_loss_tokens(double *losses, const asp_real *logits, const int32_t *targets, int64_t n, int64_t n_vocab,
                           const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    for (int64_t i = 0; i < n; i++)
        if (targets[i] < 0 || targets[i] >= n_vocab)
            return asp_fail(err, ASP_BAD_INDEX, "target %lld of row %lld is out of range 0..%lld",
                            (long long)targets[i], (long long)i, (long long)n_vocab - 1);
    token_job job = {losses, logits, targets, n_vocab};
    return asp_parallel_for(context, n, token_item, &job);
}
