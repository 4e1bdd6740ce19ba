/* component_masks.c: masks of component edges, trained: subnetwork probing and edge pruning.
 *
 * A step draws masks, runs its prompts forward and backward with them, block by block, and updates the log alphas with
 * Adam.  Random numbers are functions of the seed, the step and the place of a mask, so a training that is taken up
 * again has the same bits.  Until Adam starts, a step can fail or be stopped and leaves the state as it was. */
#include <math.h>
#include <string.h>

#include "component/component.h"

enum { CHUNK = 16384, NUMBERS = 256 };
static const char *const STAGE = "masks";

typedef struct {
    asp_component_setting *setting;
    const asp_component_masks_options *o;
    asp_component_masks_state *state;
    asp_task batch; /* the task up to the last prompt of a step */
    asp_soft soft;  /* of the block */
    int64_t n_senders, n_receivers, n_edges, n;
    asp_adamw_weights weights;
    /* One arena. */
    asp_arena arena;
    double *z, *slope;     /* (n) masks and their derivatives */
    double *mask;          /* (S,R) with those of senders */
    double *gradient;      /* (S,R) of the loss of the metric */
    double *counted;       /* (S,2) sums of what the density counts: edges, sender */
    double *values;        /* (P) */
    asp_real *dparameters; /* (n) */
    double *squares;
    asp_adamw_chunk *chunks;
} masks_training;

/* Numbers of a step. */
typedef struct {
    double rate, target[2]; /* of density: edges, senders */
    double density[2];
    double objective, extra; /* the loss of the metric; what is added to it */
} masks_step;

/* ---- options, memory ---------------------------------------------------------------------------------- */

static asp_status refuse_masks(asp_error *err, const char *text) {
    return asp_fail(err, ASP_BAD_ARGUMENT, "%s: %s", STAGE, text);
}

static int within(double x, double least, double most) { return x >= least && x <= most; }

static asp_status check_masks(const asp_component_masks_options *o, const asp_component_masks_state *state, int64_t end,
                              asp_error *err) {
    if (o->steps < 1 || o->batch < 1) return refuse_masks(err, "steps and batch must be at least 1");
    if (state->step < 0 || end < state->step || end > o->steps)
        return refuse_masks(err, "the steps to take must be among those of the training");
    if (!within(o->lr, 0, 1e6) || !within(o->multiplier_lr, 0, 1e6) || !within(o->penalty, 0, 1e15))
        return refuse_masks(err, "learning rates and penalty must be finite and at least 0");
    if (!within(o->beta1, 0, 0.9999999) || !within(o->beta2, 0, 0.9999999) || !within(o->eps, 1e-30, 1e15))
        return refuse_masks(err, "beta1 and beta2 must be in 0..0.9999999, eps in 1e-30..1e15");
    if (!within(o->weight_decay, 0, 1)) return refuse_masks(err, "weight_decay must be in 0..1");
    if (!within(o->sparsity, 0, 2) || !within(o->node_sparsity, 0, 2))
        return refuse_masks(err, "sparsities must be in 0..2");
    if (o->nodes && !o->pruning) return refuse_masks(err, "masks of senders are of pruning alone");
    if (o->lr_steps < 0 || o->lr_steps >= o->steps || o->sparsity_steps < 0 || o->sparsity_steps > o->steps)
        return refuse_masks(err, "warm-ups must not be longer than the training");
    return ASP_OK;
}

enum { PARTS = 9 };

static int64_t lay_out_masks(masks_training *t, asp_arena_part parts[PARTS], int64_t n_prompts) {
    const int64_t places = t->n_senders * t->n_receivers, n_chunks = (t->n + CHUNK - 1) / CHUNK;
    const asp_arena_part list[PARTS] = {
        ASP_PART(t->z, t->n, 1),           ASP_PART(t->slope, t->n, 1),           ASP_PART(t->mask, places, 1),
        ASP_PART(t->gradient, places, 1),  ASP_PART(t->counted, t->n_senders, 2), ASP_PART(t->values, n_prompts, 1),
        ASP_PART(t->dparameters, t->n, 1), ASP_PART(t->squares, n_chunks, 1),     ASP_PART(t->chunks, n_chunks, 1)};
    memcpy(parts, list, sizeof list);
    return asp_arena_lay_out(&t->arena, parts, PARTS);
}

static asp_status open_masks(masks_training *t, asp_error *err) {
    asp_arena_part parts[PARTS];
    const int64_t bytes = lay_out_masks(t, parts, t->batch.clean.n_prompts);
    if (!asp_arena_commit(&t->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "%s: no memory for %lld masks, which take %s", STAGE, (long long)t->n,
                        asp_fail_size((char[32]){0}, (double)bytes));
    asp_arena_wire(&t->arena, parts, PARTS);
    t->weights = (asp_adamw_weights){.data = t->state->parameters,
                                     .m = t->state->parameters + t->n,
                                     .v = t->state->parameters + 2 * t->n,
                                     .gradients = t->dparameters,
                                     .chunks = t->chunks,
                                     .squares = t->squares};
    for (int64_t at = 0; at < t->n; at += CHUNK)
        t->chunks[t->weights.n_chunks++] = (asp_adamw_chunk){at, asp_min(CHUNK, t->n - at), 1};
    return ASP_OK;
}

static int64_t masks_bytes(const void *own, const asp_component_setting *s, int64_t n, int n_threads) {
    (void)own;
    return asp_soft_needed(s, n, n_threads);
}

/* ---- drawing ------------------------------------------------------------------------------------------ */

static int64_t receivers_behind(const masks_training *t, int64_t sender, int64_t receiver) {
    return sender < asp_nodes_n_before(&t->setting->model->config, receiver);
}

/* What the density counts of a mask, and its derivative: in probing the probability that it is not 0, in pruning z. */
static asp_concrete counted_mask(const masks_training *t, int64_t place) {
    if (t->o->pruning) return (asp_concrete){t->z[place], t->slope[place]};
    return asp_concrete_expected((double)t->state->parameters[place]);
}

/* z and slope of places first .. first + count - 1; returns the sum of what the density counts. */
static double draw_places(const masks_training *t, int64_t sender, int64_t first, int64_t count) {
    uint64_t random[NUMBERS];
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t place = first + i;
        if (i % NUMBERS == 0)
            asp_random_raw(random, place, asp_min(NUMBERS, count - i), t->o->seed, ASP_RANDOM_MASKS,
                           (uint64_t)t->state->step, 0);
        const int exists = count == 1 || receivers_behind(t, sender, i);
        asp_concrete drawn = {0, 0};
        if (exists) drawn = asp_concrete_sample((double)t->state->parameters[place], random[i % NUMBERS]);
        t->z[place] = drawn.z;
        t->slope[place] = drawn.slope;
        if (exists) sum += counted_mask(t, place).z;
    }
    return sum;
}

static void draw_item(void *arg, int64_t sender, int thread) {
    (void)thread;
    const masks_training *t = arg;
    const int64_t r = t->n_receivers, node = t->n_senders * r + sender;
    t->counted[2 * sender] = draw_places(t, sender, sender * r, r);
    if (t->o->nodes) t->counted[2 * sender + 1] = draw_places(t, sender, node, 1);
    for (int64_t i = sender * r; i < (sender + 1) * r; i++) t->mask[i] = t->o->nodes ? t->z[i] * t->z[node] : t->z[i];
}

static void plan_step(const masks_training *t, masks_step *step) {
    const asp_component_masks_options *o = t->o;
    const double at = (double)t->state->step, whole = (double)o->steps, rise = (double)o->lr_steps;
    const double reached = fmin(1, at / fmax(1, (double)o->sparsity_steps));
    const double share = o->sparsity_steps ? reached : 1;
    double factor = fmin(1, (at + 1) / fmax(1, rise));
    if (o->lr_falls && at >= rise) factor = (whole - at) / (whole - rise);
    step->rate = factor;
    step->target[0] = 1 - share * o->sparsity;
    step->target[1] = 1 - share * o->node_sparsity;
    step->density[0] = step->density[1] = 0;
    for (int64_t i = 0; i < t->n_senders; i++)
        for (int k = 0; k < 2; k++) step->density[k] += t->counted[2 * i + k];
    step->density[0] /= (double)t->n_edges;
    step->density[1] /= (double)t->n_senders;
}

/* ---- prompts ------------------------------------------------------------------------------------------ */

/* The block that is open: values, and the gradient of the loss, which is a mean over n prompts. */
static asp_status run_masks_block(masks_training *t, int64_t n, const asp_context *context, asp_error *err) {
    const asp_component_setting *s = t->setting;
    const double sign = s->options.smaller_is_better ? 1 : -1;
    asp_status status = asp_blas_enter(context, err);
    if (status) return status;
    status = asp_soft_run(&t->soft, t->mask, t->values + s->first, t->gradient, sign / (double)n, context);
    asp_blas_leave();
    return status;
}

/* Prompts [first, end), block by block.  The last block stays open: if it is the only one, the next step has it. */
static asp_status run_masks_batch(masks_training *t, int64_t first, int64_t end, double *objective,
                                  const asp_context *context, asp_error *err) {
    asp_component_setting *s = t->setting;
    const double sign = s->options.smaller_is_better ? 1 : -1;
    asp_status status = ASP_OK;
    memset(t->gradient, 0, (size_t)(t->n_senders * t->n_receivers) * sizeof *t->gradient);
    if (s->n && s->first == first && first + s->n == end) status = run_masks_block(t, end - first, context, err);
    else {
        t->batch.clean.n_prompts = end;
        s->first = first;
        s->n = 0;
        do {
            asp_arena_free(&t->soft.arena);
            status = asp_component_setting_next(s, context, err);
            if (!status) status = asp_soft_open(&t->soft, context->n_threads, err);
            if (!status) status = run_masks_block(t, end - first, context, err);
        } while (!status && s->first + s->n < end);
    }
    *objective = 0;
    for (int64_t i = first; !status && i < end; i++) *objective += sign * t->values[i] / (double)(end - first);
    return status;
}

/* ---- the update --------------------------------------------------------------------------------------- */

typedef struct {
    const masks_training *training;
    double price[2]; /* of the loss per unit of what the density counts: edges, senders */
} update_job;

static void mask_gradient_item(void *arg, int64_t sender, int thread) {
    (void)thread;
    const update_job *job = arg;
    const masks_training *t = job->training;
    const int64_t r = t->n_receivers, node = t->n_senders * r + sender;
    double whole = 0;
    for (int64_t i = 0; i < r; i++) {
        const int64_t place = sender * r + i;
        if (!receivers_behind(t, sender, i)) continue;
        const double through = t->o->nodes ? t->gradient[place] * t->z[node] : t->gradient[place];
        const double price = job->price[0] * counted_mask(t, place).slope;
        t->dparameters[place] = (asp_real)(through * t->slope[place] + price);
        whole += t->gradient[place] * t->z[place];
    }
    if (!t->o->nodes) return;
    const double price = job->price[1] * counted_mask(t, node).slope;
    t->dparameters[node] = (asp_real)(whole * t->slope[node] + price);
}

/* What the numbers of masks add to the loss, and its slopes; of pruning, the gradients by which multipliers ascend. */
static void add_price(const masks_training *t, masks_step *step, double price[2], asp_real ascent[4]) {
    const asp_component_masks_options *o = t->o;
    const double counts[2] = {(double)t->n_edges, (double)t->n_senders};
    if (!o->pruning) {
        step->extra = o->penalty * step->density[0];
        price[0] = o->penalty / counts[0];
        return;
    }
    for (int k = 0; k < 1 + (o->nodes != 0); k++) {
        const asp_real *multipliers = t->state->multipliers + (ptrdiff_t)2 * k;
        asp_real *up = ascent + (ptrdiff_t)2 * k;
        const double l1 = (double)multipliers[0], l2 = (double)multipliers[1];
        const double excess = step->target[k] - step->density[k]; /* of the sparsity */
        step->extra += l1 * excess + l2 * excess * excess;
        price[k] = -(l1 + 2 * l2 * excess) / counts[k];
        up[0] = (asp_real)-excess;
        up[1] = (asp_real)(-excess * excess);
    }
}

static void ascend(const masks_training *t, const masks_step *step, const asp_adamw_options *adam, asp_real ascent[4],
                   const asp_context *context) {
    asp_adamw_chunk chunk = {0, 4, 1};
    asp_real *data = t->state->multipliers;
    const asp_adamw_weights weights = {
        .data = data, .m = data + 4, .v = data + 8, .gradients = ascent, .n_chunks = 1, .chunks = &chunk};
    asp_adamw_options own = *adam;
    own.lr = t->o->multiplier_lr * step->rate;
    asp_adamw_update(&weights, &own, context);
}

static asp_status update_masks(masks_training *t, masks_step *step, const asp_context *context, asp_error *err) {
    const asp_component_masks_options *o = t->o;
    asp_real ascent[4] = {0};
    update_job job = {.training = t};
    add_price(t, step, job.price, ascent);
    const asp_status status = asp_parallel_for(context, t->n_senders, mask_gradient_item, &job);
    if (status) return status;
    const double norm = asp_adamw_norm(&t->weights, context), loss = step->objective + step->extra;
    if (!isfinite(norm) || !isfinite(loss))
        return asp_fail(err, ASP_DIVERGED, "step %lld: the loss is %g and the gradient norm %g; the step was not taken",
                        (long long)t->state->step, loss, norm);
    const asp_adamw_options adam = {o->lr * step->rate, o->beta1, o->beta2, o->eps,
                                    o->weight_decay,    0,        norm,     (double)(t->state->step + 1)};
    asp_adamw_update(&t->weights, &adam, context);
    if (o->pruning) ascend(t, step, &adam, ascent, context);
    return ASP_OK;
}

/* ---- steps -------------------------------------------------------------------------------------------- */

static asp_status take_masks_step(masks_training *t, double *row, int64_t n_prompts, const asp_context *context,
                                  asp_error *err) {
    const asp_component_masks_options *o = t->o;
    const int64_t batch = asp_min(o->batch, n_prompts), n_batches = (n_prompts + batch - 1) / batch;
    const int64_t first = t->state->step % n_batches * batch, end = asp_min(n_prompts, first + batch);
    masks_step step = {.extra = 0};
    asp_status status = asp_parallel_for(context, t->n_senders, draw_item, t);
    if (status) return status;
    plan_step(t, &step);
    status = run_masks_batch(t, first, end, &step.objective, context, err);
    const double l1 = (double)t->state->multipliers[0], l2 = (double)t->state->multipliers[1];
    if (!status) status = update_masks(t, &step, context, err);
    if (status) return status;
    const double written[ASP_COMPONENT_MASKS_HISTORY] = {step.objective,
                                                         step.objective + step.extra,
                                                         step.density[0],
                                                         o->pruning ? step.target[0] : NAN,
                                                         o->nodes ? step.density[1] : NAN,
                                                         o->nodes ? step.target[1] : NAN,
                                                         o->pruning ? l1 : NAN,
                                                         o->pruning ? l2 : NAN};
    memcpy(row, written, sizeof written);
    t->state->step++;
    return ASP_OK;
}

static void write_expected(const masks_training *t, double *expected) {
    const int64_t places = t->n_senders * t->n_receivers;
    for (int64_t i = 0; i < t->n; i++) {
        const int exists = i < places ? (int)receivers_behind(t, i / t->n_receivers, i % t->n_receivers) : t->o->nodes;
        expected[i] = exists ? asp_concrete_expected((double)t->state->parameters[i]).z : 0;
    }
}

asp_status asp_component_masks(asp_component_masks_state *state, double *history, double *expected, int64_t end,
                               const asp_model *model, const asp_task *task, const asp_component_masks_options *options,
                               const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    const asp_config *c = &model->config;
    masks_training t = {.o = options,
                        .state = state,
                        .batch = *task,
                        .n_senders = asp_nodes_n_senders(c),
                        .n_receivers = asp_nodes_n_receivers(c),
                        .n_edges = asp_nodes_n_edges(c)};
    asp_component_setting s = {.model = model,
                               .task = &t.batch,
                               .stage = STAGE,
                               .options = options->measure,
                               .n_sent = 2 * t.n_senders + 6 * c->n_head,
                               .own_bytes = masks_bytes};
    const int64_t n_prompts = task->clean.n_prompts, begin = state->step;
    asp_arena_part parts[PARTS];
    t.setting = &s;
    t.soft.setting = &s;
    t.n = t.n_senders * t.n_receivers + t.n_senders;
    asp_status status = asp_soft_check(&s, err);
    if (!status) status = check_masks(options, state, end, err);
    if (status) return status;
    s.stays = lay_out_masks(&t, parts, n_prompts);
    t.arena = (asp_arena){0};
    status = asp_component_setting_open(&s, &own, err);
    if (!status) status = open_masks(&t, err);
    if (!status) status = asp_context_progress(&own, STAGE, begin, options->steps);
    while (!status && state->step < end) {
        double *row = history + (state->step - begin) * ASP_COMPONENT_MASKS_HISTORY;
        status = take_masks_step(&t, row, n_prompts, &own, err);
        if (!status) status = asp_context_progress(&own, STAGE, state->step, options->steps);
    }
    if (!status) write_expected(&t, expected);
    asp_component_setting_close(&s);
    asp_arena_free(&t.soft.arena);
    asp_arena_free(&t.arena);
    return status;
}
