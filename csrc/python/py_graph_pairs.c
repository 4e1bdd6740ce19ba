/* py_graph_pairs.c: functions of the module about heads behind edges, shares, and pairs of sources behind a score. */
#include "python/py.h"

static int wrong_pairs_shape(const char *name) {
    PyErr_Format(PyExc_ValueError, "%s has the wrong shape", name);
    return 0;
}

static int in_range(int64_t value, int64_t n) { return value >= 0 && value < n; }

static int out_of_range(const char *what, int64_t i) {
    PyErr_Format(PyExc_IndexError, "%s %lld is out of range", what, (long long)i);
    return 0;
}

/* Two arrays with one number for each edge. */
static int read_edges(py_held *h, PyObject *weight, PyObject *factor, const asp_real **weights, const double **factors,
                      int64_t *n) {
    int64_t n_factors;
    if (!(*weights = asp_py_arrays_hold(h, weight, ASP_PY_REAL, 1, "weight", n)) ||
        !(*factors = asp_py_arrays_hold(h, factor, ASP_PY_DOUBLE, 1, "factor", &n_factors)))
        return 0;
    return *n == n_factors || wrong_pairs_shape("factor");
}

PyObject *asp_py_graph_pairs_total(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *weight, *factor;
    py_held held = {0};
    const asp_real *weights;
    const double *factors;
    int64_t n;
    double total = 0;
    asp_status status = ASP_OK;
    if (!PyArg_ParseTuple(args, "OO:graph_total", &weight, &factor)) return NULL;
    const int ready = read_edges(&held, weight, factor, &weights, &factors, &n);
    if (ready) {
        py_call call;
        asp_py_call_begin(&call, 1);
        status = asp_graph_heads_total(&total, weights, factors, n, &call.context);
        asp_py_call_end(&call);
    }
    asp_py_arrays_let_go(&held);
    if (status) return asp_py_call_raise(status, &(asp_error){0});
    return ready ? PyFloat_FromDouble(total) : NULL;
}

PyObject *asp_py_graph_pairs_between(PyObject *module, PyObject *args) {
    PyObject *weight, *loose_weight, *loose_factor, *out = NULL, *first = PyTuple_GetSlice(args, 0, 7);
    py_held held = {0};
    asp_between_inputs in = {0};
    int64_t n;
    void *data;
    double direct = 0, remainder = 0;
    asp_status status = ASP_OK;
    asp_error err = {0};
    if (!first) return NULL;
    PyObject *ignored[7];
    const int parsed =
        PyArg_ParseTuple(args, "OOOOOOOOOO:graph_between", &ignored[0], &ignored[1], &ignored[2], &ignored[3],
                         &ignored[4], &ignored[5], &ignored[6], &weight, &loose_weight, &loose_factor);
    if (parsed && asp_py_graph_read_loadings(&held, first, &in.placed) &&
        (in.weight = asp_py_arrays_hold(&held, weight, ASP_PY_REAL, 1, "weight", &n)) &&
        (n == in.placed.n_pairs || wrong_pairs_shape("weight")) &&
        read_edges(&held, loose_weight, loose_factor, &in.loose_weight, &in.loose_factor, &in.n_loose)) {
        const int64_t dims[] = {in.placed.n_layer, in.placed.n_head};
        out = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &data);
    }
    if (out) {
        py_call call;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, 0));
        status = asp_graph_heads_between(data, &direct, &remainder, &in, &call.context, &err);
        asp_py_call_end(&call);
    }
    asp_py_arrays_let_go(&held);
    Py_DECREF(first);
    if (out && !status) return Py_BuildValue("(Ndd)", out, direct, remainder);
    Py_XDECREF(out);
    return status ? asp_py_call_raise(status, &err) : NULL;
}

PyObject *asp_py_graph_pairs_shares(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *parts, *rest, *out[3] = {0}, *result = NULL;
    py_held held = {0};
    asp_shares_inputs in = {0};
    void *data[3];
    double whole;
    if (!PyArg_ParseTuple(args, "OOp:graph_shares", &parts, &rest, &in.absolute)) return NULL;
    if ((in.parts = asp_py_arrays_hold(&held, parts, ASP_PY_DOUBLE, 1, "parts", &in.n_parts)) &&
        (in.rest = asp_py_arrays_hold(&held, rest, ASP_PY_DOUBLE, 1, "rest", &in.n_rest))) {
        const int64_t all = in.n_parts + in.n_rest;
        if ((out[0] = asp_py_arrays_new(ASP_PY_INT64, 1, &in.n_parts, &data[0])) &&
            (out[1] = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &all, &data[1])) &&
            (out[2] = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &all, &data[2]))) {
            asp_error err = {0};
            py_call call;
            asp_py_call_begin(&call, 1);
            const asp_status status =
                asp_graph_heads_shares(data[1], data[2], data[0], &whole, &in, &call.context, &err);
            asp_py_call_end(&call);
            if (status) asp_py_call_raise(status, &err);
            else result = Py_BuildValue("(OOOd)", out[0], out[1], out[2], whole);
        }
    }
    for (int i = 0; i < 3; i++) Py_XDECREF(out[i]);
    asp_py_arrays_let_go(&held);
    return result;
}

/* ---- entries ------------------------------------------------------------------------------------------ */

static int read_entries(py_held *h, PyObject **o, asp_entry_inputs *in) {
    int64_t r[4], p[4], v[4], entries[2], weights[2];
    if (!(in->received = asp_py_arrays_hold(h, o[0], ASP_PY_REAL, 4, "received", r)) ||
        !(in->pattern = asp_py_arrays_hold(h, o[1], ASP_PY_REAL, 4, "pattern", p)) ||
        !(in->values = asp_py_arrays_hold(h, o[2], ASP_PY_REAL, 4, "values", v)) ||
        !(in->entries = asp_py_arrays_hold_copy(h, o[3], ASP_PY_INT64, 2, "entries", entries)) ||
        !(in->weights = asp_py_arrays_hold(h, o[4], ASP_PY_DOUBLE, 2, "weights", weights)))
        return 0;
    in->n_targets = r[0], in->n_layer = r[1], in->n_head = r[2], in->d_head = r[3], in->n_tokens = p[2];
    in->n_entries = entries[0], in->n_weights = weights[0];
    if (p[0] != r[1] || p[1] != r[2] || p[2] != p[3]) return wrong_pairs_shape("pattern");
    if (v[0] != r[1] || v[1] != p[2] || v[2] != r[2] || v[3] != r[3]) return wrong_pairs_shape("values");
    if (entries[1] != 4 || weights[1] != r[0]) return wrong_pairs_shape("entries or weights");
    for (int64_t i = 0; i < in->n_entries; i++)
        if (!in_range(in->entries[4 * i], r[1]) || !in_range(in->entries[4 * i + 1], r[2]) ||
            !in_range(in->entries[4 * i + 2], p[2]) || !in_range(in->entries[4 * i + 3], p[2]))
            return out_of_range("entry", i);
    return 1;
}

PyObject *asp_py_graph_pairs_entries(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *o[5], *out = NULL;
    py_held held = {0};
    asp_entry_inputs in = {0};
    void *data;
    asp_status status = ASP_OK;
    if (!PyArg_ParseTuple(args, "OOOOO:graph_entries", &o[0], &o[1], &o[2], &o[3], &o[4])) return NULL;
    if (read_entries(&held, o, &in)) out = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &in.n_weights, &data);
    if (out) {
        py_call call;
        asp_py_call_begin(&call, 1);
        status = asp_graph_heads_entries(data, &in, &call.context);
        asp_py_call_end(&call);
    }
    asp_py_arrays_let_go(&held);
    if (!status) return out;
    Py_DECREF(out);
    return asp_py_call_raise(status, &(asp_error){0});
}

static int read_moved(py_held *h, PyObject **o, asp_moved_inputs *in) {
    int64_t c[4], r[4], p[4], position, rows, weights;
    if (!(in->carried = asp_py_arrays_hold(h, o[0], ASP_PY_REAL, 4, "carried", c)) ||
        !(in->received = asp_py_arrays_hold(h, o[1], ASP_PY_REAL, 4, "received", r)) ||
        !(in->pattern = asp_py_arrays_hold(h, o[2], ASP_PY_REAL, 4, "pattern", p)) ||
        !(in->position = asp_py_arrays_hold_copy(h, o[3], ASP_PY_INT32, 1, "position", &position)) ||
        !(in->rows = asp_py_arrays_hold_copy(h, o[4], ASP_PY_INT64, 1, "rows", &rows)) ||
        !(in->weights = asp_py_arrays_hold(h, o[5], ASP_PY_DOUBLE, 1, "weights", &weights)))
        return 0;
    in->n_sources = c[0], in->n_layer = c[1], in->n_head = c[2], in->d_head = c[3], in->n_tokens = p[2];
    in->n_rows = rows;
    if (r[1] != c[1] || r[2] != c[2] || r[3] != c[3]) return wrong_pairs_shape("received");
    if (p[0] != c[1] || p[1] != c[2] || p[2] != p[3]) return wrong_pairs_shape("pattern");
    if (position != c[0] || weights != rows) return wrong_pairs_shape("position or weights");
    for (int64_t i = 0; i < position; i++)
        if (!in_range(in->position[i], p[2])) return out_of_range("position", in->position[i]);
    for (int64_t i = 0; i < rows; i++)
        if (!in_range(in->rows[i], r[0])) return out_of_range("row", in->rows[i]);
    return in_range(in->query, p[2]) || out_of_range("query", in->query);
}

PyObject *asp_py_graph_pairs_moved(PyObject *module, PyObject *args) {
    PyObject *o[6], *out = NULL;
    py_held held = {0};
    asp_moved_inputs in = {0};
    long long query;
    void *data;
    asp_status status = ASP_OK;
    asp_error err = {0};
    if (!PyArg_ParseTuple(args, "OOOOOOL:graph_moved", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &query)) return NULL;
    in.query = query;
    if (read_moved(&held, o, &in)) {
        const int64_t dims[] = {in.n_layer, in.n_head, in.n_tokens};
        out = asp_py_arrays_new(ASP_PY_DOUBLE, 3, dims, &data);
    }
    if (out) {
        py_call call;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, 0));
        status = asp_graph_heads_moved(data, &in, &call.context, &err);
        asp_py_call_end(&call);
    }
    asp_py_arrays_let_go(&held);
    if (!status) return out;
    Py_DECREF(out);
    return asp_py_call_raise(status, &err);
}

/* ---- pairs -------------------------------------------------------------------------------------------- */

static int read_pairs(py_held *h, PyObject **o, asp_pairs_inputs *in) {
    int64_t rows[2][2], bias[2], node;
    for (Py_ssize_t side = 0; side < 2; side++)
        if (!(in->rows[side] = asp_py_arrays_hold(h, o[2 * side], ASP_PY_REAL, 2, "rows", rows[side])) ||
            !(in->bias[side] = asp_py_arrays_hold(h, o[2 * side + 1], ASP_PY_DOUBLE, 1, "bias", &bias[side])))
            return 0;
    if (!(in->node = asp_py_arrays_hold_copy(h, o[4], ASP_PY_INT64, 1, "node", &node))) return 0;
    in->d_head = rows[0][0], in->n_sources = rows[0][1];
    if (rows[1][0] != rows[0][0] || rows[1][1] != rows[0][1]) return wrong_pairs_shape("rows");
    if (bias[0] != in->d_head || bias[1] != in->d_head) return wrong_pairs_shape("bias");
    if (node != in->n_sources) return wrong_pairs_shape("node");
    for (int64_t i = 0; i < node; i++)
        if (!in_range(in->node[i], in->n_nodes)) return out_of_range("node", in->node[i]);
    return in_range(in->bias_node, in->n_nodes) || out_of_range("the bias node", in->bias_node);
}

PyObject *asp_py_graph_pairs_score(PyObject *module, PyObject *args) {
    PyObject *o[5], *pairs = NULL, *used = NULL, *result = NULL;
    py_held held = {0};
    asp_pairs_inputs in = {0};
    long long n_nodes, bias_node;
    double score;
    void *data[2];
    if (!PyArg_ParseTuple(args, "OOOOOLLd:graph_pairs", &o[0], &o[1], &o[2], &o[3], &o[4], &n_nodes, &bias_node,
                          &in.scale))
        return NULL;
    in.n_nodes = n_nodes, in.bias_node = bias_node;
    if (n_nodes < 0 || n_nodes > INT32_MAX) wrong_pairs_shape("pairs");
    else if (read_pairs(&held, o, &in)) {
        const int64_t dims[] = {in.n_nodes, in.n_nodes};
        pairs = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &data[0]);
        used = pairs ? asp_py_arrays_new(ASP_PY_BYTE, 1, dims, &data[1]) : NULL;
    }
    if (used) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, 0));
        const asp_status status = asp_graph_pairs(data[0], data[1], &score, &in, &call.context, &err);
        asp_py_call_end(&call);
        if (status) asp_py_call_raise(status, &err);
        else result = Py_BuildValue("(OOd)", pairs, used, score);
    }
    Py_XDECREF(pairs);
    Py_XDECREF(used);
    asp_py_arrays_let_go(&held);
    return result;
}

PyObject *asp_py_graph_pairs_largest(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *pairs, *kept = NULL, *merged = NULL, *result = NULL;
    py_held held = {0};
    long long rest, most;
    int64_t dims[2];
    void *data[2];
    if (!PyArg_ParseTuple(args, "OLL:graph_largest_pairs", &pairs, &rest, &most)) return NULL;
    const double *values = asp_py_arrays_hold(&held, pairs, ASP_PY_DOUBLE, 2, "pairs", dims);
    if (values && dims[0] != dims[1]) wrong_pairs_shape("pairs");
    else if (values && !in_range(rest, dims[0])) out_of_range("the node of the rest", rest);
    else if (values && most < 1) PyErr_SetString(PyExc_ValueError, "one node at least must be kept");
    else if (values) {
        const int64_t n_kept = most < dims[0] ? most : dims[0], square[] = {n_kept, n_kept};
        if ((kept = asp_py_arrays_new(ASP_PY_INT64, 1, &n_kept, &data[0])) &&
            (merged = asp_py_arrays_new(ASP_PY_DOUBLE, 2, square, &data[1]))) {
            asp_error err = {0};
            py_call call;
            asp_py_call_begin(&call, 1);
            const asp_status status =
                asp_graph_pairs_largest(data[0], data[1], values, dims[0], rest, n_kept, &call.context, &err);
            asp_py_call_end(&call);
            if (status) asp_py_call_raise(status, &err);
            else result = Py_BuildValue("(OO)", kept, merged);
        }
    }
    Py_XDECREF(kept);
    Py_XDECREF(merged);
    asp_py_arrays_let_go(&held);
    return result;
}
