/* reference.c: what ablated heads are replaced by, the same in sweeps and in attribution. */
#include <string.h>

#include "circuit/circuit.h"

asp_status asp_replacement_open(asp_replacement *r, const asp_reference *given, const asp_config *config,
                                const int64_t *offsets, int64_t n_sequences, int alike, const char *caller,
                                asp_error *err) {
    *r = (asp_replacement){.given = given, .config = config, .offsets = offsets};
    for (int64_t b = 0; alike && b < n_sequences; b++)
        if (offsets[b + 1] - offsets[b] != offsets[1])
            return asp_fail(err, ASP_BAD_ARGUMENT, "%s: prompt %lld has %lld tokens, prompt 0 has %lld; items with positions and means need prompts of one length",
                            caller, (long long)b, (long long)(offsets[b + 1] - offsets[b]), (long long)offsets[1]);
    if (!given->run) return ASP_OK;
    if (asp_run_n_sequences(given->run) != n_sequences ||
        memcmp(asp_run_offsets(given->run), offsets, (size_t)(n_sequences + 1) * sizeof *offsets) != 0)
        return asp_fail(err, ASP_BAD_ARGUMENT, "%s: the reference run must have prompts of the same lengths", caller);
    r->z = asp_run_array(given->run, ASP_Z);
    r->pattern = asp_run_array(given->run, ASP_PATTERN);
    r->qkv = asp_run_array(given->run, ASP_QKV);
    r->square_start = asp_run_square_start(given->run);
    return ASP_OK;
}

const asp_real *asp_replacement_z(const asp_replacement *r, int64_t layer, int64_t sequence, int64_t head,
                                  int64_t position) {
    const asp_config *c = r->config;
    const int64_t row = r->offsets[sequence], t = r->offsets[sequence + 1] - row;
    if (r->z.data)
        return (const asp_real *)r->z.data + layer * r->z.strides[0] + (row + position) * r->z.strides[1] + head * c->d_head;
    return r->given->z ? r->given->z + ((layer * t + position) * c->n_head + head) * c->d_head : NULL;
}
