/* unembed.c: the LM head. */
#include "model/model.h"

/* logits (n_padded,V) = hidden (n_padded,E) W_U^T, with the bias on the first n_rows rows. */
asp_status asp_unembed(const asp_model *model, asp_real *logits, const asp_real *hidden, int64_t n_rows,
                       int64_t n_padded, const asp_context *context) {
    const asp_config *c = &model->config;
    asp_gemm g = {.trans_b = 1,
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
    return asp_gemm_run(&g, context);
}
