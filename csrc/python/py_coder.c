/* py_coder.c: the type CoderTrainer: weights and optimiser state of one layer's transcoder, and its training step. */
#include "python/py.h"

#include <math.h>
#include <string.h>

static PyObject *coder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    char *names[] = {"n_in", "n_out", "n_features", NULL};
    long long n_in, n_out, n_features;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLL", names, &n_in, &n_out, &n_features)) return NULL;
    py_coder_trainer *self = (py_coder_trainer *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->step.what = "transcoder";
    asp_error err = {0};
    const asp_status status = asp_transcoder_trainer_new(&self->coder, n_in, n_out, n_features, &err);
    if (!status) return (PyObject *)self;
    Py_DECREF(self);
    return asp_py_call_raise(status, &err);
}

static void coder_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    asp_transcoder_trainer_free(((py_coder_trainer *)self)->coder);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- one step --------------------------------------------------------------------------------- */

static int check_coder_options(const asp_transcoder_step_options *o, long long activation) {
    const py_step_range ranges[] = {{"activation", (double)activation, ASP_TRANSCODER_RELU, ASP_TRANSCODER_TOPK},
                                    {"sparsity", o->sparsity, 0, ASP_PY_STEP_MOST},
                                    {"sharpness", o->sharpness, 0, ASP_PY_STEP_MOST},
                                    {"bandwidth", o->bandwidth, 1e-9, ASP_PY_STEP_MOST},
                                    {"aux_weight", o->aux_weight, 0, ASP_PY_STEP_MOST},
                                    {"dead_after", (double)o->dead_after, 1, 1e18},
                                    {"output_scale", o->output_scale, 1e-15, ASP_PY_STEP_MOST}};
    return asp_py_call_step_check(ranges, sizeof ranges / sizeof ranges[0]) &&
           asp_py_call_step_check_adamw(o->lr, o->beta1, o->beta2, o->eps, o->clip);
}

static PyObject *take_coder_step(py_coder_trainer *self, const asp_real *x, const asp_real *y, int64_t n,
                                 const asp_transcoder_step_options *options, int threads) {
    if (!asp_py_call_step_take(&self->step)) return NULL;
    asp_error err = {0};
    asp_transcoder_step_result r = {0};
    py_call call;
    asp_py_call_begin(&call, threads > 0 ? threads : asp_py_module_state(Py_TYPE(self))->n_threads);
    const asp_status status = asp_transcoder_trainer_step(self->coder, x, y, n, options, &call.context, &r, &err);
    asp_py_call_end(&call);
    const long long step = (long long)*asp_transcoder_trainer_step_count(self->coder) - 1;
    asp_py_call_step_release(&self->step);
    if (status) return asp_py_call_raise(status, &err);
    return Py_BuildValue("{s:L,s:d,s:d,s:d,s:d,s:d,s:d,s:L}", "step", step, "loss", r.loss, "error", r.error, "penalty",
                         r.penalty, "aux", r.aux, "l0", r.l0, "grad_norm", r.grad_norm, "n_dead", (long long)r.n_dead);
}

static PyObject *coder_step(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"x",         "y",          "activation", "top_k",      "sparsity",     "sharpness",
                            "bandwidth", "dead_after", "aux_k",      "aux_weight", "output_scale", "lr",
                            "beta1",     "beta2",      "eps",        "clip",       "threads",      NULL};
    py_coder_trainer *self = (py_coder_trainer *)object;
    PyObject *x, *y, *result = NULL;
    asp_transcoder_step_options o = {.top_k = 1,
                                     .sharpness = 1,
                                     .bandwidth = 1,
                                     .dead_after = INT64_MAX / 16,
                                     .output_scale = 1,
                                     .lr = NAN,
                                     .beta1 = 0.9,
                                     .beta2 = 0.999,
                                     .eps = 1e-8};
    long long top_k = o.top_k, dead_after = o.dead_after, aux_k = 0;
    int activation = ASP_TRANSCODER_RELU, threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$iLdddLLdddddddi:step", names, &x, &y, &activation, &top_k,
                                     &o.sparsity, &o.sharpness, &o.bandwidth, &dead_after, &aux_k, &o.aux_weight,
                                     &o.output_scale, &o.lr, &o.beta1, &o.beta2, &o.eps, &o.clip, &threads))
        return NULL;
    o.activation = (asp_transcoder_activation)activation, o.top_k = top_k, o.dead_after = dead_after, o.aux_k = aux_k;
    if (!check_coder_options(&o, activation) || !asp_py_call_check_threads(threads)) return NULL;
    void *x_data, *y_data;
    int64_t x_dims[2], y_dims[2];
    const asp_transcoder_weight *w = asp_transcoder_trainer_weights(self->coder);
    PyObject *x_array = asp_py_arrays_copy(x, ASP_PY_REAL, 2, "x", &x_data, x_dims);
    PyObject *y_array = x_array ? asp_py_arrays_copy(y, ASP_PY_REAL, 2, "y", &y_data, y_dims) : NULL;
    if (y_array && x_dims[1] == w[0].dims[1] && y_dims[1] == w[2].dims[1] && x_dims[0] == y_dims[0])
        result = take_coder_step(self, x_data, y_data, x_dims[0], &o, threads);
    else if (y_array)
        PyErr_Format(PyExc_ValueError,
                     "x and y must have as many rows, of %lld and %lld numbers, got (%lld, %lld) and (%lld, %lld)",
                     (long long)w[0].dims[1], (long long)w[2].dims[1], (long long)x_dims[0], (long long)x_dims[1],
                     (long long)y_dims[0], (long long)y_dims[1]);
    Py_XDECREF(x_array);
    Py_XDECREF(y_array);
    return result;
}

/* ---- arrays ------------------------------------------------------------------------------------ */

typedef struct {
    void *data;
    int kind, n_dims;
    int64_t dims[2], bytes;
} named_array;

/* "w_enc" is a weight, "m/w_enc", "v/w_enc" and "g/w_enc" its moments and gradient; "silent". */
static int find_array(py_coder_trainer *self, PyObject *name, named_array *found) {
    const char *text = asp_py_module_name(name, "the name of an array");
    if (!text) return 0;
    if (strcmp(text, "silent") == 0) {
        const int64_t n = asp_transcoder_trainer_weights(self->coder)[0].dims[0];
        *found = (named_array){
            asp_transcoder_trainer_silent(self->coder), ASP_PY_INT64, 1, {n, 1}, n * (int64_t)sizeof(int64_t)};
        return 1;
    }
    static const char *const prefixes[] = {"", "m/", "v/", "g/"};
    for (int which = 3; which >= 0; which--) {
        const size_t length = strlen(prefixes[which]);
        if (strncmp(text, prefixes[which], length) != 0) continue;
        for (int i = 0; i < ASP_TRANSCODER_N_WEIGHTS; i++) {
            const asp_transcoder_weight *w = &asp_transcoder_trainer_weights(self->coder)[i];
            if (strcmp(text + length, w->name) != 0) continue;
            *found = (named_array){asp_transcoder_trainer_block(self->coder, which) + w->offset,
                                   ASP_PY_REAL,
                                   w->n_dims,
                                   {w->dims[0], w->dims[1]},
                                   w->size * (int64_t)sizeof(asp_real)};
            return 1;
        }
    }
    PyErr_Format(PyExc_KeyError, "a transcoder has no array %R", name);
    return 0;
}

static PyObject *coder_array(PyObject *object, PyObject *name) {
    named_array a;
    if (!find_array((py_coder_trainer *)object, name, &a)) return NULL;
    return asp_py_arrays_lend(object, a.data, a.kind, a.n_dims, a.dims, NULL, 0);
}

static PyObject *coder_load(PyObject *object, PyObject *args) {
    py_coder_trainer *self = (py_coder_trainer *)object;
    PyObject *name, *values;
    named_array a;
    void *data;
    int64_t dims[2] = {0, 1};
    if (!PyArg_ParseTuple(args, "OO", &name, &values) || !find_array(self, name, &a)) return NULL;
    PyObject *array = asp_py_arrays_borrow(values, a.kind, a.n_dims, "the array", &data, dims);
    if (!array) return NULL;
    if (dims[0] != a.dims[0] || dims[1] != a.dims[1])
        PyErr_Format(PyExc_ValueError, "%U has another shape than the one that is loaded", name);
    else asp_py_call_step_copy(&self->step, &(py_step_copy){a.data, data, a.bytes}, 1);
    Py_DECREF(array);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* Copies of the weights in the units of the model, in the order of the block. */
static PyObject *coder_scaled(PyObject *object, PyObject *arg) {
    py_coder_trainer *self = (py_coder_trainer *)object;
    const double scale = PyFloat_AsDouble(arg);
    asp_real *data[ASP_TRANSCODER_N_WEIGHTS];
    if (scale == -1 && PyErr_Occurred()) return NULL;
    PyObject *result = PyTuple_New(ASP_TRANSCODER_N_WEIGHTS);
    for (int i = 0; result && i < ASP_TRANSCODER_N_WEIGHTS; i++) {
        const asp_transcoder_weight *w = &asp_transcoder_trainer_weights(self->coder)[i];
        void *start;
        PyObject *array = asp_py_arrays_new(ASP_PY_REAL, w->n_dims, w->dims, &start);
        if (array) PyTuple_SET_ITEM(result, i, array);
        else Py_CLEAR(result);
        if (array) data[i] = start;
    }
    if (!result || !asp_py_call_step_take(&self->step)) {
        Py_XDECREF(result);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS asp_transcoder_trainer_scaled(self->coder, scale, data);
    Py_END_ALLOW_THREADS asp_py_call_step_release(&self->step);
    return result;
}

static PyObject *coder_get_step(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(*asp_transcoder_trainer_step_count(((py_coder_trainer *)self)->coder));
}

static int coder_set_step(PyObject *self, PyObject *value, void *unused) {
    (void)unused;
    py_coder_trainer *trainer = (py_coder_trainer *)self;
    return asp_py_call_step_set_count(&trainer->step, asp_transcoder_trainer_step_count(trainer->coder), value);
}

static PyMethodDef methods[] = {
    {"step", (PyCFunction)(void (*)(void))coder_step, METH_VARARGS | METH_KEYWORDS,
     "step(x, y, *, activation=0, top_k=1, sparsity=0, ..., lr) -> dict: one optimiser step on rows x and y."},
    {"array", coder_array, METH_O,
     "array(name): read-only view of a weight, 'm/', 'v/', 'g/' + its name, or 'silent'."},
    {"load", coder_load, METH_VARARGS, "load(name, array): copies such an array in."},
    {"scaled", coder_scaled, METH_O,
     "scaled(output_scale) -> (w_enc, b_enc, w_dec, b_dec, threshold) in the units of the model."},
    {0}};

static PyGetSetDef attributes[] = {{"step_count", coder_get_step, coder_set_step, "Steps taken.", NULL}, {0}};

static PyType_Slot slots[] = {{Py_tp_new, coder_new},
                              {Py_tp_dealloc, coder_dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, attributes},
                              {Py_tp_doc,
                               "CoderTrainer(n_in, n_out, n_features): the training of one layer's transcoder."},
                              {0, NULL}};
PyType_Spec asp_py_coder_trainer_spec = {ASP_MODULE ".CoderTrainer", sizeof(py_coder_trainer), 0,
                                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};

/* ---- first weights ------------------------------------------------------------------------------------ */

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

static asp_first_weights_out new_weights(results *out, int64_t f, int64_t e) {
    asp_first_weights_out w = {0};
    w.w_enc = add_result(out, ASP_PY_DOUBLE, 2, f, e);
    w.b_enc = add_result(out, ASP_PY_DOUBLE, 1, f, 1);
    w.w_dec = add_result(out, ASP_PY_DOUBLE, 2, f, e);
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

PyObject *asp_py_coder_weights_from_text(PyObject *module, PyObject *args, PyObject *kwargs) {
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
        const asp_first_weights_out w = new_weights(&out, text.n_features, text.width);
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
    int64_t w_enc[2], b_enc, w_dec[2], b_dec, threshold;
    if (!(set->w_enc = asp_py_arrays_hold_convert(h, o[0], ASP_PY_DOUBLE, 2, "w_enc", w_enc)) ||
        !(set->b_enc = asp_py_arrays_hold_convert(h, o[1], ASP_PY_DOUBLE, 1, "b_enc", &b_enc)) ||
        !(set->w_dec = asp_py_arrays_hold_convert(h, o[2], ASP_PY_DOUBLE, 2, "w_dec", w_dec)) ||
        !(set->b_dec = asp_py_arrays_hold_convert(h, o[3], ASP_PY_DOUBLE, 1, "b_dec", &b_dec)))
        return 0;
    threshold = w_enc[0];
    if (o[4] != Py_None &&
        !(set->threshold = asp_py_arrays_hold_convert(h, o[4], ASP_PY_DOUBLE, 1, "threshold", &threshold)))
        return 0;
    set->n_features = w_enc[0], set->width = w_enc[1];
    return (b_enc == w_enc[0] && w_dec[0] == w_enc[0] && w_dec[1] == w_enc[1] && b_dec == w_enc[1] &&
            threshold == w_enc[0]) ||
           wrong_shapes("w_enc (F,E), b_enc (F), w_dec (F,E), b_dec (E) and threshold (F)");
}

PyObject *asp_py_coder_weights_from_set(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"w_enc", "b_enc", "w_dec", "b_dec", "threshold", "scale", "threads", NULL};
    PyObject *o[5];
    int threads = 0;
    asp_first_weights_set set = {0};
    py_held held = {0};
    results out = {0};
    asp_error err = {0};
    asp_status status = ASP_OK;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOd|i:first_weights_from_set", names, &o[0], &o[1], &o[2], &o[3],
                                     &o[4], &set.scale, &threads) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    int ready = read_set(&held, o, &set);
    if (ready) {
        asp_first_weights_out w = new_weights(&out, set.n_features, set.width);
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

PyObject *asp_py_coder_weights_scale(PyObject *module, PyObject *args, PyObject *kwargs) {
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

PyObject *asp_py_coder_weights_threshold(PyObject *module, PyObject *args, PyObject *kwargs) {
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
