/* Tiles of a GEMM by Intel's AMX: sixteen rows by a group's 48 outputs, 32 inputs with each instruction.
 *
 * The packed weights are such tiles as they are: a tile's row has a pair of inputs of sixteen outputs. A GEMM takes
 * this path for any number of rows, and each row's sums are in the order of its inputs, so a row's bits depend on no
 * other row. */

#pragma once
#include "simd.h"
#include <sys/syscall.h>
#include <unistd.h>

/* Ask Linux for the tiles' registers, which a process has only then. Return 1; 0 if this library has no tiles; -1 if
 * the system refuses. */
int use_tiles(void) {
#if defined(__AMX_BF16__) && defined(SYS_arch_prctl)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) ? -1 : 1;
#else
    return HAS_TILES;
#endif
}

#if HAS_TILES

/* Compilers know of eight bytes only that LDTILECFG reads, and of no memory that TILELOADD does. */
#define MEMORY_IS_WRITTEN() __asm__ volatile("" ::: "memory")

#define UNIT_ROWS 16
#define UNIT_INPUTS 32 /* bfloat16 numbers of a tile's row of 64 bytes */
#define UNIT_OUTPUTS 16
#define ROW_BYTES 64

/* What LDTILECFG reads. */
struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles 0 to 2 are sums, 3 is of rows, 4 to 6 are of weights. */
INLINE void shape_tiles(int64_t rows, int64_t inputs) {
    struct tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 7; i++) {
        shapes.rows[i] = (uint8_t)(i < 4 ? rows : inputs / 2);
        shapes.row_bytes[i] = (uint16_t)(i == 3 ? 2 * inputs : ROW_BYTES);
    }
    MEMORY_IS_WRITTEN();
    _tile_loadconfig(&shapes);
}

/* Add the products of `count` inputs, a multiple of `step`, of at most sixteen rows to the sums, [rows, group]. */
INLINE void add_tiles(const uint16_t *x, int64_t stride, const uint16_t *weights, int64_t group, int64_t count,
                      int64_t step, int64_t rows, const char *soon, float *out) {
    float sum[UNIT_ROWS][3 * UNIT_OUTPUTS] __attribute__((aligned(ROW_BYTES)));
    const int sum_bytes = sizeof sum[0], group_bytes = (int)(4 * group);
    shape_tiles(rows, step);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int64_t i = 0; i < count; i += step) {
        const uint16_t *from = weights + i * group;
        for (int64_t line = 0; soon && line < step / 2 * group_bytes; line += ROW_BYTES)
            __builtin_prefetch(soon + i / 2 * group_bytes + line);
        _tile_loadd(3, x + i, (int)(2 * stride));
        _tile_loadd(4, from, group_bytes);
        _tile_loadd(5, from + 2 * UNIT_OUTPUTS, group_bytes);
        _tile_loadd(6, from + 4 * UNIT_OUTPUTS, group_bytes);
        _tile_dpbf16ps(0, 3, 4);
        _tile_dpbf16ps(1, 3, 5);
        _tile_dpbf16ps(2, 3, 6);
    }
    _tile_stored(0, sum[0], sum_bytes);
    _tile_stored(1, sum[0] + UNIT_OUTPUTS, sum_bytes);
    _tile_stored(2, sum[0] + 2 * UNIT_OUTPUTS, sum_bytes);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < 3 * UNIT_OUTPUTS; v += LANES)
            store(out, r * group + v, load(out, r * group + v, 0) + load(sum[r], v, 0), 0);
}

/* Add the products of `count` inputs to the sums of any number of rows; prefetch as many weights from `soon` on. */
static void amx_tiles(const uint16_t *x, int64_t stride, const uint16_t *weights, int64_t group, int64_t count,
                      int64_t rows, const char *soon, float *out) {
    const int64_t whole = count / UNIT_INPUTS * UNIT_INPUTS;
    for (int64_t r = 0; r < rows; r += UNIT_ROWS) {
        const int64_t n = rows - r < UNIT_ROWS ? rows - r : UNIT_ROWS;
        const char *ahead = r == 0 ? soon : 0;
        if (whole) add_tiles(x + r * stride, stride, weights, group, whole, UNIT_INPUTS, n, ahead, out + r * group);
        if (whole < count)
            add_tiles(x + r * stride + whole, stride, weights + whole * group, group, count - whole, count - whole,
                      n, 0, out + r * group);
    }
    _tile_release();
}

#endif

/* Multiply one tile of ones; return whether the result is right. A processor or host that does not allow an
 * instruction ends the process. */
int try_tiles(void) {
#if HAS_TILES
    uint16_t ones[UNIT_ROWS * UNIT_INPUTS], weights[UNIT_INPUTS * 3 * UNIT_OUTPUTS];
    float out[UNIT_ROWS * 3 * UNIT_OUTPUTS] = {0};
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++) ones[i] = 0x3f80;
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) weights[i] = 0x3f80;
    amx_tiles(ones, UNIT_INPUTS, weights, 3 * UNIT_OUTPUTS, UNIT_INPUTS, UNIT_ROWS, 0, out);
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        if (out[i] != UNIT_INPUTS) return 0;
#endif
    return 1;
}
