/* steering.c: features that are set, scaled or raised in a pass.  What a feature becomes is found where it reads, from
 * the activations of this pass; the change times what the feature writes is added where it writes. */
#include <string.h>

#include "model/hooks.h"
#include "transcoder/transcoder.h"

typedef struct {
    asp_visitor visitor;
    asp_steering given;
    asp_config config;
    int64_t k_block;
    asp_arena arena;
    uint32_t *places;    /* (L+1) */
    int64_t *slot_start; /* (L+1) where the slots of a layer's encoder begin */
    int32_t *slots;      /* of each row of the encoders: which changed feature it is, or -1 */
    asp_real *change;    /* (n,n_texts) of the activation; of ADD from the beginning, else once it has been read */
} steering;

/* ---- checks and life --------------------------------------------------------------------- */

static asp_status wrong_steering(asp_error *err, const char *what, int64_t at) {
    return asp_fail(err, ASP_BAD_ARGUMENT, "steering: %s %lld is out of range or not in order", what, (long long)at);
}

/* -1, 0 or 1: how two places (layer, sequence, position, feature) are ordered by their first n numbers. */
static int compare_places(const int64_t *a, const int64_t *b, int n) {
    for (int i = 0; i < n; i++)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

static asp_status check_steering(const asp_steering *g, const asp_config *c, asp_error *err) {
    if (g->n_texts < 1) return wrong_steering(err, "the number of texts", g->n_texts);
    for (int64_t l = 0; l < c->n_layer; l++) {
        const asp_steered_layer *layer = &g->layers[l];
        if (layer->n_features && (layer->n_writes < 1 || layer->n_writes > c->n_layer - l))
            return wrong_steering(err, "the number of layers that a feature writes to,", layer->n_writes);
        for (int64_t i = 0; i < layer->n_features; i++)
            if (layer->row[i] < 0 || layer->row[i] >= layer->encoder.n_features)
                return wrong_steering(err, "row of an encoder", layer->row[i]);
    }
    for (int64_t i = 0; i < g->n; i++) {
        const int64_t *at = g->at + 4 * i;
        if (at[0] < 0 || at[0] >= c->n_layer || at[3] < 0 || at[3] >= g->layers[at[0]].n_features ||
            (i && compare_places(at - 4, at, 4) >= 0) || g->kind[i] < ASP_STEER_ADD || g->kind[i] > ASP_STEER_SCALE)
            return wrong_steering(err, "change", i);
    }
    return ASP_OK;
}

static void prepare_steering(steering *s) {
    const asp_steering *g = &s->given;
    const uint32_t read = asp_visit_bit(g->coder.from_mid ? ASP_AT_RESID_MID : ASP_AT_LN2_NORMALIZED);
    for (int64_t l = 0; l < s->config.n_layer; l++) {
        const asp_steered_layer *layer = &g->layers[l];
        int32_t *slots = s->slots + s->slot_start[l];
        for (int64_t i = 0; i < layer->encoder.n_features; i++) slots[i] = -1;
        for (int64_t i = 0; i < layer->n_features; i++) slots[layer->row[i]] = (int32_t)i;
        for (int64_t i = 0; layer->n_features && i < layer->n_writes; i++)
            s->places[l + i] |= asp_visit_bit(ASP_AT_MLP_OUT);
    }
    for (int64_t i = 0; i < g->n; i++) {
        if (g->kind[i] != ASP_STEER_ADD) s->places[g->at[4 * i]] |= read;
        for (int64_t t = 0; t < g->n_texts; t++)
            s->change[i * g->n_texts + t] = g->kind[i] == ASP_STEER_ADD ? g->number[i] : 0;
    }
}

static asp_status allocate_steering(steering *s, asp_error *err) {
    const int64_t n_layer = s->config.n_layer;
    int64_t n_slots = 0;
    for (int64_t l = 0; l < n_layer; l++) n_slots += s->given.layers[l].encoder.n_features;
    asp_arena_part parts[] = {ASP_PART(s->places, n_layer + 1, 1), ASP_PART(s->slot_start, n_layer + 1, 1),
                              ASP_PART(s->slots, n_slots, 1), ASP_PART(s->change, s->given.n, s->given.n_texts)};
    enum { PARTS = sizeof parts / sizeof parts[0] };
    if (asp_arena_lay_out(&s->arena, parts, PARTS) == INT64_MAX || !asp_arena_commit(&s->arena, 1))
        return asp_fail(err, ASP_NO_MEMORY, "no memory to steer features");
    asp_arena_wire(&s->arena, parts, PARTS);
    for (int64_t l = 0; l < n_layer; l++)
        s->slot_start[l + 1] = s->slot_start[l] + s->given.layers[l].encoder.n_features;
    return ASP_OK;
}

/* ---- places ------------------------------------------------------------------------------- */

/* The first change that is not before a place. */
static int64_t first_at(const steering *s, int64_t layer, int64_t sequence, int64_t position) {
    const int64_t place[] = {layer, sequence, position};
    int64_t low = 0, high = s->given.n;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (compare_places(s->given.at + 4 * middle, place, 3) < 0) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The first change behind those of the place of change i. */
static int64_t end_of_place(const steering *s, int64_t i) {
    int64_t end = i + 1;
    while (end < s->given.n && compare_places(s->given.at + 4 * i, s->given.at + 4 * end, 3) == 0) end++;
    return end;
}

/* A row of the pass where features of a layer change. */
typedef struct {
    int64_t row, text, begin, end; /* changes [begin, end) */
} steered_row;

/* Rows (n) written unless it is NULL; returns n. */
static int64_t list_rows(const steering *s, const asp_visit *visit, int64_t layer, steered_row *rows) {
    int64_t n = 0;
    for (int64_t b = 0; b < visit->n_sequences; b++) {
        const int64_t first = asp_visit_first(visit, b), t = visit->offsets[b + 1] - visit->offsets[b];
        const int64_t sequence = b / s->given.n_texts, last = first_at(s, layer, sequence, first + t);
        for (int64_t i = first_at(s, layer, sequence, first), end; i < last; i = end, n++) {
            end = end_of_place(s, i);
            if (rows)
                rows[n] =
                    (steered_row){visit->offsets[b] + s->given.at[4 * i + 2] - first, b % s->given.n_texts, i, end};
        }
    }
    return n;
}

/* ---- reading ------------------------------------------------------------------------------- */

/* active (n,n_features) written: activations of the changed features in n rows x (n,E). */
static asp_status read_steered(const steering *s, int64_t layer, const asp_real *x, int64_t n, asp_real *active,
                               const asp_context *context) {
    const asp_steered_layer *steered = &s->given.layers[layer];
    asp_features f = {
        .config = s->config, .k_block = s->k_block, .n_tokens = n, .coder = s->given.coder, .max_bytes = INT64_MAX};
    asp_encoding w = {
        .f = &f, .context = context, .err = context->err, .layer = layer, .encoder = &steered->encoder, .x = x};
    asp_status status = asp_encode_open(&w, 0);
    if (!status) status = asp_encode_layer(&w);
    for (int64_t i = 0; !status && i < w.n; i++) {
        const int32_t slot = s->slots[s->slot_start[layer] + w.pending[i].feature];
        if (slot >= 0) active[w.pending[i].row * steered->n_features + slot] = w.pending[i].value;
    }
    asp_encode_close(&w);
    if (status == ASP_BAD_ARGUMENT)
        asp_fail(context->err, status,
                 "what the steered features of layer %lld read is not finite: the model, the transcoders or patched "
                 "values hold NaN, infinity or very large numbers",
                 (long long)layer);
    return status;
}

static void find_changes(const steering *s, const steered_row *row, const asp_real *active) {
    const asp_steering *g = &s->given;
    for (int64_t i = row->begin; i < row->end; i++) {
        const asp_real own = active[g->at[4 * i + 3]];
        asp_real *change = &s->change[i * g->n_texts + row->text];
        if (g->kind[i] == ASP_STEER_SET) *change = g->number[i] - own;
        if (g->kind[i] == ASP_STEER_SCALE) *change = (g->number[i] - 1) * own;
    }
}

static asp_status read_features(const steering *s, const asp_visit *visit, const asp_context *context) {
    const int64_t e = s->config.d_model, n_features = s->given.layers[visit->layer].n_features;
    const int64_t n = list_rows(s, visit, visit->layer, NULL);
    if (n == 0) return ASP_OK;
    asp_arena arena = {0};
    steered_row *rows;
    asp_real *x, *active;
    asp_arena_part parts[] = {ASP_PART(rows, n, 1), ASP_PART(x, n, e), ASP_PART(active, n, n_features)};
    if (asp_arena_lay_out(&arena, parts, 3) == INT64_MAX || !asp_arena_commit(&arena, 1))
        return asp_fail(context->err, ASP_NO_MEMORY, "no memory to steer features");
    asp_arena_wire(&arena, parts, 3);
    list_rows(s, visit, visit->layer, rows);
    for (int64_t i = 0; i < n; i++) memcpy(x + i * e, visit->rows + rows[i].row * visit->stride, (size_t)e * sizeof *x);
    const asp_status status = read_steered(s, visit->layer, x, n, active, context);
    for (int64_t i = 0; !status && i < n; i++) find_changes(s, &rows[i], active + i * n_features);
    asp_arena_free(&arena);
    return status;
}

/* ---- writing ------------------------------------------------------------------------------- */

typedef struct {
    const steering *s;
    const asp_visit *visit;
    int64_t from; /* layer of the features */
    const steered_row *rows;
} write_job;

static void write_steered(void *arg, int64_t item, int thread) {
    (void)thread;
    const write_job *job = arg;
    const asp_steering *g = &job->s->given;
    const asp_steered_layer *layer = &g->layers[job->from];
    const steered_row *row = &job->rows[item];
    const int64_t e = job->s->config.d_model, after = job->visit->layer - job->from;
    for (int64_t i = row->begin; i < row->end; i++)
        asp_isa_kernels()->axpy(job->visit->rows + row->row * job->visit->stride,
                                job->s->change[i * g->n_texts + row->text],
                                layer->decoder + (g->at[4 * i + 3] * layer->n_writes + after) * e, e);
}

/* Adds what the changed features of a layer write to the outputs of this one. */
static asp_status write_features(const steering *s, const asp_visit *visit, int64_t from, const asp_context *context) {
    const int64_t n = list_rows(s, visit, from, NULL);
    if (n == 0) return ASP_OK;
    steered_row *rows = asp_allocate(n, sizeof *rows);
    if (!rows) return asp_fail(context->err, ASP_NO_MEMORY, "no memory to steer features");
    list_rows(s, visit, from, rows);
    write_job job = {s, visit, from, rows};
    const asp_status status = asp_parallel_for(context, n, write_steered, &job);
    asp_release(rows);
    return status;
}

static asp_status steer(void *state, const asp_visit *visit, const asp_context *context) {
    const steering *s = state;
    asp_status status = ASP_OK;
    if (visit->place != ASP_AT_MLP_OUT) return read_features(s, visit, context);
    for (int64_t l = 0; !status && l <= visit->layer; l++)
        if (s->given.layers[l].n_features && visit->layer - l < s->given.layers[l].n_writes)
            status = write_features(s, visit, l, context);
    return status;
}

asp_status asp_steering_visitor(asp_visitor **visitor, const asp_steering *given, const asp_model *model,
                                asp_error *err) {
    *visitor = NULL;
    asp_status status = check_steering(given, &model->config, err);
    if (status) return status;
    steering *s = asp_allocate(1, sizeof *s);
    if (!s) return asp_fail(err, ASP_NO_MEMORY, "no memory to steer features");
    s->given = *given;
    s->config = model->config;
    s->k_block = model->k_block.model;
    status = allocate_steering(s, err);
    if (!status) {
        prepare_steering(s);
        s->visitor = (asp_visitor){s->places, steer, s};
        *visitor = &s->visitor;
    } else {
        asp_release(s);
    }
    return status;
}

void asp_steering_free(asp_visitor *visitor) {
    if (!visitor) return;
    steering *s = visitor->state;
    asp_arena_free(&s->arena);
    asp_release(s);
}
