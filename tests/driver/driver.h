/* driver.h: the public C interface used without Python, on small models; see driver.c. */
#ifndef DRIVER_H
#define DRIVER_H

#include "asp.h"

enum { N_SEQUENCES = 3, T = 8, N = N_SEQUENCES * T };

/* What the operations share and only read. */
typedef struct {
    asp_model *gated, *dense;
    int32_t tokens[N], targets[N];
    int64_t offsets[N_SEQUENCES + 1], ragged[N_SEQUENCES + 1];
    asp_real weights[N];
    asp_run *clean, *paired, *last; /* of `gated`; paired: other tokens; last: of the first sequence alone */
} fixture;

/* A use of the library, which gives back all that it takes.  Adds the bits of its results to *digest. */
typedef struct {
    const char *name;
    asp_status (*use)(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
} operation;

extern const operation operations[];
extern const int n_operations;

asp_status fixture_open(fixture *f, const asp_context *context, asp_error *err);
void fixture_close(fixture *f);

asp_status small_model(asp_model **model, int kind, asp_error *err);
void fill(asp_real *x, int64_t n, double size, uint64_t seed);
void add_bytes(uint64_t *digest, const void *data, int64_t n);
void add_reals(uint64_t *digest, const asp_real *data, int64_t n);
void add_run(uint64_t *digest, const asp_run *run);
asp_metric small_metric(int64_t n_sequences, asp_metric_kind kind);

/* driver_training.c */
asp_status use_training(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_pieces(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_pieces(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_shared.c */
asp_status use_shared_weights(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_curves.c */
asp_status use_metrics(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_curves(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_generation.c */
asp_status use_greedy_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_drawn_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_changed_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_steering.c */
asp_status use_steering(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_steered_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_steering(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_visited_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_frozen_texts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_stopped_run(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_visit.c */
asp_status use_visitors(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_frozen(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_frozen(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_stopping_visitors(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_effects.c */
asp_status use_effects_of_heads(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_effects_of_positions(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_effects_of_edges(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_effects_of_means(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_effects_of_pairs(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_effects(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_components.c */
asp_status use_component_scores(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_component_inputs(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_component_activations(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_component_routes(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_components(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_patching.c */
asp_status use_patching_of_layers(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_patching_of_heads(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_paths(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_patching(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_circuit.c */
asp_status use_exact_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_attribution_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_ig_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_greedy_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_circuit(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);

/* driver_acdc.c */
asp_status use_acdc(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_acdc_of_means(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_kept_acdc(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_acdc(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);

/* driver_masks.c */
asp_status use_mask_gradients(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_masks_of_probing(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_masks_of_pruning(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_masks(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_patch.c */
asp_status use_neuron_circuits(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_patched_pairs(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_patched_means(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_patched_zeros(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_selection(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_patches(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
/* driver_graph.c */
asp_status use_features(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_replacement(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_graph(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_graph_heads(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_coder_training(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);

/* driver_build.c */
asp_status use_build(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_prune(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_groups(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);

/* driver_features.c */
asp_status use_contexts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_first_weights(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_token_losses(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);

/* driver_lens.c */
asp_status use_lens(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_attribution_to_parts(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_stacks(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_detectors(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_composition(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);
asp_status use_wrong_lens(const fixture *f, const asp_context *context, uint64_t *digest, asp_error *err);

#endif
