/* Tiles of a GEMM by instructions that multiply two rows with two outputs: BFMMLA of arm64.
 *
 * It adds four inputs to a sum as two BFDOT do, in the same order, so a row that is alone has the same bits
 * by `tile` of gemm.h. */

#pragma once
#include "simd.h"

#if HAS_MATRIX_PAIRS

/* Return four numbers of two rows, `stride` apart; of the second row zeros if there is none. */
INLINE bfloat16x8_t of_two_rows(const uint16_t *x, int64_t stride, int is_two) {
    const uint16x4_t second = is_two ? vld1_u16(x + stride) : vdup_n_u16(0);
    return vreinterpretq_bf16_u16(vcombine_u16(vld1_u16(x), second));
}

/* Return two numbers of two rows, and zeros after each. */
INLINE bfloat16x8_t last_of_two_rows(const uint16_t *x, int64_t stride, int is_two) {
    uint16_t read[8] = {0};
    __builtin_memcpy(read, x, 4);
    if (is_two) __builtin_memcpy(read + 4, x + stride, 4);
    return vreinterpretq_bf16_u16(vld1q_u16(read));
}

/* Add four inputs, `a` the weights of two and `b` those of the next two, to a vector of outputs of two rows:
 * sum[0] has the first two outputs of both rows, sum[1] the others. */
INLINE void add_four(float32x4_t sum[2], bfloat16x8_t rows, floats a, floats b) {
    const float32x4_t first = vzip1q_f32((float32x4_t)a, (float32x4_t)b);
    const float32x4_t other = vzip2q_f32((float32x4_t)a, (float32x4_t)b);
    sum[0] = vbfmmlaq_f32(sum[0], rows, vreinterpretq_bf16_f32(first));
    sum[1] = vbfmmlaq_f32(sum[1], rows, vreinterpretq_bf16_f32(other));
}

INLINE void add_sums(float *out, float32x4_t sums) { vst1q_f32(out, vaddq_f32(vld1q_f32(out), sums)); }

/* Sums of pairs of rows, and the vectors of outputs of each. */
enum { ROW_PAIRS = 4, MOST_VECTORS = 12 };
typedef float32x4_t pair_sums[ROW_PAIRS][MOST_VECTORS][2];

/* Add four inputs of `n` rows, or with `is_last` two; `group` outputs lie side by side. */
INLINE void add_inputs(pair_sums sum, const uint16_t *x, int64_t stride, const uint16_t *weights, int64_t group,
                       const int is_last, const int n, const int width) {
    bfloat16x8_t rows[ROW_PAIRS];
    for (int p = 0; 2 * p < n; p++) {
        const uint16_t *two = x + 2 * p * stride;
        rows[p] = is_last ? last_of_two_rows(two, stride, 2 * p + 1 < n)
                          : of_two_rows(two, stride, 2 * p + 1 < n);
    }
    for (int v = 0; v < width; v++) {
        const floats a = load(weights, v * LANES, 0);
        const floats b = is_last ? all(0.0f) : load(weights + 2 * group, v * LANES, 0);
        for (int p = 0; 2 * p < n; p++) add_four(sum[p][v], rows[p], a, b);
    }
}

/* As `tile` of gemm.h, for pairs of bfloat16. */
INLINE void matrix_tile(const uint16_t *x, int64_t stride, const uint16_t *weights, int64_t group,
                        int64_t count, const char *soon, int64_t by, float *out, const int lines, const int n,
                        const int width) {
    pair_sums sum;
    int64_t i = 0;
    for (int p = 0; 2 * p < n; p++)
        for (int v = 0; v < width; v++) sum[p][v][0] = sum[p][v][1] = vdupq_n_f32(0.0f);
    for (; i + 4 <= count; i += 4) {
        for (int k = 0; k < 2; k++, soon += by)
            for (int line = 0; line < lines; line++) __builtin_prefetch(soon + line * 64);
        add_inputs(sum, x + i, stride, weights + i * group, group, 0, n, width);
    }
    if (i < count) add_inputs(sum, x + i, stride, weights + i * group, group, 1, n, width);
    for (int p = 0; 2 * p < n; p++)
        for (int v = 0; v < width; v++) {
            const float64x2_t first = vreinterpretq_f64_f32(sum[p][v][0]);
            const float64x2_t other = vreinterpretq_f64_f32(sum[p][v][1]);
            float *row = out + 2 * p * group + v * LANES;
            add_sums(row, vreinterpretq_f32_f64(vzip1q_f64(first, other)));
            if (2 * p + 1 < n) add_sums(row + group, vreinterpretq_f32_f64(vzip2q_f64(first, other)));
        }
}

#endif
