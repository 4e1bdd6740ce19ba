/* receivers.c: scores from a backward pass.  At every LayerNorm the gradient of its output goes back through it for each
 * receiver alone, is added up over the runs of a prompt, and multiplied with the differences of all senders before it:
 * one product for each prompt, whose results are added in float64 in the order of the prompts. */
#include <string.h>

#include "component/component.h"

/* ---- what a run changes -------------------------------------------------------------------------------- */

/* Rows of one run. */
static int64_t receiver_tokens(const asp_receivers *r) { return r->offsets[r->n_prompts]; }

/* Adds share * (reference - output) of n senders to the rows of the runs that change this group. */
static void change_residual(const asp_receivers *r, int64_t group, int64_t sender, int64_t n, asp_real *x) {
    const int64_t e = r->model->config.d_model, size = receiver_tokens(r) * e;
    for (int64_t p = 0; p < r->n_points; p++)
        for (int64_t s = sender; r->points[p].group == group && s < sender + n; s++)
            asp_isa_kernels()->axpy(x + p * size, (asp_real)r->points[p].share, r->differences + s * r->n_rows * e,
                                    size);
}

static void change_points(void *state, const asp_activations *acts, asp_point point, int64_t layer, asp_real *x) {
    (void)acts;
    const asp_receivers *r = state;
    const asp_config *c = &r->model->config;
    if (point == ASP_POINT_PRE && layer == 0) change_residual(r, 0, 0, 1, x);
    if (point == ASP_POINT_MID) change_residual(r, 1 + 2 * layer, asp_nodes_head(c, layer), c->n_head, x);
    if (point == ASP_POINT_POST) change_residual(r, 2 + 2 * layer, asp_nodes_mlp(c, layer), 1, x);
}

/* No gradient goes through what a run has changed.  d (n_points N,width) read and written */
static void cut_points(const asp_receivers *r, int64_t group, asp_real *d, int64_t width) {
    const int64_t size = receiver_tokens(r) * width;
    for (int64_t p = 0; p < r->n_points; p++)
        if (r->points[p].group == group) memset(d + p * size, 0, (size_t)size * sizeof *d);
}

static asp_status cut_heads(void *state, const asp_activations *acts, int64_t layer, asp_real *dz,
                            const asp_context *context) {
    (void)acts;
    (void)context;
    const asp_receivers *r = state;
    cut_points(r, 1 + 2 * layer, dz, r->model->config.n_head * r->model->config.d_head);
    return ASP_OK;
}

/* ---- component edges ----------------------------------------------------------------------------------- */

/* The LayerNorm before some receivers. */
typedef struct {
    const asp_real *x, *scale, *weight; /* (n_points N,E), (n_points N), (E) read */
    int64_t receiver, n;                /* the first one, and how many */
} receiver_norm;

/* gradients (R,E) of the i-th receiver: the sum over the runs of what its dout (n_points N,E) becomes. */
static asp_status add_runs(const asp_receivers *r, const receiver_norm *norm, int64_t i, const asp_real *dout,
                           const asp_context *context) {
    const int64_t e = r->model->config.d_model, n = receiver_tokens(r);
    asp_layernorm_backward_job job = {.dx = r->gradients + i * r->n_rows * e,
                                      .weight = norm->weight,
                                      .partial = r->tape->ln_partial,
                                      .n = n,
                                      .width = e};
    asp_status status = ASP_OK;
    memset(job.dx, 0, (size_t)(n * e) * sizeof *job.dx);
    for (int64_t p = 0; !status && p < r->n_points; p++) {
        job.dout = dout + p * n * e;
        job.x = norm->x + p * n * e;
        job.scale = norm->scale + p * n;
        status = asp_layernorm_backward(&job, context);
    }
    return status;
}

/* Products of the differences of all senders before the receivers with their gradients. */
static asp_status add_products(const asp_receivers *r, const receiver_norm *norm, const asp_context *context) {
    const asp_config *c = &r->model->config;
    const int64_t e = c->d_model, n_receivers = asp_nodes_n_receivers(c);
    const int64_t n_senders = asp_nodes_n_before(c, norm->receiver);
    for (int64_t b = 0; b < r->n_prompts; b++) {
        const asp_gemm g = {.trans_b = 1,
                            .m = n_senders,
                            .n = norm->n,
                            .k = (r->offsets[b + 1] - r->offsets[b]) * e,
                            .a = r->differences + r->offsets[b] * e,
                            .lda = r->n_rows * e,
                            .b = r->gradients + r->offsets[b] * e,
                            .ldb = r->n_rows * e,
                            .c = r->parts,
                            .ldc = norm->n,
                            .n_rows = n_senders};
        const asp_status status = asp_gemm_run(&g, context);
        if (status) return status;
        for (int64_t s = 0; s < n_senders; s++)
            for (int64_t i = 0; i < norm->n; i++)
                r->scores[s * n_receivers + norm->receiver + i] += r->weight * (double)r->parts[s * norm->n + i];
    }
    return ASP_OK;
}

/* dout of q, k or v of one head: its gradient times its columns of the weights. */
static asp_status receiver_gradient(const asp_receivers *r, int64_t layer, int64_t i, const asp_context *context) {
    const asp_config *c = &r->model->config;
    const int64_t width = 3 * c->n_head * c->d_head, n = r->tape->acts.n_tokens;
    const asp_gemm g = {.trans_b = 1,
                        .m = n,
                        .n = c->d_model,
                        .k = c->d_head,
                        .a = asp_slot_at(r->tape->grads.qkv, layer) + i * c->d_head,
                        .lda = width,
                        .b = r->model->data + r->model->layers[layer].qkv_w + i * c->d_head,
                        .ldb = width,
                        .c = r->dout,
                        .ldc = c->d_model,
                        .n_rows = n};
    return asp_gemm_run(&g, context);
}

static asp_status edge_scores(const asp_receivers *r, asp_point point, int64_t layer, const asp_real *dout,
                              const asp_context *context) {
    const asp_model *m = r->model;
    const asp_config *c = &m->config;
    const asp_activations *a = &r->tape->acts;
    const int heads = point == ASP_POINT_PRE && layer < c->n_layer;
    receiver_norm norm = {.x = asp_slot_at(a->resid, layer), .n = 1};
    if (point == ASP_POINT_MID) {
        norm.x = asp_slot_at(a->mid, layer);
        norm.scale = asp_slot_at(a->ln2_scale, layer);
        norm.weight = m->data + m->layers[layer].ln2_w;
        norm.receiver = asp_nodes_mlp_input(c, layer);
    } else if (heads) {
        norm.scale = asp_slot_at(a->ln1_scale, layer);
        norm.weight = m->data + m->layers[layer].ln1_w;
        norm.receiver = asp_nodes_qkv(c, layer);
        norm.n = 3 * c->n_head;
    } else {
        norm.scale = a->ln_final_scale;
        norm.weight = m->data + m->lnf_w;
        norm.receiver = asp_nodes_qkv(c, layer);
    }
    asp_status status = ASP_OK;
    for (int64_t i = 0; !status && i < norm.n; i++) {
        if (heads) status = receiver_gradient(r, layer, i, context);
        if (!status) status = add_runs(r, &norm, i, heads ? r->dout : dout, context);
    }
    return status ? status : add_products(r, &norm, context);
}

/* ---- senders ------------------------------------------------------------------------------------------- */

typedef struct {
    const asp_receivers *receivers;
    int64_t sender;
} sender_job;

static void sender_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const sender_job *job = arg;
    const asp_receivers *r = job->receivers;
    const int64_t sender = job->sender + i, e = r->model->config.d_model, n = receiver_tokens(r);
    const asp_real *difference = r->differences + sender * r->n_rows * e;
    double all = 0;
    for (int64_t j = 0; j < e; j++) {
        double sum = 0;
        for (int64_t t = 0; t < n; t++) sum += (double)difference[t * e + j] * (double)r->gradients[t * e + j];
        if (r->level == ASP_COMPONENT_NEURON) r->scores[sender * e + j] += r->weight * sum;
        all += sum;
    }
    if (r->level == ASP_COMPONENT_NODE) r->scores[sender] += r->weight * all;
}

/* Scores of n senders whose outputs have this gradient.  dout (n_points N,E) read */
static asp_status sender_scores(const asp_receivers *r, int64_t sender, int64_t n, const asp_real *dout,
                                const asp_context *context) {
    const int64_t size = receiver_tokens(r) * r->model->config.d_model;
    sender_job job = {r, sender};
    memset(r->gradients, 0, (size_t)size * sizeof *r->gradients);
    for (int64_t p = 0; p < r->n_points; p++) asp_isa_kernels()->add(r->gradients, dout + p * size, size);
    return asp_parallel_for(context, n, sender_item, &job);
}

/* Scores of an MLP whose input has the gradient that its LayerNorm makes of dout (n_points N,E), read. */
static asp_status mlp_input_scores(const asp_receivers *r, int64_t layer, const asp_real *dout,
                                   const asp_context *context) {
    const asp_activations *a = &r->tape->acts;
    const receiver_norm norm = {.x = asp_slot_at(a->mid, layer),
                                .scale = asp_slot_at(a->ln2_scale, layer),
                                .weight = r->model->data + r->model->layers[layer].ln2_w,
                                .n = 1};
    sender_job job = {r, asp_nodes_mlp(&r->model->config, layer)};
    const asp_status status = add_runs(r, &norm, 0, dout, context);
    return status ? status : asp_parallel_for(context, 1, sender_item, &job);
}

/* ---- hooks --------------------------------------------------------------------------------------------- */

static asp_status collect_scores(void *state, const asp_activations *acts, asp_point point, int64_t layer,
                                 asp_real *dout, const asp_real *dsum, const asp_context *context) {
    (void)acts;
    const asp_receivers *r = state;
    const asp_config *c = &r->model->config;
    if (point == ASP_POINT_MID) cut_points(r, 2 + 2 * layer, dout, c->d_model);
    if (r->level == ASP_COMPONENT_EDGE) return edge_scores(r, point, layer, dout, context);
    if (point == ASP_POINT_MID && r->mlp_input) return mlp_input_scores(r, layer, dout, context);
    if (point == ASP_POINT_MID) return sender_scores(r, asp_nodes_mlp(c, layer), 1, dsum, context);
    return layer < c->n_layer ? sender_scores(r, asp_nodes_head(c, layer), c->n_head, dsum, context) : ASP_OK;
}

asp_hooks asp_receivers_hooks(asp_receivers *receivers) {
    return (asp_hooks){.state = receivers, .residual = change_points, .dz = cut_heads, .dnorm = collect_scores};
}

asp_status asp_receivers_finish(asp_receivers *r, const asp_context *context) {
    if (r->level == ASP_COMPONENT_EDGE) return ASP_OK;
    return sender_scores(r, 0, 1, asp_slot_at(r->tape->grads.resid, 0), context);
}
