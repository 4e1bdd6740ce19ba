/* random.c: counter-based random numbers.  Philox4x64 with ten rounds (Salmon et al., "Parallel Random Numbers: As Easy
 * as 1, 2, 3", 2011) as NumPy has it: the seed is the key, and block i of a stream has the counter (i + 1, second,
 * first, use).  So a number is a function of the seed and of the place where it is used, and of nothing else. */
#include "base/base.h"

/* a b; the upper half goes to *high. */
static uint64_t multiply(uint64_t a, uint64_t b, uint64_t *high) {
    const unsigned __int128 product = (unsigned __int128)a * b;
    *high = (uint64_t)(product >> 64);
    return (uint64_t)product;
}

/* out (4) written. */
static void philox(uint64_t out[4], const uint64_t counter[4], uint64_t seed) {
    uint64_t key[2] = {seed, 0}, x[4] = {counter[0], counter[1], counter[2], counter[3]};
    for (int round = 0; round < 10; round++) {
        uint64_t high0, high2;
        const uint64_t low0 = multiply(0xD2E7470EE14C6C93u, x[0], &high0);
        const uint64_t low2 = multiply(0xCA5A826395121157u, x[2], &high2);
        x[0] = high2 ^ x[1] ^ key[0];
        x[1] = low2;
        x[2] = high0 ^ x[3] ^ key[1];
        x[3] = low0;
        key[0] += 0x9E3779B97F4A7C15u;
        key[1] += 0xBB67AE8584CAA73Bu;
    }
    for (int i = 0; i < 4; i++) out[i] = x[i];
}

void asp_random_raw(uint64_t *out, int64_t start, int64_t n, uint64_t seed, uint64_t use, uint64_t first,
                    uint64_t second) {
    for (int64_t i = 0; i < n;) {
        const uint64_t counter[4] = {(uint64_t)((start + i) / 4) + 1, second, first, use};
        uint64_t block[4];
        philox(block, counter, seed);
        for (int64_t j = (start + i) % 4; j < 4 && i < n; j++) out[i++] = block[j];
    }
}

/* Indices `from` (n) to `to` (n), by one byte of their keys, those with the same byte in the order that they have. */
static void sort_by_byte(int64_t *to, const int64_t *from, const uint64_t *keys, int64_t n, int shift) {
    int64_t start[257] = {0};
    for (int64_t i = 0; i < n; i++) start[(keys[i] >> shift & 255) + 1]++;
    for (int byte = 0; byte < 256; byte++) start[byte + 1] += start[byte];
    for (int64_t i = 0; i < n; i++) to[start[keys[from[i]] >> shift & 255]++] = from[i];
}

asp_status asp_random_permutation(int64_t *out, int64_t n, uint64_t seed, uint64_t use, uint64_t first, uint64_t second,
                                  asp_error *err) {
    uint64_t *keys = asp_allocate(n, sizeof *keys);
    int64_t *other = asp_allocate(n, sizeof *other);
    if (keys && other) {
        asp_random_raw(keys, 0, n, seed, use, first, second);
        for (int64_t i = 0; i < n; i++) out[i] = i;
        for (int shift = 0; shift < 64; shift += 16) {
            sort_by_byte(other, out, keys, n, shift);
            sort_by_byte(out, other, keys, n, shift + 8);
        }
    }
    const int done = keys && other;
    asp_release(keys);
    asp_release(other);
    return done ? ASP_OK : asp_fail(err, ASP_NO_MEMORY, "no memory for a random order of %lld items", (long long)n);
}
