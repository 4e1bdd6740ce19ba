/* driver_lens.c: logit lens, direct attribution, and heads compared by pattern and by weights. */
#include "driver.h"

enum { L = 2, H = 3, E = 24, M = 40, V = 50, ROWS = 4, TOP = 3, ASKED = 2, POINTS = 5 };

static const int64_t rows[ROWS] = {0, 7, 12, N - 1};
static const int32_t right[ROWS] = {1, 2, 3, V - 1}, wrong[ROWS] = {0, 2, 9, 4};
static const int32_t asked[ROWS * ASKED] = {0, 1, 2, 3, 4, 5, 6, V - 1};

typedef struct {
    int32_t token[ROWS * TOP];
    double logit[ROWS * TOP], probability[ROWS * TOP], asked_logit[ROWS * ASKED], asked_probability[ROWS * ASKED];
    int64_t place[ROWS * ASKED];
} readout;

static asp_lens_readout readout_into(readout *r) {
    return (asp_lens_readout){
        TOP, ASKED, r->token, r->logit, r->probability, asked, r->asked_logit, r->asked_probability, r->place};
}

asp_status use_lens(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    readout r;
    const asp_lens_readout out = readout_into(&r);
    for (int64_t point = 0; point < POINTS; point++) {
        const int64_t points[ROWS] = {point, point, 4 - point, point};
        const asp_status status =
            asp_lens_logits(&out, f->gated, f->clean, ROWS, points, rows, (int)(point % 2), context, err);
        if (status) return status;
        add_bytes(digest, &r, sizeof r);
    }
    const asp_array logits = asp_run_array(f->clean, ASP_LOGITS);
    const asp_status status = asp_lens_read(&out, logits.data, ROWS, V, context, err);
    add_bytes(digest, &r, sizeof r);
    return status;
}

asp_status use_attribution_to_parts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    double of_call[5][ROWS], heads[ROWS * L * H], layers[4][ROWS * L], keys[ROWS * T], neurons[ROWS * L * M];
    const asp_lens_parts parts = {of_call[0], of_call[1], of_call[2], of_call[3], of_call[4], heads,
                                  layers[0],  layers[1],  layers[2],  keys,       neurons,    layers[3]};
    for (int both = 0; both < 2; both++) {
        const asp_lens_targets targets = {ROWS, rows, right, both ? wrong : NULL};
        const asp_status status = asp_lens_attribute(&parts, f->gated, f->clean, &targets, context, err);
        if (status) return status;
        add_bytes(digest, of_call, sizeof of_call);
        add_bytes(digest, heads, sizeof heads);
        add_bytes(digest, layers, sizeof layers);
        add_bytes(digest, keys, sizeof keys);
        add_bytes(digest, neurons, sizeof neurons);
    }
    return ASP_OK;
}

asp_status use_stacks(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_real x[2 * ROWS * E], normalized[2 * ROWS * E], scale[ROWS];
    double added[2 * ROWS];
    const asp_lens_targets targets = {ROWS, NULL, right, wrong};
    fill(x, 2 * ROWS * E, 1, 21);
    for (int i = 0; i < ROWS; i++) scale[i] = (asp_real)(i + 1);
    asp_status status = asp_lens_project(added, f->gated, x, 2, scale, &targets, context, err);
    if (!status) status = asp_lens_normalize(normalized, x, 2, ROWS, E, scale, 1e-5, context);
    if (!status) add_reals(digest, normalized, 2 * ROWS * E);
    if (!status) status = asp_lens_normalize(normalized, x, 2, ROWS, E, NULL, 1e-5, context);
    if (!status) add_reals(digest, normalized, 2 * ROWS * E);
    if (!status) add_bytes(digest, added, sizeof added);
    return status;
}

asp_status use_detectors(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    double patterns[2 * N_SEQUENCES * T * T], scores[2 * N_SEQUENCES * L * H];
    for (int i = 0; i < 2 * N_SEQUENCES * T * T; i++) patterns[i] = i % T <= i / T % T ? i % 3 == 0 : 0;
    for (int way = 0; way < 4; way++) {
        const asp_detect_options options = {2, patterns, way % 2 ? ASP_DETECT_ABS : ASP_DETECT_MUL, way / 2, way == 3};
        const asp_status status = asp_detect_heads(scores, f->clean, &options, context, err);
        if (status) return status;
        add_bytes(digest, scores, sizeof scores);
    }
    return ASP_OK;
}

asp_status use_composition(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    double scores[3 * L * H * L * H];
    asp_status status = asp_composition_scores(scores, f->gated, context, err);
    if (!status) add_bytes(digest, scores, sizeof scores);
    if (!status) status = asp_composition_scores(scores, f->dense, context, err);
    if (!status) add_bytes(digest, scores, sizeof scores);
    return status;
}

/* Lenses that are refused. */
asp_status use_wrong_lens(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)digest;
    readout r;
    asp_run *bare = NULL;
    double value[ROWS];
    const int64_t points[ROWS] = {0, 1, 2, 2 * L + 1}, inside[ROWS] = {0}, beyond[ROWS] = {0, 0, 0, N};
    const int32_t unknown[ROWS] = {0, 0, 0, V};
    const asp_lens_readout out = readout_into(&r);
    asp_lens_readout many = out;
    many.n_top = V + 1;
    const asp_lens_parts parts = {.value = value};
    const asp_lens_targets targets = {ROWS, rows, right, NULL}, of_row = {ROWS, beyond, right, NULL},
                           of_token = {ROWS, rows, right, unknown};
    const asp_run_options options = {.max_bytes = INT64_MAX};
    asp_status status = asp_run_new(&bare, f->gated, f->tokens, f->offsets, N_SEQUENCES, &options, context, err);
    if (status) return status;
    const asp_detect_options nothing = {0};
    const int refused =
        asp_lens_logits(&out, f->gated, f->clean, ROWS, points, rows, 0, context, err) == ASP_BAD_INDEX &&
        asp_lens_logits(&out, f->gated, f->clean, ROWS, inside, beyond, 0, context, err) == ASP_BAD_INDEX &&
        asp_lens_logits(&many, f->gated, f->clean, ROWS, inside, rows, 0, context, err) == ASP_BAD_ARGUMENT &&
        asp_lens_logits(&out, f->gated, bare, ROWS, inside, rows, 0, context, err) == ASP_BAD_STATE &&
        asp_lens_attribute(&parts, f->gated, bare, &targets, context, err) == ASP_BAD_STATE &&
        asp_lens_attribute(&parts, f->gated, f->clean, &of_row, context, err) == ASP_BAD_INDEX &&
        asp_lens_attribute(&parts, f->gated, f->clean, &of_token, context, err) == ASP_BAD_INDEX &&
        asp_detect_heads(value, bare, &nothing, context, err) == ASP_BAD_STATE;
    asp_run_free(bare);
    return refused ? ASP_OK : ASP_BAD_STATE;
}
