/* frozen.c: patterns, gates and LayerNorm scales of another run in place of those of a pass. */
#include <string.h>

#include "circuit/circuit.h"

typedef struct {
    asp_visitor visitor;
    asp_frozen given;
    asp_config config;
    int64_t n_texts;
    uint32_t *places; /* (L+1) */
} frozen_state;

/* The place in an array of `run` of sequence b of the pass. */
static int64_t frozen_square(const frozen_state *s, const asp_run *run, int64_t sequence, int64_t layer) {
    const int64_t *start = asp_run_square_start(run) + sequence;
    return start[0] + layer * ((start[1] - start[0]) / s->config.n_layer);
}

static void freeze_squares(const frozen_state *s, const asp_visit *visit) {
    const asp_frozen_part part = visit->gates ? s->given.gate : s->given.pattern;
    const asp_array array = asp_run_array(part.run, visit->gates ? ASP_GATE : ASP_PATTERN);
    const size_t item = visit->gates ? 1 : sizeof(asp_real);
    for (int64_t b = 0; b < visit->n_sequences; b++) {
        const int64_t t = visit->offsets[b + 1] - visit->offsets[b], at = asp_visit_square(visit, b);
        if (t == 0 || asp_visit_first(visit, b)) continue; /* new tokens have their own */
        char *to = visit->gates ? (char *)(visit->gates + at) : (char *)(visit->squares + at);
        memcpy(to,
               (const char *)array.data +
                   (size_t)frozen_square(s, part.run, part.first + b / s->n_texts, visit->layer) * item,
               (size_t)(s->config.n_head * t * t) * item);
    }
}

static void freeze_scales(const frozen_state *s, const asp_visit *visit) {
    const asp_frozen_part part = s->given.scales;
    const int last = visit->place == ASP_AT_LN_FINAL_SCALE;
    const asp_record record = visit->place == ASP_AT_LN1_SCALE ? ASP_LN1_SCALE : ASP_LN2_SCALE;
    const asp_array array = asp_run_array(part.run, last ? ASP_LN_FINAL_SCALE : record);
    const asp_real *from = (const asp_real *)array.data + (last ? 0 : visit->layer * array.strides[0]);
    for (int64_t b = 0; b < visit->n_sequences; b++) {
        const int64_t row = visit->offsets[b], t = visit->offsets[b + 1] - row;
        if (t == 0 || asp_visit_first(visit, b)) continue;
        memcpy(visit->rows + row, from + asp_run_offsets(part.run)[part.first + b / s->n_texts],
               (size_t)t * sizeof *from);
    }
}

static asp_status freeze(void *state, const asp_visit *visit, const asp_context *context) {
    (void)context;
    if (visit->rows) freeze_scales(state, visit);
    else freeze_squares(state, visit);
    return ASP_OK;
}

/* Sequences of the pass are as long as those of the run from its first one on; the run has the record. */
static asp_status check_part(const asp_frozen_part *part, asp_record record, const asp_config *c,
                             const int64_t *offsets, int64_t n_sequences, asp_error *err) {
    if (!part->run) return ASP_OK;
    const char *name = asp_run_record_name(record);
    const asp_array array = asp_run_array(part->run, record);
    if (!array.data) return asp_fail(err, ASP_BAD_STATE, "frozen %s: the given run did not record it", name);
    if (part->first < 0 || part->first > asp_run_n_sequences(part->run) - n_sequences)
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "frozen %s: the given run has %lld prompts from number %lld on, this one %lld", name,
                        (long long)(asp_run_n_sequences(part->run) - part->first), (long long)part->first,
                        (long long)n_sequences);
    const int64_t *theirs = asp_run_offsets(part->run) + part->first;
    const int64_t *squares = asp_run_square_start(part->run) + part->first;
    for (int64_t b = 0; b < n_sequences; b++) {
        const int64_t t = offsets[b + 1] - offsets[b], found = theirs[b + 1] - theirs[b];
        if (found != t)
            return asp_fail(err, ASP_BAD_ARGUMENT, "frozen %s: prompt %lld has %lld tokens, in the given run %lld",
                            name, (long long)b, (long long)t, (long long)found);
        if (squares[b + 1] - squares[b] != c->n_layer * c->n_head * t * t)
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "frozen %s: the given run is of a model of other sizes than %lld layers of %lld heads",
                            name, (long long)c->n_layer, (long long)c->n_head);
    }
    return ASP_OK;
}

static asp_status check_frozen(const asp_frozen *given, const asp_config *c, const int64_t *offsets,
                               int64_t n_sequences, asp_error *err) {
    static const asp_record scales[] = {ASP_LN1_SCALE, ASP_LN2_SCALE, ASP_LN_FINAL_SCALE};
    asp_status status = check_part(&given->pattern, ASP_PATTERN, c, offsets, n_sequences, err);
    if (!status) status = check_part(&given->gate, ASP_GATE, c, offsets, n_sequences, err);
    for (int i = 0; !status && i < 3; i++) status = check_part(&given->scales, scales[i], c, offsets, n_sequences, err);
    return status;
}

asp_status asp_frozen_visitor(asp_visitor **visitor, const asp_frozen *given, const asp_config *config,
                              const int64_t *offsets, int64_t n_sequences, int64_t n_texts, asp_error *err) {
    const int64_t n_layer = config->n_layer;
    *visitor = NULL;
    const asp_status status = check_frozen(given, config, offsets, n_sequences, err);
    if (status) return status;
    frozen_state *s = asp_allocate(1, sizeof *s);
    uint32_t *places = asp_allocate(n_layer + 1, sizeof *places);
    if (!s || !places) {
        asp_release(s);
        asp_release(places);
        return asp_fail(err, ASP_NO_MEMORY, "no memory for what is frozen");
    }
    for (int64_t l = 0; l < n_layer; l++) {
        if (given->pattern.run) places[l] |= (uint32_t)1 << ASP_AT_PATTERN;
        if (given->gate.run) places[l] |= (uint32_t)1 << ASP_AT_GATE;
        if (given->scales.run) places[l] |= (uint32_t)1 << ASP_AT_LN1_SCALE | (uint32_t)1 << ASP_AT_LN2_SCALE;
    }
    if (given->scales.run) places[n_layer] = (uint32_t)1 << ASP_AT_LN_FINAL_SCALE;
    *s = (frozen_state){{places, freeze, s}, *given, *config, n_texts, places};
    *visitor = &s->visitor;
    return ASP_OK;
}

void asp_frozen_free(asp_visitor *visitor) {
    if (!visitor) return;
    frozen_state *s = visitor->state;
    asp_release(s->places);
    asp_release(s);
}
