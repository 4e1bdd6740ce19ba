/* tape.c: the buffers between a forward and its backward pass.  Linear in the number of tokens: attention
 * keeps q, k, v, z and the log-sum-exp of each row, never a T x T array. */
#include <string.h>

#include "model/model.h"

void asp_tape_free(asp_tape *tape) {
    asp_arena_free(&tape->arena);
    tape->capacity = 0;
}

enum { PARTS = 28 };

/* The arrays of a tape: the one list of them. */
static int list_parts(asp_arena_part parts[PARTS], asp_tape *tape, const asp_config *c, int n_threads) {
    asp_activations *a = &tape->acts;
    asp_activation_gradients *g = &tape->grads;
    const int64_t n = a->n_tokens, rows = a->n_rows, l = c->n_layer, e = c->d_model, width = c->n_head * c->d_head;
    const asp_arena_part list[PARTS] = {ASP_PART(a->resid.data, (l + 1) * e, rows),
                                        ASP_PART(a->mid.data, l * e, rows),
                                        ASP_PART(a->ln1.data, l * e, rows),
                                        ASP_PART(a->ln2.data, l * e, rows),
                                        ASP_PART(a->ln_final, e, rows),
                                        ASP_PART(a->ln1_scale.data, l, n),
                                        ASP_PART(a->ln2_scale.data, l, n),
                                        ASP_PART(a->ln_final_scale, 1, n),
                                        ASP_PART(a->qkv.data, l * 3 * width, rows),
                                        ASP_PART(a->z.data, l * width, rows),
                                        ASP_PART(a->lse.data, l * c->n_head, n),
                                        ASP_PART(a->mlp_pre.data, l * c->d_mlp, rows),
                                        ASP_PART(a->mlp_post.data, l * c->d_mlp, rows),
                                        ASP_PART(g->resid.data, e, rows),
                                        ASP_PART(g->qkv.data, 3 * width, rows),
                                        ASP_PART(g->z.data, width, rows),
                                        ASP_PART(g->mlp_pre.data, c->d_mlp, rows),
                                        ASP_PART(g->ln, e, rows),
                                        ASP_PART(g->out, tape->drops_outputs ? e : 0, rows),
                                        ASP_PART(tape->scratch.data, tape->scratch.per_thread, n_threads),
                                        ASP_PART(tape->hidden, e, tape->loss_rows),
                                        ASP_PART(tape->dhidden, e, tape->loss_rows),
                                        ASP_PART(tape->logits, c->n_vocab, tape->loss_rows),
                                        ASP_PART(tape->ln_partial, (int64_t)2 * ASP_LN_CHUNKS, e),
                                        ASP_PART(g->edge_sums, ASP_N_ENTRY_KINDS * a->n_sequences, c->n_head),
                                        ASP_PART(tape->row_loss, n, 1),
                                        ASP_PART(tape->row_index, n, 1),
                                        ASP_PART(a->square_start, a->n_sequences + 1, 1)};
    memcpy(parts, list, sizeof list);
    return PARTS;
}

/* Sizes and strides of this batch; slots of gradients are one buffer for all layers. */
static void describe_batch(asp_tape *tape, const asp_model *model, const asp_batch *batch) {
    const asp_config *c = &model->config;
    const int64_t n = batch->offsets[batch->n_sequences], rows = asp_shape_rows(model, n, 0);
    const int64_t e = c->d_model, width = c->n_head * c->d_head;
    tape->acts = (asp_activations){.n_tokens = n,
                                   .n_rows = rows,
                                   .n_sequences = batch->n_sequences,
                                   .tokens = batch->tokens,
                                   .offsets = batch->offsets,
                                   .resid.stride = rows * e,
                                   .mid.stride = rows * e,
                                   .ln1.stride = rows * e,
                                   .ln2.stride = rows * e,
                                   .ln1_scale.stride = n,
                                   .ln2_scale.stride = n,
                                   .qkv.stride = rows * 3 * width,
                                   .z.stride = rows * width,
                                   .lse.stride = c->n_head * n,
                                   .mlp_pre.stride = rows * c->d_mlp,
                                   .mlp_post.stride = rows * c->d_mlp};
    tape->grads = (asp_activation_gradients){0};
    tape->loss_rows = asp_shape_logit_rows(model, asp_min(n, ASP_LOSS_CHUNK));
    tape->scratch.per_thread = asp_attention_scratch(c, asp_shape_longest(batch->offsets, batch->n_sequences), 1);
}

int64_t asp_tape_needed(asp_tape *tape, const asp_model *model, const asp_batch *batch, int n_threads) {
    asp_arena_part parts[PARTS];
    describe_batch(tape, model, batch);
    asp_arena arena = {0};
    return asp_arena_lay_out(&arena, parts, list_parts(parts, tape, &model->config, n_threads));
}

asp_status asp_tape_prepare(asp_tape *tape, const asp_model *model, const asp_batch *batch, int n_threads,
                            int64_t max_bytes, asp_error *err) {
    asp_arena_part parts[PARTS];
    describe_batch(tape, model, batch);
    const long long n = (long long)tape->acts.n_tokens;
    const int n_parts = list_parts(parts, tape, &model->config, n_threads);
    char *base = tape->arena.base;
    tape->arena = (asp_arena){0};
    const int64_t needed = asp_arena_lay_out(&tape->arena, parts, n_parts);
    tape->arena.base = base;
    if (needed > max_bytes)
        return asp_fail(err, ASP_NO_MEMORY,
                        "forward and backward of %lld tokens need %s, above max_bytes=%lld; use smaller batches", n,
                        asp_fail_size((char[32]){0}, (double)needed), (long long)max_bytes);
    if (needed > tape->capacity) {
        asp_release(base);
        tape->capacity = 0;
        if (!asp_arena_commit(&tape->arena, 0))
            return asp_fail(
                err, ASP_NO_MEMORY,
                "forward and backward of %lld tokens need %s, which could not be allocated; use smaller batches", n,
                asp_fail_size((char[32]){0}, (double)needed));
        tape->capacity = needed;
    }
    asp_arena_wire(&tape->arena, parts, n_parts);
    tape->grads.mid = tape->grads.resid;
    asp_shape_squares_start((int64_t *)(uintptr_t)tape->acts.square_start, &model->config, batch->offsets,
                            batch->n_sequences);
    return ASP_OK;
}
