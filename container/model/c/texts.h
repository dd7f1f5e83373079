/* Attention within texts that lie one after another: every row sees all rows of its text. */

#pragma once
#include "team.h"

#define MANY 32 /* rows that share what is turned of the keys */
#define FEW 8   /* rows whose sums stay in registers */

struct texts {
    const void *qkv;          /* [rows, 3, heads, dim] */
    void *seen;               /* [rows, heads, dim] */
    const int64_t *starts;    /* [num_texts + 1]: the first row of each */
    const int64_t *first_item; /* [num_texts + 1] */
    int64_t num_texts, heads, dim;
    float scale;
    int bf16;
};

/* scores[g][j] = q_g k_j, of 16 keys that are columns of `turned`. */
INLINE void score_few(const struct texts *t, int64_t row, int64_t head, const floats *turned,
                      float *scores, int64_t length, const int n, const int bf16) {
    const int64_t dim = t->dim, width = 3 * t->heads * dim;
    floats part[FEW];
    for (int g = 0; g < n; g++) part[g] = all(0.0f);
    for (int64_t i = 0; i < dim; i += LANES) {
        float q[FEW][LANES];
        for (int g = 0; g < n; g++)
            store(q[g], 0, load(t->qkv, (row + g) * width + head * dim + i, bf16) * t->scale, 0);
        for (int j = 0; j < LANES; j++)
            for (int g = 0; g < n; g++) part[g] += turned[i + j] * q[g][j];
    }
    for (int g = 0; g < n; g++) store(scores + g * length, 0, part[g], 0);
}

/* What `n` rows see, their weights given; `dim` is at most 64 a time, so that sums stay in registers. */
INLINE void see_few(const struct texts *t, const int64_t first, const int64_t count, int64_t row,
                    int64_t head, const float *weights, int64_t length, const int n, const int bf16) {
    const int64_t dim = t->dim, width = 3 * t->heads * dim;
    for (int64_t i = 0; i < dim; i += 2 * LANES) {
        const int two = i + LANES < dim;
        floats sum[FEW][2];
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
                store(t->seen, ((row + g) * t->heads + head) * dim + i + v * LANES, sum[g][v], bf16);
    }
}

/* Scores become weights, which add up to one; what lies past `count` has no weight. */
INLINE void weigh(float *scores, int64_t count) {
    const ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
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
    float share = 1.0f / sum(total);
    for (int64_t j = 0; j < count; j += LANES) store(scores, j, load(scores, j, 0) * share, 0);
}

#define FEW_ROWS(n, call) \
    switch (n) {          \
        case 1: call(1); break; case 2: call(2); break; case 3: call(3); break; case 4: call(4); break; \
        case 5: call(5); break; case 6: call(6); break; case 7: call(7); break; default: call(8); \
    }

/* Rows `from` to `to` of a text of `count` rows from `first` on, one head. */
INLINE void attend_rows(const struct texts *t, int64_t first, int64_t count, int64_t from, int64_t to,
                        int64_t head, const int bf16) {
    const int64_t dim = t->dim, width = 3 * t->heads * dim, length = (count + LANES - 1) / LANES * LANES;
    float scores[MANY * length];
    floats turned[MAX_DIM];
    for (int64_t j = 0; j < count; j += LANES) {
        for (int64_t i = 0; i < dim; i += LANES) {
            for (int k = 0; k < LANES; k++) {
                int64_t key = first + (j + k < count ? j + k : count - 1);
                turned[i + k] = load(t->qkv, key * width + (t->heads + head) * dim + i, bf16);
            }
            transpose(turned + i);
        }
        for (int64_t row = from; row < to; row += FEW) {
#define SCORE(n) score_few(t, row, head, turned, scores + (row - from) * length + j, length, n, bf16)
            FEW_ROWS(to - row, SCORE)
        }
    }
    for (int64_t row = from; row < to; row++) weigh(scores + (row - from) * length, count);
    for (int64_t row = from; row < to; row += FEW) {
#define SEE(n) see_few(t, first, count, row, head, scores + (row - from) * length, length, n, bf16)
        FEW_ROWS(to - row, SEE)
    }
}

static void texts_work(const void *what, int64_t first, int64_t last, int64_t ahead) {
    (void)ahead;
    const struct texts *t = what;
    for (int64_t item = first; item < last; item++) {
        int64_t low = 0, high = t->num_texts; /* first_item[low] <= item < first_item[high] */
        while (high - low > 1) {
            int64_t middle = (low + high) / 2;
            if (t->first_item[middle] <= item) low = middle;
            else high = middle;
        }
        int64_t place = item - t->first_item[low], begin = t->starts[low], end = t->starts[low + 1];
        int64_t from = begin + place / t->heads * MANY, to = from + MANY < end ? from + MANY : end;
        if (t->bf16) attend_rows(t, begin, end - begin, from, to, place % t->heads, 1);
        else attend_rows(t, begin, end - begin, from, to, place % t->heads, 0);
    }
}

static void texts_way(struct member *me, const void *what) {
    const struct texts *t = what;
    share(me, texts_work, t, t->first_item[t->num_texts], 1);
}
