// Weights in the blocks of their file: up to kMaxBlockRows rows of activations with a panel of 16 outputs, over all of K.
//
// A panel (app/kernels/blocks/layout.py) holds groups of 32 neighbours along K, one behind the other, each some words of
// 64 bytes: of every word 32 bits are an output's. Behind the groups stand the scales, 16 side by side. A group's codes
// are at most 8 bits, unsigned, the operand of vpdpbusd. Sums of a group are exact in int32, and so is what an offset of
// the codes takes from them, in fp32, as it has 24 bits at most; scaled, the groups are added in fp32 along K. The order
// is one and the same for every number of rows.
#pragma once
#include "../linear/finish.h"

namespace TUILI_ISA {

enum : int { kBlockGroup = 32 };

// What 64 neighbours of a row of int8 activations come with.
struct BlockGroup {
    float scale;
    float sums[2];      // of the values of either half
    float quarters[4];  // likewise
    float reserved;
};

enum Codes { kNibbles, kNibbles1, kNibbles2, kBytes, kTable };
enum Scales { kHalf, kHalfMin, kSuper, kSuper16, kExponent };

alignas(16) static const uint8_t kIq4nl[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                               129, 141, 153, 166, 181, 197, 217, 241};  // + 128
alignas(16) static const uint8_t kMxfp4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};  // + 12

// A type: how codes and scales lie, what the codes are more than they mean, how many words of products fit 16 bits.
template <Codes CODES, Scales SCALES, int OFFSET, int SHORTS, const uint8_t* TABLE = nullptr>
struct BlockType {
    static constexpr Codes codes = CODES;
    static constexpr Scales scales = SCALES;
    static constexpr int offset = OFFSET, shorts = SHORTS;
    static constexpr int words = CODES == kBytes ? 8 : CODES == kNibbles1 ? 5 : CODES == kNibbles2 ? 6 : 4;
    static constexpr const uint8_t* table = TABLE;
    static constexpr bool has_min = SCALES == kHalfMin || SCALES == kSuper;
};
typedef BlockType<kNibbles, kHalf, 8, 4> Q4_0;
typedef BlockType<kNibbles, kHalfMin, 0, 4> Q4_1;
typedef BlockType<kNibbles1, kHalf, 16, 4> Q5_0;
typedef BlockType<kNibbles1, kHalfMin, 0, 4> Q5_1;
typedef BlockType<kBytes, kHalf, 128, 0> Q8_0;
typedef BlockType<kNibbles, kSuper, 0, 4> Q4_K;
typedef BlockType<kNibbles1, kSuper, 0, 4> Q5_K;
typedef BlockType<kNibbles2, kSuper16, 32, 2> Q6_K;
typedef BlockType<kTable, kHalf, 128, 0, kIq4nl> IQ4_NL;
typedef BlockType<kTable, kExponent, 12, 4, kMxfp4> MXFP4;

// BlockLayout.code in layout.py is the place in this list.
#define TUILI_BLOCK_TYPES(X) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_NL) X(MXFP4)

#define TUILI_UNROLLED _Pragma("GCC unroll 8") for

#if defined(__AVX512F__)

enum : int { kMaxBlockRows = 8 };
typedef __m512i V;
TUILI_INLINE V load_word16(const char* p) { return _mm512_loadu_si512(p); }
TUILI_INLINE V and_(V a, int mask) { return _mm512_and_si512(a, _mm512_set1_epi32(mask)); }
TUILI_INLINE V or_(V a, V b) { return _mm512_or_si512(a, b); }
template <int N>
TUILI_INLINE V shifted(V v) {  // to the left, or to the right where N < 0
    return N >= 0 ? _mm512_slli_epi32(v, N < 0 ? 0 : N) : _mm512_srli_epi32(v, N < 0 ? -N : 0);
}
TUILI_INLINE V looked_up(const uint8_t* table, V v) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)table)), v);
}
TUILI_INLINE F to_float(V v) { return _mm512_cvtepi32_ps(v); }
TUILI_INLINE V add_ints(V a, V b) { return _mm512_add_epi32(a, b); }
TUILI_INLINE F negated_fma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
TUILI_INLINE F unsigned_bytes(const char* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
TUILI_INLINE F signed_bytes(const char* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
// 2^(e - 128) of 16 bytes e; as its own bits below 2^-126.
TUILI_INLINE F halved_powers(const char* p) {
    const V e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    const V usual = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const V tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x200000), e);
    return _mm512_castsi512_ps(
        _mm512_mask_mov_epi32(usual, _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)), tiny));
}

// The products of four words, 16 neighbours along K, with those of a row.
template <class T>
TUILI_INLINE V dot(const V* codes, const char* x) {
    V sum = _mm512_setzero_si512();
    TUILI_UNROLLED(int j = 0; j < 4; j++)
        sum = _mm512_dpbusd_epi32(sum, codes[j], _mm512_set1_epi32(load_word(x + j * 4)));
    return sum;
}

#else

enum : int { kMaxBlockRows = 2 };
typedef __m256i V;
TUILI_INLINE V load_word16(const char* p) { return _mm256_loadu_si256((const __m256i*)p); }
TUILI_INLINE V and_(V a, int mask) { return _mm256_and_si256(a, _mm256_set1_epi32(mask)); }
TUILI_INLINE V or_(V a, V b) { return _mm256_or_si256(a, b); }
template <int N>
TUILI_INLINE V shifted(V v) {
    return N >= 0 ? _mm256_slli_epi32(v, N < 0 ? 0 : N) : _mm256_srli_epi32(v, N < 0 ? -N : 0);
}
TUILI_INLINE V looked_up(const uint8_t* table, V v) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table)), v);
}
TUILI_INLINE F to_float(V v) { return _mm256_cvtepi32_ps(v); }
TUILI_INLINE V add_ints(V a, V b) { return _mm256_add_epi32(a, b); }
TUILI_INLINE F negated_fma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
TUILI_INLINE F unsigned_bytes(const char* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
TUILI_INLINE F signed_bytes(const char* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
TUILI_INLINE F halved_powers(const char* p) {
    const V e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
    const V usual = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const V tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x200000), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(usual, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
}

template <class T>
TUILI_INLINE V dot(const V* codes, const char* x) {
    if (T::shorts == 0) {  // vpmaddubsw would saturate
        V sum = _mm256_setzero_si256();
        TUILI_UNROLLED(int j = 0; j < 4; j++) {
            const V v = _mm256_set1_epi32(load_word(x + j * 4));
            const V even = _mm256_and_si256(codes[j], _mm256_set1_epi16(0xff)), odd = _mm256_srli_epi16(codes[j], 8);
            const V x_even = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), x_odd = _mm256_srai_epi16(v, 8);
            sum = add_ints(sum, add_ints(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd)));
        }
        return sum;
    }
    V part[2];
    TUILI_UNROLLED(int j = 0; j < 4; j++) {
        const V products = _mm256_maddubs_epi16(codes[j], _mm256_set1_epi32(load_word(x + j * 4)));
        const int p = T::shorts == 2 ? j / 2 : 0;
        part[p] = (T::shorts == 2 ? j % 2 : j) == 0 ? products : _mm256_add_epi16(part[p], products);
    }
    V sum = _mm256_madd_epi16(part[0], _mm256_set1_epi16(1));
    if (T::shorts == 2) sum = add_ints(sum, _mm256_madd_epi16(part[1], _mm256_set1_epi16(1)));
    return sum;
}

#endif

// Codes of a group, W outputs of it: word j has neighbours 4 j to 4 j + 3.
template <class T>
TUILI_INLINE void load_codes(const char* w, V (&c)[8]) {
    if (T::codes == kBytes) {
        TUILI_UNROLLED(int j = 0; j < 8; j++) c[j] = load_word16(w + j * 64);
        return;
    }
    TUILI_UNROLLED(int j = 0; j < 4; j++) {
        const V both = load_word16(w + j * 64);
        c[j] = and_(both, 0x0f0f0f0f);
        c[j + 4] = and_(shifted<-4>(both), 0x0f0f0f0f);
    }
    if (T::codes == kTable) {
        TUILI_UNROLLED(int j = 0; j < 8; j++) c[j] = looked_up(T::table, c[j]);
    }
    if (T::codes == kNibbles1) {
        const V high = load_word16(w + 256);
        c[0] = or_(c[0], and_(shifted<4>(high), 0x10101010));
        c[1] = or_(c[1], and_(shifted<3>(high), 0x10101010));
        c[2] = or_(c[2], and_(shifted<2>(high), 0x10101010));
        c[3] = or_(c[3], and_(shifted<1>(high), 0x10101010));
        c[4] = or_(c[4], and_(high, 0x10101010));
        c[5] = or_(c[5], and_(shifted<-1>(high), 0x10101010));
        c[6] = or_(c[6], and_(shifted<-2>(high), 0x10101010));
        c[7] = or_(c[7], and_(shifted<-3>(high), 0x10101010));
    }
    if (T::codes == kNibbles2) {
        TUILI_UNROLLED(int j = 0; j < 8; j += 4) {
            const V high = load_word16(w + 256 + j * 16);
            c[j] = or_(c[j], and_(shifted<4>(high), 0x30303030));
            c[j + 1] = or_(c[j + 1], and_(shifted<2>(high), 0x30303030));
            c[j + 2] = or_(c[j + 2], and_(high, 0x30303030));
            c[j + 3] = or_(c[j + 3], and_(shifted<-2>(high), 0x30303030));
        }
    }
}

// Scales of group g, W outputs of it from `lane` on: of either half of the group, and the minimum.
template <class T>
TUILI_INLINE void load_scales(const char* scales, int g, int lane, F (&d)[2], F& m) {
    if (T::scales == kHalf) {
        d[0] = d[1] = load_half((const uint16_t*)(scales + g * 32) + lane);
    } else if (T::scales == kHalfMin) {
        d[0] = d[1] = load_half((const uint16_t*)(scales + g * 64) + lane);
        m = load_half((const uint16_t*)(scales + g * 64 + 32) + lane);
    } else if (T::scales == kExponent) {
        d[0] = d[1] = halved_powers(scales + g * 16 + lane);
    } else if (T::scales == kSuper) {
        const char* block = scales + g / 8 * 320;
        const int of = 64 + g % 8 * 16 + lane;
        d[0] = d[1] = mul(load_half((const uint16_t*)block + lane), unsigned_bytes(block + of));
        m = sub(zero(), mul(load_half((const uint16_t*)(block + 32) + lane), unsigned_bytes(block + of + 128)));
    } else {
        const char* block = scales + g / 8 * 288;
        const F whole = load_half((const uint16_t*)block + lane);
        d[0] = mul(whole, signed_bytes(block + 32 + g % 8 * 32 + lane));
        d[1] = mul(whole, signed_bytes(block + 48 + g % 8 * 32 + lane));
    }
}

// Bytes of the scales of a group.
template <class T>
constexpr int scale_bytes() {
    return T::scales == kHalf ? 32 : T::scales == kHalfMin ? 64 : T::scales == kExponent ? 16 : T::scales == kSuper ? 40 : 36;
}

// Sets c [R, 32] to the products of a panel. x: row 0, `stride` bytes a row. `info`: [groups of 64, info_stride].
// With `fetches` the panel behind it is fetched meanwhile, its scales too, which lie far from its codes.
template <class T, int R>
static void multiply_panel(const char* x, int64_t stride, const char* panel, int groups, float* c,
                           const BlockGroup* info, int64_t info_stride, bool fetches) {
    constexpr int kGroupBytes = T::words * 64 + scale_bytes<T>();
    const char* next = panel + int64_t(groups) * kGroupBytes;
    int64_t step = fetches ? kGroupBytes : 0;
    const char* scales = panel + int64_t(groups) * T::words * 64;
    for (int lane = 0; lane < kPanel; lane += W) {
        F total[R];
        TUILI_UNROLLED(int r = 0; r < R; r++) total[r] = zero();
        for (int g = 0; g < groups; g++) {
            const char* w = panel + int64_t(g) * T::words * 64;
            TUILI_UNROLLED(int i = 0; i <= T::words; i++) _mm_prefetch(next + i * 64, _MM_HINT_T1);
            next += step;
            V codes[8];
            load_codes<T>(w + lane * 4, codes);
            F d[2], m = zero();
            load_scales<T>(scales, g, lane, d, m);
            const BlockGroup* of = info + g / 2 * info_stride;
            const char* values = x + g * kBlockGroup;
            const int h = g % 2;
            TUILI_UNROLLED(int r = 0; r < R; r++) {
                const V low = dot<T>(codes, values + r * stride), high = dot<T>(codes + 4, values + r * stride + 16);
                F y;
                if (T::scales == kSuper16) {
                    const F offset = set1((float)T::offset);
                    y = mul(negated_fma(offset, set1(of[r].quarters[2 * h]), to_float(low)), d[0]);
                    y = fma(negated_fma(offset, set1(of[r].quarters[2 * h + 1]), to_float(high)), d[1], y);
                } else {
                    y = to_float(add_ints(low, high));
                    if (T::offset != 0) y = negated_fma(set1((float)T::offset), set1(of[r].sums[h]), y);
                    y = mul(y, d[0]);
                    if (T::has_min) y = fma(m, set1(of[r].sums[h]), y);
                }
                total[r] = fma(y, set1(of[r].scale), total[r]);
            }
        }
        TUILI_UNROLLED(int r = 0; r < R; r++) store(c + r * kTile + lane, total[r]);
        step = 0;
    }
}

// multiply_panel() of any number of rows.
template <class T>
static void multiply_panel_rows(int64_t rows, const char* x, int64_t stride, const char* panel, int groups, float* c,
                                const BlockGroup* info, int64_t info_stride) {
    for (int64_t row = 0; row < rows;) {
        const int64_t left = rows - row;
        const char* of_row = x + row * stride;
        float* to = c + row * kTile;
        int64_t done = 1;
#if defined(__AVX512F__)
        if (left >= 8) {
            multiply_panel<T, 8>(of_row, stride, panel, groups, to, info + row, info_stride, row == 0);
            done = 8;
        } else if (left >= 4) {
            multiply_panel<T, 4>(of_row, stride, panel, groups, to, info + row, info_stride, row == 0);
            done = 4;
        } else
#endif
            if (left >= 2) {
            multiply_panel<T, 2>(of_row, stride, panel, groups, to, info + row, info_stride, row == 0);
            done = 2;
        } else {
            multiply_panel<T, 1>(of_row, stride, panel, groups, to, info + row, info_stride, row == 0);
        }
        row += done;
    }
}

}  // namespace TUILI_ISA
