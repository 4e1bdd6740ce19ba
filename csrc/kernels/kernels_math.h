/* kernels_math.h: 16-lane vectors, exp and the counter-based noise; included by the kernels_*.c files.
 * Vectors are GCC/Clang vector extensions: one zmm, two ymm or four xmm registers for float. */
#ifdef ASP_DOUBLE
typedef int64_t asp_int;
typedef uint64_t asp_bits;
#else
typedef int32_t asp_int;
typedef uint32_t asp_bits;
#endif
typedef asp_real vec __attribute__((vector_size(ASP_LANES * sizeof(asp_real)), may_alias));
typedef asp_real memvec
    __attribute__((vector_size(ASP_LANES * sizeof(asp_real)), aligned(sizeof(asp_real)), may_alias));
typedef asp_int ivec __attribute__((vector_size(ASP_LANES * sizeof(asp_int)), may_alias));
typedef uint32_t uvec __attribute__((vector_size(ASP_LANES * 4), may_alias));
typedef double dvec __attribute__((vector_size(ASP_LANES * 8), may_alias));
#ifdef ASP_DOUBLE
#define asp_sqrt sqrt
#define asp_log log
#else
#define asp_sqrt sqrtf
#define asp_log logf
#endif

typedef asp_real half __attribute__((vector_size(ASP_LANES / 2 * sizeof(asp_real)), may_alias));
typedef asp_real memhalf
    __attribute__((vector_size(ASP_LANES / 2 * sizeof(asp_real)), aligned(sizeof(asp_real)), may_alias));
typedef asp_int halfint __attribute__((vector_size(ASP_LANES / 2 * sizeof(asp_int)), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const asp_real *p) { return *(const memvec *)p; }
INLINE void store(asp_real *p, vec x) { *(memvec *)p = x; }
INLINE vec splat(asp_real x) { return x - (vec){0}; }
INLINE vec select(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
INLINE vec maximum(vec a, vec b) { return select(a > b, a, b); }

INLINE half low_half(vec x) {
    return ((union {
               vec whole;
               half parts[2];
           }){x})
        .parts[0];
}
INLINE half high_half(vec x) {
    return ((union {
               vec whole;
               half parts[2];
           }){x})
        .parts[1];
}

INLINE vec load_part(const asp_real *p, int64_t n, asp_real fill) {
    asp_real buffer[ASP_LANES];
    for (int i = 0; i < ASP_LANES; i++) buffer[i] = i < n ? p[i] : fill;
    return load(buffer);
}
INLINE void store_part(asp_real *p, vec x, int64_t n) {
    asp_real buffer[ASP_LANES];
    store(buffer, x);
    for (int64_t i = 0; i < n; i++) p[i] = buffer[i];
}
/* Lanes whose index is below n. */
INLINE ivec first_lanes(int64_t n) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < (asp_int)(n > ASP_LANES ? ASP_LANES : n);
}

/* Sum and maximum over lanes in a fixed tree: halves, quarters, ... */
INLINE asp_real sum_lanes(vec x) {
    half a = low_half(x) + high_half(x);
    asp_real lane[ASP_LANES / 2];
    *(memhalf *)lane = a;
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}
INLINE asp_real larger(asp_real a, asp_real b) { return a > b ? a : b; }
INLINE asp_real max_lanes(vec x) {
    const half a = low_half(x), b = high_half(x);
    const halfint above = a > b;
    asp_real lane[ASP_LANES / 2];
    *(memhalf *)lane = (half)((above & (halfint)a) | (~above & (halfint)b));
    return larger(larger(larger(lane[0], lane[4]), larger(lane[2], lane[6])),
                  larger(larger(lane[1], lane[5]), larger(lane[3], lane[7])));
}
INLINE double sum_lanes_double(dvec x) {
    double a[ASP_LANES];
    __builtin_memcpy(a, &x, sizeof a);
    for (int w = ASP_LANES / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) a[i] += a[i + w];
    return a[0];
}
INLINE dvec widen(vec x) { return __builtin_convertvector(x, dvec); }

/* exp(x); 0 below the smallest normal result; x above the largest is clamped; NaN stays NaN.
 * float: Cephes' polynomial, error below 2 ulp (tests/c/test_instruction_sets.py).  double: libm lane by lane. */
INLINE vec exp_vec(vec x) {
#ifdef ASP_DOUBLE
    vec out;
    for (int i = 0; i < ASP_LANES; i++) out[i] = x[i] < -708.0 ? 0.0 : exp(x[i] > 709.0 ? 709.0 : x[i]);
    return out;
#else
    const ivec tiny = x < -87.33654f;
    x = select(x > 88.3762626647949f, splat(88.3762626647949f), x);
    const vec shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    const vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec p = splat(1.9875691500E-4f);
    p = p * r + 1.3981999507E-3f;
    p = p * r + 8.3334519073E-3f;
    p = p * r + 4.1665795894E-2f;
    p = p * r + 1.6666665459E-1f;
    p = p * r + 5.0000001201E-1f;
    p = p * (r * r) + r + 1.0f;
    /* Unsigned: what x is beyond its limits, and NaN, wraps around. */
    const uvec power = ((uvec)shifted - 0x4B400000u + 127u) << 23;
    return (vec)((ivec)(p * (vec)power) & ~tiny);
#endif
}

/* Uniform numbers in (0,1) for keys first .. first+15 of the row with this key (numerics.md#noise). */
INLINE vec noise_vec(uint32_t first, uint64_t row_key) {
    const uvec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    uvec x = (lane + first) * 0x9E3779B9u + (uint32_t)row_key;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x += (uint32_t)(row_key >> 32);
    x *= 0x846ca68bu;
    x ^= x >> 16;
    typedef int32_t i32vec __attribute__((vector_size(ASP_LANES * 4)));
    return (__builtin_convertvector((i32vec)(x >> 9), vec) + (asp_real)0.5) * (asp_real)(1.0 / 8388608.0);
}
