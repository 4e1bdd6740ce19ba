/* transcoder_trainer.c: one optimiser step of one layer's transcoder: encoding, loss, gradients, AdamW.
 *
 * Only the encoder's product is dense.  What is active is kept as a list of entries, `width` slots for each row,
 * and gradients are summed feature by feature over the rows in order, so that bits do not depend on threads.
 * Until the optimiser starts, a step can fail or be stopped and leaves everything as it was. */
#include <math.h>
#include <string.h>

#include "transcoder/transcoder.h"

enum { ROWS = 16, FEATURES = 8, CHUNK = 4096 };
enum { W_ENC, B_ENC, W_DEC, B_DEC, LOG_THRESHOLD };

/* What a step needs beside the weights; made anew when it is too small. */
typedef struct {
    asp_arena arena;
    int64_t n, width;   /* rows and slots that it is made for */
    asp_real *pre;      /* (n,F) */
    asp_real *residual; /* (2,n,O): output - y, and what is left of it after the dead features' output */
    int32_t *feature;   /* (n,width) feature of a slot: first the active ones, from width - aux_k the dead ones */
    asp_real *value, *dpre, *dlog; /* (n,width) activation, gradients of pre and of log_threshold */
    int64_t *count;                /* (2,n) used slots of both parts */
    int64_t *start, *order;        /* (F+1), (n*width): slots by feature */
    double *sums;                  /* (4,n): error, aux, penalty, number of active features of a row */
} coder_scratch;

struct asp_transcoder_trainer {
    int64_t n_in, n_out, n_features, size, step;
    asp_transcoder_weight weights[ASP_TRANSCODER_N_WEIGHTS];
    asp_real *blocks[4];    /* (size) weights, first and second moments, gradients */
    int64_t *silent;        /* (F) */
    uint8_t *active, *dead; /* (F) in this step */
    double *threshold;      /* (F) exp(log_threshold) in this step */
    asp_adamw_weights all;  /* the blocks, in chunks */
    coder_scratch scratch;
};

typedef struct {
    asp_transcoder_trainer *coder;
    const asp_transcoder_step_options *options;
    const asp_real *x, *y;
    int64_t n, main_width, n_dead;
    double scale; /* gradient of the error per unit of output - y: 2 / (n O) */
} coder_job;

void asp_transcoder_trainer_free(asp_transcoder_trainer *c) {
    if (!c) return;
    for (int i = 0; i < 4; i++) asp_release(c->blocks[i]);
    asp_release(c->silent);
    asp_release(c->active);
    asp_release(c->dead);
    asp_release(c->threshold);
    asp_release(c->all.chunks);
    asp_release(c->all.squares);
    asp_arena_free(&c->scratch.arena);
    asp_release(c);
}

/* 0 if the sizes do not fit in 64 bits. */
static int list_weights(asp_transcoder_trainer *c) {
    const int64_t f = c->n_features, i = c->n_in, o = c->n_out;
    const asp_transcoder_weight list[] = {{"w_enc", 2, {f, i}, 0, 0},
                                          {"b_enc", 1, {f, 1}, 0, 0},
                                          {"w_dec", 2, {f, o}, 0, 0},
                                          {"b_dec", 1, {o, 1}, 0, 0},
                                          {"log_threshold", 1, {f, 1}, 0, 0}};
    for (int w = 0; w < ASP_TRANSCODER_N_WEIGHTS; w++) {
        c->weights[w] = list[w];
        c->weights[w].offset = c->size;
        if (!asp_multiply(list[w].dims[0], list[w].dims[1], &c->weights[w].size)) return 0;
        if (c->weights[w].size > INT64_MAX / 8 - c->size) return 0;
        c->size += c->weights[w].size;
    }
    c->all.n_chunks = (c->size + CHUNK - 1) / CHUNK;
    return 1;
}

static void list_weight_chunks(asp_transcoder_trainer *c) {
    c->all.data = c->blocks[0], c->all.m = c->blocks[1], c->all.v = c->blocks[2], c->all.gradients = c->blocks[3];
    for (int64_t i = 0; i < c->all.n_chunks; i++)
        c->all.chunks[i] = (asp_adamw_chunk){i * CHUNK, asp_min(CHUNK, c->size - i * CHUNK), 0};
}

asp_status asp_transcoder_trainer_new(asp_transcoder_trainer **coder, int64_t n_in, int64_t n_out, int64_t n_features,
                                      asp_error *err) {
    *coder = NULL;
    if (n_in < 1 || n_out < 1 || n_features < 1 || n_in > INT32_MAX || n_out > INT32_MAX || n_features > INT32_MAX)
        return asp_fail(err, ASP_BAD_ARGUMENT, "widths and features must be in 1..%d, got %lld, %lld and %lld",
                        INT32_MAX, (long long)n_in, (long long)n_out, (long long)n_features);
    asp_transcoder_trainer *c = asp_allocate(1, sizeof *c);
    if (!c) return asp_fail(err, ASP_NO_MEMORY, "no memory for a transcoder");
    c->n_in = n_in, c->n_out = n_out, c->n_features = n_features;
    int complete = list_weights(c);
    for (int i = 0; complete && i < 4; i++) complete = (c->blocks[i] = asp_allocate(c->size, sizeof(asp_real))) != NULL;
    complete = complete && (c->silent = asp_allocate(n_features, sizeof *c->silent)) != NULL &&
               (c->active = asp_allocate(n_features, 1)) != NULL && (c->dead = asp_allocate(n_features, 1)) != NULL &&
               (c->threshold = asp_allocate(n_features, sizeof *c->threshold)) != NULL &&
               (c->all.chunks = asp_allocate(c->all.n_chunks, sizeof *c->all.chunks)) != NULL &&
               (c->all.squares = asp_allocate(c->all.n_chunks, sizeof *c->all.squares)) != NULL;
    if (!complete) {
        const double bytes = 4.0 * (double)n_features * (double)(n_in + n_out) * (double)sizeof(asp_real);
        asp_transcoder_trainer_free(c);
        return asp_fail(err, ASP_NO_MEMORY,
                        "a transcoder of %lld features needs %s to be trained, which could not be allocated",
                        (long long)n_features, asp_fail_size((char[32]){0}, bytes));
    }
    list_weight_chunks(c);
    *coder = c;
    return ASP_OK;
}

const asp_transcoder_weight *asp_transcoder_trainer_weights(const asp_transcoder_trainer *c) { return c->weights; }
asp_real *asp_transcoder_trainer_block(asp_transcoder_trainer *c, int which) { return c->blocks[which]; }
int64_t *asp_transcoder_trainer_silent(asp_transcoder_trainer *c) { return c->silent; }
int64_t *asp_transcoder_trainer_step_count(asp_transcoder_trainer *c) { return &c->step; }

void asp_transcoder_trainer_scaled(const asp_transcoder_trainer *c, double scale, asp_real *const *out) {
    ASP_ENVIRONMENT;
    for (int which = 0; which < ASP_TRANSCODER_N_WEIGHTS; which++) {
        const asp_real *values = c->blocks[0] + c->weights[which].offset;
        for (int64_t i = 0; i < c->weights[which].size; i++) {
            const double value = (double)values[i];
            out[which][i] = (asp_real)(which == W_DEC           ? value
                                       : which == LOG_THRESHOLD ? exp(value) * scale
                                                                : value * scale);
        }
    }
}

static asp_real *weight(const asp_transcoder_trainer *c, int which) { return c->blocks[0] + c->weights[which].offset; }
static asp_real *gradient(const asp_transcoder_trainer *c, int which) {
    return c->blocks[3] + c->weights[which].offset;
}

/* ---- scratch --------------------------------------------------------------------------------- */

static asp_status prepare_step(asp_transcoder_trainer *c, int64_t n, int64_t width, asp_error *err) {
    coder_scratch *s = &c->scratch;
    if (s->arena.base && s->n >= n && s->width == width) return ASP_OK;
    asp_arena_free(&s->arena);
    *s = (coder_scratch){.n = n, .width = width};
    asp_arena_part parts[] = {ASP_PART(s->pre, n, c->n_features), ASP_PART(s->residual, 2 * n, c->n_out),
                              ASP_PART(s->feature, n, width),     ASP_PART(s->value, n, width),
                              ASP_PART(s->dpre, n, width),        ASP_PART(s->dlog, n, width),
                              ASP_PART(s->count, 2, n),           ASP_PART(s->start, c->n_features + 1, 1),
                              ASP_PART(s->order, n, width),       ASP_PART(s->sums, 4, n)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&s->arena, parts, PARTS);
    if (bytes == INT64_MAX) return asp_fail(err, ASP_NO_MEMORY, "%lld rows are too many for one step", (long long)n);
    if (!asp_arena_commit(&s->arena, 0)) {
        *s = (coder_scratch){0};
        return asp_fail(err, ASP_NO_MEMORY,
                        "a step on %lld rows needs %s, which could not be allocated; try fewer rows", (long long)n,
                        asp_fail_size((char[32]){0}, (double)bytes));
    }
    asp_arena_wire(&s->arena, parts, PARTS);
    return ASP_OK;
}

/* ---- forward and backward of a row -------------------------------------------------------------- */

/* The k largest positive pre; with `among` the k largest of either sign of those features.  In the order of the
 * features; of equal ones the first count.  NaN counts as large, so that it is not lost. */
static int64_t select_largest(const asp_real *pre, int64_t n_features, const uint8_t *among, int64_t k, int32_t *chosen,
                              asp_real *values) {
    int64_t n = 0, least = 0;
    for (int64_t f = 0; f < n_features; f++) {
        if ((among ? !among[f] : pre[f] <= 0) || (n == k && pre[f] <= values[least])) continue;
        if (n == k) { /* out goes the smallest, of equal ones the last */
            n--;
            memmove(chosen + least, chosen + least + 1, (size_t)(n - least) * sizeof *chosen);
            memmove(values + least, values + least + 1, (size_t)(n - least) * sizeof *values);
        }
        chosen[n] = (int32_t)f;
        values[n++] = pre[f];
        if (n < k) continue;
        least = 0;
        for (int64_t i = 1; i < k; i++)
            if (values[i] <= values[least]) least = i;
    }
    return n;
}

/* Entries of a row: active features and, of JumpReLU, those so near that they move the threshold (value 0). */
static int64_t select_active(const coder_job *job, const asp_real *pre, int32_t *chosen, asp_real *values) {
    const asp_transcoder_step_options *o = job->options;
    const int64_t n_features = job->coder->n_features;
    if (o->activation == ASP_TRANSCODER_TOPK) return select_largest(pre, n_features, NULL, o->top_k, chosen, values);
    int64_t n = 0;
    for (int64_t f = 0; f < n_features; f++) {
        if (o->activation == ASP_TRANSCODER_RELU) {
            if (pre[f] <= 0) continue;
            values[n] = pre[f];
        } else {
            const double distance = (double)pre[f] - job->coder->threshold[f];
            if (distance <= -0.5 * o->bandwidth) continue;
            values[n] = distance <= 0 ? 0 : pre[f];
        }
        chosen[n++] = (int32_t)f;
    }
    return n;
}

/* Gradients of an active entry's pre and log_threshold from d, that of its activation; adds to the row's penalty. */
static void entry_backward(const coder_job *job, const asp_real *pre, int64_t slot, double d, double *penalty) {
    const asp_transcoder_step_options *o = job->options;
    coder_scratch *s = &job->coder->scratch;
    const double price = o->sparsity / (double)job->n, value = (double)s->value[slot];
    s->dpre[slot] = (asp_real)d;
    if (o->activation == ASP_TRANSCODER_RELU) {
        const double t = tanh(o->sharpness * value);
        *penalty += t;
        s->dpre[slot] = (asp_real)(d + price * o->sharpness * (1 - t * t));
    } else if (o->activation == ASP_TRANSCODER_JUMP_RELU) {
        const int32_t f = s->feature[slot];
        const double threshold = job->coder->threshold[f];
        const int near = fabs((double)pre[f] - threshold) < 0.5 * o->bandwidth;
        *penalty += value != 0;
        if (value == 0) s->dpre[slot] = 0;
        s->dlog[slot] = near ? (asp_real)(-(threshold * d + price) * threshold / o->bandwidth) : 0;
    }
}

static double row_squares(const asp_real *x, int64_t n) { return asp_isa_kernels()->sum_squares(x, n); }

static void main_row(const coder_job *job, int64_t row) {
    const asp_transcoder_trainer *c = job->coder;
    const coder_scratch *s = &c->scratch;
    const asp_kernels *kernels = asp_isa_kernels();
    const asp_real *pre = s->pre + row * c->n_features, *w_dec = weight(c, W_DEC);
    asp_real *residual = s->residual + row * c->n_out;
    const int64_t first = row * s->width, n = select_active(job, pre, s->feature + first, s->value + first);
    double penalty = 0, active = 0;
    memcpy(residual, weight(c, B_DEC), (size_t)c->n_out * sizeof *residual);
    kernels->axpy(residual, (asp_real)(-1 / job->options->output_scale), job->y + row * c->n_out, c->n_out);
    for (int64_t i = first; i < first + n; i++) {
        active += s->value[i] != 0;
        kernels->axpy(residual, s->value[i], w_dec + s->feature[i] * c->n_out, c->n_out);
    }
    for (int64_t i = first; i < first + n; i++) {
        const double d = job->scale * (double)kernels->dot(residual, w_dec + s->feature[i] * c->n_out, c->n_out);
        entry_backward(job, pre, i, d, &penalty);
    }
    s->count[row] = n;
    s->sums[row] = row_squares(residual, c->n_out);
    s->sums[2 * job->n + row] = penalty;
    s->sums[3 * job->n + row] = active;
}

/* The dead features explain what the living ones leave: |output - y + output of the dead|^2 (Gao et al. 2024).
 * Theirs are positive; here either sign will do, because the pre of a dead feature is often negative everywhere. */
static void dead_row(const coder_job *job, int64_t row) {
    const asp_transcoder_trainer *c = job->coder;
    const asp_transcoder_step_options *o = job->options;
    const coder_scratch *s = &c->scratch;
    const asp_kernels *kernels = asp_isa_kernels();
    const asp_real *w_dec = weight(c, W_DEC);
    asp_real *left = s->residual + (job->n + row) * c->n_out;
    const int64_t first = row * s->width + job->main_width;
    const int64_t n = select_largest(s->pre + row * c->n_features, c->n_features, c->dead, o->aux_k, s->feature + first,
                                     s->value + first);
    memcpy(left, s->residual + row * c->n_out, (size_t)c->n_out * sizeof *left);
    for (int64_t i = first; i < first + n; i++)
        kernels->axpy(left, s->value[i], w_dec + s->feature[i] * c->n_out, c->n_out);
    for (int64_t i = first; i < first + n; i++) {
        const double d = (double)kernels->dot(left, w_dec + s->feature[i] * c->n_out, c->n_out);
        s->dpre[i] = (asp_real)(o->aux_weight * job->scale * d);
        s->dlog[i] = 0;
    }
    s->count[job->n + row] = n;
    s->sums[job->n + row] = row_squares(left, c->n_out);
}

static void rows_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const coder_job *job = arg;
    const coder_scratch *s = &job->coder->scratch;
    for (int64_t row = item * ROWS; row < asp_min((item + 1) * ROWS, job->n); row++) {
        main_row(job, row);
        s->count[job->n + row] = 0;
        s->sums[job->n + row] = 0;
        if (job->n_dead && job->options->aux_k) dead_row(job, row);
    }
}

/* ---- gradients of the weights --------------------------------------------------------------------- */

static int64_t slot_begin(const coder_job *job, int64_t row, int part) {
    return row * job->coder->scratch.width + (part ? job->main_width : 0);
}

/* Lists the used slots by feature, rows in order. */
static void sort_by_feature(const coder_job *job) {
    const asp_transcoder_trainer *c = job->coder;
    const coder_scratch *s = &c->scratch;
    int64_t *start = s->start;
    memset(start, 0, (size_t)(c->n_features + 1) * sizeof *start);
    memset(c->active, 0, (size_t)c->n_features);
    for (int fill = 0; fill < 2; fill++) {
        for (int64_t row = 0; row < job->n; row++)
            for (int part = 0; part < 2; part++) {
                const int64_t first = slot_begin(job, row, part), end = first + s->count[part * job->n + row];
                for (int64_t i = first; i < end; i++) {
                    const int32_t f = s->feature[i];
                    if (fill) s->order[start[f]++] = i;
                    else start[f + 1]++;
                    if (!part && s->value[i] != 0) c->active[f] = 1;
                }
            }
        /* Before filling: sums.  Afterwards start[f] is where f ends, so move by one. */
        if (!fill)
            for (int64_t f = 0; f < c->n_features; f++) start[f + 1] += start[f];
    }
    memmove(start + 1, start, (size_t)c->n_features * sizeof *start);
    start[0] = 0;
}

static void feature_backward(const coder_job *job, int64_t f) {
    const asp_transcoder_trainer *c = job->coder;
    const coder_scratch *s = &c->scratch;
    const asp_kernels *kernels = asp_isa_kernels();
    const asp_real *row_dec = weight(c, W_DEC) + f * c->n_out;
    asp_real *dw_enc = gradient(c, W_ENC) + f * c->n_in, *dw_dec = gradient(c, W_DEC) + f * c->n_out;
    double db = 0, dlog = 0;
    memset(dw_enc, 0, (size_t)c->n_in * sizeof *dw_enc);
    memset(dw_dec, 0, (size_t)c->n_out * sizeof *dw_dec);
    for (int64_t i = s->start[f]; i < s->start[f + 1]; i++) {
        const int64_t slot = s->order[i], row = slot / s->width, dead = slot % s->width >= job->main_width;
        const double scale = dead ? job->options->aux_weight * job->scale : job->scale;
        kernels->axpy(dw_dec, (asp_real)(scale * (double)s->value[slot]),
                      s->residual + (dead * job->n + row) * c->n_out, c->n_out);
        kernels->axpy(dw_enc, s->dpre[slot], job->x + row * c->n_in, c->n_in);
        db += (double)s->dpre[slot];
        if (job->options->activation == ASP_TRANSCODER_JUMP_RELU) dlog += (double)s->dlog[slot];
    }
    kernels->axpy(dw_dec, -kernels->dot(dw_dec, row_dec, c->n_out), row_dec, c->n_out);
    gradient(c, B_ENC)[f] = (asp_real)db;
    gradient(c, LOG_THRESHOLD)[f] = (asp_real)dlog;
}

static void features_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const coder_job *job = arg;
    const int64_t end = asp_min((item + 1) * FEATURES, job->coder->n_features);
    for (int64_t f = item * FEATURES; f < end; f++) feature_backward(job, f);
}

static asp_status bias_backward(const coder_job *job, const asp_context *context) {
    const asp_transcoder_trainer *c = job->coder;
    asp_real *db = gradient(c, B_DEC);
    memset(db, 0, (size_t)c->n_out * sizeof *db);
    const asp_status status = asp_gemm_column_sums(db, c->scratch.residual, job->n, c->n_out, context);
    for (int64_t i = 0; i < c->n_out; i++) db[i] *= (asp_real)job->scale;
    return status;
}

static asp_status forward_backward(coder_job *job, const asp_context *context, asp_error *err) {
    asp_transcoder_trainer *c = job->coder;
    const int64_t f = c->n_features;
    const asp_gemm encode = {.trans_b = 1,
                             .m = job->n,
                             .n = f,
                             .k = c->n_in,
                             .a = job->x,
                             .lda = c->n_in,
                             .b = weight(c, W_ENC),
                             .ldb = c->n_in,
                             .c = c->scratch.pre,
                             .ldc = f,
                             .epilogue = ASP_EPILOGUE_BIAS,
                             .bias = weight(c, B_ENC),
                             .n_rows = job->n};
    asp_status status = asp_blas_enter(context, err);
    if (status) return status;
    status = asp_gemm_run(&encode, context);
    asp_blas_leave();
    if (!status) status = asp_parallel_for(context, (job->n + ROWS - 1) / ROWS, rows_item, job);
    if (status) return status;
    sort_by_feature(job);
    status = asp_parallel_for(context, (f + FEATURES - 1) / FEATURES, features_item, job);
    return status ? status : bias_backward(job, context);
}

/* ---- optimiser -------------------------------------------------------------------------------------- */

static void unit_item(void *arg, int64_t f, int thread) {
    (void)thread;
    const asp_transcoder_trainer *c = arg;
    asp_real *row = weight(c, W_DEC) + f * c->n_out;
    const double norm = sqrt(row_squares(row, c->n_out));
    if (!(norm > 0)) return;
    for (int64_t i = 0; i < c->n_out; i++) row[i] = (asp_real)((double)row[i] / norm);
}

static void update_weights(asp_transcoder_trainer *c, const asp_transcoder_step_options *o, double norm,
                           const asp_context *context) {
    const asp_adamw_options options = {o->lr, o->beta1, o->beta2, o->eps, 0, o->clip, norm, (double)(c->step + 1)};
    const asp_context quiet = {.n_threads = context->n_threads};
    asp_adamw_update(&c->all, &options, context);
    asp_parallel_for(&quiet, c->n_features, unit_item, c);
    for (int64_t f = 0; f < c->n_features; f++) c->silent[f] = c->active[f] ? 0 : c->silent[f] + 1;
}

static asp_transcoder_step_result summarise(const coder_job *job) {
    const double *sums = job->coder->scratch.sums, n = (double)job->n, size = n * (double)job->coder->n_out;
    double total[4] = {0};
    for (int part = 0; part < 4; part++)
        for (int64_t row = 0; row < job->n; row++) total[part] += sums[part * job->n + row];
    asp_transcoder_step_result r = {.error = total[0] / size,
                                    .aux = total[1] / size,
                                    .penalty = total[2] / n,
                                    .l0 = total[3] / n,
                                    .n_dead = job->n_dead};
    r.loss = r.error + job->options->sparsity * r.penalty + job->options->aux_weight * r.aux;
    return r;
}

static asp_status check_step(const asp_transcoder_trainer *c, const asp_real *x, const asp_real *y, int64_t n,
                             const asp_transcoder_step_options *o, asp_error *err) {
    int64_t first;
    if (n < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "a step needs at least one row");
    if (o->activation == ASP_TRANSCODER_TOPK && (o->top_k < 1 || o->top_k > c->n_features))
        return asp_fail(err, ASP_BAD_ARGUMENT, "top_k must be in 1..%lld, got %lld", (long long)c->n_features,
                        (long long)o->top_k);
    if (o->aux_k < 0 || o->aux_k > c->n_features)
        return asp_fail(err, ASP_BAD_ARGUMENT, "aux_k must be in 0..%lld, got %lld", (long long)c->n_features,
                        (long long)o->aux_k);
    if (asp_model_count_nonfinite(x, n * c->n_in, &first) || asp_model_count_nonfinite(y, n * c->n_out, &first))
        return asp_fail(err, ASP_BAD_ARGUMENT, "x and y must be finite");
    return ASP_OK;
}

asp_status asp_transcoder_trainer_step(asp_transcoder_trainer *c, const asp_real *x, const asp_real *y, int64_t n,
                                       const asp_transcoder_step_options *options, const asp_context *context,
                                       asp_transcoder_step_result *result, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    asp_status status = check_step(c, x, y, n, options, err);
    if (status) return status;
    const int64_t main_width = options->activation == ASP_TRANSCODER_TOPK ? options->top_k : c->n_features;
    coder_job job = {.coder = c,
                     .options = options,
                     .x = x,
                     .y = y,
                     .n = n,
                     .main_width = main_width,
                     .scale = 2 / ((double)n * (double)c->n_out)};
    status = prepare_step(c, n, main_width + options->aux_k, err);
    if (status) return status;
    for (int64_t f = 0; f < c->n_features; f++) {
        c->dead[f] = c->silent[f] >= options->dead_after;
        c->threshold[f] = exp((double)weight(c, LOG_THRESHOLD)[f]);
        job.n_dead += c->dead[f];
    }
    status = forward_backward(&job, context, err);
    if (status) return status;
    *result = summarise(&job);
    const double norm = result->grad_norm = asp_adamw_norm(&c->all, context);
    if (!isfinite(norm) || !isfinite(result->loss))
        return asp_fail(err, ASP_DIVERGED, "step %lld: the loss is %g and the gradient norm %g; the step was not taken",
                        (long long)c->step, result->loss, norm);
    update_weights(c, options, norm, context);
    c->step++;
    return ASP_OK;
}
