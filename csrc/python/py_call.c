/* py_call.c: a call of the core: status -> exception, threads, who may read and who may change a model's weights, the
 * GIL, which is released while the core works, and what the training steps of Trainer and CoderTrainer share. */
#include "python/py.h"

#include <math.h>
#include <string.h>

/* ---- exceptions ------------------------------------------------------------------------ */

static PyObject *raise_diverged(const char *text) {
    PyObject *errors = PyImport_ImportModule("attnsparse.errors");
    PyObject *type = errors ? PyObject_GetAttrString(errors, "TrainingDiverged") : NULL;
    if (type) PyErr_SetString(type, text);
    Py_XDECREF(type);
    Py_XDECREF(errors);
    return NULL;
}

PyObject *asp_py_call_raise(asp_status status, const asp_error *err) {
    const char *text = err->text;
    switch (status) {
    case ASP_NO_MEMORY: PyErr_SetString(PyExc_MemoryError, text); break;
    case ASP_BAD_ARGUMENT: PyErr_SetString(PyExc_ValueError, text); break;
    case ASP_BAD_INDEX: PyErr_SetString(PyExc_IndexError, text); break;
    case ASP_DIVERGED: return raise_diverged(text);
    case ASP_STOPPED:
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError,
                            "a signal handler forked in the middle of this call, which continues in the parent only");
        break;
    default: PyErr_SetString(PyExc_RuntimeError, text); break;
    }
    return NULL;
}

/* ---- threads --------------------------------------------------------------------------- */

int asp_py_call_check_threads(int threads) {
    if (threads >= 0 && threads <= 64) return 1;
    PyErr_Format(PyExc_ValueError, "threads must be in 1..64, or 0 for the default, got %d", threads);
    return 0;
}

int asp_py_call_n_threads(PyObject *self, int asked) {
    return asked > 0 ? asked : asp_py_module_state(Py_TYPE(self))->n_threads;
}

int asp_py_call_module_threads(PyObject *module, int asked) {
    return asked > 0 ? asked : ((py_state *)PyModule_GetState(module))->n_threads;
}

/* ---- readers and the writer ------------------------------------------------------------- */

int asp_py_call_read_begin(py_model *model) {
    int users = atomic_load(&model->users);
    do {
        if (users < 0) {
            PyErr_SetString(PyExc_RuntimeError,
                            "model is being changed in another thread; wait for it or use a copy of the model");
            return 0;
        }
    } while (!atomic_compare_exchange_weak(&model->users, &users, users + 1));
    return 1;
}

int asp_py_call_read_begin_of(py_model *model, const py_run *run) {
    if (!asp_py_call_read_begin(model)) return 0;
    if (asp_py_run_is_current(run, model)) return 1;
    asp_py_call_read_end(model);
    return 0;
}

void asp_py_call_read_end(py_model *model) { atomic_fetch_sub(&model->users, 1); }

int asp_py_call_write_begin(py_model *model) {
    int nobody = 0;
    if (atomic_compare_exchange_strong(&model->users, &nobody, -1)) return 1;
    PyErr_SetString(PyExc_RuntimeError, "model is in use in another thread; wait for it or use a copy of the model");
    return 0;
}

void asp_py_call_write_end(py_model *model) {
    atomic_fetch_add(&model->version, 1);
    atomic_store(&model->users, 0);
}

/* ---- the type Reading: while it is held nobody changes the weights of a model ------------- */

typedef struct {
    PyObject_HEAD py_model *model; /* NULL once it is let go */
} py_reading;

static void end_reading(py_reading *self) {
    py_model *model = self->model;
    self->model = NULL;
    if (!model) return;
    asp_py_call_read_end(model);
    Py_DECREF((PyObject *)model);
}

PyObject *asp_py_call_reading(PyObject *model, PyObject *unused) {
    (void)unused;
    PyTypeObject *type = asp_py_module_state(Py_TYPE(model))->reading_type;
    py_reading *self = (py_reading *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    if (asp_py_call_read_begin((py_model *)model)) {
        self->model = (py_model *)Py_NewRef(model);
        return (PyObject *)self;
    }
    Py_DECREF((PyObject *)self);
    return NULL;
}

static PyObject *enter_reading(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *leave_reading(PyObject *self, PyObject *unused) {
    (void)unused;
    end_reading((py_reading *)self);
    Py_RETURN_NONE;
}

static void reading_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    end_reading((py_reading *)self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef reading_methods[] = {{"__enter__", enter_reading, METH_NOARGS, "Itself."},
                                        {"__exit__", leave_reading, METH_VARARGS,
                                         "Lets others change the weights again."},
                                        {0}};

static PyType_Slot reading_slots[] = {{Py_tp_dealloc, reading_dealloc},
                                      {Py_tp_methods, reading_methods},
                                      {Py_tp_doc,
                                       "While it is held nobody changes the weights of a model; see Model.reading."},
                                      {0, NULL}};
PyType_Spec asp_py_call_reading_spec = {ASP_MODULE ".Reading", sizeof(py_reading), 0,
                                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE |
                                            Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                        reading_slots};

/* ---- the GIL --------------------------------------------------------------------------- */

void asp_py_call_attach(py_call *call) {
    call->environment = asp_environment_pause();
    PyEval_RestoreThread(call->thread);
}

void asp_py_call_detach(py_call *call) {
    call->thread = PyEval_SaveThread();
    asp_environment_resume(call->environment);
}

static int poll_signals(void *state) {
    py_call *call = state;
    if (call->failed) return 1;
    asp_py_call_attach(call);
    const int interrupted = PyErr_CheckSignals() != 0;
    asp_py_call_detach(call);
    return interrupted;
}

static int tell(void *state, const char *stage, int64_t done, int64_t total) {
    py_call *call = state;
    if (call->failed) return 1;
    asp_py_call_attach(call);
    PyObject *answer = PyObject_CallFunction(call->progress, "sLL", stage, (long long)done, (long long)total);
    call->failed = !answer;
    Py_XDECREF(answer);
    asp_py_call_detach(call);
    return call->failed;
}

void asp_py_call_begin(py_call *call, int n_threads) {
    *call = (py_call){.context = {.n_threads = n_threads, .poll = poll_signals, .poll_state = call}};
    call->thread = PyEval_SaveThread();
}

void asp_py_call_report(py_call *call, PyObject *progress) {
    if (progress == Py_None) return;
    call->progress = progress;
    call->context.progress = tell;
    call->context.progress_state = call;
}

void asp_py_call_end(py_call *call) { PyEval_RestoreThread(call->thread); }

/* ---- steps of training ------------------------------------------------------------- */

int asp_py_call_step_take(py_step *step) {
    int idle = 0;
    if (atomic_compare_exchange_strong(&step->busy, &idle, 1)) return 1;
    PyErr_Format(PyExc_RuntimeError, "this %s is taking a step in another thread", step->what);
    return 0;
}

void asp_py_call_step_release(py_step *step) { atomic_store(&step->busy, 0); }

int asp_py_call_step_check(const py_step_range *ranges, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(ranges[i].value >= ranges[i].least && ranges[i].value <= ranges[i].most)) {
            char text[160];
            PyOS_snprintf(text, sizeof text, "%s must be in %g..%g, got %g", ranges[i].name, ranges[i].least,
                          ranges[i].most, ranges[i].value);
            PyErr_SetString(PyExc_ValueError, text);
            return 0;
        }
    return 1;
}

int asp_py_call_step_check_adamw(double lr, double beta1, double beta2, double eps, double clip) {
    const py_step_range ranges[] = {{"lr", lr, 0, ASP_PY_STEP_MOST},
                                    {"beta1", beta1, 0, 0.9999999},
                                    {"beta2", beta2, 0, 0.9999999},
                                    {"eps", eps, 1e-30, ASP_PY_STEP_MOST},
                                    {"clip", clip, 0, INFINITY}};
    return asp_py_call_step_check(ranges, sizeof ranges / sizeof ranges[0]);
}

int asp_py_call_step_layers(py_step_layers *option, int64_t n_layer) {
    void *data;
    int64_t n;
    if (option->given == Py_None) return 1;
    option->array = asp_py_arrays_convert(option->given, ASP_PY_DOUBLE, 1, option->name, &data, &n);
    if (!option->array) return 0;
    if (n != n_layer) {
        PyErr_Format(PyExc_ValueError, "%s must have one number for each of the %lld layers, got %lld", option->name,
                     (long long)n_layer, (long long)n);
        return 0;
    }
    *option->out = data;
    for (int64_t l = 0; l < n; l++) {
        char name[80];
        PyOS_snprintf(name, sizeof name, "%s of layer %lld", option->name, (long long)l);
        const py_step_range range = {name, (*option->out)[l], option->least, option->most};
        if (!asp_py_call_step_check(&range, 1)) return 0;
    }
    return 1;
}

int asp_py_call_step_copy(py_step *step, const py_step_copy *copies, size_t n) {
    if (!asp_py_call_step_take(step)) return 0;
    PyThreadState *thread = PyEval_SaveThread();
    for (size_t i = 0; i < n; i++) memcpy(copies[i].to, copies[i].from, (size_t)copies[i].bytes);
    PyEval_RestoreThread(thread);
    asp_py_call_step_release(step);
    return 1;
}

int asp_py_call_step_set_count(py_step *step, int64_t *count, PyObject *value) {
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "step_count cannot be deleted");
        return -1;
    }
    const long long found = PyLong_AsLongLong(value);
    if (PyErr_Occurred()) return -1;
    if (found < 0) {
        PyErr_Format(PyExc_ValueError, "step_count must not be negative, got %lld", found);
        return -1;
    }
    if (!asp_py_call_step_take(step)) return -1;
    *count = found;
    asp_py_call_step_release(step);
    return 0;
}
