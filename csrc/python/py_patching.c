/* py_patching.c: sweeps that patch one activation at a time, and path patching. */
#include "python/py.h"

#include <string.h>

typedef struct {
    py_held held;
    py_task task;
    double *base, *other;
    PyObject *values; /* (values, base, other) */
} patching_call;

/* A tuple of the result and the metric of both prompts of the pairs; the result's data go to *values. */
static int make_results(patching_call *p, int n_dims, const int64_t *dims, void **values) {
    const int64_t n = p->task.task.clean.n_prompts;
    void *base, *other;
    PyObject *all = asp_py_arrays_new(ASP_PY_DOUBLE, n_dims, dims, values);
    PyObject *of_base = all ? asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n, &base) : NULL;
    PyObject *of_other = of_base ? asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n, &other) : NULL;
    if (of_other) {
        p->base = base;
        p->other = other;
        p->values = PyTuple_Pack(3, all, of_base, of_other);
    }
    Py_XDECREF(all);
    Py_XDECREF(of_base);
    Py_XDECREF(of_other);
    return p->values != NULL;
}

static int begin_patching(patching_call *p, py_call *call, PyObject *self, int threads, PyObject *progress) {
    p->task.metric.call = call;
    if (!asp_py_call_read_begin((py_model *)self)) return 0;
    asp_py_call_begin(call, asp_py_call_n_threads(self, threads));
    asp_py_call_report(call, progress);
    return 1;
}

static void end_patching(py_call *call, PyObject *self, asp_status status, const asp_error *err) {
    asp_py_call_end(call);
    asp_py_call_read_end((py_model *)self);
    if (status) asp_py_call_raise(status, err);
}

/* Lets go of the arguments; the result, or NULL and an exception. */
static PyObject *end_call(patching_call *p) {
    asp_py_effects_clear_task(&p->task);
    asp_py_arrays_let_go(&p->held);
    if (PyErr_Occurred()) Py_CLEAR(p->values);
    return p->values;
}

static int read_task(patching_call *p, PyObject *self, PyObject *task) {
    return asp_py_effects_read_task(&p->task, task, asp_model_config(((py_model *)self)->model)->n_vocab);
}

/* Ascending numbers, or None: all. */
static int read_patched_places(patching_call *p, PyObject *object, const char *name, const int64_t **places,
                               int64_t *n) {
    return object == Py_None || (*places = asp_py_arrays_hold_copy(&p->held, object, ASP_PY_INT64, 1, name, n)) != NULL;
}

/* ---- sweeps --------------------------------------------------------------------------------- */

PyObject *asp_py_patching_sweep(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task",      "kind",      "by_position", "denoising", "held_gate", "layers",
                            "positions", "max_bytes", "threads",     "progress",  NULL};
    static const char *const kinds[] = {"resid", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"};
    PyObject *task, *kind_name, *layers, *positions, *progress = Py_None;
    long long max_bytes;
    int threads = 0;
    asp_patching_options options = {.by_position = 0};
    patching_call p = {.held = {.n = 0}};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOpppOOL|iO:patching_sweep", names, &task, &kind_name,
                                     &options.by_position, &options.denoising, &options.held_gate, &layers, &positions,
                                     &max_bytes, &threads, &progress) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    const int kind = asp_py_module_index(kind_name, "kind", kinds, sizeof kinds / sizeof *kinds);
    const asp_model *model = ((py_model *)self)->model;
    options.kind = (asp_patching_kind)kind;
    options.max_bytes = max_bytes;
    void *values;
    py_call call;
    if (kind >= 0 && read_patched_places(&p, layers, "layers", &options.layers, &options.n_layers) &&
        read_patched_places(&p, positions, "positions", &options.positions, &options.n_positions) &&
        read_task(&p, self, task)) {
        const asp_prompts *clean = &p.task.task.clean;
        const asp_patching_shape shape = asp_patching_places(asp_model_config(model), clean, &options);
        const int64_t dims[4] = {shape.layers, shape.heads, shape.positions, clean->n_prompts};
        if (make_results(&p, 4, dims, &values) && begin_patching(&p, &call, self, threads, progress)) {
            asp_error err = {0};
            const asp_status status =
                asp_patching_sweep(values, p.base, p.other, model, &p.task.task, &options, &call.context, &err);
            end_patching(&call, self, status, &err);
        }
    }
    return end_call(&p);
}

/* ---- paths ----------------------------------------------------------------------------------- */

static const uint8_t *read_choice(patching_call *p, PyObject *object, const char *name, int64_t *n, int64_t width) {
    int64_t dims[2];
    const uint8_t *rows = asp_py_arrays_hold_copy(&p->held, object, ASP_PY_BYTE, 2, name, dims);
    if (!rows) return NULL;
    if (dims[1] == width && (*n < 0 || dims[0] == *n)) {
        *n = dims[0];
        return rows;
    }
    PyErr_Format(PyExc_ValueError, "%s must be of the shape (n, %lld), n as of senders, got (%lld, %lld)", name,
                 (long long)width, (long long)dims[0], (long long)dims[1]);
    return NULL;
}

static int read_patches(patching_call *p, PyObject *self, PyObject **o, asp_path_patches *patches) {
    const asp_config *c = asp_model_config(((py_model *)self)->model);
    int64_t n_tokens = 0;
    patches->n = -1;
    patches->senders = read_choice(p, o[0], "senders", &patches->n, asp_nodes_n_senders(c));
    if (!patches->senders) return 0;
    patches->receivers = read_choice(p, o[1], "receivers", &patches->n, asp_nodes_n_receivers(c));
    if (!patches->receivers) return 0;
    if (o[2] == Py_None) return 1;
    patches->positions = asp_py_arrays_hold_copy(&p->held, o[2], ASP_PY_BYTE, 1, "positions", &n_tokens);
    if (!patches->positions) return 0;
    const int64_t wanted = p->task.task.clean.offsets[p->task.task.clean.n_prompts];
    if (n_tokens == wanted) return 1;
    PyErr_Format(PyExc_ValueError, "positions must have a value for each of the %lld tokens, got %lld",
                 (long long)wanted, (long long)n_tokens);
    return 0;
}

PyObject *asp_py_patching_paths(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"task",      "senders",   "receivers", "positions", "denoising",
                            "held_gate", "max_bytes", "threads",   "progress",  NULL};
    PyObject *task, *choices[3], *progress = Py_None;
    long long max_bytes;
    int threads = 0;
    asp_path_options options = {.denoising = 0};
    asp_path_patches patches = {.n = 0};
    patching_call p = {.held = {.n = 0}};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOppL|iO:path_values", names, &task, &choices[0], &choices[1],
                                     &choices[2], &options.denoising, &options.held_gate, &max_bytes, &threads,
                                     &progress) ||
        !asp_py_call_check_threads(threads))
        return NULL;
    options.max_bytes = max_bytes;
    void *values;
    py_call call;
    if (read_task(&p, self, task) && read_patches(&p, self, choices, &patches)) {
        const int64_t dims[2] = {patches.n, p.task.task.clean.n_prompts};
        if (make_results(&p, 2, dims, &values) && begin_patching(&p, &call, self, threads, progress)) {
            asp_error err = {0};
            const asp_status status = asp_path_values(values, p.base, p.other, ((py_model *)self)->model, &p.task.task,
                                                      &patches, &options, &call.context, &err);
            end_patching(&call, self, status, &err);
        }
    }
    return end_call(&p);
}
