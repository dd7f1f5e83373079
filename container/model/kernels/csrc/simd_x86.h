/* SIMD primitives of x86, for which GCC's vector extension makes several instructions of one: AVX2, AVX-512,
 * and products of pairs of bfloat16 with AVX512_BF16. See simd.h, which includes this. */

#pragma once
#include <immintrin.h>

#define HAS_GEMM 1
#ifdef __AVX512BF16__
#define HAS_PAIRS 1
#else
#define HAS_PAIRS 0
#endif
#define HAS_MATRIX_PAIRS 0
#ifdef __AMX_BF16__
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

#ifdef __AVX512F__
INLINE words widened(halves x) { return (words)_mm512_cvtepu16_epi32((__m256i)x); }
INLINE floats larger(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }

INLINE floats load_half(const void *from, int64_t i) {
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)((const uint16_t *)from + i)));
}
#else
INLINE words widened(halves x) { return (words)_mm256_cvtepu16_epi32((__m128i)x); }
INLINE floats larger(floats a, floats b) { return (floats)_mm256_max_ps((__m256)a, (__m256)b); }

INLINE floats load_half(const void *from, int64_t i) {
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const void *)((const uint16_t *)from + i)));
}
#endif

#if HAS_PAIRS
INLINE halves narrowed(floats x) { return (halves)_mm512_cvtneps_pbh((__m512)x); }

INLINE floats broadcast_pair(const void *two) {
    int32_t both;
    __builtin_memcpy(&both, two, sizeof both);
    return (floats)_mm512_set1_epi32(both);
}

INLINE floats add_pairs(floats sum, floats a, floats b) {
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

INLINE floats pairs_of_int8(const int8_t *from) {
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(from + LANES))));
    return (floats)_mm512_cvtne2ps_pbh(high, low);
}

INLINE void interleave(const uint16_t *a, const uint16_t *b, floats *low, floats *high) {
    static const uint16_t order[] = {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i firsts = _mm512_loadu_si512(order), lasts = _mm512_add_epi16(firsts, _mm512_set1_epi16(16));
    const __m512i of_a = _mm512_loadu_si512(a), of_b = _mm512_loadu_si512(b);
    *low = (floats)_mm512_permutex2var_epi16(of_a, firsts, of_b);
    *high = (floats)_mm512_permutex2var_epi16(of_a, lasts, of_b);
}
#else
/* Rounds to nearest, ties to even. */
INLINE halves narrowed(floats x) {
    words bits = (words)x;
    bits += 0x7fff + ((bits >> 16) & 1);
    bits >>= 16;
#if LANES == 8
    __m256i both = (__m256i)bits;
    return (halves)_mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
#else
    return __builtin_convertvector(bits, halves);
#endif
}
#endif
