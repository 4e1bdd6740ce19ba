/* py_graph_object.c: the type Graph: owner of a graph's arrays, and what is computed from them. */
#include "python/py.h"

#include <string.h>

PyObject *asp_py_graph_object_new(PyTypeObject *type, asp_graph *graph) {
    py_graph *self = (py_graph *)type->tp_alloc(type, 0);
    if (self) self->graph = graph;
    else asp_graph_free(graph);
    return (PyObject *)self;
}

static void graph_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_graph_free(((py_graph *)self)->graph);
    type->tp_free(self);
    Py_DECREF(type);
}

static asp_graph *of(PyObject *self) { return ((py_graph *)self)->graph; }

/* ---- arrays ------------------------------------------------------------------------------------ */

enum { N_ARRAYS = 12 };
static const struct {
    const char *name;
    int kind, n_dims;
} list[N_ARRAYS] = {{"kind", ASP_PY_INT32, 1},    {"layer", ASP_PY_INT32, 1},   {"position", ASP_PY_INT32, 1},
                    {"feature", ASP_PY_INT32, 1}, {"value", ASP_PY_REAL, 1},    {"probability", ASP_PY_REAL, 1},
                    {"start", ASP_PY_INT64, 1},   {"source", ASP_PY_INT32, 1},  {"weights", ASP_PY_REAL, 1},
                    {"carried", ASP_PY_REAL, 4},  {"received", ASP_PY_REAL, 4}, {"received_alone", ASP_PY_REAL, 4}};
enum { START = 6, SOURCE, WEIGHTS, CARRIED, RECEIVED, RECEIVED_ALONE };

/* Start and shape of an array of the list. */
static void *array_of(const asp_graph *graph, int which, int64_t dims[4]) {
    const asp_graph_sizes *s = asp_graph_get_sizes(graph);
    const asp_graph_arrays *a = asp_graph_get_arrays(graph);
    void *const starts[N_ARRAYS] = {a->kind,  a->layer,  a->position, a->feature, a->value,    a->probability,
                                    a->start, a->source, a->weights,  a->carried, a->received, a->received_alone};
    dims[0] = which == CARRIED                      ? s->n_placed
              : which > CARRIED                     ? s->n_targets
              : which == SOURCE || which == WEIGHTS ? s->n_edges
                                                    : s->n_nodes + (which == START);
    dims[1] = s->n_layer;
    dims[2] = s->n_head;
    dims[3] = s->d_head;
    return starts[which];
}

static PyObject *graph_array(PyObject *self, PyObject *name) {
    const char *text = asp_py_module_name(name, "an array name");
    int64_t dims[4];
    if (!text) return NULL;
    for (int i = 0; i < N_ARRAYS; i++)
        if (strcmp(text, list[i].name) == 0) {
            void *data = array_of(of(self), i, dims);
            return asp_py_arrays_lend(self, data, list[i].kind, list[i].n_dims, dims, NULL, 0);
        }
    return PyErr_Format(PyExc_KeyError, "a graph has no array %R", name);
}

static int64_t bytes_of(int which, const int64_t *dims) {
    int64_t n = list[which].kind == ASP_PY_INT64 ? 8 : list[which].kind == ASP_PY_INT32 ? 4 : (int64_t)sizeof(asp_real);
    for (int i = 0; i < list[which].n_dims; i++) n *= dims[i];
    return n;
}

/* The shapes of the given arrays fit those of the graph, which were read off some of them. */
static int check_shapes(const asp_graph *graph, int64_t dims[N_ARRAYS][4]) {
    int64_t own[4];
    for (int i = 0; i < N_ARRAYS; i++) {
        array_of(graph, i, own);
        for (int k = 0; k < list[i].n_dims; k++)
            if (dims[i][k] != own[k]) {
                PyErr_Format(PyExc_ValueError, "%s has %lld numbers along axis %d, a graph of %lld nodes needs %lld",
                             list[i].name, (long long)dims[i][k], k, (long long)asp_graph_get_sizes(graph)->n_nodes,
                             (long long)own[k]);
                return 0;
            }
    }
    return 1;
}

/* A graph with copies of the given arrays, or NULL and an exception. */
static asp_graph *copy_arrays(void *const *data, int64_t dims[N_ARRAYS][4]) {
    const asp_graph_sizes sizes = {.n_nodes = dims[0][0],
                                   .n_edges = dims[SOURCE][0],
                                   .n_placed = dims[CARRIED][0],
                                   .n_targets = dims[RECEIVED][0],
                                   .n_layer = dims[CARRIED][1],
                                   .n_head = dims[CARRIED][2],
                                   .d_head = dims[CARRIED][3]};
    asp_graph *graph = NULL;
    asp_error err = {0};
    int64_t own[4];
    asp_status status = asp_graph_new(&graph, &sizes, &err);
    if (status) {
        asp_py_call_raise(status, &err);
        return NULL;
    }
    const int fits = check_shapes(graph, dims);
    for (int i = 0; fits && i < N_ARRAYS; i++) {
        void *to = array_of(graph, i, own);
        const int64_t bytes = bytes_of(i, own);
        if (bytes) memcpy(to, data[i], (size_t)bytes);
    }
    if (fits) status = asp_graph_check(graph, &err);
    if (fits && !status) return graph;
    if (fits) asp_py_call_raise(status, &err);
    asp_graph_free(graph);
    return NULL;
}

static PyObject *graph_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"kind",   "layer",   "position", "feature",  "value",          "probability", "start",
                            "source", "weights", "carried",  "received", "received_alone", NULL};
    PyObject *given[N_ARRAYS];
    py_held held = {0};
    void *data[N_ARRAYS];
    int64_t dims[N_ARRAYS][4];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOOOOOOO:Graph", names, &given[0], &given[1], &given[2],
                                     &given[3], &given[4], &given[5], &given[6], &given[7], &given[8], &given[9],
                                     &given[10], &given[11]))
        return NULL;
    int good = 1;
    for (int i = 0; good && i < N_ARRAYS; i++)
        good = (data[i] = asp_py_arrays_hold(&held, given[i], list[i].kind, list[i].n_dims, list[i].name, dims[i])) !=
               NULL;
    asp_graph *graph = good ? copy_arrays(data, dims) : NULL;
    asp_py_arrays_let_go(&held);
    return graph ? asp_py_graph_object_new(type, graph) : NULL;
}

/* ---- what is computed --------------------------------------------------------------------------- */

typedef struct {
    const asp_graph *graph;
    void *data[2];
    const int64_t *group;
    int64_t n_groups, n_layer;
    double first, second;
    asp_graph *pruned;
    asp_graph_scores scores;
} question;
typedef asp_status (*answer)(question *q, const asp_context *context, asp_error *err);

/* 1 if the question was answered; the GIL is released meanwhile. */
static int ask(PyObject *self, question *q, answer function) {
    asp_error err = {0};
    py_call call;
    q->graph = of(self);
    asp_py_call_begin(&call, asp_py_call_n_threads(self, 0));
    const asp_status status = function(q, &call.context, &err);
    asp_py_call_end(&call);
    if (status) asp_py_call_raise(status, &err);
    return !status;
}

static asp_status answer_influence(question *q, const asp_context *context, asp_error *err) {
    return asp_graph_prune_influence(q->data[0], q->graph, context, err);
}

static asp_status answer_total_influence(question *q, const asp_context *context, asp_error *err) {
    return asp_graph_groups_influence(q->data[0], q->graph, context, err);
}

static PyObject *by_node(PyObject *self, answer function) {
    question q = {0};
    PyObject *out = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &asp_graph_get_sizes(of(self))->n_nodes, &q.data[0]);
    if (out && !ask(self, &q, function)) Py_CLEAR(out);
    return out;
}

static PyObject *graph_influence(PyObject *self, PyObject *unused) {
    (void)unused;
    return by_node(self, answer_influence);
}

static PyObject *graph_total_influence(PyObject *self, PyObject *unused) {
    (void)unused;
    return by_node(self, answer_total_influence);
}

static asp_status answer_scores(question *q, const asp_context *context, asp_error *err) {
    return asp_graph_prune_scores(&q->scores, q->graph, context, err);
}

static PyObject *graph_scores(PyObject *self, PyObject *unused) {
    (void)unused;
    question q = {0};
    if (!ask(self, &q, answer_scores)) return NULL;
    return Py_BuildValue("{s:d,s:d,s:d,s:d}", "replacement", q.scores.replacement, "completeness",
                         q.scores.completeness, "replacement_closed", q.scores.replacement_closed,
                         "completeness_closed", q.scores.completeness_closed);
}

static asp_status answer_prune(question *q, const asp_context *context, asp_error *err) {
    return asp_graph_prune(&q->pruned, q->data[0], q->data[1], q->graph, q->first, q->second, context, err);
}

static PyObject *graph_prune(PyObject *self, PyObject *args) {
    question q = {0};
    if (!PyArg_ParseTuple(args, "dd", &q.first, &q.second)) return NULL;
    const int64_t *n = &asp_graph_get_sizes(of(self))->n_nodes;
    PyObject *nodes = asp_py_arrays_new(ASP_PY_BYTE, 1, n, &q.data[0]);
    PyObject *cumulative = asp_py_arrays_new(ASP_PY_DOUBLE, 1, n, &q.data[1]);
    PyObject *pruned =
        nodes && cumulative && ask(self, &q, answer_prune) ? asp_py_graph_object_new(Py_TYPE(self), q.pruned) : NULL;
    if (pruned) return Py_BuildValue("(NNN)", pruned, nodes, cumulative);
    Py_XDECREF(nodes);
    Py_XDECREF(cumulative);
    return NULL;
}

/* ---- groups --------------------------------------------------------------------------------------- */

static asp_status answer_drivers(question *q, const asp_context *context, asp_error *err) {
    return asp_graph_groups_drivers(q->data[0], q->graph, context, err);
}

static PyObject *graph_drivers(PyObject *self, PyObject *unused) {
    (void)unused;
    question q = {0};
    const asp_graph_sizes *s = asp_graph_get_sizes(of(self));
    const int32_t *kind = asp_graph_get_arrays(of(self))->kind;
    int64_t dims[2] = {0, 0};
    for (int64_t i = 0; i < s->n_nodes; i++) {
        dims[0] += kind[i] == ASP_GRAPH_FEATURE;
        dims[1] += kind[i] == ASP_GRAPH_TOKEN;
    }
    PyObject *out = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &q.data[0]);
    if (out && !ask(self, &q, answer_drivers)) Py_CLEAR(out);
    return out;
}

/* The number of each node's group. */
static int read_groups(PyObject *self, py_held *held, PyObject *group, question *q) {
    int64_t n;
    q->group = asp_py_arrays_hold_copy(held, group, ASP_PY_INT64, 1, "group", &n);
    if (!q->group) return 0;
    if (n == asp_graph_get_sizes(of(self))->n_nodes && q->n_groups >= 0) return 1;
    PyErr_Format(PyExc_ValueError, "group must have a number for each of the %lld nodes, got %lld",
                 (long long)asp_graph_get_sizes(of(self))->n_nodes, (long long)n);
    return 0;
}

static asp_status answer_flows(question *q, const asp_context *context, asp_error *err) {
    return asp_graph_groups_flows(q->data[0], q->graph, q->group, q->n_groups, context, err);
}

static PyObject *graph_flows(PyObject *self, PyObject *args) {
    PyObject *group, *out = NULL;
    long long n_groups;
    py_held held = {0};
    if (!PyArg_ParseTuple(args, "OL", &group, &n_groups)) return NULL;
    question q = {.n_groups = n_groups};
    const int64_t dims[] = {n_groups, n_groups};
    if (read_groups(self, &held, group, &q)) out = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &q.data[0]);
    if (out && !ask(self, &q, answer_flows)) Py_CLEAR(out);
    asp_py_arrays_let_go(&held);
    return out;
}

static asp_status answer_profile(question *q, const asp_context *context, asp_error *err) {
    return asp_graph_groups_profile(q->data[0], q->data[1], q->graph, q->n_layer, q->group, q->n_groups, q->first,
                                    context, err);
}

static PyObject *graph_profile(PyObject *self, PyObject *args) {
    PyObject *group, *out[2] = {0}, *result = NULL;
    long long n_groups, n_layer;
    double most;
    py_held held = {0};
    if (!PyArg_ParseTuple(args, "OLLd", &group, &n_groups, &n_layer, &most)) return NULL;
    question q = {.n_groups = n_groups, .n_layer = n_layer, .first = most};
    const int64_t profile[] = {n_groups, n_layer}, layers[] = {n_groups, 2};
    if (n_layer < 0) PyErr_Format(PyExc_ValueError, "n_layer must not be negative, got %lld", n_layer);
    else if (read_groups(self, &held, group, &q) &&
             (out[0] = asp_py_arrays_new(ASP_PY_DOUBLE, 2, profile, &q.data[0])) &&
             (out[1] = asp_py_arrays_new(ASP_PY_INT64, 2, layers, &q.data[1])) && ask(self, &q, answer_profile))
        result = Py_BuildValue("(OO)", out[0], out[1]);
    Py_XDECREF(out[0]);
    Py_XDECREF(out[1]);
    asp_py_arrays_let_go(&held);
    return result;
}

/* ---- the type ---------------------------------------------------------------------------------------- */

static PyObject *graph_bytes(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(asp_graph_bytes(of(self)));
}

static PyMethodDef methods[] = {
    {"array", graph_array, METH_O, "array(name): read-only view of one array."},
    {"influence", graph_influence, METH_NOARGS, "influence(): of every node on the logits, as for pruning."},
    {"scores", graph_scores, METH_NOARGS, "scores(): shares of the influence that are explained, by name."},
    {"prune", graph_prune, METH_VARARGS, "prune(node_threshold, edge_threshold) -> (graph, nodes, cumulative)"},
    {"total_influence", graph_total_influence, METH_NOARGS,
     "total_influence(): of every node on the sum of the logits, directly and through features."},
    {"drivers", graph_drivers, METH_NOARGS, "drivers(): influence of each token's embedding on each feature."},
    {"flows", graph_flows, METH_VARARGS, "flows(group, n_groups): effect of groups on the logits by way of others."},
    {"profile", graph_profile, METH_VARARGS,
     "profile(group, n_groups, n_layer, most) -> (share of each layer, first and last of the main layers)"},
    {0}};

static PyGetSetDef attributes[] = {{"nbytes", graph_bytes, NULL, "Bytes in use.", NULL}, {0}};

static PyType_Slot slots[] = {{Py_tp_new, graph_new},
                              {Py_tp_dealloc, graph_dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, attributes},
                              {Py_tp_doc, "Graph(kind, layer, position, feature, value, probability, start, source, "
                                          "weights, carried, received, received_alone): copies of these arrays."},
                              {0, NULL}};
PyType_Spec asp_py_graph_object_spec = {ASP_MODULE ".Graph", sizeof(py_graph), 0,
                                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
