/* py_step.c: what the training steps of Trainer and CoderTrainer share: one call at a time, ranges of options, arrays
 * that are copied in, the step count. */
#include "python/py.h"

#include <math.h>
#include <string.h>

int asp_py_step_take(py_step *step) {
    int idle = 0;
    if (atomic_compare_exchange_strong(&step->busy, &idle, 1)) return 1;
    PyErr_Format(PyExc_RuntimeError, "this %s is taking a step in another thread", step->what);
    return 0;
}

void asp_py_step_release(py_step *step) { atomic_store(&step->busy, 0); }

int asp_py_step_check(const py_step_range *ranges, size_t n) {
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

int asp_py_step_check_adamw(double lr, double beta1, double beta2, double eps, double clip) {
    const py_step_range ranges[] = {{"lr", lr, 0, ASP_PY_STEP_MOST},
                                    {"beta1", beta1, 0, 0.9999999},
                                    {"beta2", beta2, 0, 0.9999999},
                                    {"eps", eps, 1e-30, ASP_PY_STEP_MOST},
                                    {"clip", clip, 0, INFINITY}};
    return asp_py_step_check(ranges, sizeof ranges / sizeof ranges[0]);
}

int asp_py_step_copy(py_step *step, const py_step_copy *copies, size_t n) {
    if (!asp_py_step_take(step)) return 0;
    PyThreadState *thread = PyEval_SaveThread();
    for (size_t i = 0; i < n; i++) memcpy(copies[i].to, copies[i].from, (size_t)copies[i].bytes);
    PyEval_RestoreThread(thread);
    asp_py_step_release(step);
    return 1;
}

int asp_py_step_set_count(py_step *step, int64_t *count, PyObject *value) {
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
    if (!asp_py_step_take(step)) return -1;
    *count = found;
    asp_py_step_release(step);
    return 0;
}
