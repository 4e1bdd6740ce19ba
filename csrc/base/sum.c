/* sum.c: sums of many numbers, in one order whatever the number of threads: halves of halves down to 128 terms, those
 * in eight columns.  Its error hardly grows with the number of terms; it is the order in which NumPy adds up a row. */
#include "base/base.h"

enum { TERMS = 128, COLUMNS = 8 };

static double add_block(asp_term term, const void *arg, int64_t begin, int64_t n) {
    double sums[COLUMNS], sum = 0;
    int64_t i = COLUMNS;
    if (n < COLUMNS) i = 0;
    else {
        for (int64_t j = 0; j < COLUMNS; j++) sums[j] = term(arg, begin + j);
        for (; i < n - n % COLUMNS; i += COLUMNS)
            for (int64_t j = 0; j < COLUMNS; j++) sums[j] += term(arg, begin + i + j);
        sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    for (; i < n; i++) sum += term(arg, begin + i);
    return sum;
}

static double add(asp_term term, const void *arg, int64_t begin, int64_t n) {
    if (n <= TERMS) return add_block(term, arg, begin, n);
    int64_t half = n / 2;
    half -= half % COLUMNS;
    return add(term, arg, begin, half) + add(term, arg, begin + half, n - half);
}

double asp_sum(asp_term term, const void *arg, int64_t n) { return add(term, arg, 0, n); }

static double number(const void *arg, int64_t i) { return ((const double *)arg)[i]; }

double asp_sum_numbers(const double *x, int64_t n) { return asp_sum(number, x, n); }

static double square(const void *arg, int64_t i) {
    const double *x = arg;
    return x[i] * x[i];
}

double asp_sum_squares(const double *x, int64_t n) { return asp_sum(square, x, n); }
