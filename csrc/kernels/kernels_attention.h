/* kernels_attention.h: gated causal attention of one head of one sequence, four queries at a time.
 * Forward:  s = scale q k^T,  A = softmax(s) where the gate is open, else 0 (never renormalised),  z = A v.
 * Backward: one pass; scores are computed again and the softmax restored from the row's log-sum-exp,
 * so nothing of size T x T is kept.  Formulas: docs/numerics.md#attention. */

enum { QUERIES = 4 };

/* Offsets into task->scratch; the sizes add up to asp_attention_scratch.  With a cache k_t and v lie there, and their
 * sizes add up to asp_attention_cache. */
typedef struct {
    int64_t keys, width;  /* T, or the cache's room, and D rounded up: the row lengths of the buffers */
    asp_real *k_t, *v_t;  /* (D,keys)  transposed, zero beyond T */
    asp_real *k, *v;      /* (T,width) zero beyond D */
    asp_real *dk, *dv;    /* (T,width) */
    asp_real *row, *drow; /* (QUERIES,keys) */
    asp_real *x, *dx;     /* (QUERIES,width) */
} attention_buffers;

static attention_buffers attention_layout(const asp_attention_task *u, int backward) {
    attention_buffers b = {0};
    const int64_t n = u->cache ? u->room : u->n_tokens;
    b.keys = (n + QUERIES + ASP_LANES - 1) / ASP_LANES * ASP_LANES;
    b.width = (u->d_head + ASP_LANES - 1) / ASP_LANES * ASP_LANES;
    asp_real *at = u->cache ? u->cache : u->scratch;
    b.k_t = at, at += u->d_head * b.keys;
    b.v = at, at += n * b.width;
    if (u->cache) at = u->scratch;
    b.row = at, at += QUERIES * b.keys;
    b.x = at, at += QUERIES * b.width;
    if (!backward) return b;
    b.v_t = at, at += u->d_head * b.keys;
    b.k = at, at += u->n_tokens * b.width;
    b.dk = at, at += u->n_tokens * b.width;
    b.dv = at, at += u->n_tokens * b.width;
    b.drow = at, at += QUERIES * b.keys;
    b.dx = at;
    return b;
}

/* Rows of `keys`, of which the first n are written, and zeros up to `end`. */
static void copy_transposed(asp_real *out, const asp_real *x, int64_t stride, int64_t n, int64_t d, int64_t keys,
                            int64_t end) {
    for (int64_t j = 0; j < d; j++) {
        for (int64_t t = 0; t < n; t++) out[j * keys + t] = x[t * stride + j];
        for (int64_t t = n; t < end; t++) out[j * keys + t] = 0;
    }
}

/* One row of d values, zeros up to width (a multiple of 16). */
INLINE void copy_row(asp_real *out, const asp_real *x, int64_t d, int64_t width) {
    int64_t j = 0;
    for (; j + ASP_LANES / 2 <= d; j += ASP_LANES / 2) *(memhalf *)(out + j) = *(const memhalf *)(x + j);
    for (; j < d; j++) out[j] = x[j];
    for (; j < width && j % (ASP_LANES / 2); j++) out[j] = 0;
    for (; j < width; j += ASP_LANES / 2) *(memhalf *)(out + j) = (half){0};
}

static void copy_padded(asp_real *out, const asp_real *x, int64_t stride, int64_t n, int64_t d, int64_t width) {
    for (int64_t t = 0; t < n; t++) copy_row(out + t * width, x + t * stride, d, width);
}

/* out_i[c] = scale * sum over t < n of a_i[t] b[t, c] for four rows i and 16 (or 32) columns c;
 * rows of a are lda apart, of b ldb, of out ldo. */
INLINE void tile_one(asp_real *out, int64_t ldo, const asp_real *a, int64_t lda, int64_t n, const asp_real *b,
                     int64_t ldb, asp_real scale) {
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (int64_t t = 0; t < n; t++) {
        const vec x = load(b + t * ldb);
        s0 += a[t] * x;
        s1 += a[lda + t] * x;
        s2 += a[2 * lda + t] * x;
        s3 += a[3 * lda + t] * x;
    }
    store(out, s0 * scale);
    store(out + ldo, s1 * scale);
    store(out + 2 * ldo, s2 * scale);
    store(out + 3 * ldo, s3 * scale);
}
INLINE void tile_two(asp_real *out, int64_t ldo, const asp_real *a, int64_t lda, int64_t n, const asp_real *b,
                     int64_t ldb, asp_real scale) {
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, r0 = {0}, r1 = {0}, r2 = {0}, r3 = {0};
    for (int64_t t = 0; t < n; t++) {
        const vec x = load(b + t * ldb), y = load(b + t * ldb + ASP_LANES);
        s0 += a[t] * x, r0 += a[t] * y;
        s1 += a[lda + t] * x, r1 += a[lda + t] * y;
        s2 += a[2 * lda + t] * x, r2 += a[2 * lda + t] * y;
        s3 += a[3 * lda + t] * x, r3 += a[3 * lda + t] * y;
    }
    store(out, s0 * scale), store(out + ASP_LANES, r0 * scale);
    store(out + ldo, s1 * scale), store(out + ldo + ASP_LANES, r1 * scale);
    store(out + 2 * ldo, s2 * scale), store(out + 2 * ldo + ASP_LANES, r2 * scale);
    store(out + 3 * ldo, s3 * scale), store(out + 3 * ldo + ASP_LANES, r3 * scale);
}
/* The same for `columns` columns, a multiple of 16. */
static void four_rows(asp_real *out, int64_t ldo, const asp_real *a, int64_t lda, int64_t n, const asp_real *b,
                      int64_t ldb, int64_t columns, asp_real scale) {
    int64_t c = 0;
#if KEY_VECTORS == 2
    for (; c + 2 * ASP_LANES <= columns; c += 2 * ASP_LANES) tile_two(out + c, ldo, a, lda, n, b + c, ldb, scale);
#endif
    for (; c < columns; c += ASP_LANES) tile_one(out + c, ldo, a, lda, n, b + c, ldb, scale);
}

/* c[t, :] += sum over four rows i of a_i[t] x_i[:]. */
static void rank_four_update(asp_real *c, const asp_real *a, int64_t lda, int64_t n, const asp_real *x, int64_t width) {
    for (int64_t j = 0; j < width; j += ASP_LANES) {
        const vec x0 = load(x + j), x1 = load(x + width + j);
        const vec x2 = load(x + 2 * width + j), x3 = load(x + 3 * width + j);
        for (int64_t t = 0; t < n; t++) {
            asp_real *at = c + t * width + j;
            store(at, load(at) + (a[t] * x0 + a[lda + t] * x1) + (a[2 * lda + t] * x2 + a[3 * lda + t] * x3));
        }
    }
}

/* Copies four rows (the last one again beyond the end) into a padded buffer. */
static void gather_queries(asp_real *out, const asp_real *x, int64_t stride, int64_t first, int64_t n, int64_t d,
                           int64_t width) {
    for (int64_t i = 0; i < QUERIES; i++) {
        const int64_t t = first + i < n ? first + i : n - 1;
        copy_row(out + i * width, x + t * stride, d, width);
    }
}

/* Those of keys k .. k+15 of n that are open in a row of a held gate. */
static __attribute__((noinline)) ivec held_open(const uint8_t *gate, int64_t k, int64_t n) {
    ivec open = {0};
    for (int64_t i = 0; i < ASP_LANES && k + i < n; i++) open[i] = gate[k + i] ? -1 : 0;
    return open;
}

/* Where the row of a query begins in pattern, scores, gates and what is dropped. */
INLINE int64_t row_at(const asp_attention_task *u, int64_t query) { return (query - u->first) * u->n_tokens; }

INLINE ivec key_numbers(int64_t k) { return (ivec){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (asp_int)k; }

/* Those of keys k .. k+15 whose gate a score may open. */
INLINE ivec has_gate(const asp_attention_task *u, int64_t query, int64_t k) {
    return u->self_closed ? key_numbers(k) != (asp_int)query : (ivec){0} == 0;
}

/* Open gates of keys k .. k+15 of a query: g > 0, or g + n > 0 with logistic n = log(r / (1-r)),
 * which is r > exp(-g) (1-r). */
INLINE ivec gate_open(const asp_attention_task *u, vec s, int64_t query, int64_t k, uint64_t row_key) {
    if (u->held_gate) return held_open(u->held_gate + row_at(u, query), k, query + 1);
    const vec g = s + u->gate_bias;
    if (!u->noisy) return (g > 0) & has_gate(u, query, k);
    const vec r = noise_vec((uint32_t)k, row_key);
    return (r > exp_vec(-g) * (1 - r)) & has_gate(u, query, k);
}

/* What dropout multiplies keys k .. k+15 of a row by. */
INLINE vec kept_entries(const asp_attention_task *u, int64_t k, uint64_t row_key) {
    return (vec)((ivec)splat(u->kept_scale) & (noise_vec((uint32_t)k, row_key) > u->dropout_rate));
}

static void thin_row(const asp_attention_task *u, asp_real *row, int64_t query, int64_t padded) {
    const uint64_t key = asp_splitmix64(u->dropout_key ^ (uint64_t)query);
    for (int64_t k = 0; k < padded; k += ASP_LANES) store(row + k, load(row + k) * kept_entries(u, k, key));
}

/* The first n values, then `fill` for the keys beyond the query. */
static void write_row(asp_real *out, const asp_real *row, int64_t n, int64_t length, asp_real fill) {
    memcpy(out, row, (size_t)n * sizeof *out);
    for (int64_t k = n; k < length; k++) out[k] = fill;
}

/* Takes dropped entries out of a row of the pattern, which is recorded. */
static void finish_row(const asp_attention_task *u, asp_real *row, int64_t query) {
    for (int64_t k = 0; u->dropped && k <= query; k++)
        if (u->dropped[row_at(u, query) + k]) row[k] = 0;
    if (u->pattern) write_row(u->pattern + row_at(u, query), row, query + 1, u->n_tokens, 0);
}

/* The number at place `bits` of all numbers in rising order, those of a sign bit of 1 before the others; nan beyond the
 * infinities. */
INLINE asp_real in_order(asp_bits bits) {
    const asp_bits sign = (asp_bits)1 << (8 * sizeof bits - 1);
    bits = bits & sign ? bits & ~sign : ~bits;
    asp_real value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The k-th largest of `padded` scores, found bit by bit; nan, below which nothing is, if it is -inf.  padded is a multiple
 * of 16 and at least k. */
static asp_real kth_largest(const asp_real *scores, int64_t padded, int64_t k) {
    const asp_bits sign = (asp_bits)1 << (8 * sizeof(asp_bits) - 1);
    asp_bits found = 0;
    for (asp_bits bit = sign; bit; bit >>= 1) {
        const vec candidate = splat(in_order(found | bit));
        ivec above = {0};
        for (int64_t i = 0; i < padded; i += ASP_LANES) above -= load(scores + i) >= candidate;
        int64_t count = 0;
        for (int i = 0; i < ASP_LANES; i++) count += above[i];
        if (count >= k) found |= bit;
    }
    return in_order(found);
}

/* Scores below `least` become -inf; n is a multiple of 16. */
static void cut_below(asp_real *row, int64_t n, asp_real least) {
    for (int64_t k = 0; k < n; k += ASP_LANES) {
        const vec s = load(row + k);
        store(row + k, select(s < least, splat(-(asp_real)INFINITY), s));
    }
}

/* The score from which on an entry has at least min_weight of the row's softmax, at most the largest one. */
static asp_real least_score(const asp_real *row, int64_t n, asp_real min_weight) {
    vec best = load(row), sums = {0};
    for (int64_t k = ASP_LANES; k < n; k += ASP_LANES) best = maximum(load(row + k), best);
    const asp_real top = max_lanes(best);
    for (int64_t k = 0; k < n; k += ASP_LANES) sums += exp_vec(load(row + k) - top);
    const asp_real least = top + asp_log(min_weight * sum_lanes(sums));
    return least < top ? least : top;
}

/* Scores of a row that the softmax is not over become -inf, up to a multiple of 16, the ones behind the query too. */
static void cut_row(const asp_attention_task *u, asp_real *row, int64_t query) {
    const int64_t n = query + 1, padded = (n + ASP_LANES - 1) / ASP_LANES * ASP_LANES;
    const ivec last = first_lanes(n - (padded - ASP_LANES));
    store(row + padded - ASP_LANES, select(last, load(row + padded - ASP_LANES), splat(-(asp_real)INFINITY)));
    if (!u->cut) return;
    for (int64_t k = 0; u->window && k < n - u->window; k++) row[k] = -(asp_real)INFINITY;
    if (u->top_k && u->top_k < n) cut_below(row, padded, kth_largest(row, padded, u->top_k));
    if (u->min_weight > 0) cut_below(row, padded, least_score(row, padded, u->min_weight));
}

/* row: scores of one query on entry, pattern on return; entries up to a multiple of 16 are written. */
static void pattern_row(const asp_attention_task *u, asp_real *row, int64_t query) {
    const int64_t n = query + 1, padded = (n + ASP_LANES - 1) / ASP_LANES * ASP_LANES, at = row_at(u, query);
    const uint64_t row_key = u->noisy ? asp_splitmix64(u->noise_key ^ (uint64_t)query) : 0;
    if (u->scores) write_row(u->scores + at, row, n, u->n_tokens, -(asp_real)INFINITY);
    cut_row(u, row, query);
    for (int64_t k = 0; u->gate && !u->gated && k < n; k++) u->gate[at + k] = !u->cut || row[k] > -(asp_real)INFINITY;
    vec best = load(row);
    for (int64_t k = ASP_LANES; k < padded; k += ASP_LANES) best = maximum(load(row + k), best);
    const asp_real top = max_lanes(best);
    vec sums = {0};
    for (int64_t k = 0; k < padded; k += ASP_LANES) {
        const vec s = load(row + k);
        vec e = exp_vec(s - top);
        sums += e;
        if (u->gated) {
            const ivec open = gate_open(u, s, query, k, row_key);
            e = (vec)((ivec)e & open);
            if (u->gate) {
                uint8_t *gate = u->gate + at;
                for (int64_t i = k; i < n && i < k + ASP_LANES; i++) gate[i] = open[i - k] != 0;
            }
        }
        store(row + k, e);
    }
    const asp_real sum = sum_lanes(sums), inverse = 1 / sum;
    if (u->lse) u->lse[query - u->first] = top + asp_log(sum);
    for (int64_t k = 0; k < padded; k += ASP_LANES) store(row + k, load(row + k) * inverse);
    if (u->thinned) thin_row(u, row, query, padded);
    finish_row(u, row, query);
    if (u->gate) memset(u->gate + at + n, 0, (size_t)(u->n_tokens - n));
}

static void edge_row(const asp_attention_task *u, const asp_real *row, int64_t query) {
    int64_t n = 0, at = u->edge_key ? u->edge_start[query] : 0;
    for (int64_t k = 0; k <= query; k++) {
        if (!(row[k] > u->edge_threshold)) continue;
        if (u->edge_key) {
            u->edge_key[at + n] = (int32_t)k;
            u->edge_weight[at + n] = row[k];
        }
        n++;
    }
    if (u->edge_count) u->edge_count[query] = n;
}

/* z of four queries (fewer at the end) whose rows are in b->x, which receives it.  at (n) read: their positions, rising. */
INLINE void attend(const asp_attention_task *u, const attention_buffers *b, const int64_t *at, int64_t n) {
    const int64_t first = at[0], columns = (at[n - 1] + ASP_LANES) / ASP_LANES * ASP_LANES, width = b->width;
    const asp_real *given = u->given_pattern ? u->given_pattern : u->given_scores;
    if (!given) four_rows(b->row, b->keys, b->x, width, u->d_head, b->k_t, b->keys, columns, u->scale);
    for (int64_t i = 0; i < n; i++) {
        if (given) memcpy(b->row + i * b->keys, given + row_at(u, at[i]), (size_t)(at[i] + 1) * sizeof *given);
        if (u->given_pattern) finish_row(u, b->row + i * b->keys, at[i]);
        else pattern_row(u, b->row + i * b->keys, at[i]);
        if (u->edge_count || u->edge_key) edge_row(u, b->row + i * b->keys, at[i]);
    }
    if (!u->z) return;
    four_rows(b->x, width, b->row, b->keys, first + 1, b->v, width, width, 1);
    for (int64_t i = 0; i < n; i++) {
        asp_real *z = b->x + i * width;
        for (int64_t k = first + 1; k <= at[i]; k++) {
            const asp_real a = b->row[i * b->keys + k];
            for (int64_t j = 0; j < width; j += ASP_LANES) store(z + j, load(z + j) + a * load(b->v + k * width + j));
        }
    }
}

static void attention_forward(const asp_attention_task *u) {
    const attention_buffers b = attention_layout(u, 0);
    const int64_t n = u->n_tokens - u->first, d = u->d_head;
    copy_transposed(b.k_t + u->first, u->k, u->stride, n, d, b.keys, u->cache ? n : b.keys);
    copy_padded(b.v + u->first * b.width, u->v, u->stride, n, d, b.width);
    for (int64_t row = 0; row < n; row += QUERIES) {
        const int64_t first = u->first + row, at[QUERIES] = {first, first + 1, first + 2, first + 3};
        const int64_t some = QUERIES < n - row ? QUERIES : n - row;
        gather_queries(b.x, u->q, u->stride, row, n, d, b.width);
        attend(u, &b, at, some);
        for (int64_t i = 0; u->z && i < some; i++) copy_row(u->z + (row + i) * u->z_stride, b.x + i * b.width, d, d);
    }
}

/* Keys, transposed, and values of the first n positions, except those that the scratch holds already. */
static void gather_keys(const asp_attention_task *u, const attention_buffers *b, int64_t n) {
    const int64_t d = u->d_head, to_k = u->k - u->q, to_v = u->v - u->q;
    if (!u->held[0]) memset(b->k_t, 0, (size_t)(d * b->keys) * sizeof *b->k_t);
    for (int64_t t = 0; t < n; t++) {
        if (u->held[t] == u->rows[t]) continue;
        const asp_real *k = u->rows[t] + to_k;
        for (int64_t j = 0; j < d; j++) b->k_t[j * b->keys + t] = k[j];
        copy_row(b->v + t * b->width, u->rows[t] + to_v, d, b->width);
        u->held[t] = u->rows[t];
    }
}

static void attention_rows(const asp_attention_task *u) {
    const attention_buffers b = attention_layout(u, 0);
    const int64_t d = u->d_head;
    gather_keys(u, &b, u->queries[u->n_queries - 1] + 1);
    for (int64_t first = 0; first < u->n_queries; first += QUERIES) {
        const int64_t *at = u->queries + first, left = u->n_queries - first, some = QUERIES < left ? QUERIES : left;
        for (int64_t i = 0; i < QUERIES; i++)
            copy_row(b.x + i * b.width, u->rows[at[i < some ? i : some - 1]], d, b.width);
        attend(u, &b, at, some);
        for (int64_t i = 0; i < some; i++) copy_row(u->z_rows[at[i]], b.x + i * b.width, d, d);
    }
}

static void score_row(const asp_attention_task *u, int64_t query, asp_real *scores) {
    const attention_buffers b = attention_layout(u, 0);
    copy_transposed(b.k_t, u->k, u->stride, u->n_tokens, u->d_head, b.keys, b.keys);
    gather_queries(b.x, u->q, u->stride, query, u->n_tokens, u->d_head, b.width);
    const int64_t columns = (query + ASP_LANES) / ASP_LANES * ASP_LANES;
    four_rows(b.row, b.keys, b.x, b.width, u->d_head, b.k_t, b.keys, columns, u->scale);
    memcpy(scores, b.row, (size_t)(query + 1) * sizeof *scores);
}

/* The price of keys k .. k+15 of a query, each by the first kind that fits it. */
INLINE vec entry_prices(const asp_attention_task *u, int64_t query, int64_t k) {
    const ivec key = key_numbers(k);
    const asp_real *price = u->edge_coefficient;
    const vec others = select(key == 0, splat(price[ASP_ENTRY_FIRST]), splat(price[ASP_ENTRY_OTHER]));
    const vec rest = select(key == (asp_int)(query - 1), splat(price[ASP_ENTRY_PREVIOUS]), others);
    return select(key == (asp_int)query, splat(price[ASP_ENTRY_SELF]), rest);
}

/* Adds a row's sums over all keys, of which those of the kinds with one key are taken out of the others. */
static void add_edge_sums(asp_edge_sum *sums, const asp_edge_sum *all, const asp_edge_sum *own) {
    asp_edge_sum others = *all;
    for (int kind = 0; kind < ASP_ENTRY_OTHER; kind++) {
        sums[kind].expected += own[kind].expected;
        sums[kind].open += own[kind].open;
        others.expected -= own[kind].expected;
        others.open -= own[kind].open;
    }
    sums[ASP_ENTRY_OTHER].expected += others.expected;
    sums[ASP_ENTRY_OTHER].open += others.open;
}

/* Writes down what keys k .. k+15 have of the kinds with one key. */
INLINE void note_own_kinds(asp_edge_sum *own, int64_t query, int64_t k, vec expected, ivec open) {
    const int64_t keys[ASP_ENTRY_OTHER] = {query, query - 1, query > 1 ? 0 : -1};
    for (int kind = 0; kind < ASP_ENTRY_OTHER; kind++) {
        const int64_t lane = keys[kind] - k;
        if (keys[kind] < 0 || lane < 0 || lane >= ASP_LANES) continue;
        own[kind] = (asp_edge_sum){(double)expected[lane], open[lane] ? 1 : 0};
    }
}

/* row: scores on entry, kept pattern M A on return.  drow: d(M A) on entry, ds on return.
 *   dA = M d(M A),  ds = P (m dA - rowsum) + P dA sigma'(g + n) + price sigma'(g),  rowsum = dz . z
 * sigma(g + n) = r / (r + exp(-g) (1-r)); without noise r = 1/2.  M is dropout's, 1 without. */
static void pattern_row_backward(const asp_attention_task *u, asp_real *row, asp_real *drow, int64_t query,
                                 asp_real rowsum) {
    const int64_t n = query + 1, padded = (n + ASP_LANES - 1) / ASP_LANES * ASP_LANES;
    const uint64_t row_key = u->noisy ? asp_splitmix64(u->noise_key ^ (uint64_t)query) : 0;
    const uint64_t drop_key = u->thinned ? asp_splitmix64(u->dropout_key ^ (uint64_t)query) : 0;
    const asp_real lse = u->lse[query];
    const int through = u->noisy || u->straight_through, soft = through || u->priced || u->edge_sums;
    vec gates = {0}, opens = {0};
    if (u->cut) cut_row(u, row, query);
    asp_edge_sum own[ASP_ENTRY_OTHER] = {{0}};
    if (u->dpattern) write_row(u->dpattern + query * u->n_tokens, drow, n, u->n_tokens, 0);
    for (int64_t k = 0; k < padded; k += ASP_LANES) {
        const ivec valid = first_lanes(n - k);
        const vec kept = u->thinned ? kept_entries(u, k, drop_key) : splat(1);
        const vec s = load(row + k), da = load(drow + k) * kept, p = exp_vec(s - lse);
        vec a = p, ds = p * (da - rowsum);
        if (u->gated) {
            const vec g = s + u->gate_bias;
            const vec r = u->noisy ? noise_vec((uint32_t)k, row_key) : splat((asp_real)0.5);
            const vec e = soft ? exp_vec(-g) : (vec){0};
            const ivec may = valid & has_gate(u, query, k);
            ivec open = (u->noisy ? r > e * (1 - r) : g > 0) & may;
            if (u->held_gate) open = held_open(u->held_gate + query * u->n_tokens, k, n);
            a = (vec)((ivec)p & open);
            ds = a * da - p * rowsum;
            if (through) {
                const vec w = r / (r + e * (1 - r));
                ds += (vec)((ivec)(p * da * (w * (1 - w))) & may);
            }
            if (soft) {
                const vec w = 1 / (e + 1);
                ds += (vec)((ivec)(entry_prices(u, query, k) * (w * (1 - w))) & may);
                gates += (vec)((ivec)w & may);
                opens += (vec)((ivec)splat(1) & open & valid);
                if (u->edge_sums) note_own_kinds(own, query, k, (vec)((ivec)w & may), open);
            }
        }
        store(row + k, (vec)((ivec)(a * kept) & valid));
        store(drow + k, (vec)((ivec)ds & valid));
    }
    if (u->dscores) write_row(u->dscores + query * u->n_tokens, drow, n, u->n_tokens, 0);
    const asp_edge_sum all = {(double)sum_lanes(gates), (double)sum_lanes(opens)};
    if (u->edge_sums) add_edge_sums(u->edge_sums, &all, own);
}

static void attention_backward(const asp_attention_task *u) {
    const attention_buffers b = attention_layout(u, 1);
    const int64_t n = u->n_tokens, d = u->d_head, width = b.width;
    copy_transposed(b.k_t, u->k, u->stride, n, d, b.keys, b.keys);
    copy_transposed(b.v_t, u->v, u->stride, n, d, b.keys, b.keys);
    copy_padded(b.k, u->k, u->stride, n, d, width);
    memset(b.dk, 0, (size_t)(n * width) * sizeof *b.dk);
    memset(b.dv, 0, (size_t)(n * width) * sizeof *b.dv);
    for (int64_t first = 0; first < n; first += QUERIES) {
        const int64_t last = first + QUERIES < n ? first + QUERIES : n;
        const int64_t columns = (last + ASP_LANES - 1) / ASP_LANES * ASP_LANES;
        gather_queries(b.x, u->q, u->stride, first, n, d, width);
        gather_queries(b.dx, u->dz, u->dz_stride, first, n, d, width);
        four_rows(b.row, b.keys, b.x, width, d, b.k_t, b.keys, columns, u->scale);
        four_rows(b.drow, b.keys, b.dx, width, d, b.v_t, b.keys, columns, 1);
        for (int64_t i = 0; i < QUERIES; i++) {
            asp_real *row = b.row + i * b.keys, *drow = b.drow + i * b.keys;
            int64_t filled = 0;
            if (first + i < n) {
                const asp_real *z = u->z + (first + i) * u->z_stride, *dz = u->dz + (first + i) * u->dz_stride;
                double rowsum = 0;
                for (int64_t j = 0; j < d; j++) rowsum += (double)z[j] * (double)dz[j];
                pattern_row_backward(u, row, drow, first + i, (asp_real)rowsum);
                filled = (first + i) / ASP_LANES * ASP_LANES + ASP_LANES;
            }
            for (int64_t k = filled; k < columns; k++) row[k] = drow[k] = 0;
        }
        rank_four_update(b.dv, b.row, b.keys, last, b.dx, width);
        rank_four_update(b.dk, b.drow, b.keys, last, b.x, width);
        four_rows(b.x, width, b.drow, b.keys, last, b.k, width, width, u->scale);
        for (int64_t q = first; q < last; q++) copy_row(u->dq + q * u->stride, b.x + (q - first) * width, d, d);
    }
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < d; j++) {
            u->dk[t * u->stride + j] = b.dk[t * width + j] * u->scale;
            u->dv[t * u->stride + j] = b.dv[t * width + j];
        }
}
