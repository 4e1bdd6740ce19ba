/* py_coder.c: the type CoderTrainer: weights and optimiser state of the layers of transcoders that are
 * trained together, and their training step. */
#include "python/py.h"

#include <math.h>
#include <string.h>

static PyObject *coder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    char *names[] = {"n_in", "n_out", "n_features", NULL};
    long long n_in, n_out;
    PyObject *counts;
    void *n_features;
    int64_t n_layers;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LLO", names, &n_in, &n_out, &counts)) return NULL;
    PyObject *array = asp_py_arrays_copy(counts, ASP_PY_INT64, 1, "n_features", &n_features, &n_layers);
    py_coder_trainer *self = array ? (py_coder_trainer *)type->tp_alloc(type, 0) : NULL;
    asp_error err = {0};
    asp_status status = ASP_OK;
    if (self) {
        self->step.what = "transcoder";
        status = asp_transcoder_trainer_new(&self->coder, n_layers, n_in, n_out, n_features, &err);
    }
    Py_XDECREF(array);
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

static int check_coder_options(const asp_transcoder_step_options *o, long long activation, int64_t n_layers) {
    const py_step_range ranges[] = {{"activation", (double)activation, ASP_TRANSCODER_RELU, ASP_TRANSCODER_TOPK},
                                    {"sharpness", o->sharpness, 0, ASP_PY_STEP_MOST},
                                    {"bandwidth", o->bandwidth, 1e-9, ASP_PY_STEP_MOST},
                                    {"aux_weight", o->aux_weight, 0, ASP_PY_STEP_MOST},
                                    {"dead_after", (double)o->dead_after, 1, 1e18}};
    for (int64_t l = 0; l < n_layers; l++) {
        const py_step_range of_layer[] = {{"sparsity", o->sparsity[l], 0, ASP_PY_STEP_MOST},
                                          {"output_scale", o->output_scale[l], 1e-15, ASP_PY_STEP_MOST}};
        if (!asp_py_call_step_check(of_layer, sizeof of_layer / sizeof of_layer[0])) return 0;
    }
    return asp_py_call_step_check(ranges, sizeof ranges / sizeof ranges[0]) &&
           asp_py_call_step_check_adamw(o->lr, o->beta1, o->beta2, o->eps, o->clip);
}

static PyObject *coder_result(const asp_transcoder_step_result *r, long long step) {
    return Py_BuildValue("{s:L,s:d,s:d,s:d,s:d,s:d,s:d,s:L}", "step", step, "loss", r->loss, "error", r->error,
                         "penalty", r->penalty, "aux", r->aux, "l0", r->l0, "grad_norm", r->grad_norm, "n_dead",
                         (long long)r->n_dead);
}

static PyObject *coder_results(const asp_transcoder_step_result *r, int64_t n_layers, long long step) {
    PyObject *list = PyList_New(n_layers);
    for (int64_t l = 0; list && l < n_layers; l++) {
        PyObject *result = coder_result(&r[l], step);
        if (result) PyList_SET_ITEM(list, l, result);
        else Py_CLEAR(list);
    }
    return list;
}

static PyObject *take_coder_step(py_coder_trainer *self, const asp_real *x, const asp_real *y, int64_t n,
                                 const asp_transcoder_step_options *options, int threads) {
    const int64_t n_layers = asp_transcoder_trainer_n_layers(self->coder);
    asp_transcoder_step_result *results = PyMem_Calloc((size_t)n_layers, sizeof *results);
    if (!results) return PyErr_NoMemory();
    if (!asp_py_call_step_take(&self->step)) {
        PyMem_Free(results);
        return NULL;
    }
    asp_error err = {0};
    py_call call;
    asp_py_call_begin(&call, threads > 0 ? threads : asp_py_module_state(Py_TYPE(self))->n_threads);
    const asp_status status = asp_transcoder_trainer_step(self->coder, x, y, n, options, &call.context, results, &err);
    asp_py_call_end(&call);
    const long long step = (long long)*asp_transcoder_trainer_step_count(self->coder) - 1;
    asp_py_call_step_release(&self->step);
    PyObject *list = status ? asp_py_call_raise(status, &err) : coder_results(results, n_layers, step);
    PyMem_Free(results);
    return list;
}

/* What a step reads: objects that keep the arrays alive, their data and their shapes. */
typedef struct {
    PyObject *kept[4];
    void *data[4];
    int64_t dims[4][3];
} coder_inputs;

static int borrow_coder_inputs(coder_inputs *in, PyObject *const *given) {
    static const char *const names[] = {"x", "y", "sparsity", "output_scale"};
    for (int i = 0; i < 4; i++) {
        in->kept[i] = asp_py_arrays_copy(given[i], i < 2 ? ASP_PY_REAL : ASP_PY_DOUBLE, i < 2 ? 3 : 1, names[i],
                                         &in->data[i], in->dims[i]);
        if (!in->kept[i]) return 0;
    }
    return 1;
}

/* 0 with an error if the shapes do not fit. */
static int check_coder_inputs(const coder_inputs *in, const asp_transcoder_trainer *coder) {
    const int64_t n_layers = asp_transcoder_trainer_n_layers(coder);
    const asp_transcoder_weight *w = asp_transcoder_trainer_weights(coder, n_layers - 1);
    const int64_t *x = in->dims[0], *y = in->dims[1];
    if (x[0] != n_layers || y[0] != n_layers || x[1] != y[1] || x[2] != w[0].dims[1] || y[2] != w[2].dims[1])
        PyErr_Format(PyExc_ValueError,
                     "x and y must be of %lld layers and have as many rows, of %lld and %lld numbers, got "
                     "(%lld, %lld, %lld) and (%lld, %lld, %lld)",
                     (long long)n_layers, (long long)w[0].dims[1], (long long)w[2].dims[1], (long long)x[0],
                     (long long)x[1], (long long)x[2], (long long)y[0], (long long)y[1], (long long)y[2]);
    else if (in->dims[2][0] != n_layers || in->dims[3][0] != n_layers)
        PyErr_Format(PyExc_ValueError,
                     "sparsity and output_scale must have a number for each of %lld layers, got %lld and %lld",
                     (long long)n_layers, (long long)in->dims[2][0], (long long)in->dims[3][0]);
    else return 1;
    return 0;
}

static PyObject *coder_step(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"x",         "y",         "sparsity",   "output_scale", "activation", "top_k",
                            "sharpness", "bandwidth", "dead_after", "aux_k",        "aux_weight", "lr",
                            "beta1",     "beta2",     "eps",        "clip",         "threads",    NULL};
    py_coder_trainer *self = (py_coder_trainer *)object;
    PyObject *given[4], *result = NULL;
    asp_transcoder_step_options o = {.top_k = 1,
                                     .sharpness = 1,
                                     .bandwidth = 1,
                                     .dead_after = INT64_MAX / 16,
                                     .lr = NAN,
                                     .beta1 = 0.9,
                                     .beta2 = 0.999,
                                     .eps = 1e-8};
    long long top_k = o.top_k, dead_after = o.dead_after, aux_k = 0;
    int activation = ASP_TRANSCODER_RELU, threads = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$iLddLLddddddi:step", names, &given[0], &given[1], &given[2],
                                     &given[3], &activation, &top_k, &o.sharpness, &o.bandwidth, &dead_after, &aux_k,
                                     &o.aux_weight, &o.lr, &o.beta1, &o.beta2, &o.eps, &o.clip, &threads))
        return NULL;
    o.activation = (asp_transcoder_activation)activation, o.top_k = top_k, o.dead_after = dead_after, o.aux_k = aux_k;
    coder_inputs in = {0};
    if (asp_py_call_check_threads(threads) && borrow_coder_inputs(&in, given) && check_coder_inputs(&in, self->coder)) {
        o.sparsity = in.data[2], o.output_scale = in.data[3];
        if (check_coder_options(&o, activation, in.dims[0][0]))
            result = take_coder_step(self, in.data[0], in.data[1], in.dims[0][1], &o, threads);
    }
    for (int i = 0; i < 4; i++) Py_XDECREF(in.kept[i]);
    return result;
}

/* ---- arrays ------------------------------------------------------------------------------------ */

typedef struct {
    void *data;
    int kind, n_dims;
    int64_t dims[2], bytes;
} named_array;

/* 1 if the trainer has the layer, else 0 with an error. */
static int check_coder_layer(const py_coder_trainer *self, long long layer) {
    const int64_t n_layers = asp_transcoder_trainer_n_layers(self->coder);
    if (layer >= 0 && layer < n_layers) return 1;
    PyErr_Format(PyExc_IndexError, "layer %lld is out of range: layers 0..%lld are trained together", layer,
                 (long long)n_layers - 1);
    return 0;
}

/* "w_enc" is a weight, "m/w_enc", "v/w_enc" and "g/w_enc" its moments and gradient; "silent". */
static int find_array(py_coder_trainer *self, PyObject *name, long long layer, named_array *found) {
    const char *text = asp_py_module_name(name, "the name of an array");
    if (!text || !check_coder_layer(self, layer)) return 0;
    const asp_transcoder_weight *weights = asp_transcoder_trainer_weights(self->coder, layer);
    if (strcmp(text, "silent") == 0) {
        const int64_t n = weights[0].dims[0];
        *found = (named_array){
            asp_transcoder_trainer_silent(self->coder, layer), ASP_PY_INT64, 1, {n, 1}, n * (int64_t)sizeof(int64_t)};
        return 1;
    }
    static const char *const prefixes[] = {"", "m/", "v/", "g/"};
    for (int which = 3; which >= 0; which--) {
        const size_t length = strlen(prefixes[which]);
        if (strncmp(text, prefixes[which], length) != 0) continue;
        for (int i = 0; i < ASP_TRANSCODER_N_WEIGHTS; i++) {
            const asp_transcoder_weight *w = &weights[i];
            if (strcmp(text + length, w->name) != 0) continue;
            *found = (named_array){asp_transcoder_trainer_block(self->coder, layer, which) + w->offset,
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

static PyObject *coder_array(PyObject *object, PyObject *args) {
    PyObject *name;
    long long layer = 0;
    named_array a;
    if (!PyArg_ParseTuple(args, "O|L:array", &name, &layer)) return NULL;
    if (!find_array((py_coder_trainer *)object, name, layer, &a)) return NULL;
    return asp_py_arrays_lend(object, a.data, a.kind, a.n_dims, a.dims, NULL, 0);
}

static PyObject *coder_load(PyObject *object, PyObject *args) {
    py_coder_trainer *self = (py_coder_trainer *)object;
    PyObject *name, *values;
    long long layer = 0;
    named_array a;
    void *data;
    int64_t dims[2] = {0, 1};
    if (!PyArg_ParseTuple(args, "OO|L:load", &name, &values, &layer) || !find_array(self, name, layer, &a)) return NULL;
    PyObject *array = asp_py_arrays_borrow(values, a.kind, a.n_dims, "the array", &data, dims);
    if (!array) return NULL;
    if (dims[0] != a.dims[0] || dims[1] != a.dims[1])
        PyErr_Format(PyExc_ValueError, "%U has another shape than the one that is loaded", name);
    else asp_py_call_step_copy(&self->step, &(py_step_copy){a.data, data, a.bytes}, 1);
    Py_DECREF(array);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* Copies of a layer's weights in the units of the model, in the order of the block. */
static PyObject *scaled_weights(py_coder_trainer *self, int64_t layer, const double *scale) {
    asp_real *data[ASP_TRANSCODER_N_WEIGHTS];
    PyObject *result = PyTuple_New(ASP_TRANSCODER_N_WEIGHTS);
    for (int i = 0; result && i < ASP_TRANSCODER_N_WEIGHTS; i++) {
        const asp_transcoder_weight *w = &asp_transcoder_trainer_weights(self->coder, layer)[i];
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
    Py_BEGIN_ALLOW_THREADS asp_transcoder_trainer_scaled(self->coder, layer, scale, data);
    Py_END_ALLOW_THREADS asp_py_call_step_release(&self->step);
    return result;
}

static PyObject *coder_scaled(PyObject *object, PyObject *args) {
    py_coder_trainer *self = (py_coder_trainer *)object;
    PyObject *scales, *result = NULL;
    long long layer = 0;
    void *scale;
    int64_t n;
    if (!PyArg_ParseTuple(args, "O|L:scaled", &scales, &layer) || !check_coder_layer(self, layer)) return NULL;
    PyObject *array = asp_py_arrays_copy(scales, ASP_PY_DOUBLE, 1, "output_scale", &scale, &n);
    if (array && n == asp_transcoder_trainer_n_layers(self->coder)) result = scaled_weights(self, layer, scale);
    else if (array)
        PyErr_Format(PyExc_ValueError, "output_scale must have a number for each of %lld layers, got %lld",
                     (long long)asp_transcoder_trainer_n_layers(self->coder), (long long)n);
    Py_XDECREF(array);
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
     "step(x, y, sparsity, output_scale, *, activation=0, top_k=1, ..., lr) -> list: one optimiser step on rows x and "
     "y, and a dict of results for each layer."},
    {"array", coder_array, METH_VARARGS,
     "array(name, layer=0): read-only view of a weight, 'm/', 'v/', 'g/' + its name, or 'silent'."},
    {"load", coder_load, METH_VARARGS, "load(name, array, layer=0): copies such an array in."},
    {"scaled", coder_scaled, METH_VARARGS,
     "scaled(output_scale, layer=0) -> (w_enc, b_enc, w_dec, b_dec, threshold) in the units of the model."},
    {0}};

static PyGetSetDef attributes[] = {{"step_count", coder_get_step, coder_set_step, "Steps taken.", NULL}, {0}};

static PyType_Slot slots[] = {
    {Py_tp_new, coder_new},
    {Py_tp_dealloc, coder_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_doc, "CoderTrainer(n_in, n_out, n_features): the training of transcoders of one layer or more."},
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

PyObject *asp_py_coder_weights_from_set(PyObject *module, PyObject *args, PyObject *kwargs) {
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
