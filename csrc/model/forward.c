/* forward.c: embedding, layers and final LayerNorm of packed sequences; writes where asp_activations says. */
#include <string.h>

#include "model/hooks.h"

typedef struct {
    const asp_model *model;
    const asp_activations *acts;
} embed_job;

enum { ROWS_PER_ITEM = 16 };

static int64_t embedding_items(int64_t n) { return (n + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM; }

/* Position of a packed row in its sequence. */
static int64_t position_of(const asp_activations *acts, int64_t row) {
    int64_t low = 0, high = acts->n_sequences;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (acts->offsets[middle] <= row) low = middle;
        else high = middle;
    }
    return row - acts->offsets[low] + (acts->first ? acts->first[low] : 0);
}

static void embed_rows(void *arg, int64_t item, int thread) {
    (void)thread;
    const embed_job *job = arg;
    const asp_model *m = job->model;
    const asp_activations *acts = job->acts;
    const int64_t e = m->config.d_model, end = asp_min((item + 1) * ROWS_PER_ITEM, acts->n_tokens);
    const size_t bytes = (size_t)e * sizeof(asp_real);
    for (int64_t r = item * ROWS_PER_ITEM; r < end; r++) {
        const asp_real *token = m->data + m->wte + acts->tokens[r] * e;
        const asp_real *position = m->data + m->wpe + position_of(acts, r) * e;
        if (acts->embed) memcpy(acts->embed + r * e, token, bytes);
        if (acts->pos_embed) memcpy(acts->pos_embed + r * e, position, bytes);
        asp_real *out = acts->resid.data + r * e;
        memcpy(out, token, bytes);
        asp_isa_kernels()->add(out, position, e);
    }
}

static void residual_hook(const asp_activations *acts, asp_point point, int64_t layer, asp_real *x) {
    const asp_hooks *hooks = acts->hooks;
    if (hooks && hooks->residual) hooks->residual(hooks->state, acts, point, layer, x);
}

static int64_t k_block_of(const asp_model *m, int64_t k) {
    if (k == m->config.d_model) return m->k_block.model;
    return k == m->config.d_mlp ? m->k_block.mlp : m->k_block.heads;
}

/* C (R,n) = A (R,k) W (k,n) with an epilogue. */
static asp_status linear(const asp_model *m, const asp_activations *acts, asp_real *c, const asp_real *a,
                         int64_t weight, int64_t bias, int64_t n, int64_t k, asp_epilogue epilogue,
                         const asp_real *residual, asp_real *out2, const asp_context *context) {
    const int64_t k_block = k_block_of(m, k);
    const asp_gemm g = {.m = acts->n_rows,
                        .n = n,
                        .k = k,
                        .a = a,
                        .lda = k,
                        .b = m->data + weight,
                        .ldb = n,
                        .c = c,
                        .ldc = n,
                        .epilogue = epilogue,
                        .bias = asp_at_const(m->data, bias),
                        .residual = residual,
                        .out2 = out2,
                        .activation = m->config.activation,
                        .n_rows = acts->n_tokens,
                        .k_block = acts->by_row && !k_block ? ASP_K_BLOCK : k_block,
                        .by_row = acts->by_row && !k_block};
    return asp_gemm_run(&g, context);
}

/* out (R,E) = residual + what is left of A W + b after dropout. */
static asp_status add_output(const asp_model *m, const asp_activations *acts, asp_real *out, const asp_real *a,
                             int64_t weight, int64_t bias, int64_t k, asp_drop what, int64_t layer,
                             const asp_real *residual, const asp_context *context) {
    const int64_t e = m->config.d_model;
    if (asp_dropout_rate(acts->dropout, what, layer) == 0)
        return linear(m, acts, out, a, weight, bias, e, k, ASP_EPILOGUE_RESIDUAL, residual, NULL, context);
    const asp_status status = linear(m, acts, out, a, weight, bias, e, k, ASP_EPILOGUE_BIAS, NULL, NULL, context);
    return status ? status : asp_dropout_rows(m, acts, what, layer, out, out, residual, context);
}

static asp_status layernorm(const asp_model *m, const asp_activations *acts, const asp_real *x, int64_t weight,
                            int64_t bias, asp_real *out, asp_real *scale, asp_real *normalized,
                            const asp_context *context) {
    const asp_layernorm ln = {.x = x,
                              .weight = m->data + weight,
                              .bias = asp_at_const(m->data, bias),
                              .out = out,
                              .scale = scale,
                              .normalized = normalized,
                              .n = acts->n_tokens,
                              .width = m->config.d_model,
                              .eps = m->config.ln_eps};
    return asp_layernorm_forward(&ln, context);
}

/* result (R,H,E): z of each head times its rows of W_O. */
static asp_status head_results(const asp_model *m, const asp_activations *acts, int64_t layer, const asp_real *z,
                               const asp_context *context) {
    const asp_config *c = &m->config;
    const int64_t width = c->n_head * c->d_head;
    asp_status status = ASP_OK;
    for (int64_t h = 0; !status && h < c->n_head; h++) {
        const asp_gemm g = {.m = acts->n_rows,
                            .n = c->d_model,
                            .k = c->d_head,
                            .a = z + h * c->d_head,
                            .lda = width,
                            .b = m->data + m->layers[layer].proj_w + h * c->d_head * c->d_model,
                            .ldb = c->d_model,
                            .c = asp_slot_at(acts->result, layer) + h * c->d_model,
                            .ldc = c->n_head * c->d_model,
                            .n_rows = acts->n_tokens,
                            .k_block = m->k_block.head};
        status = asp_gemm_run(&g, context);
    }
    return status;
}

asp_status asp_forward_qkv(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[l];
    const int64_t width = c->n_head * c->d_head;
    asp_real *ln = asp_slot_at(acts->ln1, l);
    asp_status status = layernorm(m, acts, asp_slot_at(acts->resid, l), o->ln1_w, o->ln1_b, ln,
                                  asp_slot_at(acts->ln1_scale, l), asp_slot_at(acts->ln1_normalized, l), context);
    if (!status)
        status = linear(m, acts, asp_slot_at(acts->qkv, l), ln, o->qkv_w, o->qkv_b, 3 * width, c->d_model,
                        ASP_EPILOGUE_BIAS, NULL, NULL, context);
    return status;
}

asp_status asp_forward_attention(const asp_model *m, const asp_activations *acts, int64_t l, const asp_gate *gate,
                                 const asp_scratch *scratch, const asp_context *context) {
    const asp_status status = asp_forward_qkv(m, acts, l, context);
    return status ? status : asp_attention_forward(m, acts, l, gate, scratch, context);
}

asp_status asp_forward_output(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const asp_layer_offsets *o = &m->layers[l];
    const int64_t e = m->config.d_model, width = m->config.n_head * m->config.d_head;
    const asp_hooks *hooks = acts->hooks;
    const asp_real *z =
        hooks && hooks->output_input ? hooks->output_input(hooks->state, acts, l) : asp_slot_at(acts->z, l);
    asp_status status = acts->result.data ? head_results(m, acts, l, z, context) : ASP_OK;
    if (!status && acts->attn_out.data)
        status = linear(m, acts, asp_slot_at(acts->attn_out, l), z, o->proj_w, o->proj_b, e, width, ASP_EPILOGUE_BIAS,
                        NULL, NULL, context);
    if (!status)
        status = add_output(m, acts, asp_slot_at(acts->mid, l), z, o->proj_w, o->proj_b, width, ASP_DROP_ATTN_OUT, l,
                            asp_slot_at(acts->resid, l), context);
    if (!status) residual_hook(acts, ASP_POINT_MID, l, asp_slot_at(acts->mid, l));
    return status;
}

/* What the substitute writes for a layer, in place of the MLP. */
static asp_status substitute_mlp(const asp_model *m, const asp_activations *acts, int64_t l,
                                 const asp_context *context) {
    const asp_mlp_substitute *substitute = &acts->hooks->mlp;
    const asp_layer_offsets *o = &m->layers[l];
    const int64_t e = m->config.d_model;
    const asp_real *mid = asp_slot_at(acts->mid, l);
    asp_real *normalized = asp_slot_at(acts->ln2_normalized, l), *out = asp_slot_at(acts->mlp_out, l),
             *next = asp_slot_at(acts->resid, l + 1);
    if (!normalized) normalized = asp_slot_at(acts->ln2, l);
    asp_status status =
        layernorm(m, acts, mid, o->ln2_w, o->ln2_b, NULL, asp_slot_at(acts->ln2_scale, l), normalized, context);
    if (!status)
        status = substitute->layer(substitute->state, l, substitute->from_mid ? mid : normalized, out, context);
    for (int64_t i = 0; !status && i < acts->n_tokens * e; i++) next[i] = mid[i] + out[i];
    return status;
}

static asp_status own_mlp(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[l];
    const int64_t e = c->d_model;
    const asp_real *x = asp_slot_at(acts->mid, l);
    asp_real *ln = asp_slot_at(acts->ln2, l), *post = asp_slot_at(acts->mlp_post, l),
             *pre = asp_slot_at(acts->mlp_pre, l);
    asp_status status = layernorm(m, acts, x, o->ln2_w, o->ln2_b, ln, asp_slot_at(acts->ln2_scale, l),
                                  asp_slot_at(acts->ln2_normalized, l), context);
    if (!status)
        status = linear(m, acts, pre ? pre : post, ln, o->fc_w, o->fc_b, c->d_mlp, e, ASP_EPILOGUE_BIAS_ACT, NULL, post,
                        context);
    if (!status && acts->mlp_out.data)
        status = linear(m, acts, asp_slot_at(acts->mlp_out, l), post, o->out_w, o->out_b, e, c->d_mlp,
                        ASP_EPILOGUE_BIAS, NULL, NULL, context);
    if (!status)
        status = add_output(m, acts, asp_slot_at(acts->resid, l + 1), post, o->out_w, o->out_b, c->d_mlp,
                            ASP_DROP_MLP_OUT, l, x, context);
    return status;
}

asp_status asp_forward_mlp(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const asp_mlp_substitute *substitute = acts->hooks && acts->hooks->mlp.layer ? &acts->hooks->mlp : NULL;
    const int own = !substitute || (substitute->kept && substitute->kept[l]);
    const asp_status status = own ? own_mlp(m, acts, l, context) : substitute_mlp(m, acts, l, context);
    if (!status) residual_hook(acts, ASP_POINT_POST, l, asp_slot_at(acts->resid, l + 1));
    return status;
}

asp_status asp_forward_final(const asp_model *m, const asp_activations *acts, const asp_context *context) {
    return layernorm(m, acts, asp_slot_at(acts->resid, m->config.n_layer), m->lnf_w, m->lnf_b, acts->ln_final,
                     acts->ln_final_scale, acts->ln_final_normalized, context);
}

asp_status asp_forward_layers(const asp_model *m, const asp_activations *acts, const asp_gate *gate,
                              const asp_scratch *scratch, const asp_context *context) {
    embed_job job = {m, acts};
    const int64_t n_layer = m->config.n_layer;
    asp_status status = asp_parallel_for(context, embedding_items(acts->n_tokens), embed_rows, &job);
    for (int64_t l = 0; !status && l < n_layer; l++) {
        residual_hook(acts, ASP_POINT_PRE, l, asp_slot_at(acts->resid, l));
        status = asp_forward_attention(m, acts, l, gate, scratch, context);
        if (!status) status = asp_forward_output(m, acts, l, context);
        if (!status) status = asp_forward_mlp(m, acts, l, context);
    }
    if (!status) residual_hook(acts, ASP_POINT_PRE, n_layer, asp_slot_at(acts->resid, n_layer));
    return status ? status : asp_forward_final(m, acts, context);
}
