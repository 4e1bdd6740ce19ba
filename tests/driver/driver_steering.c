/* driver_steering.c: features that are changed in a run and while texts are generated; visitors and what is frozen
 * during generation; runs that stop. */
#include <math.h>
#include <string.h>

#include "driver.h"

enum { E = 24, V = 50, L = 2, F = 6, CHANGED = 3, NEW = 4, SAMPLES = 2, TEXTS = N_SEQUENCES * SAMPLES };

typedef struct {
    asp_real w_enc[F * E], b_enc[F], threshold[F], decoder[CHANGED * L * E], number[8];
    asp_steered_layer layers[L];
} coders;

static const int64_t changed_rows[CHANGED] = {4, 1, 3};

static asp_steering steering_of(coders *c, asp_transcoder_activation activation, int64_t n_texts) {
    static const int64_t at[] = {0, 0, 0, 1, 0, 0, 0, 2, 0, 1, 2, 0, 1, 0, 3, 1, 1, 1, 0, 0, 1, 2, 1, 2};
    static const int32_t kind[] = {ASP_STEER_SET, ASP_STEER_ADD, ASP_STEER_SCALE,
                                   ASP_STEER_SET, ASP_STEER_ADD, ASP_STEER_SCALE};
    fill(c->w_enc, F * E, 0.5, 31);
    fill(c->b_enc, F, 0.5, 32);
    fill(c->decoder, CHANGED * L * E, 0.5, 33);
    fill(c->number, 6, 1, 34);
    for (int i = 0; i < F; i++) c->threshold[i] = (asp_real)0.01;
    const asp_real *threshold = activation == ASP_TRANSCODER_JUMP_RELU ? c->threshold : NULL;
    for (int64_t l = 0; l < L; l++)
        c->layers[l] =
            (asp_steered_layer){CHANGED, {F, c->w_enc, c->b_enc, threshold}, changed_rows, L - l, c->decoder};
    return (
        asp_steering){.coder = {.activation = activation, .top_k = 2, .cross_layer = 1, .from_mid = activation == 0},
                      .layers = c->layers,
                      .n = 6,
                      .n_texts = n_texts,
                      .at = at,
                      .kind = kind,
                      .number = c->number};
}

/* Generates, and adds what there is to the digest. */
static asp_status write_texts(const fixture *f, asp_generation_options *options, const asp_context *context,
                              uint64_t *digest, asp_error *err) {
    int64_t n_new[TEXTS] = {0};
    int32_t tokens[TEXTS * NEW] = {0};
    double logprobs[TEXTS * NEW] = {0};
    asp_generated out = {n_new, tokens, logprobs, NULL};
    options->max_new_tokens = NEW;
    options->n_samples = SAMPLES;
    options->temperature = options->top_p = 1;
    options->max_bytes = INT64_MAX;
    const asp_status status =
        asp_generation_run(&out, f->gated, f->tokens, f->ragged, N_SEQUENCES, options, context, err);
    add_bytes(digest, tokens, sizeof tokens);
    add_bytes(digest, logprobs, sizeof logprobs);
    return status;
}

asp_status use_steering(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_status status = ASP_OK;
    for (int activation = 0; !status && activation < 3; activation++) {
        coders c;
        const asp_steering given = steering_of(&c, (asp_transcoder_activation)activation, 1);
        asp_visitor *visitor;
        asp_run *run = NULL;
        status = asp_steering_visitor(&visitor, &given, f->gated, err);
        const asp_run_options options = {.records = (uint64_t)1 << ASP_RESID,
                                         .logits = ASP_LOGITS_ALL,
                                         .max_bytes = INT64_MAX,
                                         .visitors = visitor,
                                         .n_visitors = 1};
        if (!status) status = asp_run_new(&run, f->gated, f->tokens, f->ragged, N_SEQUENCES, &options, context, err);
        if (!status) add_run(digest, run);
        asp_run_free(run);
        asp_steering_free(visitor);
    }
    return status;
}

asp_status use_steered_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    coders c;
    const asp_steering given = steering_of(&c, ASP_TRANSCODER_TOPK, SAMPLES);
    asp_visitor *visitor;
    asp_status status = asp_steering_visitor(&visitor, &given, f->gated, err);
    asp_generation_options options = {.seed = 2, .visitors = visitor, .n_visitors = 1};
    if (!status) status = write_texts(f, &options, context, digest, err);
    asp_steering_free(visitor);
    return status;
}

asp_status use_wrong_steering(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)context;
    (void)digest;
    coders c;
    const asp_steering good = steering_of(&c, ASP_TRANSCODER_RELU, 1);
    const int64_t layer[] = {L, 0, 0, 0}, feature[] = {0, 0, 0, CHANGED}, twice[] = {0, 0, 0, 1, 0, 0, 0, 1};
    const int32_t kind[] = {3};
    asp_steering wrong[6];
    for (int i = 0; i < 6; i++) wrong[i] = good;
    wrong[0].at = layer, wrong[0].n = 1;
    wrong[1].at = feature, wrong[1].n = 1;
    wrong[2].at = twice, wrong[2].n = 2;
    wrong[3].kind = kind, wrong[3].n = 1;
    wrong[4].n_texts = 0;
    asp_steered_layer layers[L] = {c.layers[0], c.layers[1]};
    layers[1].n_writes = L;
    wrong[5].layers = layers;
    asp_visitor *visitor;
    for (int i = 0; i < 6; i++)
        if (asp_steering_visitor(&visitor, &wrong[i], f->gated, err) != ASP_BAD_ARGUMENT || visitor)
            return asp_fail(err, ASP_BAD_STATE, "wrong steering %d was not refused", i);
    return ASP_OK;
}

/* Every place, in every pass; what is seen is scaled, or left. */
static asp_status scale_rows(void *state, const asp_visit *visit, const asp_context *context) {
    (void)context;
    const asp_real factor = *(const asp_real *)state;
    for (int64_t b = 0; b < visit->n_sequences; b++) {
        const int64_t t = visit->offsets[b + 1] - visit->offsets[b], keys = asp_visit_first(visit, b) + t;
        if (t == 0) continue;
        for (int64_t r = visit->offsets[b]; visit->rows && r < visit->offsets[b + 1]; r++)
            for (int64_t j = 0; j < visit->width; j++) visit->rows[r * visit->stride + j] *= factor;
        for (int64_t i = 0; visit->squares && visit->place == ASP_AT_PATTERN && i < t * keys; i++)
            visit->squares[asp_visit_square(visit, b) + i] *= factor;
        if (visit->gates && factor != 1) visit->gates[asp_visit_square(visit, b) + t * keys - 1] ^= 1;
    }
    return ASP_OK;
}

asp_status use_visited_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    uint64_t plain = 1, same = 1;
    asp_generation_options none = {.seed = 2};
    asp_status status = write_texts(f, &none, context, &plain, err);
    for (int kind = 0; !status && kind < 2; kind++) {
        asp_real factor = kind ? (asp_real)1.25 : 1;
        uint32_t every[L + 1];
        for (int l = 0; l <= L; l++) every[l] = ((uint32_t)1 << ASP_N_PLACES) - 1;
        const asp_visitor visitor = {every, scale_rows, &factor};
        asp_generation_options options = {.seed = 2, .visitors = &visitor, .n_visitors = 1};
        status = write_texts(f, &options, context, kind ? digest : &same, err);
    }
    if (!status && plain != same) return asp_fail(err, ASP_BAD_STATE, "visitors that only look changed a text");
    return status;
}

asp_status use_frozen_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_run_options all = {.records = ((uint64_t)1 << ASP_N_RECORDS) - 1, .max_bytes = INT64_MAX};
    asp_run *clean = NULL;
    asp_visitor *visitor = NULL;
    asp_status status = asp_run_new(&clean, f->dense, f->tokens, f->ragged, N_SEQUENCES, &all, context, err);
    if (status) return status;
    const asp_frozen whole = {{clean, 0}, {clean, 0}, {clean, 0}};
    status = asp_frozen_visitor(&visitor, &whole, asp_model_config(f->gated), f->ragged, N_SEQUENCES, SAMPLES, err);
    asp_generation_options options = {.seed = 2, .visitors = visitor, .n_visitors = 1};
    if (!status) status = write_texts(f, &options, context, digest, err);
    asp_frozen_free(visitor);
    asp_run_free(clean);
    return status;
}

asp_status use_stopped_run(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const uint64_t after = (uint64_t)1 << ASP_LN_FINAL_SCALE | (uint64_t)1 << ASP_LN_FINAL_NORMALIZED |
                           (uint64_t)1 << ASP_LOGITS | (uint64_t)1 << ASP_TOKEN_LOSS;
    const uint64_t before = (((uint64_t)1 << ASP_N_RECORDS) - 1) & ~after;
    asp_run *run = NULL;
    asp_run_options options = {.records = before, .edges = 1, .max_bytes = INT64_MAX, .stop_at = 1};
    asp_status status = asp_run_new(&run, f->gated, f->tokens, f->ragged, N_SEQUENCES, &options, context, err);
    if (status) return status;
    add_run(digest, run);
    const int64_t layers = asp_run_array(run, ASP_PATTERN).dims[0];
    const int good = asp_run_stop_at(run) == 1 && layers != 0 && asp_run_array(run, ASP_QKV).dims[0] == 1;
    asp_run_free(run);
    options.records = after;
    const asp_status late = asp_run_new(&run, f->gated, f->tokens, f->ragged, N_SEQUENCES, &options, context, err);
    options = (asp_run_options){.records = 1, .max_bytes = INT64_MAX, .stop_at = L + 1};
    status = asp_run_new(&run, f->gated, f->tokens, f->ragged, N_SEQUENCES, &options, context, err);
    return good && late == ASP_BAD_ARGUMENT && status == ASP_BAD_ARGUMENT ? ASP_OK : ASP_BAD_STATE;
}
