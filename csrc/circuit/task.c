/* task.c: the prompts of a task: what is refused, blocks that are run together, and the entries that they open. */
#include "circuit/circuit.h"

static int64_t n_tokens(const asp_prompts *prompts, int64_t i) { return prompts->offsets[i + 1] - prompts->offsets[i]; }

/* ---- checks ------------------------------------------------------------------------------------------ */

static asp_status check_corrupted(const asp_model *model, const asp_task *task, asp_error *err) {
    const asp_prompts *clean = &task->clean, *corrupted = &task->corrupted;
    if (!corrupted->n_prompts) return ASP_OK;
    if (corrupted->n_prompts != clean->n_prompts)
        return asp_fail(err, ASP_BAD_ARGUMENT, "task: there are %lld corrupted prompts and %lld clean ones",
                        (long long)corrupted->n_prompts, (long long)clean->n_prompts);
    for (int64_t i = 0; i < clean->n_prompts; i++)
        if (n_tokens(clean, i) != n_tokens(corrupted, i))
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "task: prompt %lld has %lld tokens, its corrupted prompt has %lld; they must be alike",
                            (long long)i, (long long)n_tokens(clean, i), (long long)n_tokens(corrupted, i));
    return asp_shape_check_batch(&model->config, corrupted->tokens, corrupted->offsets, corrupted->n_prompts, err);
}

asp_status asp_task_check(const asp_model *model, const asp_task *task, asp_error *err) {
    const asp_prompts *clean = &task->clean;
    asp_status status = asp_shape_check_batch(&model->config, clean->tokens, clean->offsets, clean->n_prompts, err);
    if (status) return status;
    if (task->metric.n_sequences != clean->n_prompts)
        return asp_fail(err, ASP_BAD_ARGUMENT, "task: the metric has %lld prompts, the task %lld",
                        (long long)task->metric.n_sequences, (long long)clean->n_prompts);
    if (task->metric.kind != ASP_KL) status = asp_metric_check(&task->metric, model->config.n_vocab, err);
    return status ? status : check_corrupted(model, task, err);
}

asp_status asp_task_check_lengths(const asp_prompts *prompts, const char *what, asp_error *err) {
    for (int64_t i = 1; i < prompts->n_prompts; i++)
        if (n_tokens(prompts, i) != n_tokens(prompts, 0))
            return asp_fail(err, ASP_BAD_ARGUMENT,
                            "%s need prompts of one length: prompt 0 has %lld tokens, prompt %lld has %lld; take a "
                            "subset",
                            what, (long long)n_tokens(prompts, 0), (long long)i, (long long)n_tokens(prompts, i));
    return ASP_OK;
}

/* ---- blocks ------------------------------------------------------------------------------------------ */

int64_t asp_task_block_end(const asp_prompts *prompts, int64_t first, int64_t most_tokens) {
    int64_t end = first + 1;
    while (end < prompts->n_prompts && prompts->offsets[end + 1] - prompts->offsets[first] <= most_tokens) end++;
    return end;
}

const int32_t *asp_task_block(int64_t *offsets, const asp_prompts *prompts, int64_t first, int64_t end) {
    for (int64_t i = first; i <= end; i++) offsets[i - first] = prompts->offsets[i] - prompts->offsets[first];
    return prompts->tokens + prompts->offsets[first];
}

/* ---- open entries ------------------------------------------------------------------------------------- */

typedef struct {
    uint8_t *open;
    const uint8_t *gate; /* (B,L,H,T,T) */
    int64_t n_sequences, n_heads, square;
} open_job;

static void open_item(void *arg, int64_t head_index, int thread) {
    (void)thread;
    const open_job *job = arg;
    uint8_t *open = job->open + head_index * job->square;
    for (int64_t b = 0; b < job->n_sequences; b++) {
        const uint8_t *gate = job->gate + (b * job->n_heads + head_index) * job->square;
        for (int64_t i = 0; i < job->square; i++) open[i] |= gate[i];
    }
}

static const asp_run_options gates = {.records = (uint64_t)1 << ASP_GATE, .max_bytes = INT64_MAX};

/* Tokens whose gates are held at once. */
static int64_t most_tokens(const asp_config *c, int64_t length) {
    return asp_max(1, ASP_TASK_BLOCK_BYTES / (c->n_layer * c->n_head * length));
}

asp_status asp_task_open_entries(uint8_t *open, const asp_model *model, const asp_prompts *prompts, int64_t *offsets,
                                 const asp_context *context, asp_error *err) {
    const asp_config *c = &model->config;
    const int64_t length = n_tokens(prompts, 0), most = most_tokens(c, length);
    open_job job = {.open = open, .n_heads = c->n_layer * c->n_head, .square = length * length};
    asp_status status = ASP_OK;
    for (int64_t i = 0; i < job.n_heads * job.square; i++) open[i] = 0;
    for (int64_t first = 0, end; !status && first < prompts->n_prompts; first = end) {
        asp_run *run = NULL;
        end = asp_task_block_end(prompts, first, most);
        const int32_t *tokens = asp_task_block(offsets, prompts, first, end);
        status = asp_run_new(&run, model, tokens, offsets, end - first, &gates, context, err);
        if (!status) {
            job.gate = asp_run_array(run, ASP_GATE).data;
            job.n_sequences = end - first;
            status = asp_parallel_for(context, job.n_heads, open_item, &job);
        }
        asp_run_free(run);
    }
    return status;
}

int64_t asp_task_open_needed(const asp_model *model, const asp_prompts *prompts, int64_t *offsets, int n_threads) {
    const int64_t end = asp_task_block_end(prompts, 0, most_tokens(&model->config, n_tokens(prompts, 0)));
    asp_task_block(offsets, prompts, 0, end);
    return asp_run_needed(model, offsets, end, &gates, n_threads);
}
