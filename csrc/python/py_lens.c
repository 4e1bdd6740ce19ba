/* py_lens.c: logit lens, direct attribution, and heads compared by pattern and by weights. */
#include "python/py.h"

#include <string.h>

/* ---- rows of logits ------------------------------------------------------------------------ */

typedef struct {
    py_held held;
    asp_lens_readout out;
    PyObject *arrays[6]; /* token, logit, probability, asked_logit, asked_probability, asked_place */
} py_readout;

/* The tokens that are asked for, and new arrays for n rows; 0 and an exception if they do not fit. */
static int open_readout(py_readout *r, int64_t n, long long n_top, PyObject *asked) {
    static const int kinds[] = {ASP_PY_INT32, ASP_PY_DOUBLE, ASP_PY_DOUBLE, ASP_PY_DOUBLE, ASP_PY_DOUBLE, ASP_PY_INT64};
    int64_t dims[2];
    void *data[6];
    if (!(r->out.asked = asp_py_arrays_hold_copy(&r->held, asked, ASP_PY_INT32, 2, "asked", dims))) return 0;
    if (dims[0] != n || n_top < 0) {
        PyErr_Format(PyExc_ValueError, "asked must have %lld rows and n must not be negative", (long long)n);
        return 0;
    }
    r->out.n_top = n_top;
    r->out.n_asked = dims[1];
    for (int i = 0; i < 6; i++) {
        const int64_t shape[] = {n, i < 3 ? n_top : dims[1]};
        if (!(r->arrays[i] = asp_py_arrays_new(kinds[i], 2, shape, &data[i]))) return 0;
    }
    r->out.token = data[0];
    r->out.logit = data[1];
    r->out.probability = data[2];
    r->out.asked_logit = data[3];
    r->out.asked_probability = data[4];
    r->out.asked_place = data[5];
    return 1;
}

/* The arrays as a tuple, or NULL where the call was not ready or failed. */
static PyObject *close_readout(py_readout *r, int ready) {
    PyObject *result = NULL, **a = r->arrays;
    if (ready) result = PyTuple_Pack(6, a[0], a[1], a[2], a[3], a[4], a[5]);
    for (int i = 0; i < 6; i++) Py_XDECREF(a[i]);
    asp_py_arrays_let_go(&r->held);
    return result;
}

PyObject *asp_py_lens_read(PyObject *module, PyObject *args) {
    PyObject *logits, *asked;
    long long n_top;
    int64_t dims[2];
    py_readout r = {0};
    if (!PyArg_ParseTuple(args, "OLO:lens_read", &logits, &n_top, &asked)) return NULL;
    const asp_real *x = asp_py_arrays_hold(&r.held, logits, ASP_PY_REAL, 2, "logits", dims);
    int ready = x && open_readout(&r, dims[0], n_top, asked);
    if (ready) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, 0));
        const asp_status status = asp_lens_read(&r.out, x, dims[0], dims[1], &call.context, &err);
        asp_py_call_end(&call);
        if (status) asp_py_call_raise(status, &err);
        ready = !status;
    }
    return close_readout(&r, ready);
}

PyObject *asp_py_lens_logits(PyObject *self, PyObject *args) {
    PyObject *point, *row, *asked;
    py_run *run = (py_run *)self;
    long long n_top;
    int held;
    int64_t n, n_rows;
    const int64_t *points, *rows = NULL;
    py_readout r = {0};
    if (!PyArg_ParseTuple(args, "OOpLO:lens", &point, &row, &held, &n_top, &asked)) return NULL;
    points = asp_py_arrays_hold_copy(&r.held, point, ASP_PY_INT64, 1, "points", &n);
    if (points) rows = asp_py_arrays_hold_copy(&r.held, row, ASP_PY_INT64, 1, "rows", &n_rows);
    if (rows && n_rows != n) PyErr_SetString(PyExc_ValueError, "points and rows must have the same length");
    int ready = rows && n_rows == n && open_readout(&r, n, n_top, asked);
    if (ready && (ready = asp_py_call_read_begin_of(run->model, run))) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_n_threads(self, 0));
        const asp_status status =
            asp_lens_logits(&r.out, run->model->model, run->run, n, points, rows, held, &call.context, &err);
        asp_py_call_end(&call);
        asp_py_call_read_end(run->model);
        if (status) asp_py_call_raise(status, &err);
        ready = !status;
    }
    return close_readout(&r, ready);
}

/* ---- direct attribution ---------------------------------------------------------------------- */

/* right and wrong (or None) of n rows; 0 and an exception if they do not fit. */
static int read_tokens_of(py_held *held, PyObject *right, PyObject *wrong, asp_lens_targets *targets) {
    int64_t n;
    targets->right = asp_py_arrays_hold_copy(held, right, ASP_PY_INT32, 1, "right", &n);
    if (!targets->right) return 0;
    const int fits = n == targets->n;
    if (fits && wrong == Py_None) return 1;
    if (fits && !(targets->wrong = asp_py_arrays_hold_copy(held, wrong, ASP_PY_INT32, 1, "wrong", &n))) return 0;
    if (n == targets->n) return 1;
    PyErr_Format(PyExc_ValueError, "right and wrong must have %lld tokens, one for each row", (long long)targets->n);
    return 0;
}

enum { PART_KINDS = 12 };
typedef struct {
    const char *name;
    double **data;
    int n_dims;
    int64_t dims[3];
} py_part;

static int64_t longest_of(const asp_run *run) {
    int64_t longest = 0;
    for (int64_t b = 0; b < asp_run_n_sequences(run); b++) {
        const int64_t n = asp_run_offsets(run)[b + 1] - asp_run_offsets(run)[b];
        if (n > longest) longest = n;
    }
    return longest;
}

static void list_attributed(py_part list[PART_KINDS], asp_lens_parts *p, const py_run *run, int64_t n) {
    const asp_config *c = asp_model_config(run->model->model);
    const int64_t l = c->n_layer, longest = longest_of(run->run);
    const py_part parts[PART_KINDS] = {{"value", &p->value, 1, {n}},
                                       {"ln_bias", &p->ln_bias, 1, {n}},
                                       {"unembed_bias", &p->unembed_bias, 1, {n}},
                                       {"embed", &p->embed, 1, {n}},
                                       {"pos_embed", &p->pos_embed, 1, {n}},
                                       {"head", &p->head, 3, {n, l, c->n_head}},
                                       {"value_bias", &p->value_bias, 2, {n, l}},
                                       {"attn_bias", &p->attn_bias, 2, {n, l}},
                                       {"mlp", &p->mlp, 2, {n, l}},
                                       {"key", &p->key, 2, {n, longest}},
                                       {"neuron", &p->neuron, 3, {n, l, c->d_mlp}},
                                       {"mlp_bias", &p->mlp_bias, 2, {n, l}}};
    memcpy(list, parts, sizeof parts);
}

/* {name: array} of the parts that are named; NULL and an exception for a name that there is not. */
static PyObject *new_parts(PyObject *wanted, asp_lens_parts *parts, const py_run *run, int64_t n) {
    py_part list[PART_KINDS];
    const char *names[PART_KINDS];
    list_attributed(list, parts, run, n);
    for (int i = 0; i < PART_KINDS; i++) names[i] = list[i].name;
    PyObject *items = asp_py_module_tuple(wanted, "parts must be a sequence of names");
    PyObject *result = items ? PyDict_New() : NULL;
    for (Py_ssize_t i = 0; result && i < PyTuple_Size(items); i++) {
        void *data;
        const int at = asp_py_module_index(PyTuple_GetItem(items, i), "part", names, PART_KINDS);
        PyObject *array = at < 0 ? NULL : asp_py_arrays_new(ASP_PY_DOUBLE, list[at].n_dims, list[at].dims, &data);
        if (!array || PyDict_SetItemString(result, list[at].name, array) < 0) Py_CLEAR(result);
        else *list[at].data = data;
        Py_XDECREF(array);
    }
    Py_XDECREF(items);
    return result;
}

PyObject *asp_py_lens_attribute(PyObject *self, PyObject *args) {
    PyObject *row, *right, *wrong, *wanted, *result = NULL;
    py_run *run = (py_run *)self;
    py_held held = {0};
    asp_lens_targets targets = {0};
    asp_lens_parts parts = {0};
    if (!PyArg_ParseTuple(args, "OOOO:attribute", &row, &right, &wrong, &wanted)) return NULL;
    targets.row = asp_py_arrays_hold_copy(&held, row, ASP_PY_INT64, 1, "rows", &targets.n);
    if (targets.row && read_tokens_of(&held, right, wrong, &targets))
        result = new_parts(wanted, &parts, run, targets.n);
    if (result && !asp_py_call_read_begin_of(run->model, run)) Py_CLEAR(result);
    if (result) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_n_threads(self, 0));
        const asp_status status =
            asp_lens_attribute(&parts, run->model->model, run->run, &targets, &call.context, &err);
        asp_py_call_end(&call);
        asp_py_call_read_end(run->model);
        if (status) Py_CLEAR(result);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&held);
    return result;
}

PyObject *asp_py_lens_project(PyObject *self, PyObject *args) {
    PyObject *stack, *scales, *right, *wrong, *result = NULL;
    py_model *model = (py_model *)self;
    py_held held = {0};
    asp_lens_targets targets = {0};
    int64_t dims[3];
    void *out;
    if (!PyArg_ParseTuple(args, "OOOO:lens_project", &stack, &scales, &right, &wrong)) return NULL;
    const asp_real *x = asp_py_arrays_hold(&held, stack, ASP_PY_REAL, 3, "stack", dims), *scale = NULL;
    if (x) scale = asp_py_arrays_hold(&held, scales, ASP_PY_REAL, 1, "scale", &targets.n);
    if (scale && (dims[1] != targets.n || dims[2] != asp_model_config(model->model)->d_model))
        PyErr_SetString(PyExc_ValueError,
                        "stack must have the shape (parts, rows, d_model), and scale one for each row");
    else if (scale && read_tokens_of(&held, right, wrong, &targets))
        result = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &out);
    if (result && !asp_py_call_read_begin(model)) Py_CLEAR(result);
    if (result) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_n_threads(self, 0));
        const asp_status status = asp_lens_project(out, model->model, x, dims[0], scale, &targets, &call.context, &err);
        asp_py_call_end(&call);
        asp_py_call_read_end(model);
        if (status) Py_CLEAR(result);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&held);
    return result;
}

PyObject *asp_py_lens_normalize(PyObject *module, PyObject *args) {
    PyObject *stack, *scales, *result = NULL;
    double eps;
    py_held held = {0};
    int64_t dims[3], n;
    const asp_real *scale = NULL;
    void *out;
    if (!PyArg_ParseTuple(args, "OOd:lens_normalize", &stack, &scales, &eps)) return NULL;
    const asp_real *x = asp_py_arrays_hold(&held, stack, ASP_PY_REAL, 3, "stack", dims);
    if (x && scales != Py_None) scale = asp_py_arrays_hold(&held, scales, ASP_PY_REAL, 1, "scale", &n);
    if (scale && n != dims[1])
        PyErr_Format(PyExc_ValueError, "scale must have %lld values, one for each row, got %lld", (long long)dims[1],
                     (long long)n);
    else if (x && (scale || scales == Py_None)) result = asp_py_arrays_new(ASP_PY_REAL, 3, dims, &out);
    if (result) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_module_threads(module, 0));
        const asp_status status = asp_lens_normalize(out, x, dims[0], dims[1], dims[2], scale, eps, &call.context);
        asp_py_call_end(&call);
        if (status) Py_CLEAR(result);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&held);
    return result;
}

/* ---- heads ----------------------------------------------------------------------------------- */

/* Whether each of the patterns has as many entries as the squares of the run's sequences; else an exception. */
static int patterns_fit(const asp_run *run, int64_t n_entries) {
    int64_t squares = 0;
    for (int64_t b = 0; b < asp_run_n_sequences(run); b++) {
        const int64_t n = asp_run_offsets(run)[b + 1] - asp_run_offsets(run)[b];
        squares += n * n;
    }
    if (n_entries == squares) return 1;
    PyErr_Format(PyExc_ValueError, "a pattern must have %lld entries, got %lld", (long long)squares,
                 (long long)n_entries);
    return 0;
}

PyObject *asp_py_lens_detect(PyObject *self, PyObject *args) {
    PyObject *patterns, *measure, *result = NULL;
    py_run *run = (py_run *)self;
    py_held held = {0};
    static const char *const measures[] = {"mul", "abs"};
    asp_detect_options options = {0};
    int64_t dims[2];
    void *scores;
    if (!PyArg_ParseTuple(args, "OOpp:detect", &patterns, &measure, &options.exclude_first, &options.exclude_current))
        return NULL;
    if ((options.measure = asp_py_module_index(measure, "error measure", measures, 2)) < 0) return NULL;
    if (!asp_py_run_is_whole(run)) return NULL;
    const asp_config *c = asp_model_config(run->model->model);
    options.patterns = asp_py_arrays_hold(&held, patterns, ASP_PY_DOUBLE, 2, "patterns", dims);
    if (options.patterns && patterns_fit(run->run, dims[1])) {
        const int64_t shape[] = {dims[0], asp_run_n_sequences(run->run), c->n_layer, c->n_head};
        options.n_patterns = dims[0];
        result = asp_py_arrays_new(ASP_PY_DOUBLE, 4, shape, &scores);
    }
    if (result) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, asp_py_call_n_threads(self, 0));
        const asp_status status = asp_detect_heads(scores, run->run, &options, &call.context, &err);
        asp_py_call_end(&call);
        if (status) Py_CLEAR(result);
        if (status) asp_py_call_raise(status, &err);
    }
    asp_py_arrays_let_go(&held);
    return result;
}

PyObject *asp_py_lens_composition(PyObject *self, PyObject *unused) {
    (void)unused;
    py_model *model = (py_model *)self;
    const asp_config *c = asp_model_config(model->model);
    const int64_t dims[] = {3, c->n_layer, c->n_head, c->n_layer, c->n_head};
    void *scores;
    PyObject *result = asp_py_arrays_new(ASP_PY_DOUBLE, 5, dims, &scores);
    if (result && !asp_py_call_read_begin(model)) Py_CLEAR(result);
    if (!result) return NULL;
    asp_error err = {0};
    py_call call;
    asp_py_call_begin(&call, asp_py_call_n_threads(self, 0));
    const asp_status status = asp_composition_scores(scores, model->model, &call.context, &err);
    asp_py_call_end(&call);
    asp_py_call_read_end(model);
    if (status) Py_CLEAR(result);
    return status ? asp_py_call_raise(status, &err) : result;
}

/* One kind of weight of all layers; layers lie in the arena at equal distances. */
PyObject *asp_py_lens_stacked(PyObject *self, PyObject *name) {
    asp_model *model = ((py_model *)self)->model;
    const char *text = asp_py_module_name(name, "a parameter name");
    const int64_t n_layer = asp_model_config(model)->n_layer;
    const asp_parameter *first = NULL;
    if (!text) return NULL;
    for (int64_t i = 0; i < asp_model_n_parameters(model); i++) {
        const asp_parameter *p = asp_model_parameter(model, i);
        if (strncmp(p->name, "h.", 2) != 0 || strcmp(strchr(p->name + 2, '.') + 1, text) != 0) continue;
        const int64_t to_next = first ? p->offset - first->offset : p->size;
        if (!first) first = p;
        if (first != p || n_layer == 1) {
            const int64_t dims[] = {n_layer, p->dims[0], p->dims[1]};
            const int64_t strides[] = {to_next, p->n_dims == 2 ? p->dims[1] : 1, 1};
            return asp_py_arrays_lend(self, asp_model_data(model) + first->offset, ASP_PY_REAL, p->n_dims + 1, dims,
                                      strides, 0);
        }
    }
    return PyErr_Format(PyExc_KeyError, "the layers of this model have no parameter %R", name);
}
