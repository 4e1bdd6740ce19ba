/* unembed.c: the LM head. */
#include "model/model.h"

/* logits (n_padded,V) = hidden (n_padded,E) W_U^T, with the bias on the first n_rows rows. */
static asp_gemm describe_unembedding(const asp_model *model, asp_real *logits, const asp_real *hidden, int64_t n_rows,
                                     int64_t n_padded) {
    const asp_config *c = &model->config;
    return (asp_gemm){.trans_b = 1,
                      .m = n_padded,
                      .n = c->n_vocab,
                      .k = c->d_model,
                      .a = hidden,
                      .lda = c->d_model,
                      .b = model->data + model->unembed_w,
                      .ldb = c->d_model,
                      .c = logits,
                      .ldc = c->n_vocab,
                      .epilogue = ASP_EPILOGUE_BIAS,
                      .bias = asp_at_const(model->data, model->unembed_b),
                      .n_rows = n_rows,
                      .k_block = model->k_block.model};
}

asp_status asp_unembed(const asp_model *model, asp_real *logits, const asp_real *hidden, int64_t n_rows,
                       int64_t n_padded, const asp_context *context) {
    const asp_gemm g = describe_unembedding(model, logits, hidden, n_rows, n_padded);
    return asp_gemm_run(&g, context);
}

asp_status asp_unembed_by_row(const asp_model *model, asp_real *logits, const asp_real *hidden, int64_t n_rows,
                              int64_t n_padded, const asp_context *context) {
    asp_gemm g = describe_unembedding(model, logits, hidden, n_rows, n_padded);
    if (!g.k_block) {
        g.k_block = ASP_K_BLOCK;
        g.by_row = 1;
    }
    return asp_gemm_run(&g, context);
}
