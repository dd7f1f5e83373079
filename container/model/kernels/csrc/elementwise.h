/* Ops on single rows: norms, SiLU-and-mul, argmax and log-sum-exp. */

#pragma once
#include "thread_pool.h"

/* ---- y = x + y; out = y / sqrt(mean(y^2) + eps) * weight ---- */

struct norm {
    const void *x, *weight; /* [rows, width] or null; [width] or null: no norm */
    void *y, *out;          /* [rows, width] */
    int64_t rows, width;
    float eps;
    int bf16;
};

INLINE void norm_row(const void *y, const void *weight, void *out, int64_t width, float eps, int bf16) {
    floats squares = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        floats part = load(y, i, bf16);
        squares += part * part;
    }
    float scale = 1.0f / __builtin_sqrtf(sum(squares) / (float)width + eps);
    for (int64_t i = 0; i < width; i += LANES)
        store(out, i, load(y, i, bf16) * scale * load(weight, i, bf16), bf16);
}

INLINE void norm_rows(const struct norm *n, int64_t first, int64_t last, int bf16) {
    for (int64_t row = first; row < last; row++) {
        void *y = (void *)at(n->y, row * n->width, bf16);
        if (n->x) {
            const void *x = at(n->x, row * n->width, bf16);
            for (int64_t i = 0; i < n->width; i += LANES)
                store(y, i, load(x, i, bf16) + load(y, i, bf16), bf16);
        }
        if (n->weight)
            norm_row(y, n->weight, (void *)at(n->out, row * n->width, bf16), n->width, n->eps, bf16);
    }
}

static void norm_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    (void)ahead;
    const struct norm *n = args;
    if (n->bf16) norm_rows(n, first, last, 1);
    else norm_rows(n, first, last, 0);
}

static void norm_task(struct worker *worker, const void *args) {
    run_phase(worker, norm_work, args, ((const struct norm *)args)->rows, 4, 0);
}

void add_norm(const void *x, void *y, const void *weight, void *out, float eps,
              int64_t rows, int64_t width, int bf16) {
    struct norm n = {x, weight, y, out, rows, width, eps, bf16};
    struct phase phases[1] = {{0}};
    run_parallel(norm_task, &n, phases, rows * width, rows / 4);
}

/* ---- x = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias ---- */

struct layer_norm {
    void *x;                   /* [rows, width] */
    const void *weight, *bias; /* [width] */
    int64_t rows, width;
    float eps;
    int bf16;
};

INLINE void layer_norm_rows(const struct layer_norm *n, int64_t first, int64_t last, int bf16) {
    for (int64_t row = first; row < last; row++) {
        void *x = (void *)at(n->x, row * n->width, bf16);
        floats total = {0}, squares = {0};
        for (int64_t i = 0; i < n->width; i += LANES) total += load(x, i, bf16);
        float mean = sum(total) / (float)n->width;
        for (int64_t i = 0; i < n->width; i += LANES) {
            floats off = load(x, i, bf16) - mean;
            squares += off * off;
        }
        float scale = 1.0f / __builtin_sqrtf(sum(squares) / (float)n->width + n->eps);
        for (int64_t i = 0; i < n->width; i += LANES) {
            floats normed = (load(x, i, bf16) - mean) * scale;
            store(x, i, normed * load(n->weight, i, bf16) + load(n->bias, i, bf16), bf16);
        }
    }
}

static void layer_norm_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    (void)ahead;
    const struct layer_norm *n = args;
    if (n->bf16) layer_norm_rows(n, first, last, 1);
    else layer_norm_rows(n, first, last, 0);
}

static void layer_norm_task(struct worker *worker, const void *args) {
    run_phase(worker, layer_norm_work, args, ((const struct layer_norm *)args)->rows, 4, 0);
}

/* ---- out = silu(gate) * up, silu(x) = x / (1 + e^-x); a row is its gate, then its up ---- */

struct gated {
    const void *gate_up; /* [rows, 2 * width] */
    void *out;           /* [rows, width] */
    int64_t rows, width;
    int bf16;
};

INLINE void gated_rows(const struct gated *g, int64_t first, int64_t last, int bf16) {
    for (int64_t row = first; row < last; row++)
        for (int64_t i = 0; i < g->width; i += LANES) {
            floats gate = load(g->gate_up, 2 * row * g->width + i, bf16);
            floats up = load(g->gate_up, (2 * row + 1) * g->width + i, bf16);
            store(g->out, row * g->width + i, gate / (1.0f + exponential(-gate)) * up, bf16);
        }
}

static void gated_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    (void)ahead;
    const struct gated *g = args;
    if (g->bf16) gated_rows(g, first, last, 1);
    else gated_rows(g, first, last, 0);
}

static void gated_task(struct worker *worker, const void *args) {
    run_phase(worker, gated_work, args, ((const struct gated *)args)->rows, 2, 0);
}

void silu_mul(const void *gate_up, void *out, int64_t rows, int64_t width, int bf16) {
    struct gated g = {gate_up, out, rows, width, bf16};
    struct phase phases[1] = {{0}};
    run_parallel(gated_task, &g, phases, rows * width, rows / 2);
}

/* ---- out = argmax of each row of x, float32 [rows, width]; the first one on ties ---- */

struct best {
    const float *x;
    int64_t *out;
    int64_t rows, width;
};

static void best_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    (void)ahead;
    const struct best *b = args;
    for (int64_t row = first; row < last; row++) {
        const float *x = b->x + row * b->width;
        floats most = all(-__builtin_inff());
        int64_t i = 0;
        for (; i + LANES <= b->width; i += LANES) most = larger(load(x, i, 0), most);
        float highest = largest(most);
        for (; i < b->width; i++) highest = x[i] > highest ? x[i] : highest;
        for (i = 0; i < b->width - 1 && x[i] != highest;) i++;
        b->out[row] = x[i] == highest ? i : 0;
    }
}

static void best_task(struct worker *worker, const void *args) {
    run_phase(worker, best_work, args, ((const struct best *)args)->rows, 1, 0);
}

void argmax(const float *x, int64_t *out, int64_t rows, int64_t width) {
    struct best b = {x, out, rows, width};
    struct phase phases[1] = {{0}};
    run_parallel(best_task, &b, phases, rows * width / 2, rows);
}


/* ---- out = m = max(x), sum(e^(x - m)) of each row of x, float32 [rows, width] ---- */

struct totals {
    const float *x;
    float *out; /* [rows, 2] */
    int64_t rows, width;
};

static void total_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    (void)ahead;
    const struct totals *t = args;
    for (int64_t row = first; row < last; row++) {
        const float *x = t->x + row * t->width;
        floats most = all(-__builtin_inff()), total = all(0.0f);
        int64_t i = 0;
        for (; i + LANES <= t->width; i += LANES) most = larger(load(x, i, 0), most);
        float highest = largest(most), rest = 0.0f;
        for (int64_t j = i; j < t->width; j++) highest = x[j] > highest ? x[j] : highest;
        for (i = 0; i + LANES <= t->width; i += LANES) total += exponential(load(x, i, 0) - highest);
        for (; i < t->width; i++) rest += exponential(all(x[i] - highest))[0];
        t->out[2 * row] = highest;
        t->out[2 * row + 1] = sum(total) + rest;
    }
}

static void total_task(struct worker *worker, const void *args) {
    run_phase(worker, total_work, args, ((const struct totals *)args)->rows, 1, 0);
}

void exp_totals(const float *x, float *out, int64_t rows, int64_t width) {
    struct totals t = {x, out, rows, width};
    struct phase phases[1] = {{0}};
    run_parallel(total_task, &t, phases, 4 * rows * width, rows);
}
