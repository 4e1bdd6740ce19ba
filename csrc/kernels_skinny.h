/* kernels_skinny.h: products with few rows, which are bound by reading the weights once: BLAS would first
 * repack them.  Each element is summed over k in order with fused multiply-adds, in blocks of k whose sums
 * are then added to c: exactly the order of OpenBLAS's kernels for AVX-512, which skinny.c checks. */

enum { SKINNY_ROWS = 4, SKINNY_AHEAD = 32 };

/* c[i, 0..64) += sum over t < n of a[i, t] b[t, 0..64) for four rows. */
INLINE void skinny_tile(asp_real *c, int64_t ldc, const asp_real *a, int64_t lda, int64_t n, const asp_real *b,
                        int64_t ldb, int prefetch) {
    vec p0 = {0}, p1 = {0}, p2 = {0}, p3 = {0}, q0 = {0}, q1 = {0}, q2 = {0}, q3 = {0};
    vec r0 = {0}, r1 = {0}, r2 = {0}, r3 = {0}, s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (int64_t t = 0; t < n; t++) {
        const asp_real *row = b + t * ldb;
        if (prefetch)
            for (int i = 0; i < 4; i++) __builtin_prefetch(row + SKINNY_AHEAD * ldb + i * ASP_LANES, 0, 2);
        const vec w0 = load(row), w1 = load(row + 16), w2 = load(row + 32), w3 = load(row + 48);
        const asp_real x0 = a[t], x1 = a[lda + t], x2 = a[2 * lda + t], x3 = a[3 * lda + t];
        p0 += x0 * w0, p1 += x0 * w1, p2 += x0 * w2, p3 += x0 * w3;
        q0 += x1 * w0, q1 += x1 * w1, q2 += x1 * w2, q3 += x1 * w3;
        r0 += x2 * w0, r1 += x2 * w1, r2 += x2 * w2, r3 += x2 * w3;
        s0 += x3 * w0, s1 += x3 * w1, s2 += x3 * w2, s3 += x3 * w3;
    }
    const vec sums[SKINNY_ROWS][4] = {{p0, p1, p2, p3}, {q0, q1, q2, q3}, {r0, r1, r2, r3}, {s0, s1, s2, s3}};
    for (int i = 0; i < SKINNY_ROWS; i++)
        for (int j = 0; j < 4; j++) {
            asp_real *at = c + i * ldc + j * ASP_LANES;
            store(at, load(at) + sums[i][j]);
        }
}

/* c (4,64) += a (4,k) b (k,64), summed in blocks of k. */
static void skinny_rows(asp_real *c, int64_t ldc, const asp_real *a, int64_t lda, int64_t k, int64_t k_block,
                        const asp_real *b, int64_t ldb, int prefetch) {
    for (int64_t at = 0; at < k;) {
        const int64_t n = asp_k_block(k - at, k_block);
        skinny_tile(c, ldc, a + at, lda, n, b + at * ldb, ldb, prefetch);
        at += n;
    }
}

/* out[j, 0..16) += sum over t of b[j, t] a_t[t, 0..16) for eight rows j of b: lanes are rows of a. */
INLINE void skinny_dot_tile(asp_real *out, const asp_real *a_t, int64_t n, const asp_real *b, int64_t ldb) {
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0};
    for (int64_t t = 0; t < n; t++) {
        const vec x = load(a_t + t * ASP_LANES);
        s0 += b[t] * x, s1 += b[ldb + t] * x, s2 += b[2 * ldb + t] * x, s3 += b[3 * ldb + t] * x;
        s4 += b[4 * ldb + t] * x, s5 += b[5 * ldb + t] * x, s6 += b[6 * ldb + t] * x, s7 += b[7 * ldb + t] * x;
    }
    const vec sums[8] = {s0, s1, s2, s3, s4, s5, s6, s7};
    for (int j = 0; j < 8; j++) store(out + j * ASP_LANES, load(out + j * ASP_LANES) + sums[j]);
}

/* out (8,16) += b (8,k) a_t (k,16), summed in blocks of k. */
static void skinny_dots(asp_real *out, const asp_real *a_t, int64_t k, int64_t k_block, const asp_real *b,
                        int64_t ldb) {
    for (int64_t at = 0; at < k;) {
        const int64_t n = asp_k_block(k - at, k_block);
        skinny_dot_tile(out, a_t + at * ASP_LANES, n, b + at, ldb);
        at += n;
    }
}
