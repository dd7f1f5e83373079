/* Attention over the paged cache. */

#pragma once
#include "thread_pool.h"

#define QUERIES 8    /* queries that share each load from the cache */
#define QUERY_SLOTS (QUERIES > LANES ? QUERIES : LANES) /* of whole vectors that hold a number for each query */

struct step {              /* the same for all layers */
    const void *cos, *sin; /* [rows, dim] */
    const int64_t *slots;  /* [rows]: block * block_size + offset, the slot of a row's k and v */
    const int64_t *spans;  /* [num_spans, 4], one sequence each: first row, number of rows, context
                              length of the last row, and the index in `blocks` of its first block id */
    const int64_t *blocks;
    int64_t rows, num_spans, block_size;
    int64_t num_decodes; /* the first spans, of one row each; the others are of prompts */
};

struct layer {
    void *keys, *values;  /* [blocks * kv_heads, block_size, dim] */
    const void *norms;    /* [heads + kv_heads, dim], RMSNorm weights of q and k, or null */
    int64_t heads, kv_heads, dim;
    const float *sinks;   /* [heads], scores of the softmax that no position has, or null */
    int64_t window;       /* positions that a row attends to; 0: all */
    float scale, eps;
    int bf16;
};

struct attention {
    const struct step *step;
    const struct layer *layer;
    void *qkv, *out;          /* [rows, (heads + 2 * kv_heads) * dim], [rows, heads * dim] */
    const int64_t *first_item; /* [num_spans + 1] */
};

/* (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of a head (Su et al., 2021). */
INLINE void rotate_head(float *x, const float *cos, const float *sin, int64_t dim, float scale) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = (a * cos[i] - b * sin[i]) * scale;
        x[i + half] = (b * cos[i + half] + a * sin[i + half]) * scale;
    }
}

INLINE void rotate_rows(const struct attention *a, int64_t first, int64_t last, int bf16) {
    const struct step *s = a->step;
    const struct layer *l = a->layer;
    int64_t dim = l->dim, all_heads = l->heads + 2 * l->kv_heads;
    float x[MAX_DIM], cos[MAX_DIM], sin[MAX_DIM];
    for (int64_t row = first; row < last; row++) {
        for (int64_t i = 0; i < dim; i += LANES) {
            store(cos, i, load(s->cos, row * dim + i, bf16), 0);
            store(sin, i, load(s->sin, row * dim + i, bf16), 0);
        }
        int64_t block = s->slots[row] / s->block_size, offset = s->slots[row] % s->block_size;
        for (int64_t head = 0; head < all_heads; head++) {
            int64_t from = (row * all_heads + head) * dim;
            int is_query = head < l->heads, is_value = head >= l->heads + l->kv_heads;
            int64_t kv_head = head - l->heads - (is_value ? l->kv_heads : 0);
            int64_t cached = ((block * l->kv_heads + kv_head) * s->block_size + offset) * dim;
            for (int64_t i = 0; i < dim; i += LANES) store(x, i, load(a->qkv, from + i, bf16), 0);
            if (l->norms && !is_value) {
                float normed[MAX_DIM];
                const void *weight = at(l->norms, head * dim, bf16);
                floats squares = {0};
                for (int64_t i = 0; i < dim; i += LANES) squares += load(x, i, 0) * load(x, i, 0);
                float scale = 1.0f / __builtin_sqrtf(sum(squares) / (float)dim + l->eps);
                for (int64_t i = 0; i < dim; i += LANES)
                    store(normed, i, load(x, i, 0) * scale * load(weight, i, bf16), 0);
                __builtin_memcpy(x, normed, (uint64_t)dim * sizeof(float));
            }
            if (!is_value) rotate_head(x, cos, sin, dim, is_query ? l->scale : 1.0f);
            void *to = is_query ? a->qkv : is_value ? l->values : l->keys;
            for (int64_t i = 0; i < dim; i += LANES)
                store(to, (is_query ? from : cached) + i, load(x, i, 0), bf16);
        }
    }
}

static void rotate_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    (void)ahead;
    const struct attention *a = args;
    if (a->layer->bf16) rotate_rows(a, first, last, 1);
    else rotate_rows(a, first, last, 0);
}

/* Iterates over a head's positions in the cache, LANES at a time. Positions past the last repeat it;
 * their scores are masked. */
struct places {
    const int64_t *blocks;
    int64_t kv_heads, kv_head, block_size, dim, position, last;
};

INLINE void next_tile(struct places *p, int64_t *cached) {
    const int64_t *block = p->blocks + (p->position <= p->last ? p->position : p->last) / p->block_size;
    int64_t offset = (p->position <= p->last ? p->position : p->last) % p->block_size;
    for (int j = 0; j < LANES; j++) {
        cached[j] = ((*block * p->kv_heads + p->kv_head) * p->block_size + offset) * p->dim;
        if (p->position + j < p->last && ++offset == p->block_size) offset = 0, block++;
    }
    p->position += LANES;
}

/* Set the running maximum and sum of a query's softmax: with a sink as after a tile whose weight is 1 and
 * whose value is 0. */
INLINE void begin_softmax(const struct layer *l, int64_t head, float *most, floats *total) {
    const ints lanes = LANE_NUMBERS;
    *most = l->sinks ? l->sinks[head] : -__builtin_inff();
    *total = l->sinks ? pick(lanes == 0, all(1.0f), all(0.0f)) : all(0.0f);
}

/* Attend with `n` queries of one KV head of one sequence, from number `from` on: those of its first
 * row's heads, then the next row's. Softmax over tiles of LANES positions with a running maximum (Milakov
 * and Gimelshein, 2018; Dao et al., 2022). Tiles start at multiples of LANES and masked positions add an
 * exact zero, so a result does not depend on the other queries. */
INLINE void attend_few(const struct attention *a, const int64_t *span, int64_t kv_head, int64_t from,
                       const int n, const int bf16) {
    const ints lanes = LANE_NUMBERS;
    const struct step *s = a->step;
    const struct layer *l = a->layer;
    const int64_t dim = l->dim, group = l->heads / l->kv_heads, width = l->heads + 2 * l->kv_heads;
    float q[QUERIES][MAX_DIM], attn_out[QUERIES][MAX_DIM], weights[QUERIES][LANES], most[QUERY_SLOTS];
    floats scores[QUERIES][LANES], total[QUERIES];
    int64_t first[QUERIES], last[QUERIES], to[QUERIES];
    for (int k = 0; k < QUERY_SLOTS; k += LANES) store(most, k, all(-__builtin_inff()), 0);
    for (int g = 0; g < n; g++) {
        int64_t row = span[0] + (from + g) / group, head = kv_head * group + (from + g) % group;
        last[g] = span[2] - span[1] + (from + g) / group;
        first[g] = l->window && last[g] >= l->window ? last[g] + 1 - l->window : 0;
        to[g] = (row * l->heads + head) * dim;
        begin_softmax(l, head, most + g, total + g);
        for (int64_t i = 0; i < dim; i += LANES) {
            store(q[g], i, load(a->qkv, (row * width + head) * dim + i, bf16), 0);
            store(attn_out[g], i, all(0.0f), 0);
        }
    }
    struct places places = {s->blocks + span[3], l->kv_heads, kv_head, s->block_size, dim,
                            first[0] / LANES * LANES, last[n - 1]};
    int64_t ahead[LANES], cached[LANES], next_head[LANES];
    next_tile(&places, ahead);
    for (int j = 0; j < LANES; j++) next_head[j] = ahead[j] + s->block_size * dim;
    for (int64_t tile = first[0] / LANES * LANES; tile <= last[n - 1]; tile += LANES) {
        __builtin_memcpy(cached, ahead, sizeof cached);
        if (tile + LANES <= last[n - 1]) next_tile(&places, ahead);
        else __builtin_memcpy(ahead, next_head, sizeof ahead); /* often needed next */
        for (int j = 0; j < LANES; j++) {
            floats part[QUERIES];
            for (int g = 0; g < n; g++) part[g] = all(0.0f);
            for (int64_t i = 0; i < dim; i += bf16 ? 32 : 16) { /* 64-byte cache lines */
                __builtin_prefetch(at(l->keys, ahead[j] + i, bf16));
                __builtin_prefetch(at(l->values, ahead[j] + i, bf16));
            }
            for (int64_t i = 0; i < dim; i += LANES) {
                floats key = load(l->keys, cached[j] + i, bf16);
                for (int g = 0; g < n; g++) part[g] += key * load(q[g], i, 0);
            }
            for (int g = 0; g < n; g++) scores[g][j] = part[g];
        }
        float now[QUERY_SLOTS];
        int is_new = 0;
        __builtin_memcpy(now, most, sizeof now);
        for (int g = 0; g < n; g++) {
            ints is_visible = (lanes + (int32_t)tile >= (int32_t)first[g])
                         & (lanes + (int32_t)tile <= (int32_t)last[g]);
            scores[g][0] = pick(is_visible, sums(scores[g]), all(-__builtin_inff()));
            float highest = largest(scores[g][0]);
            is_new |= highest > most[g];
            now[g] = highest > most[g] ? highest : most[g];
        }
        if (is_new) { /* rescale the sums so far; by exactly 1 if the maximum is unchanged */
            float shrink[QUERY_SLOTS];
            for (int k = 0; k < QUERY_SLOTS; k += LANES) {
                floats before = load(most, k, 0), after = load(now, k, 0);
                store(shrink, k, pick(after > before, exponential(before - after), all(1.0f)), 0);
            }
            __builtin_memcpy(most, now, sizeof most);
            for (int g = 0; g < n; g++) {
                total[g] *= shrink[g];
                for (int64_t i = 0; i < dim; i += LANES)
                    store(attn_out[g], i, load(attn_out[g], i, 0) * shrink[g], 0);
            }
        }
        for (int g = 0; g < n; g++) {
            floats weight = exponential(scores[g][0] - most[g]);
            weight = pick(scores[g][0] > -__builtin_inff(), weight, all(0.0f));
            total[g] += weight;
            store(weights[g], 0, weight, 0);
        }
        for (int64_t i = 0; i < dim; i += LANES) {
            floats part[QUERIES];
            for (int g = 0; g < n; g++) part[g] = load(attn_out[g], i, 0);
            for (int j = 0; j < LANES; j++) {
                floats value = load(l->values, cached[j] + i, bf16);
                for (int g = 0; g < n; g++) part[g] += value * weights[g][j];
            }
            for (int g = 0; g < n; g++) store(attn_out[g], i, part[g], 0);
        }
    }
    for (int g = 0; g < n; g++) {
        float scale = 1.0f / sum(total[g]);
        for (int64_t i = 0; i < dim; i += LANES)
            store(a->out, to[g] + i, load(attn_out[g], i, 0) * scale, bf16);
    }
}

/* One specialisation for each number of queries, so that sums stay in registers. */
#define FORMS(n)                                                          \
    case n:                                                               \
        if (a->layer->bf16) { attend_few(a, span, kv_head, from, n, 1); } \
        else { attend_few(a, span, kv_head, from, n, 0); }                \
        break;

static void attend_some(const struct attention *a, const int64_t *span, int64_t kv_head, int64_t from,
                        int64_t n) {
    switch (n) { FORMS(1) FORMS(2) FORMS(3) FORMS(4) FORMS(5) FORMS(6) FORMS(7) default: FORMS(8) }
}
