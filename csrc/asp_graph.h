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
 * Stage of progress: "graph edges" (targets).
 * Errors: BAD_STATE for what the run lacks, BAD_INDEX, BAD_ARGUMENT for order, NO_MEMORY, STOPPED. */
asp_status asp_graph_edges(asp_real *edges, double *bias, const asp_model *model, const asp_held_run *frozen,
                           const asp_writes *writes, const asp_reads *reads, const asp_context *context,
                           asp_error *err);
/* What each head's values hold of each source, carried at its own position by the residual stream and by attention
 * to itself.  carried (n_rows,L,H,D) written    row (n_sources) read: of each source in carried, -1: none */
asp_status asp_graph_heads_sources(asp_real *carried, const asp_model *model, const asp_held_run *frozen,
                                   const asp_writes *writes, const int64_t *row, int64_t n_rows,
                                   const asp_context *context, asp_error *err);
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

/* factors (n_nodes) written: derivative of the sum of some nodes (`wanted`) with respect to each node's input, where
 * a feature (value finite) passes on what it gets divided by its value; `blocked` nodes pass nothing on.
 *   value (n_nodes) read    wanted, blocked (n_nodes) read: 0 or 1.  Edges lead to nodes of higher number. */
asp_status asp_graph_prune_factors(double *factors, const asp_adjacency *graph, const asp_real *value,
                                   const uint8_t *wanted, const uint8_t *blocked, const asp_context *context);
/* parts (n_nodes) written: of each node's value, the share that comes from some nodes (`origin`, whose own is 1) along
 * paths that stay at one position; 0 for nodes without a position (below 0).  A feature passes on what it gets divided
 * by its value.
 *   value, position (n_nodes) read    origin (n_nodes) read: 0 or 1.  As for factors, edges between features lead to
 *   those of higher number. */
asp_status asp_graph_prune_within(double *parts, const asp_adjacency *graph, const asp_real *value,
                                  const int64_t *position, const uint8_t *origin, const asp_context *context);

/* ---- a graph --------------------------------------------------------------------- */

/* Kinds of nodes, in the order that the nodes of a graph have. */
typedef enum {
    ASP_GRAPH_FEATURE,  /* active at a position, by layer, position and number */
    ASP_GRAPH_ERROR,    /* of an MLP, by layer and position */
    ASP_GRAPH_TOKEN,    /* its embedding */
    ASP_GRAPH_POSITION, /* its embedding */
    ASP_GRAPH_BIAS,     /* all constants */
    ASP_GRAPH_OTHER,    /* the features that are no nodes, together */
    ASP_GRAPH_LOGIT,
    ASP_N_GRAPH_KINDS
} asp_graph_kind;

/* n nodes, m edges, P nodes before the bias, R targets: features, then logits; the heads' L, H and D. */
typedef struct {
    int64_t n_nodes, n_edges, n_placed, n_targets, n_layer, n_head, d_head;
} asp_graph_sizes;

typedef struct {
    int32_t *kind;                 /* (n): asp_graph_kind, rising */
    int32_t *layer;                /* (n): -1 for tokens, positions, bias and other, L for logits */
    int32_t *position;             /* (n): -1 for bias and other */
    int32_t *feature;              /* (n): number of a feature, token id of tokens and logits, else -1 */
    asp_real *value, *probability; /* (n): of features and logits, of logits; NaN for the rest */
    int64_t *start;                /* (n+1): the edges into node t are [start[t], start[t + 1]) */
    int32_t *source;               /* (m), rising for each target */
    asp_real *weights;             /* (m) */
    asp_real *carried;             /* (P,L,H,D), see asp_graph_heads_sources */
    asp_real *received;            /* (R,L,H,D), see asp_graph_heads_targets */
    asp_real *received_alone;      /* (R,L,H,D) */
} asp_graph_arrays;

/* An attribution graph: all of its arrays in one arena. */
typedef struct asp_graph asp_graph;

/* With arrays of zeros, which the caller fills before anything reads them.  Errors: BAD_ARGUMENT, NO_MEMORY. */
asp_status asp_graph_new(asp_graph **graph, const asp_graph_sizes *sizes, asp_error *err);
void asp_graph_free(asp_graph *graph);
const asp_graph_sizes *asp_graph_get_sizes(const asp_graph *graph);
const asp_graph_arrays *asp_graph_get_arrays(const asp_graph *graph);
int64_t asp_graph_bytes(const asp_graph *graph);
/* BAD_ARGUMENT unless kinds rise and fit the numbers of nodes with a place and of targets, and start and source make
 * edges between the nodes; asked once about arrays from elsewhere. */
asp_status asp_graph_check(const asp_graph *graph, asp_error *err);

/* ---- making one ------------------------------------------------------------------ */

/* Where the writes of a prompt's sources lie, by layer, position and source.  Sources: the active features, errors by
 * layer and position, tokens, positions.
 *   rows (W) read off the list of writes in the order in which they are found: those of tokens, positions, errors;
 *     then, for each layer, of its features to the output of its MLP, of its features to the next one, ...
 *   layer, position, source (W) written as asp_writes has them    rows (W) written: where each write found is in these */
typedef struct {
    int64_t n_layer, n_tokens, n_features;
    const int32_t *layer, *position; /* (n_features) read: of the active features, by layer */
    const int64_t *n_outputs;        /* (L) read: MLP outputs that a feature of the layer writes to */
} asp_graph_found;
/* W; -1 if it passes INT64_MAX.  BAD_ARGUMENT and BAD_INDEX for features that cannot be. */
asp_status asp_graph_sources_count(int64_t *n_writes, const asp_graph_found *found, asp_error *err);
asp_status asp_graph_sources_order(int32_t *layer, int32_t *position, int32_t *source, int64_t *rows,
                                   const asp_graph_found *found, asp_error *err);

/* The tokens that most likely follow: as few as have the probability `desired` together, at most `most`.
 *   probability (V) written: softmax of logits (V) read, in float64
 *   tokens (min(most,V)) written up to *n_tokens: by falling probability, of equal ones the lower first */
asp_status asp_graph_logits_likely(double *probability, int64_t *tokens, int64_t *n_tokens, const asp_real *logits,
                                   int64_t n_vocab, int64_t most, double desired, const asp_context *context,
                                   asp_error *err);

/* What logit nodes read behind the final LayerNorm: without `wrong` a node for each token, whose value is the logit
 * minus the mean logit of the vocabulary; else one, the mean logit of the tokens minus that of the wrong ones.
 *   tokens (n_tokens), wrong (n_wrong), logits (V) read
 *   vectors (n,E), constant (n), value (n) written: rows of the unembedding, its bias, and the logits, so combined.
 * Errors: BAD_INDEX, NO_MEMORY, STOPPED. */
typedef struct {
    const asp_real *logits;
    const int64_t *tokens, *wrong;
    int64_t n_tokens, n_wrong;
} asp_graph_outputs;
asp_status asp_graph_logits_reads(asp_real *vectors, double *constant, double *value, const asp_model *model,
                                  const asp_graph_outputs *outputs, const asp_context *context, asp_error *err);

/* What may become nodes with edges to them. */
typedef struct {
    asp_reads reads;
    const double *constant; /* (n_targets) read: added to what they read */
    const double *value;    /* (n_targets) read: the result in the run */
    const int32_t *number;  /* (n_targets) read: of a feature in its layer; token id of a logit */
} asp_graph_targets;

typedef struct {
    const asp_held_run *held;
    const asp_writes *writes;           /* sources as asp_graph_sources_order has them */
    asp_graph_targets features, logits; /* features: the active ones, as they are among the sources */
    const double *probability;          /* (n logits) read: of their tokens; NaN of a difference, which weighs 1 */
    const int32_t *tokens;              /* (T) read */
    int64_t most;                       /* features that become nodes; negative: all */
    int64_t max_bytes;                  /* NO_MEMORY before the graph and what makes it take more */
} asp_graph_inputs;

/* Largest |sum of the incoming edges - value| of a target, over |value| and over the sum of |edges|. */
typedef struct {
    double relative, absolute;
} asp_graph_closure;

/* The graph of a prompt.  If not all features may become nodes they are chosen in rounds, as circuit-tracer does: those
 * with most influence on the logits through the features chosen so far.
 *   chosen (min(most, active)) written: the features that became nodes, rising
 * Stages of progress: "graph edges" (targets), "graph heads" (arrays).
 * Errors: as asp_graph_edges, NO_MEMORY. */
asp_status asp_graph_build(asp_graph **graph, int64_t *chosen, asp_graph_closure *closure, const asp_model *model,
                           const asp_graph_inputs *inputs, const asp_context *context, asp_error *err);

/* ---- influence and pruning --------------------------------------------------------- */

/* influence (n) written: of every node on the logits, which weigh by their probability: the weight of all paths to
 * them, with every target's edges made absolute and divided by their sum.  BAD_ARGUMENT if edges run in a circle. */
asp_status asp_graph_prune_influence(double *influence, const asp_graph *graph, const asp_context *context,
                                     asp_error *err);

/* How much of the influence on the logits is explained, as circuit-tracer counts, on the nodes that it has, and on
 * all nodes, with positions and biases as explained and other features as error.  NaN where nothing has influence. */
typedef struct {
    double replacement, completeness, replacement_closed, completeness_closed;
} asp_graph_scores;
asp_status asp_graph_prune_scores(asp_graph_scores *scores, const asp_graph *graph, const asp_context *context,
                                  asp_error *err);

/* The nodes and edges with most influence, as circuit-tracer prunes; tokens, positions, bias, other and logits stay.
 *   nodes (n) written: 1 kept    cumulative (n) written: share of the influence of all nodes with at least this much */
asp_status asp_graph_prune(asp_graph **pruned, uint8_t *nodes, double *cumulative, const asp_graph *graph,
                           double node_threshold, double edge_threshold, const asp_context *context, asp_error *err);

/* ---- groups of nodes ---------------------------------------------------------------- */

/* influence (n) written: of every node, taken alone, on the sum of the logits' values, directly and through features.
 * For all of these: BAD_ARGUMENT if the activation of a feature is not known. */
asp_status asp_graph_groups_influence(double *influence, const asp_graph *graph, const asp_context *context,
                                      asp_error *err);
/* drivers (n_features, n token nodes) written: total influence of each token's embedding on each feature. */
asp_status asp_graph_groups_drivers(double *drivers, const asp_graph *graph, const asp_context *context,
                                    asp_error *err);
/* flows (G,G) written: effect of a group on the logits by way of another, the next one on the path; 0 within a group.
 *   group (n) read: number of each node's group, -1 for none; that of a logit must not be -1 */
asp_status asp_graph_groups_flows(double *flows, const asp_graph *graph, const int64_t *group, int64_t n_groups,
                                  const asp_context *context, asp_error *err);
/* Where a group's features have their influence on the logits.
 *   profile (G,L) written: share of each layer in the sum of |influence|
 *   layers (G,2) written: first and last of the fewest neighbouring layers that have `most` of it; logits are at
 *     layer L; -1 where there is neither */
asp_status asp_graph_groups_profile(double *profile, int64_t *layers, const asp_graph *graph, int64_t n_layer,
                                    const int64_t *group, int64_t n_groups, double most, const asp_context *context,
                                    asp_error *err);

#endif
