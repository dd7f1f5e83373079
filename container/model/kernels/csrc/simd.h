/* SIMD helpers: vectors of LANES numbers in GCC's and clang's vector extension, so that one source serves
 * every CPU. A vector is one register: sixteen numbers with AVX-512, eight with AVX2, four with NEON, as a
 * wider one would go through memory. Numbers are bfloat16 (`bf16`) or float32 in memory and float32 in
 * registers.
 *
 * simd_x86.h and simd_arm.h have what the extension lacks. HAS_GEMM: all that products need. HAS_PAIRS: with
 * products of pairs of bfloat16, which are in vectors of LANES pairs of type `floats`. HAS_MATRIX_PAIRS: with
 * those of two rows by two outputs. HAS_TILES: with AMX's. AMX_IN_C names a header of the tests that has all of it.
 */

#pragma once
#include <stdint.h>

#ifdef __AVX512F__
#define LANES 16
#elif defined(__aarch64__)
#define LANES 4
#else
#define LANES 8
#endif
#define MAX_DIM 256 /* of a head */
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

/* Each header has these:
 *   words widened(halves)                 zero-extend
 *   floats larger(floats a, floats b)     the larger of each lane
 *   halves narrowed(floats)               round to bfloat16, to nearest, ties to even
 *   floats load_half(from, i)             HAS_GEMM: load a vector of float16 from element `i` on
 *   floats broadcast_pair(two)            HAS_PAIRS: two adjacent bfloat16 numbers in every lane
 *   floats add_pairs(sum, a, b)           sum + a[0] b[0] + a[1] b[1] in each lane
 *   floats pairs_of_int8(from)            convert 2 * LANES int8 numbers to pairs of bfloat16
 *   void interleave(a, b, low, high)      pair 2 * LANES numbers of `a` with those of `b`
 */
#ifdef AMX_IN_C
#include AMX_IN_C
#elif defined(__AVX2__)
#include "simd_x86.h"
#elif defined(__aarch64__)
#include "simd_arm.h"
#else
#define HAS_GEMM 0
#define HAS_PAIRS 0
#define HAS_MATRIX_PAIRS 0
#define HAS_TILES 0

INLINE words widened(halves x) { return __builtin_convertvector(x, words); }

INLINE floats larger(floats a, floats b) {
    ints where = a > b;
    return (floats)((where & (ints)a) | (~where & (ints)b));
}

INLINE halves narrowed(floats x) {
    words bits = (words)x;
    bits += 0x7fff + ((bits >> 16) & 1);
    return __builtin_convertvector(bits >> 16, halves);
}
#endif

/* Load a vector from element `i` on. */
INLINE floats load(const void *from, int64_t i, int bf16) {
    if (bf16) {
        halves upper;
        __builtin_memcpy(&upper, (const uint16_t *)from + i, sizeof upper);
        return (floats)(widened(upper) << 16);
    }
    floats read;
    __builtin_memcpy(&read, (const float *)from + i, sizeof read);
    return read;
}

INLINE void store(void *to, int64_t i, floats x, int bf16) {
    if (bf16) {
        halves upper = narrowed(x);
        __builtin_memcpy((uint16_t *)to + i, &upper, sizeof upper);
    } else {
        __builtin_memcpy((float *)to + i, &x, sizeof x);
    }
}

INLINE const void *at(const void *from, int64_t i, int bf16) {
    return (const char *)from + i * (bf16 ? 2 : 4);
}

/* Load the first `n` numbers of a vector; the rest are zero. */
INLINE floats load_some(const void *from, int64_t i, int64_t n, int bf16) {
    if (n == LANES) return load(from, i, bf16);
    char read[4 * LANES] = {0};
    __builtin_memcpy(read, at(from, i, bf16), (uint64_t)(n * (bf16 ? 2 : 4)));
    return load(read, 0, bf16);
}

INLINE void store_some(void *to, int64_t i, int64_t n, floats x, int bf16) {
    char made[4 * LANES];
    if (n == LANES) {
        store(to, i, x, bf16);
        return;
    }
    store(made, 0, x, bf16);
    __builtin_memcpy((void *)at(to, i, bf16), made, (uint64_t)(n * (bf16 ? 2 : 4)));
}

INLINE floats all(float x) { return x - (floats){0}; }

INLINE floats pick(ints where, floats yes, floats no) {
    return (floats)((where & (ints)yes) | (~where & (ints)no));
}

#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* The numbers of the lanes. */
#if LANES == 16
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif LANES == 8
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define LANE_NUMBERS {0, 1, 2, 3}
#endif

/* Combine x[i] and x[i ^ 8], x[i ^ 4] ... : each lane ends with the result over all lanes. */
#if LANES == 16
#define FOLD(x, join)                                                                   \
    x = join(x, SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));   \
    x = join(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));   \
    x = join(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));   \
    x = join(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif LANES == 8
#define FOLD(x, join)                                        \
    x = join(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3));      \
    x = join(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5));      \
    x = join(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
#else
#define FOLD(x, join)                      \
    x = join(x, SHUFFLE(x, x, 2, 3, 0, 1)); \
    x = join(x, SHUFFLE(x, x, 1, 0, 3, 2));
#endif

INLINE floats plus(floats a, floats b) { return a + b; }

INLINE float sum(floats x) {
    FOLD(x, plus)
    return x[0];
}

INLINE float largest(floats x) {
    FOLD(x, larger)
    return x[0];
}

/* Return the sums of LANES vectors as a vector: add halves pairwise, then quarters, and so on. */
#if LANES == 16
INLINE floats sums(floats *x) {
    for (int i = 0; i < 8; i++)
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
             + SHUFFLE(x[2 * i], x[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
             + SHUFFLE(x[2 * i], x[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29)
             + SHUFFLE(x[2 * i], x[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return SHUFFLE(x[0], x[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
         + SHUFFLE(x[0], x[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#elif LANES == 8
INLINE floats sums(floats *x) {
    for (int i = 0; i < 4; i++)
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 2, 8, 10, 4, 6, 12, 14)
             + SHUFFLE(x[2 * i], x[2 * i + 1], 1, 3, 9, 11, 5, 7, 13, 15);
    for (int i = 0; i < 2; i++)
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 2, 8, 10, 4, 6, 12, 14)
             + SHUFFLE(x[2 * i], x[2 * i + 1], 1, 3, 9, 11, 5, 7, 13, 15);
    return SHUFFLE(x[0], x[1], 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(x[0], x[1], 4, 5, 6, 7, 12, 13, 14, 15);
}
#else
INLINE floats sums(floats *x) {
    for (int i = 0; i < 2; i++)
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 2, 4, 6) + SHUFFLE(x[2 * i], x[2 * i + 1], 1, 3, 5, 7);
    return SHUFFLE(x[0], x[1], 0, 2, 4, 6) + SHUFFLE(x[0], x[1], 1, 3, 5, 7);
}
#endif

/* Transpose: swap blocks of 8, then 4, 2, 1 across the diagonal. */
#define EXCHANGE(x, step, ...)                                            \
    for (int i = 0; i < LANES; i++)                                       \
        if (!(i & step)) {                                                \
            floats a = x[i], b = x[i + step];                             \
            x[i] = SHUFFLE(a, b, __VA_ARGS__);                            \
            x[i + step] = SHUFFLE(a, b, OTHER##step);                     \
        }
#if LANES == 16
#define OTHER8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define OTHER4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define OTHER2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define OTHER1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31

INLINE void transpose(floats x[LANES]) {
    EXCHANGE(x, 8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
    EXCHANGE(x, 4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
    EXCHANGE(x, 2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
    EXCHANGE(x, 1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
}
#elif LANES == 8
#define OTHER4 4, 5, 6, 7, 12, 13, 14, 15
#define OTHER2 2, 3, 10, 11, 6, 7, 14, 15
#define OTHER1 1, 9, 3, 11, 5, 13, 7, 15

INLINE void transpose(floats x[LANES]) {
    EXCHANGE(x, 4, 0, 1, 2, 3, 8, 9, 10, 11)
    EXCHANGE(x, 2, 0, 1, 8, 9, 4, 5, 12, 13)
    EXCHANGE(x, 1, 0, 8, 2, 10, 4, 12, 6, 14)
}
#else
#define OTHER2 2, 3, 6, 7
#define OTHER1 1, 5, 3, 7

INLINE void transpose(floats x[LANES]) {
    EXCHANGE(x, 2, 0, 1, 4, 5)
    EXCHANGE(x, 1, 0, 4, 2, 6)
}
#endif

/* e^x = 2^n e^r with |r| <= ln 2 / 2; the polynomial is that of Cephes' expf (Moshier), 2 ulp. */
INLINE floats exponential(floats x) {
    const floats shifter = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    x = -larger(all(-88.0f), -larger(all(-87.0f), x)); /* NaN stays NaN */
    floats n = (x * 1.44269504088896341f + shifter) - shifter;
    floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (floats)((__builtin_convertvector(n, ints) + 127) << 23);
}

/* GELU: x times the normal distribution's CDF at x; the tail is Abramowitz and Stegun's 7.1.26, with
 * an error of at most 1.5e-7. */
INLINE floats gelu(floats x) {
    floats z = larger(x, -x) * 0.70710678118654752f, t = 1.0f / (1.0f + z * 0.3275911f);
    floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    floats tail = p * t * exponential(-z * z) * 0.5f;
    return x * pick(x < 0.0f, tail, 1.0f - tail);
}

