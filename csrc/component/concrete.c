/* concrete.c: hard concrete masks (Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0
 * Regularization", 2018): a stretched and cut logistic variable, which is 0 or 1 with a probability above 0. */
#include <math.h>

#include "component/component.h"

static const double BETA = 2.0 / 3.0, LOW = -0.1, HIGH = 1.1;

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

asp_concrete asp_concrete_sample(double log_alpha, uint64_t random) {
    const double u = ((double)(random >> 11) + 0.5) * 0x1p-53;
    const double s = sigmoid((log(u) - log1p(-u) + log_alpha) / BETA), z = s * (HIGH - LOW) + LOW;
    if (z <= 0) return (asp_concrete){0, 0};
    if (z >= 1) return (asp_concrete){1, 0};
    return (asp_concrete){z, (HIGH - LOW) * s * (1 - s) / BETA};
}

asp_concrete asp_concrete_expected(double log_alpha) {
    const double p = sigmoid(log_alpha - BETA * log(-LOW / HIGH));
    return (asp_concrete){p, p * (1 - p)};
}
