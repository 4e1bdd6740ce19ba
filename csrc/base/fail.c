/* fail.c: one sentence for every failure. */
#include <stdarg.h>
#include <stdio.h>

#include "base/base.h"

asp_status asp_fail(asp_error *err, asp_status status, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        err->status = status;
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return status;
}

const char *asp_fail_size(char text[32], double bytes) {
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    double size = bytes;
    int unit = 0;
    for (; size >= 999.95 && unit < 4; unit++) size /= 1000;
    snprintf(text, 32, "%.4g %s", size, units[unit]);
    return text;
}
