/* Attention of a prompt's rows: as `attend_few`, with more queries for each load from the cache.
 *
 * An item is PROMPT_QUERIES queries of one KV head. For each tile of TILE_KEYS positions, its keys are
 * transposed and its values widened once; then both products run in blocks of BLOCK_ROWS queries by two
 * vectors, whose sums stay in registers. Softmax is by running maximum (Milakov and Gimelshein, 2018; Dao
 * et al., 2022). Tiles start at multiples of TILE_KEYS, a query's sums have a fixed order, and masked
 * positions add an exact zero, so a result does not depend on how a prompt is split into chunks. */

#pragma once
#include "attention.h"

#define BLOCK_ROWS (LANES == 4 ? 8 : 6) /* as many as the registers hold */
#define PROMPT_QUERIES 96 /* a multiple of BLOCK_ROWS */
#define TILE_KEYS 64
#define PANEL (2 * LANES) /* keys of a block */
#define PANELS (TILE_KEYS / PANEL)

/* The queries of an item; those past the last repeat it. Rows of `dim` numbers, without gaps: with gaps of
 * a power of two they would share few lines of the cache. */
struct prompt {
    float q[PROMPT_QUERIES * MAX_DIM], attn_out[PROMPT_QUERIES * MAX_DIM];
    floats total[PROMPT_QUERIES];
    float most[PROMPT_QUERIES];                          /* the highest score so far */
    int64_t first[PROMPT_QUERIES], last[PROMPT_QUERIES]; /* positions that a query sees */
    int64_t to[PROMPT_QUERIES];
};

struct tile {
    floats keys[PANELS * MAX_DIM][2]; /* [panel, dim], transposed */
    float values[TILE_KEYS * MAX_DIM];
    int64_t start; /* its first position */
};

INLINE void load_queries(struct prompt *p, const struct attention *a, const int64_t *span, int64_t kv_head,
                         int64_t from, int64_t n, const int bf16) {
    const struct layer *l = a->layer;
    const int64_t dim = l->dim, group = l->heads / l->kv_heads, width = l->heads + 2 * l->kv_heads;
    for (int64_t g = 0; g < (n + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS; g++) {
        int64_t number = from + (g < n ? g : n - 1);
        int64_t row = span[0] + number / group, head = kv_head * group + number % group;
        p->last[g] = span[2] - span[1] + number / group;
        p->first[g] = l->window && p->last[g] >= l->window ? p->last[g] + 1 - l->window : 0;
        p->to[g] = (row * l->heads + head) * dim;
        begin_softmax(l, head, p->most + g, p->total + g);
        for (int64_t i = 0; i < dim; i += LANES) {
            store(p->q, g * dim + i, load(a->qkv, (row * width + head) * dim + i, bf16), 0);
            store(p->attn_out, g * dim + i, all(0.0f), 0);
        }
    }
}

/* Read positions `start` to `end` of a tile from the cache; the keys and values after them are zero. */
INLINE void load_tile(struct tile *t, const struct attention *a, const int64_t *blocks, int64_t kv_head,
                      int64_t start, int64_t end, const int bf16) {
    const struct layer *l = a->layer;
    const int64_t dim = l->dim, size = a->step->block_size;
    int64_t cached[TILE_KEYS];
    t->start = start;
    for (int64_t j = 0; j < TILE_KEYS; j++) {
        int64_t position = start + j < end ? start + j : end - 1;
        cached[j] = ((blocks[position / size] * l->kv_heads + kv_head) * size + position % size) * dim;
        for (int64_t i = 0; i < dim; i += LANES)
            store(t->values, j * dim + i, start + j < end ? load(l->values, cached[j] + i, bf16) : all(0.0f), 0);
    }
    for (int64_t j = 0; j < TILE_KEYS; j += LANES)
        for (int64_t i = 0; i < dim; i += LANES) {
            floats x[LANES];
            for (int64_t k = 0; k < LANES; k++)
                x[k] = start + j + k < end ? load(l->keys, cached[j + k] + i, bf16) : all(0.0f);
            transpose(x);
            for (int64_t k = 0; k < LANES; k++) t->keys[j / PANEL * dim + i + k][j % PANEL / LANES] = x[k];
        }
}

/* Multiply a block of queries with a panel's keys. */
INLINE void score_block(const struct tile *t, const struct prompt *p, int64_t g, int64_t panel, int64_t dim,
                        floats scores[BLOCK_ROWS][2]) {
    const float *q = p->q + g * dim;
    const floats(*keys)[2] = t->keys + panel * dim;
    floats part[BLOCK_ROWS][2] = {{{0}}};
    for (int64_t i = 0; i < dim; i++) {
        floats a = keys[i][0], b = keys[i][1];
        for (int r = 0; r < BLOCK_ROWS; r++) {
            part[r][0] += a * q[r * dim + i];
            part[r][1] += b * q[r * dim + i];
        }
    }
    for (int r = 0; r < BLOCK_ROWS; r++) scores[r][0] = part[r][0], scores[r][1] = part[r][1];
}

/* Hide the positions of a panel that a query does not see. */
INLINE void mask_panel(const struct prompt *p, int64_t g, int64_t position, floats *scores) {
    const ints lanes = LANE_NUMBERS;
    for (int v = 0; v < 2; v++) {
        ints at_lane = lanes + (int32_t)(position + v * LANES);
        ints is_visible = (at_lane >= (int32_t)p->first[g]) & (at_lane <= (int32_t)p->last[g]);
        scores[v] = pick(is_visible, scores[v], all(-__builtin_inff()));
    }
}

/* Turn a query's scores into weights; rescale its sums if the maximum is new. */
INLINE void weigh_row(struct prompt *p, int64_t g, int64_t panels, int64_t dim,
                      floats scores[PANELS][BLOCK_ROWS][2], int64_t r) {
    floats highest = scores[0][r][0];
    for (int64_t panel = 0; panel < panels; panel++)
        highest = larger(larger(highest, scores[panel][r][0]), scores[panel][r][1]);
    float most = largest(highest);
    if (most > p->most[g]) {
        float shrink = exponential(all(p->most[g] - most))[0];
        p->most[g] = most;
        p->total[g] *= shrink;
        for (int64_t i = 0; i < dim; i += LANES)
            store(p->attn_out, g * dim + i, load(p->attn_out, g * dim + i, 0) * shrink, 0);
    }
    for (int64_t panel = 0; panel < panels; panel++)
        for (int v = 0; v < 2; v++) {
            floats score = scores[panel][r][v], weight = exponential(score - p->most[g]);
            weight = pick(score > -__builtin_inff(), weight, all(0.0f));
            p->total[g] += weight;
            scores[panel][r][v] = weight;
        }
}

/* Add the values of `count` positions by their weights, two vectors at a time. */
INLINE void add_values(struct prompt *p, const struct tile *t, int64_t g, int64_t count, int64_t dim,
                       const float weights[PANELS][BLOCK_ROWS][PANEL]) {
    for (int64_t i = 0; i < dim; i += 2 * LANES) {
        const int two = i + LANES < dim;
        floats part[BLOCK_ROWS][2];
        for (int r = 0; r < BLOCK_ROWS; r++) {
            part[r][0] = load(p->attn_out, (g + r) * dim + i, 0);
            part[r][1] = two ? load(p->attn_out, (g + r) * dim + i + LANES, 0) : all(0.0f);
        }
        for (int64_t j = 0; j < count; j += PANEL) {
            const float(*weight)[PANEL] = weights[j / PANEL];
            for (int64_t k = 0; k < (count - j < PANEL ? count - j : PANEL); k++) {
                const float *value = t->values + (j + k) * dim + i;
                floats a = load(value, 0, 0), b = load(value, two * LANES, 0);
                for (int r = 0; r < BLOCK_ROWS; r++) {
                    part[r][0] += a * weight[r][k];
                    part[r][1] += b * weight[r][k];
                }
            }
        }
        for (int r = 0; r < BLOCK_ROWS; r++) {
            store(p->attn_out, (g + r) * dim + i, part[r][0], 0);
            if (two) store(p->attn_out, (g + r) * dim + i + LANES, part[r][1], 0);
        }
    }
}

INLINE void attend_block(struct prompt *p, const struct tile *t, int64_t g, int64_t dim) {
    union {
        floats vectors[PANELS][BLOCK_ROWS][2];
        float numbers[PANELS][BLOCK_ROWS][PANEL];
    } scores;
    const int64_t end = p->last[g + BLOCK_ROWS - 1] + 1 - t->start;
    const int64_t count = end < TILE_KEYS ? end : TILE_KEYS, panels = (count + PANEL - 1) / PANEL;
    const int is_whole = t->start >= p->first[g + BLOCK_ROWS - 1] && t->start + TILE_KEYS - 1 <= p->last[g];
    for (int64_t panel = 0; panel < panels; panel++) {
        score_block(t, p, g, panel, dim, scores.vectors[panel]);
        for (int r = 0; r < BLOCK_ROWS && !is_whole; r++)
            mask_panel(p, g + r, t->start + panel * PANEL, scores.vectors[panel][r]);
    }
    for (int r = 0; r < BLOCK_ROWS; r++) weigh_row(p, g + r, panels, dim, scores.vectors, r);
    add_values(p, t, g, count, dim, scores.numbers);
}

/* Attend with `n` queries of one KV head of one sequence, from number `from` on, numbered as in
 * `attend_few`. */
INLINE void attend_prompt(const struct attention *a, const int64_t *span, int64_t kv_head, int64_t from,
                          int64_t n, const int bf16) {
    struct prompt p;
    struct tile t;
    const int64_t dim = a->layer->dim, *blocks = a->step->blocks + span[3];
    if (n < 1) __builtin_unreachable();
    load_queries(&p, a, span, kv_head, from, n, bf16);
    for (int64_t start = p.first[0] / TILE_KEYS * TILE_KEYS; start <= p.last[n - 1]; start += TILE_KEYS) {
        load_tile(&t, a, blocks, kv_head, start, p.last[n - 1] + 1, bf16);
        for (int64_t g = 0; g < n; g += BLOCK_ROWS)
            if (p.last[g + BLOCK_ROWS - 1] >= start && p.first[g] < start + TILE_KEYS)
                attend_block(&p, &t, g, dim);
    }
    for (int64_t g = 0; g < n; g++) {
        float scale = 1.0f / sum(p.total[g]);
        for (int64_t i = 0; i < dim; i += LANES)
            store(a->out, p.to[g] + i, load(p.attn_out, g * dim + i, 0) * scale, bf16);
    }
}

static void attend_prompt_rows(const struct attention *a, const int64_t *span, int64_t kv_head, int64_t from,
                               int64_t n) {
    if (a->layer->bf16) attend_prompt(a, span, kv_head, from, n, 1);
    else attend_prompt(a, span, kv_head, from, n, 0);
}
