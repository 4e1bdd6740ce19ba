/* transcoder.h: internal declarations of transcoders; features.c says how they are encoded. */
#ifndef ASP_TRANSCODER_INTERNAL_H
#define ASP_TRANSCODER_INTERNAL_H

#include "model/model.h"

enum { ASP_ROW_BLOCK = 1024 }; /* rows encoded at once */

typedef struct {
    int32_t row, feature;
    asp_real value;
} asp_feature_entry;

/* Active features of one layer, sorted by (row, feature). */
typedef struct {
    int64_t n;
    int64_t *start;             /* (N+1) */
    asp_feature_entry *entries; /* (n) */
} asp_layer_features;

struct asp_features {
    asp_config config;
    int64_t k_block;            /* of skinny products with k = E */
    int64_t n_tokens, n_layers; /* rows, and layers done */
    asp_transcoder coder;       /* absent: of its own, or NULL */
    int64_t bytes, max_bytes;
    asp_layer_features *layers; /* (L), emptied when the list is made */
    asp_real *reconstruction;   /* (L,N,E) */
    asp_real *error;            /* (L,N,E), or NULL */
    asp_feature_list list;      /* in lists */
    asp_arena lists;
};

#define ASP_FEATURES_ACTIVE "the active features"
/* n zeroed items of some bytes that count towards max_bytes, owned by the caller; NULL if there is no room, and then
 * err says for `what`, and whether max_bytes or the machine has none. */
void *asp_features_take(asp_features *features, int64_t n, int64_t size, const char *what, asp_error *err);
void asp_features_give_back(asp_features *features, void *block, int64_t n, int64_t size);

/* ---- feature_changes.c --------------------------------------------------------- */

/* The layer's features, before there are any, as those of `held`, which is complete and of as many rows. */
asp_status asp_feature_changes_hold(asp_features *features, int64_t layer, const asp_features *held, asp_error *err);
/* Those changes that are of the layer, which has n_features.  Errors: BAD_INDEX, NO_MEMORY. */
asp_status asp_feature_changes_apply(asp_features *features, int64_t layer, int64_t n_features,
                                     const asp_feature_changes *changes, asp_error *err);

/* ---- encode.c ------------------------------------------------------------------- */

/* One layer at work.  Scratch is of one block of rows and of columns. */
typedef struct {
    asp_features *f;
    const asp_context *context;
    asp_error *err;
    int64_t layer;
    const asp_encoder *encoder;
    const asp_real *x;          /* (N,E) read */
    int64_t width;              /* columns of the widest block */
    asp_real *pre;              /* (padded rows, width) */
    asp_real *padded;           /* (padded rows, E), or NULL: x is read where it lies */
    int64_t *offsets;           /* (rows+1) how many are active before a row */
    int64_t *bad;               /* (rows) first feature that is not finite, or -1 */
    asp_feature_entry *best;    /* (rows,k) heaps of a TopK, the worst first */
    int64_t k, *n_best;         /* (rows) */
    asp_feature_entry *pending; /* (capacity) found so far: (row block, feature block, row, feature) */
    int64_t n, capacity;
} asp_encoding;

/* Scratch for the layer's encoder, and for asp_encode_skip if asked; close accepts what open left half-built. */
asp_status asp_encode_open(asp_encoding *encoding, int with_skip);
void asp_encode_close(asp_encoding *encoding);
/* Finds the active features of all rows, into pending. */
asp_status asp_encode_layer(asp_encoding *encoding);
/* out (N,E) added to: x skip^T, skip (E,E) read. */
asp_status asp_encode_skip(asp_encoding *encoding, const asp_real *skip, asp_real *out);

#endif
