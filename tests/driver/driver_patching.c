/* driver_patching.c: sweeps that patch one activation at a time, and path patching. */
#include <string.h>

#include "driver.h"

enum { L = 2, H = 3, SENDERS = 1 + L * (H + 1), RECEIVERS = L * (3 * H + 1) + 1, N_PATCHES = 4 };

static asp_task pairs_of(const fixture *f, const int64_t *offsets, asp_metric_kind kind) {
    const asp_prompts clean = {f->tokens, offsets, N_SEQUENCES}, corrupted = {f->targets, offsets, N_SEQUENCES};
    asp_metric metric = small_metric(N_SEQUENCES, kind);
    metric.reference = NULL;
    return (asp_task){clean, corrupted, metric};
}

static asp_status use_patching(const fixture *f, asp_patching_kind kind, int by_position, const asp_context *context,
                               uint64_t *digest, asp_error *err) {
    const asp_metric_kind metric = kind == ASP_PATCHING_Q ? ASP_KL : ASP_LOGIT_DIFF;
    const asp_task task = pairs_of(f, by_position ? f->offsets : f->ragged, metric);
    static const int64_t places[] = {1, 4};
    const asp_patching_options options = {.kind = kind,
                                          .by_position = by_position,
                                          .denoising = kind % 2,
                                          .held_gate = kind % 3 == 0,
                                          .layers = kind % 2 ? places : NULL,
                                          .n_layers = 1,
                                          .positions = by_position && kind % 3 ? places : NULL,
                                          .n_positions = 2,
                                          .max_bytes = INT64_MAX};
    const asp_model *model = kind == ASP_PATCHING_V ? f->dense : f->gated;
    double values[L * H * T * N_SEQUENCES], base[N_SEQUENCES], other[N_SEQUENCES];
    const asp_patching_shape shape = asp_patching_places(asp_model_config(model), &task.clean, &options);
    const asp_status status = asp_patching_sweep(values, base, other, model, &task, &options, context, err);
    if (status) return status;
    add_bytes(digest, values, shape.layers * shape.heads * shape.positions * N_SEQUENCES * (int64_t)sizeof *values);
    add_bytes(digest, base, sizeof base);
    add_bytes(digest, other, sizeof other);
    return ASP_OK;
}

/* Each by itself, because every allocation of an operation fails once. */
asp_status use_patching_of_layers(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_status status = ASP_OK;
    for (int kind = ASP_PATCHING_RESID; !status && kind <= ASP_PATCHING_MLP_OUT; kind++)
        status = use_patching(f, (asp_patching_kind)kind, kind != ASP_PATCHING_RESID_MID, context, digest, err);
    return status;
}

asp_status use_patching_of_heads(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    asp_status status = ASP_OK;
    for (int kind = ASP_PATCHING_Z; !status && kind <= ASP_PATCHING_PATTERN; kind++)
        status = use_patching(f, (asp_patching_kind)kind, kind != ASP_PATCHING_K, context, digest, err);
    return status;
}

/* Random patches, the last of them without a path. */
static asp_path_patches some_patches(uint8_t *senders, uint8_t *receivers) {
    asp_real random[N_PATCHES * RECEIVERS];
    fill(random, N_PATCHES * RECEIVERS, 1, 11);
    for (int i = 0; i < N_PATCHES * SENDERS; i++) senders[i] = random[i] > 0;
    fill(random, N_PATCHES * RECEIVERS, 1, 12);
    for (int i = 0; i < N_PATCHES * RECEIVERS; i++) receivers[i] = random[i] > 0;
    memset(senders + (N_PATCHES - 1) * SENDERS, 0, SENDERS);
    return (asp_path_patches){.senders = senders, .receivers = receivers, .n = N_PATCHES};
}

asp_status use_paths(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    uint8_t senders[N_PATCHES * SENDERS], receivers[N_PATCHES * RECEIVERS], positions[N];
    double values[N_PATCHES * N_SEQUENCES], base[N_SEQUENCES], other[N_SEQUENCES];
    asp_path_patches patches = some_patches(senders, receivers);
    for (int i = 0; i < N; i++) positions[i] = i % 3 != 1;
    for (int kind = 0; kind < 3; kind++) {
        const asp_task task = pairs_of(f, kind ? f->ragged : f->offsets, kind == 2 ? ASP_KL : ASP_LOGIT_DIFF);
        const asp_path_options options = {.denoising = kind == 1, .held_gate = kind == 0, .max_bytes = INT64_MAX};
        patches.positions = kind == 1 ? positions : NULL;
        const asp_status status = asp_path_values(values, base, other, kind == 2 ? f->dense : f->gated, &task, &patches,
                                                  &options, context, err);
        if (status) return status;
        add_bytes(digest, values, sizeof values);
        add_bytes(digest, base, sizeof base);
        add_bytes(digest, other, sizeof other);
    }
    return ASP_OK;
}

static int stop(void *state, const char *stage, int64_t done, int64_t total) {
    (void)state;
    return !stage || done > total || done > 0;
}

/* Patching that is refused, stopped by progress, or does not fit. */
asp_status use_wrong_patching(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)digest;
    uint8_t senders[N_PATCHES * SENDERS], receivers[N_PATCHES * RECEIVERS];
    double values[L * H * T * N_SEQUENCES], base[N_SEQUENCES], other[N_SEQUENCES];
    const asp_path_patches patches = some_patches(senders, receivers);
    asp_task task = pairs_of(f, f->offsets, ASP_LOGIT_DIFF), ragged = pairs_of(f, f->ragged, ASP_LOGIT_DIFF);
    asp_patching_options options = {.by_position = 1, .max_bytes = INT64_MAX}, small = {.max_bytes = 1000};
    asp_path_options pairs = {.max_bytes = INT64_MAX}, little = {.max_bytes = 1000};
    asp_context told = *context;
    told.progress = stop;
    if (asp_patching_sweep(values, base, other, f->gated, &ragged, &options, context, err) != ASP_BAD_ARGUMENT ||
        asp_patching_sweep(values, base, other, f->gated, &task, &small, context, err) != ASP_NO_MEMORY ||
        asp_path_values(values, base, other, f->gated, &task, &patches, &little, context, err) != ASP_NO_MEMORY)
        return ASP_BAD_STATE;
    asp_status status = asp_patching_sweep(values, base, other, f->gated, &task, &options, &told, err);
    if (status != ASP_STOPPED && status != ASP_NO_MEMORY) return ASP_BAD_STATE;
    status = asp_path_values(values, base, other, f->gated, &task, &patches, &pairs, &told, err);
    if (status != ASP_STOPPED && status != ASP_NO_MEMORY) return ASP_BAD_STATE;
    const int64_t beyond[] = {L};
    asp_patching_options wrong = {.layers = beyond, .n_layers = 1, .max_bytes = INT64_MAX};
    if (asp_patching_sweep(values, base, other, f->gated, &task, &wrong, context, err) != ASP_BAD_ARGUMENT)
        return ASP_BAD_STATE;
    wrong.n_layers = 0;
    if (asp_patching_sweep(values, base, other, f->gated, &task, &wrong, context, err) != ASP_BAD_ARGUMENT)
        return ASP_BAD_STATE;
    task.corrupted.n_prompts = 0;
    if (asp_patching_sweep(values, base, other, f->gated, &task, &options, context, err) != ASP_BAD_ARGUMENT)
        return ASP_BAD_STATE;
    return asp_path_values(values, base, other, f->gated, &task, &patches, &pairs, context, err) == ASP_BAD_ARGUMENT
               ? ASP_OK
               : ASP_BAD_STATE;
}
