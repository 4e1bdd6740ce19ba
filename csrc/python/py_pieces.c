/* py_pieces.c: a training step of several processes, as methods of Trainer: gradients, combine, update, adopt, in
 * this order.  Trainer and model are taken from the first to the last of them; abandon lets them go before. */
#include "python/py.h"

void asp_py_pieces_end(py_trainer *self) {
    const int stage = atomic_exchange(&self->stage, ASP_PY_TRAINER_IDLE);
    if (stage != ASP_PY_TRAINER_IDLE) asp_py_trainer_leave(self, stage == ASP_PY_TRAINER_UPDATED);
}

/* The piece that follows `stage`, until piece is released; 0 and RuntimeError. */
static int take_piece(py_trainer *self, int stage, const char *name) {
    if (!asp_py_call_step_take(&self->piece)) return 0;
    if (atomic_load(&self->stage) == stage) return 1;
    asp_py_call_step_release(&self->piece);
    PyErr_Format(PyExc_RuntimeError, "%s is not the next piece of this trainer's step", name);
    return 0;
}

static PyObject *list_sums(py_trainer *self) {
    const asp_part_sum *sums;
    const int64_t n = asp_trainer_sums(self->trainer, &sums), size = asp_model_size(self->model->model);
    PyObject *list = PyList_New(0);
    for (int64_t i = 0; list && i < n; i++) {
        PyObject *data = asp_py_arrays_lend((PyObject *)self, sums[i].data, ASP_PY_REAL, 1, &size, NULL, 0);
        PyObject *item = data ? Py_BuildValue("(LLN)", (long long)sums[i].first, (long long)sums[i].n, data) : NULL;
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

PyObject *asp_py_pieces_gradients(PyObject *object, PyObject *args, PyObject *kwargs) {
    py_trainer *self = (py_trainer *)object;
    PyObject *numbers = NULL, *sums = NULL;
    py_step_arguments a;
    py_micro micro = {0};
    void *data;
    if (asp_py_trainer_read_step(self, args, kwargs, &a) && asp_py_arrays_micro(&micro, a.given)) {
        const int64_t dims[] = {a.count, asp_trainer_n_numbers(self->trainer)};
        numbers = asp_py_arrays_new(ASP_PY_DOUBLE, 2, dims, &data);
    }
    if (numbers && asp_py_trainer_begin(self)) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, a.threads);
        const asp_status status = asp_trainer_gradients(self->trainer, micro.batches, micro.n, a.n_parts, a.first,
                                                        a.count, &a.options, data, &call.context, &err);
        asp_py_call_end(&call);
        if (status) asp_py_call_raise(status, &err);
        else sums = list_sums(self);
        if (sums) {
            self->n_parts = a.n_parts;
            self->threads = a.threads;
            atomic_store(&self->stage, ASP_PY_TRAINER_GRADIENTS);
        } else asp_py_trainer_leave(self, 0);
    }
    asp_py_arrays_micro_clear(&micro);
    asp_py_trainer_release_step(&a);
    PyObject *result = sums ? PyTuple_Pack(2, numbers, sums) : NULL;
    Py_XDECREF(numbers);
    Py_XDECREF(sums);
    return result;
}

/* 1 if the array has so many elements. */
static int has_size(const char *name, int64_t found, int64_t wanted) {
    if (found == wanted) return 1;
    PyErr_Format(PyExc_ValueError, "%s must have %lld elements, got %lld", name, (long long)wanted, (long long)found);
    return 0;
}

/* sums[i] points into received; 0 and an exception. */
static int read_sums(asp_part_sum **sums, const int64_t *table, int64_t n, asp_real *received, int64_t size) {
    *sums = PyMem_Calloc((size_t)n + 1, sizeof **sums);
    if (!*sums) PyErr_NoMemory();
    for (int64_t i = 0; *sums && i < n; i++)
        (*sums)[i] = (asp_part_sum){table[2 * i], table[2 * i + 1], received + i * size};
    return *sums != NULL;
}

PyObject *asp_py_pieces_combine(PyObject *object, PyObject *args) {
    py_trainer *self = (py_trainer *)object;
    PyObject *table, *received, *squares = NULL;
    int64_t dims[2], n_received;
    py_held held = {0};
    asp_part_sum *sums = NULL;
    void *data;
    if (!PyArg_ParseTuple(args, "OO", &table, &received)) return NULL;
    const asp_trainer_slice s = asp_trainer_slice_of(self->trainer, self->rank);
    const int64_t size = s.end - s.begin, n_chunks = s.end_chunk - s.first_chunk;
    const int64_t *rows = asp_py_arrays_hold_copy(&held, table, ASP_PY_INT64, 2, "sums", dims);
    asp_real *values = rows ? asp_py_arrays_hold_out(&held, received, ASP_PY_REAL, 1, "received", &n_received) : NULL;
    int ready = values && has_size("a row of sums", dims[1], 2) && has_size("received", n_received, dims[0] * size);
    if (ready) ready = read_sums(&sums, rows, dims[0], values, size);
    if (ready) squares = asp_py_arrays_new(ASP_PY_DOUBLE, 1, &n_chunks, &data);
    if (squares && !take_piece(self, ASP_PY_TRAINER_GRADIENTS, "combine")) Py_CLEAR(squares);
    if (squares) {
        asp_error err = {0};
        py_call call;
        asp_py_call_begin(&call, self->threads);
        const asp_status status = asp_trainer_combine(self->trainer, sums, dims[0], data, &call.context, &err);
        asp_py_call_end(&call);
        if (!status) atomic_store(&self->stage, ASP_PY_TRAINER_COMBINED);
        asp_py_call_step_release(&self->piece);
        if (status) {
            Py_CLEAR(squares);
            asp_py_call_raise(status, &err);
        }
    }
    PyMem_Free(sums);
    asp_py_arrays_let_go(&held);
    return squares;
}

/* A step that diverged ends here. */
static PyObject *update_slice(py_trainer *self, const py_step_arguments *a, const double *numbers,
                              const double *squares, asp_real *weights) {
    if (!take_piece(self, ASP_PY_TRAINER_COMBINED, "update")) return NULL;
    asp_error err = {0};
    asp_step_result r = {0};
    py_call call;
    asp_py_call_begin(&call, self->threads);
    const asp_status status =
        asp_trainer_update(self->trainer, numbers, squares, &a->options, weights, &call.context, &r, &err);
    asp_py_call_end(&call);
    if (status) asp_py_pieces_end(self);
    else atomic_store(&self->stage, ASP_PY_TRAINER_UPDATED);
    asp_py_call_step_release(&self->piece);
    return status ? asp_py_call_raise(status, &err) : asp_py_trainer_result(self, &r);
}

PyObject *asp_py_pieces_update(PyObject *object, PyObject *args, PyObject *kwargs) {
    py_trainer *self = (py_trainer *)object;
    PyObject *result = NULL, *o[3];
    py_step_arguments a;
    py_held held = {0};
    int64_t dims[2], n_squares, n_weights;
    if (asp_py_trainer_read_step(self, args, kwargs, &a) && !PyTuple_Check(a.given))
        PyErr_SetString(PyExc_TypeError, "update takes a tuple (numbers, squares, weights)");
    else if (!PyErr_Occurred() && PyArg_ParseTuple(a.given, "OOO", &o[0], &o[1], &o[2])) {
        const asp_trainer_slice last = asp_trainer_slice_of(self->trainer, self->n_ranks - 1);
        const double *numbers = asp_py_arrays_hold_copy(&held, o[0], ASP_PY_DOUBLE, 2, "numbers", dims);
        const double *squares =
            numbers ? asp_py_arrays_hold_copy(&held, o[1], ASP_PY_DOUBLE, 1, "squares", &n_squares) : NULL;
        asp_real *weights = squares ? asp_py_arrays_hold_out(&held, o[2], ASP_PY_REAL, 1, "weights", &n_weights) : NULL;
        if (weights && has_size("the rows of numbers", dims[0], self->n_parts) &&
            has_size("a row of numbers", dims[1], asp_trainer_n_numbers(self->trainer)) &&
            has_size("squares", n_squares, last.end_chunk) && has_size("weights", n_weights, last.end))
            result = update_slice(self, &a, numbers, squares, weights);
    }
    asp_py_arrays_let_go(&held);
    asp_py_trainer_release_step(&a);
    return result;
}

PyObject *asp_py_pieces_adopt(PyObject *object, PyObject *weights) {
    py_trainer *self = (py_trainer *)object;
    int64_t n;
    py_held held = {0};
    const asp_real *data = asp_py_arrays_hold(&held, weights, ASP_PY_REAL, 1, "weights", &n);
    if (data && has_size("weights", n, asp_model_size(self->model->model)) &&
        take_piece(self, ASP_PY_TRAINER_UPDATED, "adopt")) {
        Py_BEGIN_ALLOW_THREADS;
        asp_trainer_adopt(self->trainer, data);
        Py_END_ALLOW_THREADS;
        asp_py_pieces_end(self);
        asp_py_call_step_release(&self->piece);
    }
    asp_py_arrays_let_go(&held);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

PyObject *asp_py_pieces_abandon(PyObject *object, PyObject *unused) {
    (void)unused;
    py_trainer *self = (py_trainer *)object;
    if (!asp_py_call_step_take(&self->piece)) return NULL;
    asp_py_pieces_end(self);
    asp_py_call_step_release(&self->piece);
    Py_RETURN_NONE;
}

PyObject *asp_py_pieces_slice(PyObject *object, PyObject *number) {
    py_trainer *self = (py_trainer *)object;
    const long long rank = PyLong_AsLongLong(number);
    if (PyErr_Occurred()) return NULL;
    if (rank < 0 || rank >= self->n_ranks)
        return PyErr_Format(PyExc_IndexError, "rank %lld is not in 0..%lld", rank, (long long)self->n_ranks - 1);
    const asp_trainer_slice s = asp_trainer_slice_of(self->trainer, rank);
    return Py_BuildValue("(LLLL)", (long long)s.begin, (long long)s.end, (long long)s.first_chunk,
                         (long long)s.end_chunk);
}

PyObject *asp_py_pieces_moments(PyObject *object, PyObject *unused) {
    (void)unused;
    py_trainer *self = (py_trainer *)object;
    const asp_trainer_slice s = asp_trainer_slice_of(self->trainer, self->rank);
    const int64_t n = s.end - s.begin;
    PyObject *m = asp_py_arrays_lend(object, asp_trainer_first_moment(self->trainer), ASP_PY_REAL, 1, &n, NULL, 0);
    PyObject *v = asp_py_arrays_lend(object, asp_trainer_second_moment(self->trainer), ASP_PY_REAL, 1, &n, NULL, 0);
    if (m && v) return Py_BuildValue("(NN)", m, v);
    Py_XDECREF(m);
    Py_XDECREF(v);
    return NULL;
}
