// Norm and rotation of a token's query and key heads, and its keys and values into packed pages (their layout:
// paged_attention/cpu.cpp).
#include "../native/rows.h"

namespace TUILI_ISA {

template <typename T>
static void load_head(const void* qkv, int64_t at, int e, float* x) {
    const T* p = (const T*)qkv + at;
    for (int i = 0; i < e; i += W) store(x + i, load(p + i));
}

// A head times the inverse of its norm and the weights from `at` on.
static void weigh_head(const TuiliRopeKvArgs& a, F inverse, const void* weight, int64_t at, float* x) {
    TUILI_WITH_FLOAT(a.norm_dtype, T, {
        const T* w = (const T*)weight + at;
        for (int i = 0; i < a.e; i += W) store(x + i, mul(mul(load(x + i), inverse), load(w + i)));
    });
}

// Of the heads of a token that are normed as one vector.
static F inverse_norm(const TuiliRopeKvArgs& a, int64_t head, int64_t heads) {
    F inverse = zero();
    TUILI_WITH_FLOAT(a.dtype, T, inverse = inverse_rms((const T*)a.qkv + head * a.e, (int)(heads * a.e), a.eps));
    return inverse;
}

static void scale_head(float factor, int e, float* x) {
    for (int i = 0; i < e; i += W) store(x + i, mul(load(x + i), set1(factor)));
}

// Pairs of elements, so many positions apart.
static void rotate_head(const float* rope, int half, int distance, float* x) {
    float* partner = x + distance;
    for (int i = 0; i < half; i += W) {
        const F cos = load_at(rope, i, half), sin = load_at(rope + half, i, half);
        const F x1 = load_at(x, i, half), x2 = load_at(partner, i, half);
        store_at(x, i, half, sub(mul(x1, cos), mul(x2, sin)));
        store_at(partner, i, half, add(mul(x2, cos), mul(x1, sin)));
    }
}

// The elements of a key to its place in a tile, [e / 2][block_size][2]: a pair every block.
template <typename Pair, typename T>
TUILI_INLINE void place_key(const T* x, int e, int block_size, int offset, T* tile) {
    static_assert(sizeof(Pair) == 2 * sizeof(T), "a pair is two elements");
    Pair* to = (Pair*)tile + offset;
    for (int i = 0; i < e; i += 2, to += block_size) memcpy(to, x + i, sizeof(Pair));
}

// The elements of a value to every other place of a tile, [block_size / 2][e][2]. Those between are another token's,
// which another thread may be writing.
TUILI_INLINE void place_value(const bf16_t* x, int e, int offset, bf16_t* tile) {
    bf16_t* to = tile + (int64_t)(offset / 2) * e * 2;
#if defined(__AVX512F__)
    const __mmask32 mine = offset % 2 ? 0xaaaaaaaau : 0x55555555u;
    const __m128i shift = _mm_cvtsi32_si128(offset % 2 * 16);
    for (int i = 0; i < e; i += 16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(x + i)));
        _mm512_mask_storeu_epi16(to + 2 * i, mine, _mm512_sll_epi32(wide, shift));
    }
#else
    for (int i = 0; i < e; i++) to[2 * i + offset % 2] = x[i];
#endif
}
TUILI_INLINE void place_value(const int8_t* x, int e, int offset, int8_t* tile) {
    int8_t* to = tile + (int64_t)(offset / 2) * e * 2;
#if defined(__AVX512F__)
    const __mmask32 mine = offset % 2 ? 0xaaaaaaaau : 0x55555555u;
    const __m128i shift = _mm_cvtsi32_si128(offset % 2 * 8);
    for (int i = 0; i < e; i += 16) {
        const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(x + i)));
        _mm256_mask_storeu_epi8(to + 2 * i, mine, _mm256_sll_epi16(wide, shift));
    }
#else
    for (int i = 0; i < e; i++) to[2 * i + offset % 2] = x[i];
#endif
}

static void write_head(const TuiliRopeKvArgs& a, const float* x, int64_t slot, int head, bool value, void* scratch) {
    const int offset = (int)(slot % a.block_size);
    const int64_t page = ((slot / a.block_size * 2 + value) * a.g + head) * a.block_size;
    if (a.kv_dtype == TUILI_I8) {
        const uint16_t scale = float_to_half(row_absmax(x, a.e) / 127.0f);
        int8_t* rounded = (int8_t*)scratch;
        row_to_int8(x, a.e, half_to_float(scale), rounded);
        int8_t* tile = (int8_t*)a.kv + page * a.e;
        if (value) {
            place_value(rounded, a.e, offset, tile);
        } else {
            place_key<uint16_t>(rounded, a.e, a.block_size, offset, tile);
        }
        ((uint16_t*)a.kv_scale)[page + offset] = scale;
        return;
    }
    bf16_t* rounded = (bf16_t*)scratch;
    for (int i = 0; i < a.e; i += W) store(rounded + i, load(x + i));
    bf16_t* tile = (bf16_t*)a.kv + page * a.e;
    if (value) {
        place_value(rounded, a.e, offset, tile);
    } else {
        place_key<uint32_t>(rounded, a.e, a.block_size, offset, tile);
    }
}

static void rope_kv_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    const TuiliRopeKvArgs& a = *(const TuiliRopeKvArgs*)args;
    float* x = (float*)thread->scratch;
    void* rounded = x + a.e;
    for (int64_t t = begin; t < end; t++) {
        const float* rope = a.rope + a.positions[t] * a.rotary_dim;
        const int64_t first = t * (a.h + (a.key_is_value ? a.g : 2 * a.g));
        F q_inverse = zero(), k_inverse = zero();
        if (a.whole_norm) {
            q_inverse = inverse_norm(a, first, a.h);
            k_inverse = inverse_norm(a, first + a.h, a.g);
        }
        for (int head = 0; head < a.h + 2 * a.g; head++) {
            const bool query = head < a.h, value = head >= a.h + a.g;
            const int64_t from = first + (value && a.key_is_value ? head - a.g : head);
            TUILI_WITH_FLOAT(a.dtype, T, load_head<T>(a.qkv, from * a.e, a.e, x));
            if (value) {
                if (a.value_norm) {
                    const F inverse = inverse_rms(x, a.e, a.eps);
                    for (int i = 0; i < a.e; i += W) store(x + i, mul(load(x + i), inverse));
                }
            } else {
                const void* weight = query ? a.q_norm : a.k_norm;
                if (a.whole_norm) {
                    const int64_t at = int64_t(query ? head : head - a.h) * a.e;
                    weigh_head(a, query ? q_inverse : k_inverse, weight, at, x);
                } else if (weight != nullptr) {
                    weigh_head(a, inverse_rms(x, a.e, a.eps), weight, 0, x);
                }
                rotate_head(rope, a.rotary_dim / 2, a.pair_distance, x);
            }
            if (query) {
                if (a.q_scale != nullptr) scale_head(a.q_scale[a.positions[t]], a.e, x);
                TUILI_WITH_FLOAT(a.dtype, T, {
                    T* out = (T*)a.q_out + (t * a.h + head) * a.e;
                    for (int i = 0; i < a.e; i += W) store(out + i, load(x + i));
                });
            } else {
                write_head(a, x, a.slots[t], value ? head - a.h - a.g : head - a.h, value, rounded);
            }
        }
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(rope_kv) = {"rope_kv", sizeof(TuiliRopeKvArgs), nullptr, nullptr, TUILI_ISA::rope_kv_rows};
