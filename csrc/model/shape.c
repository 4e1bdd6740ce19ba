/* shape.c: sizes of batches: what they may be, and how many rows and entries they need. */
#include "model/model.h"

asp_status asp_shape_check_batch(const asp_config *config, const int32_t *tokens, const int64_t *offsets,
                                 int64_t n_sequences, asp_error *err) {
    if (n_sequences < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "there is no sequence to run");
    if (offsets[n_sequences] > INT32_MAX)
        return asp_fail(err, ASP_BAD_ARGUMENT, "a batch has at most %d tokens, got %lld", INT32_MAX,
                        (long long)offsets[n_sequences]);
    for (int64_t s = 0; s < n_sequences; s++) {
        const int64_t t = offsets[s + 1] - offsets[s];
        if (t < 1) return asp_fail(err, ASP_BAD_ARGUMENT, "sequence %lld has no tokens", (long long)s);
        if (t > config->n_ctx)
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "sequence %lld has %lld tokens, this model takes at most %lld (n_ctx)", (long long)s,
                            (long long)t, (long long)config->n_ctx);
        for (int64_t i = offsets[s]; i < offsets[s + 1]; i++)
            if (tokens[i] < 0 || tokens[i] >= config->n_vocab)
                return asp_fail(err, ASP_BAD_INDEX,
                                "token id %lld at position %lld of sequence %lld is out of range 0..%lld",
                                (long long)tokens[i], (long long)(i - offsets[s]), (long long)s,
                                (long long)config->n_vocab - 1);
    }
    return ASP_OK;
}

int64_t asp_shape_rows(const asp_model *m, int64_t n_tokens, int with_result) {
    const asp_config *c = &m->config;
    const int64_t width = c->n_head * c->d_head;
    int64_t rows = n_tokens;
    if (!m->k_block.model)
        rows =
            asp_max(rows, asp_max(asp_gemm_min_rows(3 * width, c->d_model), asp_gemm_min_rows(c->d_mlp, c->d_model)));
    if (!m->k_block.heads) rows = asp_max(rows, asp_gemm_min_rows(c->d_model, width));
    if (!m->k_block.mlp) rows = asp_max(rows, asp_gemm_min_rows(c->d_model, c->d_mlp));
    if (with_result && !m->k_block.head) rows = asp_max(rows, asp_gemm_min_rows(c->d_model, c->d_head));
    return asp_round_up(rows, 4); /* skinny products read rows in fours */
}

int64_t asp_shape_logit_rows(const asp_model *m, int64_t n_rows) {
    const int64_t least = m->k_block.model ? 1 : asp_gemm_min_rows(m->config.n_vocab, m->config.d_model);
    return asp_round_up(asp_max(n_rows, least), 4);
}

/* before + the elements of a (L,H,T,T) block; -1 if that passes INT64_MAX or before is -1. */
static int64_t after_square(const asp_config *config, int64_t before, int64_t t) {
    int64_t square, end;
    if (before < 0 || !asp_multiply(t, t, &square) || !asp_multiply(square, config->n_layer * config->n_head, &square))
        return -1;
    return __builtin_add_overflow(before, square, &end) ? -1 : end;
}

int64_t asp_shape_squares_size(const asp_config *config, const int64_t *offsets, int64_t n_sequences) {
    int64_t size = 0;
    for (int64_t s = 0; s < n_sequences; s++) size = after_square(config, size, offsets[s + 1] - offsets[s]);
    return size;
}

void asp_shape_squares_start(int64_t *start, const asp_config *config, const int64_t *offsets, int64_t n_sequences) {
    start[0] = 0;
    for (int64_t s = 0; s < n_sequences; s++)
        start[s + 1] = after_square(config, start[s], offsets[s + 1] - offsets[s]);
}

int64_t asp_shape_longest(const int64_t *offsets, int64_t n_sequences) {
    int64_t longest = 0;
    for (int64_t b = 0; b < n_sequences; b++) longest = asp_max(longest, offsets[b + 1] - offsets[b]);
    return longest;
}

/* ---- arrays of a run ---- */

/* (layers, rows, inner...) where `rows` is how many are reserved and `shown` how many are visible. */
static asp_record_shape rows_shape(int64_t layers, int64_t shown, int64_t rows, int n_inner, const int64_t *inner) {
    asp_record_shape s = {.items = -1};
    int64_t row = 1, total = 0;
    for (int i = 0; i < n_inner; i++) row *= inner[i];
    if (!asp_multiply(rows, row, &total) || !asp_multiply(total, layers ? layers : 1, &s.items)) return s;
    int d = 0;
    if (layers) {
        s.array.dims[d] = layers;
        s.array.strides[d++] = total;
        s.layer_stride = total;
    }
    s.array.dims[d] = shown;
    s.array.strides[d++] = row;
    int64_t stride = row;
    for (int i = 0; i < n_inner; i++) {
        stride /= inner[i];
        s.array.dims[d] = inner[i];
        s.array.strides[d++] = stride;
    }
    s.array.n_dims = d;
    return s;
}

asp_record_shape asp_shape_of_record(const asp_config *c, asp_record record, const int64_t *offsets,
                                     int64_t n_sequences, int64_t n_rows) {
    const int64_t n = offsets[n_sequences], l = c->n_layer, h = c->n_head;
    const int64_t e[] = {c->d_model}, m[] = {c->d_mlp}, v[] = {c->n_vocab}, hd[] = {h, c->d_head};
    const int64_t qkv[] = {3, h, c->d_head}, he[] = {h, c->d_model};
    asp_record_shape s = {0};
    switch (record) {
    case ASP_EMBED:
    case ASP_POS_EMBED:
    case ASP_LN_FINAL_NORMALIZED: return rows_shape(0, n, n_rows, 1, e);
    case ASP_RESID: return rows_shape(l + 1, n, n_rows, 1, e);
    case ASP_RESID_MID:
    case ASP_LN1_NORMALIZED:
    case ASP_LN2_NORMALIZED:
    case ASP_ATTN_OUT:
    case ASP_MLP_OUT: return rows_shape(l, n, n_rows, 1, e);
    case ASP_LN1_SCALE:
    case ASP_LN2_SCALE: return rows_shape(l, n, n, 0, NULL);
    case ASP_LN_FINAL_SCALE:
    case ASP_TOKEN_LOSS: return rows_shape(0, n, n, 0, NULL);
    case ASP_QKV: return rows_shape(l, n, n_rows, 3, qkv);
    case ASP_Z: return rows_shape(l, n, n_rows, 2, hd);
    case ASP_RESULT: return rows_shape(l, n, n_rows, 2, he);
    case ASP_MLP_PRE:
    case ASP_MLP_POST: return rows_shape(l, n, n_rows, 1, m);
    case ASP_LOGITS: return rows_shape(0, n, n_rows, 1, v);
    case ASP_LSE: {
        const int64_t inner[] = {n};
        return rows_shape(l, h, h, 1, inner);
    }
    case ASP_SCORES:
    case ASP_PATTERN:
    case ASP_GATE: {
        const int64_t total = asp_shape_squares_size(c, offsets, n_sequences);
        s = rows_shape(0, total, total, 0, NULL);
        s.array.is_byte = record == ASP_GATE;
        return s;
    }
    case ASP_N_RECORDS: break;
    }
    return s;
}
