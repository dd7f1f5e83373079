/* GEMM with packed weights: out[r, o] = sum over i of x[r, i] weight[o, i].
 *
 * Each output is summed in float32, blocks of inputs in their order and then the blocks' sums, which
 * keeps the rounding error of long sums small. A block's inputs are the same for any number of rows, so
 * a row's bits depend on no other row.
 * Weights are packed by cpu_linear.py in groups of 48 outputs with consecutive inputs; tiles of rows
 * share each load of weights. Processors with AVX512_BF16 multiply pairs of bfloat16. All others
 * multiply in float32: weights of fewer bits are converted, exactly, a few inputs at a time, and so are
 * rows of bfloat16; memory and caches still hold, and pass, the fewer bits.
 */

#pragma once
#include "thread_pool.h"

#define GROUP 48                /* outputs */
#define VECTORS (GROUP / LANES) /* of a group */
#ifdef __AVX512F__
#define TILE 8         /* rows that share each load of a group's weights */
#else
#define TILE 2
#endif
#define PIECE 64       /* most rows of a piece, the work of a thread on one group */
#define FEW_INPUTS 128 /* inputs whose weights are converted at once; they fit the L1 cache */
#define INPUTS 4096    /* inputs processed at once; their weights fit the L2 cache */
#define AHEAD 4096     /* prefetch distance in bytes */
#define LINE 64        /* bytes of a cache line */
#define GROUP_LINES 3  /* of a group's weights for one input of float32, or two of bfloat16 */

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

#ifdef __AVX2__

#ifdef __AVX512BF16__
#define MULTIPLIES_PAIRS 1
#else
#define MULTIPLIES_PAIRS 0
#endif

/* Addresses to prefetch: starting at `from`, `by` bytes further with each step of the sums. */
struct soon {
    const char *from;
    int64_t by;
};

/* Add the products of one input of a row, or of a pair of bfloat16 inputs, to a row's sums. */
INLINE void add_products(floats sum[VECTORS], const void *x, const floats w[VECTORS], const int pairs) {
    if (pairs) {
#ifdef __AVX512BF16__
        __m512bh two = pair(x);
        for (int v = 0; v < VECTORS; v++)
            sum[v] = (floats)_mm512_dpbf16_ps((__m512)sum[v], two, (__m512bh)w[v]);
#endif
    } else {
        for (int v = 0; v < VECTORS; v++) sum[v] += *(const float *)x * w[v];
    }
}

/* Add the products of `count` inputs to the sums, [n, GROUP], of `n` rows, `stride` numbers apart. Each
 * step prefetches so many lines. */
INLINE void tile(const void *x, int64_t stride, const void *weights, int64_t count, struct soon soon,
                 float *out, const int pairs, const int lines, const int n) {
    floats sum[TILE][VECTORS];
    for (int r = 0; r < n; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = all(0.0f);
    for (int64_t i = 0; i < count; i += pairs ? 2 : 1) {
        const void *from = at(weights, i * GROUP, pairs);
        floats w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = load(from, v * LANES, 0);
        for (int k = 0; k < lines; k++) __builtin_prefetch(soon.from + k * LINE);
        soon.from += soon.by;
        for (int r = 0; r < n; r++) add_products(sum[r], at(x, r * stride + i, pairs), w, pairs);
    }
    for (int r = 0; r < n; r++)
        for (int v = 0; v < VECTORS; v++) {
            int64_t i = r * GROUP + v * LANES;
            store(out, i, load(out, i, 0) + sum[r][v], 0);
        }
}

#define TILES(n) \
    case n: tile(x, stride, weights, count, soon, out, pairs, lines, n); break;

INLINE void some_rows(const void *x, int64_t stride, const void *weights, int64_t count,
                      struct soon soon, float *out, const int pairs, const int lines, int64_t n) {
    switch (n) {
        TILES(1)
#if TILE == 8
        TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7)
#endif
        default: tile(x, stride, weights, count, soon, out, pairs, lines, TILE);
    }
}

/* Convert weights of `count` inputs, pairs of which are adjacent, to float32, [count, GROUP]. */
INLINE void widen(const void *from, int64_t count, float *to, const int kind) {
    for (int64_t i = 0; i < count; i += 2)
        for (int v = 0; v < VECTORS; v++) {
            int64_t first = i * GROUP + 2 * v * LANES;
            floats even, odd;
            if (kind == INT8) {
                halves both;
                __builtin_memcpy(&both, (const int8_t *)from + first, sizeof both);
                words bytes = widened(both);
                even = __builtin_convertvector((ints)(bytes << 24) >> 24, floats);
                odd = __builtin_convertvector((ints)(bytes << 16) >> 24, floats);
                __builtin_prefetch((const int8_t *)from + first + AHEAD);
            } else {
                words both = (words)load((const uint16_t *)from + first, 0, 0);
                even = (floats)(both << 16);
                odd = (floats)(both & 0xffff0000);
                __builtin_prefetch((const uint16_t *)from + first + AHEAD / 2);
            }
            store(to, i * GROUP + v * LANES, even, 0);
            store(to, (i + 1) * GROUP + v * LANES, odd, 0);
        }
}

#ifdef __AVX512BF16__
/* Convert int8 weights to bfloat16; pairs of inputs stay adjacent. */
INLINE void widen_to_pairs(const int8_t *from, int64_t count, uint16_t *to) {
    for (int64_t i = 0; i < count; i += 2)
        for (int v = 0; v < VECTORS; v++) {
            const int8_t *pairs = from + i * GROUP + v * 2 * LANES;
            __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)pairs)));
            __m512 high = _mm512_cvtepi32_ps(
                _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(pairs + LANES))));
            __builtin_prefetch(pairs + AHEAD);
            _mm512_storeu_si512(to + i * GROUP + v * 2 * LANES, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
}
#endif

/* Convert `count` inputs of some rows, `stride` numbers apart, to float32, [rows, FEW_INPUTS]. */
INLINE void widen_rows(const uint16_t *x, int64_t stride, int64_t rows, int64_t count, float *to) {
    for (int64_t r = 0; r < rows; r++) {
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES)
            store(to, r * FEW_INPUTS + i, load(x, r * stride + i, 1), 0);
        for (; i < count; i++) {
            uint32_t bits = (uint32_t)x[r * stride + i] << 16;
            __builtin_memcpy(to + r * FEW_INPUTS + i, &bits, sizeof bits);
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
    if (row == 0) return (struct soon){(const char *)weights + AHEAD, GROUP_LINES * LINE};
    if (!next || row / TILE > GROUP_LINES) return (struct soon){(const char *)weights, 0};
    return (struct soon){(const char *)next + (row / TILE - 1) * steps * LINE, LINE};
}

/* Weights in their stored format: float32, or pairs of bfloat16. */
INLINE void add_stored(const struct gemm *p, int64_t group, int64_t begin, int64_t rows, const void *next,
                       float *sum, const int pairs) {
    const struct weight *w = p->weight;
    const int64_t inputs = w->inputs;
    const int64_t most = pairs ? INPUTS : FEW_INPUTS;
    for (int64_t i = 0; i < inputs; i += most) {
        int64_t count = inputs - i < most ? inputs - i : most;
        const void *weights = at(w->numbers, (group * inputs + i) * GROUP, pairs);
        for (int64_t r = 0; r < rows; r += TILE)
            some_rows(at(p->x, (begin + r) * inputs + i, pairs), inputs, weights, count,
                      what_is_soon(weights, i + count < inputs ? 0 : next, r, pairs ? count / 2 : count),
                      sum + r * GROUP, pairs, GROUP_LINES, rows - r);
    }
}

/* Weights that are converted first; `kind` is theirs. While some are multiplied, those that follow are
 * prefetched, a line with each step. */
INLINE void add_converted(const struct gemm *p, int64_t group, int64_t begin, int64_t rows, const void *next,
                          float *sum, const int kind, const int bf16) {
    const struct weight *w = p->weight;
    const int64_t inputs = w->inputs;
    const int pairs = MULTIPLIES_PAIRS && bf16;
    float weights[FEW_INPUTS * GROUP] __attribute__((aligned(LINE)));
    float converted[PIECE * FEW_INPUTS] __attribute__((aligned(LINE)));
    for (int64_t i = 0; i < inputs; i += FEW_INPUTS) {
        int64_t count = inputs - i < FEW_INPUTS ? inputs - i : FEW_INPUTS;
        const char *from = (const char *)w->numbers + (group * inputs + i) * GROUP * (kind == INT8 ? 1 : 2);
        const char *soon = i + count < inputs || !next ? from + count * GROUP * (kind == INT8 ? 1 : 2) : next;
        const int64_t steps = pairs ? count / 2 : count;
        const void *x = at(p->x, begin * inputs + i, bf16);
        int64_t stride = inputs;
#ifdef __AVX512BF16__
        if (pairs) widen_to_pairs((const int8_t *)from, count, (uint16_t *)weights);
        else
#endif
        widen(from, count, weights, kind);
        if (bf16 && !pairs) {
            widen_rows(x, inputs, rows, count, converted);
            x = converted;
            stride = FEW_INPUTS;
        }
        for (int64_t r = 0; r < rows; r += TILE)
            some_rows(at(x, r * stride, pairs), stride, weights, count,
                      (struct soon){soon + r / TILE * steps * LINE, LINE}, sum + r * GROUP, pairs, 1, rows - r);
    }
}

INLINE void gemm_items(const struct gemm *p, int64_t first, int64_t last, int64_t ahead, const int bf16) {
    const struct weight *w = p->weight;
    const int pairs = MULTIPLIES_PAIRS && bf16, is_stored = w->kind == FLOAT32 || (pairs && w->kind == BFLOAT16);
    const int64_t pieces = num_pieces(p->rows);
    const int64_t size = ((p->rows + pieces - 1) / pieces + TILE - 1) / TILE * TILE;
    for (int64_t item = first; item < last; item++) {
        const int64_t group = item / pieces, begin = item % pieces * size;
        const int64_t rows = p->rows - begin < size ? p->rows - begin : size;
        if (rows <= 0) continue;
        const int64_t then = item + 1 < last ? item + 1 : ahead;
        float sum[PIECE * GROUP] __attribute__((aligned(LINE)));
        __builtin_memset(sum, 0, (uint64_t)(rows * GROUP) * sizeof(float));
        const int64_t size_of = w->kind == FLOAT32 ? 4 : w->kind == BFLOAT16 ? 2 : 1;
        const void *next = then < 0 || then / pieces == group
            ? 0 : (const char *)w->numbers + then / pieces * w->inputs * GROUP * size_of;
        if (is_stored) add_stored(p, group, begin, rows, next, sum, pairs);
        else if (w->kind == INT8) add_converted(p, group, begin, rows, next, sum, INT8, bf16);
        else add_converted(p, group, begin, rows, next, sum, BFLOAT16, bf16);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t v = 0; v < VECTORS; v++) {
                int64_t output = group * GROUP + v * LANES;
                floats scale = w->scales ? load(w->scales, output, 0) : all(1.0f);
                if (output < w->outputs)
                    finish(p, begin + r, output, load(sum, r * GROUP + v * LANES, 0) * scale);
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

/* Return whether this library has GEMMs. */
int supports_gemm(void) {
#ifdef __AVX2__
    return 1;
#else
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
