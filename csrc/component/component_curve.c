/* component_curve.c: how a ranking of component edges agrees with a given circuit, and areas under curves of circuits. */
#include <math.h>

#include "component/component.h"

static double roc_key(int absolute, const double *scores, int64_t place) {
    return absolute ? fabs(scores[place]) : scores[place];
}

/* ---- against a given circuit ------------------------------------------------------------------------------- */

asp_status asp_component_curve_roc(asp_component_roc *roc, const asp_config *config, const double *scores,
                                   const uint8_t *truth, int absolute, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const int64_t n = asp_nodes_n_edges(config);
    (void)context;
    int64_t *order = asp_allocate(n, sizeof *order), n_true = 0, hits = 0;
    if (!order) return asp_fail(err, ASP_NO_MEMORY, "no memory for the order of %lld component edges", (long long)n);
    const asp_status status = asp_component_select_order(order, config, scores, absolute, 0, err);
    for (int64_t i = 0; !status && i < n; i++) n_true += truth[order[i]] != 0;
    const double positives = (double)n_true, negatives = (double)(n - n_true);
    roc->n = 0;
    roc->area = 0;
    if (!status) {
        roc->false_rate[0] = roc->true_rate[0] = 0;
        roc->n = 1;
    }
    for (int64_t i = 0; !status && i < n; i++) {
        hits += truth[order[i]] != 0;
        if (i + 1 < n && roc_key(absolute, scores, order[i + 1]) == roc_key(absolute, scores, order[i])) continue;
        const int64_t at = roc->n++;
        roc->false_rate[at] = (double)(i + 1 - hits) / negatives;
        roc->true_rate[at] = (double)hits / positives;
        roc->area +=
            (roc->false_rate[at] - roc->false_rate[at - 1]) * (roc->true_rate[at] + roc->true_rate[at - 1]) / 2;
    }
    asp_release(order);
    if (!status && (!n_true || n_true == n))
        return asp_fail(err, ASP_BAD_ARGUMENT,
                        "a circuit to compare with needs component edges inside and outside, this one has %lld of %lld",
                        (long long)n_true, (long long)n);
    return status;
}

/* ---- areas -------------------------------------------------------------------------------------------------- */

asp_status asp_component_curve_areas(double *areas, const double *curves, int64_t n_curves, const double *shares,
                                     int64_t n_sizes, const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    (void)err;
    for (int64_t b = 0; b < n_curves; b++) {
        const double *f = curves + b * n_sizes;
        double cpr = 0, cmd = 0;
        if (b % 1024 == 0 && asp_parallel_stopped(context)) return ASP_STOPPED;
        for (int64_t i = 0; i + 1 < n_sizes; i++) {
            const double width = shares[i + 1] - shares[i];
            cpr += width * (f[i + 1] + f[i]) / 2;
            cmd += width * (fabs(1 - f[i + 1]) + fabs(1 - f[i])) / 2;
        }
        areas[2 * b] = cpr;
        areas[2 * b + 1] = cmd;
    }
    return ASP_OK;
}
