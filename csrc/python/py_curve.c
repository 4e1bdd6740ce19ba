/* py_curve.c: curves of circuits: explained effect, resamples, intervals, ratios; and the random numbers behind them.
 * Functions of the module, for there is no model. */
#include "python/py.h"

#include <string.h>

#include "base/base.h"

/* ---- arguments ----------------------------------------------------------------------------- */

static int wrong_curve_shape(const char *name) {
    PyErr_Format(PyExc_ValueError, "%s of the curve has the wrong shape", name);
    return 0;
}

int asp_py_curve_normalization(PyObject *object, asp_normalization *out) {
    static const char *const names[] = {"mib", "ratio", "none"};
    const char *name = asp_py_module_name(object, "normalize");
    for (int i = 0; name && i < 3; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (asp_normalization)i;
            return 1;
        }
    if (name) PyErr_Format(PyExc_ValueError, "normalize must be mib, ratio or none, got '%.40s'", name);
    return 0;
}

enum { VALUES, FULL, EMPTY, NORMALIZE, EFFECT, SIZES, CURVE_FIELDS };

static const double *read_row(py_held *h, PyObject *object, const char *name, int64_t n) {
    int64_t found;
    const double *row = asp_py_arrays_hold_copy(h, object, ASP_PY_DOUBLE, 1, name, &found);
    if (row && found == n) return row;
    if (row) wrong_curve_shape(name);
    return NULL;
}

static int read_measured(py_held *h, PyObject **fields, asp_measured *m) {
    asp_curve *c = &m->curve;
    int64_t dims[2], n;
    c->values = asp_py_arrays_hold_copy(h, fields[VALUES], ASP_PY_DOUBLE, 2, "values", dims);
    if (!c->values) return 0;
    c->n_sizes = dims[0];
    c->n_prompts = dims[1];
    c->full = read_row(h, fields[FULL], "full", c->n_prompts);
    c->empty = c->full ? read_row(h, fields[EMPTY], "empty", c->n_prompts) : NULL;
    if (!c->empty || !asp_py_curve_normalization(fields[NORMALIZE], &c->normalization)) return 0;
    if (fields[EFFECT] != Py_None && !(m->effect = read_row(h, fields[EFFECT], "effect", c->n_sizes))) return 0;
    if (fields[SIZES] == Py_None) return 1;
    m->sizes = asp_py_arrays_hold_copy(h, fields[SIZES], ASP_PY_INT64, 1, "sizes", &n);
    if (!m->sizes) return 0;
    return n == c->n_sizes ? 1 : wrong_curve_shape("sizes");
}

/* A _core_types.Curve; `parts` is how much of it is needed: 0 no more than the values, 1 the effect, 2 also sizes. */
static int read_curve(py_held *h, PyObject *object, int parts, asp_measured *m) {
    static const char *const names[] = {"values", "full", "empty", "normalize", "effect", "sizes"};
    PyObject *fields[CURVE_FIELDS];
    *m = (asp_measured){0};
    if (!asp_py_module_fields(object, "Curve", names, CURVE_FIELDS, fields)) return 0;
    const int good = read_measured(h, fields, m);
    asp_py_module_forget(fields, CURVE_FIELDS);
    if (!good || ((parts < 1 || m->effect) && (parts < 2 || m->sizes))) return good;
    PyErr_SetString(PyExc_ValueError,
                    parts < 2 ? "the curve needs its effect" : "the curve needs its effect and sizes");
    return 0;
}

static int n_threads(PyObject *module, int asked) {
    return asked > 0 ? asked : ((py_state *)PyModule_GetState(module))->n_threads;
}

static int good_confidence(double confidence) {
    if (confidence > 0 && confidence < 1) return 1;
    PyErr_SetString(PyExc_ValueError, "confidence must be above 0 and below 1");
    return 0;
}

/* Lets go of the arguments; result, or NULL and an exception. */
static PyObject *end_curve_call(py_held *held, PyObject *result, asp_status status, const asp_error *err) {
    asp_py_arrays_let_go(held);
    if (!status) return result;
    Py_XDECREF(result);
    return asp_py_call_raise(status, err);
}

/* ---- functions --------------------------------------------------------------------------- */

PyObject *asp_py_curve_effect(PyObject *module, PyObject *object) {
    (void)module;
    py_held held = {.n = 0};
    asp_measured m;
    void *effect;
    PyObject *result = NULL;
    if (read_curve(&held, object, 0, &m)) result = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &m.curve.n_sizes, &effect);
    if (result) asp_curve_effect(effect, &m.curve);
    return end_curve_call(&held, result, ASP_OK, NULL);
}

PyObject *asp_py_curve_bootstrap(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"curve", "n_resamples", "seed", "threads", NULL};
    PyObject *object, *result = NULL;
    long long n_resamples;
    unsigned long long seed;
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OLK|i:curve_bootstrap", names, &object, &n_resamples, &seed,
                                     &threads) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    if (n_resamples < 0)
        return PyErr_Format(PyExc_ValueError, "n_resamples must not be negative, got %lld", n_resamples);
    py_held held = {.n = 0};
    asp_measured m;
    asp_error err = {0};
    asp_status status = ASP_OK;
    void *curves;
    int64_t n_valid = 0;
    if (read_curve(&held, object, 0, &m)) {
        const int64_t dims[2] = {n_resamples, m.curve.n_sizes};
        result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &curves);
    }
    if (result) {
        py_call call;
        asp_py_call_begin(&call, n_threads(module, threads));
        status = asp_curve_bootstrap(curves, &n_valid, &m.curve, n_resamples, seed, &call.context, &err);
        asp_py_call_end(&call);
    }
    result = end_curve_call(&held, result, status, &err);
    if (!result || n_valid == n_resamples) return result;
    PyObject *valid = PySequence_GetSlice(result, 0, (Py_ssize_t)n_valid);
    Py_DECREF(result);
    return valid;
}

PyObject *asp_py_curve_band(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"curves", "confidence", "threads", NULL};
    PyObject *object, *low = NULL, *high = NULL;
    double confidence;
    int threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Od|i:curve_band", names, &object, &confidence, &threads) ||
        !asp_py_call_check_threads(threads) || !good_confidence(confidence))
        return NULL;
    py_held held = {.n = 0};
    int64_t dims[2];
    void *lows, *highs;
    asp_error err = {0};
    asp_status status = ASP_OK;
    const double *curves = asp_py_arrays_hold_copy(&held, object, ASP_PY_DOUBLE, 2, "curves", dims);
    if (curves) low = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &dims[1], &lows);
    if (low) high = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &dims[1], &highs);
    if (high) {
        py_call call;
        asp_py_call_begin(&call, n_threads(module, threads));
        status = asp_curve_band(lows, highs, curves, dims[0], dims[1], confidence, &call.context, &err);
        asp_py_call_end(&call);
    }
    PyObject *pair = high ? PyTuple_Pack(2, low, high) : NULL;
    Py_XDECREF(low);
    Py_XDECREF(high);
    return end_curve_call(&held, pair, status, &err);
}

PyObject *asp_py_curve_needed(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *object, *first = NULL, *stays = NULL;
    double fraction;
    if (!PyArg_ParseTuple(args, "Od:curve_needed", &object, &fraction)) return NULL;
    py_held held = {.n = 0};
    int64_t dims[2];
    void *firsts, *stay;
    const double *curves = asp_py_arrays_hold_copy(&held, object, ASP_PY_DOUBLE, 2, "curves", dims);
    if (curves) first = asp_py_arrays_new(ASP_PY_INT64, 1, dims, &firsts);
    if (first) stays = asp_py_arrays_new(ASP_PY_INT64, 1, dims, &stay);
    if (stays) asp_curve_needed(firsts, stay, curves, dims[0], dims[1], fraction);
    PyObject *pair = stays ? PyTuple_Pack(2, first, stays) : NULL;
    Py_XDECREF(first);
    Py_XDECREF(stays);
    return end_curve_call(&held, pair, ASP_OK, NULL);
}

PyObject *asp_py_curve_shares(PyObject *module, PyObject *object) {
    (void)module;
    py_held held = {.n = 0};
    int64_t n;
    void *shares;
    PyObject *result = NULL;
    const double *effect = asp_py_arrays_hold_copy(&held, object, ASP_PY_DOUBLE, 1, "effect", &n);
    const int64_t dims[] = {n + 1};
    if (effect) result = asp_py_arrays_new(ASP_PY_DOUBLE, 1, dims, &shares);
    if (result) asp_curve_shares(shares, effect, n);
    return end_curve_call(&held, result, ASP_OK, NULL);
}

/* ---- intervals over resamples ---------------------------------------------------------------- */

/* Resamples as keyword arguments name them; seed and confidence are read by the caller. */
static int read_bootstrap(long long n_resamples, unsigned long long seed, double confidence, asp_bootstrap *out) {
    *out = (asp_bootstrap){n_resamples, seed, confidence};
    return good_confidence(confidence);
}

PyObject *asp_py_curve_needed_interval(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"curve", "fraction", "n_resamples", "seed", "confidence", "threads", NULL};
    PyObject *object;
    double fraction, confidence;
    long long n_resamples;
    unsigned long long seed;
    int threads = 0;
    asp_bootstrap bootstrap;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OdLKd|i:curve_needed_interval", names, &object, &fraction,
                                     &n_resamples, &seed, &confidence, &threads) ||
        !asp_py_call_check_threads(threads) || !read_bootstrap(n_resamples, seed, confidence, &bootstrap))
        return NULL;
    py_held held = {.n = 0};
    asp_measured m;
    asp_error err = {0};
    asp_needed found;
    if (!read_curve(&held, object, 1, &m)) return end_curve_call(&held, NULL, ASP_OK, NULL);
    py_call call;
    asp_py_call_begin(&call, n_threads(module, threads));
    const asp_status status =
        asp_curve_needed_interval(&found, &m.curve, m.effect, fraction, &bootstrap, &call.context, &err);
    asp_py_call_end(&call);
    PyObject *result =
        status ? NULL
               : Py_BuildValue("LLLLLL", (long long)found.first, (long long)found.stays, (long long)found.first_low,
                               (long long)found.first_high, (long long)found.stays_low, (long long)found.stays_high);
    return end_curve_call(&held, result, status, &err);
}

PyObject *asp_py_curve_ratio(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"curve", "other",      "fraction", "stays", "n_resamples",
                            "seed",  "confidence", "threads",  NULL};
    PyObject *object, *other;
    double fraction, confidence;
    long long n_resamples;
    unsigned long long seed;
    int stays, threads = 0;
    asp_bootstrap bootstrap;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOdpLKd|i:curve_ratio", names, &object, &other, &fraction, &stays,
                                     &n_resamples, &seed, &confidence, &threads) ||
        !asp_py_call_check_threads(threads) || !read_bootstrap(n_resamples, seed, confidence, &bootstrap))
        return NULL;
    py_held held = {.n = 0};
    asp_measured pair[2];
    asp_error err = {0};
    asp_ratio ratio;
    if (!read_curve(&held, object, 2, &pair[0]) || !read_curve(&held, other, 2, &pair[1]))
        return end_curve_call(&held, NULL, ASP_OK, NULL);
    py_call call;
    asp_py_call_begin(&call, n_threads(module, threads));
    const asp_status status =
        asp_curve_ratio(&ratio, &pair[0], &pair[1], fraction, stays, &bootstrap, &call.context, &err);
    asp_py_call_end(&call);
    PyObject *result = status ? NULL : Py_BuildValue("ddd", ratio.value, ratio.low, ratio.high);
    return end_curve_call(&held, result, status, &err);
}

/* ---- random numbers ---------------------------------------------------------------------------- */

PyObject *asp_py_curve_random_raw(PyObject *module, PyObject *args) {
    (void)module;
    long long n, start;
    unsigned long long seed, use, first, second;
    if (!PyArg_ParseTuple(args, "LLKKKK:_random_raw", &start, &n, &seed, &use, &first, &second)) return NULL;
    if (n < 0 || start < 0) return PyErr_Format(PyExc_ValueError, "start and n must not be negative");
    void *out;
    const int64_t dims[] = {n};
    PyObject *array = asp_py_arrays_new(ASP_PY_INT64, 1, dims, &out);
    if (array) asp_random_raw(out, start, n, seed, use, first, second);
    return array;
}

PyObject *asp_py_curve_random_permutation(PyObject *module, PyObject *args) {
    (void)module;
    long long n;
    unsigned long long seed, use, first, second;
    if (!PyArg_ParseTuple(args, "LKKKK:_random_permutation", &n, &seed, &use, &first, &second)) return NULL;
    if (n < 0) return PyErr_Format(PyExc_ValueError, "n must not be negative, got %lld", n);
    void *out;
    asp_error err = {0};
    const int64_t dims[] = {n};
    py_held held = {.n = 0};
    PyObject *array = asp_py_arrays_new(ASP_PY_INT64, 1, dims, &out);
    return array ? end_curve_call(&held, array, asp_random_permutation(out, n, seed, use, first, second, &err), &err)
                 : NULL;
}
