/* means.c: mean activations over reference prompts, summed in float64 in the order of the prompts. */
#include <string.h>

#include "component/component.h"

/* What is added up: a block of prompts, into sums for the embedding, z and the MLPs' hidden layer. */
typedef struct {
    const asp_config *config;
    const asp_prompts *reference;
    asp_component_ablation ablation;
    int64_t n_positions, first, n; /* rows of the sums; prompts of the block */
    asp_node_activations run;
    double *embed, *z, *post; /* (n_positions,E), (L,n_positions,C), (L,n_positions,M) */
    int64_t *count;           /* (n_positions) prompts that have a position */
    int64_t *offsets;         /* (P+1) */
} means_job;

static double mean_weight(const means_job *job, int64_t prompt, int64_t position) {
    const int64_t *offsets = job->reference->offsets, p = job->reference->n_prompts;
    if (job->ablation == ASP_COMPONENT_MEAN_POSITIONAL) return 1 / (double)job->count[position];
    if (job->ablation == ASP_COMPONENT_MEAN_ALL) return 1 / (double)offsets[p];
    return 1 / ((double)(offsets[prompt + 1] - offsets[prompt]) * (double)p);
}

static void add_mean_rows(const means_job *job, double *sums, const asp_real *rows, int64_t width) {
    const int positional = job->ablation == ASP_COMPONENT_MEAN_POSITIONAL;
    for (int64_t b = 0; b < job->n; b++)
        for (int64_t r = job->offsets[b]; r < job->offsets[b + 1]; r++) {
            const int64_t position = r - job->offsets[b];
            if (positional && position >= job->n_positions) break; /* prompts of the task are shorter */
            const double weight = mean_weight(job, job->first + b, position);
            double *sum = sums + (positional ? position * width : 0);
            for (int64_t j = 0; j < width; j++) sum[j] += weight * (double)rows[r * width + j];
        }
}

/* The embedding, z of layer 0, its MLP, z of layer 1, ... */
static void means_item(void *arg, int64_t item, int thread) {
    (void)thread;
    const means_job *job = arg;
    const asp_config *c = job->config;
    const int64_t layer = (item - 1) / 2, width = c->n_head * c->d_head;
    if (!item) add_mean_rows(job, job->embed, job->run.embed, c->d_model);
    else if (item % 2)
        add_mean_rows(job, job->z + layer * job->n_positions * width, asp_slot_at(job->run.z, layer), width);
    else
        add_mean_rows(job, job->post + layer * job->n_positions * c->d_mlp, asp_slot_at(job->run.post, layer),
                      c->d_mlp);
}

/* ---- memory -------------------------------------------------------------------------------------------- */

static const asp_run_options recorded = {.records = ASP_NODES_RECORDS, .max_bytes = INT64_MAX};

static int64_t mean_positions(asp_component_ablation ablation, int64_t longest) {
    return ablation == ASP_COMPONENT_MEAN_POSITIONAL ? longest : 1;
}

/* Elements of one position. */
static int64_t position_size(const asp_config *c) {
    return c->d_model + c->n_layer * (c->n_head * c->d_head + c->d_mlp);
}

static int64_t means_tokens(const asp_config *c) {
    return asp_max(1, ASP_TASK_BLOCK_BYTES / (position_size(c) * (int64_t)sizeof(asp_real)));
}

enum { PARTS = 5 };

static int64_t lay_out_means(means_job *job, asp_arena *arena, asp_arena_part parts[PARTS]) {
    const asp_config *c = job->config;
    const int64_t n = job->n_positions;
    parts[0] = (asp_arena_part)ASP_PART(job->embed, n, c->d_model);
    parts[1] = (asp_arena_part)ASP_PART(job->z, n, c->n_layer * c->n_head * c->d_head);
    parts[2] = (asp_arena_part)ASP_PART(job->post, n, c->n_layer * c->d_mlp);
    parts[3] = (asp_arena_part)ASP_PART(job->count, n, 1);
    parts[4] = (asp_arena_part)ASP_PART(job->offsets, job->reference->n_prompts + 1, 1);
    return asp_arena_lay_out(arena, parts, PARTS);
}

void asp_means_needed(int64_t bytes[2], const asp_model *model, const asp_prompts *reference, int64_t longest,
                      asp_component_ablation ablation, int n_threads) {
    means_job job = {.config = &model->config,
                     .reference = reference,
                     .n_positions = mean_positions(ablation, longest)};
    asp_arena arena = {0};
    asp_arena_part parts[PARTS];
    int64_t most = 0, all = INT64_MAX;
    bytes[0] = INT64_MAX;
    asp_multiply(job.n_positions, position_size(job.config) * (int64_t)sizeof(asp_real), &bytes[0]);
    for (int64_t first = 0, end; first < reference->n_prompts; first = end) {
        end = asp_task_block_end(reference, first, means_tokens(job.config));
        int64_t ends[2] = {0, reference->offsets[end] - reference->offsets[first]};
        most = asp_max(most, asp_run_needed(model, ends, 1, &recorded, n_threads));
    }
    if (__builtin_add_overflow(lay_out_means(&job, &arena, parts), most, &all)) all = INT64_MAX;
    bytes[1] = all;
}

/* ---- the call ------------------------------------------------------------------------------------------ */

static asp_status count_prompts(const means_job *job, asp_error *err) {
    const int64_t *offsets = job->reference->offsets;
    for (int64_t i = 0; i < job->reference->n_prompts; i++)
        for (int64_t t = 0; t < job->n_positions && t < offsets[i + 1] - offsets[i]; t++) job->count[t]++;
    for (int64_t t = 0; t < job->n_positions; t++)
        if (!job->count[t])
            return asp_fail(
                err, ASP_BAD_ARGUMENT,
                "means per position: no reference prompt has a position %lld, prompts of the task have %lld",
                (long long)t, (long long)job->n_positions);
    return ASP_OK;
}

static asp_status add_mean_blocks(means_job *job, const asp_model *model, const asp_context *context, asp_error *err) {
    asp_status status = ASP_OK;
    for (int64_t end; !status && job->first < job->reference->n_prompts; job->first = end) {
        asp_run *run = NULL;
        end = asp_task_block_end(job->reference, job->first, means_tokens(job->config));
        job->n = end - job->first;
        const int32_t *tokens = asp_task_block(job->offsets, job->reference, job->first, end);
        status = asp_run_new(&run, model, tokens, job->offsets, job->n, &recorded, context, err);
        if (!status) {
            job->run = asp_nodes_of_run(run);
            status = asp_parallel_for(context, 1 + 2 * job->config->n_layer, means_item, job);
        }
        asp_run_free(run);
    }
    return status;
}

static void narrow_means(asp_real *out, const double *sums, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = (asp_real)sums[i];
}

asp_status asp_means_new(asp_means *means, const asp_model *model, const asp_prompts *reference, int64_t longest,
                         asp_component_ablation ablation, const asp_context *context, asp_error *err) {
    const asp_config *c = &model->config;
    const int64_t n = mean_positions(ablation, longest), width = c->n_head * c->d_head;
    means_job job = {.config = c, .reference = reference, .ablation = ablation, .n_positions = n};
    asp_node_activations *a = &means->activations;
    asp_arena sums = {0};
    asp_arena_part own[PARTS];
    asp_arena_part parts[] = {ASP_PART(a->embed, n, c->d_model), ASP_PART(a->z.data, n * c->n_layer, width),
                              ASP_PART(a->post.data, n * c->n_layer, c->d_mlp)};
    *means = (asp_means){.n_positions = n};
    asp_arena_lay_out(&means->arena, parts, 3);
    lay_out_means(&job, &sums, own);
    if (!asp_arena_commit(&means->arena, 1) || !asp_arena_commit(&sums, 1)) {
        asp_arena_free(&sums);
        return asp_fail(err, ASP_NO_MEMORY, "no memory for mean activations of %lld positions", (long long)n);
    }
    asp_arena_wire(&means->arena, parts, 3);
    asp_arena_wire(&sums, own, PARTS);
    a->z.stride = n * width;
    a->post.stride = n * c->d_mlp;
    asp_status status = count_prompts(&job, err);
    if (!status) status = add_mean_blocks(&job, model, context, err);
    if (!status) {
        narrow_means((asp_real *)(uintptr_t)a->embed, job.embed, n * c->d_model);
        narrow_means(a->z.data, job.z, c->n_layer * n * width);
        narrow_means(a->post.data, job.post, c->n_layer * n * c->d_mlp);
    }
    asp_arena_free(&sums);
    return status;
}

void asp_means_free(asp_means *means) { asp_arena_free(&means->arena); }
