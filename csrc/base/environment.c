/* environment.c: the floating-point environment in which everything is computed: round to nearest, subnormal numbers
 * kept, no traps.  A public function that computes takes the calling thread into it and puts the thread's own back,
 * status flags included, on every path; the pool's workers never leave it.  Only the registers that the kernels and
 * BLAS use are touched: MXCSR (not the x87 unit), FPCR and FPSR, elsewhere what <fenv.h> holds. */
#if !defined(__x86_64__) && !defined(__aarch64__)
#include <fenv.h>
#endif

#include "base/base.h"

static _Thread_local asp_environment *inside; /* of the call under way; NULL outside, and while it is paused */

#if defined(__x86_64__)
static asp_control read_control(void) { return (asp_control){__builtin_ia32_stmxcsr()}; }
static void write_control(const asp_control *control) { __builtin_ia32_ldmxcsr(control->mxcsr); }
static void write_ours(void) { __builtin_ia32_ldmxcsr(0x1F80); }
#elif defined(__aarch64__)
static asp_control read_control(void) {
    asp_control control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control.fpcr));
    __asm__ volatile("mrs %0, fpsr" : "=r"(control.fpsr));
    return control;
}
static void write_control(const asp_control *control) {
    __asm__ volatile("msr fpcr, %0" : : "r"(control->fpcr) : "memory");
    __asm__ volatile("msr fpsr, %0" : : "r"(control->fpsr) : "memory");
}
static void write_ours(void) {
    const asp_control ours = {0, 0};
    write_control(&ours);
}
#else
static asp_control read_control(void) {
    asp_control control;
    fegetenv(&control.environment);
    return control;
}
static void write_control(const asp_control *control) { fesetenv(&control->environment); }
static void write_ours(void) { fesetenv(FE_DFL_ENV); }
#endif

void asp_environment_of_worker(void) { write_ours(); }

void asp_environment_enter(asp_environment *e) {
    e->outermost = inside == NULL;
    if (!e->outermost) return;
    e->control = read_control();
    inside = e;
    write_ours();
}

void asp_environment_leave(asp_environment *e) {
    if (!e->outermost) return;
    inside = NULL;
    write_control(&e->control);
}

asp_environment *asp_environment_pause(void) {
    asp_environment *e = inside;
    if (e) asp_environment_leave(e);
    return e;
}

void asp_environment_resume(asp_environment *e) {
    if (e) asp_environment_enter(e);
}
