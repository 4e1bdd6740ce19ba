/* kernels_rows.h: row-wise and element-wise kernels; each forward is followed by its backward. */

static void exp_array(asp_real *out, const asp_real *x, int64_t n) {
    int64_t i = 0;
    for (; i + ASP_LANES <= n; i += ASP_LANES) store(out + i, exp_vec(load(x + i)));
    if (i < n) store_part(out + i, exp_vec(load_part(x + i, n - i, 0)), n - i);
}

static void noise_row(asp_real *u, int64_t n, uint64_t row_key) {
    for (int64_t k = 0; k < n; k += ASP_LANES) {
        const vec x = noise_vec((uint32_t)k, row_key);
        if (k + ASP_LANES <= n) store(u + k, x);
        else store_part(u + k, x, n - k);
    }
}

static void drop_row(asp_real *out, const asp_real *x, int64_t n, asp_real rate, uint64_t row_key) {
    const asp_real scale = 1 / (1 - rate);
    for (int64_t k = 0; k < n; k += ASP_LANES) {
        const ivec kept = noise_vec((uint32_t)k, row_key) > rate;
        const int full = k + ASP_LANES <= n;
        const vec value = (vec)((ivec)((full ? load(x + k) : load_part(x + k, n - k, 0)) * scale) & kept);
        if (full) store(out + k, value);
        else store_part(out + k, value, n - k);
    }
}

static void add_row(asp_real *out, const asp_real *x, int64_t n) {
    int64_t i = 0;
    for (; i + ASP_LANES <= n; i += ASP_LANES) store(out + i, load(out + i) + load(x + i));
    for (; i < n; i++) out[i] += x[i];
}

static void axpy(asp_real *out, asp_real a, const asp_real *x, int64_t n) {
    int64_t i = 0;
    for (; i + ASP_LANES <= n; i += ASP_LANES) store(out + i, load(out + i) + load(x + i) * a);
    for (; i < n; i++) out[i] += a * x[i];
}

static asp_real dot_row(const asp_real *x, const asp_real *y, int64_t n) {
    vec sums = {0};
    int64_t i = 0;
    for (; i + ASP_LANES <= n; i += ASP_LANES) sums += load(x + i) * load(y + i);
    if (i < n) sums += load_part(x + i, n - i, 0) * load_part(y + i, n - i, 0);
    return sum_lanes(sums);
}

/* scale = sqrt(var + eps), normalized = (x - mean) / scale, out = normalized * weight + bias;
 * mean and variance are accumulated in double. */
static void layernorm_row(const asp_layernorm *ln, int64_t row) {
    const int64_t width = ln->width, whole = width / ASP_LANES * ASP_LANES;
    const asp_real *x = ln->x + row * width;
    dvec sums = {0};
    for (int64_t i = 0; i < whole; i += ASP_LANES) sums += widen(load(x + i));
    double sum = sum_lanes_double(sums);
    for (int64_t i = whole; i < width; i++) sum += x[i];
    const double mean = sum / (double)width;
    dvec squares = {0};
    for (int64_t i = 0; i < whole; i += ASP_LANES) {
        const dvec centred = widen(load(x + i)) - mean;
        squares += centred * centred;
    }
    double square = sum_lanes_double(squares);
    for (int64_t i = whole; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
    const double scale = sqrt(square / (double)width + ln->eps);
    const asp_real m = (asp_real)mean, given = ln->given_scale ? ln->given_scale[row] : (asp_real)scale;
    const asp_real inverse = (asp_real)(1.0 / (given == (asp_real)scale ? scale : (double)given));
    const asp_real *rows = ln->given ? ln->given + row * width : NULL;
    if (ln->scale) ln->scale[row] = (asp_real)scale;
    asp_real *out = ln->out ? ln->out + row * width : NULL;
    asp_real *normalized = ln->normalized ? ln->normalized + row * width : NULL;
    for (int64_t i = 0; i < width; i += ASP_LANES) {
        const int64_t n = width - i < ASP_LANES ? width - i : ASP_LANES;
        const int full = n == ASP_LANES;
        vec y = ((full ? load(x + i) : load_part(x + i, n, 0)) - m) * inverse;
        if (rows) y = full ? load(rows + i) : load_part(rows + i, n, 0);
        if (normalized) {
            if (full) store(normalized + i, y);
            else store_part(normalized + i, y, n);
        }
        if (!out) continue;
        vec o = y * (full ? load(ln->weight + i) : load_part(ln->weight + i, n, 0));
        if (ln->bias) o += full ? load(ln->bias + i) : load_part(ln->bias + i, n, 0);
        if (full) store(out + i, o);
        else store_part(out + i, o, n);
    }
}

/* With y the normalized row and g = dout * weight: dx += (g - mean(g) - y * mean(g * y)) / scale,
 * dweight += dout * y, dbias += dout. */
static void layernorm_backward_row(asp_real *dx, asp_real *dweight, asp_real *dbias, const asp_real *dout,
                                   const asp_real *x, const asp_real *weight, asp_real scale, int64_t width) {
    double mean = 0.0;
    const int64_t whole = width / ASP_LANES * ASP_LANES;
    dvec sums = {0};
    for (int64_t i = 0; i < whole; i += ASP_LANES) sums += widen(load(x + i));
    mean = sum_lanes_double(sums);
    for (int64_t i = whole; i < width; i++) mean += x[i];
    const asp_real m = (asp_real)(mean / (double)width), inverse = (asp_real)1 / scale;
    dvec g_sum = {0}, gy_sum = {0};
    for (int64_t i = 0; i < width; i += ASP_LANES) {
        const int64_t n = width - i < ASP_LANES ? width - i : ASP_LANES;
        const int full = n == ASP_LANES;
        const vec y = ((full ? load(x + i) : load_part(x + i, n, m)) - m) * inverse;
        const vec g =
            full ? load(dout + i) * load(weight + i) : load_part(dout + i, n, 0) * load_part(weight + i, n, 0);
        g_sum += widen(g);
        gy_sum += widen(g * y);
    }
    const asp_real g_mean = (asp_real)(sum_lanes_double(g_sum) / (double)width);
    const asp_real gy_mean = (asp_real)(sum_lanes_double(gy_sum) / (double)width);
    for (int64_t i = 0; i < width; i += ASP_LANES) {
        const int64_t n = width - i < ASP_LANES ? width - i : ASP_LANES;
        const int full = n == ASP_LANES;
        const vec y = ((full ? load(x + i) : load_part(x + i, n, m)) - m) * inverse;
        const vec g =
            full ? load(dout + i) * load(weight + i) : load_part(dout + i, n, 0) * load_part(weight + i, n, 0);
        const vec d = (g - g_mean - y * gy_mean) * inverse;
        const vec o = full ? load(dout + i) : load_part(dout + i, n, 0);
        if (full) {
            store(dx + i, load(dx + i) + d);
            store(dweight + i, load(dweight + i) + o * y);
            store(dbias + i, load(dbias + i) + o);
        } else {
            store_part(dx + i, load_part(dx + i, n, 0) + d, n);
            store_part(dweight + i, load_part(dweight + i, n, 0) + o * y, n);
            store_part(dbias + i, load_part(dbias + i, n, 0) + o, n);
        }
    }
}

/* gelu_new(x) = x/2 (1 + tanh(c (x + 0.044715 x^3))) = x sigmoid(2 c (x + 0.044715 x^3)), c = sqrt(2/pi). */
INLINE vec gelu_new_vec(vec x) {
    const vec y = x * (x * x * (asp_real)0.044715 + 1) * (asp_real)1.5957691216057308;
    return x / (exp_vec(-y) + 1);
}
INLINE vec gelu_new_derivative(vec x) {
    const vec xx = x * x;
    const vec y = x * (xx * (asp_real)0.044715 + 1) * (asp_real)1.5957691216057308;
    const vec sigmoid = 1 / (exp_vec(-y) + 1);
    const vec dy = (xx * (asp_real)(3 * 0.044715) + 1) * (asp_real)1.5957691216057308;
    return sigmoid + x * dy * sigmoid * (1 - sigmoid);
}
static asp_real gelu_one(asp_real x) { return (asp_real)(0.5 * x * erfc(-x * 0.70710678118654752440)); }
static asp_real gelu_derivative_one(asp_real x) {
    return (asp_real)(0.5 * erfc(-x * 0.70710678118654752440) +
                      x * 0.39894228040143267794 * exp(-0.5 * (double)x * (double)x));
}
/* Keeps NaN, unlike x > 0 ? x : 0. */
static asp_real relu_one(asp_real x) { return x < 0 ? 0 : x; }

static void activate(asp_real *out, const asp_real *x, int64_t n, asp_activation kind) {
    if (kind == ASP_GELU) {
        for (int64_t i = 0; i < n; i++) out[i] = gelu_one(x[i]);
        return;
    }
    if (kind == ASP_RELU) {
        for (int64_t i = 0; i < n; i++) out[i] = relu_one(x[i]);
        return;
    }
    int64_t i = 0;
    for (; i + ASP_LANES <= n; i += ASP_LANES) store(out + i, gelu_new_vec(load(x + i)));
    if (i < n) store_part(out + i, gelu_new_vec(load_part(x + i, n - i, 0)), n - i);
}

static void activate_backward(asp_real *d, const asp_real *x, int64_t n, asp_activation kind) {
    if (kind == ASP_GELU) {
        for (int64_t i = 0; i < n; i++) d[i] *= gelu_derivative_one(x[i]);
        return;
    }
    if (kind == ASP_RELU) {
        for (int64_t i = 0; i < n; i++) d[i] = x[i] > 0 ? d[i] : 0;
        return;
    }
    int64_t i = 0;
    for (; i + ASP_LANES <= n; i += ASP_LANES) store(d + i, load(d + i) * gelu_new_derivative(load(x + i)));
    if (i < n) store_part(d + i, load_part(d + i, n - i, 0) * gelu_new_derivative(load_part(x + i, n - i, 0)), n - i);
}

static double cross_entropy_row(asp_real *dlogits, const asp_real *logits, int64_t n, int64_t target, double weight) {
    vec best = splat(-(asp_real)INFINITY);
    int64_t i = 0;
    for (; i + ASP_LANES <= n; i += ASP_LANES) best = maximum(load(logits + i), best);
    if (i < n) best = maximum(load_part(logits + i, n - i, -(asp_real)INFINITY), best);
    const asp_real top = max_lanes(best);
    dvec sums = {0};
    for (i = 0; i + ASP_LANES <= n; i += ASP_LANES) sums += widen(exp_vec(load(logits + i) - top));
    if (i < n) sums += widen(exp_vec(load_part(logits + i, n - i, -(asp_real)INFINITY) - top));
    const double log_sum = (double)top + log(sum_lanes_double(sums));
    const double loss = log_sum - (double)logits[target];
    if (!dlogits) return loss;
    const asp_real shift = (asp_real)log_sum, w = (asp_real)weight;
    for (i = 0; i + ASP_LANES <= n; i += ASP_LANES) store(dlogits + i, exp_vec(load(logits + i) - shift) * w);
    if (i < n) store_part(dlogits + i, exp_vec(load_part(logits + i, n - i, 0) - shift) * w, n - i);
    dlogits[target] -= w;
    return loss;
}

/* Decoupled weight decay (Loshchilov & Hutter 2019), as torch.optim.AdamW. */
static void adamw(asp_real *p, asp_real *m, asp_real *v, const asp_real *g, int64_t n, const asp_adamw *s) {
    const asp_real b1 = (asp_real)s->beta1, b2 = (asp_real)s->beta2, c1 = (asp_real)(1 - s->beta1);
    const asp_real c2 = (asp_real)(1 - s->beta2), scale = (asp_real)s->gradient_scale;
    const asp_real rate = (asp_real)(s->lr / s->correction1), eps = (asp_real)s->eps;
    const asp_real root = (asp_real)(1.0 / sqrt(s->correction2)), keep = (asp_real)(1.0 - s->lr * s->decay);
    for (int64_t i = 0; i < n; i++) {
        const asp_real gradient = g[i] * scale;
        const asp_real first = b1 * m[i] + c1 * gradient;
        const asp_real second = b2 * v[i] + c2 * gradient * gradient;
        m[i] = first;
        v[i] = second;
        p[i] = keep * p[i] - rate * first / (asp_sqrt(second) * root + eps);
    }
}

/* sums (columns <= 16) += sums over rows of x (n, columns), rows ld apart. */
static void column_sums(asp_real *sums, const asp_real *x, int64_t n, int64_t ld, int64_t columns) {
    dvec total = {0};
    for (int64_t r = 0; r < n; r++)
        total += widen(columns == ASP_LANES ? load(x + r * ld) : load_part(x + r * ld, columns, 0));
    for (int64_t i = 0; i < columns; i++) sums[i] += (asp_real)total[i];
}

static double sum_squares(const asp_real *x, int64_t n) {
    dvec sums = {0};
    int64_t i = 0;
    for (; i + ASP_LANES <= n; i += ASP_LANES) {
        const dvec d = widen(load(x + i));
        sums += d * d;
    }
    double sum = sum_lanes_double(sums);
    for (; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}
