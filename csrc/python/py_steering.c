/* py_steering.c: features that are changed in a pass of the model. */
#include "python/py.h"

struct py_steering {
    py_held held;
    asp_steering given;
    asp_steered_layer *layers; /* (L) */
    asp_visitor *visitor;
};

void asp_py_steering_free(py_steering *s) {
    if (!s) return;
    asp_steering_free(s->visitor);
    asp_py_arrays_let_go(&s->held);
    PyMem_Free(s->layers);
    PyMem_Free(s);
}

enum {
    STEER_ACTIVATION,
    STEER_TOP_K,
    STEER_FROM_MID,
    STEER_LAYERS,
    STEER_W_ENC,
    STEER_B_ENC,
    STEER_THRESHOLD,
    STEER_ROWS,
    STEER_DECODER,
    STEER_AT,
    STEER_KIND,
    STEER_NUMBER,
    STEER_FIELDS
};

static int wrong_steering_shape(const char *name) {
    PyErr_Format(PyExc_ValueError, "%s has the wrong shape", name);
    return 0;
}

/* Encoders and decoders of the layers, one behind the other. */
static int read_steered_layers(py_steering *s, PyObject **o, const asp_config *c) {
    py_held *h = &s->held;
    int64_t layers[2], weight[2], bias, threshold, row, decoder[2];
    const int64_t *at = asp_py_arrays_hold_copy(h, o[STEER_LAYERS], ASP_PY_INT64, 2, "layers", layers);
    const asp_real *w = at ? asp_py_arrays_hold(h, o[STEER_W_ENC], ASP_PY_REAL, 2, "w_enc", weight) : NULL;
    const asp_real *b = w ? asp_py_arrays_hold(h, o[STEER_B_ENC], ASP_PY_REAL, 1, "b_enc", &bias) : NULL;
    const asp_real *t = NULL;
    if (b && o[STEER_THRESHOLD] != Py_None) {
        t = asp_py_arrays_hold(h, o[STEER_THRESHOLD], ASP_PY_REAL, 1, "threshold", &threshold);
        if (!t) return 0;
    }
    const int64_t *rows = b ? asp_py_arrays_hold_copy(h, o[STEER_ROWS], ASP_PY_INT64, 1, "rows", &row) : NULL;
    const asp_real *d = rows ? asp_py_arrays_hold(h, o[STEER_DECODER], ASP_PY_REAL, 2, "decoder", decoder) : NULL;
    if (!d) return 0;
    if (layers[1] != 4 || weight[1] != c->d_model || decoder[1] != c->d_model) return wrong_steering_shape("layers");
    int64_t left = weight[0], features = row, writes = decoder[0];
    if (bias != left || (t && threshold != left)) return wrong_steering_shape("b_enc or threshold");
    for (int64_t i = 0; i < layers[0]; i++, at += 4) {
        if (at[0] < 0 || at[0] >= c->n_layer || at[1] < 1 || at[1] > features || at[2] < 1 || at[2] > left ||
            at[3] < 1 || at[3] > c->n_layer || at[1] * at[3] > writes)
            return wrong_steering_shape("layers");
        s->layers[at[0]] = (asp_steered_layer){at[1], {at[2], w, b, t}, rows, at[3], d};
        w += at[2] * c->d_model, b += at[2], t = t ? t + at[2] : NULL, rows += at[1];
        d += at[1] * at[3] * c->d_model;
        left -= at[2], features -= at[1], writes -= at[1] * at[3];
    }
    return 1;
}

static int read_steering(py_steering *s, PyObject **o, const asp_config *c) {
    int64_t at[2], n_kinds, n_numbers;
    asp_steering *g = &s->given;
    const char *activation = asp_py_module_name(o[STEER_ACTIVATION], "an activation");
    if (!activation || !asp_py_features_activation(activation, &g->coder.activation)) return 0;
    g->coder.top_k = PyLong_AsLongLong(o[STEER_TOP_K]);
    if (g->coder.top_k == -1 && PyErr_Occurred()) return 0;
    g->coder.from_mid = PyObject_IsTrue(o[STEER_FROM_MID]);
    g->layers = s->layers;
    if (g->coder.from_mid < 0 || !read_steered_layers(s, o, c)) return 0;
    g->at = asp_py_arrays_hold_copy(&s->held, o[STEER_AT], ASP_PY_INT64, 2, "at", at);
    if (!g->at) return 0;
    g->kind = asp_py_arrays_hold_copy(&s->held, o[STEER_KIND], ASP_PY_INT32, 1, "kind", &n_kinds);
    if (!g->kind) return 0;
    g->number = asp_py_arrays_hold_copy(&s->held, o[STEER_NUMBER], ASP_PY_REAL, 1, "number", &n_numbers);
    if (!g->number) return 0;
    g->n = at[0];
    return at[1] == 4 && n_kinds == at[0] && n_numbers == at[0] ? 1 : wrong_steering_shape("at");
}

py_steering *asp_py_steering_new(PyObject *object, py_model *model, int64_t n_texts) {
    static const char *const names[] = {"activation", "top_k", "from_mid", "layers", "w_enc", "b_enc",
                                        "threshold",  "rows",  "decoder",  "at",     "kind",  "number"};
    PyObject *fields[STEER_FIELDS];
    const asp_config *config = asp_model_config(model->model);
    py_steering *s = PyMem_Calloc(1, sizeof *s);
    if (s) s->layers = PyMem_Calloc((size_t)config->n_layer, sizeof *s->layers);
    if (!s || !s->layers) {
        asp_py_steering_free(s);
        PyErr_NoMemory();
        return NULL;
    }
    s->given.n_texts = n_texts;
    int good = asp_py_module_fields(object, "Steering", names, STEER_FIELDS, fields);
    if (good) {
        good = read_steering(s, fields, config);
        asp_py_module_forget(fields, STEER_FIELDS);
    }
    if (good) {
        asp_error err = {0};
        const asp_status status = asp_steering_visitor(&s->visitor, &s->given, model->model, &err);
        if (!status) return s;
        asp_py_call_raise(status, &err);
    }
    asp_py_steering_free(s);
    return NULL;
}

asp_visitor asp_py_steering_given(const py_steering *s) { return *s->visitor; }
