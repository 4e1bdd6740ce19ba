/* asp_graph.h: the part of the public C API about attribution graphs; asp.h includes it. */
#ifndef ASP_GRAPH_H
#define ASP_GRAPH_H

#include "asp.h"

/* A run of one prompt taken as it is: with its patterns, gates and LayerNorm scales held, the residual stream is
 * linear between what the MLPs add.  `point` 2 l is the residual stream before layer l (2 L: before the final
 * LayerNorm), 2 l + 1 that between attention and MLP of layer l. */
typedef struct {
    const asp_run *run;          /* recorded PATTERN, LN1_SCALE, LN2_SCALE, LN_FINAL_SCALE */
    const asp_real *output_bias; /* (L,E) read: what is added to every MLP's output, at all positions; or NULL */
    const asp_real *skip;        /* (L,E,E) read: added to an MLP's output: skip times its input; or NULL */
    int skip_from_resid;         /* that input is the residual stream, not the LayerNorm before weight and bias */
} asp_held_run;

/* What is written into the residual stream.  Writes in order of their layer, then position. */
typedef struct {
    int64_t n_sources, n_writes;
    const int32_t *layer;    /* (n_writes) read: 0..L: there from before this layer on */
    const int32_t *position; /* (n_writes) read */
    const int32_t *source;   /* (n_writes) read: whose it is; all writes of a source are at one position */
    const asp_real *vectors; /* (n_writes,E) read */
} asp_writes;

typedef enum {
    ASP_READ_RESID,      /* vector . x */
    ASP_READ_NORMALIZED, /* vector . (x - mean) / scale */
    ASP_READ_LAYERNORM   /* vector . ((x - mean) / scale * weight + bias) */
} asp_reading;

/* What reads the residual stream. */
typedef struct {
    int64_t n_targets;
    const int32_t *point, *position; /* (n_targets) read */
    const uint8_t *reading;          /* (n_targets) read: asp_reading */
    const asp_real *vectors;         /* (n_targets,E) read */
} asp_reads;

/* Linear effect of every source on every target, along all paths through residual stream, attention and skip.
 *   edges (n_targets,n_sources) written    bias (n_targets) written: that of all constants
 * Errors: BAD_STATE for what the run lacks, BAD_INDEX, BAD_ARGUMENT for order, NO_MEMORY, STOPPED. */
asp_status asp_graph_edges(asp_real *edges, double *bias, const asp_model *model, const asp_held_run *frozen,
                           const asp_writes *writes, const asp_reads *reads, const asp_context *context,
                           asp_error *err);
/* What each head's values hold of each source, carried at its own position by the residual stream and by attention
 * to itself.  carried (n_sources,L,H,D) written */
asp_status asp_graph_heads_sources(asp_real *carried, const asp_model *model, const asp_held_run *frozen,
                                   const asp_writes *writes, const asp_context *context, asp_error *err);
/* Derivative of each target with respect to z of each head at the target's position, on paths that stay there;
 * with `alone` through the residual stream only.  received (n_targets,L,H,D) written */
asp_status asp_graph_heads_targets(asp_real *received, const asp_model *model, const asp_held_run *frozen,
                                   const asp_reads *reads, int alone, const asp_context *context, asp_error *err);

/* loadings (n,L,H) written: factor times what each head moves from a source to a target; received_alone serves
 * pairs within one position.
 *   carried (n_sources,L,H,D), received, received_alone (n_targets,L,H,D), pattern (L,H,T,T) read
 *   pairs (n,2) read: source, target    places (n,2) read: position of source, of target    factor (n) read */
typedef struct {
    int64_t n_layer, n_head, d_head, n_tokens, n_pairs;
    const asp_real *carried, *received, *received_alone, *pattern;
    const int64_t *pairs, *places;
    const double *factor;
} asp_loading_inputs;
asp_status asp_graph_heads_loadings(double *loadings, const asp_loading_inputs *inputs, const asp_context *context);

/* Edges by target in CSR: those into node t are [start[t], start[t + 1]). */
typedef struct {
    int64_t n_nodes;
    const int64_t *start; /* (n_nodes+1) */
    const int32_t *source;
    const asp_real *weight;
} asp_adjacency;

/* influence (n_nodes) written: weights (n_nodes) times the sum of all powers of the adjacency, whose rows are
 * made absolute and normalised.  BAD_ARGUMENT if edges run in a circle. */
asp_status asp_graph_prune_influence(double *influence, const asp_adjacency *graph, const double *weights,
                                     const asp_context *context, asp_error *err);
/* factors (n_nodes) written: derivative of the sum of some nodes (`wanted`) with respect to each node's input, where
 * a feature (value finite) passes on what it gets divided by its value; `blocked` nodes pass nothing on.
 *   value (n_nodes) read    wanted, blocked (n_nodes) read: 0 or 1.  Edges lead to nodes of higher number. */
asp_status asp_graph_prune_factors(double *factors, const asp_adjacency *graph, const asp_real *value,
                                   const uint8_t *wanted, const uint8_t *blocked, const asp_context *context);

/* Nodes and edges with most influence, as circuit-tracer prunes.
 *   nodes (n_nodes), edges (start[n_nodes]) written: 1 kept    cumulative (n_nodes) written
 *   always, feature (n_nodes) read: kept whatever their influence; needs an edge to it */
typedef struct {
    const double *weights; /* (n_nodes): of the logits */
    const uint8_t *always, *feature;
    double node_threshold, edge_threshold;
} asp_prune_options;
asp_status asp_graph_prune(uint8_t *nodes, uint8_t *edges, double *cumulative, const asp_adjacency *graph,
                           const asp_prune_options *options, const asp_context *context, asp_error *err);

#endif
