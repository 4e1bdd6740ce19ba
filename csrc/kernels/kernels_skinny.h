/* kernels_skinny.h: products with few rows, which are bound by reading the weights once: BLAS would first
 * repack them.  Each element is summed over k in order with fused multiply-adds, in blocks of k whose sums
 * are then added to c: exactly the order of OpenBLAS's kernels for AVX-512, which skinny.c checks. */

enum { SKINNY_AHEAD = 32 };

/* sums (4,64), rows lds apart, += a (4,n) b (n,64); b's rows SKINNY_AHEAD further on are fetched if asked. */
INLINE void skinny_tile(asp_real *sums, int64_t lds, const asp_real *a, int64_t lda, int64_t n, const asp_real *b,
                        int64_t ldb, int prefetch) {
    vec p0 = load(sums), p1 = load(sums + 16), p2 = load(sums + 32), p3 = load(sums + 48);
    vec q0 = load(sums + lds), q1 = load(sums + lds + 16), q2 = load(sums + lds + 32), q3 = load(sums + lds + 48);
    asp_real *rs = sums + 2 * lds, *ss = sums + 3 * lds;
    vec r0 = load(rs), r1 = load(rs + 16), r2 = load(rs + 32), r3 = load(rs + 48);
    vec s0 = load(ss), s1 = load(ss + 16), s2 = load(ss + 32), s3 = load(ss + 48);
    for (int64_t t = 0; t < n; t++) {
        const asp_real *row = b + t * ldb;
        if (prefetch)
            for (int i = 0; i < 4; i++) __builtin_prefetch(row + SKINNY_AHEAD * ldb + i * ASP_LANES, 0, 2);
        const vec w0 = load(row), w1 = load(row + 16), w2 = load(row + 32), w3 = load(row + 48);
        const vec x0 = splat(a[t]), x1 = splat(a[lda + t]), x2 = splat(a[2 * lda + t]), x3 = splat(a[3 * lda + t]);
        p0 += x0 * w0, p1 += x0 * w1, p2 += x0 * w2, p3 += x0 * w3;
        q0 += x1 * w0, q1 += x1 * w1, q2 += x1 * w2, q3 += x1 * w3;
        r0 += x2 * w0, r1 += x2 * w1, r2 += x2 * w2, r3 += x2 * w3;
        s0 += x3 * w0, s1 += x3 * w1, s2 += x3 * w2, s3 += x3 * w3;
    }
    store(sums, p0), store(sums + 16, p1), store(sums + 32, p2), store(sums + 48, p3);
    store(sums + lds, q0), store(sums + lds + 16, q1), store(sums + lds + 32, q2), store(sums + lds + 48, q3);
    store(rs, r0), store(rs + 16, r1), store(rs + 32, r2), store(rs + 48, r3);
    store(ss, s0), store(ss + 16, s1), store(ss + 32, s2), store(ss + 48, s3);
}

/* sums (rows,columns) += a (rows,n) b (n,columns); rows a multiple of 4, columns of 64.  b is read in strips
 * of a few rows, so that what the processor fetches ahead is used by the next tile. */
static void skinny_block(asp_real *sums, int64_t rows, int64_t columns, const asp_real *a, int64_t lda, int64_t n,
                         const asp_real *b, int64_t ldb, int64_t rows_left) {
    for (int64_t t = 0; t < n; t += SKINNY_AHEAD) {
        const int64_t strip = n - t < SKINNY_AHEAD ? n - t : SKINNY_AHEAD;
        const int more = t + strip + SKINNY_AHEAD <= rows_left;
        for (int64_t c = 0; c < columns; c += 64)
            for (int64_t r = 0; r < rows; r += 4)
                skinny_tile(sums + r * columns + c, columns, a + r * lda + t, lda, strip, b + t * ldb + c, ldb,
                            r == 0 && more);
    }
}

/* sums (8,16) += b (8,n) a_t (n,16): lanes are rows of a.  The next eight rows of b are fetched if asked. */
static void skinny_dots(asp_real *sums, const asp_real *a_t, int64_t n, const asp_real *b, int64_t ldb, int prefetch) {
    vec s0 = load(sums), s1 = load(sums + 16), s2 = load(sums + 32), s3 = load(sums + 48);
    vec s4 = load(sums + 64), s5 = load(sums + 80), s6 = load(sums + 96), s7 = load(sums + 112);
    for (int64_t t = 0; t < n; t++) {
        if (prefetch && t % ASP_LANES == 0)
            for (int i = 0; i < 8; i++) __builtin_prefetch(b + (8 + i) * ldb + t, 0, 2);
        const vec x = load(a_t + t * ASP_LANES);
        s0 += b[t] * x, s1 += b[ldb + t] * x, s2 += b[2 * ldb + t] * x, s3 += b[3 * ldb + t] * x;
        s4 += b[4 * ldb + t] * x, s5 += b[5 * ldb + t] * x, s6 += b[6 * ldb + t] * x, s7 += b[7 * ldb + t] * x;
    }
    store(sums, s0), store(sums + 16, s1), store(sums + 32, s2), store(sums + 48, s3);
    store(sums + 64, s4), store(sums + 80, s5), store(sums + 96, s6), store(sums + 112, s7);
}
