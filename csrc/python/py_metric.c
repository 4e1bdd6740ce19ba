/* py_metric.c: metrics as the core takes them, from _core_types.Metric; also one whose functions are Python's. */
#include "python/py.h"

#include <string.h>

static int wrong_metric_shape(const char *name) {
    PyErr_Format(PyExc_ValueError, "%s has the wrong shape", name);
    return 0;
}

/* ---- a metric of the user's own ------------------------------------------------------------- */

/* What object.method(logits (n,V), sequence (n)) returns; both arrays are new, so that they may be kept. */
static PyObject *ask_metric(const py_metric *m, const char *method, int64_t n, const int64_t *sequence,
                            const asp_real *logits) {
    const int64_t dims[2] = {n, m->n_vocab};
    void *numbers, *rows;
    PyObject *answer = NULL, *array = asp_py_arrays_new(ASP_PY_REAL, 2, dims, &rows);
    PyObject *sequences = array ? asp_py_arrays_new(ASP_PY_INT64, 1, dims, &numbers) : NULL;
    if (sequences) {
        memcpy(rows, logits, (size_t)(n * m->n_vocab) * sizeof *logits);
        memcpy(numbers, sequence, (size_t)n * sizeof *sequence);
        answer = PyObject_CallMethod(m->object, method, "OO", array, sequences);
    }
    Py_XDECREF(array);
    Py_XDECREF(sequences);
    return answer;
}

/* Called without the GIL.  The exception of what failed stays set; ASP_STOPPED brings it out. */
static int custom_values(void *state, int64_t n, const int64_t *sequence, const asp_real *logits, double *values) {
    const py_metric *m = state;
    int64_t found;
    void *data;
    asp_py_call_attach(m->call);
    PyObject *answer = ask_metric(m, "row_values", n, sequence, logits);
    PyObject *copy = answer ? asp_py_arrays_copy(answer, ASP_PY_DOUBLE, 1, "row_values", &data, &found) : NULL;
    const int good = copy && (found == n || wrong_metric_shape("row_values"));
    if (good) memcpy(values, data, (size_t)n * sizeof *values);
    Py_XDECREF(copy);
    Py_XDECREF(answer);
    asp_py_call_detach(m->call);
    return !good;
}

static int custom_gradient(void *state, int64_t n, const int64_t *sequence, const asp_real *logits,
                           asp_real *gradient) {
    const py_metric *m = state;
    int64_t dims[2];
    void *data;
    asp_py_call_attach(m->call);
    PyObject *answer = ask_metric(m, "row_gradients", n, sequence, logits);
    PyObject *copy = answer ? asp_py_arrays_copy(answer, ASP_PY_REAL, 2, "row_gradients", &data, dims) : NULL;
    const int good = copy && ((dims[0] == n && dims[1] == m->n_vocab) || wrong_metric_shape("row_gradients"));
    if (good) memcpy(gradient, data, (size_t)(n * m->n_vocab) * sizeof *gradient);
    Py_XDECREF(copy);
    Py_XDECREF(answer);
    asp_py_call_detach(m->call);
    return !good;
}

static int read_custom(py_metric *m, PyObject *object) {
    PyObject *gradient = PyObject_GetAttrString(object, "gradient");
    if (!gradient) return 0;
    m->object = m->held.arrays[m->held.n++] = Py_NewRef(object);
    m->custom = (asp_custom_metric){custom_values, gradient == Py_None ? NULL : custom_gradient, m};
    m->metric.custom = &m->custom;
    Py_DECREF(gradient);
    return 1;
}

/* ---- the fields ---------------------------------------------------------------------------- */

/* Starts (B+1) that rise from 0 to the number of ids. */
static int read_tokens(py_held *h, PyObject *starts, PyObject *ids, int64_t n_sequences, const char *name,
                       const int64_t **start, const int32_t **tokens) {
    int64_t n_starts, n_ids;
    *start = asp_py_arrays_hold_copy(h, starts, ASP_PY_INT64, 1, name, &n_starts);
    if (!*start) return 0;
    *tokens = asp_py_arrays_hold_copy(h, ids, ASP_PY_INT32, 1, name, &n_ids);
    if (!*tokens) return 0;
    int good = n_starts == n_sequences + 1 && (*start)[0] == 0 && (*start)[n_starts - 1] == n_ids;
    for (int64_t b = 0; good && b < n_sequences; b++) good = (*start)[b] <= (*start)[b + 1];
    return good ? 1 : wrong_metric_shape(name);
}

static int read_kind(PyObject *object, asp_metric_kind *out) {
    const char *name = asp_py_module_name(object, "kind");
    if (!name) return 0;
    for (int kind = 0; kind < ASP_N_METRICS; kind++)
        if (strcmp(name, asp_metric_name((asp_metric_kind)kind)) == 0) {
            *out = (asp_metric_kind)kind;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "there is no metric '%.40s'", name);
    return 0;
}

enum { KIND, ANSWER_START, ANSWERS, WRONG_START, WRONG, LOGITS, CUSTOM, METRIC_FIELDS };

static int read_metric_fields(py_metric *m, PyObject **fields) {
    asp_metric *metric = &m->metric;
    py_held *h = &m->held;
    if (!read_kind(fields[KIND], &metric->kind)) return 0;
    const Py_ssize_t n = PyObject_Length(fields[ANSWER_START]);
    if (n < 1) return PyErr_Occurred() ? 0 : wrong_metric_shape("answer starts");
    metric->n_sequences = (int64_t)n - 1;
    if (!read_tokens(h, fields[ANSWER_START], fields[ANSWERS], metric->n_sequences, "answers", &metric->answer_start,
                     &metric->answers) ||
        !read_tokens(h, fields[WRONG_START], fields[WRONG], metric->n_sequences, "wrong answers", &metric->wrong_start,
                     &metric->wrong))
        return 0;
    if (metric->kind == ASP_CUSTOM && fields[CUSTOM] != Py_None) return read_custom(m, fields[CUSTOM]);
    if (fields[LOGITS] == Py_None) return 1;
    int64_t dims[2];
    metric->reference = asp_py_arrays_hold_copy(h, fields[LOGITS], ASP_PY_REAL, 2, "reference logits", dims);
    if (!metric->reference) return 0;
    return dims[0] == metric->n_sequences && dims[1] == m->n_vocab ? 1 : wrong_metric_shape("reference logits");
}

int asp_py_metric_read(py_metric *m, PyObject *object, int64_t n_vocab) {
    static const char *const names[] = {"kind",  "answer_start", "answers", "wrong_start",
                                        "wrong", "reference",    "custom"};
    PyObject *fields[METRIC_FIELDS];
    *m = (py_metric){.n_vocab = n_vocab};
    if (!asp_py_module_fields(object, "Metric", names, METRIC_FIELDS, fields)) return 0;
    const int good = read_metric_fields(m, fields);
    asp_py_module_forget(fields, METRIC_FIELDS);
    return good;
}

void asp_py_metric_clear(py_metric *m) { asp_py_arrays_let_go(&m->held); }

/* ---- functions of the module ------------------------------------------------------------------- */

PyObject *asp_py_metric_names(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *names = PyDict_New();
    for (int kind = 0; names && kind < ASP_CUSTOM; kind++) {
        const asp_metric_kind k = (asp_metric_kind)kind;
        if (PyDict_SetItemString(names, asp_metric_name(k), asp_metric_is_of_answers(k) ? Py_True : Py_False) < 0)
            Py_CLEAR(names);
    }
    return names;
}

/* The metric of rows of logits, or its gradient. */
static PyObject *of_logits(PyObject *module, PyObject *args, int gradient) {
    PyObject *logits, *object, *held, *result = NULL;
    if (!PyArg_ParseTuple(args, gradient ? "OO:metric_gradients" : "OO:metric_values", &logits, &object)) return NULL;
    int64_t dims[2];
    void *rows, *out;
    held = asp_py_arrays_borrow(logits, ASP_PY_REAL, 2, "logits", &rows, dims);
    if (!held) return NULL;
    py_metric m;
    asp_error err = {0};
    asp_status status = ASP_OK;
    if (asp_py_metric_read(&m, object, dims[1]) &&
        (dims[0] == m.metric.n_sequences || wrong_metric_shape("the metric's number of prompts")))
        result = asp_py_arrays_new(gradient ? ASP_PY_REAL : ASP_PY_DOUBLE, gradient ? 2 : 1, dims, &out);
    if (result) {
        py_call call;
        m.call = &call;
        asp_py_call_begin(&call, ((py_state *)PyModule_GetState(module))->n_threads);
        status = gradient ? asp_metric_gradients(out, &m.metric, rows, dims[1], &call.context, &err)
                          : asp_metric_values(out, &m.metric, rows, dims[1], &call.context, &err);
        asp_py_call_end(&call);
    }
    asp_py_metric_clear(&m);
    Py_DECREF(held);
    if (!status) return result;
    Py_DECREF(result);
    return asp_py_call_raise(status, &err);
}

PyObject *asp_py_metric_values(PyObject *module, PyObject *args) { return of_logits(module, args, 0); }

PyObject *asp_py_metric_gradients(PyObject *module, PyObject *args) { return of_logits(module, args, 1); }
