/* kernels_table.h: the table of one instruction set, from the kernels above it. */
#define ASP_KERNEL_TABLE                                                                                               \
    {.name = ASP_ISA_NAME,                                                                                             \
     .level = ASP_ISA_LEVEL,                                                                                           \
     .exp_array = exp_array,                                                                                           \
     .noise_row = noise_row,                                                                                           \
     .drop_row = drop_row,                                                                                             \
     .layernorm_row = layernorm_row,                                                                                   \
     .layernorm_backward_row = layernorm_backward_row,                                                                 \
     .activate = activate,                                                                                             \
     .activate_backward = activate_backward,                                                                           \
     .add = add_row,                                                                                                   \
     .axpy = axpy,                                                                                                     \
     .dot = dot_row,                                                                                                   \
     .cross_entropy_row = cross_entropy_row,                                                                           \
     .attention_forward = attention_forward,                                                                           \
     .attention_rows = attention_rows,                                                                                 \
     .attention_backward = attention_backward,                                                                         \
     .score_row = score_row,                                                                                           \
     .adamw = adamw,                                                                                                   \
     .column_sums = column_sums,                                                                                       \
     .sum_squares = sum_squares,                                                                                       \
     .skinny_block = skinny_block,                                                                                     \
     .skinny_dots = skinny_dots}
