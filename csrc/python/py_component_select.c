/* py_component_select.c: circuits chosen from scores of component edges, ROC curves and areas.  Functions of the module,
 * for there is no model, only its numbers of layers and heads. */
#include "python/py.h"

#include <string.h>

/* The part of a config that numbers nodes. */
static int read_shape(long long n_layer, long long n_head, asp_config *config) {
    if (n_layer >= 1 && n_layer <= 512 && n_head >= 1 && n_head <= 1024) {
        *config = (asp_config){.n_layer = n_layer, .n_head = n_head};
        return 1;
    }
    PyErr_Format(PyExc_ValueError, "n_layer must be in 1..512 and n_head in 1..1024, got %lld and %lld", n_layer,
                 n_head);
    return 0;
}

/* A matrix (S,R) of this kind, a private copy. */
static void *read_matrix(py_held *held, PyObject *object, int kind, const char *name, const asp_config *c) {
    int64_t dims[2];
    void *data = asp_py_arrays_hold_copy(held, object, kind, 2, name, dims);
    if (!data || (dims[0] == asp_nodes_n_senders(c) && dims[1] == asp_nodes_n_receivers(c))) return data;
    PyErr_Format(PyExc_ValueError, "%s must be of the shape (%lld, %lld), got (%lld, %lld)", name,
                 (long long)asp_nodes_n_senders(c), (long long)asp_nodes_n_receivers(c), (long long)dims[0],
                 (long long)dims[1]);
    return NULL;
}

/* Lets go of the arguments; result, or NULL and an exception. */
static PyObject *end_selection(py_held *held, PyObject *result, asp_status status, const asp_error *err) {
    asp_py_arrays_let_go(held);
    if (!status && !PyErr_Occurred()) return result;
    Py_XDECREF(result);
    return status ? asp_py_call_raise(status, err) : NULL;
}

PyObject *asp_py_component_select_order(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "scores", "absolute", "greedy", NULL};
    PyObject *object, *result = NULL;
    long long n_layer, n_head;
    int absolute, greedy;
    asp_config c;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLOpp:component_order", names, &n_layer, &n_head, &object,
                                     &absolute, &greedy) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    void *order;
    const int64_t n = asp_nodes_n_edges(&c);
    const double *scores = read_matrix(&held, object, ASP_PY_DOUBLE, "scores", &c);
    if (scores) result = asp_py_arrays_new(ASP_PY_INT64, 1, &n, &order);
    if (result) status = asp_component_select_order(order, &c, scores, absolute, greedy, &err);
    return end_selection(&held, result, status, &err);
}

PyObject *asp_py_component_select(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "order", "sizes", "prune", NULL};
    PyObject *object, *asked, *masks = NULL, *kept = NULL;
    long long n_layer, n_head;
    int pruned;
    asp_config c;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLOOp:component_select", names, &n_layer, &n_head, &object, &asked,
                                     &pruned) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    int64_t n = 0, dims[3] = {0, asp_nodes_n_senders(&c), asp_nodes_n_receivers(&c)};
    void *mask, *count;
    const int64_t *order = asp_py_arrays_hold_copy(&held, object, ASP_PY_INT64, 1, "order", &n), *sizes = NULL;
    if (order && n != asp_nodes_n_edges(&c))
        PyErr_Format(PyExc_ValueError, "order must hold all %lld component edges, got %lld",
                     (long long)asp_nodes_n_edges(&c), (long long)n);
    else if (order) sizes = asp_py_arrays_hold_copy(&held, asked, ASP_PY_INT64, 1, "sizes", &dims[0]);
    if (sizes) masks = asp_py_arrays_new(ASP_PY_BYTE, 3, dims, &mask);
    if (masks) kept = asp_py_arrays_new(ASP_PY_INT64, 1, dims, &count);
    if (kept) status = asp_component_select(mask, count, &c, order, sizes, dims[0], pruned, &err);
    PyObject *pair = kept ? PyTuple_Pack(2, masks, kept) : NULL;
    Py_XDECREF(masks);
    Py_XDECREF(kept);
    return end_selection(&held, pair, status, &err);
}

PyObject *asp_py_component_select_best(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"scores", "absolute", NULL};
    PyObject *object, *result = NULL;
    int absolute;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Op:component_best", names, &object, &absolute)) return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    int64_t n;
    void *order;
    const double *scores = asp_py_arrays_hold_copy(&held, object, ASP_PY_DOUBLE, 1, "scores", &n);
    if (scores) result = asp_py_arrays_new(ASP_PY_INT64, 1, &n, &order);
    if (result) status = asp_component_select_best(order, scores, n, absolute, &err);
    return end_selection(&held, result, status, &err);
}

PyObject *asp_py_component_select_neurons(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "width", "order", "sizes", "prune", NULL};
    PyObject *object, *asked, *masks = NULL, *kept = NULL;
    long long n_layer, n_head, width;
    int pruned;
    asp_config c;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLLOOp:component_select_neurons", names, &n_layer, &n_head, &width,
                                     &object, &asked, &pruned) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    int64_t n = 0, dims[3] = {0, asp_nodes_n_senders(&c), width};
    void *mask, *count;
    const int64_t *order = asp_py_arrays_hold_copy(&held, object, ASP_PY_INT64, 1, "order", &n), *sizes = NULL;
    if (order && (width < 1 || n / dims[1] != width || n % dims[1]))
        PyErr_Format(PyExc_ValueError, "order must hold the numbers of %lld senders by %lld, got %lld",
                     (long long)dims[1], width, (long long)n);
    else if (order) sizes = asp_py_arrays_hold_copy(&held, asked, ASP_PY_INT64, 1, "sizes", &dims[0]);
    if (sizes) masks = asp_py_arrays_new(ASP_PY_BYTE, 3, dims, &mask);
    if (masks) kept = asp_py_arrays_new(ASP_PY_INT64, 1, dims, &count);
    if (kept) status = asp_component_select_neurons(mask, count, &c, width, order, sizes, dims[0], pruned, &err);
    PyObject *pair = kept ? PyTuple_Pack(2, masks, kept) : NULL;
    Py_XDECREF(masks);
    Py_XDECREF(kept);
    return end_selection(&held, pair, status, &err);
}

PyObject *asp_py_component_select_prune(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "mask", NULL};
    PyObject *object, *result = NULL;
    long long n_layer, n_head;
    asp_config c;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLO:component_prune", names, &n_layer, &n_head, &object) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    void *pruned;
    const int64_t dims[2] = {asp_nodes_n_senders(&c), asp_nodes_n_receivers(&c)};
    const uint8_t *mask = read_matrix(&held, object, ASP_PY_BYTE, "mask", &c);
    if (mask) result = asp_py_arrays_new(ASP_PY_BYTE, 2, dims, &pruned);
    if (result) {
        memcpy(pruned, mask, (size_t)(dims[0] * dims[1]));
        asp_component_select_prune(&c, pruned);
    }
    return end_selection(&held, result, ASP_OK, NULL);
}

/* The first n of x. */
static PyObject *first_of(PyObject *x, int64_t n) {
    PyObject *part = x ? PySequence_GetSlice(x, 0, (Py_ssize_t)n) : NULL;
    Py_XDECREF(x);
    return part;
}

PyObject *asp_py_component_select_roc(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"n_layer", "n_head", "scores", "truth", "absolute", NULL};
    PyObject *object, *true_object, *false_rate = NULL, *true_rate = NULL, *result = NULL;
    long long n_layer, n_head;
    int absolute;
    asp_config c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLOOp:component_roc", names, &n_layer, &n_head, &object,
                                     &true_object, &absolute) ||
        !read_shape(n_layer, n_head, &c))
        return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    asp_component_roc roc = {.n = 0};
    void *false_data, *true_data;
    const int64_t n = asp_nodes_n_edges(&c) + 1;
    const double *scores = read_matrix(&held, object, ASP_PY_DOUBLE, "scores", &c);
    const uint8_t *truth = scores ? read_matrix(&held, true_object, ASP_PY_BYTE, "truth", &c) : NULL;
    if (truth) false_rate = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n, &false_data);
    if (false_rate) true_rate = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n, &true_data);
    if (true_rate) {
        py_call call;
        roc.false_rate = false_data;
        roc.true_rate = true_data;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, 1));
        status = asp_component_curve_roc(&roc, &c, scores, truth, absolute, &call.context, &err);
        asp_py_call_end(&call);
        false_rate = first_of(false_rate, roc.n);
        true_rate = first_of(true_rate, roc.n);
        if (!status && false_rate && true_rate) result = Py_BuildValue("OOd", false_rate, true_rate, roc.area);
    }
    Py_XDECREF(false_rate);
    Py_XDECREF(true_rate);
    return end_selection(&held, result, status, &err);
}

PyObject *asp_py_component_select_areas(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"curves", "shares", NULL};
    PyObject *object, *share_object, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:component_areas", names, &object, &share_object)) return NULL;
    py_held held = {.n = 0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    int64_t dims[2], n, out[2] = {0, 2};
    void *areas;
    const double *curves = asp_py_arrays_hold_copy(&held, object, ASP_PY_DOUBLE, 2, "curves", dims), *shares = NULL;
    if (curves) shares = asp_py_arrays_hold_copy(&held, share_object, ASP_PY_DOUBLE, 1, "shares", &n);
    if (shares && n != dims[1])
        PyErr_Format(PyExc_ValueError, "there are %lld shares, and curves of %lld sizes", (long long)n,
                     (long long)dims[1]);
    else if (shares) {
        out[0] = dims[0];
        result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, out, &areas);
    }
    if (result) {
        py_call call;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, 1));
        status = asp_component_curve_areas(areas, curves, dims[0], shares, n, &call.context, &err);
        asp_py_call_end(&call);
    }
    return end_selection(&held, result, status, &err);
}
