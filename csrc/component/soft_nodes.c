/* soft_nodes.c: heads and MLPs of a pass in which component edges carry shares, forward and backward.
 *
 * What a layer computes stays: q, k, v, z and log-sum-exps of its heads, the hidden units of its MLP.  The inputs of its
 * receivers do not: the backward pass mixes them again. */
#include "component/component.h"

static asp_soft_group group_of_heads(const asp_soft *p, int64_t layer) {
    const asp_component_setting *s = p->setting;
    const asp_config *c = &s->model->config;
    const int64_t first = asp_nodes_qkv(c, layer);
    const asp_layer_offsets *o = &s->model->layers[layer];
    return (
        asp_soft_group){first,    3 * c->n_head, asp_nodes_n_before(c, first), asp_slot_at(s->replaced.resid, layer),
                        o->ln1_w, o->ln1_b};
}

static asp_soft_group group_of_mlp(const asp_soft *p, int64_t layer) {
    const asp_component_setting *s = p->setting;
    const asp_config *c = &s->model->config;
    const int64_t first = asp_nodes_mlp_input(c, layer);
    const asp_layer_offsets *o = &s->model->layers[layer];
    return (asp_soft_group){first,    1,       asp_nodes_n_before(c, first), asp_slot_at(s->replaced.mid, layer),
                            o->ln2_w, o->ln2_b};
}

/* ---- heads -------------------------------------------------------------------------------------------- */

static asp_activations soft_activations(const asp_soft *p) {
    const asp_component_setting *s = p->setting;
    const asp_config *c = &s->model->config;
    const int64_t width = c->n_head * c->d_head;
    return (asp_activations){.n_tokens = p->n_tokens,
                             .n_rows = p->n_rows,
                             .n_sequences = s->n,
                             .offsets = s->offsets,
                             .qkv = {p->qkv, p->n_rows * 3 * width},
                             .z = {p->z, p->n_rows * width},
                             .lse = {p->lse, c->n_head * p->n_tokens}};
}

static asp_gate soft_gate(const asp_soft *p) {
    return (asp_gate){.gated = p->setting->model->config.gated, .bias = p->gate_bias, .held = p->setting->held};
}

/* q, k or v of one head, from inputs, which are normalised. */
static asp_status soft_qkv(const asp_soft *p, int64_t layer, int64_t i, const asp_context *context) {
    const asp_model *m = p->setting->model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head, column = i * c->d_head;
    const asp_real *bias = asp_at_const(m->data, m->layers[layer].qkv_b);
    const asp_gemm g = {.m = p->n_rows,
                        .n = c->d_head,
                        .k = e,
                        .a = p->inputs + i * p->n_rows * e,
                        .lda = e,
                        .b = m->data + m->layers[layer].qkv_w + column,
                        .ldb = 3 * width,
                        .c = p->qkv + layer * p->n_rows * 3 * width + column,
                        .ldc = 3 * width,
                        .epilogue = ASP_EPILOGUE_BIAS,
                        .bias = bias ? bias + column : NULL,
                        .n_rows = p->n_tokens,
                        .k_block = m->k_block.model};
    return asp_gemm_run(&g, context);
}

/* heads (R,H,D) written: z minus its ablated value. */
static void take_z(const asp_soft *p, int64_t layer) {
    const asp_config *c = &p->setting->model->config;
    const int64_t size = p->n_tokens * c->n_head * c->d_head;
    const asp_slot replaced = p->setting->replaced.z;
    const asp_real *z = p->z + layer * p->n_rows * c->n_head * c->d_head,
                   *ablated = replaced.data + layer * replaced.stride;
    for (int64_t i = 0; i < size; i++) p->heads[i] = z[i] - ablated[i];
}

asp_status asp_soft_nodes_heads(const asp_soft *p, int64_t layer, const asp_context *context) {
    const asp_model *m = p->setting->model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, width = c->n_head * c->d_head;
    const asp_soft_group group = group_of_heads(p, layer);
    const asp_activations acts = soft_activations(p);
    const asp_gate gate = soft_gate(p);
    asp_status status = asp_soft_mix(p, &group, context);
    if (!status) status = asp_soft_norm(p, &group, 1, context);
    for (int64_t i = 0; !status && i < group.n; i++) status = soft_qkv(p, layer, i, context);
    if (!status) status = asp_attention_forward(m, &acts, layer, &gate, &p->scratch, context);
    if (!status) take_z(p, layer);
    for (int64_t h = 0; !status && h < c->n_head; h++) {
        const asp_gemm g = {.m = p->n_rows,
                            .n = e,
                            .k = c->d_head,
                            .a = p->heads + h * c->d_head,
                            .lda = width,
                            .b = m->data + m->layers[layer].proj_w + h * c->d_head * e,
                            .ldb = e,
                            .c = p->changes + (asp_nodes_head(c, layer) + h) * p->n_rows * e,
                            .ldc = e,
                            .n_rows = p->n_tokens,
                            .k_block = m->k_block.head};
        status = asp_gemm_run(&g, context);
    }
    return status;
}

/* y (N,n) = x (N,k) W^T, of a part of the weights W (n,k) whose rows are ldw apart. */
static asp_status transposed_product(const asp_soft *p, asp_gemm *g, const asp_context *context) {
    g->trans_b = 1;
    g->m = g->n_rows = p->n_tokens;
    return asp_gemm_run(g, context);
}

asp_status asp_soft_nodes_heads_backward(const asp_soft *p, int64_t layer, double *gradient, double weight,
                                         const asp_context *context) {
    const asp_model *m = p->setting->model;
    const asp_config *c = &m->config;
    const int64_t e = c->d_model, d = c->d_head, width = c->n_head * d;
    const asp_soft_group group = group_of_heads(p, layer);
    const asp_activations acts = soft_activations(p);
    const asp_activation_gradients grads = {.qkv = {p->dqkv, 0}, .z = {p->heads, 0}};
    const asp_gate gate = soft_gate(p);
    asp_status status = ASP_OK;
    for (int64_t h = 0; !status && h < c->n_head; h++) {
        asp_gemm g = {.n = d,
                      .k = e,
                      .a = p->dchanges + (asp_nodes_head(c, layer) + h) * p->n_rows * e,
                      .lda = e,
                      .b = m->data + m->layers[layer].proj_w + h * d * e,
                      .ldb = e,
                      .c = p->heads + h * d,
                      .ldc = width};
        status = transposed_product(p, &g, context);
    }
    if (!status) status = asp_attention_backward(m, &acts, &grads, layer, &gate, &p->scratch, context);
    if (!status) status = asp_soft_mix(p, &group, context);
    if (!status) status = asp_soft_norm(p, &group, 0, context);
    for (int64_t i = 0; !status && i < group.n; i++) {
        asp_gemm g = {.n = e,
                      .k = d,
                      .a = p->dqkv + i * d,
                      .lda = 3 * width,
                      .b = m->data + m->layers[layer].qkv_w + i * d,
                      .ldb = 3 * width,
                      .c = p->dout,
                      .ldc = e};
        status = transposed_product(p, &g, context);
        if (!status) status = asp_soft_norm_backward(p, &group, i, context);
    }
    return status ? status : asp_soft_add(p, &group, gradient, weight, context);
}

/* ---- MLPs --------------------------------------------------------------------------------------------- */

asp_status asp_soft_nodes_mlp(const asp_soft *p, int64_t layer, const asp_context *context) {
    const asp_model *m = p->setting->model;
    const asp_config *c = &m->config;
    const asp_soft_group group = group_of_mlp(p, layer);
    const asp_mlp_rows rows = {.model = m,
                               .layer = layer,
                               .n_tokens = p->n_tokens,
                               .n_rows = p->n_rows,
                               .x = p->inputs,
                               .pre = p->pre + layer * p->n_rows * c->d_mlp,
                               .post = p->mlp,
                               .out = p->changes + asp_nodes_mlp(c, layer) * p->n_rows * c->d_model};
    asp_status status = asp_soft_mix(p, &group, context);
    if (!status) status = asp_soft_norm(p, &group, 1, context);
    if (!status) status = asp_nodes_mlp_output(&rows, context);
    return status ? status : asp_soft_take_change(p, layer, context);
}

asp_status asp_soft_nodes_mlp_backward(const asp_soft *p, int64_t layer, double *gradient, double weight,
                                       const asp_context *context) {
    const asp_model *m = p->setting->model;
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[layer];
    const asp_soft_group group = group_of_mlp(p, layer);
    asp_gemm to_hidden = {.n = c->d_mlp,
                          .k = c->d_model,
                          .a = p->dchanges + asp_nodes_mlp(c, layer) * p->n_rows * c->d_model,
                          .lda = c->d_model,
                          .b = m->data + o->out_w,
                          .ldb = c->d_model,
                          .c = p->mlp,
                          .ldc = c->d_mlp,
                          .epilogue = ASP_EPILOGUE_ACT_BACKWARD,
                          .out2 = p->pre + layer * p->n_rows * c->d_mlp,
                          .activation = c->activation};
    asp_gemm to_input = {.n = c->d_model,
                         .k = c->d_mlp,
                         .a = p->mlp,
                         .lda = c->d_mlp,
                         .b = m->data + o->fc_w,
                         .ldb = c->d_mlp,
                         .c = p->dout,
                         .ldc = c->d_model};
    asp_status status = transposed_product(p, &to_hidden, context);
    if (!status) status = transposed_product(p, &to_input, context);
    if (!status) status = asp_soft_mix(p, &group, context);
    if (!status) status = asp_soft_norm(p, &group, 0, context);
    if (!status) status = asp_soft_norm_backward(p, &group, 0, context);
    return status ? status : asp_soft_add(p, &group, gradient, weight, context);
}
