/* driver_generation.c: texts continued, greedy and drawn, changed and stopped. */
#include <math.h>
#include <string.h>

#include "driver.h"

enum { E = 24, V = 50, NEW = 4, SAMPLES = 2, TEXTS = N_SEQUENCES * SAMPLES };

typedef struct {
    int64_t n_new[TEXTS];
    int32_t tokens[TEXTS * NEW];
    double logprobs[TEXTS * NEW];
    asp_real logits[TEXTS * NEW * V];
} texts;

/* Generates, and adds what there is to the digest. */
static asp_status generate(const fixture *f, int gated, const asp_generation_options *options,
                           const asp_context *context, uint64_t *digest, asp_error *err) {
    texts t = {0};
    asp_generated out = {t.n_new, t.tokens, t.logprobs, t.logits};
    const asp_status status =
        asp_generation_run(&out, gated ? f->gated : f->dense, f->tokens, f->ragged, N_SEQUENCES, options, context, err);
    add_bytes(digest, &t, sizeof t);
    for (int b = 0; !status && b < N_SEQUENCES * options->n_samples; b++)
        if (t.n_new[b] < 1 || t.n_new[b] > NEW)
            return asp_fail(err, ASP_BAD_STATE, "text %d has %d tokens", b, (int)t.n_new[b]);
    return status;
}

asp_status use_greedy_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_generation_options options = {.max_new_tokens = NEW, .n_samples = 1, .top_p = 1, .max_bytes = INT64_MAX};
    return generate(f, 1, &options, context, digest, err);
}

asp_status use_drawn_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    uint8_t stop[V] = {0};
    for (int i = 0; i < V; i += 3) stop[i] = 1;
    const asp_generation_options options = {.max_new_tokens = NEW,
                                            .n_samples = SAMPLES,
                                            .temperature = 0.8,
                                            .top_k = 20,
                                            .top_p = 0.9,
                                            .seed = 3,
                                            .stop = stop,
                                            .max_bytes = INT64_MAX};
    return generate(f, 0, &options, context, digest, err);
}

asp_status use_changed_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const int64_t heads[] = {0, 0, 1, 2, 1, 2, 0, 12}, entries[] = {1, 1, 0, 13, 3, 0, 0, 2, 0, 0};
    const int64_t mlps[] = {0, 1, 14}, resids[] = {0, 2, 0, 3, 1, 1, 2, 0};
    asp_real values[8 * E];
    fill(values, 8 * E, 0.5, 9);
    const asp_interventions given = {.n_heads = 2,
                                     .n_entries = 2,
                                     .n_mlps = 1,
                                     .n_resids = 2,
                                     .heads = heads,
                                     .head_values = values,
                                     .entries = entries,
                                     .entry_values = values + E,
                                     .mlps = mlps,
                                     .mlp_values = values + 3 * E,
                                     .resids = resids,
                                     .resid_values = values + 5 * E};
    asp_hooks *hooks;
    asp_status status = asp_interventions_hooks(&hooks, &given, err);
    if (status) return status;
    const asp_generation_options options = {
        .max_new_tokens = NEW, .n_samples = 1, .top_p = 1, .hooks = hooks, .max_bytes = INT64_MAX};
    status = generate(f, 1, &options, context, digest, err);
    asp_interventions_free(hooks);
    return status;
}

static int stop_at_half(void *state, const char *stage, int64_t done, int64_t total) {
    (void)state;
    return strcmp(stage, "generation") != 0 || 2 * done >= total;
}

/* What is refused, and a stop after two of four tokens. */
asp_status use_wrong_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_generation_options wrong[] = {
        {.max_new_tokens = 5, .n_samples = 1, .top_p = 1, .max_bytes = INT64_MAX},
        {.max_new_tokens = 0, .n_samples = 1, .top_p = 1, .max_bytes = INT64_MAX},
        {.max_new_tokens = NEW, .n_samples = 0, .top_p = 1, .max_bytes = INT64_MAX},
        {.max_new_tokens = NEW, .n_samples = INT64_MAX / 2, .top_p = 1, .max_bytes = INT64_MAX},
        {.max_new_tokens = NEW, .n_samples = 1, .top_p = 1, .temperature = -1, .max_bytes = INT64_MAX},
        {.max_new_tokens = NEW, .n_samples = 1, .top_p = 1, .temperature = INFINITY, .max_bytes = INT64_MAX},
        {.max_new_tokens = NEW, .n_samples = 1, .top_p = 0, .max_bytes = INT64_MAX},
        {.max_new_tokens = NEW, .n_samples = 1, .top_p = NAN, .max_bytes = INT64_MAX},
        {.max_new_tokens = NEW, .n_samples = 1, .top_p = 1, .top_k = -1, .max_bytes = INT64_MAX}};
    texts t = {0};
    asp_generated out = {t.n_new, t.tokens, t.logprobs, t.logits};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        if (asp_generation_run(&out, f->gated, f->tokens, f->ragged, N_SEQUENCES, &wrong[i], context, err) !=
            ASP_BAD_ARGUMENT)
            return asp_fail(err, ASP_BAD_STATE, "wrong options %d were not refused", (int)i);
    for (int64_t bytes = 10; bytes < 1000000; bytes *= 30) {
        const asp_generation_options small = {.max_new_tokens = NEW,
                                              .n_samples = 1,
                                              .top_p = 1,
                                              .max_bytes = bytes < 9000 ? bytes : 100000};
        if (asp_generation_run(&out, f->gated, f->tokens, f->ragged, N_SEQUENCES, &small, context, err) !=
            ASP_NO_MEMORY)
            return ASP_BAD_STATE;
    }
    asp_context stopping = *context;
    stopping.progress = stop_at_half;
    const asp_generation_options options = {.max_new_tokens = NEW, .n_samples = 1, .top_p = 1, .max_bytes = INT64_MAX};
    const asp_status status =
        asp_generation_run(&out, f->gated, f->tokens, f->ragged, N_SEQUENCES, &options, &stopping, err);
    if (status != ASP_STOPPED) return status ? status : ASP_BAD_STATE;
    for (int b = 0; b < N_SEQUENCES; b++)
        if (t.n_new[b] != NEW / 2) return ASP_BAD_STATE;
    add_bytes(digest, t.tokens, sizeof t.tokens);
    return ASP_OK;
}
