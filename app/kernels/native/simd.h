// Vectors of one instruction set, under one set of names. Each .cpp that includes this is compiled once for each set,
// with TUILI_ISA its name; everything lives in a namespace of that name and nothing is a template of the standard
// library, so that no two translation units share a symbol: the linker would keep one copy of it, perhaps the one that
// an older machine cannot run.
//
// F is a vector of W floats. Loads and stores are unaligned; the _n variants touch only the first n elements
// (0 < n <= W) and read zeros for the others.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "abi.h"

#define TUILI_CAT_(a, b) a##_##b
#define TUILI_CAT(a, b) TUILI_CAT_(a, b)
// Defines the exported kind of an op: TUILI_DEFINE_KIND(add_norm) = {"add_norm", ...};
#define TUILI_KIND(op) TUILI_CAT(tuili_kind_##op, TUILI_ISA)
#define TUILI_DEFINE_KIND(op)                  \
    extern "C" {                               \
    extern const TuiliKind TUILI_KIND(op);     \
    }                                          \
    extern "C" const TuiliKind TUILI_KIND(op)

namespace TUILI_ISA {

#define TUILI_INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16_t;

#if defined(__AVX512F__)

typedef __m512 F;
enum : int { W = 16 };

TUILI_INLINE __mmask16 mask_n(int n) { return (__mmask16)((1u << n) - 1u); }
TUILI_INLINE F zero() { return _mm512_setzero_ps(); }
TUILI_INLINE F set1(float v) { return _mm512_set1_ps(v); }
TUILI_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
TUILI_INLINE F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(mask_n(n), p); }
TUILI_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
TUILI_INLINE void store_n(float* p, F v, int n) { _mm512_mask_storeu_ps(p, mask_n(n), v); }
TUILI_INLINE F from_bf16_bits(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
TUILI_INLINE F load(const bf16_t* p) { return from_bf16_bits(_mm256_loadu_si256((const __m256i*)p)); }
TUILI_INLINE F load_n(const bf16_t* p, int n) { return from_bf16_bits(_mm256_maskz_loadu_epi16(mask_n(n), p)); }
// Round to nearest even; NaN stays NaN (quiet).
TUILI_INLINE __m256i to_bf16_bits(F v) {
    __m512i u = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
TUILI_INLINE void store(bf16_t* p, F v) { _mm256_storeu_si256((__m256i*)p, to_bf16_bits(v)); }
TUILI_INLINE void store_n(bf16_t* p, F v, int n) { _mm256_mask_storeu_epi16(p, mask_n(n), to_bf16_bits(v)); }
TUILI_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
TUILI_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
TUILI_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
TUILI_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
TUILI_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }  // a * b + c
TUILI_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }  // b where either is NaN
TUILI_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
TUILI_INLINE F abs(F a) { return _mm512_abs_ps(a); }
TUILI_INLINE F round(F a) { return _mm512_roundscale_ps(a, 0); }  // half to even
// 2^n for integral n in [-126, 127].
TUILI_INLINE F pow2i(F n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
// Saturated to int8, the first n of them stored.
TUILI_INLINE void store_int8(int8_t* p, F v) {
    _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}
TUILI_INLINE void store_int8_n(int8_t* p, F v, int n) {
    _mm_mask_storeu_epi8(p, mask_n(n), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}
// Bit i set where a < b.
TUILI_INLINE uint32_t lt_bits(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
TUILI_INLINE uint32_t ge_bits(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
TUILI_INLINE uint32_t gt_bits(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
TUILI_INLINE uint32_t nan_bits(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
// yes where a < b, else no (also where either is NaN).
TUILI_INLINE F select_lt(F a, F b, F yes, F no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}

#else  // AVX2 and FMA

typedef __m256 F;
enum : int { W = 8 };

TUILI_INLINE __m256i mask_n(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
TUILI_INLINE F zero() { return _mm256_setzero_ps(); }
TUILI_INLINE F set1(float v) { return _mm256_set1_ps(v); }
TUILI_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
TUILI_INLINE F load_n(const float* p, int n) { return _mm256_maskload_ps(p, mask_n(n)); }
TUILI_INLINE void store(float* p, F v) { _mm256_storeu_ps(p, v); }
TUILI_INLINE void store_n(float* p, F v, int n) { _mm256_maskstore_ps(p, mask_n(n), v); }
TUILI_INLINE F from_bf16_bits(__m128i v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
TUILI_INLINE F load(const bf16_t* p) { return from_bf16_bits(_mm_loadu_si128((const __m128i*)p)); }
TUILI_INLINE F load_n(const bf16_t* p, int n) {
    bf16_t t[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    memcpy(t, p, (size_t)n * sizeof(bf16_t));
    return load(t);
}
TUILI_INLINE __m128i to_bf16_bits(F v) {
    __m256i u = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
    rounded = _mm256_srli_epi32(rounded, 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    return _mm256_castsi256_si128(packed);
}
TUILI_INLINE void store(bf16_t* p, F v) { _mm_storeu_si128((__m128i*)p, to_bf16_bits(v)); }
TUILI_INLINE void store_n(bf16_t* p, F v, int n) {
    bf16_t t[8];
    store(t, v);
    memcpy(p, t, (size_t)n * sizeof(bf16_t));
}
TUILI_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
TUILI_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
TUILI_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
TUILI_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
TUILI_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
TUILI_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
TUILI_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
TUILI_INLINE F abs(F a) { return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
TUILI_INLINE F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
TUILI_INLINE F pow2i(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
TUILI_INLINE __m128i to_int8(F v) {
    __m256i i = _mm256_cvtps_epi32(v);
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    return _mm_packs_epi16(half, half);
}
TUILI_INLINE void store_int8(int8_t* p, F v) { _mm_storel_epi64((__m128i*)p, to_int8(v)); }
TUILI_INLINE void store_int8_n(int8_t* p, F v, int n) {
    int8_t t[16];
    _mm_storeu_si128((__m128i*)t, to_int8(v));
    memcpy(p, t, (size_t)n);
}
TUILI_INLINE uint32_t lt_bits(F a, F b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
TUILI_INLINE uint32_t ge_bits(F a, F b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
TUILI_INLINE uint32_t gt_bits(F a, F b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
TUILI_INLINE uint32_t nan_bits(F a) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
TUILI_INLINE F select_lt(F a, F b, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }

#endif

// The sum of the lanes, in a fixed order (a tree of halves), and their maximum.
TUILI_INLINE float hsum(F v) {
#if defined(__AVX512F__)
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#else
    const __m256 half = v;
#endif
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
TUILI_INLINE float hmax(F v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(v);
#else
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
#endif
}

// e^x to about 1.5 units in the last place; 0 below -87.3 (also for -inf), inf above 88.7, NaN for NaN.
// Range reduction by ln 2 in two parts (Cody and Waite), then a degree-6 polynomial of the remainder in
// [-ln 2 / 2, ln 2 / 2] (Cephes' expf coefficients).
TUILI_INLINE F exp(F x) {
    const F low = set1(-87.33654f), high = set1(88.72283f);
    F clamped = min(max(low, x), high);  // max and min give their second operand where one is NaN
    F n = round(mul(clamped, set1(1.44269504f)));
    n = min(n, set1(127.0f));
    F r = fma(n, set1(-0.693359375f), clamped);
    r = fma(n, set1(2.12194440e-4f), r);
    F p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(mul(p, r), r, add(r, set1(1.0f)));
    F y = mul(p, pow2i(max(n, set1(-126.0f))));
#if defined(__AVX512F__)
    y = _mm512_maskz_mov_ps((__mmask16)ge_bits(x, low) | (__mmask16)nan_bits(x), y);
    y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, high, _CMP_GT_OQ), set1(__builtin_inff()));
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
#else
    y = _mm256_andnot_ps(_mm256_cmp_ps(x, low, _CMP_LT_OQ), y);
    y = _mm256_blendv_ps(y, set1(__builtin_inff()), _mm256_cmp_ps(x, high, _CMP_GT_OQ));
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
#endif
}

// tanh x to about 2 units in the last place, NaN for NaN: Cephes' tanhf (an odd polynomial near zero), beyond 0.625
// by e^2x.
TUILI_INLINE F tanh(F x) {
    const F square = mul(x, x);
    F p = set1(-5.70498872745e-3f);
    p = fma(p, square, set1(2.06390887954e-2f));
    p = fma(p, square, set1(-5.37397155531e-2f));
    p = fma(p, square, set1(1.33314422036e-1f));
    p = fma(p, square, set1(-3.33332819422e-1f));
    const F near = fma(mul(p, square), x, x);
    const F far = sub(set1(1.0f), div(set1(2.0f), add(exp(add(x, x)), set1(1.0f))));
    return select_lt(abs(x), set1(0.625f), near, far);
}

// 2^x for x <= 0 to about 2 units in the last place, NaN for NaN: what softmax needs, at half the price of exp. Below
// -126 it may be 0. Degree-5 polynomial of the remainder in [-1/2, 1/2] (minimax, by the Remez algorithm).
TUILI_INLINE F exp2_nonpositive(F x) {
    x = max(set1(-150.0f), x);  // a NaN stays one, and -inf does not become one
    const F n = round(x);
    const F r = sub(x, n);
    F p = set1(1.327647129e-3f);
    p = fma(p, r, set1(9.675540961e-3f));
    p = fma(p, r, set1(5.550713092e-2f));
    p = fma(p, r, set1(2.402212024e-1f));
    p = fma(p, r, set1(6.931469440e-1f));
    p = fma(p, r, set1(1.000000119f));
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, n);
#else
    return _mm256_andnot_ps(_mm256_cmp_ps(n, set1(-126.0f), _CMP_LT_OQ), mul(p, pow2i(max(set1(-126.0f), n))));
#endif
}

TUILI_INLINE float bf16_to_float(bf16_t b) {
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
TUILI_INLINE bf16_t float_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if (f != f) return (bf16_t)((u >> 16) | 0x40);
    return (bf16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
// IEEE half precision, for the scales of int8 pages; both sets have F16C.
#if defined(__AVX512F__)
TUILI_INLINE F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
#else
TUILI_INLINE F load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
#endif
TUILI_INLINE float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
TUILI_INLINE uint16_t float_to_half(float f) { return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT); }

}  // namespace
