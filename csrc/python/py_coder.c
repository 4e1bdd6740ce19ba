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
