/* GEMM with packed weights: out[r, o] = sum over i of x[r, i] weight[o, i].
 *
 * Each output is summed in float32 in the order of its inputs, so a row's bits depend on no other row.
 * Weights are packed by cpu_linear.py in groups of 48 outputs, three vectors, with consecutive inputs;
 * tiles of eight rows share each load of weights. int8 weights are converted, exactly, to the rows'
 * format, a few inputs at a time.
 */

#pragma once
#include "thread_pool.h"

#define GROUP 48       /* outputs */
#define VECTORS 3      /* of a group */
#define TILE 8         /* rows that share each load of a group's weights */
#define PIECE 64       /* most rows of a piece, the work of a thread on one group */
#define FEW_INPUTS 128 /* inputs of int8 weights converted at once; they fit the L1 cache */
#define INPUTS 4096    /* inputs processed at once; their weights fit the L2 cache */
#define AHEAD 4096     /* prefetch distance in bytes */
#define LINE 64        /* bytes of a cache line */

enum kind { FLOAT32, BFLOAT16, INT8 };

struct weight {
    const void *numbers; /* [groups, inputs, GROUP] of float32, else [groups, inputs / 2, GROUP, 2] */
    const float *scales; /* [groups * GROUP] for int8, else null */
    const void *bias;    /* [outputs] of the rows' format, or null */
    int64_t inputs, outputs;
    int kind;            /* INT8, or the rows' format */
};

struct gemm {
    const struct weight *weight;
    const void *x;        /* [rows, inputs] */
    const void *add;      /* [rows, outputs], added to the rounded result, or null; may be `out` */
    void *out;            /* [rows, outputs] */
    int64_t rows;
    int bf16;             /* the format of x, bias, add and out */
    int fp32_out;             /* 1: out is float32 for every format of x */
    int act;              /* 1: apply GELU */
};

INLINE int64_t num_pieces(int64_t rows) { return (rows + PIECE - 1) / PIECE; }

INLINE int64_t gemm_cost(const struct weight *w, int64_t rows) {
    return rows * w->inputs * w->outputs / 16;
}

INLINE int64_t num_items(const struct weight *w, int64_t rows) {
    return (w->outputs + GROUP - 1) / GROUP * num_pieces(rows);
}

#ifdef __AVX512F__

INLINE void add_two(floats sum[VECTORS], const uint16_t *x, const __m512i w[VECTORS]) {
#ifdef __AVX512BF16__
    __m512bh two = pair(x);
    for (int v = 0; v < VECTORS; v++)
        sum[v] = (floats)_mm512_dpbf16_ps((__m512)sum[v], two, (__m512bh)w[v]);
#else
    (void)sum, (void)x, (void)w;
#endif
}

/* Addresses to prefetch: starting at `from`, `by` bytes further with each step of the sums. */
struct soon {
    const char *from;
    int64_t by;
};

/* Add the products of `count` inputs to the sums of `n` rows, which are `stride` numbers apart. */
INLINE void tile(const void *x, int64_t stride, const void *weights, int64_t count, struct soon soon,
                 floats out[TILE][VECTORS], const int bf16, const int n) {
    floats sum[TILE][VECTORS];
    for (int r = 0; r < n; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = out[r][v];
    for (int64_t i = 0; i < count; i += bf16 ? 2 : 1) {
        const char *from = at(weights, i * GROUP, bf16);
        __m512i w[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            w[v] = _mm512_loadu_si512(from + v * LINE);
            __builtin_prefetch(soon.from + v * LINE);
        }
        soon.from += soon.by;
        for (int r = 0; r < n; r++)
            if (bf16) add_two(sum[r], (const uint16_t *)x + r * stride + i, w);
            else for (int v = 0; v < VECTORS; v++)
                sum[r][v] += ((const float *)x)[r * stride + i] * (floats)w[v];
    }
    for (int r = 0; r < n; r++)
        for (int v = 0; v < VECTORS; v++) out[r][v] = sum[r][v];
}

#define TILES(n) \
    case n: tile(x, stride, weights, count, soon, out, bf16, n); break;

INLINE void some_rows(const void *x, int64_t stride, const void *weights, int64_t count,
                      struct soon soon, floats out[TILE][VECTORS], const int bf16, int64_t n) {
    switch (n) {
        TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7)
        default: tile(x, stride, weights, count, soon, out, bf16, TILE);
    }
}

/* Convert int8 to the rows' format; for bfloat16, pairs of inputs stay adjacent. */
INLINE void widen(const int8_t *from, int64_t count, void *to, const int bf16) {
    for (int64_t i = 0; i < count; i += 2)
        for (int v = 0; v < VECTORS; v++) {
            const int8_t *pairs = from + i * GROUP + v * 2 * LANES;
            __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)pairs)));
            __m512 high = _mm512_cvtepi32_ps(
                _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(pairs + LANES))));
            __builtin_prefetch(pairs + AHEAD);
            if (bf16) {
#ifdef __AVX512BF16__
                _mm512_storeu_si512((uint16_t *)to + i * GROUP + v * 2 * LANES,
                                    (__m512i)_mm512_cvtne2ps_pbh(high, low));
#endif
            } else {
                float *place = (float *)to + i * GROUP + v * LANES;
                floats a = (floats)low, b = (floats)high;
                store(place, 0, SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), 0);
                store(place, GROUP, SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), 0);
            }
        }
}

/* Epilogue of a vector of results: bias, activation, rounding, addition. The last group may be partial. */
INLINE void finish(const struct gemm *p, int64_t row, int64_t first, floats x) {
    const int64_t outputs = p->weight->outputs, place = row * outputs + first;
    const int64_t n = outputs - first < LANES ? outputs - first : LANES;
    const int bf16 = p->bf16;
    if (p->weight->bias) x += load_some(p->weight->bias, first, n, bf16);
    if (p->act) x = gelu(x);
    if (p->add) {
        char rounded[4 * LANES];
        store(rounded, 0, x, bf16);
        x = load(rounded, 0, bf16) + load_some(p->add, place, n, bf16);
    }
    store_some(p->out, place, n, x, bf16 && !p->fp32_out);
}

/* The first tile of a group prefetches the group's weights; later tiles prefetch the next group's, at a
 * lower rate since there is time. */
INLINE struct soon what_is_soon(const void *weights, const void *next, int64_t row, int64_t steps) {
    if (row == 0) return (struct soon){(const char *)weights + AHEAD, VECTORS * LINE};
    if (!next || row / TILE > VECTORS) return (struct soon){(const char *)weights, 0};
    return (struct soon){(const char *)next + (row / TILE - 1) * steps * LINE, LINE};
}

INLINE void gemm_items(const struct gemm *p, int64_t first, int64_t last, int64_t ahead,
                          const int bf16) {
    const struct weight *w = p->weight;
    const int64_t inputs = w->inputs, pieces = num_pieces(p->rows);
    const int64_t size = ((p->rows + pieces - 1) / pieces + TILE - 1) / TILE * TILE;
    const int64_t few = w->kind == INT8 ? FEW_INPUTS : INPUTS;
    float widened[FEW_INPUTS * GROUP];
    for (int64_t item = first; item < last; item++) {
        const int64_t group = item / pieces, begin = item % pieces * size;
        const int64_t rows = p->rows - begin < size ? p->rows - begin : size;
        if (rows <= 0) continue;
        const int64_t then = item + 1 < last ? item + 1 : ahead;
        const void *next = then < 0 || then / pieces == group || w->kind == INT8
            ? 0 : at(w->numbers, then / pieces * inputs * GROUP, bf16);
        floats sum[PIECE][VECTORS];
        __builtin_memset(sum, 0, (uint64_t)rows * sizeof sum[0]);
        for (int64_t i = 0; i < inputs; i += few) {
            int64_t count = inputs - i < few ? inputs - i : few, from = (group * inputs + i) * GROUP;
            const void *weights = at(w->numbers, from, bf16);
            if (w->kind == INT8) {
                widen((const int8_t *)w->numbers + from, count, widened, bf16);
                weights = widened;
            }
            for (int64_t r = 0; r < rows; r += TILE)
                some_rows(at(p->x, (begin + r) * inputs + i, bf16), inputs, weights, count,
                          what_is_soon(weights, i + count < inputs ? 0 : next, r,
                                       bf16 ? count / 2 : count),
                          sum + r, bf16, rows - r);
        }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t v = 0; v < VECTORS; v++) {
                int64_t output = group * GROUP + v * LANES;
                floats scale = w->scales ? load(w->scales, output, 0) : all(1.0f);
                if (output < w->outputs) finish(p, begin + r, output, sum[r][v] * scale);
            }
    }
}

static void gemm_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    const struct gemm *p = args;
    if (p->bf16) gemm_items(p, first, last, ahead, 1);
    else gemm_items(p, first, last, ahead, 0);
}

#else
static void gemm_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    (void)args, (void)first, (void)last, (void)ahead;
}
#endif

/* Return whether this library supports GEMMs of a format. */
int supports_gemm(int bf16) {
#if defined(__AVX512BF16__)
    (void)bf16;
    return 1;
#elif defined(__AVX512F__)
    return !bf16;
#else
    (void)bf16;
    return 0;
#endif
}

static void product_task(struct worker *worker, const void *args) {
    const struct gemm *p = args;
    run_phase(worker, gemm_work, p, num_items(p->weight, p->rows), 1, 1);
}

void gemm(const struct gemm *gemm) {
    struct phase phases[1] = {{0}};
    const struct weight *w = gemm->weight;
    run_parallel(product_task, gemm, phases, gemm_cost(w, gemm->rows), num_items(w, gemm->rows));
}
