/* driver_features.c: contexts of features, first weights of transcoders, losses of tokens. */
#include <math.h>
#include <string.h>

#include "driver.h"

enum { E = 24, V = 50, L = 2, F = 6, TOP = 3, WIDTH = 4, ROWS = 40 };

/* ---- contexts ------------------------------------------------------------------------------------ */

enum { ENTRIES = N * 2 };

/* Two features active at every token, in layer 1; equal activations now and then. */
typedef struct {
    int64_t start[L + 1];
    int32_t layer[ENTRIES], position[ENTRIES], feature[ENTRIES];
    asp_real activation[ENTRIES];
} entries;

static asp_feature_list list_of(entries *e) {
    memset(e, 0, sizeof *e);
    for (int i = 0; i < ENTRIES; i++) {
        e->layer[i] = 1;
        e->position[i] = i / 2;
        e->feature[i] = i % 2 * 3 + i / 2 % 3;
        e->activation[i] = (asp_real)(1 + i * 7 % 5);
    }
    e->start[L] = ENTRIES;
    return (asp_feature_list){ENTRIES, e->start, e->layer, e->position, e->feature, e->activation};
}

static void add_table(uint64_t *digest, const asp_contexts *contexts) {
    const asp_contexts_table t = asp_contexts_read(contexts);
    const int64_t all = t.n * t.top;
    add_bytes(digest, t.prompt, all * (int64_t)sizeof *t.prompt);
    add_bytes(digest, t.position, all * (int64_t)sizeof *t.position);
    add_bytes(digest, t.activation, all * (int64_t)sizeof *t.activation);
    add_bytes(digest, t.tokens, all * t.width * (int64_t)sizeof *t.tokens);
    add_bytes(digest, t.activations, all * t.width * (int64_t)sizeof *t.activations);
    add_bytes(digest, t.count, t.n * (int64_t)sizeof *t.count);
}

/* Falling activations, at most one context a prompt, the tokens of the place. */
static int is_in_order(const fixture *f, const asp_contexts *contexts) {
    const asp_contexts_table t = asp_contexts_read(contexts);
    for (int64_t i = 0; i < t.n * t.top; i++) {
        if (t.prompt[i] < 0) continue;
        if (i % t.top && t.activation[i] > t.activation[i - 1]) return 0;
        for (int64_t j = i / t.top * t.top; j < i; j++)
            if (t.prompt[j] == t.prompt[i]) return 0;
        const int64_t row = f->ragged[t.prompt[i] % N_SEQUENCES] + t.position[i];
        if (t.tokens[i * t.width + 2] != f->tokens[row] || t.activations[i * t.width + 2] != t.activation[i]) return 0;
    }
    return 1;
}

static asp_status use_table(const fixture *f, const asp_contexts_options *options, const asp_context *context,
                            uint64_t *digest, asp_error *err) {
    entries e;
    asp_feature_list active = list_of(&e);
    asp_contexts *contexts;
    asp_status status = asp_contexts_new(&contexts, options, err);
    for (int64_t batch = 0; !status && batch < 3; batch++) {
        const asp_contexts_prompts prompts = {f->tokens, f->ragged, N_SEQUENCES, batch * N_SEQUENCES};
        status = asp_contexts_add(contexts, &active, 1, &prompts, context, err);
        if (!status) status = asp_contexts_add(contexts, &active, 0, &prompts, context, err); /* nothing is there */
    }
    if (!status && !is_in_order(f, contexts)) status = ASP_BAD_STATE;
    if (!status) add_table(digest, contexts);
    const asp_contexts_prompts prompts = {f->tokens, f->ragged, N_SEQUENCES, 0};
    e.feature[3] = F;
    if (!status && asp_contexts_add(contexts, &active, 1, &prompts, context, err) != ASP_BAD_INDEX)
        status = ASP_BAD_STATE;
    e.feature[3] = 0;
    if (!status && asp_contexts_add(contexts, &active, 1, &prompts, context, err) != ASP_BAD_ARGUMENT)
        status = ASP_BAD_STATE;
    asp_contexts_free(contexts);
    return status;
}

static asp_status use_promoted(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_real values[F * 2 * E];
    double rows[F * 2 * E];
    int32_t tokens[2 * F * V];
    float effects[2 * F * V];
    fill(values, F * 2 * E, 1, 81);
    for (int i = 0; i < F * 2 * E; i++) rows[i] = (double)values[i];
    for (int64_t k = 1; k <= V; k += 7) {
        const asp_model *model = k % 2 ? f->gated : f->dense;
        const asp_status status = asp_contexts_promoted(tokens, effects, k, model, rows, F, 2, context, err);
        if (status) return status;
        add_bytes(digest, tokens, 2 * F * k * (int64_t)sizeof *tokens);
        add_bytes(digest, effects, 2 * F * k * (int64_t)sizeof *effects);
        for (int64_t i = 1; i < k; i++)
            if (effects[i] > effects[i - 1] || effects[F * k + i] < effects[F * k + i - 1]) return ASP_BAD_STATE;
    }
    return ASP_OK;
}

asp_status use_contexts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    static const int64_t wanted[] = {0, 2, 5};
    const asp_contexts_options all = {.n_features = F, .top = TOP, .before = 2, .after = 1},
                               few = {F, wanted, 3, 1, 2, 0}, many = {F, NULL, 0, 100, 2, 30}, none = {.top = 1};
    asp_status status = use_table(f, &all, context, digest, err);
    if (!status) status = use_table(f, &few, context, digest, err);
    if (!status) status = use_table(f, &many, context, digest, err);
    asp_contexts *contexts = NULL;
    if (!status) status = asp_contexts_new(&contexts, &none, err);
    asp_contexts_free(contexts);
    const asp_contexts_options wrong[] = {{F, NULL, 0, 0, 0, 0},
                                          {F, wanted, 3, 1, -1, 0},
                                          {4, wanted, 3, 1, 0, 0},
                                          {-1, NULL, 0, 1, 0, 0}};
    for (int i = 0; !status && i < 4; i++)
        if (asp_contexts_new(&contexts, &wrong[i], err) == ASP_OK) status = ASP_BAD_STATE;
    return status ? status : use_promoted(f, context, digest, err);
}

/* ---- first weights --------------------------------------------------------------------------------- */

typedef struct {
    double w_enc[F * E], b_enc[F], w_dec[F * E], b_dec[E], log_threshold[F];
} weights;

static asp_first_weights_out out_of(weights *w) {
    memset(w, 0, sizeof *w);
    return (asp_first_weights_out){w->w_enc, w->b_enc, w->w_dec, w->b_dec, w->log_threshold};
}

asp_status use_first_weights(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)f;
    asp_real x[ROWS * E], y[ROWS * E], drawn[2 * F * E];
    double draws[F], random[2 * F * E], scale, threshold;
    int64_t chosen[F], n_chosen;
    weights first, second;
    fill(x, ROWS * E, 1, 91);
    fill(y, ROWS * E, 2, 92);
    fill(drawn, 2 * F * E, 1, 93);
    for (int i = 0; i < 2 * F * E; i++) random[i] = (double)drawn[i];
    for (int i = 0; i < F; i++) draws[i] = (i + 0.5) / F;
    asp_status status = asp_first_weights_scale(&scale, y, ROWS, E, context, err);
    if (status) return status;
    for (int64_t n = ROWS; n > 0; n -= ROWS - 3) { /* 40 rows, and 3, which are fewer than features */
        const asp_first_weights_text text = {n, E, F, x, y, scale, draws, random};
        const asp_first_weights_out out = out_of(&first), again = out_of(&second);
        status = asp_first_weights_from_text(&out, chosen, &n_chosen, &text, context, err);
        if (!status)
            status = asp_first_weights_threshold(&threshold, first.w_enc, first.b_enc, F, x, n, E, 2, context, err);
        const double scales[] = {0.5};
        const asp_first_weights_set set = {E, F, 1, first.w_enc, first.b_enc, first.w_dec, first.b_dec, draws, scales};
        if (!status) status = asp_first_weights_from_set(&again, &set, context, err);
        if (status) return status;
        if (n_chosen < 1 || n_chosen > F || (n < F && n_chosen > n) || !(threshold >= 1e-3)) return ASP_BAD_STATE;
        add_bytes(digest, &first, sizeof first);
        add_bytes(digest, &second, sizeof second);
        add_bytes(digest, chosen, n_chosen * (int64_t)sizeof *chosen);
        add_bytes(digest, &threshold, sizeof threshold);
    }
    const asp_first_weights_out out = out_of(&first);
    const asp_first_weights_text none = {0, E, F, x, y, 1, draws, random}, flat = {ROWS, E, F, x, y, 0, draws, random};
    const int refused = asp_first_weights_from_text(&out, chosen, &n_chosen, &none, context, err) == ASP_BAD_ARGUMENT &&
                        asp_first_weights_from_text(&out, chosen, &n_chosen, &flat, context, err) == ASP_BAD_ARGUMENT &&
                        asp_first_weights_scale(&scale, y, 0, E, context, err) == ASP_BAD_ARGUMENT;
    return refused ? ASP_OK : ASP_BAD_STATE;
}

/* ---- losses ---------------------------------------------------------------------------------------- */

asp_status use_token_losses(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    double losses[N];
    const asp_array logits = asp_run_array(f->clean, ASP_LOGITS);
    asp_status status = asp_loss_tokens(losses, logits.data, f->targets, N, V, context, err);
    if (status) return status;
    add_bytes(digest, losses, sizeof losses);
    for (int i = 0; i < N; i++)
        if (!(losses[i] > 0) || !isfinite(losses[i])) return ASP_BAD_STATE;
    const int32_t wrong[] = {V};
    return asp_loss_tokens(losses, logits.data, wrong, 1, V, context, err) == ASP_BAD_INDEX ? ASP_OK : ASP_BAD_STATE;
}
