/* py_arrays.c: the only file that calls NumPy: borrows input arrays, lends output arrays. */
#include "python/py.h"

#include <numpy/arrayobject.h>

int asp_py_arrays_import(void) {
    import_array1(-1);
    return 0;
}

static int type_number(int kind) {
    switch (kind) {
    case ASP_PY_INT32: return NPY_INT32;
    case ASP_PY_INT64: return NPY_INT64;
    case ASP_PY_BYTE: return NPY_BOOL;
    case ASP_PY_DOUBLE: return NPY_DOUBLE;
    case ASP_PY_FLOAT: return NPY_FLOAT;
    default: return sizeof(asp_real) == 8 ? NPY_DOUBLE : NPY_FLOAT;
    }
}

static const char *type_name(int kind) {
    switch (kind) {
    case ASP_PY_INT32: return "int32";
    case ASP_PY_INT64: return "int64";
    case ASP_PY_BYTE: return "bool";
    case ASP_PY_DOUBLE: return "float64";
    case ASP_PY_FLOAT: return "float32";
    default: return sizeof(asp_real) == 8 ? "float64" : "float32";
    }
}

PyObject *asp_py_arrays_lend(PyObject *owner, void *data, int kind, int n_dims, const int64_t *dims,
                             const int64_t *strides, int writable) {
    npy_intp shape[8], steps[8];
    PyArray_Descr *type = PyArray_DescrFromType(type_number(kind));
    if (!type) return NULL;
    const npy_intp item = PyDataType_ELSIZE(type);
    for (int i = 0; i < n_dims; i++) {
        shape[i] = (npy_intp)dims[i];
        if (strides) steps[i] = (npy_intp)strides[i] * item;
    }
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, type, n_dims, shape, strides ? steps : NULL, data,
                                           NPY_ARRAY_WRITEABLE, NULL);
    if (!array) return NULL;
    if (!writable) PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
    Py_INCREF(owner);
    if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

PyObject *asp_py_arrays_lend_array(PyObject *owner, asp_array array) {
    return asp_py_arrays_lend(owner, array.data, array.is_byte ? ASP_PY_BYTE : ASP_PY_REAL, array.n_dims, array.dims,
                              array.strides, 0);
}

PyObject *asp_py_arrays_new(int kind, int n_dims, const int64_t *dims, void **data) {
    npy_intp shape[8];
    for (int i = 0; i < n_dims; i++) shape[i] = (npy_intp)dims[i];
    PyObject *array = PyArray_ZEROS(n_dims, shape, type_number(kind), 0);
    if (array) *data = PyArray_DATA((PyArrayObject *)array);
    return array;
}

static PyObject *describe(PyObject *array, void **data, int64_t *dims) {
    *data = PyArray_DATA((PyArrayObject *)array);
    for (int i = 0; dims && i < PyArray_NDIM((PyArrayObject *)array); i++)
        dims[i] = PyArray_DIM((PyArrayObject *)array, i);
    return array;
}

/* 1 if it is a C-contiguous array of this kind and number of dimensions, in this machine's byte order. */
static int check(PyObject *object, int kind, int n_dims, const char *name) {
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be a NumPy array, got %.80s", name, Py_TYPE(object)->tp_name);
        return 0;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_EquivTypenums(PyArray_TYPE(array), type_number(kind))) {
        PyErr_Format(PyExc_TypeError, "%s must have dtype %s, got %S", name, type_name(kind), PyArray_DESCR(array));
        return 0;
    }
    if (PyArray_NDIM(array) != n_dims || !PyArray_ISCARRAY_RO(array)) {
        PyErr_Format(PyExc_ValueError, "%s must be a C-contiguous array of %d dimension(s), got %d dimension(s)%s",
                     name, n_dims, PyArray_NDIM(array), PyArray_ISCARRAY_RO(array) ? "" : " in another memory layout");
        return 0;
    }
    return 1;
}

/* NumPy resizes no array that a weak reference points to, not even with refcheck=False; so these references keep the
 * memory where it is: (array, one to it, one to each array that it is a view of). */
static PyObject *pin(PyObject *array) {
    PyObject *pins = PyList_New(0);
    int complete = pins && PyList_Append(pins, array) == 0;
    for (PyObject *at = array; complete && at && PyArray_Check(at); at = PyArray_BASE((PyArrayObject *)at)) {
        PyObject *reference = PyWeakref_NewRef(at, NULL);
        complete = reference && PyList_Append(pins, reference) == 0;
        Py_XDECREF(reference);
    }
    if (!complete) Py_CLEAR(pins);
    return pins;
}

PyObject *asp_py_arrays_borrow(PyObject *object, int kind, int n_dims, const char *name, void **data, int64_t *dims) {
    PyObject *pins = check(object, kind, n_dims, name) ? pin(object) : NULL;
    if (pins) describe(object, data, dims);
    return pins;
}

PyObject *asp_py_arrays_copy(PyObject *object, int kind, int n_dims, const char *name, void **data, int64_t *dims) {
    if (!check(object, kind, n_dims, name)) return NULL;
    /* Of NumPy's own class: one of a subclass would be shown to the subclass. */
    PyObject *copy = PyArray_NewLikeArray((PyArrayObject *)object, NPY_CORDER, NULL, 0);
    if (copy && PyArray_CopyInto((PyArrayObject *)copy, (PyArrayObject *)object) < 0) Py_CLEAR(copy);
    return copy ? describe(copy, data, dims) : NULL;
}

PyObject *asp_py_arrays_convert(PyObject *object, int kind, int n_dims, const char *name, void **data, int64_t *dims) {
    PyObject *array = PyArray_FROMANY(object, type_number(kind), n_dims, n_dims,
                                      NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY | NPY_ARRAY_ENSUREARRAY);
    if (array) return describe(array, data, dims);
    if (PyErr_ExceptionMatches(PyExc_ValueError) || PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s must be an array of %d dimension(s) that can be taken as %s, got %.80s",
                     name, n_dims, type_name(kind), Py_TYPE(object)->tp_name);
    }
    return NULL;
}

void *asp_py_arrays_hold_copy(py_held *held, PyObject *object, int kind, int n_dims, const char *name, int64_t *dims) {
    void *data = NULL;
    PyObject *array = asp_py_arrays_copy(object, kind, n_dims, name, &data, dims);
    if (!array) return NULL;
    held->arrays[held->n++] = array;
    return data;
}

void *asp_py_arrays_hold(py_held *held, PyObject *object, int kind, int n_dims, const char *name, int64_t *dims) {
    void *data = NULL;
    PyObject *array = asp_py_arrays_borrow(object, kind, n_dims, name, &data, dims);
    if (!array) return NULL;
    held->arrays[held->n++] = array;
    return data;
}

void *asp_py_arrays_hold_out(py_held *held, PyObject *object, int kind, int n_dims, const char *name, int64_t *dims) {
    void *data = asp_py_arrays_hold(held, object, kind, n_dims, name, dims);
    if (!data || PyArray_ISWRITEABLE((PyArrayObject *)object)) return data;
    PyErr_Format(PyExc_ValueError, "%s is read-only", name);
    return NULL;
}

void *asp_py_arrays_hold_convert(py_held *held, PyObject *object, int kind, int n_dims, const char *name,
                                 int64_t *dims) {
    void *data = NULL;
    PyObject *array = asp_py_arrays_convert(object, kind, n_dims, name, &data, dims);
    if (!array) return NULL;
    held->arrays[held->n++] = array;
    return data;
}

void asp_py_arrays_let_go(py_held *held) {
    for (int i = 0; i < held->n; i++) Py_DECREF(held->arrays[i]);
    held->n = 0;
}

void asp_py_arrays_batch_clear(py_batch *batch) {
    Py_CLEAR(batch->token_array);
    Py_CLEAR(batch->offset_array);
}

int asp_py_arrays_batch(py_batch *batch, PyObject *tokens, PyObject *offsets) {
    int64_t n_offsets;
    void *data;
    *batch = (py_batch){0};
    batch->token_array = asp_py_arrays_copy(tokens, ASP_PY_INT32, 1, "tokens", &data, &batch->n_tokens);
    if (!batch->token_array) return 0;
    batch->tokens = data;
    batch->offset_array = asp_py_arrays_copy(offsets, ASP_PY_INT64, 1, "offsets", &data, &n_offsets);
    if (!batch->offset_array) {
        asp_py_arrays_batch_clear(batch);
        return 0;
    }
    batch->offsets = data;
    batch->n_sequences = n_offsets - 1;
    int ordered = n_offsets >= 2 && batch->offsets[0] == 0 && batch->offsets[n_offsets - 1] == batch->n_tokens;
    for (int64_t i = 1; ordered && i < n_offsets; i++) ordered = batch->offsets[i] >= batch->offsets[i - 1];
    if (ordered) return 1;
    PyErr_Format(PyExc_ValueError, "offsets must rise from 0 to the number of tokens (%lld)",
                 (long long)batch->n_tokens);
    asp_py_arrays_batch_clear(batch);
    return 0;
}

int asp_py_arrays_targets(py_held *held, PyObject *targets, PyObject *weights, int64_t n, const int32_t **target,
                          const asp_real **weight) {
    enum { IGNORED = -100 }; /* as PyTorch's cross-entropy has it */
    int64_t n_targets, n_weights;
    const int32_t *ids = *target = asp_py_arrays_hold_copy(held, targets, ASP_PY_INT32, 1, "targets", &n_targets);
    if (!ids) return 0;
    asp_real *values = asp_py_arrays_hold_copy(held, weights, ASP_PY_REAL, 1, "weights", &n_weights);
    *weight = values;
    if (!values) return 0;
    if (n_targets != n || n_weights != n) {
        PyErr_Format(PyExc_ValueError,
                     "targets and weights must have one value for each of the %lld tokens, got %lld and %lld",
                     (long long)n, (long long)n_targets, (long long)n_weights);
        return 0;
    }
    for (int64_t r = 0; r < n; r++)
        if (ids[r] == IGNORED) values[r] = 0;
    return 1;
}

static int read_micro(PyObject *item, py_micro_held *held, asp_batch *micro) {
    PyObject *tokens, *offsets, *targets, *weights;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "OOOO", &tokens, &offsets, &targets, &weights)) {
        PyErr_SetString(PyExc_TypeError, "a micro-batch must be a tuple (tokens, offsets, targets, weights)");
        return 0;
    }
    if (!asp_py_arrays_batch(&held->batch, tokens, offsets)) return 0;
    *micro = (asp_batch){.tokens = held->batch.tokens,
                         .offsets = held->batch.offsets,
                         .n_sequences = held->batch.n_sequences};
    return asp_py_arrays_targets(&held->held, targets, weights, held->batch.n_tokens, &micro->targets, &micro->weights);
}

int asp_py_arrays_micro(py_micro *micro, PyObject *list) {
    PyObject *items = asp_py_module_tuple(list, "micro must be a list of micro-batches");
    if (!items) return 0;
    const Py_ssize_t n = PyTuple_GET_SIZE(items);
    micro->held = PyMem_Calloc((size_t)n + 1, sizeof *micro->held);
    micro->batches = PyMem_Calloc((size_t)n + 1, sizeof *micro->batches);
    int complete = micro->held && micro->batches;
    if (!complete) PyErr_NoMemory();
    for (; complete && micro->n < n; micro->n++)
        complete = read_micro(PyTuple_GET_ITEM(items, micro->n), &micro->held[micro->n], &micro->batches[micro->n]);
    Py_DECREF(items);
    return complete;
}

void asp_py_arrays_micro_clear(py_micro *micro) {
    for (int64_t i = 0; micro->held && i < micro->n; i++) {
        asp_py_arrays_batch_clear(&micro->held[i].batch);
        asp_py_arrays_let_go(&micro->held[i].held);
    }
    PyMem_Free(micro->held);
    PyMem_Free(micro->batches);
}
