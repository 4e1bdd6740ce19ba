/* kernels_avx2.c: the kernels of kernels_*.h compiled for avx2. */
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2,f16c")
#endif
#define ASP_ISA_NAME "avx2"
#define ASP_ISA_LEVEL 2
#define KEY_VECTORS 1
#include "kernels/kernels_math.h"
#include "kernels/kernels_rows.h"
#include "kernels/kernels_attention.h"
#include "kernels/kernels_skinny.h"
#include "kernels/kernels_table.h"
const asp_kernels asp_kernels_avx2 = ASP_KERNEL_TABLE;
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
