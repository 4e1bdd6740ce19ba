/* blas.h: the few CBLAS names that are used, for single or double precision and for a prefixed library. */
#ifndef ASP_BLAS_H
#define ASP_BLAS_H

#include "asp.h"

#define ASP_PASTE_(a, b) a##b
#define ASP_PASTE(a, b) ASP_PASTE_(a, b)
#ifdef ASP_BLAS_PREFIX
#define ASP_BLAS(name) ASP_PASTE(ASP_BLAS_PREFIX, name)
#else
#define ASP_BLAS(name) name
#endif

enum { ASP_ROW_MAJOR = 101, ASP_NO_TRANS = 111, ASP_TRANS = 112 };

#ifdef ASP_DOUBLE
#define asp_cblas_gemm ASP_BLAS(cblas_dgemm)
#else
#define asp_cblas_gemm ASP_BLAS(cblas_sgemm)
#endif

/* C (m,n) = alpha op(A) (m,k) op(B) (k,n) + beta C, row-major. */
void asp_cblas_gemm(int order, int trans_a, int trans_b, int m, int n, int k, asp_real alpha, const asp_real *a,
                    int lda, const asp_real *b, int ldb, asp_real beta, asp_real *c, int ldc);

#ifndef ASP_ACCELERATE
void ASP_BLAS(openblas_set_num_threads)(int n);
int ASP_BLAS(openblas_get_num_threads)(void);
char *ASP_BLAS(openblas_get_config)(void);
char *ASP_BLAS(openblas_get_corename)(void);
#endif

#endif
