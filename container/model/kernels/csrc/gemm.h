/* GEMM with packed weights: out[r, o] = sum over i of x[r, i] weight[o, i].
 *
 * Each output is summed in float32, blocks of inputs in their order and then the blocks' sums, which
 * keeps the rounding error of long sums small. A block's inputs are the same for any number of rows, so
 * a row's bits depend on no other row.
 * Weights are packed by cpu_linear.py in groups of 48 outputs with consecutive inputs; tiles of rows
 * share each load of weights. Processors with AVX512_BF16, AMX, or BF16 of arm64 multiply pairs of
 * bfloat16. All others multiply in float32: weights of fewer bits are converted, exactly, a few inputs
 * at a time, and so are rows of bfloat16; memory and caches still hold, and pass, the fewer bits.
 */

#pragma once
#include "amx_tile.h"
#include "matrix_tile.h"
#include "thread_pool.h"

#define GROUP 48                /* outputs */
#define VECTORS (GROUP / LANES) /* of a group */
#define SIDE_BY_SIDE 3 /* vectors of outputs whose sums of several rows are in registers */
#if LANES == 8
#define TILE 4         /* rows that share each load of weights; AVX2 has half of the registers */
#else
#define TILE 8
#endif
#define PIECE 64       /* most rows of a piece, the work of a thread on one group */
#define FEW_INPUTS 128 /* inputs whose weights are converted at once; they fit the L1 cache */
#define INPUTS 4096    /* inputs processed at once; their weights fit the L2 cache */
#define AHEAD 4096     /* prefetch distance in bytes */
#define LINE 64        /* bytes of a cache line */
#define GROUP_LINES 3  /* of a group's weights for one input of float32, or two of bfloat16 */

/* INT8 has a scale for each output. UINT4 and UINT8 are unsigned numbers q with a scale s and an offset m
 * for each output and block of inputs; the weight is q s + m. */
enum kind { FLOAT32, BFLOAT16, INT8, UINT4, UINT8 };

struct weight {
    /* [groups, inputs, GROUP] of float32, [groups, inputs / 2, GROUP, 2] of bfloat16 and int8; of blocks
     * [groups, words, GROUP], where a word of 32 bits has consecutive inputs, the first in its low bits */
    const void *numbers;
    const void *scales; /* int8: [groups * GROUP]; blocks: [groups, blocks, 2, GROUP] of s and m; else null */
    const void *bias;    /* [outputs] of the rows' format, or null */
    const int32_t *block_of; /* the block of each input, or null where blocks are consecutive inputs */
    int64_t inputs, outputs, block, blocks; /* `block` inputs have one scale; a multiple of a word's inputs */
    int kind;
    int half_scales; /* 1: those of blocks are float16; else all scales are float32 */
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

#if HAS_GEMM

/* Addresses to prefetch: starting at `from`, `by` bytes further with each step of the sums. */
struct soon {
    const char *from;
    int64_t by;
};

/* Add the products of one input of a row, or of a pair of bfloat16 inputs, to a row's sums. */
INLINE void add_products(floats sum[VECTORS], const void *x, const floats w[VECTORS], const int pairs,
                         const int width) {
#if HAS_PAIRS
    if (pairs) {
        floats two = broadcast_pair(x);
        for (int v = 0; v < width; v++) sum[v] = add_pairs(sum[v], two, w[v]);
        return;
    }
#endif
    (void)pairs;
    for (int v = 0; v < width; v++) sum[v] += *(const float *)x * w[v];
}

/* Add the products of `count` inputs to the sums, [n, GROUP], of `n` rows, `stride` numbers apart, for
 * `width` vectors of outputs. Each step prefetches so many lines. */
INLINE void tile(const void *x, int64_t stride, const void *weights, int64_t count, struct soon soon,
                 float *out, const int pairs, const int lines, const int n, const int width) {
    floats sum[TILE][VECTORS];
    for (int r = 0; r < n; r++)
        for (int v = 0; v < width; v++) sum[r][v] = all(0.0f);
#pragma GCC unroll 2
    for (int64_t i = 0; i < count; i += pairs ? 2 : 1) {
        const void *from = at(weights, i * GROUP, pairs);
        floats w[VECTORS];
        for (int v = 0; v < width; v++) w[v] = load(from, v * LANES, 0);
        for (int k = 0; k < lines; k++) __builtin_prefetch(soon.from + k * LINE);
        soon.from += soon.by;
        for (int r = 0; r < n; r++) add_products(sum[r], at(x, r * stride + i, pairs), w, pairs, width);
    }
    for (int r = 0; r < n; r++)
        for (int v = 0; v < width; v++) {
            int64_t i = r * GROUP + v * LANES;
            store(out, i, load(out, i, 0) + sum[r][v], 0);
        }
}

/* The same by the instructions of matrix_tile.h where the processor has them. */
INLINE void tile_of(const void *x, int64_t stride, const void *weights, int64_t count, struct soon soon,
                    float *out, const int pairs, const int lines, const int n, const int width) {
#if HAS_MATRIX_PAIRS
    if (pairs && n > 1) {
        matrix_tile(x, stride, weights, GROUP, count, soon.from, soon.by, out, lines, n, width);
        return;
    }
#endif
    tile(x, stride, weights, count, soon, out, pairs, lines, n, width);
}

#define TILES(n, width) \
    case n: tile_of(x, stride, weights, count, soon, out, pairs, lines, n, width); break;

/* One or two rows have too few sums to hide the latency of additions, unless all of a group's outputs
 * are summed together; more rows would not fit the registers so. */
INLINE void some_rows(const void *x, int64_t stride, const void *weights, int64_t count,
                      struct soon soon, float *out, const int pairs, const int lines, int64_t n) {
    switch (n) {
        TILES(1, VECTORS)
        TILES(2, VECTORS)
        TILES(3, SIDE_BY_SIDE)
#if TILE == 8
        TILES(4, SIDE_BY_SIDE) TILES(5, SIDE_BY_SIDE) TILES(6, SIDE_BY_SIDE) TILES(7, SIDE_BY_SIDE)
#endif
        default: tile_of(x, stride, weights, count, soon, out, pairs, lines, TILE, SIDE_BY_SIDE);
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

#if HAS_PAIRS
/* Convert int8 weights to bfloat16; pairs of inputs stay adjacent. */
INLINE void widen_to_pairs(const int8_t *from, int64_t count, uint16_t *to) {
    for (int64_t i = 0; i < count * GROUP; i += 2 * LANES) {
        __builtin_prefetch(from + i + AHEAD);
        store(to, i / 2, pairs_of_int8(from + i), 0);
    }
}
#endif

/* Bits of a weight as stored. */
INLINE int bits_of(int kind) {
    return kind == FLOAT32 ? 32 : kind == BFLOAT16 ? 16 : kind == UINT4 ? 4 : 8;
}

/* Scales and offsets, [2, GROUP], of a group for one input. */
INLINE const char *scales_of(const struct weight *w, int64_t group, int64_t input) {
    int64_t block = w->block_of ? w->block_of[input] : input / w->block;
    return (const char *)w->scales + (group * w->blocks + block) * 2 * GROUP * (w->half_scales ? 2 : 4);
}

INLINE floats load_scale(const char *scales, int64_t i, int half) {
    return half ? load_half(scales, i) : load(scales, i, 0);
}

/* Number `j` of each word. */
INLINE floats number(words packed, int j, const int bits) {
    return __builtin_convertvector((ints)((packed >> (bits * j)) & ((1u << bits) - 1)), floats);
}

/* Return how many of `count` inputs from `first` on are in the block of the first. */
INLINE int64_t rest_of_block(const struct weight *w, int64_t first, int64_t count) {
    int64_t left = w->block - first % w->block;
    return left < count ? left : count;
}

/* Convert weights of `count` inputs of one block to float32, [count, GROUP]. */
INLINE void widen_block(const uint32_t *from, const char *scales, int64_t count, float *to, const int bits,
                        const int half) {
    const int in_word = 32 / bits;
    for (int64_t i = 0; i < count; i += in_word, from += GROUP) {
        __builtin_prefetch((const char *)from + AHEAD);
        for (int v = 0; v < GROUP; v += LANES) {
            words packed = (words)load(from, v, 0);
            floats scale = load_scale(scales, v, half), offset = load_scale(scales, GROUP + v, half);
            for (int j = 0; j < in_word; j++)
                store(to, (i + j) * GROUP + v, number(packed, j, bits) * scale + offset, 0);
        }
    }
}

/* GCC compiles the products behind these conversions to slower code if it inlines them there. */
#define APART static __attribute__((noinline))

/* Convert weights of `count` inputs, whose blocks are consecutive inputs, to float32, [count, GROUP]. */
APART void widen_blocks(const struct weight *w, int64_t group, int64_t first, int64_t count, float *to,
                        const int bits) {
    const int in_word = 32 / bits;
    const uint32_t *from = (const uint32_t *)w->numbers + (group * w->inputs + first) / in_word * GROUP;
    for (int64_t i = 0, size; i < count; i += size) {
        const char *scales = scales_of(w, group, first + i);
        size = rest_of_block(w, first + i, count - i);
        if (w->half_scales) widen_block(from, scales, size, to, bits, 1);
        else widen_block(from, scales, size, to, bits, 0);
        from += size / in_word * GROUP;
        to += size * GROUP;
    }
}

/* The same for weights whose inputs have blocks of their own. */
APART void widen_shuffled(const struct weight *w, int64_t group, int64_t first, int64_t count, float *to,
                          const int bits) {
    const int in_word = 32 / bits, half = w->half_scales;
    const uint32_t *from = (const uint32_t *)w->numbers + (group * w->inputs + first) / in_word * GROUP;
    for (int64_t i = 0; i < count; i++, to += GROUP) {
        const char *scales = scales_of(w, group, first + i);
        for (int v = 0; v < GROUP; v += LANES) {
            floats scale = load_scale(scales, v, half), offset = load_scale(scales, GROUP + v, half);
            words packed = (words)load(from + i / in_word * GROUP, v, 0);
            store(to, v, number(packed, (int)(i % in_word), bits) * scale + offset, 0);
        }
    }
}

/* Add the products of one row and `count` weights in consecutive blocks: the sums of `widen_blocks` and
 * `tile`, without the memory between them. */
INLINE void add_row_of_blocks(const struct weight *w, int64_t group, int64_t first, int64_t count,
                              const float *x, float *out, const int bits) {
    const int in_word = 32 / bits, half = w->half_scales;
    const uint32_t *words_of_all = (const uint32_t *)w->numbers + (group * w->inputs + first) / in_word * GROUP;
    for (int begin = 0; begin < GROUP; begin += SIDE_BY_SIDE * LANES) {
        const uint32_t *from = words_of_all + begin;
        floats sum[SIDE_BY_SIDE];
        for (int k = 0; k < SIDE_BY_SIDE; k++) sum[k] = all(0.0f);
        for (int64_t here = 0, size; here < count; here += size) {
            const char *scales = scales_of(w, group, first + here);
            floats scale[SIDE_BY_SIDE], offset[SIDE_BY_SIDE];
            for (int k = 0; k < SIDE_BY_SIDE; k++) {
                scale[k] = load_scale(scales, begin + k * LANES, half);
                offset[k] = load_scale(scales, GROUP + begin + k * LANES, half);
            }
            size = rest_of_block(w, first + here, count - here);
            for (int64_t i = here; i < here + size; i += in_word, from += GROUP) {
                words packed[SIDE_BY_SIDE];
                for (int k = 0; k < SIDE_BY_SIDE; k++) packed[k] = (words)load(from, k * LANES, 0);
                __builtin_prefetch((const char *)from + AHEAD);
                __builtin_prefetch((const char *)from + AHEAD + LINE);
                for (int j = 0; j < in_word; j++)
                    for (int k = 0; k < SIDE_BY_SIDE; k++)
                        sum[k] += x[i + j] * (number(packed[k], j, bits) * scale[k] + offset[k]);
            }
        }
        for (int k = 0; k < SIDE_BY_SIDE; k++)
            store(out, begin + k * LANES, load(out, begin + k * LANES, 0) + sum[k], 0);
    }
}

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

/* What the tiles of some inputs prefetch: the first one the group's own weights from `own` on, unless it
 * is null, and those after it `size` bytes from `next` on, a line with each step. */
struct prefetch {
    const char *own, *next;
    int64_t size;
};

/* Of tile `number`; each has so many steps. */
INLINE struct soon soon_of(struct prefetch p, int64_t number, int64_t steps) {
    if (p.own && number == 0) return (struct soon){p.own, GROUP_LINES * LINE};
    const int64_t done = (p.own ? number - 1 : number) * steps * LINE;
    return done < p.size ? (struct soon){p.next + done, LINE} : (struct soon){p.next, 0};
}

/* Add the products of `count` inputs to the sums, [rows, GROUP]. Rows are inside and outputs outside, so
 * that the weights of a tile stay in the L1 cache. */
INLINE void all_tiles(const void *x, int64_t stride, const void *weights, int64_t count, int64_t rows,
                      struct prefetch prefetch, float *sum, const int pairs, const int lines) {
#if HAS_TILES
    if (pairs) {
        amx_tiles(x, stride, weights, GROUP, count, rows, prefetch.own ? prefetch.own : prefetch.next, sum);
        return;
    }
#endif
    int64_t number = 0;
    for (int first = 0; first < VECTORS; first += SIDE_BY_SIDE)
        for (int64_t r = 0; r < rows && (first == 0 || rows - r >= SIDE_BY_SIDE); r += TILE, number++)
            some_rows(at(x, r * stride, pairs), stride, at(weights, first * LANES * (pairs ? 2 : 1), pairs),
                      count, soon_of(prefetch, number, pairs ? count / 2 : count),
                      sum + r * GROUP + first * LANES, pairs, lines, rows - r);
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
        const struct prefetch prefetch = {
            (const char *)weights + AHEAD, next, i + count < inputs || !next ? 0 : count * GROUP * (pairs ? 2 : 4)};
        all_tiles(at(p->x, begin * inputs + i, pairs), inputs, weights, count, rows, prefetch, sum, pairs,
                  GROUP_LINES);
    }
}

/* Weights that are converted first; `kind` is theirs. While some are multiplied, those that follow are
 * prefetched, a line with each step. */
INLINE void add_converted(const struct gemm *p, int64_t group, int64_t begin, int64_t rows, const void *next,
                          float *sum, const int kind, const int bf16) {
    const struct weight *w = p->weight;
    const int64_t inputs = w->inputs;
    const int is_blocks = kind == UINT4 || kind == UINT8, bits = bits_of(kind);
    const int pairs = HAS_PAIRS && bf16 && !is_blocks;
    float weights[FEW_INPUTS * GROUP] __attribute__((aligned(LINE)));
    float converted[PIECE * FEW_INPUTS] __attribute__((aligned(LINE)));
    for (int64_t i = 0; i < inputs; i += FEW_INPUTS) {
        const int64_t count = inputs - i < FEW_INPUTS ? inputs - i : FEW_INPUTS;
        const int64_t size = count * GROUP * bits / 8;
        const char *from = (const char *)w->numbers + (group * inputs + i) * GROUP * bits / 8;
        const char *soon = i + count < inputs || !next ? from + size : next;
        const void *x = at(p->x, begin * inputs + i, bf16);
        int64_t stride = inputs;
        if (bf16 && !pairs) {
            widen_rows(x, inputs, rows, count, converted);
            x = converted;
            stride = FEW_INPUTS;
        }
        if (is_blocks && rows == 1 && !w->block_of) {
            add_row_of_blocks(w, group, i, count, x, sum, bits);
            continue;
        }
        if (is_blocks && w->block_of) widen_shuffled(w, group, i, count, weights, bits);
        else if (is_blocks) widen_blocks(w, group, i, count, weights, bits);
#if HAS_PAIRS
        else if (pairs) widen_to_pairs((const int8_t *)from, count, (uint16_t *)weights);
#endif
        else widen(from, count, weights, kind);
        all_tiles(x, stride, weights, count, rows, (struct prefetch){0, soon, size}, sum, pairs, 1);
    }
}

/* One conversion for each kind of weights. */
INLINE void add_any(const struct gemm *p, int64_t group, int64_t begin, int64_t rows, const void *next,
                    float *sum, const int bf16) {
    const int kind = p->weight->kind, pairs = HAS_PAIRS && bf16;
    if (kind == FLOAT32 || (pairs && kind == BFLOAT16)) add_stored(p, group, begin, rows, next, sum, pairs);
    else if (kind == INT8) add_converted(p, group, begin, rows, next, sum, INT8, bf16);
    else if (kind == UINT4) add_converted(p, group, begin, rows, next, sum, UINT4, bf16);
    else if (kind == UINT8) add_converted(p, group, begin, rows, next, sum, UINT8, bf16);
    else add_converted(p, group, begin, rows, next, sum, BFLOAT16, bf16);
}

INLINE void gemm_items(const struct gemm *p, int64_t first, int64_t last, int64_t ahead, const int bf16) {
    const struct weight *w = p->weight;
    const float *scales = w->kind == INT8 ? w->scales : 0;
    const int64_t pieces = num_pieces(p->rows);
    const int64_t size = ((p->rows + pieces - 1) / pieces + TILE - 1) / TILE * TILE;
    for (int64_t item = first; item < last; item++) {
        const int64_t group = item / pieces, begin = item % pieces * size;
        const int64_t rows = p->rows - begin < size ? p->rows - begin : size;
        if (rows <= 0) continue;
        const int64_t then = item + 1 < last ? item + 1 : ahead;
        float sum[PIECE * GROUP] __attribute__((aligned(LINE)));
        __builtin_memset(sum, 0, (uint64_t)(rows * GROUP) * sizeof(float));
        const void *next = then < 0 || then / pieces == group
            ? 0 : (const char *)w->numbers + then / pieces * w->inputs * GROUP * bits_of(w->kind) / 8;
        add_any(p, group, begin, rows, next, sum, bf16);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t v = 0; v < VECTORS; v++) {
                int64_t output = group * GROUP + v * LANES;
                floats scale = scales ? load(scales, output, 0) : all(1.0f);
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
int supports_gemm(void) { return HAS_GEMM; }

static void product_task(struct worker *worker, const void *args) {
    const struct gemm *p = args;
    run_phase(worker, gemm_work, p, num_items(p->weight, p->rows), 1, 1);
}

void gemm(const struct gemm *gemm) {
    struct phase phases[1] = {{0}};
    const struct weight *w = gemm->weight;
    run_parallel(product_task, gemm, phases, gemm_cost(w, gemm->rows), num_items(w, gemm->rows));
}
