/* kernels_base.c: the kernels of kernels_*.h compiled for the baseline of the platform. */
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

#define ASP_ISA_NAME "baseline"
#define ASP_ISA_LEVEL 1
#define KEY_VECTORS 1
#include "kernels/kernels_math.h"
#include "kernels/kernels_rows.h"
#include "kernels/kernels_attention.h"
#include "kernels/kernels_skinny.h"
#include "kernels/kernels_table.h"
const asp_kernels asp_kernels_base = ASP_KERNEL_TABLE;
