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

/* *total = the sum of n edges, each times a factor.  weight, factor (n) read */
asp_status asp_graph_heads_total(double *total, const asp_real *weight, const double *factor, int64_t n,
                                 const asp_context *context);
/* The edges from some nodes to others, split by head.
 *   by_head (L,H) written: the sum of the loadings of all pairs
 *   direct written: what is left of pairs within one position; remainder written: of the others, and of edges whose
 *     source has no position */
typedef struct {
    asp_loading_inputs placed;
    const asp_real *weight; /* (n_pairs) read: of the pairs' edges */
    int64_t n_loose;        /* edges whose source has no position */
    const asp_real *loose_weight;
    const double *loose_factor; /* (n_loose) read */
} asp_between_inputs;
asp_status asp_graph_heads_between(double *by_head, double *direct, double *remainder, const asp_between_inputs *inputs,
                                   const asp_context *context, asp_error *err);
/* Parts of a whole, which is the sum of parts and rest.
 *   order (n_parts) written: by falling |part| if absolute, else by falling share; of equal ones the first
 *   share, cumulative (n_parts+n_rest) written: of the parts in that order, then of the rest */
typedef struct {
    const double *parts, *rest; /* (n_parts), (n_rest) read */
    int64_t n_parts, n_rest;
    int absolute;
} asp_shares_inputs;
asp_status asp_graph_heads_shares(double *share, double *cumulative, int64_t *order, double *whole,
                                  const asp_shares_inputs *inputs, const asp_context *context, asp_error *err);
/* What attention entries give to the targets at their query, for several weights of these.
 *   effects (n_weights) written: the sum over entries and targets of the effect times the weight */
typedef struct {
    int64_t n_layer, n_head, d_head, n_tokens, n_targets, n_entries, n_weights;
    const asp_real *received; /* (n_targets,L,H,D) read */
    const asp_real *pattern;  /* (L,H,T,T) read */
    const asp_real *values;   /* (L,T,H,D) read */
    const int64_t *entries;   /* (n_entries,4) read: layer, head, query, key */
    const double *weights;    /* (n_weights,n_targets) read */
} asp_entry_inputs;
asp_status asp_graph_heads_entries(double *effects, const asp_entry_inputs *inputs, const asp_context *context);
/* moved (L,H,T) written: how much each entry of a query moves from all sources at its key to some targets, each
 * counted by its size times a weight. */
typedef struct {
    int64_t n_layer, n_head, d_head, n_tokens, n_sources, n_rows, query;
    const asp_real *carried;  /* (n_sources,L,H,D) read */
    const asp_real *received; /* (.,L,H,D) read */
    const asp_real *pattern;  /* (L,H,T,T) read */
    const int32_t *position;  /* (n_sources) read */
    const int64_t *rows;      /* (n_rows) read: of the targets in received */
    const double *weights;    /* (n_rows) read */
} asp_moved_inputs;
asp_status asp_graph_heads_moved(double *moved, const asp_moved_inputs *inputs, const asp_context *context,
                                 asp_error *err);

/* The score of an entry as a sum over pairs of nodes.
 *   pairs (n_nodes,n_nodes) written: query's side in rows, key's in columns    used (n_nodes) written: 1 where a pair of
 *   the node is not 0, and for the bias    *score written: their sum */
typedef struct {
    int64_t n_nodes, n_sources, d_head;
    const asp_real *rows[2]; /* (D,n_sources) read: effect of each source on the query, and on the key */
    const double *bias[2];   /* (D) read: that of the constants */
    const int64_t *node;     /* (n_sources) read: the node that stands for each source */
    int64_t bias_node;
    double scale;
} asp_pairs_inputs;
asp_status asp_graph_pairs(double *pairs, uint8_t *used, double *score, const asp_pairs_inputs *inputs,
                           const asp_context *context, asp_error *err);
/* The nodes with the largest pairs, one of which is `rest`, to which the pairs of all others are added.
 *   kept (n_kept) written: rising    merged (n_kept,n_kept) written    pairs (p,p) read; n_kept in 1..p */
asp_status asp_graph_pairs_largest(int64_t *kept, double *merged, const double *pairs, int64_t p, int64_t rest,
                                   int64_t n_kept, const asp_context *context, asp_error *err);

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
