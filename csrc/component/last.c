/* last.c: the metric from last rows of the residual stream. */
#include <string.h>

#include "component/component.h"

asp_status asp_last_values(double *values, const asp_component_setting *s, const asp_last_rows *last, int64_t n,
                           const asp_context *context) {
    const asp_activations acts = {.n_tokens = n, .resid = {last->rows, 0}, .ln_final = last->hidden};
    const asp_hidden_rows rows = {last->hidden, last->logits, last->logit_rows, &s->metric, last->sequence};
    const asp_status status = asp_forward_final(s->model, &acts, context);
    return status ? status : asp_component_setting_metric(values, s->model, &rows, n, context);
}

asp_status asp_last_of_run(double *values, const asp_component_setting *s, const asp_last_rows *last, asp_slot resid,
                           const asp_context *context) {
    const int64_t e = s->model->config.d_model;
    const asp_real *from = asp_slot_at(resid, s->model->config.n_layer);
    asp_status status = ASP_OK;
    for (int64_t first = 0, n; !status && first < s->n; first += n) {
        n = asp_min(last->capacity, s->n - first);
        for (int64_t i = 0; i < n; i++) {
            last->sequence[i] = first + i;
            memcpy(last->rows + i * e, from + (s->offsets[first + i + 1] - 1) * e, (size_t)e * sizeof *from);
        }
        status = asp_last_values(values + first, s, last, n, context);
    }
    return status;
}
