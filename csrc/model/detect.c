/* detect.c: how well the pattern of each head matches patterns that are given. */
#include <math.h>

#include "model/model.h"

typedef struct {
    double *scores;
    const asp_run *run;
    const asp_detect_options *options;
    const asp_real *pattern;
    int64_t n_units, n_squares; /* L H, and the sum of T*T */
} detect_job;

/* One head of one sequence, against all patterns. */
static void detect_head(void *arg, int64_t item, int thread) {
    (void)thread;
    const detect_job *job = arg;
    const asp_detect_options *o = job->options;
    const int64_t b = item / job->n_units, unit = item % job->n_units, *offsets = asp_run_offsets(job->run);
    const int64_t length = offsets[b + 1] - offsets[b], start = asp_run_square_start(job->run)[b];
    const asp_real *a = job->pattern + start + unit * length * length;
    const double *wanted = o->patterns + start / job->n_units;
    for (int64_t i = 0; i < o->n_patterns; i++, wanted += job->n_squares) {
        double common = 0, sum = 0, difference = 0;
        for (int64_t q = 0; q < length; q++)
            for (int64_t k = o->exclude_first ? 1 : 0; k < q + !o->exclude_current; k++) {
                const double entry = (double)a[q * length + k], other = wanted[q * length + k];
                sum += entry;
                common += entry * other;
                difference += fabs(entry - other);
            }
        const double score = o->measure == ASP_DETECT_ABS ? 1 - difference / (double)length
                             : sum > 0                    ? common / sum
                                                          : 0;
        job->scores[(i * asp_run_n_sequences(job->run) + b) * job->n_units + unit] = score;
    }
}

asp_status asp_detect_heads(double *scores, const asp_run *run, const asp_detect_options *options,
                            const asp_context *context, asp_error *err) {
    ASP_ENVIRONMENT;
    const asp_array pattern = asp_run_array(run, ASP_PATTERN);
    const int64_t n = asp_run_n_sequences(run), *offsets = asp_run_offsets(run);
    if (!pattern.data)
        return asp_fail(err, ASP_BAD_STATE, "this run did not record pattern; run again with record=\"attention\"");
    detect_job job = {.scores = scores, .run = run, .options = options, .pattern = pattern.data};
    for (int64_t b = 0; b < n; b++) job.n_squares += (offsets[b + 1] - offsets[b]) * (offsets[b + 1] - offsets[b]);
    job.n_units = asp_run_square_start(run)[n] / job.n_squares;
    return asp_parallel_for(context, n * job.n_units, detect_head, &job);
}
