/* feature_changes.c: what an experiment makes of the active features of a layer before they are decoded. */
#include "transcoder/transcoder.h"

asp_status asp_feature_changes_hold(asp_features *f, int64_t layer, const asp_features *held, asp_error *err) {
    const asp_feature_list *list = &held->list;
    const int64_t first = list->start[layer], n = list->start[layer + 1] - first;
    asp_layer_features *l = &f->layers[layer];
    l->start = asp_features_take(f, f->n_tokens + 1, sizeof *l->start, ASP_FEATURES_ACTIVE, err);
    if (!l->start) return ASP_NO_MEMORY;
    l->entries = asp_features_take(f, n, sizeof *l->entries, ASP_FEATURES_ACTIVE, err);
    if (!l->entries) return ASP_NO_MEMORY;
    l->n = n;
    for (int64_t i = 0; i < n; i++) {
        l->entries[i] =
            (asp_feature_entry){list->position[first + i], list->feature[first + i], list->activation[first + i]};
        l->start[list->position[first + i] + 1]++;
    }
    for (int64_t r = 0; r < f->n_tokens; r++) l->start[r + 1] += l->start[r];
    return ASP_OK;
}

/* Where the changes of a layer begin, and with layer + 1 where they end. */
static int64_t first_change(const asp_feature_changes *c, int64_t layer) {
    int64_t i = 0;
    while (i < c->n && c->layer[i] < layer) i++;
    return i;
}

static asp_status check_changes(const asp_feature_changes *c, int64_t first, int64_t end, int64_t n_rows,
                                int64_t n_features, asp_error *err) {
    for (int64_t i = first; i < end; i++)
        if (c->row[i] < 0 || c->row[i] >= n_rows || c->feature[i] < 0 || c->feature[i] >= n_features)
            return asp_fail(err, ASP_BAD_INDEX,
                            "feature %d of layer %d at token %d, which is to be changed, is out of range: there are "
                            "%lld features and %lld tokens",
                            c->feature[i], c->layer[i], c->row[i], (long long)n_features, (long long)n_rows);
    return ASP_OK;
}

/* Entries of a layer and changes [first, end) together, both by row and feature; entries (n) written unless NULL, start
 * (N+1) written.  Returns n: what becomes 0 is no entry. */
static int64_t merge_changes(const asp_features *f, const asp_layer_features *l, const asp_feature_changes *c,
                             int64_t first, int64_t end, asp_feature_entry *entries, int64_t *start) {
    int64_t n = 0, next = first;
    start[0] = 0;
    for (int64_t row = 0; row < f->n_tokens; row++) {
        int64_t i = l->start[row];
        for (;;) {
            const int more = i < l->start[row + 1], changed = next < end && c->row[next] == row;
            if (!more && !changed) break;
            asp_feature_entry found = {(int32_t)row, changed ? c->feature[next] : INT32_MAX, 0};
            const int own = more && l->entries[i].feature <= found.feature;
            if (own) found = l->entries[i++];
            if (changed && found.feature == c->feature[next]) {
                found.value = c->factor[next] * found.value + c->added[next];
                next++;
            }
            if (found.value == 0) continue;
            if (entries) entries[n] = found;
            n++;
        }
        start[row + 1] = n;
    }
    return n;
}

asp_status asp_feature_changes_apply(asp_features *f, int64_t layer, int64_t n_features, const asp_feature_changes *c,
                                     asp_error *err) {
    asp_layer_features *l = &f->layers[layer];
    const int64_t first = first_change(c, layer), end = first_change(c, layer + 1);
    if (first == end) return ASP_OK;
    const asp_status status = check_changes(c, first, end, f->n_tokens, n_features, err);
    if (status) return status;
    int64_t *start = asp_features_take(f, f->n_tokens + 1, sizeof *start, ASP_FEATURES_ACTIVE, err);
    if (!start) return ASP_NO_MEMORY;
    const int64_t n = merge_changes(f, l, c, first, end, NULL, start);
    asp_feature_entry *entries = asp_features_take(f, n, sizeof *entries, ASP_FEATURES_ACTIVE, err);
    if (!entries) {
        asp_features_give_back(f, start, f->n_tokens + 1, sizeof *start);
        return ASP_NO_MEMORY;
    }
    merge_changes(f, l, c, first, end, entries, start);
    asp_features_give_back(f, l->start, f->n_tokens + 1, sizeof *l->start);
    asp_features_give_back(f, l->entries, l->n, sizeof *l->entries);
    *l = (asp_layer_features){n, start, entries};
    return ASP_OK;
}
