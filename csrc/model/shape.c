/* shape.c: sizes of batches: what they may be, and how many rows and entries they need. */
#include "model/model.h"

asp_status asp_check_batch(const asp_config *config, const int32_t *tokens, const int64_t *offsets,
                           int64_t n_sequences, asp_error *err) {
    if (n_sequences < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "there is no sequence to run");
    if (offsets[n_sequences] > INT32_MAX)
        return asp_fail(err, ASP_BAD_ARGUMENT, "a batch has at most %d tokens, got %lld", INT32_MAX, (long long)offsets[n_sequences]);
    for (int64_t s = 0; s < n_sequences; s++) {
        const int64_t t = offsets[s + 1] - offsets[s];
        if (t < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "sequence %lld has no tokens", (long long)s);
        if (t > config->n_ctx)
            return asp_fail(err, ASP_BAD_ARGUMENT, "sequence %lld has %lld tokens, this model takes at most %lld (n_ctx)",
                            (long long)s, (long long)t, (long long)config->n_ctx);
        for (int64_t i = offsets[s]; i < offsets[s + 1]; i++)
            if (tokens[i] < 0 || tokens[i] >= config->n_vocab)
                return asp_fail(err, ASP_BAD_INDEX, "token id %lld at position %lld of sequence %lld is out of range 0..%lld",
                                (long long)tokens[i], (long long)(i - offsets[s]), (long long)s,
                                (long long)config->n_vocab - 1);
    }
    return ASP_OK;
}

int64_t asp_rows_needed(const asp_model *m, int64_t n_tokens, int with_result) {
    const asp_config *c = &m->config;
    const int64_t width = c->n_head * c->d_head;
    int64_t rows = n_tokens;
    if (!m->k_block.model)
        rows = asp_max(rows, asp_max(asp_gemm_min_rows(3 * width, c->d_model), asp_gemm_min_rows(c->d_mlp, c->d_model)));
    if (!m->k_block.heads) rows = asp_max(rows, asp_gemm_min_rows(c->d_model, width));
    if (!m->k_block.mlp) rows = asp_max(rows, asp_gemm_min_rows(c->d_model, c->d_mlp));
    if (with_result && !m->k_block.head) rows = asp_max(rows, asp_gemm_min_rows(c->d_model, c->d_head));
    return asp_round_up(rows, 4); /* skinny products read rows in fours */
}

int64_t asp_logit_rows_needed(const asp_model *m, int64_t n_rows) {
    const int64_t least = m->k_block.model ? 1 : asp_gemm_min_rows(m->config.n_vocab, m->config.d_model);
    return asp_round_up(asp_max(n_rows, least), 4);
}

/* before + the elements of a (L,H,T,T) block; -1 if that passes INT64_MAX or before is -1. */
static int64_t after_square(const asp_config *config, int64_t before, int64_t t) {
    int64_t square, end;
    if (before < 0 || !asp_multiply(t, t, &square) || !asp_multiply(square, config->n_layer * config->n_head, &square)) return -1;
    return __builtin_add_overflow(before, square, &end) ? -1 : end;
}

int64_t asp_squares_size(const asp_config *config, const int64_t *offsets, int64_t n_sequences) {
    int64_t size = 0;
    for (int64_t s = 0; s < n_sequences; s++) size = after_square(config, size, offsets[s + 1] - offsets[s]);
    return size;
}

void asp_squares_start(int64_t *start, const asp_config *config, const int64_t *offsets, int64_t n_sequences) {
    start[0] = 0;
    for (int64_t s = 0; s < n_sequences; s++) start[s + 1] = after_square(config, start[s], offsets[s + 1] - offsets[s]);
}

int64_t asp_shape_longest(const int64_t *offsets, int64_t n_sequences) {
    int64_t longest = 0;
    for (int64_t b = 0; b < n_sequences; b++) longest = asp_max(longest, offsets[b + 1] - offsets[b]);
    return longest;
}
