/* skinny.h: products of a few rows; see skinny.c. */
#ifndef ASP_SKINNY_H
#define ASP_SKINNY_H

#include "kernels/kernels.h"

/* The block size of k with which skinny products give BLAS's bits on this machine, 0 if none was found,
 * -1 if memory ran out. */
int64_t asp_skinny_probe(int64_t k);
/* Few rows or any number by row, and a block size is known.  Rows of A up to a multiple of 4 are read. */
int asp_skinny_fits(const asp_gemm *gemm);
asp_status asp_skinny_run(const asp_gemm *gemm, const asp_context *context);
/* gemm.c: what follows a product, on rows [row, row + rows) and these columns. */
void asp_gemm_finish(const asp_gemm *g, int64_t row, int64_t rows, int64_t column, int64_t columns);

#endif
