/* trainer.c: one optimiser step: forward and backward over the micro-batches, clipping, AdamW and the
 * multiplier of the constraint.  Until the optimiser starts, a step can fail or be stopped and leaves
 * weights, moments and multiplier as they were. */
#include <math.h>
#include <string.h>

#include "train/train.h"

enum { CHUNK = 32768 };

struct asp_trainer {
    asp_model *model;
    asp_trainer_state state;
    asp_adamw_weights weights; /* gradients and moments (size of the model's arena) */
    double *gate_bias;         /* (L) */
    double *prices;            /* (L,ASP_N_ENTRY_KINDS): gradient of the loss per unit of sigmoid(g) */
    asp_edge_sum *edges;       /* (L,ASP_N_ENTRY_KINDS): sums of the step */
    asp_tape tape;
};

void asp_trainer_free(asp_trainer *t) {
    if (!t) return;
    asp_tape_free(&t->tape);
    asp_release(t->weights.gradients);
    asp_release(t->weights.m);
    asp_release(t->weights.v);
    asp_release(t->weights.chunks);
    asp_release(t->weights.squares);
    asp_release(t->gate_bias);
    asp_release(t->prices);
    asp_release(t->edges);
    asp_release(t);
}

/* Weight decay is for matrices only. */
static void list_parameter_chunks(asp_trainer *t) {
    t->weights.n_chunks = 0;
    for (int64_t i = 0; i < t->model->n_parameters; i++) {
        const asp_parameter *p = &t->model->parameters[i];
        for (int64_t at = 0; at < p->size; at += CHUNK) {
            if (t->weights.chunks)
                t->weights.chunks[t->weights.n_chunks] =
                    (asp_adamw_chunk){p->offset + at, asp_min(CHUNK, p->size - at), p->n_dims == 2};
            t->weights.n_chunks++;
        }
    }
}

asp_status asp_trainer_new(asp_trainer **trainer, asp_model *model, asp_error *err) {
    *trainer = NULL;
    asp_trainer *t = asp_allocate(1, sizeof *t);
    if (!t) return asp_fail(err, ASP_NO_MEMORY, "no memory for a trainer");
    t->model = model;
    t->weights.data = model->data;
    t->state = (asp_trainer_state){0, 1.0, NAN};
    list_parameter_chunks(t);
    t->weights.chunks = asp_allocate(t->weights.n_chunks, sizeof *t->weights.chunks);
    t->weights.squares = asp_allocate(t->weights.n_chunks, sizeof *t->weights.squares);
    t->gate_bias = asp_allocate(model->config.n_layer, sizeof *t->gate_bias);
    t->prices = asp_allocate(model->config.n_layer * ASP_N_ENTRY_KINDS, sizeof *t->prices);
    t->edges = asp_allocate(model->config.n_layer * ASP_N_ENTRY_KINDS, sizeof *t->edges);
    t->weights.gradients = asp_allocate(model->size, sizeof(asp_real));
    t->weights.m = asp_allocate(model->size, sizeof(asp_real));
    t->weights.v = asp_allocate(model->size, sizeof(asp_real));
    if (!t->weights.chunks || !t->weights.squares || !t->gate_bias || !t->prices || !t->edges ||
        !t->weights.gradients || !t->weights.m || !t->weights.v) {
        asp_trainer_free(t);
        return asp_fail(err, ASP_NO_MEMORY, "training needs %s for gradients and moments, which could not be allocated",
                        asp_fail_size((char[32]){0}, 3.0 * (double)model->size * (double)sizeof(asp_real)));
    }
    list_parameter_chunks(t);
    *trainer = t;
    return ASP_OK;
}

asp_trainer_state *asp_trainer_get_state(asp_trainer *t) { return &t->state; }
asp_real *asp_trainer_first_moment(asp_trainer *t) { return t->weights.m; }
asp_real *asp_trainer_second_moment(asp_trainer *t) { return t->weights.v; }

/* Sums over all micro-batches of a step. */
typedef struct {
    double weight, pairs, lambda, cross_entropy, hard;
    int64_t n_tokens, n_sequences;
} step_sums;

static asp_status measure_step(const asp_trainer *t, const asp_batch *micro, int64_t n_micro, step_sums *sums,
                               asp_error *err) {
    const asp_config *c = &t->model->config;
    double pairs = 0;
    for (int64_t i = 0; i < n_micro; i++) {
        const asp_batch *b = &micro[i];
        const asp_status status = asp_shape_check_batch(c, b->tokens, b->offsets, b->n_sequences, err);
        if (status) return status;
        const int64_t n = b->offsets[b->n_sequences];
        for (int64_t r = 0; r < n; r++) {
            if (b->weights[r] == 0) continue;
            if (b->targets[r] < 0 || b->targets[r] >= c->n_vocab)
                return asp_fail(err, ASP_BAD_INDEX, "target %lld at row %lld is out of range 0..%lld",
                                (long long)b->targets[r], (long long)r, (long long)c->n_vocab - 1);
            sums->weight += (double)b->weights[r];
        }
        for (int64_t s = 0; s < b->n_sequences; s++) {
            const double length = (double)(b->offsets[s + 1] - b->offsets[s]);
            pairs += length * (length + 1) / 2;
        }
        sums->n_tokens += n;
    }
    sums->pairs = pairs * (double)(c->n_layer * c->n_head);
    if (!(sums->weight > 0))
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "the loss weights of a step must sum to more than 0 (a target of -100 counts as 0), got %g",
                        sums->weight);
    return ASP_OK;
}

static void clear_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const asp_trainer *t = arg;
    const asp_adamw_chunk *c = &t->weights.chunks[item];
    memset(t->weights.gradients + c->offset, 0, (size_t)c->size * sizeof(asp_real));
}

static asp_dropout dropout_of(const asp_trainer *t, const asp_step_options *options, uint64_t first_sequence) {
    asp_dropout dropout = {.seed = options->seed, .step = (uint64_t)t->state.step, .first_sequence = first_sequence};
    for (int i = 0; i < ASP_N_DROPS; i++) dropout.rates[i] = options->dropout[i];
    return dropout;
}

static asp_status accumulate_micro_batch(asp_trainer *t, const asp_batch *batch, const asp_step_options *options,
                                         step_sums *sums, const asp_context *context, asp_error *err) {
    const asp_config *c = &t->model->config;
    const asp_gate gate = {.gated = c->gated,
                           .noisy = c->gated,
                           .bias = t->gate_bias,
                           .seed = options->seed,
                           .step = (uint64_t)t->state.step,
                           .first_sequence = (uint64_t)sums->n_sequences,
                           .edge_coefficient = t->prices};
    const asp_dropout dropout = dropout_of(t, options, gate.first_sequence);
    t->tape.drops_outputs = dropout.rates[ASP_DROP_ATTN_OUT] || dropout.rates[ASP_DROP_MLP_OUT];
    asp_status status = asp_tape_prepare(&t->tape, t->model, batch, context->n_threads, INT64_MAX, err);
    if (status) return status;
    t->tape.grads.parameters = t->weights.gradients;
    t->tape.acts.dropout = &dropout;
    double ce = 0;
    status = asp_forward_layers(t->model, &t->tape.acts, &gate, &t->tape.scratch, context);
    if (!status) status = asp_loss_cross_entropy(t->model, &t->tape, batch, sums->lambda / sums->weight, &ce, context);
    if (!status) status = asp_backward_layers(t->model, &t->tape, &gate, t->edges, context);
    t->tape.acts.dropout = NULL;
    sums->cross_entropy += ce;
    sums->n_sequences += batch->n_sequences;
    return status;
}

/* Adds the weighted cross-entropy of a micro-batch with hard gates and nothing dropped.  A coefficient of 0 adds
 * nothing to the gradients. */
static asp_status add_hard_cross_entropy(asp_trainer *t, const asp_batch *batch, step_sums *sums,
                                         const asp_context *context, asp_error *err) {
    const asp_gate gate = {.gated = t->model->config.gated, .bias = t->gate_bias};
    double ce = 0;
    asp_status status = asp_tape_prepare(&t->tape, t->model, batch, context->n_threads, INT64_MAX, err);
    if (status) return status;
    t->tape.grads.parameters = t->weights.gradients;
    status = asp_forward_layers(t->model, &t->tape.acts, &gate, &t->tape.scratch, context);
    if (!status) status = asp_loss_cross_entropy(t->model, &t->tape, batch, 0, &ce, context);
    sums->hard += ce;
    return status;
}

static double constrained_value(const asp_step_options *o, const step_sums *sums, const asp_step_result *result) {
    switch (o->constraint) {
    case ASP_CONSTRAINT_HARD: return sums->hard / sums->weight;
    case ASP_CONSTRAINT_MEASURED: return o->measured;
    case ASP_CONSTRAINT_EDGES: return result->edges_per_token;
    default: return result->cross_entropy;
    }
}

/* How far the moving average is above its target: too many edges ask for a smaller multiplier, a cross-entropy that is
 * too large for a larger one. */
static double constraint_excess(const asp_step_options *o, double ema) {
    if (o->constraint == ASP_CONSTRAINT_EDGES) return 1 - ema / o->edges_per_token;
    return o->geco_relative ? ema / o->tau - 1 : ema;
}

/* lambda *= exp(rate * clip(excess)), the constraint averaged over steps (GECO, Rezende & Viola 2018). */
static void adapt_multiplier(asp_trainer_state *state, const asp_step_options *o, double constrained) {
    const int absolute = o->constraint != ASP_CONSTRAINT_EDGES && !o->geco_relative;
    const double value = absolute ? constrained - o->tau : constrained;
    if (!isnan(value)) {
        state->ema = isnan(state->ema) ? value : o->geco_ema * state->ema + (1 - o->geco_ema) * value;
        const double excess = fmax(-o->geco_clip, fmin(o->geco_clip, constraint_excess(o, state->ema)));
        if (o->geco_rate > 0) state->multiplier *= exp(o->geco_rate * excess);
    }
    state->multiplier = fmax(o->lambda_min, fmin(o->lambda_max, state->multiplier));
}

static double edge_price(const asp_step_options *o, int64_t layer, int kind) {
    const double *price = o->edge_weight[kind] ? o->edge_weight[kind] : o->edge_weight[ASP_ENTRY_OTHER];
    return price ? price[layer] : 1;
}

static void prepare_layers(asp_trainer *t, const asp_step_options *o, const step_sums *sums) {
    const asp_config *c = &t->model->config;
    for (int64_t l = 0; l < c->n_layer; l++) {
        t->gate_bias[l] = o->gate_bias ? o->gate_bias[l] : c->gate_bias;
        for (int kind = 0; kind < ASP_N_ENTRY_KINDS; kind++) {
            const int64_t at = l * ASP_N_ENTRY_KINDS + kind;
            t->prices[at] = edge_price(o, l, kind) / (sums->pairs * (1 + t->state.multiplier));
            t->edges[at] = (asp_edge_sum){0};
        }
    }
}

static void report(const asp_trainer *t, const asp_step_options *o, const step_sums *sums, double norm,
                   asp_step_result *result) {
    const asp_config *c = &t->model->config;
    double expected = 0, weighted = 0, open = 0, open_self = 0;
    for (int64_t l = 0; l < c->n_layer; l++)
        for (int kind = 0; kind < ASP_N_ENTRY_KINDS; kind++) {
            const asp_edge_sum *edges = &t->edges[l * ASP_N_ENTRY_KINDS + kind];
            expected += edges->expected;
            weighted += edges->expected * edge_price(o, l, kind);
            open += edges->open;
            if (kind == ASP_ENTRY_SELF) open_self += edges->open;
        }
    const double lambda = t->state.multiplier, ce = sums->cross_entropy / sums->weight;
    *result = (asp_step_result){.cross_entropy = ce,
                                .expected_edges = expected / sums->pairs,
                                .open_edges = open / sums->pairs,
                                .open_self = open_self / sums->pairs,
                                .edges_per_token = open / (double)sums->n_tokens,
                                .self_per_token = open_self / (double)sums->n_tokens,
                                .multiplier = lambda,
                                .grad_norm = norm,
                                .n_tokens = sums->n_tokens};
    result->constrained = c->gated ? constrained_value(o, sums, result) : NAN;
    result->loss = c->gated ? (weighted / sums->pairs + lambda * (ce - o->tau)) / (1 + lambda) : ce;
}

asp_status asp_trainer_step(asp_trainer *t, const asp_batch *micro, int64_t n_micro, const asp_step_options *options,
                            const asp_context *context, asp_step_result *result, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    step_sums sums = {0};
    asp_status status = measure_step(t, micro, n_micro, &sums, err);
    if (status) return status;
    const double lambda = t->state.multiplier;
    sums.lambda = t->model->config.gated ? lambda / (1 + lambda) : 1;
    prepare_layers(t, options, &sums);
    status = asp_blas_enter(context, err);
    if (status) return status;
    status = asp_parallel_for(context, t->weights.n_chunks, clear_item, t);
    for (int64_t i = 0; !status && options->constraint == ASP_CONSTRAINT_HARD && i < n_micro; i++)
        status = add_hard_cross_entropy(t, &micro[i], &sums, context, err);
    for (int64_t i = 0; !status && i < n_micro; i++)
        status = accumulate_micro_batch(t, &micro[i], options, &sums, context, err);
    asp_blas_leave();
    if (status) return status;
    const double norm = asp_adamw_norm(&t->weights, context);
    report(t, options, &sums, norm, result);
    if (!isfinite(norm) || !isfinite(result->loss))
        return asp_fail(err, ASP_DIVERGED, "step %lld: the loss is %g and the gradient norm %g; the step was not taken",
                        (long long)t->state.step, result->loss, norm);
    const asp_adamw_options update = {
        options->lr,           options->beta1, options->beta2, options->eps,
        options->weight_decay, options->clip,  norm,           (double)(t->state.step + 1)};
    asp_adamw_update(&t->weights, &update, context);
    if (t->model->config.gated) adapt_multiplier(&t->state, options, result->constrained);
    result->ema = t->state.ema;
    t->state.step++;
    return ASP_OK;
}
