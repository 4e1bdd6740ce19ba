/* driver_curves.c: metrics of given logits, the caller's own among them; random numbers and curves of circuits. */
#include <math.h>
#include <string.h>

#include "base/base.h"
#include "driver.h"

enum { V = 50, ROWS = 300 };

/* ---- metrics -------------------------------------------------------------------------------------- */

static int fails(void *state, int64_t n, const int64_t *sequence, const asp_real *logits, double *values) {
    (void)n, (void)sequence, (void)logits, (void)values;
    ++*(int *)state;
    return 1;
}

/* Notes the numbers of the sequences, which are to rise from state[0] on. */
static int counts(void *state, int64_t n, const int64_t *sequence, const asp_real *logits, double *values) {
    int64_t *next = state;
    for (int64_t i = 0; i < n; i++, ++*next) {
        if (sequence[i] != *next) return 1;
        values[i] = (double)logits[i * V];
    }
    return 0;
}

/* What is refused, and what ends a call. */
static asp_status wrong_metrics(const asp_real *logits, const asp_context *context, asp_error *err) {
    double values[ROWS];
    asp_real gradients[N_SEQUENCES * V];
    int calls = 0;
    int64_t next = 7;
    const asp_custom_metric failing = {fails, NULL, &calls}, counting = {counts, NULL, &next};
    asp_metric metric = {.kind = ASP_CUSTOM, .n_sequences = N_SEQUENCES};
    if (asp_metric_values(values, &metric, logits, V, context, err) != ASP_BAD_ARGUMENT) return ASP_BAD_STATE;
    metric.custom = &failing;
    if (asp_metric_values(values, &metric, logits, V, context, err) != ASP_STOPPED || calls != 1) return ASP_BAD_STATE;
    if (asp_metric_gradients(gradients, &metric, logits, V, context, err) != ASP_BAD_ARGUMENT) return ASP_BAD_STATE;
    metric.custom = &counting;
    metric.n_sequences = 400;
    const asp_metric part = asp_metric_part(&metric, 7, ROWS, V);
    if (asp_metric_values(values, &part, logits, V, context, err) || next != 7 + ROWS) return ASP_BAD_STATE;
    metric = small_metric(N_SEQUENCES, ASP_PROB_DIFF);
    return asp_metric_values(values, &metric, logits, 16, context, err) == ASP_BAD_INDEX ? ASP_OK : ASP_BAD_STATE;
}

asp_status use_metrics(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)f;
    static asp_real logits[ROWS * V];
    asp_real own[N_SEQUENCES * V];
    fill(own, N_SEQUENCES * V, 4, 7);
    for (int kind = 0; kind < ASP_N_METRICS; kind++) {
        const asp_metric metric = small_metric(N_SEQUENCES, (asp_metric_kind)kind);
        const asp_metric last = asp_metric_part(&metric, 1, N_SEQUENCES - 1, V);
        double values[N_SEQUENCES], again[N_SEQUENCES];
        asp_real gradients[N_SEQUENCES * V];
        asp_status status = asp_metric_values(values, &metric, own, V, context, err);
        if (!status) status = asp_metric_values(again, &last, own + V, V, context, err);
        if (!status) status = asp_metric_gradients(gradients, &metric, own, V, context, err);
        if (status) return status;
        if (memcmp(values + 1, again, (N_SEQUENCES - 1) * sizeof *values) != 0) return ASP_BAD_STATE;
        add_bytes(digest, values, sizeof values);
        add_reals(digest, gradients, N_SEQUENCES * V);
    }
    return wrong_metrics(logits, context, err);
}

/* ---- curves ---------------------------------------------------------------------------------------- */

enum { S = 9, P = 21, B = 40 };

static asp_status intervals(const asp_measured *one, const asp_measured *other, const asp_context *context,
                            uint64_t *digest, asp_error *err) {
    const asp_bootstrap bootstrap = {B, 3, 0.9}, none = {0, 3, 0.9}, wrong = {-1, 3, 0.9};
    for (int i = 0; i < 4; i++) {
        asp_needed needed;
        asp_ratio ratio;
        const asp_bootstrap *b = i % 2 ? &none : &bootstrap;
        const double fraction = i < 2 ? 0.8 : 2;
        asp_status status = asp_curve_needed_interval(&needed, &one->curve, one->effect, fraction, b, context, err);
        if (!status) status = asp_curve_ratio(&ratio, one, other, fraction, i % 2, b, context, err);
        if (status) return status;
        if (i % 2 && (needed.first_low != S || !isnan(ratio.low))) return ASP_BAD_STATE;
        add_bytes(digest, &needed, sizeof needed);
        if (!isnan(ratio.value)) add_bytes(digest, &ratio, sizeof ratio);
    }
    asp_needed needed;
    asp_curve without = one->curve;
    without.n_prompts = 0;
    if (asp_curve_needed_interval(&needed, &without, one->effect, 0.8, &bootstrap, context, err) != ASP_BAD_ARGUMENT ||
        asp_curve_needed_interval(&needed, &one->curve, one->effect, 0.8, &wrong, context, err) != ASP_BAD_ARGUMENT)
        return ASP_BAD_STATE;
    return ASP_OK;
}

asp_status use_curves(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)f;
    const int64_t sizes[S] = {0, 1, 2, 3, 5, 8, 13, 21, 34};
    double values[S * P], full[P], empty[P], effect[S], other_effect[S], curves[B * S], low[S], high[S];
    int64_t order[1000], n_valid, first[B], stays[B];
    uint64_t raw[P];
    asp_random_raw(raw, 5, P, 11, 12, 13, 14);
    for (int i = 0; i < P; i++) {
        full[i] = 2 + (double)(raw[i] >> 40) / (double)(1 << 24);
        empty[i] = (double)(raw[i] & 1023) / 1024;
        for (int s = 0; s < S; s++) values[s * P + i] = empty[i] + (full[i] - empty[i]) * s / (S - 1.5);
    }
    const asp_curve curve = {values, full, empty, S, P, ASP_NORMALIZE_MIB},
                    fewer = {values + P, full, empty, S - 1, P - 4, ASP_NORMALIZE_RATIO};
    asp_curve_effect(effect, &curve);
    asp_curve_effect(other_effect, &fewer);
    asp_status status = asp_curve_bootstrap(curves, &n_valid, &curve, B, 5, context, err);
    if (!status) status = asp_curve_band(low, high, curves, n_valid, S, 0.9, context, err);
    if (!status) status = asp_random_permutation(order, 1000, 1, 2, 3, 4, err);
    if (status) return status;
    asp_curve_needed(first, stays, curves, n_valid, S, 0.7);
    add_bytes(digest, effect, sizeof effect);
    add_bytes(digest, curves, n_valid * S * (int64_t)sizeof *curves);
    add_bytes(digest, low, sizeof low);
    add_bytes(digest, high, sizeof high);
    add_bytes(digest, first, n_valid * (int64_t)sizeof *first);
    add_bytes(digest, stays, n_valid * (int64_t)sizeof *stays);
    add_bytes(digest, order, sizeof order);
    const asp_measured one = {curve, effect, sizes}, other = {fewer, other_effect, sizes + 1};
    return intervals(&one, &other, context, digest, err);
}
