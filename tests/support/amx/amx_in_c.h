/* AMX's tiles, and products of pairs of bfloat16, in C: for a library that computes on any x86 with AVX2 as one
 * for AMX does. The arithmetic is that of Intel's description of TDPBF16PS, but for numbers below float32's
 * normal range. A shape that the processor would refuse ends the process. */

#pragma once
#include "simd_x86.h"
#include <stdlib.h>
#include <string.h>

#undef HAS_PAIRS
#undef HAS_TILES
#define HAS_PAIRS 1
#define HAS_TILES 1

INLINE floats broadcast_pair(const void *two) {
    uint32_t both;
    memcpy(&both, two, sizeof both);
    return (floats)(both - (words){0});
}

INLINE floats add_pairs(floats sum, floats a, floats b) {
    const words low = (words)a << 16, high = (words)a & 0xffff0000;
    return sum + (floats)low * (floats)((words)b << 16) + (floats)high * (floats)((words)b & 0xffff0000);
}

INLINE floats pairs_of_int8(const int8_t *from) {
    uint16_t pairs[2 * LANES];
    for (int i = 0; i < 2 * LANES; i++) {
        const float x = from[i];
        memcpy(pairs + i, (const char *)&x + 2, 2);
    }
    floats read;
    memcpy(&read, pairs, sizeof read);
    return read;
}

INLINE void interleave(const uint16_t *a, const uint16_t *b, floats *low, floats *high) {
    uint16_t pairs[4 * LANES];
    for (int i = 0; i < 2 * LANES; i++) pairs[2 * i] = a[i], pairs[2 * i + 1] = b[i];
    memcpy(low, pairs, sizeof *low);
    memcpy(high, pairs + 2 * LANES, sizeof *high);
}

struct c_tile {
    uint8_t bytes[16][64];
};
static __thread struct c_tile c_tiles[8];
static __thread struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} c_shapes;

static inline void c_need(int holds) {
    if (!holds) abort();
}

static inline void c_load_shapes(const void *shapes) {
    memcpy(&c_shapes, shapes, sizeof c_shapes);
    memset(c_tiles, 0, sizeof c_tiles);
    c_need(c_shapes.palette == 1 && c_shapes.start_row == 0);
    for (int i = 0; i < 8; i++) c_need(c_shapes.rows[i] <= 16 && c_shapes.row_bytes[i] <= 64);
}

static inline void c_zero(int tile) {
    c_need(c_shapes.rows[tile] > 0);
    memset(c_tiles + tile, 0, sizeof *c_tiles);
}

static inline void c_load(int tile, const void *from, int64_t stride) {
    c_zero(tile);
    for (int r = 0; r < c_shapes.rows[tile]; r++)
        memcpy(c_tiles[tile].bytes[r], (const char *)from + r * stride, c_shapes.row_bytes[tile]);
}

static inline void c_store(int tile, void *to, int64_t stride) {
    c_need(c_shapes.rows[tile] > 0);
    for (int r = 0; r < c_shapes.rows[tile]; r++)
        memcpy((char *)to + r * stride, c_tiles[tile].bytes[r], c_shapes.row_bytes[tile]);
}

static inline float c_number(int tile, int row, int place) {
    float x = 0;
    memcpy((char *)&x + 2, c_tiles[tile].bytes[row] + 2 * place, 2);
    return x;
}

static inline void c_multiply(int sum, int a, int b) {
    const int rows = c_shapes.rows[sum], outputs = c_shapes.row_bytes[sum] / 4, pairs = c_shapes.row_bytes[a] / 4;
    c_need(c_shapes.palette && sum != a && sum != b && a != b);
    c_need(c_shapes.rows[a] == rows && c_shapes.rows[b] == pairs && c_shapes.row_bytes[b] == 4 * outputs);
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < outputs; n++) {
            float first = 0, second = 0, total;
            for (int k = 0; k < pairs; k++) {
                first = __builtin_fmaf(c_number(a, r, 2 * k), c_number(b, k, 2 * n), first);
                second = __builtin_fmaf(c_number(a, r, 2 * k + 1), c_number(b, k, 2 * n + 1), second);
            }
            memcpy(&total, c_tiles[sum].bytes[r] + 4 * n, 4);
            total += first + second;
            memcpy(c_tiles[sum].bytes[r] + 4 * n, &total, 4);
        }
}

static inline void c_release(void) { memset(&c_shapes, 0, sizeof c_shapes); }

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig c_load_shapes
#define _tile_loadd c_load
#define _tile_stored c_store
#define _tile_zero c_zero
#define _tile_dpbf16ps c_multiply
#define _tile_release c_release
