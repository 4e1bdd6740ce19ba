/* py_first_weights.c: functions of the module that make the first weights of transcoders. */
#include "python/py.h"

/* A new array of doubles, which belongs to `out`; NULL if one of them could not be made. */
typedef struct {
    PyObject *arrays[5];
    int n, failed;
} results;

static void *add_result(results *out, int kind, int n_dims, int64_t rows, int64_t columns) {
    const int64_t dims[] = {rows, columns};
    void *data = NULL;
    PyObject *array = out->failed ? NULL : asp_py_arrays_new(kind, n_dims, dims, &data);
    if (array) out->arrays[out->n++] = array;
    else out->failed = 1;
    return data;
}

/* Of features that write `written` numbers. */
static asp_first_weights_out new_weights(results *out, int64_t f, int64_t e, int64_t written) {
    asp_first_weights_out w = {0};
    w.w_enc = add_result(out, ASP_PY_DOUBLE, 2, f, e);
    w.b_enc = add_result(out, ASP_PY_DOUBLE, 1, f, 1);
    w.w_dec = add_result(out, ASP_PY_DOUBLE, 2, f, written);
    w.b_dec = add_result(out, ASP_PY_DOUBLE, 1, e, 1);
    return w;
}

/* The arrays as a tuple, or the exception of the status; lets everything go. */
static PyObject *finish_weights(py_held *held, results *out, int computed, asp_status status, const asp_error *err) {
    PyObject *result = NULL;
    if (computed && status) asp_py_call_raise(status, err);
    else if (computed) result = PyTuple_New(out->n);
    for (int i = 0; i < out->n; i++)
        if (result) PyTuple_SET_ITEM(result, i, out->arrays[i]);
        else Py_DECREF(out->arrays[i]);
    asp_py_arrays_let_go(held);
    return result;
}

static int wrong_shapes(const char *what) {
    PyErr_Format(PyExc_ValueError, "%s do not fit each other", what);
    return 0;
}

/* ---- from text ------------------------------------------------------------------------------------- */

static int read_text(py_held *h, PyObject **o, asp_first_weights_text *text) {
    int64_t x[2], y[2], n, random[3];
    if (!(text->x = asp_py_arrays_hold(h, o[0], ASP_PY_REAL, 2, "x", x)) ||
        !(text->y = asp_py_arrays_hold(h, o[1], ASP_PY_REAL, 2, "y", y)) ||
        !(text->draws = asp_py_arrays_hold(h, o[2], ASP_PY_DOUBLE, 1, "draws", &n)) ||
        !(text->random = asp_py_arrays_hold(h, o[3], ASP_PY_DOUBLE, 3, "random", random)))
        return 0;
    text->n_rows = x[0], text->width = x[1], text->n_features = n;
    return (x[0] == y[0] && x[1] == y[1] && random[0] == 2 && random[1] == n && random[2] == x[1]) ||
           wrong_shapes("x (N,E), y (N,E), draws (F) and random (2,F,E)");
}

PyObject *asp_py_first_weights_from_text(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"x", "y", "scale", "draws", "random", "threads", NULL};
    PyObject *o[4];
    int threads = 0;
    asp_first_weights_text text = {0};
    py_held held = {0};
    results out = {0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOdOO|i:first_weights_from_text", names, &o[0], &o[1], &text.scale,
                                     &o[2], &o[3], &threads) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    int ready = read_text(&held, o, &text);
    if (ready) {
        const asp_first_weights_out w = new_weights(&out, text.n_features, text.width, text.width);
        int64_t *chosen = add_result(&out, ASP_PY_INT64, 1, text.n_features, 1), n_chosen = 0;
        ready = !out.failed;
        if (ready) {
            py_call call;
            asp_py_call_begin(&call, asp_py_call_module_threads(module, threads));
            status = asp_first_weights_from_text(&w, chosen, &n_chosen, &text, &call.context, &err);
            for (int64_t i = n_chosen; !status && i < text.n_features; i++) chosen[i] = -1;
            asp_py_call_end(&call);
        }
    }
    return finish_weights(&held, &out, ready, status, &err);
}

/* ---- from a set ------------------------------------------------------------------------------------- */

static int read_set(py_held *h, PyObject **o, asp_first_weights_set *set) {
    int64_t w_enc[2], b_enc, w_dec[3], b_dec, threshold, scale;
    if (!(set->w_enc = asp_py_arrays_hold_convert(h, o[0], ASP_PY_DOUBLE, 2, "w_enc", w_enc)) ||
        !(set->b_enc = asp_py_arrays_hold_convert(h, o[1], ASP_PY_DOUBLE, 1, "b_enc", &b_enc)) ||
        !(set->w_dec = asp_py_arrays_hold_convert(h, o[2], ASP_PY_DOUBLE, 3, "w_dec", w_dec)) ||
        !(set->b_dec = asp_py_arrays_hold_convert(h, o[3], ASP_PY_DOUBLE, 1, "b_dec", &b_dec)) ||
        !(set->scale = asp_py_arrays_hold_convert(h, o[5], ASP_PY_DOUBLE, 1, "scale", &scale)))
        return 0;
    threshold = w_enc[0];
    if (o[4] != Py_None &&
        !(set->threshold = asp_py_arrays_hold_convert(h, o[4], ASP_PY_DOUBLE, 1, "threshold", &threshold)))
        return 0;
    set->n_features = w_enc[0], set->width = w_enc[1], set->n_writes = w_dec[1];
    return (b_enc == w_enc[0] && w_dec[0] == w_enc[0] && w_dec[2] == w_enc[1] && b_dec == w_enc[1] &&
            threshold == w_enc[0] && scale == w_dec[1]) ||
           wrong_shapes("w_enc (F,E), b_enc (F), w_dec (F,W,E), b_dec (E), threshold (F) and scale (W)");
}

PyObject *asp_py_first_weights_from_set(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"w_enc", "b_enc", "w_dec", "b_dec", "threshold", "scale", "threads", NULL};
    PyObject *o[6];
    int threads = 0;
    asp_first_weights_set set = {0};
    py_held held = {0};
    results out = {0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOO|i:first_weights_from_set", names, &o[0], &o[1], &o[2], &o[3],
                                     &o[4], &o[5], &threads) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    int ready = read_set(&held, o, &set);
    if (ready) {
        asp_first_weights_out w = new_weights(&out, set.n_features, set.width, set.n_writes * set.width);
        if (set.threshold) w.log_threshold = add_result(&out, ASP_PY_DOUBLE, 1, set.n_features, 1);
        ready = !out.failed;
        if (ready) {
            py_call call;
            asp_py_call_begin(&call, asp_py_call_module_threads(module, threads));
            status = asp_first_weights_from_set(&w, &set, &call.context, &err);
            asp_py_call_end(&call);
        }
    }
    return finish_weights(&held, &out, ready, status, &err);
}

/* ---- numbers ---------------------------------------------------------------------------------------- */

PyObject *asp_py_first_weights_scale(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    static char *names[] = {"y", NULL};
    PyObject *y;
    py_held held = {0};
    int64_t dims[2];
    double scale = 0;
    asp_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:first_weights_scale", names, &y)) return NULL;
    const asp_real *data = asp_py_arrays_hold(&held, y, ASP_PY_REAL, 2, "y", dims);
    if (!data) return NULL;
    py_call call;
    asp_py_call_begin(&call, 1);
    const asp_status status = asp_first_weights_scale(&scale, data, dims[0], dims[1], &call.context, &err);
    asp_py_call_end(&call);
    asp_py_arrays_let_go(&held);
    return status ? asp_py_call_raise(status, &err) : PyFloat_FromDouble(scale);
}

PyObject *asp_py_first_weights_threshold(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"w_enc", "b_enc", "x", "l0", "threads", NULL};
    PyObject *o[3];
    py_held held = {0};
    int64_t w_dims[2], b_dims, x_dims[2];
    double l0, threshold = 0;
    int threads = 0;
    asp_status status = ASP_OK;
    asp_error err = {0};
    const double *w_enc, *b_enc;
    const asp_real *x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOd|i:first_weights_threshold", names, &o[0], &o[1], &o[2], &l0,
                                     &threads) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    int ready = (w_enc = asp_py_arrays_hold(&held, o[0], ASP_PY_DOUBLE, 2, "w_enc", w_dims)) &&
                (b_enc = asp_py_arrays_hold(&held, o[1], ASP_PY_DOUBLE, 1, "b_enc", &b_dims)) &&
                (x = asp_py_arrays_hold(&held, o[2], ASP_PY_REAL, 2, "x", x_dims));
    if (ready && (b_dims != w_dims[0] || x_dims[1] != w_dims[1]))
        ready = wrong_shapes("w_enc (F,E), b_enc (F) and x (N,E)");
    if (ready) {
        py_call call;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, threads));
        status = asp_first_weights_threshold(&threshold, w_enc, b_enc, w_dims[0], x, x_dims[0], w_dims[1], l0,
                                             &call.context, &err);
        asp_py_call_end(&call);
    }
    asp_py_arrays_let_go(&held);
    if (status) return asp_py_call_raise(status, &err);
    return ready ? PyFloat_FromDouble(threshold) : NULL;
}
