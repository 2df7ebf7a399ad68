// The innermost products: up to kMaxRows rows of activations with a tile of 32 outputs, over a piece of K.
//
// Weights lie as [tile][K / q][32][q]: q neighbours along K side by side, four int8 or two bf16, 32 bits that one lane
// multiplies with as many bits of a row, broadcast. So a tile is one stream of memory, and every instruction set reads
// the same layout. Int8 weights are stored + 128, as the unsigned operand of vpdpbusd; what that adds, 128 times the
// sum of a group's activations, is subtracted again. Sums within a group of activations that share a scale are exact in
// int32; scaled, they are added in fp32. Floating sums go along K in one order, whatever the number of rows and however
// K was cut: each piece continues the sums of the one before.
//
// While one piece is multiplied the next is fetched, spread over the passes that blocks of rows make over the first, so
// that memory and arithmetic work at the same time.
#pragma once
#include "../native/simd.h"

namespace TUILI_ISA {

enum : int { kTile = 32, kWordBytes = kTile * 4 };  // a word: 32 bits of K for every output of the tile

TUILI_INLINE int32_t load_word(const void* p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

// What a group of a row of int8 activations comes with.
struct Group {
    int32_t offset;  // -128 * the sum of its values
    float scale;
};

// [groups, stride]: those of the rows, from the first group of the piece on.
struct Groups {
    const Group* first;
    int64_t stride;
};

enum : int { kGroupWords = TUILI_ACT_GROUP / 4 };

// A loop over an array of vectors: unrolled, or the array stays in memory.
#define TUILI_EACH _Pragma("GCC unroll 8") for

// multiply<R, LINES>() adds to c [R, 32] (or sets it, when `first`) the products over `words` words of K.
// x: row 0, `stride` bytes a row. w: the tile. A piece begins with a group. LINES lines of `next` are fetched a word;
// LINES = THIRD fetches a line a word in two of three groups, so that three passes fetch what is two lines a word.
enum : int { THIRD = -1 };
TUILI_INLINE int lines_of_third(int words) {
    const int left = words % (3 * kGroupWords);
    return words / (3 * kGroupWords) * 2 * kGroupWords + (left < 2 * kGroupWords ? left : 2 * kGroupWords);
}
#if defined(__AVX512F__)

enum : int { kMaxRows = 6 };  // whose sums of both kinds, exact and scaled, fit the registers

template <int LINES>
TUILI_INLINE void fetch_lines(const char* next, int k) {
    TUILI_EACH(int i = 0; i < LINES; i++) _mm_prefetch(next + (k * LINES + i) * 64, _MM_HINT_T0);
}

struct Int8Tile {
    template <int R, int LINES>
    TUILI_INLINE void add_word(const char* x, const char* half, int64_t stride, const char* w, int k, const char* next,
                               __m512i (&sum)[R][2]) {
        constexpr int kHalf = (R + 1) / 2;
        __m512i weight[2];
        TUILI_EACH(int j = 0; j < 2; j++) weight[j] = _mm512_loadu_si512(w + k * kWordBytes + j * 64);
        fetch_lines<LINES>(next, k);
        TUILI_EACH(int r = 0; r < R; r++) {
            const char* row = r < kHalf ? x + r * stride : half + (r - kHalf) * stride;
            const __m512i v = _mm512_set1_epi32(load_word(row + k * 4));
            TUILI_EACH(int j = 0; j < 2; j++) sum[r][j] = _mm512_dpbusd_epi32(sum[r][j], weight[j], v);
        }
    }

    // Adds a group of `words` words to `total`.
    template <int R, int LINES>
    TUILI_INLINE void add_group(const char* x, int64_t stride, const char* w, int words, const char* next,
                                const Group* group, F (&total)[R][2]) {
        const char* half = x + (R + 1) / 2 * stride;  // two bases, or the addresses of six rows take six registers
        __m512i sum[R][2];
        TUILI_EACH(int r = 0; r < R; r++)
            TUILI_EACH(int j = 0; j < 2; j++) sum[r][j] = _mm512_set1_epi32(group[r].offset);
        if (words == kGroupWords) {
#pragma GCC unroll 16
            for (int k = 0; k < kGroupWords; k++) add_word<R, LINES>(x, half, stride, w, k, next, sum);
        } else {
#pragma GCC unroll 1
            for (int k = 0; k < words; k++) add_word<R, LINES>(x, half, stride, w, k, next, sum);
        }
        TUILI_EACH(int r = 0; r < R; r++) {
            const F scale = set1(group[r].scale);
            TUILI_EACH(int j = 0; j < 2; j++) {
                __m512i exact = sum[r][j];
                asm("" : "+v"(exact));  // without it GCC 12 keeps the sums on the stack
                total[r][j] = fma(_mm512_cvtepi32_ps(exact), scale, total[r][j]);
            }
        }
    }

    template <int R, int LINES>
    TUILI_INLINE void multiply(const char* x, int64_t stride, const char* w, int words, float* c, bool first,
                               const char* next, const Groups& groups) {
        constexpr int kLines = LINES == THIRD ? 1 : LINES;
        const Group* group = groups.first;
        F total[R][2];
        TUILI_EACH(int r = 0; r < R; r++)
            TUILI_EACH(int j = 0; j < 2; j++) total[r][j] = first ? zero() : load(c + r * kTile + j * 16);
        int left = words;
        int third = 0;
        for (; left >= kGroupWords; left -= kGroupWords) {
            if (LINES == THIRD && third++ == 2) {
                third = 0;
                add_group<R, 0>(x, stride, w, kGroupWords, next, group, total);
            } else {
                add_group<R, kLines>(x, stride, w, kGroupWords, next, group, total);
                next += kGroupWords * kLines * 64;
            }
            x += kGroupWords * 4;
            w += kGroupWords * kWordBytes;
            group += groups.stride;
        }
        if (left > 0) add_group<R, LINES == THIRD ? 0 : LINES>(x, stride, w, left, next, group, total);
        TUILI_EACH(int r = 0; r < R; r++)
            TUILI_EACH(int j = 0; j < 2; j++) store(c + r * kTile + j * 16, total[r][j]);
    }
};

struct Bf16Tile {
    template <int R, int LINES>
    TUILI_INLINE void multiply(const char* x, int64_t stride, const char* w, int words, float* c, bool first,
                               const char* next, const Groups&) {
        F sum[R][2];
        TUILI_EACH(int r = 0; r < R; r++)
            TUILI_EACH(int j = 0; j < 2; j++) sum[r][j] = first ? zero() : load(c + r * kTile + j * 16);
        for (int k = 0; k < words; k++) {
            __m512i weight[2];
            TUILI_EACH(int j = 0; j < 2; j++) weight[j] = _mm512_loadu_si512(w + k * kWordBytes + j * 64);
            if (LINES != THIRD) {
                fetch_lines<LINES>(next, k);
            } else if (k % (3 * kGroupWords) < 2 * kGroupWords) {
                fetch_lines<1>(next, 0);
                next += 64;
            }
            TUILI_EACH(int r = 0; r < R; r++) {
                const __m512i v = _mm512_set1_epi32(load_word(x + r * stride + k * 4));
                TUILI_EACH(int j = 0; j < 2; j++) {
#if defined(__AVX512BF16__)
                    sum[r][j] = _mm512_dpbf16_ps(sum[r][j], (__m512bh)weight[j], (__m512bh)v);
#else
                    const __m512i high = _mm512_set1_epi32((int)0xffff0000);
                    const F even = _mm512_castsi512_ps(_mm512_slli_epi32(weight[j], 16));
                    const F odd = _mm512_castsi512_ps(_mm512_and_si512(weight[j], high));
                    const F x_even = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
                    const F x_odd = _mm512_castsi512_ps(_mm512_and_si512(v, high));
                    sum[r][j] = fma(odd, x_odd, fma(even, x_even, sum[r][j]));
#endif
                }
            }
        }
        TUILI_EACH(int r = 0; r < R; r++)
            TUILI_EACH(int j = 0; j < 2; j++) store(c + r * kTile + j * 16, sum[r][j]);
    }
};

// The sum of n <= 64 values.
TUILI_INLINE int32_t group_sum(const int8_t* x, int n) {
    const __m512i v = _mm512_maskz_loadu_epi8((~(__mmask64)0) >> (64 - n), x);
    const __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), v);
    return _mm512_reduce_add_epi32(sum);
}

#else

enum : int { kMaxRows = 2 };

struct Int8Tile {
    // Widened to 16 bits: vpmaddubsw would saturate.
    template <int R, int>
    TUILI_INLINE void multiply(const char* x, int64_t stride, const char* w, int words, float* c, bool first,
                               const char*, const Groups& groups) {
        for (int part = 0; part < 2; part++)
            for (int k = 0, g = 0; k < words; k += kGroupWords, g++)
                multiply_group<R>(x, stride, w + part * 64, k, words - k < kGroupWords ? words : k + kGroupWords,
                                  c + part * 16, first && g == 0, groups, g);
    }

    template <int R>
    TUILI_INLINE void multiply_group(const char* x, int64_t stride, const char* w, int begin, int end, float* c,
                                     bool sets, const Groups& groups, int g) {
        __m256i sum[R][4];  // of four outputs, two partial sums each
        TUILI_EACH(int r = 0; r < R; r++)
            TUILI_EACH(int j = 0; j < 4; j++) sum[r][j] = _mm256_setzero_si256();
        for (int k = begin; k < end; k++) {
            __m256i weight[4];
            TUILI_EACH(int j = 0; j < 4; j++)
                weight[j] = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(w + k * kWordBytes + j * 16)));
            TUILI_EACH(int r = 0; r < R; r++) {
                const __m128i bytes = _mm_cvtsi32_si128(load_word(x + r * stride + k * 4));
                const __m256i v = _mm256_broadcastq_epi64(_mm_cvtepi8_epi16(bytes));
                TUILI_EACH(int j = 0; j < 4; j++)
                    sum[r][j] = _mm256_add_epi32(sum[r][j], _mm256_madd_epi16(weight[j], v));
            }
        }
        TUILI_EACH(int r = 0; r < R; r++) {
            const F scale = set1(groups.first[g * groups.stride + r].scale);
            const __m256i offset = _mm256_set1_epi32(groups.first[g * groups.stride + r].offset);
            TUILI_EACH(int j = 0; j < 4; j += 2) {
                // hadd pairs within 128-bit lanes: outputs 0 1 4 5 | 2 3 6 7.
                __m256i pairs = _mm256_hadd_epi32(sum[r][j], sum[r][j + 1]);
                pairs = _mm256_add_epi32(_mm256_permute4x64_epi64(pairs, 0xd8), offset);
                float* target = c + r * kTile + j * 4;
                store(target, fma(_mm256_cvtepi32_ps(pairs), scale, sets ? zero() : load(target)));
            }
        }
    }
};

struct Bf16Tile {
    template <int R, int>
    TUILI_INLINE void multiply(const char* x, int64_t stride, const char* w, int words, float* c, bool first,
                               const char*, const Groups&) {
        const __m256i high = _mm256_set1_epi32((int)0xffff0000);
        for (int part = 0; part < 2; part++) {
            F sum[R][2];
            TUILI_EACH(int r = 0; r < R; r++)
                TUILI_EACH(int j = 0; j < 2; j++) sum[r][j] = first ? zero() : load(c + r * kTile + part * 16 + j * 8);
            for (int k = 0; k < words; k++) {
                F even[2], odd[2];
                TUILI_EACH(int j = 0; j < 2; j++) {
                    const __m256i both = _mm256_loadu_si256((const __m256i*)(w + k * kWordBytes + part * 64 + j * 32));
                    even[j] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
                    odd[j] = _mm256_castsi256_ps(_mm256_and_si256(both, high));
                }
                TUILI_EACH(int r = 0; r < R; r++) {
                    const __m256i v = _mm256_set1_epi32(load_word(x + r * stride + k * 4));
                    const F x_even = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
                    const F x_odd = _mm256_castsi256_ps(_mm256_and_si256(v, high));
                    TUILI_EACH(int j = 0; j < 2; j++) sum[r][j] = fma(odd[j], x_odd, fma(even[j], x_even, sum[r][j]));
                }
            }
            TUILI_EACH(int r = 0; r < R; r++)
                TUILI_EACH(int j = 0; j < 2; j++) store(c + r * kTile + part * 16 + j * 8, sum[r][j]);
        }
    }
};

TUILI_INLINE int32_t group_sum(const int8_t* x, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    return sum;
}

#endif

// multiply() of up to kMaxRows rows.
template <typename Tile, int LINES>
static void multiply_rows(int64_t rows, const char* x, int64_t stride, const char* w, int words, float* c, bool first,
                          const char* next, const Groups& groups) {
#define TUILI_ROWS(R)                                                                     \
    case R:                                                                             \
        Tile::template multiply<R, LINES>(x, stride, w, words, c, first, next, groups); \
        break;
    switch (rows) {
        TUILI_ROWS(1)
        TUILI_ROWS(2)
#if defined(__AVX512F__)
        TUILI_ROWS(3)
        TUILI_ROWS(4)
        TUILI_ROWS(5)
        TUILI_ROWS(6)
#endif
    }
#undef TUILI_ROWS
}

}  // namespace TUILI_ISA
