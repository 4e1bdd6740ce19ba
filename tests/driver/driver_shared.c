/* driver_shared.c: two models with one copy of their weights. */
#include <unistd.h>

#include "driver.h"

enum { VOCABULARY = 20000, WIDTH = 24 };

static asp_status large_model(asp_model **model, uint64_t seed, asp_error *err) {
    const asp_config config = {.n_layer = 1,
                               .n_head = 1,
                               .d_model = WIDTH,
                               .d_head = WIDTH,
                               .d_mlp = 8,
                               .n_ctx = 4,
                               .n_vocab = VOCABULARY,
                               .ln_eps = 1e-5,
                               .tied = 1};
    const asp_status status = asp_model_new(model, &config, err);
    if (!status) fill(asp_model_data(*model), asp_model_size(*model), 0.4, seed);
    return status;
}

/* 1 if the twin takes the memory of the model, whose weights are the same, and the other model does not; a change is
 * of the twin alone. */
static int take_each_other(asp_model *model, asp_model *twin, asp_model *other, const asp_context *context) {
    int descriptor, again, taken;
    const asp_real first = asp_model_data(model)[0];
    if (asp_model_share(model, &descriptor, context) || asp_model_share(model, &again, context)) return 0;
    const int own = descriptor < 0 ? -1 : dup(descriptor);
    if (own < 0) return 1; /* the system has no such memory */
    if (descriptor != again) return 0;
    if (asp_model_take_shared(other, own, &taken, context) || taken) return 0;
    if (asp_model_take_shared(twin, 1, &taken, context) || taken) return 0;
    if (asp_model_take_shared(twin, own, &taken, context) || !taken) return 0;
    for (int64_t i = 0; i < asp_model_size(twin); i++) asp_model_data(twin)[i] += 1;
    return asp_model_data(model)[0] == first && asp_model_data(twin)[0] == first + 1;
}

asp_status use_shared_weights(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err) {
    (void)f;
    asp_model *model = NULL, *twin = NULL, *other = NULL;
    asp_status status = large_model(&model, 1, err);
    if (!status) status = large_model(&twin, 1, err);
    if (!status) status = large_model(&other, 2, err);
    if (!status && !take_each_other(model, twin, other, context)) status = ASP_BAD_STATE;
    if (!status) add_reals(digest, asp_model_data(model), asp_model_size(model));
    asp_model_free(other);
    asp_model_free(twin);
    asp_model_free(model);
    return status;
}
