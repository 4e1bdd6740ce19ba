/* py_graph.c: what the attribution graph computes in the core: effects through a held run, heads, pruning. */
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
    int alone, threads;
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
    ready = ready && g->out[0] && asp_py_call_read_begin_of(model, g->run);
    if (ready) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_n_threads(self, g->threads));
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
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!|i:graph_edges", names, &PyTuple_Type, &frozen, &PyTuple_Type,
                                     &writes, &PyTuple_Type, &reads, &g.threads) ||
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

static asp_status carried_function(graph_call *g, const asp_model *model, const asp_context *context, asp_error *err) {
    return asp_graph_heads_sources(g->data[0], model, &g->frozen, &g->writes, context, err);
}

PyObject *asp_py_graph_sources(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"frozen", "writes", "threads", NULL};
    PyObject *frozen, *writes;
    graph_call g = {0};
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!|i:graph_carried", names, &PyTuple_Type, &frozen, &PyTuple_Type,
                                     &writes, &g.threads) ||
        !asp_py_call_check_threads(g.threads))
        return NULL;
    const int ready = read_held_run(&g, self, frozen) && read_writes(&g.held, c, writes, &g.writes);
    const int64_t dims[] = {g.writes.n_sources, c->n_layer, c->n_head, c->d_head};
    if (ready) g.out[0] = asp_py_arrays_new(ASP_PY_REAL, 4, dims, &g.data[0]);
    return finish(&g, self, ready, carried_function);
}

static asp_status received_function(graph_call *g, const asp_model *model, const asp_context *context, asp_error *err) {
    return asp_graph_heads_targets(g->data[0], model, &g->frozen, &g->reads, g->alone, context, err);
}

PyObject *asp_py_graph_targets(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"frozen", "reads", "alone", "threads", NULL};
    PyObject *frozen, *reads;
    graph_call g = {0};
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!p|i:graph_received", names, &PyTuple_Type, &frozen,
                                     &PyTuple_Type, &reads, &g.alone, &g.threads) ||
        !asp_py_call_check_threads(g.threads))
        return NULL;
    const int ready = read_held_run(&g, self, frozen) && read_reads(&g.held, c, reads, &g.reads);
    const int64_t dims[] = {g.reads.n_targets, c->n_layer, c->n_head, c->d_head};
    if (ready) g.out[0] = asp_py_arrays_new(ASP_PY_REAL, 4, dims, &g.data[0]);
    return finish(&g, self, ready, received_function);
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

PyObject *asp_py_graph_influence(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *start, *source, *weight, *weights, *out = NULL;
    py_held held = {0};
    asp_adjacency graph = {0};
    asp_error err = {0};
    void *data;
    const double *w;
    if (!PyArg_ParseTuple(args, "OOOO", &start, &source, &weight, &weights)) return NULL;
    if (read_adjacency(&held, start, source, weight, &graph) &&
        (w = hold_nodes(&held, weights, ASP_PY_DOUBLE, "weights", graph.n_nodes)) &&
        (out = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &graph.n_nodes, &data))) {
        py_call call;
        asp_py_call_begin(&call, 1);
        const asp_status status = asp_graph_prune_influence(data, &graph, w, &call.context, &err);
        asp_py_call_end(&call);
        if (status) Py_CLEAR(out);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&held);
    return out;
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

PyObject *asp_py_graph_prune(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *start, *source, *weight, *weights, *always, *feature, *out[3] = {0}, *result = NULL;
    py_held held = {0};
    asp_adjacency graph = {0};
    asp_prune_options options = {0};
    void *data[3];
    if (!PyArg_ParseTuple(args, "OOOOOOdd", &start, &source, &weight, &weights, &always, &feature,
                          &options.node_threshold, &options.edge_threshold))
        return NULL;
    if (read_adjacency(&held, start, source, weight, &graph) &&
        (options.weights = hold_nodes(&held, weights, ASP_PY_DOUBLE, "weights", graph.n_nodes)) &&
        (options.always = hold_nodes(&held, always, ASP_PY_BYTE, "always", graph.n_nodes)) &&
        (options.feature = hold_nodes(&held, feature, ASP_PY_BYTE, "feature", graph.n_nodes)) &&
        (out[0] = asp_py_arrays_new(ASP_PY_BYTE, 1, &graph.n_nodes, &data[0])) &&
        (out[1] = asp_py_arrays_new(ASP_PY_BYTE, 1, &graph.start[graph.n_nodes], &data[1])) &&
        (out[2] = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &graph.n_nodes, &data[2]))) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, 1);
        const asp_status status = asp_graph_prune(data[0], data[1], data[2], &graph, &options, &call.context, &err);
        asp_py_call_end(&call);
        if (status) asp_py_call_raise(status, &err);
        else result = Py_BuildValue("(OOO)", out[0], out[1], out[2]);
    }
    for (int i = 0; i < 3; i++) Py_XDECREF(out[i]);
    asp_py_arrays_let_go(&held);
    return result;
}
