/* py_reading.c: the type Reading: while it is held nobody changes the weights of a model. */
#include "python/py.h"

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

PyObject *asp_py_reading_of_model(PyObject *model, PyObject *unused) {
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

static PyObject *enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *leave(PyObject *self, PyObject *unused) {
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

static PyMethodDef methods[] = {{"__enter__", enter, METH_NOARGS, "Itself."},
                                {"__exit__", leave, METH_VARARGS, "Lets others change the weights again."},
                                {0}};

static PyType_Slot slots[] = {{Py_tp_dealloc, reading_dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_doc, "While it is held nobody changes the weights of a model; see Model.reading."},
                              {0, NULL}};
PyType_Spec asp_py_reading_spec = {ASP_MODULE ".Reading", sizeof(py_reading), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                   slots};
