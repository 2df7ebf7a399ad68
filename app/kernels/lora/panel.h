// Products of panels: 16 outputs, words of K side by side, as in the tiles of app/kernels/linear/tile.h.
//
// A row's sums do not depend on how many rows go together. Int8 weights are stored + 128; a row comes with what takes
// that away again, -128 times the sum of its values.
#pragma once
#include "../linear/tile.h"

namespace TUILI_ISA {

enum : int {
    kPanel = 16,
    kPanelWord = kPanel * 4,     // bytes of a word of K
    kPanelVectors = kPanel / W,
    kTogether = 4,               // rows that go together at most
};

// How many rows from `row` on have one slot, up to kTogether. `slot_of(i)` is that of row i.
template <typename SlotOf>
TUILI_INLINE int rows_together(SlotOf slot_of, int64_t row, int64_t end) {
    int count = 1;
    while (count < kTogether && row + count < end && slot_of(row + count) == slot_of(row)) count++;
    return count;
}

// Calls f<M>(...) with M = count.
#define TUILI_TOGETHER(count, f, ...)      \
    switch (count) {                       \
        case 1: f<1>(__VA_ARGS__); break;  \
        case 2: f<2>(__VA_ARGS__); break;  \
        case 3: f<3>(__VA_ARGS__); break;  \
        default: f<4>(__VA_ARGS__);        \
    }

// sums[m] = panel . x[m] over int8 words, exact; x[m] is read from byte `at` on.
template <int M>
TUILI_INLINE void panel_int8(const char* const (&x)[M], int64_t at, const int32_t (&offset)[M], const char* w,
                             int words, F (&sums)[M][kPanelVectors]) {
#if defined(__AVX512F__)
    __m512i sum[M];
    TUILI_EACH(int m = 0; m < M; m++) sum[m] = _mm512_set1_epi32(offset[m]);
#pragma GCC unroll 4
    for (int k = 0; k < words; k++) {
        const __m512i weight = _mm512_loadu_si512(w + k * kPanelWord);
        TUILI_EACH(int m = 0; m < M; m++)
            sum[m] = _mm512_dpbusd_epi32(sum[m], weight, _mm512_set1_epi32(load_word(x[m] + at + k * 4)));
    }
    TUILI_EACH(int m = 0; m < M; m++) sums[m][0] = _mm512_cvtepi32_ps(sum[m]);
#else
    for (int v = 0; v < kPanelVectors; v++) {
        __m256i sum[M][2];  // of four outputs, two partial sums each
        TUILI_EACH(int m = 0; m < M; m++)
            TUILI_EACH(int j = 0; j < 2; j++) sum[m][j] = _mm256_setzero_si256();
        for (int k = 0; k < words; k++) {
            __m256i weight[2];
            const char* word = w + k * kPanelWord + v * 32;
            TUILI_EACH(int j = 0; j < 2; j++)
                weight[j] = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(word + j * 16)));
            TUILI_EACH(int m = 0; m < M; m++) {
                const __m128i bytes = _mm_cvtsi32_si128(load_word(x[m] + at + k * 4));
                const __m256i value = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(bytes));
                TUILI_EACH(int j = 0; j < 2; j++)
                    sum[m][j] = _mm256_add_epi32(sum[m][j], _mm256_madd_epi16(weight[j], value));
            }
        }
        TUILI_EACH(int m = 0; m < M; m++) {
            // hadd pairs within 128-bit lanes: outputs 0 1 4 5 | 2 3 6 7.
            const __m256i pairs = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[m][0], sum[m][1]), 0xd8);
            sums[m][v] = _mm256_cvtepi32_ps(_mm256_add_epi32(pairs, _mm256_set1_epi32(offset[m])));
        }
    }
#endif
}

// Adds a word of bf16 pairs to fp32 sums.
TUILI_INLINE F add_pairs(F sum, const char* weight, int32_t pair) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(weight), (__m512bh)_mm512_set1_epi32(pair));
#elif defined(__AVX512F__)
    const __m512i w = _mm512_loadu_si512(weight), v = _mm512_set1_epi32(pair);
    const __m512i high = _mm512_set1_epi32((int)0xffff0000);
    sum = fma(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)), sum);
    return fma(_mm512_castsi512_ps(_mm512_and_si512(w, high)), _mm512_castsi512_ps(_mm512_and_si512(v, high)), sum);
#else
    const __m256i w = _mm256_loadu_si256((const __m256i*)weight), v = _mm256_set1_epi32(pair);
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    sum = fma(_mm256_castsi256_ps(_mm256_slli_epi32(w, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)), sum);
    return fma(_mm256_castsi256_ps(_mm256_and_si256(w, high)), _mm256_castsi256_ps(_mm256_and_si256(v, high)), sum);
#endif
}

// sums[m] = panel . x[m] over words of bf16 pairs, in a few chains of additions that are joined at the end.
template <int M>
TUILI_INLINE void panel_bf16(const char* const (&x)[M], const char* w, int words, F (&sums)[M][kPanelVectors]) {
    enum : int { kChains = 2 };
    TUILI_EACH(int v = 0; v < kPanelVectors; v++) {
        F sum[M][kChains];
        TUILI_EACH(int m = 0; m < M; m++)
            TUILI_EACH(int c = 0; c < kChains; c++) sum[m][c] = zero();
        int k = 0;
        for (; k + kChains <= words; k += kChains)
            TUILI_EACH(int c = 0; c < kChains; c++) {
                const char* word = w + (k + c) * kPanelWord + v * W * 4;
                TUILI_EACH(int m = 0; m < M; m++) sum[m][c] = add_pairs(sum[m][c], word, load_word(x[m] + (k + c) * 4));
            }
        for (; k < words; k++)
            TUILI_EACH(int m = 0; m < M; m++)
                sum[m][0] = add_pairs(sum[m][0], w + k * kPanelWord + v * W * 4, load_word(x[m] + k * 4));
        TUILI_EACH(int m = 0; m < M; m++) sums[m][v] = add(sum[m][0], sum[m][1]);
    }
}

// What a token's int8 sums of one part begin with; the values lie behind it.
struct LowHead {
    float scale;
    int32_t offset;
};

}  // namespace TUILI_ISA
