/* transcoder_trainer.c: the training of transcoders: weights and moments of the layers that are trained together, and
 * their optimiser step.
 *
 * Until the optimiser starts, a step can fail or be stopped and leaves everything as it was. */
#include "transcoder/transcoder_trainer.h"

#include <math.h>
#include <string.h>

enum { CHUNK = 4096 };

static void free_coder_layer(asp_coder_layer *l) {
    for (int i = 0; i < 4; i++) asp_release(l->blocks[i]);
    asp_release(l->silent);
    asp_release(l->active);
    asp_release(l->dead);
    asp_release(l->threshold);
    asp_release(l->all.chunks);
    asp_release(l->all.squares);
}

void asp_transcoder_trainer_free(asp_transcoder_trainer *c) {
    if (!c) return;
    for (int64_t l = 0; c->layers && l < c->n_layers; l++) free_coder_layer(&c->layers[l]);
    asp_release(c->layers);
    asp_arena_free(&c->scratch.arena);
    asp_release(c);
}

/* 0 if the sizes do not fit in 64 bits. */
static int list_weights(asp_coder_layer *l, int64_t n_in, int64_t n_out) {
    const int64_t f = l->n_features;
    const asp_transcoder_weight list[] = {{"w_enc", 2, {f, n_in}, 0, 0},
                                          {"b_enc", 1, {f, 1}, 0, 0},
                                          {"w_dec", 2, {f, l->n_written}, 0, 0},
                                          {"b_dec", 1, {n_out, 1}, 0, 0},
                                          {"log_threshold", 1, {f, 1}, 0, 0}};
    for (int w = 0; w < ASP_TRANSCODER_N_WEIGHTS; w++) {
        l->weights[w] = list[w];
        l->weights[w].offset = l->size;
        if (!asp_multiply(list[w].dims[0], list[w].dims[1], &l->weights[w].size)) return 0;
        if (l->weights[w].size > INT64_MAX / 8 - l->size) return 0;
        l->size += l->weights[w].size;
    }
    l->all.n_chunks = (l->size + CHUNK - 1) / CHUNK;
    return 1;
}

static void list_weight_chunks(asp_coder_layer *l) {
    l->all.data = l->blocks[0], l->all.m = l->blocks[1], l->all.v = l->blocks[2], l->all.gradients = l->blocks[3];
    for (int64_t i = 0; i < l->all.n_chunks; i++)
        l->all.chunks[i] = (asp_adamw_chunk){i * CHUNK, asp_min(CHUNK, l->size - i * CHUNK), 0};
}

/* 0 if there is no memory. */
static int make_coder_layer(asp_coder_layer *l, int64_t n_in, int64_t n_out) {
    int complete = list_weights(l, n_in, n_out);
    for (int i = 0; complete && i < 4; i++) complete = (l->blocks[i] = asp_allocate(l->size, sizeof(asp_real))) != NULL;
    complete = complete && (l->silent = asp_allocate(l->n_features, sizeof *l->silent)) != NULL &&
               (l->active = asp_allocate(l->n_features, 1)) != NULL &&
               (l->dead = asp_allocate(l->n_features, 1)) != NULL &&
               (l->threshold = asp_allocate(l->n_features, sizeof *l->threshold)) != NULL &&
               (l->all.chunks = asp_allocate(l->all.n_chunks, sizeof *l->all.chunks)) != NULL &&
               (l->all.squares = asp_allocate(l->all.n_chunks, sizeof *l->all.squares)) != NULL;
    if (complete) list_weight_chunks(l);
    return complete;
}

static asp_status check_coder_sizes(int64_t n_layers, int64_t n_in, int64_t n_out, const int64_t *n_features,
                                    asp_error *err) {
    int64_t width;
    if (n_layers < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "transcoders need one layer or more");
    if (!asp_multiply(n_layers, n_out, &width)) width = INT64_MAX;
    for (int64_t l = 0; l < n_layers; l++)
        if (n_in < 1 || n_out < 1 || n_features[l] < 1 || n_in > INT32_MAX || width > INT32_MAX ||
            n_features[l] > INT32_MAX)
            return asp_fail(err, ASP_BAD_ARGUMENT, "widths and features must be in 1..%d, got %lld, %lld and %lld",
                            INT32_MAX, (long long)n_in, (long long)width, (long long)n_features[l]);
    return ASP_OK;
}

asp_status asp_transcoder_trainer_new(asp_transcoder_trainer **coder, int64_t n_layers, int64_t n_in, int64_t n_out,
                                      const int64_t *n_features, asp_error *err) {
    *coder = NULL;
    const asp_status status = check_coder_sizes(n_layers, n_in, n_out, n_features, err);
    if (status) return status;
    double bytes = 0, total = 0;
    asp_transcoder_trainer *c = asp_allocate(1, sizeof *c);
    if (c) c->layers = asp_allocate(n_layers, sizeof *c->layers);
    int complete = c && c->layers;
    if (complete) c->n_in = n_in, c->n_out = n_out, c->n_layers = n_layers;
    for (int64_t l = 0; l < n_layers; l++) {
        const int64_t n_written = (n_layers - l) * n_out;
        total += (double)n_features[l];
        bytes += 4.0 * (double)n_features[l] * (double)(n_in + n_written) * (double)sizeof(asp_real);
        if (complete) c->layers[l].n_features = n_features[l], c->layers[l].n_written = n_written;
        complete = complete && make_coder_layer(&c->layers[l], n_in, n_out);
    }
    if (!complete) {
        asp_transcoder_trainer_free(c);
        return asp_fail(err, ASP_NO_MEMORY,
                        "a transcoder of %.0f features needs %s to be trained, which could not be allocated", total,
                        asp_fail_size((char[32]){0}, bytes));
    }
    *coder = c;
    return ASP_OK;
}

const asp_transcoder_weight *asp_transcoder_trainer_weights(const asp_transcoder_trainer *c, int64_t layer) {
    return c->layers[layer].weights;
}
asp_real *asp_transcoder_trainer_block(asp_transcoder_trainer *c, int64_t layer, int which) {
    return c->layers[layer].blocks[which];
}
int64_t *asp_transcoder_trainer_silent(asp_transcoder_trainer *c, int64_t layer) { return c->layers[layer].silent; }
int64_t asp_transcoder_trainer_n_layers(const asp_transcoder_trainer *c) { return c->n_layers; }
int64_t *asp_transcoder_trainer_step_count(asp_transcoder_trainer *c) { return &c->step; }

/* Row f of W_dec (L - layer, O) written in the units of the model, of length 1; what it is divided by, which to one
 * output alone is its scale. */
static double scale_row(const asp_transcoder_trainer *c, const asp_coder_layer *l, int64_t f, const double *scale,
                        asp_real *row) {
    const asp_real *trained = asp_coder_weight(l, ASP_CODER_W_DEC) + f * l->n_written;
    double squares = 0;
    for (int64_t i = 0; i < l->n_written; i++) {
        const double value = (double)trained[i] * scale[i / c->n_out];
        squares += value * value;
    }
    const double length = l->n_written > c->n_out && squares > 0 ? sqrt(squares) : scale[0];
    for (int64_t i = 0; i < l->n_written; i++) row[i] = (asp_real)((double)trained[i] * (scale[i / c->n_out] / length));
    return length;
}

void asp_transcoder_trainer_scaled(const asp_transcoder_trainer *c, int64_t layer, const double *scale,
                                   asp_real *const *out) {
    ASP_ENVIRONMENT;
    const asp_coder_layer *l = &c->layers[layer];
    const asp_real *w_enc = asp_coder_weight(l, ASP_CODER_W_ENC), *b_enc = asp_coder_weight(l, ASP_CODER_B_ENC),
                   *b_dec = asp_coder_weight(l, ASP_CODER_B_DEC),
                   *log_threshold = asp_coder_weight(l, ASP_CODER_LOG_THRESHOLD);
    for (int64_t i = 0; i < c->n_out; i++) out[ASP_CODER_B_DEC][i] = (asp_real)((double)b_dec[i] * scale[layer]);
    for (int64_t f = 0; f < l->n_features; f++) {
        const double factor = scale_row(c, l, f, scale + layer, out[ASP_CODER_W_DEC] + f * l->n_written);
        for (int64_t i = f * c->n_in; i < (f + 1) * c->n_in; i++)
            out[ASP_CODER_W_ENC][i] = (asp_real)((double)w_enc[i] * factor);
        out[ASP_CODER_B_ENC][f] = (asp_real)((double)b_enc[f] * factor);
        out[ASP_CODER_LOG_THRESHOLD][f] = (asp_real)(exp((double)log_threshold[f]) * factor);
    }
}

/* ---- scratch --------------------------------------------------------------------------------- */

/* Slots of each layer in this step; the widest layer's, and the most features of one. */
static void lay_out_slots(asp_transcoder_trainer *c, const asp_transcoder_step_options *o, int64_t *slots,
                          int64_t *widest, int64_t *most) {
    *slots = *widest = *most = 0;
    for (int64_t i = 0; i < c->n_layers; i++) {
        asp_coder_layer *l = &c->layers[i];
        l->main_width = o->activation == ASP_TRANSCODER_TOPK ? o->top_k : l->n_features;
        l->width = l->main_width + o->aux_k;
        l->first_slot = *slots;
        *slots += l->width;
        *widest = asp_max(*widest, l->width);
        *most = asp_max(*most, l->n_features);
    }
}

static asp_status prepare_step(asp_transcoder_trainer *c, int64_t n, const asp_transcoder_step_options *options,
                               asp_error *err) {
    asp_coder_scratch *s = &c->scratch;
    int64_t slots, widest, most;
    lay_out_slots(c, options, &slots, &widest, &most);
    if (s->arena.base && s->n >= n && s->slots == slots) return ASP_OK;
    asp_arena_free(&s->arena);
    *s = (asp_coder_scratch){.n = n, .slots = slots};
    asp_arena_part parts[] = {ASP_PART(s->pre, n, most),
                              ASP_PART(s->residual, 2 * n, c->n_layers * c->n_out),
                              ASP_PART(s->feature, n, slots),
                              ASP_PART(s->value, n, slots),
                              ASP_PART(s->dpre, n, slots),
                              ASP_PART(s->dlog, n, slots),
                              ASP_PART(s->count, 2 * c->n_layers, n),
                              ASP_PART(s->start, most + 1, 1),
                              ASP_PART(s->order, n, widest),
                              ASP_PART(s->sums, 4 * c->n_layers, n),
                              ASP_PART(s->columns, c->n_layers, c->n_out)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int64_t bytes = asp_arena_lay_out(&s->arena, parts, PARTS);
    if (bytes == INT64_MAX) return asp_fail(err, ASP_NO_MEMORY, "%lld rows are too many for one step", (long long)n);
    if (!asp_arena_commit(&s->arena, 0)) {
        *s = (asp_coder_scratch){0};
        return asp_fail(err, ASP_NO_MEMORY,
                        "a step on %lld rows needs %s, which could not be allocated; try fewer rows", (long long)n,
                        asp_fail_size((char[32]){0}, (double)bytes));
    }
    asp_arena_wire(&s->arena, parts, PARTS);
    return ASP_OK;
}

/* ---- optimiser -------------------------------------------------------------------------------------- */

static void unit_item(void *arg, int64_t f, int thread) {
    (void)thread;
    const asp_coder_layer *l = arg;
    asp_real *row = asp_coder_weight(l, ASP_CODER_W_DEC) + f * l->n_written;
    const double norm = sqrt(asp_isa_kernels()->sum_squares(row, l->n_written));
    if (!(norm > 0)) return;
    for (int64_t i = 0; i < l->n_written; i++) row[i] = (asp_real)((double)row[i] / norm);
}

static void update_weights(asp_coder_layer *l, const asp_transcoder_step_options *o, double norm, int64_t step,
                           const asp_context *context) {
    const asp_adamw_options options = {o->lr, o->beta1, o->beta2, o->eps, 0, o->clip, norm, (double)(step + 1)};
    const asp_context quiet = {.n_threads = context->n_threads};
    asp_adamw_update(&l->all, &options, context);
    asp_parallel_for(&quiet, l->n_features, unit_item, l);
    for (int64_t f = 0; f < l->n_features; f++) l->silent[f] = l->active[f] ? 0 : l->silent[f] + 1;
}

static asp_transcoder_step_result summarise(const asp_coder_job *job, int64_t layer, const asp_context *context) {
    const asp_transcoder_trainer *c = job->coder;
    const double n = (double)job->n, size = n * (double)c->n_out;
    double total[4] = {0};
    for (int part = 0; part < 4; part++)
        for (int64_t row = 0; row < job->n; row++)
            total[part] += c->scratch.sums[(part * c->n_layers + layer) * job->n + row];
    asp_transcoder_step_result r = {.error = total[0] / size,
                                    .aux = total[1] / size,
                                    .penalty = total[2] / n,
                                    .l0 = total[3] / n,
                                    .grad_norm = asp_adamw_norm(&c->layers[layer].all, context),
                                    .n_dead = c->layers[layer].n_dead};
    r.loss = r.error + job->options->sparsity[layer] * r.penalty + job->options->aux_weight * r.aux;
    return r;
}

static asp_status check_step(const asp_transcoder_trainer *c, const asp_real *x, const asp_real *y, int64_t n,
                             const asp_transcoder_step_options *o, asp_error *err) {
    int64_t first;
    if (n < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "a step needs at least one row");
    for (int64_t l = 0; l < c->n_layers; l++) {
        const int64_t f = c->layers[l].n_features;
        if (o->activation == ASP_TRANSCODER_TOPK && (o->top_k < 1 || o->top_k > f))
            return asp_fail(err, ASP_BAD_ARGUMENT, "top_k must be in 1..%lld, got %lld", (long long)f,
                            (long long)o->top_k);
        if (o->aux_k < 0 || o->aux_k > f)
            return asp_fail(err, ASP_BAD_ARGUMENT, "aux_k must be in 0..%lld, got %lld", (long long)f,
                            (long long)o->aux_k);
    }
    if (asp_model_count_nonfinite(x, c->n_layers * n * c->n_in, &first) ||
        asp_model_count_nonfinite(y, c->n_layers * n * c->n_out, &first))
        return asp_fail(err, ASP_BAD_ARGUMENT, "x and y must be finite");
    return ASP_OK;
}

static void begin_step(asp_coder_job *job) {
    for (int64_t i = 0; i < job->coder->n_layers; i++) {
        asp_coder_layer *l = &job->coder->layers[i];
        l->n_dead = 0;
        for (int64_t f = 0; f < l->n_features; f++) {
            l->dead[f] = l->silent[f] >= job->options->dead_after;
            l->threshold[f] = exp((double)asp_coder_weight(l, ASP_CODER_LOG_THRESHOLD)[f]);
            l->n_dead += l->dead[f];
        }
        job->n_dead += l->n_dead;
    }
}

asp_status asp_transcoder_trainer_step(asp_transcoder_trainer *c, const asp_real *x, const asp_real *y, int64_t n,
                                       const asp_transcoder_step_options *options, const asp_context *context,
                                       asp_transcoder_step_result *results, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    asp_status status = check_step(c, x, y, n, options, err);
    if (status) return status;
    asp_coder_job job = {
        .coder = c, .options = options, .x = x, .y = y, .n = n, .scale = 2 / ((double)n * (double)c->n_out)};
    status = prepare_step(c, n, options, err);
    if (status) return status;
    begin_step(&job);
    status = asp_transcoder_gradients(&job, context, err);
    if (status) return status;
    for (int64_t l = 0; l < c->n_layers; l++) {
        const asp_transcoder_step_result r = results[l] = summarise(&job, l, context);
        if (!isfinite(r.grad_norm) || !isfinite(r.loss))
            return asp_fail(err, ASP_DIVERGED,
                            "step %lld: the loss is %g and the gradient norm %g; the step was not taken",
                            (long long)c->step, r.loss, r.grad_norm);
    }
    for (int64_t l = 0; l < c->n_layers; l++)
        update_weights(&c->layers[l], options, results[l].grad_norm, c->step, context);
    c->step++;
    return ASP_OK;
}
