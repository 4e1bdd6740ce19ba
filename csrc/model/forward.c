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

/* The sum again, of embeddings that visitors have seen. */
static void add_seen_embeddings(const asp_model *m, const asp_activations *acts) {
    const int64_t e = m->config.d_model;
    memcpy(acts->resid.data, acts->embed, (size_t)(acts->n_tokens * e) * sizeof *acts->embed);
    asp_isa_kernels()->add(acts->resid.data, acts->pos_embed, acts->n_tokens * e);
}

static asp_status embed_batch(const asp_model *m, const asp_activations *acts, const asp_context *context) {
    embed_job job = {m, acts};
    const int64_t e = m->config.d_model;
    const int tokens = asp_visit_wanted(acts, ASP_AT_EMBED, 0), positions = asp_visit_wanted(acts, ASP_AT_POS_EMBED, 0);
    asp_status status = asp_parallel_for(context, embedding_items(acts->n_tokens), embed_rows, &job);
    if (!status && tokens) status = asp_visit_rows(acts, ASP_AT_EMBED, 0, acts->embed, e, e, context);
    if (!status && positions) status = asp_visit_rows(acts, ASP_AT_POS_EMBED, 0, acts->pos_embed, e, e, context);
    if (!status && (tokens || positions)) add_seen_embeddings(m, acts);
    return status;
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
static asp_status add_kept_output(const asp_model *m, const asp_activations *acts, asp_real *out, const asp_real *a,
                                  int64_t weight, int64_t bias, int64_t k, asp_drop what, int64_t layer,
                                  const asp_real *residual, const asp_context *context) {
    const int64_t e = m->config.d_model;
    if (asp_dropout_rate(acts->dropout, what, layer) == 0)
        return linear(m, acts, out, a, weight, bias, e, k, ASP_EPILOGUE_RESIDUAL, residual, NULL, context);
    const asp_status status = linear(m, acts, out, a, weight, bias, e, k, ASP_EPILOGUE_BIAS, NULL, NULL, context);
    return status ? status : asp_dropout_rows(m, acts, what, layer, out, out, residual, context);
}

/* One of a pass, with its places. */
typedef struct {
    asp_place scale, normalized;
    int64_t layer, weight, bias; /* the last two as in asp_layer_offsets */
} norm;

/* x (R,E) read; out (R,E), scale (N), normalized (N,E) written where not NULL. */
static asp_status layernorm(const asp_model *m, const asp_activations *acts, norm at, const asp_real *x, asp_real *out,
                            asp_real *scale, asp_real *normalized, const asp_context *context) {
    const int64_t e = m->config.d_model;
    asp_layernorm ln = {.x = x,
                        .weight = m->data + at.weight,
                        .bias = asp_at_const(m->data, at.bias),
                        .out = out,
                        .scale = scale,
                        .normalized = normalized,
                        .n = acts->n_tokens,
                        .width = e,
                        .eps = m->config.ln_eps};
    asp_status status = asp_layernorm_forward(&ln, context);
    if (!status && asp_visit_wanted(acts, at.scale, at.layer)) {
        status = asp_visit_rows(acts, at.scale, at.layer, scale, 1, 1, context);
        ln.given_scale = scale;
        ln.scale = NULL;
        if (!status) status = asp_layernorm_forward(&ln, context);
    }
    if (!status && asp_visit_wanted(acts, at.normalized, at.layer)) {
        status = asp_visit_rows(acts, at.normalized, at.layer, normalized, e, e, context);
        ln.given = normalized;
        ln.scale = ln.normalized = NULL;
        if (!status && out) status = asp_layernorm_forward(&ln, context);
    }
    return status;
}

/* Where visitors changed a row of an output, that row of x becomes what the output is added to plus the output.
 *   x (N,E) written    out (N,E) read */
static void add_changed(const asp_activations *acts, asp_real *x, const asp_real *out, int64_t e) {
    const size_t bytes = (size_t)e * sizeof *out;
    for (int64_t r = 0; r < acts->n_tokens; r++) {
        if (memcmp(out + r * e, acts->seen_out + r * e, bytes) == 0) continue;
        memcpy(x + r * e, acts->added_to + r * e, bytes);
        asp_isa_kernels()->add(x + r * e, out + r * e, e);
    }
}

static void copy_rows(const asp_activations *acts, asp_real *to, const asp_real *from, int64_t width) {
    memcpy(to, from, (size_t)(acts->n_tokens * width) * sizeof *to);
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
                            .k_block = acts->by_row && !m->k_block.head ? ASP_K_BLOCK : m->k_block.head,
                            .by_row = acts->by_row && !m->k_block.head};
        status = asp_gemm_run(&g, context);
    }
    return status;
}

asp_status asp_forward_qkv(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[l];
    const int64_t width = c->n_head * c->d_head;
    asp_real *ln = asp_slot_at(acts->ln1, l), *qkv = asp_slot_at(acts->qkv, l);
    const norm at = {ASP_AT_LN1_SCALE, ASP_AT_LN1_NORMALIZED, l, o->ln1_w, o->ln1_b};
    asp_status status = layernorm(m, acts, at, asp_slot_at(acts->resid, l), ln, asp_slot_at(acts->ln1_scale, l),
                                  asp_slot_at(acts->ln1_normalized, l), context);
    if (!status)
        status =
            linear(m, acts, qkv, ln, o->qkv_w, o->qkv_b, 3 * width, c->d_model, ASP_EPILOGUE_BIAS, NULL, NULL, context);
    for (int i = 0; !status && i < 3; i++)
        status = asp_visit_rows(acts, (asp_place)(ASP_AT_Q + i), l, qkv + i * width, width, 3 * width, context);
    return status;
}

asp_status asp_forward_attention(const asp_model *m, const asp_activations *acts, int64_t l, const asp_gate *gate,
                                 const asp_scratch *scratch, const asp_context *context) {
    const asp_status status = asp_forward_qkv(m, acts, l, context);
    return status ? status : asp_attention_forward(m, acts, l, gate, scratch, context);
}

/* Shows the heads' results; where they change, the attention's output becomes their sum plus the bias. */
static asp_status show_results(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const int64_t e = m->config.d_model, h = m->config.n_head;
    const asp_real *bias = asp_at_const(m->data, m->layers[l].proj_b);
    asp_real *result = asp_slot_at(acts->result, l), *out = asp_slot_at(acts->attn_out, l), *seen = acts->seen_result;
    copy_rows(acts, seen, result, h * e);
    const asp_status status = asp_visit_rows(acts, ASP_AT_RESULT, l, result, h * e, h * e, context);
    for (int64_t r = 0; !status && r < acts->n_tokens; r++) {
        const asp_real *row = result + r * h * e;
        if (memcmp(row, seen + r * h * e, (size_t)(h * e) * sizeof *row) == 0) continue;
        memcpy(out + r * e, row, (size_t)e * sizeof *out);
        for (int64_t head = 1; head < h; head++) asp_isa_kernels()->add(out + r * e, row + head * e, e);
        if (bias) asp_isa_kernels()->add(out + r * e, bias, e);
    }
    return status;
}

/* Shows the output of attention; x (R,E) is written only where something changed it. */
static asp_status show_attention(const asp_model *m, const asp_activations *acts, int64_t l,
                                 const asp_context *context) {
    const int64_t e = m->config.d_model;
    asp_real *out = asp_slot_at(acts->attn_out, l);
    asp_status status = ASP_OK;
    copy_rows(acts, acts->seen_out, out, e);
    copy_rows(acts, acts->added_to, asp_slot_at(acts->resid, l), e);
    if (asp_visit_wanted(acts, ASP_AT_RESULT, l)) status = show_results(m, acts, l, context);
    return status ? status : asp_visit_rows(acts, ASP_AT_ATTN_OUT, l, out, e, e, context);
}

asp_status asp_forward_output(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const asp_layer_offsets *o = &m->layers[l];
    const int64_t e = m->config.d_model, width = m->config.n_head * m->config.d_head;
    const asp_hooks *hooks = acts->hooks;
    const int shown = asp_visit_wanted(acts, ASP_AT_RESULT, l) || asp_visit_wanted(acts, ASP_AT_ATTN_OUT, l);
    asp_real *mid = asp_slot_at(acts->mid, l), *out = asp_slot_at(acts->attn_out, l);
    const asp_real *z =
        hooks && hooks->output_input ? hooks->output_input(hooks->state, acts, l) : asp_slot_at(acts->z, l);
    asp_status status = asp_visit_rows(acts, ASP_AT_Z, l, asp_slot_at(acts->z, l), width, width, context);
    if (!status && acts->result.data) status = head_results(m, acts, l, z, context);
    if (!status && out)
        status = linear(m, acts, out, z, o->proj_w, o->proj_b, e, width, ASP_EPILOGUE_BIAS, NULL, NULL, context);
    if (!status && shown) status = show_attention(m, acts, l, context);
    if (!status)
        status = add_kept_output(m, acts, mid, z, o->proj_w, o->proj_b, width, ASP_DROP_ATTN_OUT, l,
                                 asp_slot_at(acts->resid, l), context);
    if (!status && shown) add_changed(acts, mid, out, e);
    if (!status) residual_hook(acts, ASP_POINT_MID, l, mid);
    return status ? status : asp_visit_rows(acts, ASP_AT_RESID_MID, l, mid, e, e, context);
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
    const norm at = {ASP_AT_LN2_SCALE, ASP_AT_LN2_NORMALIZED, l, o->ln2_w, o->ln2_b};
    asp_status status = layernorm(m, acts, at, mid, NULL, asp_slot_at(acts->ln2_scale, l), normalized, context);
    if (!status)
        status = substitute->layer(substitute->state, l, substitute->from_mid ? mid : normalized, out, context);
    for (int64_t i = 0; !status && i < acts->n_tokens * e; i++) next[i] = mid[i] + out[i];
    return status;
}

/* Shows the MLP's neurons before and behind the nonlinearity. */
static asp_status show_neurons(const asp_model *m, const asp_activations *acts, int64_t l, asp_real *pre,
                               asp_real *post, const asp_context *context) {
    const int64_t n = m->config.d_mlp;
    asp_status status = ASP_OK;
    if (asp_visit_wanted(acts, ASP_AT_MLP_PRE, l)) {
        status = asp_visit_rows(acts, ASP_AT_MLP_PRE, l, pre, n, n, context);
        for (int64_t r = 0; !status && r < acts->n_tokens; r++)
            asp_isa_kernels()->activate(post + r * n, pre + r * n, n, m->config.activation);
    }
    return status ? status : asp_visit_rows(acts, ASP_AT_MLP_POST, l, post, n, n, context);
}

static asp_status own_mlp(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[l];
    const int64_t e = c->d_model;
    const asp_real *x = asp_slot_at(acts->mid, l);
    asp_real *ln = asp_slot_at(acts->ln2, l), *post = asp_slot_at(acts->mlp_post, l),
             *pre = asp_slot_at(acts->mlp_pre, l);
    const norm at = {ASP_AT_LN2_SCALE, ASP_AT_LN2_NORMALIZED, l, o->ln2_w, o->ln2_b};
    asp_status status =
        layernorm(m, acts, at, x, ln, asp_slot_at(acts->ln2_scale, l), asp_slot_at(acts->ln2_normalized, l), context);
    if (!status)
        status = linear(m, acts, pre ? pre : post, ln, o->fc_w, o->fc_b, c->d_mlp, e, ASP_EPILOGUE_BIAS_ACT, NULL, post,
                        context);
    if (!status) status = show_neurons(m, acts, l, pre, post, context);
    if (!status && acts->mlp_out.data)
        status = linear(m, acts, asp_slot_at(acts->mlp_out, l), post, o->out_w, o->out_b, e, c->d_mlp,
                        ASP_EPILOGUE_BIAS, NULL, NULL, context);
    if (!status)
        status = add_kept_output(m, acts, asp_slot_at(acts->resid, l + 1), post, o->out_w, o->out_b, c->d_mlp,
                                 ASP_DROP_MLP_OUT, l, x, context);
    return status;
}

asp_status asp_forward_mlp(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const asp_mlp_substitute *substitute = acts->hooks && acts->hooks->mlp.layer ? &acts->hooks->mlp : NULL;
    const int own = !substitute || (substitute->kept && substitute->kept[l]);
    const int shown = asp_visit_wanted(acts, ASP_AT_MLP_OUT, l);
    const asp_hooks *hooks = acts->hooks;
    const int64_t e = m->config.d_model;
    asp_real *mid = asp_slot_at(acts->mid, l), *out = asp_slot_at(acts->mlp_out, l);
    asp_real *next = asp_slot_at(acts->resid, l + 1);
    if (hooks && hooks->mlp_input) hooks->mlp_input(hooks->state, acts, l, mid);
    if (shown) copy_rows(acts, acts->added_to, mid, e);
    asp_status status = own ? own_mlp(m, acts, l, context) : substitute_mlp(m, acts, l, context);
    if (!status) residual_hook(acts, ASP_POINT_POST, l, next);
    if (status || !shown) return status;
    copy_rows(acts, acts->seen_out, out, e);
    status = asp_visit_rows(acts, ASP_AT_MLP_OUT, l, out, e, e, context);
    if (!status) add_changed(acts, next, out, e);
    return status;
}

asp_status asp_forward_final(const asp_model *m, const asp_activations *acts, const asp_context *context) {
    const int64_t n_layer = m->config.n_layer;
    const norm at = {ASP_AT_LN_FINAL_SCALE, ASP_AT_LN_FINAL_NORMALIZED, n_layer, m->lnf_w, m->lnf_b};
    return layernorm(m, acts, at, asp_slot_at(acts->resid, n_layer), acts->ln_final, acts->ln_final_scale,
                     acts->ln_final_normalized, context);
}

/* Changes the residual stream before layer l, or behind the last layer. */
static asp_status pass_stream(const asp_model *m, const asp_activations *acts, int64_t l, const asp_context *context) {
    const int64_t e = m->config.d_model;
    asp_real *x = asp_slot_at(acts->resid, l);
    residual_hook(acts, ASP_POINT_PRE, l, x);
    asp_status status = l ? asp_visit_rows(acts, ASP_AT_RESID_POST, l - 1, x, e, e, context) : ASP_OK;
    if (!status && l < asp_layers_of(m, acts)) status = asp_visit_rows(acts, ASP_AT_RESID_PRE, l, x, e, e, context);
    return status;
}

asp_status asp_forward_layers(const asp_model *m, const asp_activations *acts, const asp_gate *gate,
                              const asp_scratch *scratch, const asp_context *context) {
    const int64_t n_layer = asp_layers_of(m, acts);
    asp_status status = embed_batch(m, acts, context);
    for (int64_t l = 0; !status && l < n_layer; l++) {
        status = pass_stream(m, acts, l, context);
        if (!status) status = asp_forward_attention(m, acts, l, gate, scratch, context);
        if (!status) status = asp_forward_output(m, acts, l, context);
        if (!status) status = asp_forward_mlp(m, acts, l, context);
        if (!status) status = asp_context_share(context, (double)(l + 1) / (double)n_layer);
    }
    if (!status) status = pass_stream(m, acts, n_layer, context);
    return status || acts->stop_at ? status : asp_forward_final(m, acts, context);
}
