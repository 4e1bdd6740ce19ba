/* tape.c: the buffers between a forward and its backward pass.  Linear in the number of tokens: attention
 * keeps q, k, v, z and the log-sum-exp of each row, never a T x T array. */
#include "internal.h"

void asp_tape_free(asp_tape *tape) {
    asp_arena_free(&tape->arena);
    tape->capacity = 0;
}

typedef struct {
    int64_t resid, mid, ln1, ln2, ln1_scale, ln2_scale, ln_final, ln_final_scale, qkv, z, lse, pre, post;
    int64_t d_resid, d_qkv, d_z, d_pre, d_ln, edge_sums, attention, hidden, dhidden, logits, row_loss, row_index, square_start;
    int64_t ln_partial;
} tape_layout;

static int64_t reserve(asp_arena *arena, int64_t a, int64_t b) {
    int64_t n;
    return asp_arena_reserve(arena, asp_multiply(a, b, &n) ? n : -1, sizeof(asp_real));
}

static tape_layout lay_out(asp_tape *tape, const asp_config *c, int64_t n, int64_t rows, int64_t n_sequences,
                           int64_t attention) {
    asp_arena *a = &tape->arena;
    const int64_t l = c->n_layer, e = c->d_model, width = c->n_head * c->d_head;
    tape_layout t;
    t.resid = reserve(a, (l + 1) * e, rows);
    t.mid = reserve(a, l * e, rows);
    t.ln1 = reserve(a, l * e, rows);
    t.ln2 = reserve(a, l * e, rows);
    t.ln_final = reserve(a, e, rows);
    t.ln1_scale = reserve(a, l, n);
    t.ln2_scale = reserve(a, l, n);
    t.ln_final_scale = reserve(a, 1, n);
    t.qkv = reserve(a, l * 3 * width, rows);
    t.z = reserve(a, l * width, rows);
    t.lse = reserve(a, l * c->n_head, n);
    t.pre = reserve(a, l * c->d_mlp, rows);
    t.post = reserve(a, l * c->d_mlp, rows);
    t.d_resid = reserve(a, e, rows);
    t.d_qkv = reserve(a, 3 * width, rows);
    t.d_z = reserve(a, width, rows);
    t.d_pre = reserve(a, c->d_mlp, rows);
    t.d_ln = reserve(a, e, rows);
    t.attention = reserve(a, attention, 1);
    t.hidden = reserve(a, e, tape->loss_rows);
    t.dhidden = reserve(a, e, tape->loss_rows);
    t.logits = reserve(a, c->n_vocab, tape->loss_rows);
    t.ln_partial = reserve(a, 2 * ASP_LN_CHUNKS, e);
    t.edge_sums = asp_arena_reserve(a, 2 * n_sequences * c->n_head, sizeof(double));
    t.row_loss = asp_arena_reserve(a, n, sizeof(double));
    t.row_index = asp_arena_reserve(a, n, sizeof(int64_t));
    t.square_start = asp_arena_reserve(a, n_sequences + 1, sizeof(int64_t));
    return t;
}

static void wire(asp_tape *tape, const asp_config *c, const asp_batch *batch, const tape_layout *t, int64_t n,
                 int64_t rows) {
    const int64_t e = c->d_model, width = c->n_head * c->d_head;
    char *base = tape->arena.base;
#define AT(offset) ((asp_real *)(void *)(base + (offset)))
    tape->acts = (asp_activations){
        .n_tokens = n, .n_rows = rows, .n_sequences = batch->n_sequences, .tokens = batch->tokens,
        .offsets = batch->offsets, .square_start = (int64_t *)(void *)(base + t->square_start),
        .resid = {AT(t->resid), rows * e}, .mid = {AT(t->mid), rows * e}, .ln1 = {AT(t->ln1), rows * e},
        .ln2 = {AT(t->ln2), rows * e}, .ln1_scale = {AT(t->ln1_scale), n}, .ln2_scale = {AT(t->ln2_scale), n},
        .qkv = {AT(t->qkv), rows * 3 * width}, .z = {AT(t->z), rows * width}, .lse = {AT(t->lse), c->n_head * n},
        .mlp_pre = {AT(t->pre), rows * c->d_mlp}, .mlp_post = {AT(t->post), rows * c->d_mlp},
        .ln_final = AT(t->ln_final), .ln_final_scale = AT(t->ln_final_scale)};
    tape->grads = (asp_activation_gradients){
        .resid = {AT(t->d_resid), 0}, .mid = {AT(t->d_resid), 0}, .qkv = {AT(t->d_qkv), 0}, .z = {AT(t->d_z), 0},
        .mlp_pre = {AT(t->d_pre), 0}, .ln = AT(t->d_ln), .edge_sums = (double *)(void *)(base + t->edge_sums)};
    tape->hidden = AT(t->hidden);
    tape->dhidden = AT(t->dhidden);
    tape->logits = AT(t->logits);
    tape->ln_partial = AT(t->ln_partial);
    tape->scratch.data = AT(t->attention);
#undef AT
    tape->row_loss = (double *)(void *)(base + t->row_loss);
    tape->row_index = (int64_t *)(void *)(base + t->row_index);
}

asp_status asp_tape_prepare(asp_tape *tape, const asp_model *model, const asp_batch *batch, int n_threads,
                            int64_t max_bytes, asp_error *err) {
    const asp_config *c = &model->config;
    const int64_t n = batch->offsets[batch->n_sequences], rows = asp_rows_needed(model, n, 0);
    int64_t longest = 0;
    for (int64_t s = 0; s < batch->n_sequences; s++)
        longest = asp_max(longest, batch->offsets[s + 1] - batch->offsets[s]);
    tape->loss_rows = asp_logit_rows_needed(model, asp_min(n, ASP_LOSS_CHUNK));
    tape->scratch.per_thread = asp_attention_scratch(c, longest, 1);
    char *base = tape->arena.base;
    tape->arena = (asp_arena){0};
    const tape_layout layout = lay_out(tape, c, n, rows, batch->n_sequences, tape->scratch.per_thread * n_threads);
    const int64_t needed = tape->arena.overflow ? INT64_MAX : tape->arena.bytes;
    tape->arena.base = base;
    if (needed > max_bytes)
        return asp_fail(err, ASP_NO_MEMORY, "forward and backward of %lld tokens need %.4g GB, above max_bytes=%lld; use smaller batches",
                        (long long)n, (double)needed / 1e9, (long long)max_bytes);
    if (needed > tape->capacity) {
        asp_release(base);
        tape->capacity = 0;
        if (!asp_arena_commit(&tape->arena, 0))
            return asp_fail(err, ASP_NO_MEMORY, "forward and backward of %lld tokens need %.3f GB, which could not be allocated; use smaller batches",
                            (long long)n, (double)needed / 1e9);
        tape->capacity = needed;
    }
    wire(tape, c, batch, &layout, n, rows);
    asp_squares_start((int64_t *)(void *)(tape->arena.base + layout.square_start), c, batch->offsets, batch->n_sequences);
    return ASP_OK;
}
