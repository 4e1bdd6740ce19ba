/* py_graph.c: what makes an attribution graph and what is asked of its arrays: sources, logits, effects through a held
 * run, heads. */
#include "python/py.h"

#include <string.h>

static void *shape_error(const char *name) {
    PyErr_Format(PyExc_ValueError, "%s has the wrong shape", name);
    return NULL;
}

/* ---- arguments --------------------------------------------------------------------------------- */

/* Result arrays of a call, and the call itself. */
typedef struct {
    py_held held;
    const py_run *run;
    asp_held_run frozen;
    asp_writes writes;
    asp_reads reads;
    int threads;
    PyObject *progress; /* NULL: told nothing */
    PyObject *out[2];
    void *data[2];
} graph_call;

/* fields: run, output_bias (L,E) or None, skip (L,E,E) or None, skip_from_resid */
static int read_held_fields(graph_call *g, PyObject *self, PyObject **fields) {
    py_held *h = &g->held;
    asp_held_run *frozen = &g->frozen;
    PyObject *run = fields[0], *bias = fields[1], *skip = fields[2];
    int64_t dims[3];
    py_model *model = (py_model *)self;
    const asp_config *c = asp_model_config(model->model);
    frozen->skip_from_resid = PyObject_IsTrue(fields[3]);
    if (frozen->skip_from_resid < 0) return 0;
    if (!Py_IS_TYPE(run, asp_py_module_state(Py_TYPE(self))->run_type)) {
        PyErr_Format(PyExc_TypeError, "a held run must be a Run, got %.80s", Py_TYPE(run)->tp_name);
        return 0;
    }
    g->run = (py_run *)run;
    h->arrays[h->n++] = Py_NewRef(run);
    if (!asp_py_run_is_current(g->run, model)) return 0;
    frozen->run = g->run->run;
    if (bias != Py_None) {
        frozen->output_bias = asp_py_arrays_hold(h, bias, ASP_PY_REAL, 2, "output_bias", dims);
        if (!frozen->output_bias) return 0;
        if (dims[0] != c->n_layer || dims[1] != c->d_model) return shape_error("output_bias") != NULL;
    }
    if (skip == Py_None) return 1;
    frozen->skip = asp_py_arrays_hold(h, skip, ASP_PY_REAL, 3, "skip", dims);
    if (!frozen->skip) return 0;
    return (dims[0] == c->n_layer && dims[1] == c->d_model && dims[2] == c->d_model) || shape_error("skip") != NULL;
}

static int read_held_run(graph_call *g, PyObject *self, PyObject *object) {
    static const char *const names[] = {"run", "output_bias", "skip", "skip_from_resid"};
    PyObject *fields[4];
    if (!asp_py_module_fields(object, "HeldRun", names, 4, fields)) return 0;
    const int good = read_held_fields(g, self, fields);
    asp_py_module_forget(fields, 4);
    return good;
}

/* fields: n_sources, layer (n), position (n), source (n), vectors (n,E) */
static int read_writes_fields(py_held *h, const asp_config *c, PyObject **fields, asp_writes *writes) {
    PyObject *layer = fields[1], *position = fields[2], *source = fields[3], *vectors = fields[4];
    const long long n_sources = PyLong_AsLongLong(fields[0]);
    if (n_sources == -1 && PyErr_Occurred()) return 0;
    int64_t n[3], dims[2];
    if (!(writes->layer = asp_py_arrays_hold_copy(h, layer, ASP_PY_INT32, 1, "write layers", &n[0])) ||
        !(writes->position = asp_py_arrays_hold_copy(h, position, ASP_PY_INT32, 1, "write positions", &n[1])) ||
        !(writes->source = asp_py_arrays_hold_copy(h, source, ASP_PY_INT32, 1, "write sources", &n[2])) ||
        !(writes->vectors = asp_py_arrays_hold(h, vectors, ASP_PY_REAL, 2, "write vectors", dims)))
        return 0;
    writes->n_sources = n_sources;
    writes->n_writes = dims[0];
    if (n_sources >= 0 && n[0] == dims[0] && n[1] == dims[0] && n[2] == dims[0] && dims[1] == c->d_model) return 1;
    return shape_error("writes") != NULL;
}

static int read_writes(py_held *h, const asp_config *c, PyObject *object, asp_writes *writes) {
    static const char *const names[] = {"n_sources", "layer", "position", "source", "vectors"};
    PyObject *fields[5];
    if (!asp_py_module_fields(object, "Writes", names, 5, fields)) return 0;
    const int good = read_writes_fields(h, c, fields, writes);
    asp_py_module_forget(fields, 5);
    return good;
}

/* fields: point (n), position (n), reading (n), vectors (n,E) */
static int read_reads_fields(py_held *h, const asp_config *c, PyObject **fields, asp_reads *reads) {
    PyObject *point = fields[0], *position = fields[1], *reading = fields[2], *vectors = fields[3];
    int64_t n[3], dims[2];
    if (!(reads->point = asp_py_arrays_hold_copy(h, point, ASP_PY_INT32, 1, "points", &n[0])) ||
        !(reads->position = asp_py_arrays_hold_copy(h, position, ASP_PY_INT32, 1, "read positions", &n[1])) ||
        !(reads->vectors = asp_py_arrays_hold(h, vectors, ASP_PY_REAL, 2, "read vectors", dims)))
        return 0;
    const int32_t *kinds = asp_py_arrays_hold_copy(h, reading, ASP_PY_INT32, 1, "readings", &n[2]);
    if (!kinds) return 0;
    if (n[0] != dims[0] || n[1] != dims[0] || n[2] != dims[0] || dims[1] != c->d_model)
        return shape_error("reads") != NULL;
    void *bytes;
    PyObject *array = asp_py_arrays_new(ASP_PY_BYTE, 1, &n[2], &bytes);
    if (!array) return 0;
    h->arrays[h->n++] = array;
    for (int64_t i = 0; i < n[2]; i++)
        ((uint8_t *)bytes)[i] = (uint8_t)(kinds[i] < 0 || kinds[i] > 255 ? 255 : kinds[i]);
    reads->reading = bytes;
    reads->n_targets = dims[0];
    return 1;
}

static int read_reads(py_held *h, const asp_config *c, PyObject *object, asp_reads *reads) {
    static const char *const names[] = {"point", "position", "reading", "vectors"};
    PyObject *fields[4];
    if (!asp_py_module_fields(object, "Reads", names, 4, fields)) return 0;
    const int good = read_reads_fields(h, c, fields, reads);
    asp_py_module_forget(fields, 4);
    return good;
}

typedef asp_status (*graph_function)(graph_call *g, const asp_model *model, const asp_context *context, asp_error *err);

/* Runs the function with the GIL released, lets everything go but the results, and returns those. */
static PyObject *finish(graph_call *g, PyObject *self, int ready, graph_function function) {
    py_model *model = (py_model *)self;
    ready = ready && g->out[0] && (g->run ? asp_py_call_read_begin_of(model, g->run) : asp_py_call_read_begin(model));
    if (ready) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_n_threads(self, g->threads));
        asp_py_call_report(&call, g->progress ? g->progress : Py_None);
        const asp_status status = function(g, model->model, &call.context, &err);
        asp_py_call_end(&call);
        asp_py_call_read_end(model);
        if (status) asp_py_call_raise(status, &err);
        ready = !status;
    }
    asp_py_arrays_let_go(&g->held);
    if (ready) return g->out[1] ? Py_BuildValue("(NN)", g->out[0], g->out[1]) : g->out[0];
    Py_XDECREF(g->out[0]);
    Py_XDECREF(g->out[1]);
    return NULL;
}

/* ---- methods of Model --------------------------------------------------------------------------- */

static asp_status edges_function(graph_call *g, const asp_model *model, const asp_context *context, asp_error *err) {
    return asp_graph_edges(g->data[0], g->data[1], model, &g->frozen, &g->writes, &g->reads, context, err);
}

PyObject *asp_py_graph_edges(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"frozen", "writes", "reads", "threads", NULL};
    PyObject *frozen, *writes, *reads;
    graph_call g = {0};
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|i:graph_edges", names, &frozen, &writes, &reads, &g.threads) ||
        !asp_py_call_check_threads(g.threads))
        return NULL;
    int ready = read_held_run(&g, self, frozen) && read_writes(&g.held, c, writes, &g.writes) &&
                read_reads(&g.held, c, reads, &g.reads);
    if (ready) {
        const int64_t dims[] = {g.reads.n_targets, g.writes.n_sources};
        g.out[0] = asp_py_arrays_new(ASP_PY_REAL, 2, dims, &g.data[0]);
        g.out[1] = asp_py_arrays_new(ASP_PY_DOUBLE, 1, dims, &g.data[1]);
        ready = g.out[1] != NULL;
    }
    return finish(&g, self, ready, edges_function);
}

/* ---- building ------------------------------------------------------------------------------------- */

/* fields: reads, constant (n), value (n), number (n) */
static int read_targets_fields(py_held *h, const asp_config *c, PyObject **fields, asp_graph_targets *targets) {
    int64_t n[3];
    if (!read_reads(h, c, fields[0], &targets->reads) ||
        !(targets->constant = asp_py_arrays_hold_copy(h, fields[1], ASP_PY_DOUBLE, 1, "constants", &n[0])) ||
        !(targets->value = asp_py_arrays_hold_copy(h, fields[2], ASP_PY_DOUBLE, 1, "values", &n[1])) ||
        !(targets->number = asp_py_arrays_hold_copy(h, fields[3], ASP_PY_INT32, 1, "numbers", &n[2])))
        return 0;
    for (int i = 0; i < 3; i++)
        if (n[i] != targets->reads.n_targets) return shape_error("targets") != NULL;
    return 1;
}

static int read_targets(py_held *h, const asp_config *c, PyObject *object, asp_graph_targets *targets) {
    static const char *const names[] = {"reads", "constant", "value", "number"};
    PyObject *fields[4];
    if (!asp_py_module_fields(object, "Targets", names, 4, fields)) return 0;
    const int good = read_targets_fields(h, c, fields, targets);
    asp_py_module_forget(fields, 4);
    return good;
}

typedef struct {
    graph_call call;
    asp_graph_inputs inputs;
    asp_graph *graph;
    asp_graph_closure closure;
} build_call;

/* Of the logits and of the tokens. */
static int read_outer(build_call *b, PyObject *probability, PyObject *tokens) {
    py_held *h = &b->call.held;
    int64_t n[2];
    if (!(b->inputs.probability = asp_py_arrays_hold_copy(h, probability, ASP_PY_DOUBLE, 1, "probability", &n[0])) ||
        !(b->inputs.tokens = asp_py_arrays_hold_copy(h, tokens, ASP_PY_INT32, 1, "tokens", &n[1])))
        return 0;
    if (n[0] != b->inputs.logits.reads.n_targets) return shape_error("probability") != NULL;
    return n[1] == asp_run_offsets(b->call.frozen.run)[1] || shape_error("tokens") != NULL;
}

/* graph_call is the first member of build_call. */
static asp_status build_function(graph_call *g, const asp_model *model, const asp_context *context, asp_error *err) {
    build_call *b = (build_call *)g;
    return asp_graph_build(&b->graph, g->data[0], &b->closure, model, &b->inputs, context, err);
}

PyObject *asp_py_graph_build(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"frozen", "writes",    "features", "logits",   "probability", "tokens",
                            "most",   "max_bytes", "threads",  "progress", NULL};
    PyObject *frozen, *writes, *features, *logits, *probability, *tokens;
    long long most, max_bytes;
    build_call b = {0};
    graph_call *g = &b.call;
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOLL|iO:graph_build", names, &frozen, &writes, &features,
                                     &logits, &probability, &tokens, &most, &max_bytes, &g->threads, &g->progress) ||
        !asp_py_call_check_threads(g->threads))
        return NULL;
    int ready = read_held_run(g, self, frozen) && read_writes(&g->held, c, writes, &g->writes) &&
                read_targets(&g->held, c, features, &b.inputs.features) &&
                read_targets(&g->held, c, logits, &b.inputs.logits) && read_outer(&b, probability, tokens);
    if (ready) {
        const int64_t n = b.inputs.features.reads.n_targets, n_kept = most < 0 || most > n ? n : most;
        g->out[0] = asp_py_arrays_new(ASP_PY_INT64, 1, &n_kept, &g->data[0]);
        b.inputs.held = &g->frozen;
        b.inputs.writes = &g->writes;
        b.inputs.most = most;
        b.inputs.max_bytes = max_bytes;
    }
    PyObject *chosen = finish(g, self, ready, build_function);
    if (!chosen) return NULL;
    PyObject *graph = asp_py_graph_object_new(asp_py_module_state(Py_TYPE(self))->graph_type, b.graph);
    if (graph) return Py_BuildValue("(NNdd)", graph, chosen, b.closure.relative, b.closure.absolute);
    Py_DECREF(chosen);
    return NULL;
}

typedef struct {
    graph_call call;
    asp_graph_outputs outputs;
    void *value;
} logits_call;

static asp_status logits_function(graph_call *g, const asp_model *model, const asp_context *context, asp_error *err) {
    logits_call *l = (logits_call *)g;
    return asp_graph_logits_reads(g->data[0], g->data[1], l->value, model, &l->outputs, context, err);
}

PyObject *asp_py_graph_logits(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"logits", "tokens", "wrong", "threads", NULL};
    PyObject *logits, *tokens, *wrong, *value = NULL;
    int64_t n_vocab;
    logits_call l = {0};
    graph_call *g = &l.call;
    asp_graph_outputs *o = &l.outputs;
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|i:graph_logits", names, &logits, &tokens, &wrong,
                                     &g->threads) ||
        !asp_py_call_check_threads(g->threads))
        return NULL;
    int ready = (o->logits = asp_py_arrays_hold_copy(&g->held, logits, ASP_PY_REAL, 1, "logits", &n_vocab)) &&
                (o->tokens = asp_py_arrays_hold_copy(&g->held, tokens, ASP_PY_INT64, 1, "tokens", &o->n_tokens)) &&
                (o->wrong = asp_py_arrays_hold_copy(&g->held, wrong, ASP_PY_INT64, 1, "wrong", &o->n_wrong));
    if (ready && n_vocab != c->n_vocab) ready = shape_error("logits") != NULL;
    if (ready) {
        const int64_t dims[] = {o->n_wrong ? 1 : o->n_tokens, c->d_model};
        g->out[0] = asp_py_arrays_new(ASP_PY_REAL, 2, dims, &g->data[0]);
        g->out[1] = asp_py_arrays_new(ASP_PY_DOUBLE, 1, dims, &g->data[1]);
        value = asp_py_arrays_new(ASP_PY_DOUBLE, 1, dims, &l.value);
        ready = g->out[1] && value;
    }
    PyObject *pair = finish(g, self, ready, logits_function), *result = NULL;
    if (pair) result = Py_BuildValue("(OOO)", PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1), value);
    Py_XDECREF(pair);
    Py_XDECREF(value);
    return result;
}

/* ---- functions of the module ------------------------------------------------------------------------ */

static int check_pairs(const asp_loading_inputs *in, int64_t n_sources, int64_t n_targets) {
    for (int64_t i = 0; i < in->n_pairs; i++)
        if (in->pairs[2 * i] < 0 || in->pairs[2 * i] >= n_sources || in->pairs[2 * i + 1] < 0 ||
            in->pairs[2 * i + 1] >= n_targets || in->places[2 * i] < 0 || in->places[2 * i] >= in->n_tokens ||
            in->places[2 * i + 1] < 0 || in->places[2 * i + 1] >= in->n_tokens) {
            PyErr_Format(PyExc_IndexError, "pair %lld of source and target is out of range", (long long)i);
            return 0;
        }
    return 1;
}

int asp_py_graph_read_loadings(py_held *h, PyObject *args, asp_loading_inputs *in) {
    PyObject *o[7];
    int64_t c[4], r[4], a[4], p[4], pairs[2], places[2], factor;
    if (!PyArg_ParseTuple(args, "OOOOOOO", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &o[6])) return 0;
    if (!(in->carried = asp_py_arrays_hold(h, o[0], ASP_PY_REAL, 4, "carried", c)) ||
        !(in->received = asp_py_arrays_hold(h, o[1], ASP_PY_REAL, 4, "received", r)) ||
        !(in->received_alone = asp_py_arrays_hold(h, o[2], ASP_PY_REAL, 4, "received_alone", a)) ||
        !(in->pattern = asp_py_arrays_hold(h, o[3], ASP_PY_REAL, 4, "pattern", p)) ||
        !(in->pairs = asp_py_arrays_hold_copy(h, o[4], ASP_PY_INT64, 2, "pairs", pairs)) ||
        !(in->places = asp_py_arrays_hold_copy(h, o[5], ASP_PY_INT64, 2, "places", places)) ||
        !(in->factor = asp_py_arrays_hold_copy(h, o[6], ASP_PY_DOUBLE, 1, "factor", &factor)))
        return 0;
    int good = memcmp(r, a, sizeof r) == 0 && memcmp(c + 1, r + 1, 3 * sizeof *c) == 0 && p[0] == c[1] &&
               p[1] == c[2] && p[2] == p[3] && pairs[1] == 2 && places[1] == 2 && pairs[0] == places[0] &&
               pairs[0] == factor;
    if (!good) return shape_error("an array of the loadings") != NULL;
    in->n_layer = c[1];
    in->n_head = c[2];
    in->d_head = c[3];
    in->n_tokens = p[2];
    in->n_pairs = factor;
    return check_pairs(in, c[0], r[0]);
}

PyObject *asp_py_graph_loadings(PyObject *module, PyObject *args) {
    py_held held = {0};
    asp_loading_inputs in = {0};
    PyObject *out = NULL;
    void *data;
    if (asp_py_graph_read_loadings(&held, args, &in)) {
        const int64_t dims[] = {in.n_pairs, in.n_layer, in.n_head};
        out = asp_py_arrays_new(ASP_PY_DOUBLE, 3, dims, &data);
    }
    if (out) {
        py_call call;
        asp_py_call_begin(&call, ((py_state *)PyModule_GetState(module))->n_threads);
        const asp_status status = asp_graph_heads_loadings(data, &in, &call.context);
        asp_py_call_end(&call);
        if (status) {
            const asp_error err = {0};
            Py_CLEAR(out);
            asp_py_call_raise(status, &err);
        }
    }
    asp_py_arrays_let_go(&held);
    return out;
}

static int read_adjacency(py_held *h, PyObject *start, PyObject *source, PyObject *weight, asp_adjacency *graph) {
    int64_t n_start, n_source, n_weight;
    if (!(graph->start = asp_py_arrays_hold_copy(h, start, ASP_PY_INT64, 1, "start", &n_start)) ||
        !(graph->source = asp_py_arrays_hold_copy(h, source, ASP_PY_INT32, 1, "source", &n_source)) ||
        !(graph->weight = asp_py_arrays_hold_copy(h, weight, ASP_PY_REAL, 1, "weight", &n_weight)))
        return 0;
    graph->n_nodes = n_start - 1;
    int good = n_start >= 1 && n_source == n_weight && graph->start[0] == 0 && graph->start[n_start - 1] == n_source;
    for (int64_t i = 0; good && i < graph->n_nodes; i++) good = graph->start[i] <= graph->start[i + 1];
    for (int64_t i = 0; good && i < n_source; i++) good = graph->source[i] >= 0 && graph->source[i] < graph->n_nodes;
    return good || shape_error("start, source, weight") != NULL;
}

/* A copy with one item per node. */
static const void *hold_nodes(py_held *h, PyObject *object, int kind, const char *name, int64_t n_nodes) {
    int64_t n;
    const void *data = asp_py_arrays_hold_copy(h, object, kind, 1, name, &n);
    return data && n != n_nodes ? shape_error(name) : data;
}

PyObject *asp_py_graph_factors(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *o[6], *out = NULL;
    py_held held = {0};
    asp_adjacency graph = {0};
    void *data;
    const void *value, *wanted, *blocked;
    if (!PyArg_ParseTuple(args, "OOOOOO", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5])) return NULL;
    if (read_adjacency(&held, o[0], o[1], o[2], &graph) &&
        (value = hold_nodes(&held, o[3], ASP_PY_REAL, "value", graph.n_nodes)) &&
        (wanted = hold_nodes(&held, o[4], ASP_PY_BYTE, "wanted", graph.n_nodes)) &&
        (blocked = hold_nodes(&held, o[5], ASP_PY_BYTE, "blocked", graph.n_nodes)) &&
        (out = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &graph.n_nodes, &data))) {
        const asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, 1);
        const asp_status status = asp_graph_prune_factors(data, &graph, value, wanted, blocked, &call.context);
        asp_py_call_end(&call);
        if (status) Py_CLEAR(out);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&held);
    return out;
}

PyObject *asp_py_graph_within(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *o[6], *out = NULL;
    py_held held = {0};
    asp_adjacency graph = {0};
    void *data;
    const void *value, *position, *origin;
    if (!PyArg_ParseTuple(args, "OOOOOO", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5])) return NULL;
    if (read_adjacency(&held, o[0], o[1], o[2], &graph) &&
        (value = hold_nodes(&held, o[3], ASP_PY_REAL, "value", graph.n_nodes)) &&
        (position = hold_nodes(&held, o[4], ASP_PY_INT64, "position", graph.n_nodes)) &&
        (origin = hold_nodes(&held, o[5], ASP_PY_BYTE, "origin", graph.n_nodes)) &&
        (out = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &graph.n_nodes, &data))) {
        const asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, 1);
        const asp_status status = asp_graph_prune_within(data, &graph, value, position, origin, &call.context);
        asp_py_call_end(&call);
        if (status) Py_CLEAR(out);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&held);
    return out;
}

PyObject *asp_py_graph_likely(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *logits, *probability = NULL, *tokens = NULL;
    py_held held = {0};
    long long most;
    double desired;
    int64_t n_vocab, n_tokens = 0;
    void *data[2];
    if (!PyArg_ParseTuple(args, "OLd", &logits, &most, &desired)) return NULL;
    const asp_real *x = asp_py_arrays_hold_copy(&held, logits, ASP_PY_REAL, 1, "logits", &n_vocab);
    const int64_t n = x && most > 0 ? (most < n_vocab ? most : n_vocab) : 0;
    if (x && (probability = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n_vocab, &data[0])) &&
        (tokens = asp_py_arrays_new(ASP_PY_INT64, 1, &n, &data[1]))) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, 1);
        const asp_status status =
            asp_graph_logits_likely(data[0], data[1], &n_tokens, x, n_vocab, most, desired, &call.context, &err);
        asp_py_call_end(&call);
        if (status) Py_CLEAR(tokens);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&held);
    if (tokens) return Py_BuildValue("(NNL)", probability, tokens, (long long)n_tokens);
    Py_XDECREF(probability);
    return NULL;
}

PyObject *asp_py_graph_writes(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *layer, *position, *n_outputs, *out[4] = {0}, *result = NULL;
    py_held held = {0};
    asp_graph_found found = {0};
    asp_error err = {0};
    long long n_tokens;
    int64_t n, n_writes;
    void *data[4];
    if (!PyArg_ParseTuple(args, "OOOL", &layer, &position, &n_outputs, &n_tokens)) return NULL;
    found.n_tokens = n_tokens;
    if ((found.layer = asp_py_arrays_hold_copy(&held, layer, ASP_PY_INT32, 1, "layer", &found.n_features)) &&
        (found.position = asp_py_arrays_hold_copy(&held, position, ASP_PY_INT32, 1, "position", &n)) &&
        (found.n_outputs = asp_py_arrays_hold_copy(&held, n_outputs, ASP_PY_INT64, 1, "n_outputs", &found.n_layer))) {
        asp_status status = ASP_OK;
        if (n != found.n_features) shape_error("position");
        else if ((status = asp_graph_sources_count(&n_writes, &found, &err))) asp_py_call_raise(status, &err);
        int complete = !PyErr_Occurred();
        for (int i = 0; complete && i < 4; i++)
            complete =
                (out[i] = asp_py_arrays_new(i < 3 ? ASP_PY_INT32 : ASP_PY_INT64, 1, &n_writes, &data[i])) != NULL;
        if (complete) status = asp_graph_sources_order(data[0], data[1], data[2], data[3], &found, &err);
        if (complete && status) asp_py_call_raise(status, &err);
        else if (complete) result = Py_BuildValue("(OOOO)", out[0], out[1], out[2], out[3]);
    }
    for (int i = 0; i < 4; i++) Py_XDECREF(out[i]);
    asp_py_arrays_let_go(&held);
    return result;
}
