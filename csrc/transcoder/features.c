/* features.c: what transcoders find active in the inputs of MLPs, and what they write to MLP outputs.
 *
 * Weights are asked for one layer at a time and belong to the source.  What is found is kept per layer until
 * the last one is done, then moved to the arrays that are lent, which never change. */
#include <string.h>

#include "transcoder/transcoder.h"

static const int64_t DECODER_BYTES = (int64_t)64 << 20; /* of decoder rows asked for at once */

/* ---- life ---------------------------------------------------------------------------------- */

static asp_status no_room_for_features(const asp_features *f, int over_limit, const char *what, asp_error *err) {
    if (!over_limit) return asp_fail(err, ASP_NO_MEMORY, "no memory for %s", what);
    return asp_fail(err, ASP_NO_MEMORY, "max_bytes=%lld is too small for %s; use fewer tokens or a larger max_bytes",
                    (long long)f->max_bytes, what);
}

void *asp_features_take(asp_features *f, int64_t n, int64_t size, const char *what, asp_error *err) {
    int64_t bytes;
    const int over_limit = !asp_multiply(n > 0 ? n : 1, size, &bytes) || bytes > f->max_bytes - f->bytes;
    void *block = over_limit ? NULL : asp_allocate(bytes, 1);
    if (block) f->bytes += bytes;
    else no_room_for_features(f, over_limit, what, err);
    return block;
}

void asp_features_give_back(asp_features *f, void *block, int64_t n, int64_t size) {
    if (!block) return;
    f->bytes -= (n > 0 ? n : 1) * size;
    asp_release(block);
}

static int is_absent(const asp_features *f, int64_t layer) { return f->coder.absent && f->coder.absent[layer]; }

/* Continues with the next layer that has a dictionary. */
static void pass_absent(asp_features *f) {
    while (f->n_layers < f->config.n_layer && is_absent(f, f->n_layers)) f->n_layers++;
}

static asp_status copy_absent(asp_features *f, const uint8_t *absent, asp_error *err) {
    const int64_t n_layer = f->config.n_layer;
    if (!absent) return ASP_OK;
    uint8_t *own = asp_features_take(f, n_layer, sizeof *own, "the layers of transcoders", err);
    if (!own) return ASP_NO_MEMORY;
    memcpy(own, absent, (size_t)n_layer);
    f->coder.absent = own;
    pass_absent(f);
    if (f->n_layers < n_layer) return ASP_OK;
    return asp_fail(err, ASP_BAD_ARGUMENT, "features need a dictionary in one layer at least");
}

static int64_t outputs_size(const asp_features *f) { return f->config.n_layer * f->config.d_model * f->n_tokens; }

asp_status asp_features_new(asp_features **out, const asp_model *model, int64_t n_tokens, const asp_transcoder *coder,
                            int64_t max_bytes, asp_error *err) {
    *out = NULL;
    if (n_tokens < 1 || n_tokens > INT32_MAX)
        return asp_fail(err, ASP_BAD_ARGUMENT, "features are of 1..%d tokens, got %lld", INT32_MAX,
                        (long long)n_tokens);
    if (coder->activation == ASP_TRANSCODER_TOPK && coder->top_k < 1)
        return asp_fail(err, ASP_BAD_ARGUMENT, "top_k must be at least 1, got %lld", (long long)coder->top_k);
    asp_features *f = asp_allocate(1, sizeof *f);
    if (!f) return asp_fail(err, ASP_NO_MEMORY, "no memory for features");
    f->config = model->config;
    f->k_block = model->k_block.model;
    f->n_tokens = n_tokens;
    f->coder = *coder;
    f->coder.absent = NULL;
    f->max_bytes = max_bytes;
    const char *what = "what transcoders write";
    f->layers = asp_features_take(f, f->config.n_layer, sizeof *f->layers, what, err);
    if (f->layers) f->reconstruction = asp_features_take(f, outputs_size(f), sizeof *f->reconstruction, what, err);
    const asp_status status = f->reconstruction ? copy_absent(f, coder->absent, err) : ASP_NO_MEMORY;
    if (status) asp_features_free(f);
    else *out = f;
    return status;
}

static void free_layer_features(asp_features *f, int64_t layer) {
    asp_layer_features *l = &f->layers[layer];
    asp_features_give_back(f, l->start, f->n_tokens + 1, sizeof *l->start);
    asp_features_give_back(f, l->entries, l->n, sizeof *l->entries);
    *l = (asp_layer_features){0};
}

void asp_features_free(asp_features *f) {
    if (!f) return;
    for (int64_t l = 0; f->layers && l < f->config.n_layer; l++) free_layer_features(f, l);
    asp_release(f->layers);
    asp_release((void *)(uintptr_t)f->coder.absent);
    asp_release(f->reconstruction);
    asp_release(f->error);
    asp_arena_free(&f->lists);
    asp_release(f);
}

asp_feature_list asp_features_list(const asp_features *f) { return f->list; }
int64_t asp_features_bytes(const asp_features *f) { return f->bytes; }
const uint8_t *asp_features_absent(const asp_features *f) { return f->coder.absent; }

static asp_array outputs_array(const asp_features *f, asp_real *data) {
    const int64_t e = f->config.d_model, n = f->n_tokens;
    return (asp_array){.data = data, .n_dims = 3, .dims = {f->config.n_layer, n, e}, .strides = {n * e, e, 1}};
}
asp_array asp_features_reconstruction(const asp_features *f) { return outputs_array(f, f->reconstruction); }
asp_array asp_features_error(const asp_features *f) { return outputs_array(f, f->error); }

/* ---- keeping -------------------------------------------------------------------------------- */

/* Sorts what is pending by row, keeping the order of each row's features, into the layer's list. */
static asp_status keep_layer(asp_encoding *w) {
    asp_features *f = w->f;
    asp_layer_features *l = &f->layers[w->layer];
    l->start = asp_features_take(f, f->n_tokens + 1, sizeof *l->start, ASP_FEATURES_ACTIVE, w->err);
    if (!l->start) return ASP_NO_MEMORY;
    l->entries = asp_features_take(f, w->n, sizeof *l->entries, ASP_FEATURES_ACTIVE, w->err);
    if (!l->entries) return ASP_NO_MEMORY;
    l->n = w->n;
    for (int64_t i = 0; i < w->n; i++) l->start[w->pending[i].row + 1]++;
    for (int64_t r = 0; r < f->n_tokens; r++) l->start[r + 1] += l->start[r];
    for (int64_t i = 0; i < w->n; i++) l->entries[l->start[w->pending[i].row]++] = w->pending[i];
    for (int64_t r = f->n_tokens; r > 0; r--) l->start[r] = l->start[r - 1];
    l->start[0] = 0;
    return ASP_OK;
}

/* ---- decoding ---------------------------------------------------------------------------------- */

/* Decoder rows of some of a layer's features, added to the outputs of n_writes layers. */
typedef struct {
    const asp_features *f;
    const asp_layer_features *active;
    const int32_t *place;              /* (F) of a feature among the active ones of the layer */
    int64_t *at;                       /* (N) asp_feature_entry of each row that comes next */
    int64_t layer, n_writes, first, n; /* places [first, first + n) */
    const asp_real *rows;              /* (n, n_writes, E) */
} decode_job;

static void decode_row(void *arg, int64_t item, int thread) {
    (void)thread;
    const decode_job *job = arg;
    const asp_features *f = job->f;
    const int64_t e = f->config.d_model, row = item;
    int64_t i = job->at[row];
    for (; i < job->active->start[row + 1]; i++) {
        const asp_feature_entry *found = &job->active->entries[i];
        const int64_t place = job->place[found->feature] - job->first;
        if (place >= job->n) break;
        for (int64_t t = 0; t < job->n_writes; t++) {
            asp_real *out = f->reconstruction + ((job->layer + t) * f->n_tokens + row) * e;
            const asp_real *add = job->rows + (place * job->n_writes + t) * e;
            for (int64_t j = 0; j < e; j++) out[j] += found->value * add[j];
        }
    }
    job->at[row] = i;
}

/* Numbers of the active features in rising order, and the place of each in that list. */
static int64_t list_active(const asp_layer_features *active, int64_t n_features, int32_t *place, int64_t *features) {
    int64_t n = 0;
    for (int64_t i = 0; i < active->n; i++) place[active->entries[i].feature] = 1;
    for (int64_t j = 0; j < n_features; j++)
        if (place[j]) {
            place[j] = (int32_t)n;
            features[n++] = j;
        }
    return n;
}

static asp_status decode(asp_encoding *w, const asp_transcoder_source *source) {
    asp_features *f = w->f;
    const asp_layer_features *active = &f->layers[w->layer];
    const int64_t n_features = w->encoder->n_features;
    decode_job job = {.f = f,
                      .active = active,
                      .layer = w->layer,
                      .n_writes = f->coder.cross_layer ? f->config.n_layer - w->layer : 1};
    int32_t *place = asp_allocate(n_features, sizeof *place);
    int64_t *features = asp_allocate(n_features, sizeof *features);
    job.place = place;
    job.at = asp_allocate(f->n_tokens, sizeof *job.at);
    asp_status status =
        place && features && job.at ? ASP_OK : asp_fail(w->err, ASP_NO_MEMORY, "no memory to decode features");
    if (!status) {
        memcpy(job.at, active->start, (size_t)f->n_tokens * sizeof *job.at);
        const int64_t n = list_active(active, n_features, place, features);
        const int64_t most = asp_max(1, DECODER_BYTES / (job.n_writes * f->config.d_model * (int64_t)sizeof(asp_real)));
        for (; !status && job.first < n; job.first += most) {
            job.n = asp_min(most, n - job.first);
            status = source->rows(source->state, w->layer, features + job.first, job.n, job.n_writes, &job.rows);
            if (!status) status = asp_parallel_for(w->context, f->n_tokens, decode_row, &job);
        }
    }
    asp_release(place);
    asp_release(features);
    asp_release(job.at);
    return status;
}

static asp_status write_layer(asp_encoding *w, const asp_transcoder_source *source,
                              const asp_transcoder_output *output) {
    const asp_features *f = w->f;
    const int64_t e = f->config.d_model;
    asp_real *out = f->reconstruction + w->layer * f->n_tokens * e;
    asp_status status = decode(w, source);
    if (!status && output->skip) status = asp_encode_skip(w, output->skip, out);
    if (status) return status;
    for (int64_t r = 0; r < f->n_tokens; r++)
        for (int64_t j = 0; j < e; j++) out[r * e + j] += output->bias[j];
    int64_t first;
    if (!asp_model_count_nonfinite(out, f->n_tokens * e, &first)) return ASP_OK;
    return asp_fail(w->err, ASP_BAD_ARGUMENT,
                    "what the transcoders write in layer %lld at token %lld is not finite: their weights hold NaN, "
                    "infinity or very large numbers",
                    (long long)w->layer, (long long)(first / e));
}

/* ---- layers, and the whole --------------------------------------------------------------------- */

/* Moves what the layers hold into the arrays that are lent. */
static asp_status complete(asp_features *f, asp_error *err) {
    const int64_t n_layer = f->config.n_layer;
    int64_t n = 0;
    for (int64_t l = 0; l < n_layer; l++) n += f->layers[l].n;
    int64_t *starts, at = 0;
    int32_t *layers, *positions, *features;
    asp_real *activations;
    asp_arena_part parts[] = {ASP_PART(starts, n_layer + 1, 1), ASP_PART(layers, n, 1), ASP_PART(positions, n, 1),
                              ASP_PART(features, n, 1), ASP_PART(activations, n, 1)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    const int over_limit = asp_arena_lay_out(&f->lists, parts, PARTS) > f->max_bytes - f->bytes;
    if (over_limit || !asp_arena_commit(&f->lists, 1))
        return no_room_for_features(f, over_limit, ASP_FEATURES_ACTIVE, err);
    asp_arena_wire(&f->lists, parts, PARTS);
    f->bytes += f->lists.bytes;
    for (int64_t l = 0; l < n_layer; l++) {
        for (int64_t i = 0; i < f->layers[l].n; i++, at++) {
            const asp_feature_entry *found = &f->layers[l].entries[i];
            layers[at] = (int32_t)l;
            positions[at] = found->row;
            features[at] = found->feature;
            activations[at] = found->value;
        }
        starts[l + 1] = at;
        free_layer_features(f, l);
    }
    f->list = (asp_feature_list){n, starts, layers, positions, features, activations};
    return ASP_OK;
}

/* As asp_features_layer, with changes or NULL. */
static asp_status find_layer(asp_features *f, const asp_transcoder_source *source, const asp_real *x,
                             const asp_feature_changes *changes, const asp_context *context, asp_error *err) {
    const int64_t layer = f->n_layers;
    if (layer >= f->config.n_layer) return asp_fail(err, ASP_BAD_STATE, "these features are complete");
    const int held = changes && changes->held && changes->held_layers[layer];
    asp_encoder encoder = {0};
    asp_transcoder_output output = {0};
    asp_encoding w = {.f = f, .context = context, .err = err, .layer = layer, .encoder = &encoder, .x = x};
    asp_status status = source->output(source->state, layer, &output);
    if (!status) status = source->encoder(source->state, layer, &encoder);
    if (!status) status = asp_encode_open(&w, output.skip != NULL);
    if (!status && held) status = asp_feature_changes_hold(f, layer, changes->held, err);
    else if (!status) status = asp_encode_layer(&w);
    if (!status && !held) status = keep_layer(&w);
    if (!status && changes) status = asp_feature_changes_apply(f, layer, encoder.n_features, changes, err);
    if (!status) status = write_layer(&w, source, &output);
    asp_encode_close(&w);
    if (status) return status;
    f->n_layers++;
    pass_absent(f);
    return f->n_layers == f->config.n_layer ? complete(f, err) : ASP_OK;
}

asp_status asp_features_layer(asp_features *f, const asp_transcoder_source *source, const asp_real *x,
                              const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    return find_layer(f, source, x, NULL, &own, err);
}

asp_status asp_features_of_run(asp_features *f, const asp_run *run, int64_t first, const asp_transcoder_source *source,
                               const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_context own = asp_context_of(context, err);
    context = &own;
    const asp_array x = asp_run_array(run, f->coder.from_mid ? ASP_RESID_MID : ASP_LN2_NORMALIZED);
    const asp_array out = asp_run_array(run, ASP_MLP_OUT);
    const int64_t n = f->n_tokens * f->config.d_model;
    if (!x.data || !out.data)
        return asp_fail(err, ASP_BAD_STATE, "features need a run that recorded %s and mlp_out",
                        asp_run_record_name(f->coder.from_mid ? ASP_RESID_MID : ASP_LN2_NORMALIZED));
    if (first < 0 || first > x.dims[1] - f->n_tokens)
        return asp_fail(err, ASP_BAD_INDEX, "tokens %lld.. are out of range: the run has %lld", (long long)first,
                        (long long)x.dims[1]);
    f->error = asp_features_take(f, outputs_size(f), sizeof *f->error, "what transcoders leave unexplained", err);
    if (!f->error) return ASP_NO_MEMORY;
    asp_status status = asp_blas_enter(context, err);
    if (status) return status;
    for (int64_t l = 0; !status && l < f->config.n_layer; l++)
        if (!is_absent(f, l))
            status = asp_features_layer(f, source, (const asp_real *)x.data + l * x.strides[0] + first * x.strides[1],
                                        context, err);
    asp_blas_leave();
    for (int64_t l = 0; !status && l < f->config.n_layer; l++) {
        const asp_real *mlp = (const asp_real *)out.data + l * out.strides[0] + first * out.strides[1];
        for (int64_t i = 0; i < n; i++) f->error[l * n + i] = mlp[i] - f->reconstruction[l * n + i];
    }
    return status;
}

asp_status asp_features_substitute(void *state, int64_t layer, const asp_real *x, asp_real *out,
                                   const asp_context *context) {
    ASP_ENVIRONMENT;
    const asp_feature_substitute *s = state;
    const asp_features *f = s->features;
    const int64_t n = f->n_tokens * f->config.d_model;
    const asp_features *held = s->changes ? s->changes->held : NULL;
    if (held && (!held->list.start || held->n_tokens != f->n_tokens || held->config.n_layer != f->config.n_layer))
        return asp_fail(s->err, ASP_BAD_ARGUMENT, "held features must be complete and of as many layers and tokens");
    const asp_status status = find_layer(s->features, s->source, x, s->changes, context, s->err);
    if (status) return status;
    memcpy(out, f->reconstruction + layer * n, (size_t)n * sizeof *out);
    for (int64_t i = 0; s->errors && i < n; i++) out[i] += s->errors[layer * n + i];
    return ASP_OK;
}
