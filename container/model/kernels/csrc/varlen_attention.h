/* Bidirectional attention within concatenated, unpadded texts: every row attends to its whole text. */

#pragma once
#include "thread_pool.h"

#define TILE_ROWS 32   /* query rows that share one transposed key tile */
#if LANES == 8
#define REG_ROWS 4     /* query rows whose sums stay in registers */
#else
#define REG_ROWS 8
#endif
#define LONG_TEXT 2048 /* longer texts use tiles of REG_ROWS, so that scores fit the stack */

struct varlen {
    const void *qkv;          /* [rows, 3, heads, dim] */
    void *attn_out;               /* [rows, heads, dim] */
    const int64_t *starts;    /* [num_texts + 1]: the first row of each */
    const int64_t *first_item; /* [num_texts + 1] */
    int64_t num_texts, heads, dim;
    float scale;
    int bf16;
};

INLINE int64_t rows_together(int64_t count) { return count > LONG_TEXT ? REG_ROWS : TILE_ROWS; }

/* scores[g][j] = q_g k_j for LANES keys, the columns of `transposed`. */
INLINE void score_rows(const struct varlen *t, int64_t row, int64_t head, const floats *transposed,
                      float *scores, int64_t length, const int n, const int bf16) {
    const int64_t dim = t->dim, width = 3 * t->heads * dim;
    floats part[REG_ROWS];
    for (int g = 0; g < n; g++) part[g] = all(0.0f);
    for (int64_t i = 0; i < dim; i += LANES) {
        float q[REG_ROWS][LANES];
        for (int g = 0; g < n; g++)
            store(q[g], 0, load(t->qkv, (row + g) * width + head * dim + i, bf16) * t->scale, 0);
        for (int j = 0; j < LANES; j++)
            for (int g = 0; g < n; g++) part[g] += transposed[i + j] * q[g][j];
    }
    for (int g = 0; g < n; g++) store(scores + g * length, 0, part[g], 0);
}

/* Sum the values of `n` rows by their weights, two vectors at a time, so that sums stay in registers. */
INLINE void sum_values(const struct varlen *t, const int64_t first, const int64_t count, int64_t row,
                    int64_t head, const float *weights, int64_t length, const int n, const int bf16) {
    const int64_t dim = t->dim, width = 3 * t->heads * dim;
    for (int64_t i = 0; i < dim; i += 2 * LANES) {
        const int two = i + LANES < dim;
        floats sum[REG_ROWS][2];
        for (int g = 0; g < n; g++) sum[g][0] = sum[g][1] = all(0.0f);
        for (int64_t j = 0; j < count; j++) {
            int64_t place = (first + j) * width + (2 * t->heads + head) * dim + i;
            floats a = load(t->qkv, place, bf16), b = two ? load(t->qkv, place + LANES, bf16) : a;
            for (int g = 0; g < n; g++) {
                sum[g][0] += a * weights[g * length + j];
                sum[g][1] += b * weights[g * length + j];
            }
        }
        for (int g = 0; g < n; g++)
            for (int v = 0; v <= two; v++)
                store(t->attn_out, ((row + g) * t->heads + head) * dim + i + v * LANES, sum[g][v], bf16);
    }
}

#if HAS_PAIRS

/* score_rows with pairs of bfloat16: `transposed` has a vector for each two elements of a head. */
INLINE void score_pairs(const struct varlen *t, int64_t row, int64_t head, const floats *transposed,
                        float *scores, int64_t length, const int n) {
    const int64_t dim = t->dim, width = 3 * t->heads * dim;
    const uint16_t *q = (const uint16_t *)t->qkv + row * width + head * dim;
    floats part[REG_ROWS];
    for (int g = 0; g < n; g++) part[g] = all(0.0f);
    for (int64_t i = 0; i < dim; i += 2)
        for (int g = 0; g < n; g++)
            part[g] = add_pairs(part[g], transposed[i / 2], broadcast_pair(q + g * width + i));
    for (int g = 0; g < n; g++) store(scores + g * length, 0, part[g] * t->scale, 0);
}

/* sum_values with two rows of values at a time; weights are bfloat16. */
INLINE void sum_value_pairs(const struct varlen *t, int64_t first, int64_t count, int64_t row, int64_t head,
                      const uint16_t *weights, int64_t length, const int n) {
    const int64_t dim = t->dim, width = 3 * t->heads * dim;
    for (int64_t i = 0; i < dim; i += 2 * LANES) {
        floats sum[REG_ROWS][2];
        for (int g = 0; g < n; g++) sum[g][0] = sum[g][1] = all(0.0f);
        for (int64_t j = 0; j < count; j += 2) {
            const uint16_t *v = (const uint16_t *)t->qkv + (first + j) * width + (2 * t->heads + head) * dim + i;
            floats low, high;
            interleave(v, j + 1 < count ? v + width : v, &low, &high);
            for (int g = 0; g < n; g++) {
                floats weight = broadcast_pair(weights + g * length + j);
                sum[g][0] = add_pairs(sum[g][0], low, weight);
                sum[g][1] = add_pairs(sum[g][1], high, weight);
            }
        }
        for (int g = 0; g < n; g++)
            for (int v = 0; v < 2; v++)
                store(t->attn_out, ((row + g) * t->heads + head) * dim + i + v * LANES, sum[g][v], 1);
    }
}

#endif

/* Softmax over the first `count` scores; later weights are zero. `weights` may be `scores`. */
INLINE void softmax_row(float *scores, int64_t count, void *weights, const int bf16) {
    const ints lanes = LANE_NUMBERS;
    floats most = all(-__builtin_inff()), total = all(0.0f);
    for (int64_t j = 0; j < count; j += LANES)
        most = larger(pick(lanes + (int32_t)j < (int32_t)count, load(scores, j, 0), most), most);
    float highest = largest(most);
    for (int64_t j = 0; j < count; j += LANES) {
        floats weight = exponential(load(scores, j, 0) - highest);
        weight = pick(lanes + (int32_t)j < (int32_t)count, weight, all(0.0f));
        store(scores, j, weight, 0);
        total += weight;
    }
    float scale = 1.0f / sum(total);
    for (int64_t j = 0; j < count; j += LANES) store(weights, j, load(scores, j, 0) * scale, bf16);
}

#if REG_ROWS == 8
#define FEW_ROWS(n, call) \
    switch (n) {          \
        case 1: call(1); break; case 2: call(2); break; case 3: call(3); break; case 4: call(4); break; \
        case 5: call(5); break; case 6: call(6); break; case 7: call(7); break; default: call(8); \
    }
#else
#define FEW_ROWS(n, call) \
    switch (n) {          \
        case 1: call(1); break; case 2: call(2); break; case 3: call(3); break; default: call(4); \
    }
#endif

/* Transpose LANES keys of one head, from `key` on; past the last key, the last one repeats. With
 * `pairs`, elements are pairs of bfloat16 numbers. */
INLINE void transpose_keys(const struct varlen *t, int64_t key, int64_t last, int64_t head, floats *transposed,
                      const int bf16, const int pairs) {
    const int64_t dim = t->dim, width = 3 * t->heads * dim;
    for (int64_t i = 0; i < dim; i += pairs ? 2 * LANES : LANES) {
        floats *x = transposed + (pairs ? i / 2 : i);
        for (int k = 0; k < LANES; k++) {
            int64_t place = (key + k < last ? key + k : last) * width + (t->heads + head) * dim + i;
            x[k] = pairs ? load((const uint16_t *)t->qkv + place, 0, 0) : load(t->qkv, place, bf16);
        }
        transpose(x);
    }
}

/* Attend with rows `from` to `to` of a text of `count` rows from `first` on, for one head. */
INLINE void attend_rows(const struct varlen *t, int64_t first, int64_t count, int64_t from, int64_t to,
                        int64_t head, const int bf16, const int pairs) {
    const int64_t length = (count + LANES - 1) / LANES * LANES;
    float scores[rows_together(count) * length];
    floats transposed[MAX_DIM];
    for (int64_t j = 0; j < count; j += LANES) {
        transpose_keys(t, first + j, first + count - 1, head, transposed, bf16, pairs);
        for (int64_t row = from; row < to; row += REG_ROWS) {
            float *at_row = scores + (row - from) * length + j;
#if HAS_PAIRS
#define SCORE_PAIRS(n) score_pairs(t, row, head, transposed, at_row, length, n)
            if (pairs) {
                FEW_ROWS(to - row, SCORE_PAIRS)
                continue;
            }
#endif
#define SCORE(n) score_rows(t, row, head, transposed, at_row, length, n, bf16)
            FEW_ROWS(to - row, SCORE)
        }
    }
    for (int64_t row = from; row < to; row += REG_ROWS) {
        float *at_row = scores + (row - from) * length;
#if HAS_PAIRS
#define SEE_PAIRS(n) sum_value_pairs(t, first, count, row, head, weights, length, n)
        if (pairs) {
            uint16_t weights[REG_ROWS * length];
            for (int64_t g = 0; g < REG_ROWS && row + g < to; g++)
                softmax_row(at_row + g * length, count, weights + g * length, 1);
            FEW_ROWS(to - row, SEE_PAIRS)
            continue;
        }
#endif
#define SEE(n) sum_values(t, first, count, row, head, at_row, length, n, bf16)
        for (int64_t g = 0; g < REG_ROWS && row + g < to; g++)
            softmax_row(at_row + g * length, count, at_row + g * length, 0);
        FEW_ROWS(to - row, SEE)
    }
}

static void varlen_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    (void)ahead;
    const struct varlen *t = args;
    for (int64_t item = first; item < last; item++) {
        int64_t text = owner_of(item, t->first_item, t->num_texts);
        int64_t place = item - t->first_item[text], begin = t->starts[text], end = t->starts[text + 1];
        int64_t many = rows_together(end - begin), from = begin + place / t->heads * many;
        int64_t to = from + many < end ? from + many : end;
        int64_t head = place % t->heads;
        if (!t->bf16) attend_rows(t, begin, end - begin, from, to, head, 0, 0);
        else if (HAS_PAIRS && t->dim % (2 * LANES) == 0)
            attend_rows(t, begin, end - begin, from, to, head, 1, 1);
        else attend_rows(t, begin, end - begin, from, to, head, 1, 0);
    }
}

static void texts_task(struct worker *worker, const void *args) {
    const struct varlen *t = args;
    run_phase(worker, varlen_work, t, t->first_item[t->num_texts], 1, 0);
}
