/* transcoder_gradients.c: forward and backward pass of a training step of transcoders, over all its layers.
 *
 * Only the encoders' products are dense.  What is active is kept as a list of entries, `width` slots for each row of a
 * layer, and gradients are summed feature by feature over the rows in order, so that bits do not depend on threads. */
#include <math.h>
#include <string.h>

#include "transcoder/transcoder_trainer.h"

enum { ROWS = 16, FEATURES = 8 };

static asp_real *gradient(const asp_coder_layer *l, int which) { return l->blocks[3] + l->weights[which].offset; }

static int64_t row_items(const asp_coder_job *job) { return (job->n + ROWS - 1) / ROWS; }
static int64_t outputs_width(const asp_coder_job *job) { return job->coder->n_layers * job->coder->n_out; }

/* What is left of a row, of part 0 or 1, from the first output of a layer on. */
static asp_real *residual_of(const asp_coder_job *job, int part, int64_t row, int64_t layer) {
    return job->coder->scratch.residual + (part * job->n + row) * outputs_width(job) + layer * job->coder->n_out;
}

static int64_t slot_begin(const asp_coder_job *job, const asp_coder_layer *l, int64_t row, int part) {
    return job->n * l->first_slot + row * l->width + (part ? l->main_width : 0);
}

static int64_t *used_slots(const asp_coder_job *job, int64_t layer, int part) {
    return job->coder->scratch.count + (layer * 2 + part) * job->n;
}

static double *row_sums(const asp_coder_job *job, int part, int64_t layer) {
    return job->coder->scratch.sums + (part * job->coder->n_layers + layer) * job->n;
}

/* ---- forward ------------------------------------------------------------------------------------ */

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

/* Entries of a row from a slot on: active features and, of JumpReLU, those so near that they move the threshold (value
 * 0); dlog is not 0 where they do. */
static int64_t select_active(const asp_coder_job *job, const asp_coder_layer *l, const asp_real *pre, int64_t slot) {
    const asp_transcoder_step_options *o = job->options;
    const asp_coder_scratch *s = &job->coder->scratch;
    int32_t *chosen = s->feature + slot;
    asp_real *values = s->value + slot;
    if (o->activation == ASP_TRANSCODER_TOPK) return select_largest(pre, l->n_features, NULL, o->top_k, chosen, values);
    int64_t n = 0;
    for (int64_t f = 0; f < l->n_features; f++) {
        if (o->activation == ASP_TRANSCODER_RELU) {
            if (pre[f] <= 0) continue;
            values[n] = pre[f];
        } else {
            const double distance = (double)pre[f] - l->threshold[f];
            if (distance <= -0.5 * o->bandwidth) continue;
            values[n] = distance <= 0 ? 0 : pre[f];
            s->dlog[slot + n] = fabs(distance) < 0.5 * o->bandwidth ? 1 : 0;
        }
        chosen[n++] = (int32_t)f;
    }
    return n;
}

/* Adds what entries write to a row. */
static void add_written(const asp_coder_job *job, const asp_coder_layer *l, asp_real *row, int64_t first, int64_t n) {
    const asp_coder_scratch *s = &job->coder->scratch;
    for (int64_t i = first; i < first + n; i++)
        asp_isa_kernels()->axpy(row, s->value[i], asp_coder_weight(l, ASP_CODER_W_DEC) + s->feature[i] * l->n_written,
                                l->n_written);
}

static void bias_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const asp_coder_job *job = arg;
    const asp_transcoder_trainer *c = job->coder;
    for (int64_t row = item * ROWS; row < asp_min((item + 1) * ROWS, job->n); row++)
        for (int64_t l = 0; l < c->n_layers; l++) {
            asp_real *residual = residual_of(job, 0, row, l);
            memcpy(residual, asp_coder_weight(&c->layers[l], ASP_CODER_B_DEC), (size_t)c->n_out * sizeof *residual);
            asp_isa_kernels()->axpy(residual, (asp_real)(-1 / job->options->output_scale[l]),
                                    job->y + (l * job->n + row) * c->n_out, c->n_out);
        }
}

static void row_forward_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const asp_coder_job *job = arg;
    const asp_coder_layer *l = &job->coder->layers[job->layer];
    const asp_coder_scratch *s = &job->coder->scratch;
    int64_t *used = used_slots(job, job->layer, 0), *used_by_dead = used_slots(job, job->layer, 1);
    for (int64_t row = item * ROWS; row < asp_min((item + 1) * ROWS, job->n); row++) {
        const asp_real *pre = s->pre + row * l->n_features;
        const int64_t first = slot_begin(job, l, row, 0), dead = slot_begin(job, l, row, 1);
        used[row] = select_active(job, l, pre, first);
        used_by_dead[row] = 0;
        if (l->n_dead && job->options->aux_k)
            used_by_dead[row] =
                select_largest(pre, l->n_features, l->dead, job->options->aux_k, s->feature + dead, s->value + dead);
        add_written(job, l, residual_of(job, 0, row, job->layer), first, used[row]);
    }
}

/* Active entries of a layer, and their outputs added to what is left. */
static asp_status forward_layer(asp_coder_job *job, int64_t layer, const asp_context *context, asp_error *err) {
    const asp_transcoder_trainer *c = job->coder;
    const asp_coder_layer *l = &c->layers[layer];
    const asp_gemm encode = {.trans_b = 1,
                             .m = job->n,
                             .n = l->n_features,
                             .k = c->n_in,
                             .a = job->x + layer * job->n * c->n_in,
                             .lda = c->n_in,
                             .b = asp_coder_weight(l, ASP_CODER_W_ENC),
                             .ldb = c->n_in,
                             .c = c->scratch.pre,
                             .ldc = l->n_features,
                             .epilogue = ASP_EPILOGUE_BIAS,
                             .bias = asp_coder_weight(l, ASP_CODER_B_ENC),
                             .n_rows = job->n};
    asp_status status = asp_blas_enter(context, err);
    if (status) return status;
    status = asp_gemm_run(&encode, context);
    asp_blas_leave();
    job->layer = layer;
    return status ? status : asp_parallel_for(context, row_items(job), row_forward_item, job);
}

/* ---- backward of a row -------------------------------------------------------------------------- */

/* Gradients of an active entry's pre and log_threshold from d, that of its activation; adds to the row's penalty. */
static void entry_backward(const asp_coder_job *job, int64_t layer, int64_t slot, double d, double *penalty) {
    const asp_transcoder_step_options *o = job->options;
    asp_coder_scratch *s = &job->coder->scratch;
    const double price = o->sparsity[layer] / (double)job->n, value = (double)s->value[slot];
    s->dpre[slot] = (asp_real)d;
    if (o->activation == ASP_TRANSCODER_RELU) {
        const double t = tanh(o->sharpness * value);
        *penalty += t;
        s->dpre[slot] = (asp_real)(d + price * o->sharpness * (1 - t * t));
    } else if (o->activation == ASP_TRANSCODER_JUMP_RELU) {
        const double threshold = job->coder->layers[layer].threshold[s->feature[slot]];
        const int near = s->dlog[slot] != 0;
        *penalty += value != 0;
        if (value == 0) s->dpre[slot] = 0;
        s->dlog[slot] = near ? (asp_real)(-(threshold * d + price) * threshold / o->bandwidth) : 0;
    }
}

static double row_squares(const asp_real *x, int64_t n) { return asp_isa_kernels()->sum_squares(x, n); }

/* Gradient of an entry's activation: what is left of the row along what the entry writes. */
static double along_entry(const asp_coder_job *job, const asp_coder_layer *l, const asp_real *left, int64_t slot) {
    const asp_real *written = asp_coder_weight(l, ASP_CODER_W_DEC) + job->coder->scratch.feature[slot] * l->n_written;
    return (double)asp_isa_kernels()->dot(left, written, l->n_written);
}

static void active_backward(const asp_coder_job *job, int64_t row, int64_t layer) {
    const asp_transcoder_trainer *c = job->coder;
    const asp_coder_layer *l = &c->layers[layer];
    const asp_real *left = residual_of(job, 0, row, layer);
    const int64_t first = slot_begin(job, l, row, 0), n = used_slots(job, layer, 0)[row];
    double penalty = 0, active = 0;
    for (int64_t i = first; i < first + n; i++) {
        active += c->scratch.value[i] != 0;
        entry_backward(job, layer, i, job->scale * along_entry(job, l, left, i), &penalty);
    }
    row_sums(job, 0, layer)[row] = row_squares(left, c->n_out);
    row_sums(job, 2, layer)[row] = penalty;
    row_sums(job, 3, layer)[row] = active;
}

/* The dead features explain what the living ones leave: |output - y + output of the dead|^2 (Gao et al. 2024).
 * Theirs are positive; here either sign will do, because the pre of a dead feature is often negative everywhere. */
static void dead_backward(const asp_coder_job *job, int64_t row) {
    const asp_transcoder_trainer *c = job->coder;
    asp_coder_scratch *s = &job->coder->scratch;
    memcpy(residual_of(job, 1, row, 0), residual_of(job, 0, row, 0), (size_t)outputs_width(job) * sizeof(asp_real));
    for (int64_t l = 0; l < c->n_layers; l++)
        add_written(job, &c->layers[l], residual_of(job, 1, row, l), slot_begin(job, &c->layers[l], row, 1),
                    used_slots(job, l, 1)[row]);
    for (int64_t l = 0; l < c->n_layers; l++) {
        const asp_real *left = residual_of(job, 1, row, l);
        const int64_t first = slot_begin(job, &c->layers[l], row, 1);
        for (int64_t i = first; i < first + used_slots(job, l, 1)[row]; i++) {
            const double d = along_entry(job, &c->layers[l], left, i);
            s->dpre[i] = (asp_real)(job->options->aux_weight * job->scale * d);
            s->dlog[i] = 0;
        }
        row_sums(job, 1, l)[row] = row_squares(left, c->n_out);
    }
}

static void row_backward_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const asp_coder_job *job = arg;
    for (int64_t row = item * ROWS; row < asp_min((item + 1) * ROWS, job->n); row++) {
        for (int64_t l = 0; l < job->coder->n_layers; l++) {
            active_backward(job, row, l);
            row_sums(job, 1, l)[row] = 0;
        }
        if (job->n_dead && job->options->aux_k) dead_backward(job, row);
    }
}

/* ---- gradients of the weights -------------------------------------------------------------------- */

/* Lists a layer's used slots by feature, rows in order. */
static void sort_by_feature(const asp_coder_job *job) {
    const asp_coder_layer *l = &job->coder->layers[job->layer];
    const asp_coder_scratch *s = &job->coder->scratch;
    int64_t *start = s->start;
    memset(start, 0, (size_t)(l->n_features + 1) * sizeof *start);
    memset(l->active, 0, (size_t)l->n_features);
    for (int fill = 0; fill < 2; fill++) {
        for (int64_t row = 0; row < job->n; row++)
            for (int part = 0; part < 2; part++) {
                const int64_t first = slot_begin(job, l, row, part),
                              end = first + used_slots(job, job->layer, part)[row];
                for (int64_t i = first; i < end; i++) {
                    const int32_t f = s->feature[i];
                    if (fill) s->order[start[f]++] = i;
                    else start[f + 1]++;
                    if (!part && s->value[i] != 0) l->active[f] = 1;
                }
            }
        /* Before filling: sums.  Afterwards start[f] is where f ends, so move by one. */
        if (!fill)
            for (int64_t f = 0; f < l->n_features; f++) start[f + 1] += start[f];
    }
    memmove(start + 1, start, (size_t)l->n_features * sizeof *start);
    start[0] = 0;
}

static void feature_backward(const asp_coder_job *job, int64_t f) {
    const asp_transcoder_trainer *c = job->coder;
    const asp_coder_layer *l = &c->layers[job->layer];
    const asp_coder_scratch *s = &c->scratch;
    const asp_kernels *kernels = asp_isa_kernels();
    const asp_real *row_dec = asp_coder_weight(l, ASP_CODER_W_DEC) + f * l->n_written;
    const asp_real *x = job->x + job->layer * job->n * c->n_in;
    asp_real *dw_enc = gradient(l, ASP_CODER_W_ENC) + f * c->n_in;
    asp_real *dw_dec = gradient(l, ASP_CODER_W_DEC) + f * l->n_written;
    double db = 0, dlog = 0;
    memset(dw_enc, 0, (size_t)c->n_in * sizeof *dw_enc);
    memset(dw_dec, 0, (size_t)l->n_written * sizeof *dw_dec);
    for (int64_t i = s->start[f]; i < s->start[f + 1]; i++) {
        const int64_t slot = s->order[i], place = slot - job->n * l->first_slot, row = place / l->width;
        const int dead = place % l->width >= l->main_width;
        const double scale = dead ? job->options->aux_weight * job->scale : job->scale;
        kernels->axpy(dw_dec, (asp_real)(scale * (double)s->value[slot]), residual_of(job, dead, row, job->layer),
                      l->n_written);
        kernels->axpy(dw_enc, s->dpre[slot], x + row * c->n_in, c->n_in);
        db += (double)s->dpre[slot];
        if (job->options->activation == ASP_TRANSCODER_JUMP_RELU) dlog += (double)s->dlog[slot];
    }
    kernels->axpy(dw_dec, -kernels->dot(dw_dec, row_dec, l->n_written), row_dec, l->n_written);
    gradient(l, ASP_CODER_B_ENC)[f] = (asp_real)db;
    gradient(l, ASP_CODER_LOG_THRESHOLD)[f] = (asp_real)dlog;
}

static void features_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const asp_coder_job *job = arg;
    const int64_t end = asp_min((item + 1) * FEATURES, job->coder->layers[job->layer].n_features);
    for (int64_t f = item * FEATURES; f < end; f++) feature_backward(job, f);
}

static asp_status backward_layer(asp_coder_job *job, int64_t layer, const asp_context *context) {
    job->layer = layer;
    sort_by_feature(job);
    const int64_t items = (job->coder->layers[layer].n_features + FEATURES - 1) / FEATURES;
    return asp_parallel_for(context, items, features_item, job);
}

static asp_status bias_backward(const asp_coder_job *job, const asp_context *context) {
    const asp_transcoder_trainer *c = job->coder;
    asp_real *columns = c->scratch.columns;
    memset(columns, 0, (size_t)outputs_width(job) * sizeof *columns);
    const asp_status status = asp_gemm_column_sums(columns, c->scratch.residual, job->n, outputs_width(job), context);
    for (int64_t l = 0; l < c->n_layers; l++)
        for (int64_t i = 0; i < c->n_out; i++)
            gradient(&c->layers[l], ASP_CODER_B_DEC)[i] = columns[l * c->n_out + i] * (asp_real)job->scale;
    return status;
}

asp_status asp_transcoder_gradients(asp_coder_job *job, const asp_context *context, asp_error *err) {
    const int64_t n_layers = job->coder->n_layers;
    asp_status status = asp_parallel_for(context, row_items(job), bias_item, job);
    for (int64_t l = 0; !status && l < n_layers; l++) status = forward_layer(job, l, context, err);
    if (!status) status = asp_parallel_for(context, row_items(job), row_backward_item, job);
    for (int64_t l = 0; !status && l < n_layers; l++) status = backward_layer(job, l, context);
    return status ? status : bias_backward(job, context);
}
