/* gradients.c: gradients of one scalar with respect to weights and recorded activations. */
#include <string.h>

#include "model/model.h"

struct asp_gradients {
    double loss;
    int64_t *offsets;
    asp_arena arena;
    asp_real *parameters;
    asp_array arrays[ASP_N_RECORDS];
    int64_t layer_strides[ASP_N_RECORDS];
};

void asp_gradients_free(asp_gradients *g) {
    if (!g) return;
    asp_arena_free(&g->arena);
    asp_release(g->offsets);
    asp_release(g);
}

double asp_gradients_loss(const asp_gradients *g) { return g->loss; }
asp_array asp_gradients_array(const asp_gradients *g, asp_record record) { return g->arrays[record]; }
asp_real *asp_gradients_parameters(const asp_gradients *g) { return g->parameters; }

static asp_status allocate_gradients(asp_gradients *g, const asp_model *m, const asp_batch *batch,
                                     const asp_gradient_options *options, asp_error *err) {
    int64_t positions[ASP_N_RECORDS], parameters = -1;
    const int64_t rows = asp_shape_rows(m, batch->offsets[batch->n_sequences], 0);
    for (int r = 0; r < ASP_N_RECORDS; r++) {
        positions[r] = -1;
        if (!(options->records >> r & 1)) continue;
        const asp_record_shape s =
            asp_shape_of_record(&m->config, (asp_record)r, batch->offsets, batch->n_sequences, rows);
        positions[r] = asp_arena_reserve(&g->arena, s.items, sizeof(asp_real));
        g->arrays[r] = s.array;
        g->layer_strides[r] = s.layer_stride;
    }
    if (options->parameters) parameters = asp_arena_reserve(&g->arena, m->size, sizeof(asp_real));
    if (g->arena.overflow || g->arena.bytes > options->max_bytes)
        return asp_fail(err, ASP_NO_MEMORY, "these gradients need %s, above max_bytes=%lld; ask for fewer of them",
                        asp_fail_size((char[32]){0}, (double)g->arena.bytes), (long long)options->max_bytes);
    if (!asp_arena_commit(&g->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "these gradients need %s, which could not be allocated",
                        asp_fail_size((char[32]){0}, (double)g->arena.bytes));
    for (int r = 0; r < ASP_N_RECORDS; r++)
        if (positions[r] >= 0) g->arrays[r].data = g->arena.base + positions[r];
    if (parameters >= 0) g->parameters = (asp_real *)(void *)(g->arena.base + parameters);
    return ASP_OK;
}

/* Points the tape's gradients at the arrays that the caller keeps. */
static void redirect_tape(asp_tape *tape, const asp_gradients *g) {
    const struct {
        asp_record record;
        asp_slot *slot;
    } slots[] = {{ASP_RESID, &tape->grads.resid},     {ASP_RESID_MID, &tape->grads.mid},
                 {ASP_QKV, &tape->grads.qkv},         {ASP_Z, &tape->grads.z},
                 {ASP_MLP_PRE, &tape->grads.mlp_pre}, {ASP_MLP_POST, &tape->grads.mlp_post}};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        if (g->arrays[slots[i].record].data)
            *slots[i].slot = (asp_slot){g->arrays[slots[i].record].data, g->layer_strides[slots[i].record]};
    /* dmid is computed from dresid of the layer above; it may share a buffer only with that one. */
    if (!g->arrays[ASP_RESID_MID].data && g->arrays[ASP_RESID].data) tape->grads.mid = tape->grads.resid;
    tape->grads.pattern = g->arrays[ASP_PATTERN].data;
    tape->grads.scores = g->arrays[ASP_SCORES].data;
    tape->grads.parameters = g->parameters;
}

static asp_status compute_gradients(asp_gradients *g, const asp_model *m, const asp_batch *batch, asp_tape *tape,
                                    double *bias, const asp_gradient_options *options, const asp_context *context) {
    double weight = 0;
    for (int64_t l = 0; l < m->config.n_layer; l++) bias[l] = m->config.gate_bias;
    const asp_gate gate = {.gated = m->config.gated,
                           .bias = bias,
                           .straight_through = options->gate_gradient == ASP_GATE_GRADIENT_STRAIGHT_THROUGH};
    redirect_tape(tape, g);
    asp_status status = asp_forward_layers(m, &tape->acts, &gate, &tape->scratch, context);
    for (int64_t r = 0; !options->dlogits && r < tape->acts.n_tokens; r++) weight += (double)batch->weights[r];
    if (!status && options->dlogits) status = asp_loss_linear(m, tape, options->dlogits, &g->loss, context);
    else if (!status) {
        status = asp_loss_cross_entropy(m, tape, batch, 1 / weight, &g->loss, context);
        g->loss /= weight;
    }
    if (!status) status = asp_backward_layers(m, tape, &gate, NULL, context);
    return status;
}

asp_status asp_gradients_new(asp_gradients **out, const asp_model *model, const int32_t *tokens, const int64_t *offsets,
                             int64_t n_sequences, const asp_gradient_options *options, const asp_context *context,
                             asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    *out = NULL;
    asp_status status = asp_shape_check_batch(&model->config, tokens, offsets, n_sequences, err);
    if (status) return status;
    const asp_batch batch = {tokens, offsets, n_sequences, options->targets, options->weights};
    asp_gradients *g = asp_allocate(1, sizeof *g);
    double *bias = asp_allocate(model->config.n_layer, sizeof *bias);
    asp_tape tape = {0};
    if (!g || !bias) status = asp_fail(err, ASP_NO_MEMORY, "no memory for gradients");
    if (!status) status = allocate_gradients(g, model, &batch, options, err);
    if (!status)
        status = asp_tape_prepare(&tape, model, &batch, context->n_threads, options->max_bytes - g->arena.bytes, err);
    if (!status) status = asp_blas_enter(context, err);
    if (!status) {
        status = compute_gradients(g, model, &batch, &tape, bias, options, context);
        asp_blas_leave();
    }
    asp_tape_free(&tape);
    asp_release(bias);
    if (status) {
        asp_gradients_free(g);
        return status;
    }
    *out = g;
    return ASP_OK;
}
