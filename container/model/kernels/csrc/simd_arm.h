/* SIMD primitives of arm64: NEON, and products of bfloat16 where the processor has them (BF16 of Armv8.6).
 * See simd.h, which includes this. */

#pragma once
#include <arm_neon.h>

#define HAS_GEMM 1
#define HAS_TILES 0
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
#define HAS_PAIRS 1
#define HAS_MATRIX_PAIRS 1
#else
#define HAS_PAIRS 0
#define HAS_MATRIX_PAIRS 0
#endif

INLINE words widened(halves x) { return (words)vmovl_u16((uint16x4_t)x); }

/* `b` where either is no number, as on x86. */
INLINE floats larger(floats a, floats b) {
    return (floats)vbslq_f32(vcgtq_f32((float32x4_t)a, (float32x4_t)b), (float32x4_t)a, (float32x4_t)b);
}

INLINE floats load_half(const void *from, int64_t i) {
    return (floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)from + i)));
}

#if HAS_PAIRS
INLINE halves narrowed(floats x) {
    return (halves)vreinterpret_u16_bf16(vcvt_bf16_f32((float32x4_t)x));
}

INLINE bfloat16x8_t as_bfloat16(floats x) { return vreinterpretq_bf16_f32((float32x4_t)x); }

INLINE floats broadcast_pair(const void *two) {
    float both;
    __builtin_memcpy(&both, two, sizeof both);
    return (floats)vdupq_n_f32(both);
}

INLINE floats add_pairs(floats sum, floats a, floats b) {
    return (floats)vbfdotq_f32((float32x4_t)sum, as_bfloat16(a), as_bfloat16(b));
}

/* Numbers of eight bits are exact in bfloat16: the upper half of float32. */
INLINE floats pairs_of_int8(const int8_t *from) {
    int16x8_t wide = vmovl_s8(vld1_s8(from));
    float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    float32x4_t high = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)));
    return (floats)vuzp2q_u16(vreinterpretq_u16_f32(low), vreinterpretq_u16_f32(high));
}

INLINE void interleave(const uint16_t *a, const uint16_t *b, floats *low, floats *high) {
    uint16x8_t of_a = vld1q_u16(a), of_b = vld1q_u16(b);
    *low = (floats)vzip1q_u16(of_a, of_b);
    *high = (floats)vzip2q_u16(of_a, of_b);
}
#else
/* Rounds to nearest, ties to even. */
INLINE halves narrowed(floats x) {
    words bits = (words)x;
    bits += 0x7fff + ((bits >> 16) & 1);
    return (halves)vshrn_n_u32((uint32x4_t)bits, 16);
}
#endif
