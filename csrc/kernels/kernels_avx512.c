/* kernels_avx512.c: the kernels of kernels_*.h compiled for avx512. */
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi2,f16c"))),         \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi2,f16c")
#endif
#define ASP_ISA_NAME "avx512"
#define ASP_ISA_LEVEL 3
#define KEY_VECTORS 2 /* vectors of keys in a score tile: 4 x 2 accumulators */
#include "kernels/kernels_math.h"
#include "kernels/kernels_rows.h"
#include "kernels/kernels_attention.h"
#include "kernels/kernels_skinny.h"
#include "kernels/kernels_table.h"
const asp_kernels asp_kernels_avx512 = ASP_KERNEL_TABLE;
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
