/* interventions.c: values put in place of activations in one forward pass: outputs of heads, contributions of
 * attention entries, outputs of MLPs, the residual stream.  Everything is checked before the pass begins. */
#include <string.h>

#include "circuit/circuit.h"

/* Interventions of one pass, with their entries sorted by (layer, sequence, head). */
typedef struct {
    asp_hooks hooks;
    const asp_interventions *given;
    const int64_t *offsets;
    int64_t n_sequences, n_head, d_head, width, longest;
    int64_t *entry_start; /* (L*B*H+1) */
    int64_t *entry_index; /* (n_entries) */
    uint8_t *masks;       /* (n_threads, longest^2) */
    asp_real *rows;       /* (n_mlps, E): the residual stream that a replaced MLP output is added to */
} pass;

static int64_t unit_of(const pass *c, int64_t layer, int64_t sequence, int64_t head) {
    return (layer * c->n_sequences + sequence) * c->n_head + head;
}

/* ---- checks ---------------------------------------------------------------------------- */

static asp_status change_out_of_range(asp_error *err, const char *what, int64_t found, int64_t n) {
    return asp_fail(err, ASP_BAD_INDEX, "intervention: %s %lld is out of range 0..%lld", what, (long long)found,
                    (long long)n - 1);
}

static asp_status check_place(const pass *c, int64_t layer, int64_t n_layer, int64_t sequence, int64_t position,
                              asp_error *err) {
    if (layer < 0 || layer >= n_layer) return change_out_of_range(err, "layer", layer, n_layer);
    if (sequence < 0 || sequence >= c->n_sequences) return change_out_of_range(err, "prompt", sequence, c->n_sequences);
    const int64_t t = c->offsets[sequence + 1] - c->offsets[sequence];
    return position < 0 || position >= t ? change_out_of_range(err, "position", position, t) : ASP_OK;
}

static asp_status check_entry_change(const pass *c, const int64_t *at, int64_t n_layer, asp_error *err) {
    asp_status status = check_place(c, at[0], n_layer, at[1], at[3], err);
    if (!status && (at[2] < 0 || at[2] >= c->n_head)) return change_out_of_range(err, "head", at[2], c->n_head);
    if (!status && (at[4] < 0 || at[4] > at[3]))
        return asp_fail(err, ASP_BAD_INDEX, "intervention: key %lld is not among the keys 0..%lld of query %lld",
                        (long long)at[4], (long long)at[3], (long long)at[3]);
    return status;
}

static asp_status check_interventions(const pass *c, int64_t n_layer, asp_error *err) {
    const asp_interventions *g = c->given;
    asp_status status = ASP_OK;
    for (int64_t i = 0; !status && i < g->n_heads; i++) {
        const int64_t *at = g->heads + 4 * i;
        status = check_place(c, at[0], n_layer, at[1], at[3], err);
        if (!status && (at[2] < 0 || at[2] >= c->n_head)) status = change_out_of_range(err, "head", at[2], c->n_head);
    }
    for (int64_t i = 0; !status && i < g->n_entries; i++)
        status = check_entry_change(c, g->entries + 5 * i, n_layer, err);
    for (int64_t i = 0; !status && i < g->n_mlps; i++)
        status = check_place(c, g->mlps[3 * i], n_layer, g->mlps[3 * i + 1], g->mlps[3 * i + 2], err);
    for (int64_t i = 0; !status && i < g->n_resids; i++) {
        const int64_t *at = g->resids + 4 * i;
        status = check_place(c, at[1], at[0] ? n_layer : n_layer + 1, at[2], at[3], err);
    }
    return status;
}

/* ---- life --------------------------------------------------------------------------------- */

/* Sorts the entries by (layer, sequence, head), keeping their order within a unit. */
static void index_entries(pass *c, int64_t n_units) {
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

static asp_status begin(void *state, const asp_model *model, const int64_t *offsets, int64_t n_sequences, int n_threads,
                        asp_error *err) {
    pass *c = state;
    const asp_interventions *given = c->given;
    const asp_config *config = &model->config;
    const int64_t n_units = config->n_layer * n_sequences * config->n_head;
    c->offsets = offsets;
    c->n_sequences = n_sequences;
    c->n_head = config->n_head;
    c->d_head = config->d_head;
    c->width = config->d_model;
    c->longest = asp_shape_longest(offsets, n_sequences);
    const asp_status status = check_interventions(c, config->n_layer, err);
    if (status) return status;
    int complete = 1;
    if (given->n_entries) {
        c->entry_start = asp_allocate(n_units + 1, sizeof *c->entry_start);
        c->entry_index = asp_allocate(given->n_entries, sizeof *c->entry_index);
        c->masks = asp_allocate(n_threads * c->longest, (size_t)c->longest);
        complete = c->entry_start && c->entry_index && c->masks;
    }
    if (given->n_mlps)
        complete = complete && (c->rows = asp_allocate(given->n_mlps * config->d_model, sizeof *c->rows));
    if (!complete) return asp_fail(err, ASP_NO_MEMORY, "no memory for interventions");
    if (given->n_entries) index_entries(c, n_units);
    return ASP_OK;
}

static void end(void *state) {
    pass *c = state;
    asp_release(c->entry_start);
    asp_release(c->entry_index);
    asp_release(c->masks);
    asp_release(c->rows);
    c->entry_start = c->entry_index = NULL;
    c->masks = NULL;
    c->rows = NULL;
    c->longest = 0;
}

/* ---- during the pass -------------------------------------------------------------------------- */

static int has_query(const asp_attention_task *task, int64_t query) {
    return query >= task->first && query < task->n_tokens;
}

/* The mask of the task's queries and keys, NULL if no entry of this head and sequence is replaced. */
static const uint8_t *mask_of(const pass *c, const asp_attention_task *task, int64_t unit, int thread) {
    if (!c->entry_start || c->entry_start[unit] == c->entry_start[unit + 1]) return NULL;
    const int64_t t = task->n_tokens;
    uint8_t *mask = c->masks + thread * c->longest * c->longest;
    memset(mask, 0, (size_t)((t - task->first) * t));
    for (int64_t i = c->entry_start[unit]; i < c->entry_start[unit + 1]; i++) {
        const int64_t *at = c->given->entries + 5 * c->entry_index[i];
        if (has_query(task, at[3])) mask[(at[3] - task->first) * t + at[4]] = 1;
    }
    return mask;
}

/* Adds the new contributions of replaced entries to z. */
static void add_entries(const pass *c, int64_t unit, const asp_attention_task *task) {
    if (!c->given->entry_values) return;
    for (int64_t i = c->entry_start[unit]; i < c->entry_start[unit + 1]; i++) {
        const int64_t index = c->entry_index[i], query = c->given->entries[5 * index + 3];
        if (!has_query(task, query)) continue;
        const asp_real *value = c->given->entry_values + index * c->d_head;
        asp_real *row = task->z + (query - task->first) * task->z_stride;
        for (int64_t j = 0; j < c->d_head; j++) row[j] += value[j];
    }
}

static void attention(void *state, asp_attention_task *task, int64_t layer, int64_t sequence, int64_t head,
                      int thread) {
    const pass *c = state;
    const int64_t unit = unit_of(c, layer, sequence, head);
    task->dropped = mask_of(c, task, unit, thread);
    asp_isa_kernels()->attention_forward(task);
    if (task->dropped && task->z) add_entries(c, unit, task);
}

/* x (n) becomes value (n), or is increased by it where the i-th of a list is added. */
static void put_given(asp_real *x, const asp_real *value, int64_t n, const uint8_t *added, int64_t i) {
    if (added && added[i]) asp_isa_kernels()->add(x, value, n);
    else memcpy(x, value, (size_t)n * sizeof *x);
}

static const asp_real *replace_given_heads(void *state, const asp_activations *acts, int64_t layer) {
    const pass *c = state;
    const asp_interventions *g = c->given;
    asp_real *z = acts->z.data + layer * acts->z.stride;
    for (int64_t i = 0; i < g->n_heads; i++) {
        const int64_t *at = g->heads + 4 * i, row = at[0] == layer ? asp_hooks_row(acts, at[1], at[3]) : -1;
        if (row >= 0)
            put_given(z + (row * c->n_head + at[2]) * c->d_head, g->head_values + i * c->d_head, c->d_head,
                      g->heads_added, i);
    }
    return z;
}

static void replace_residual(const pass *c, const asp_activations *acts, int half, int64_t layer, asp_real *x) {
    const asp_interventions *g = c->given;
    for (int64_t i = 0; i < g->n_resids; i++) {
        const int64_t *at = g->resids + 4 * i;
        const int64_t row = (at[0] != 0) == half && at[1] == layer ? asp_hooks_row(acts, at[2], at[3]) : -1;
        if (row >= 0) put_given(x + row * c->width, g->resid_values + i * c->width, c->width, g->resids_added, i);
    }
}

/* The row of the i-th replaced MLP output in this layer; -1: it is not in this pass, or in another layer. */
static int64_t row_of_mlp(const pass *c, const asp_activations *acts, int64_t layer, int64_t i) {
    const int64_t *at = c->given->mlps + 3 * i;
    return at[0] == layer ? asp_hooks_row(acts, at[1], at[2]) : -1;
}

/* Keeps the rows that replaced outputs of the layer's MLP will be added to. */
static void keep_rows(void *state, const asp_activations *acts, int64_t layer, const asp_real *mid) {
    const pass *c = state;
    for (int64_t i = 0; i < c->given->n_mlps; i++) {
        const int64_t row = row_of_mlp(c, acts, layer, i);
        if (row >= 0) memcpy(c->rows + i * c->width, mid + row * c->width, (size_t)c->width * sizeof *mid);
    }
}

/* out: the MLP's output if it is recorded, or NULL. */
static void replace_mlps(const pass *c, const asp_activations *acts, int64_t layer, asp_real *x, asp_real *out) {
    const asp_interventions *g = c->given;
    for (int64_t i = 0; i < g->n_mlps; i++) {
        const int64_t row = row_of_mlp(c, acts, layer, i);
        if (row < 0) continue;
        const asp_real *value = g->mlp_values + i * c->width, *kept = c->rows + i * c->width;
        if (!g->mlps_added || !g->mlps_added[i]) memcpy(x + row * c->width, kept, (size_t)c->width * sizeof *x);
        asp_isa_kernels()->add(x + row * c->width, value, c->width);
        if (out) put_given(out + row * c->width, value, c->width, g->mlps_added, i);
    }
}

static void residual(void *state, const asp_activations *acts, asp_point point, int64_t layer, asp_real *x) {
    const pass *c = state;
    if (point != ASP_POINT_POST) replace_residual(c, acts, point == ASP_POINT_MID, layer, x);
    if (point == ASP_POINT_POST) replace_mlps(c, acts, layer, x, asp_slot_at(acts->mlp_out, layer));
}

asp_status asp_interventions_hooks(asp_hooks **hooks, const asp_interventions *given, asp_error *err) {
    pass *c = asp_allocate(1, sizeof *c);
    *hooks = c ? &c->hooks : NULL;
    if (!c) return asp_fail(err, ASP_NO_MEMORY, "no memory for interventions");
    c->given = given;
    c->hooks = (asp_hooks){.state = c,
                           .begin = begin,
                           .end = end,
                           .attention = attention,
                           .output_input = replace_given_heads,
                           .residual = residual,
                           .mlp_input = keep_rows};
    return ASP_OK;
}

void asp_interventions_free(asp_hooks *hooks) {
    if (hooks) asp_release(hooks->state);
}
