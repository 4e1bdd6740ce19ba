/* backward.c: the layers backwards, from the gradient of the final LayerNorm's output to the embeddings.
 * Weight gradients are added to; every sum over rows has a fixed order. */
#include <string.h>

#include "model/hooks.h"

/* The data of a layer in a slot that every tape has. */
static asp_real *wanted(asp_slot s, int64_t layer) { return s.data + layer * s.stride; }

/* ---- LayerNorm -------------------------------------------------------------------------- */

/* dx (N,E) += gradient through the LayerNorm at this point, with input x; parameters' gradients added if wanted. */
static asp_status layernorm_backward(const asp_model *m, asp_tape *tape, asp_real *dx, const asp_real *x,
                                     const asp_real *scale, asp_point point, int64_t layer, int64_t weight,
                                     int64_t bias, const asp_context *context) {
    const int64_t e = m->config.d_model;
    const asp_hooks *hooks = tape->acts.hooks;
    if (hooks && hooks->dnorm) {
        const asp_status status = hooks->dnorm(hooks->state, &tape->acts, point, layer, tape->grads.ln, dx, context);
        if (status) return status;
    }
    asp_real *gradient = tape->grads.parameters;
    const asp_layernorm_backward_job job = {.dx = dx,
                                            .dout = tape->grads.ln,
                                            .x = x,
                                            .weight = m->data + weight,
                                            .scale = scale,
                                            .dweight = gradient ? gradient + weight : NULL,
                                            .dbias = gradient && bias >= 0 ? gradient + bias : NULL,
                                            .partial = tape->ln_partial,
                                            .n = tape->acts.n_tokens,
                                            .width = e};
    return asp_layernorm_backward(&job, context);
}

/* ---- linear layers ------------------------------------------------------------------------ */

/* y (N,n) = x (N,k) W (k,n) + b backwards: dW += x^T dy, db += sum dy, dx = dy W^T if dx is given. */
static asp_status linear_backward(const asp_model *m, asp_tape *tape, asp_real *dx, const asp_real *x,
                                  const asp_real *dy, int64_t weight, int64_t bias, int64_t n, int64_t k,
                                  const asp_real *pre, const asp_context *context) {
    const int64_t rows = tape->acts.n_tokens;
    const asp_gemm to_input = {.trans_b = 1,
                               .m = rows,
                               .n = k,
                               .k = n,
                               .a = dy,
                               .lda = n,
                               .b = m->data + weight,
                               .ldb = n,
                               .c = dx,
                               .ldc = k,
                               .out2 = (asp_real *)(uintptr_t)pre,
                               .epilogue = pre ? ASP_EPILOGUE_ACT_BACKWARD : ASP_EPILOGUE_NONE,
                               .activation = m->config.activation,
                               .n_rows = rows};
    asp_status status = asp_gemm_run(&to_input, context);
    asp_real *gradient = tape->grads.parameters;
    if (status || !gradient) return status;
    const asp_gemm to_weight = {.trans_a = 1,
                                .m = k,
                                .n = n,
                                .k = rows,
                                .a = x,
                                .lda = k,
                                .b = dy,
                                .ldb = n,
                                .c = gradient + weight,
                                .ldc = n,
                                .accumulate = 1,
                                .n_rows = k};
    status = asp_gemm_run(&to_weight, context);
    if (!status && bias >= 0) status = asp_gemm_column_sums(gradient + bias, dy, rows, n, context);
    return status;
}

/* *out: the gradient of an output that dropout thinned, from dy (R,E), the gradient of what was left of it. */
static asp_status output_gradient(const asp_model *m, asp_tape *tape, asp_drop what, int64_t l, const asp_real *dy,
                                  const asp_real **out, const asp_context *context) {
    const int drops = asp_dropout_rate(tape->acts.dropout, what, l) != 0;
    *out = drops ? tape->grads.out : dy;
    return drops ? asp_dropout_rows(m, &tape->acts, what, l, tape->grads.out, dy, NULL, context) : ASP_OK;
}

typedef struct {
    asp_real *d;
    const asp_real *x;
    int64_t n, width;
    asp_activation kind;
} activation_job;

static void activation_item(void *arg, int64_t row, int thread) {
    (void)thread;
    const activation_job *job = arg;
    asp_isa_kernels()->activate_backward(job->d + row * job->width, job->x + row * job->width, job->width, job->kind);
}

static asp_status mlp_backward(const asp_model *m, asp_tape *tape, int64_t l, const asp_context *context) {
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[l];
    asp_activation_gradients *g = &tape->grads;
    const asp_activations *a = &tape->acts;
    const int64_t e = c->d_model, n = a->n_tokens;
    asp_real *dy = wanted(g->resid, l + 1), *dmid = wanted(g->mid, l), *dpre = wanted(g->mlp_pre, l),
             *pre = asp_slot_at(a->mlp_pre, l);
    asp_real *dpost = asp_slot_at(g->mlp_post, l);
    const asp_real *dout;
    asp_status status = output_gradient(m, tape, ASP_DROP_MLP_OUT, l, dy, &dout, context);
    if (!status)
        status = linear_backward(m, tape, dpost ? dpost : dpre, asp_slot_at(a->mlp_post, l), dout, o->out_w, o->out_b,
                                 e, c->d_mlp, dpost ? NULL : pre, context);
    if (!status && dpost) {
        memcpy(dpre, dpost, (size_t)(n * c->d_mlp) * sizeof *dpre);
        activation_job job = {dpre, pre, n, c->d_mlp, c->activation};
        status = asp_parallel_for(context, n, activation_item, &job);
    }
    if (!status)
        status =
            linear_backward(m, tape, g->ln, asp_slot_at(a->ln2, l), dpre, o->fc_w, o->fc_b, c->d_mlp, e, NULL, context);
    if (dmid != dy) memcpy(dmid, dy, (size_t)(n * e) * sizeof *dy);
    if (!status)
        status = layernorm_backward(m, tape, dmid, asp_slot_at(a->mid, l), asp_slot_at(a->ln2_scale, l), ASP_POINT_MID,
                                    l, o->ln2_w, o->ln2_b, context);
    return status;
}

static asp_status attention_half_backward(const asp_model *m, asp_tape *tape, int64_t l, const asp_gate *gate,
                                          const asp_context *context) {
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[l];
    asp_activation_gradients *g = &tape->grads;
    const asp_activations *a = &tape->acts;
    const int64_t e = c->d_model, width = c->n_head * c->d_head;
    asp_real *dmid = wanted(g->mid, l), *dx = wanted(g->resid, l);
    const asp_real *dout;
    asp_status status = output_gradient(m, tape, ASP_DROP_ATTN_OUT, l, dmid, &dout, context);
    if (!status)
        status = linear_backward(m, tape, asp_slot_at(g->z, l), asp_slot_at(a->z, l), dout, o->proj_w, o->proj_b, e,
                                 width, NULL, context);
    if (!status && a->hooks && a->hooks->dz)
        status = a->hooks->dz(a->hooks->state, a, l, asp_slot_at(g->z, l), context);
    if (!status) status = asp_attention_backward(m, a, g, l, gate, &tape->scratch, context);
    if (!status)
        status = linear_backward(m, tape, g->ln, asp_slot_at(a->ln1, l), asp_slot_at(g->qkv, l), o->qkv_w, o->qkv_b,
                                 3 * width, e, NULL, context);
    if (dx != dmid) memcpy(dx, dmid, (size_t)(a->n_tokens * e) * sizeof *dx);
    if (!status)
        status = layernorm_backward(m, tape, dx, asp_slot_at(a->resid, l), asp_slot_at(a->ln1_scale, l), ASP_POINT_PRE,
                                    l, o->ln1_w, o->ln1_b, context);
    return status;
}

/* ---- embeddings --------------------------------------------------------------------------- */

typedef struct {
    const asp_model *model;
    const asp_tape *tape;
} embedding_job;

enum { COLUMNS_PER_ITEM = 4 * ASP_LANES };

/* One block of columns, all tokens in order. */
static void embedding_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const embedding_job *job = arg;
    const asp_activations *a = &job->tape->acts;
    const int64_t e = job->model->config.d_model, at = item * COLUMNS_PER_ITEM, n = asp_min(COLUMNS_PER_ITEM, e - at);
    asp_real *gradient = job->tape->grads.parameters;
    const asp_real *d = job->tape->grads.resid.data;
    for (int64_t s = 0; s < a->n_sequences; s++)
        for (int64_t r = a->offsets[s]; r < a->offsets[s + 1]; r++) {
            asp_isa_kernels()->add(gradient + job->model->wte + a->tokens[r] * e + at, d + r * e + at, n);
            asp_isa_kernels()->add(gradient + job->model->wpe + (r - a->offsets[s]) * e + at, d + r * e + at, n);
        }
}

/* Adds the sums of n heads of sequences to those of their layer. */
static void add_layer_sums(const asp_tape *tape, int64_t n, asp_edge_sum *sums) {
    for (int64_t i = 0; i < n * ASP_N_ENTRY_KINDS; i++) {
        sums[i % ASP_N_ENTRY_KINDS].expected += tape->grads.edge_sums[i].expected;
        sums[i % ASP_N_ENTRY_KINDS].open += tape->grads.edge_sums[i].open;
    }
}

asp_status asp_backward_layers(const asp_model *m, asp_tape *tape, const asp_gate *gate, asp_edge_sum *sums,
                               const asp_context *context) {
    const asp_config *c = &m->config;
    const int64_t last = c->n_layer, e = c->d_model;
    asp_real *dx = wanted(tape->grads.resid, last);
    if (!sums || !c->gated) tape->grads.edge_sums = NULL;
    memset(dx, 0, (size_t)(tape->acts.n_tokens * e) * sizeof *dx);
    asp_status status = layernorm_backward(m, tape, dx, asp_slot_at(tape->acts.resid, last), tape->acts.ln_final_scale,
                                           ASP_POINT_PRE, last, m->lnf_w, m->lnf_b, context);
    for (int64_t l = last - 1; !status && l >= 0; l--) {
        status = mlp_backward(m, tape, l, context);
        if (!status) status = attention_half_backward(m, tape, l, gate, context);
        if (!status && tape->grads.edge_sums)
            add_layer_sums(tape, tape->acts.n_sequences * c->n_head, sums + l * ASP_N_ENTRY_KINDS);
    }
    if (status || !tape->grads.parameters) return status;
    embedding_job job = {m, tape};
    return asp_parallel_for(context, (e + COLUMNS_PER_ITEM - 1) / COLUMNS_PER_ITEM, embedding_item, &job);
}
