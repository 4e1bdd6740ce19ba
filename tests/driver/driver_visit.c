/* driver_visit.c: visitors of a pass: at every place, those that change nothing and those that change what they see. */
#include <string.h>

#include "driver.h"

enum { L = 2 };

/* What a visitor does, and how often it has been called. */
typedef struct {
    asp_real factor; /* rows are multiplied by it */
    int n_calls, stop_at;
} seen;

static asp_status look(void *state, const asp_visit *visit, const asp_context *context) {
    (void)context;
    seen *s = state;
    if (++s->n_calls == s->stop_at) return ASP_STOPPED;
    for (int64_t b = 0; b < visit->n_sequences; b++) {
        const int64_t t = visit->offsets[b + 1] - visit->offsets[b], at = visit->rows ? 0 : asp_visit_square(visit, b);
        for (int64_t r = visit->offsets[b]; visit->rows && r < visit->offsets[b + 1]; r++)
            for (int64_t j = 0; j < visit->width; j++) visit->rows[r * visit->stride + j] *= s->factor;
        if (visit->gates && s->factor != 1) visit->gates[at + (t - 1) * t] ^= 1;
        if (visit->squares && s->factor != 1) visit->squares[at + (t - 1) * t] += (asp_real)0.125;
    }
    return ASP_OK;
}

/* One run of a ragged batch with two visitors. */
static asp_status visited_run(const fixture *f, int dense, uint64_t records, asp_real factor, int stop_at,
                              const asp_context *context, uint64_t *digest, asp_error *err) {
    uint32_t every[L + 1], some[L + 1] = {0};
    for (int l = 0; l <= L; l++) every[l] = ((uint32_t)1 << ASP_N_PLACES) - 1;
    some[1] = (uint32_t)1 << ASP_AT_PATTERN | (uint32_t)1 << ASP_AT_Z;
    seen first = {factor, 0, stop_at}, second = {factor, 0, 0};
    const asp_visitor visitors[] = {{some, look, &second}, {every, look, &first}};
    const asp_run_options options = {.records = records,
                                     .logits = ASP_LOGITS_ALL,
                                     .edges = records != 0,
                                     .max_bytes = INT64_MAX,
                                     .visitors = visitors,
                                     .n_visitors = 2};
    asp_run *run = NULL;
    const asp_status status =
        asp_run_new(&run, dense ? f->dense : f->gated, f->tokens, f->ragged, N_SEQUENCES, &options, context, err);
    if (!status) add_run(digest, run);
    asp_run_free(run);
    if (status) return status;
    return second.n_calls == 2 ? ASP_OK : ASP_BAD_STATE;
}

asp_status use_visitors(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const uint64_t all = ((uint64_t)1 << ASP_N_RECORDS) - 1;
    asp_status status = ASP_OK;
    for (int kind = 0; !status && kind < 4; kind++)
        status = visited_run(f, kind % 2, kind < 2 ? all : 0, kind ? (asp_real)1.25 : 1, 0, context, digest, err);
    return status;
}

asp_status use_frozen(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    const asp_run_options all = {.records = ((uint64_t)1 << ASP_N_RECORDS) - 1, .max_bytes = INT64_MAX};
    const asp_config *config = asp_model_config(f->gated);
    asp_run *clean = NULL, *run = NULL;
    asp_status status = asp_run_new(&clean, f->dense, f->tokens, f->ragged, N_SEQUENCES, &all, context, err);
    if (status) return status;
    const asp_frozen whole = {{clean, 0}, {clean, 0}, {clean, 0}};
    asp_visitor *visitor = NULL;
    status = asp_frozen_visitor(&visitor, &whole, config, f->ragged, N_SEQUENCES, 1, err);
    const asp_run_options options = {.logits = ASP_LOGITS_ALL,
                                     .max_bytes = INT64_MAX,
                                     .visitors = visitor,
                                     .n_visitors = 1};
    if (!status) status = asp_run_new(&run, f->gated, f->tokens, f->ragged, N_SEQUENCES, &options, context, err);
    if (!status) add_run(digest, run);
    asp_run_free(run);
    asp_frozen_free(visitor);
    asp_run_free(clean);
    return status;
}

asp_status use_wrong_frozen(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)digest;
    const asp_run_options little = {.records = (uint64_t)1 << ASP_PATTERN, .max_bytes = INT64_MAX};
    const asp_config *config = asp_model_config(f->gated);
    asp_run *run = NULL;
    const asp_status status = asp_run_new(&run, f->gated, f->tokens, f->ragged, N_SEQUENCES, &little, context, err);
    if (status) return status;
    const asp_frozen later = {.pattern = {run, 1}}, own = {.pattern = {run, 0}}, absent = {.scales = {run, 0}};
    asp_config larger = *config;
    larger.n_head++;
    asp_visitor *visitor = NULL;
    const int good = asp_frozen_visitor(&visitor, &later, config, f->ragged, N_SEQUENCES, 1, err) == ASP_BAD_ARGUMENT &&
                     asp_frozen_visitor(&visitor, &own, config, f->offsets, N_SEQUENCES, 1, err) == ASP_BAD_ARGUMENT &&
                     asp_frozen_visitor(&visitor, &own, &larger, f->ragged, N_SEQUENCES, 1, err) == ASP_BAD_ARGUMENT &&
                     asp_frozen_visitor(&visitor, &absent, config, f->ragged, N_SEQUENCES, 1, err) == ASP_BAD_STATE &&
                     !visitor;
    asp_run_free(run);
    return good ? ASP_OK : ASP_BAD_STATE;
}

asp_status use_stopping_visitors(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    for (int stop_at = 1; stop_at < 12; stop_at++) {
        const asp_status status = visited_run(f, 0, 0, 1, stop_at, context, digest, err);
        if (status != ASP_STOPPED) return status ? status : ASP_BAD_STATE;
    }
    const uint32_t neurons[L + 1] = {(uint32_t)1 << ASP_AT_MLP_PRE}; /* replaced MLPs have none */
    const asp_visitor visitor = {neurons, look, NULL};
    const asp_mlp_substitute substitute = {0};
    const asp_run_options both = {.max_bytes = INT64_MAX,
                                  .substitute = &substitute,
                                  .visitors = &visitor,
                                  .n_visitors = 1};
    asp_run *run = NULL;
    const asp_status status = asp_run_new(&run, f->gated, f->tokens, f->ragged, N_SEQUENCES, &both, context, err);
    return status == ASP_BAD_ARGUMENT ? ASP_OK : ASP_BAD_STATE;
}
