/* nodes.c: numbers of senders and receivers, and the outputs of senders, which are linear in what a run records. */
#include <string.h>

#include "component/component.h"

int64_t asp_nodes_n_senders(const asp_config *c) { return 1 + c->n_layer * (c->n_head + 1); }
int64_t asp_nodes_n_receivers(const asp_config *c) { return c->n_layer * (3 * c->n_head + 1) + 1; }

int64_t asp_nodes_n_before(const asp_config *c, int64_t receiver) {
    const int64_t layer = receiver / (3 * c->n_head + 1);
    return receiver == asp_nodes_mlp_input(c, layer) ? asp_nodes_mlp(c, layer) : asp_nodes_head(c, layer);
}

int64_t asp_nodes_n_edges(const asp_config *c) {
    int64_t n = 0;
    for (int64_t r = 0; r < asp_nodes_n_receivers(c); r++) n += asp_nodes_n_before(c, r);
    return n;
}

asp_node_activations asp_nodes_of_run(const asp_run *run) {
    const asp_array z = asp_run_array(run, ASP_Z), post = asp_run_array(run, ASP_MLP_POST);
    return (asp_node_activations){.embed = asp_run_array(run, ASP_EMBED).data,
                                  .z = {z.data, z.strides[0]},
                                  .post = {post.data, post.strides[0]}};
}

asp_status asp_nodes_layer_outputs(asp_real *out, const asp_model *m, int64_t layer, const asp_real *z,
                                   const asp_real *post, int64_t n_rows, int bias, const asp_context *context) {
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[layer];
    const int64_t e = c->d_model, block = n_rows * e;
    asp_status status = ASP_OK;
    for (int64_t h = 0; !status && h < c->n_head; h++) {
        const asp_gemm g = {.m = n_rows,
                            .n = e,
                            .k = c->d_head,
                            .a = z + h * c->d_head,
                            .lda = c->n_head * c->d_head,
                            .b = m->data + o->proj_w + h * c->d_head * e,
                            .ldb = e,
                            .c = out + h * block,
                            .ldc = e,
                            .n_rows = n_rows,
                            .k_block = m->k_block.head};
        status = asp_gemm_run(&g, context);
    }
    const asp_gemm g = {.m = n_rows,
                        .n = e,
                        .k = c->d_mlp,
                        .a = post,
                        .lda = c->d_mlp,
                        .b = m->data + o->out_w,
                        .ldb = e,
                        .c = out + c->n_head * block,
                        .ldc = e,
                        .epilogue = bias ? ASP_EPILOGUE_BIAS : ASP_EPILOGUE_NONE,
                        .bias = bias ? asp_at_const(m->data, o->out_b) : NULL,
                        .n_rows = n_rows,
                        .k_block = m->k_block.mlp};
    return status ? status : asp_gemm_run(&g, context);
}

asp_status asp_nodes_mlp_output(const asp_mlp_rows *rows, const asp_context *context) {
    const asp_model *m = rows->model;
    const asp_config *c = &m->config;
    const asp_layer_offsets *o = &m->layers[rows->layer];
    const asp_gemm in = {.m = rows->n_rows,
                         .n = c->d_mlp,
                         .k = c->d_model,
                         .a = rows->x,
                         .lda = c->d_model,
                         .b = m->data + o->fc_w,
                         .ldb = c->d_mlp,
                         .c = rows->pre,
                         .ldc = c->d_mlp,
                         .epilogue = ASP_EPILOGUE_BIAS_ACT,
                         .bias = asp_at_const(m->data, o->fc_b),
                         .out2 = rows->post,
                         .activation = c->activation,
                         .n_rows = rows->n_tokens,
                         .k_block = m->k_block.model};
    const asp_gemm out = {.m = rows->n_rows,
                          .n = c->d_model,
                          .k = c->d_mlp,
                          .a = rows->post,
                          .lda = c->d_mlp,
                          .b = m->data + o->out_w,
                          .ldb = c->d_model,
                          .c = rows->out,
                          .ldc = c->d_model,
                          .epilogue = rows->residual ? ASP_EPILOGUE_RESIDUAL : ASP_EPILOGUE_BIAS,
                          .bias = asp_at_const(m->data, o->out_b),
                          .residual = rows->residual,
                          .n_rows = rows->n_tokens,
                          .k_block = m->k_block.mlp};
    const asp_status status = asp_gemm_run(&in, context);
    return status ? status : asp_gemm_run(&out, context);
}

asp_status asp_nodes_outputs(asp_real *out, const asp_model *model, const asp_node_activations *a, asp_real *z,
                             asp_real *post, int64_t n_tokens, int64_t n_rows, const asp_context *context) {
    const asp_config *c = &model->config;
    const int64_t block = n_rows * c->d_model, of_z = n_tokens * c->n_head * c->d_head, of_post = n_tokens * c->d_mlp;
    asp_status status = ASP_OK;
    memcpy(out, a->embed, (size_t)(n_tokens * c->d_model) * sizeof *out);
    for (int64_t l = 0; !status && l < c->n_layer; l++) {
        memcpy(z, a->z.data + l * a->z.stride, (size_t)of_z * sizeof *z);
        memcpy(post, a->post.data + l * a->post.stride, (size_t)of_post * sizeof *post);
        status = asp_nodes_layer_outputs(out + asp_nodes_head(c, l) * block, model, l, z, post, n_rows, 1, context);
    }
    return status;
}

/* ---- differences ------------------------------------------------------------------------------------- */

typedef struct {
    asp_real *out;         /* (R,width) */
    const asp_real *a, *b; /* out = a at row[i] - b; a NULL: - b */
    const int64_t *row;    /* (N) */
    int64_t n_tokens, width;
} difference_job;

static void difference_item(void *arg, int64_t i, int thread) {
    (void)thread;
    const difference_job *job = arg;
    asp_real *out = job->out + i * job->width;
    const asp_real *b = job->b + i * job->width, *a = job->a ? job->a + job->row[i] * job->width : NULL;
    for (int64_t j = 0; j < job->width; j++) out[j] = (a ? a[j] : 0) - b[j];
}

/* out (S,R,E): takes the MLPs' bias from their outputs, which are minus those without. */
static void subtract_biases(asp_real *out, const asp_model *m, int64_t n_tokens, int64_t n_rows) {
    const asp_config *c = &m->config;
    const int64_t e = c->d_model;
    for (int64_t l = 0; l < c->n_layer; l++) {
        const asp_real *bias = asp_at_const(m->data, m->layers[l].out_b);
        asp_real *rows = out + asp_nodes_mlp(c, l) * n_rows * e;
        for (int64_t r = 0; bias && r < n_tokens; r++) asp_isa_kernels()->axpy(rows + r * e, -1, bias, e);
    }
}

asp_status asp_nodes_differences(asp_real *out, const asp_model *m, const asp_node_reference *reference,
                                 const asp_node_activations *given, int64_t n_tokens, int64_t n_rows,
                                 const asp_context *context) {
    const asp_config *c = &m->config;
    const asp_node_activations *other = &reference->activations;
    const int64_t e = c->d_model, block = n_rows * e;
    const asp_real *none = NULL;
    difference_job job = {out, other->embed, given->embed, reference->row, n_tokens, e};
    asp_status status = asp_parallel_for(context, n_tokens, difference_item, &job);
    for (int64_t l = 0; !status && l < c->n_layer; l++) {
        difference_job z = {reference->z,
                            other->embed ? asp_slot_at(other->z, l) : none,
                            asp_slot_at(given->z, l),
                            reference->row,
                            n_tokens,
                            c->n_head * c->d_head};
        difference_job post = {reference->post,
                               other->embed ? asp_slot_at(other->post, l) : none,
                               asp_slot_at(given->post, l),
                               reference->row,
                               n_tokens,
                               c->d_mlp};
        status = asp_parallel_for(context, n_tokens, difference_item, &z);
        if (!status) status = asp_parallel_for(context, n_tokens, difference_item, &post);
        if (!status)
            status = asp_nodes_layer_outputs(out + asp_nodes_head(c, l) * block, m, l, reference->z, reference->post,
                                             n_rows, 0, context);
    }
    if (!status && !other->embed) subtract_biases(out, m, n_tokens, n_rows);
    return status;
}
