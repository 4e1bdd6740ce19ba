/* intervene.c: values put in place of activations in one forward pass: outputs of heads, contributions of
 * attention entries, outputs of MLPs, the residual stream.  Everything is checked before the pass begins. */
#include <string.h>

#include "internal.h"

static int64_t unit_of(const asp_changes *c, int64_t layer, int64_t sequence, int64_t head) {
    return (layer * c->n_sequences + sequence) * c->n_head + head;
}

static int64_t row_of(const asp_changes *c, int64_t sequence, int64_t position) {
    return c->offsets[sequence] + position;
}

/* ---- checks ---------------------------------------------------------------------------- */

static asp_status out_of_range(asp_error *err, const char *what, int64_t found, int64_t n) {
    return asp_fail(err, ASP_BAD_INDEX, "intervention: %s %lld is out of range 0..%lld", what, (long long)found,
                    (long long)n - 1);
}

static asp_status check_place(const asp_changes *c, int64_t layer, int64_t n_layer, int64_t sequence, int64_t position,
                              asp_error *err) {
    if (layer < 0 || layer >= n_layer) return out_of_range(err, "layer", layer, n_layer);
    if (sequence < 0 || sequence >= c->n_sequences) return out_of_range(err, "prompt", sequence, c->n_sequences);
    const int64_t t = c->offsets[sequence + 1] - c->offsets[sequence];
    return position < 0 || position >= t ? out_of_range(err, "position", position, t) : ASP_OK;
}

static asp_status check_entry(const asp_changes *c, const int64_t *at, int64_t n_layer, asp_error *err) {
    asp_status status = check_place(c, at[0], n_layer, at[1], at[3], err);
    if (!status && (at[2] < 0 || at[2] >= c->n_head)) return out_of_range(err, "head", at[2], c->n_head);
    if (!status && (at[4] < 0 || at[4] > at[3]))
        return asp_fail(err, ASP_BAD_INDEX, "intervention: key %lld is not among the keys 0..%lld of query %lld",
                        (long long)at[4], (long long)at[3], (long long)at[3]);
    return status;
}

static asp_status check(const asp_changes *c, int64_t n_layer, asp_error *err) {
    const asp_interventions *g = c->given;
    asp_status status = ASP_OK;
    for (int64_t i = 0; !status && i < g->n_heads; i++) {
        const int64_t *at = g->heads + 4 * i;
        status = check_place(c, at[0], n_layer, at[1], at[3], err);
        if (!status && (at[2] < 0 || at[2] >= c->n_head)) status = out_of_range(err, "head", at[2], c->n_head);
    }
    for (int64_t i = 0; !status && i < g->n_entries; i++) status = check_entry(c, g->entries + 5 * i, n_layer, err);
    for (int64_t i = 0; !status && i < g->n_mlps; i++)
        status = check_place(c, g->mlps[3 * i], n_layer, g->mlps[3 * i + 1], g->mlps[3 * i + 2], err);
    for (int64_t i = 0; !status && i < g->n_resids; i++) {
        const int64_t *at = g->resids + 4 * i;
        status = check_place(c, at[1], at[0] ? n_layer : n_layer + 1, at[2], at[3], err);
    }
    return status;
}

/* ---- life --------------------------------------------------------------------------------- */

void asp_changes_free(asp_changes *c) {
    if (!c) return;
    asp_release(c->entry_start);
    asp_release(c->entry_index);
    asp_release(c->masks);
    asp_release(c->rows);
    asp_release(c);
}

/* Sorts the entries by (layer, sequence, head), keeping their order within a unit. */
static void index_entries(asp_changes *c, int64_t n_units) {
    const asp_interventions *g = c->given;
    for (int64_t i = 0; i < g->n_entries; i++) {
        const int64_t *at = g->entries + 5 * i;
        c->entry_start[unit_of(c, at[0], at[1], at[2]) + 1]++;
    }
    for (int64_t u = 0; u < n_units; u++) c->entry_start[u + 1] += c->entry_start[u];
    for (int64_t i = 0; i < g->n_entries; i++) {
        const int64_t *at = g->entries + 5 * i;
        c->entry_index[c->entry_start[unit_of(c, at[0], at[1], at[2])]++] = i;
    }
    for (int64_t u = n_units; u > 0; u--) c->entry_start[u] = c->entry_start[u - 1];
    c->entry_start[0] = 0;
}

asp_status asp_changes_new(asp_changes **out, const asp_interventions *given, const asp_model *model,
                           const int64_t *offsets, int64_t n_sequences, int n_threads, asp_error *err) {
    const asp_config *config = &model->config;
    const int64_t n_units = config->n_layer * n_sequences * config->n_head;
    asp_changes *c = asp_allocate(1, sizeof *c);
    *out = c;
    if (!c) return asp_fail(err, ASP_NO_MEMORY, "no memory for interventions");
    c->given = given;
    c->offsets = offsets;
    c->n_sequences = n_sequences;
    c->n_head = config->n_head;
    for (int64_t b = 0; b < n_sequences; b++) c->longest = asp_max(c->longest, offsets[b + 1] - offsets[b]);
    const asp_status status = check(c, config->n_layer, err);
    if (status) return status;
    int complete = 1;
    if (given->n_entries) {
        c->entry_start = asp_allocate(n_units + 1, sizeof *c->entry_start);
        c->entry_index = asp_allocate(given->n_entries, sizeof *c->entry_index);
        c->masks = asp_allocate(n_threads * c->longest, (size_t)c->longest);
        complete = c->entry_start && c->entry_index && c->masks;
    }
    if (given->n_mlps) complete = complete && (c->rows = asp_allocate(given->n_mlps * config->d_model, sizeof *c->rows));
    if (!complete) return asp_fail(err, ASP_NO_MEMORY, "no memory for interventions");
    if (given->n_entries) index_entries(c, n_units);
    return ASP_OK;
}

/* ---- during the pass -------------------------------------------------------------------------- */

const uint8_t *asp_changes_mask(const asp_changes *c, int64_t layer, int64_t sequence, int64_t head, int thread) {
    if (!c->entry_start) return NULL;
    const int64_t unit = unit_of(c, layer, sequence, head), t = c->offsets[sequence + 1] - c->offsets[sequence];
    if (c->entry_start[unit] == c->entry_start[unit + 1]) return NULL;
    uint8_t *mask = c->masks + thread * c->longest * c->longest;
    memset(mask, 0, (size_t)(t * t));
    for (int64_t i = c->entry_start[unit]; i < c->entry_start[unit + 1]; i++) {
        const int64_t *at = c->given->entries + 5 * c->entry_index[i];
        mask[at[3] * t + at[4]] = 1;
    }
    return mask;
}

void asp_changes_entries(const asp_changes *c, int64_t layer, int64_t sequence, int64_t head, asp_real *z,
                         int64_t z_stride, int64_t d_head) {
    const int64_t unit = unit_of(c, layer, sequence, head);
    if (!c->given->entry_values) return;
    for (int64_t i = c->entry_start[unit]; i < c->entry_start[unit + 1]; i++) {
        const int64_t index = c->entry_index[i];
        const asp_real *value = c->given->entry_values + index * d_head;
        asp_real *row = z + c->given->entries[5 * index + 3] * z_stride;
        for (int64_t j = 0; j < d_head; j++) row[j] += value[j];
    }
}

void asp_changes_heads(const asp_changes *c, int64_t layer, asp_real *z, int64_t d_head) {
    const asp_interventions *g = c->given;
    for (int64_t i = 0; i < g->n_heads; i++) {
        const int64_t *at = g->heads + 4 * i;
        if (at[0] == layer)
            memcpy(z + (row_of(c, at[1], at[3]) * c->n_head + at[2]) * d_head, g->head_values + i * d_head,
                   (size_t)d_head * sizeof *z);
    }
}

void asp_changes_resid(const asp_changes *c, int half, int64_t layer, asp_real *x, int64_t width) {
    const asp_interventions *g = c->given;
    for (int64_t i = 0; i < g->n_resids; i++) {
        const int64_t *at = g->resids + 4 * i;
        if ((at[0] != 0) == half && at[1] == layer)
            memcpy(x + row_of(c, at[2], at[3]) * width, g->resid_values + i * width, (size_t)width * sizeof *x);
    }
}

void asp_changes_before_mlp(const asp_changes *c, int64_t layer, const asp_real *mid, int64_t width) {
    const asp_interventions *g = c->given;
    for (int64_t i = 0; i < g->n_mlps; i++) {
        const int64_t *at = g->mlps + 3 * i;
        if (at[0] == layer)
            memcpy(c->rows + i * width, mid + row_of(c, at[1], at[2]) * width, (size_t)width * sizeof *mid);
    }
}

void asp_changes_after_mlp(const asp_changes *c, int64_t layer, asp_real *resid, asp_real *out, int64_t width) {
    const asp_interventions *g = c->given;
    for (int64_t i = 0; i < g->n_mlps; i++) {
        const int64_t *at = g->mlps + 3 * i;
        if (at[0] != layer) continue;
        const asp_real *value = g->mlp_values + i * width, *kept = c->rows + i * width;
        asp_real *row = resid + row_of(c, at[1], at[2]) * width;
        for (int64_t j = 0; j < width; j++) row[j] = kept[j] + value[j];
        if (out) memcpy(out + row_of(c, at[1], at[2]) * width, value, (size_t)width * sizeof *out);
    }
}
