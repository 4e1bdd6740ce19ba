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

/* Of each thread. */
typedef struct {
    const asp_real **rows, **held; /* (longest) */
    asp_real **z_rows;             /* (longest) */
    int64_t *queries, *attending;  /* (longest) */
    uint8_t *mask;                 /* (longest^2) */
} asp_variant_scratch;

/* Variants of clean sequences.  Every row of the residual stream is computed
 * once: the rows of the pass are those that some variant has as its own, in any order. */
typedef struct asp_variants {
    const asp_config *config;
    const asp_variant *variants;
    asp_unit unit;
    const int32_t *order;
    asp_reference_view replacement; /* its offsets are the clean run's */
    asp_array clean_qkv;
    int64_t longest;
    int32_t *own;            /* (n_variants,longest) the layer before which a row is first the variant's own */
    int32_t *before, *after; /* (n_variants,longest) row of the pass before and behind the layer; -1: the clean one */
    asp_variant_scratch scratch; /* (n_threads) of each */
    int last_only;               /* z of the last position only */
} asp_variants;
/* Tokens of a variant's sequence. */
static inline int64_t asp_variant_length(const asp_variants *vs, const asp_variant *v) {
    return vs->replacement.offsets[v->sequence + 1] - vs->replacement.offsets[v->sequence];
}
/* Attention of one layer of the first n variants.  acts: q, k and v of the rows are read, z is written. */
asp_status asp_variants_attention(const asp_variants *variants, const asp_model *model, const asp_activations *acts,
                                  int64_t layer, int64_t n, const asp_gate *gate, const asp_scratch *scratch,
                                  const asp_context *context);

/* ---- sharing.c ----------------------------------------------------------------- */

/* Whether a variant may share rows with the one before it, instead of with the clean run. */
int asp_sharing_follows(const asp_variant *variant, const asp_variant *before);
/* own (T) written: the lowest layer before which the row at a position is not that of the parent (NULL: of the clean
 * run), L + 1 if there is none.  Returns how many rows a pass must have for them. */
int64_t asp_sharing_own_rows(int32_t *own, const asp_variants *vs, const asp_variant *variant,
                             const asp_variant *parent);

#endif
