/* circuit.h: what is ablated, and what replaces it. */
#ifndef ASP_CIRCUIT_INTERNAL_H
#define ASP_CIRCUIT_INTERNAL_H

#include "model/hooks.h"

/* ---- reference.c --------------------------------------------------------------- */

/* What ablated items of sequences with these offsets are replaced by. */
typedef struct {
    const asp_reference *given;
    const asp_config *config;
    const int64_t *offsets;      /* (B+1) of the sequences and of the paired run */
    asp_array z, pattern, qkv;   /* of the paired run; data NULL if there is none or it did not record them */
    const int64_t *square_start; /* (B+1) of its pattern */
} asp_reference_view;
/* Checks lengths: `alike` if all sequences must have as many tokens.  caller: begins the error's text. */
asp_status asp_reference_open(asp_reference_view *replacement, const asp_reference *given, const asp_config *config,
                              const int64_t *offsets, int64_t n_sequences, int alike, const char *caller,
                              asp_error *err);
/* What z (D) of an ablated head is at one position, or NULL for zero. */
const asp_real *asp_reference_z(const asp_reference_view *replacement, int64_t layer, int64_t sequence, int64_t head,
                                int64_t position);

/* ---- variants.c ---------------------------------------------------------------- */

/* Packed variants of clean sequences; sequence i of the pass is variants[i], from its first position on. */
typedef struct asp_variants {
    const asp_config *config;
    const asp_variant *variants;
    asp_unit unit;
    const int32_t *order;
    asp_reference_view replacement; /* its offsets are the clean run's */
    asp_array clean_qkv;
    uint8_t *masks; /* (n_threads, longest^2) */
    int64_t longest;
    int last_only; /* z of the last position only */
} asp_variants;
/* Rows of a clean sequence from the variant's first position on. */
static inline int64_t asp_variant_rows(const asp_variant *v, const int64_t *offsets) {
    return offsets[v->sequence + 1] - offsets[v->sequence] - v->first_position;
}
/* Hooks of a pass over the variants; the struct is read while they are used. */
asp_hooks asp_variants_hooks(asp_variants *variants);

#endif
