// Causal grouped-query attention over packed pages.
//
// Packed pages hold element pairs side by side: of each [B, E] tile, keys are [E / 2][B][2] and values [B / 2][E][2].
// So 16 keys' scores are one vector to which a broadcast pair of the query is multiplied, and 16 elements of the
// output one to which a pair of probabilities is: no sums across lanes in either.
//
// Scores carry a factor of log2(e), so that the exponentials are powers of two.
//
// One order of accumulation, whatever else is in the step: positions fall into splits of 256 at absolute multiples of
// 256; within a split scores, maximum, exponentials, their sum (lane by lane) and the weighted values (from zero, by
// key pairs) are those of the query alone, a masked position adding exact zeros; splits are merged in ascending order.
#include "../native/rows.h"

namespace TUILI_ISA {

enum : int { SPLIT = 256, GROUP = 16, GROUPS = SPLIT / GROUP, TILE_ROWS = 48 };
// Tiles of up to MAX_M rows wait for memory, not for arithmetic; so many groups are fetched before they are needed.
enum : int { AHEAD = 16 };

// Int8 pages are multiplied as int16, exactly: they widen in one instruction, and int16 holds queries and probabilities
// (a scale a row) closer than bf16 does. 256 products of 32767 and 127 fit 32 bits.
enum : int { MOST_INT16 = 32767 };

// 16 sums, and the 16 pairs of bf16, or of int16, that go into them.
#if defined(__AVX512F__)
enum : int { MAX_M = 6, MAX_N = 4 };
typedef __m512 Sum;
typedef __m512i IntSum;
typedef __m512i Pairs;
TUILI_INLINE void clear(Sum& v) { v = zero(); }
TUILI_INLINE void clear(IntSum& v) { v = _mm512_setzero_si512(); }
TUILI_INLINE void sum_store(float* p, Sum v) { store(p, v); }
TUILI_INLINE void sum_store(float* p, IntSum v) {
    asm("" : "+v"(v));  // without it GCC 12 keeps the sums on the stack
    store(p, _mm512_cvtepi32_ps(v));
}
TUILI_INLINE Pairs pairs_load(const bf16_t* p) { return _mm512_loadu_si512(p); }
TUILI_INLINE Pairs pairs_set1(const void* p) {
    int32_t pair;
    memcpy(&pair, p, 4);
    return _mm512_set1_epi32(pair);
}
TUILI_INLINE Sum dot(Sum acc, Pairs a, Pairs b) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#else
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    acc = fma(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), acc);
    return fma(_mm512_castsi512_ps(_mm512_and_si512(a, high)), _mm512_castsi512_ps(_mm512_and_si512(b, high)), acc);
#endif
}
TUILI_INLINE IntSum dot(IntSum acc, Pairs a, Pairs b) { return _mm512_dpwssd_epi32(acc, a, b); }
TUILI_INLINE Pairs pairs_load(const int16_t* p) { return _mm512_loadu_si512(p); }
TUILI_INLINE Pairs pairs_load(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
}
TUILI_INLINE void pairs_store(int16_t* p, Pairs v) { _mm512_storeu_si512(p, v); }
TUILI_INLINE void store_int16(int16_t* p, F v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
}
TUILI_INLINE F keep(F v, uint32_t bits, F other) { return _mm512_mask_mov_ps(other, (__mmask16)bits, v); }
TUILI_INLINE void store_probs(bf16_t* p, F v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
#else
    store(p, v);
#endif
}
TUILI_INLINE float first_lane(F v) { return _mm512_cvtss_f32(v); }
TUILI_INLINE F lanes() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#else
enum : int { MAX_M = 3, MAX_N = 1 };
struct Sum {
    F a, b;
};
struct IntSum {
    __m256i a, b;
};
struct Pairs {
    __m256i a, b;
};
TUILI_INLINE void clear(Sum& v) { v = {zero(), zero()}; }
TUILI_INLINE void clear(IntSum& v) { v = {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
TUILI_INLINE void sum_store(float* p, Sum v) {
    store(p, v.a);
    store(p + 8, v.b);
}
TUILI_INLINE void sum_store(float* p, IntSum v) {
    store(p, _mm256_cvtepi32_ps(v.a));
    store(p + 8, _mm256_cvtepi32_ps(v.b));
}
TUILI_INLINE Pairs pairs_load(const bf16_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 16))};
}
TUILI_INLINE Pairs pairs_set1(const void* p) {
    int32_t pair;
    memcpy(&pair, p, 4);
    const __m256i v = _mm256_set1_epi32(pair);
    return {v, v};
}
TUILI_INLINE F dot8(F acc, __m256i a, __m256i b) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    acc = fma(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), acc);
    return fma(_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high)), acc);
}
TUILI_INLINE Sum dot(Sum acc, Pairs a, Pairs b) { return {dot8(acc.a, a.a, b.a), dot8(acc.b, a.b, b.b)}; }
TUILI_INLINE IntSum dot(IntSum acc, Pairs a, Pairs b) {
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(a.a, b.a)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(a.b, b.b))};
}
TUILI_INLINE Pairs pairs_load(const int16_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 16))};
}
TUILI_INLINE Pairs pairs_load(const int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(p + 16)))};
}
TUILI_INLINE void pairs_store(int16_t* p, Pairs v) {
    _mm256_storeu_si256((__m256i*)p, v.a);
    _mm256_storeu_si256((__m256i*)(p + 16), v.b);
}
TUILI_INLINE void store_int16(int16_t* p, F v) {
    const __m256i wide = _mm256_cvtps_epi32(v);
    const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(wide, wide), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(narrow));
}
TUILI_INLINE F keep(F v, uint32_t bits, F other) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), bit), bit);
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(on));
}
TUILI_INLINE void store_probs(bf16_t* p, F v) { store(p, v); }
TUILI_INLINE float first_lane(F v) { return _mm256_cvtss_f32(v); }
TUILI_INLINE F lanes() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
#endif

// What pages of T are multiplied as, and summed in.
template <typename T>
struct Product {
    typedef int16_t Element;
    typedef IntSum Total;
    enum : bool { kScaled = true };
};
template <>
struct Product<bf16_t> {
    typedef bf16_t Element;
    typedef Sum Total;
    enum : bool { kScaled = false };
};

// out = v & mask for n pairs.
TUILI_INLINE void pairs_mask(const bf16_t* v, int n, uint32_t mask, bf16_t* out) {
    const __m256i bits = _mm256_set1_epi32((int)mask);
    for (int i = 0; i < 2 * n; i += 16) {
        const __m256i x = _mm256_loadu_si256((const __m256i*)(v + i));
        _mm256_storeu_si256((__m256i*)(out + i), _mm256_and_si256(x, bits));
    }
}

// Groups of 16 keys or values to be fetched while others are worked on: one line each of tiles, `step` bytes apart.
struct Fetch {
    const char* const* tiles;
    int step, lines;
};
TUILI_INLINE void fetch_line(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }

// Scores of M queries against N groups of 16 keys of type T, without their scales.
template <int M, int N, typename T, bool FETCH>
static void score_block(const typename Product<T>::Element* q, int e, const T* const* keys, int stride, float* scores, const Fetch& fetch) {
    typename Product<T>::Total acc[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) clear(acc[m][n]);
    for (int i = 0; i < e / 2; i++) {
        if (FETCH && i < fetch.lines)
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) fetch_line(fetch.tiles[n] + (int64_t)i * fetch.step);
        Pairs k[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) k[n] = pairs_load(keys[n] + (int64_t)i * stride);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const Pairs x = pairs_set1(q + m * e + 2 * i);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[m][n] = dot(acc[m][n], x, k[n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) sum_store(scores + m * SPLIT + n * GROUP, acc[m][n]);
}

// N * 16 elements of M outputs: probabilities times values over groups of 16 keys.
template <int M, int N, typename T, bool FETCH>
static void value_block(const typename Product<T>::Element* probs, const T* const* values, int groups, int e, int at, float* out,
                        const Fetch& fetch) {
    typename Product<T>::Total acc[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) clear(acc[m][n]);
    const int lines = FETCH ? (fetch.lines + GROUP / 2 - 1) / (GROUP / 2) : 0;
    for (int g = 0; g < groups; g++) {
        const T* tile = values[g] + 2 * at;
        const char* next = FETCH ? fetch.tiles[g] : nullptr;
        for (int i = 0; i < GROUP / 2; i++) {
            if (FETCH)
                for (int x = 0; x < lines; x++, next += fetch.step) fetch_line(next);
            Pairs v[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) v[n] = pairs_load(tile + (int64_t)i * 2 * e + n * 32);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                const Pairs p = pairs_set1(probs + m * SPLIT + g * GROUP + 2 * i);
#pragma GCC unroll 8
                for (int n = 0; n < N; n++) acc[m][n] = dot(acc[m][n], p, v[n]);
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) sum_store(out + m * e + at + n * GROUP, acc[m][n]);
}

#define TUILI_FOR_M(m, CALL) \
    switch (m) {             \
        case 1: CALL(1); break; \
        case 2: CALL(2); break; \
        case 3: CALL(3); break; \
        case 4: CALL(4); break; \
        case 5: CALL(5); break; \
        default: CALL(6); break; \
    }

template <int N, typename T, bool FETCH>
static void score_columns(const typename Product<T>::Element* q, int rows, int e, const T* const* keys, int stride, float* scores,
                          const Fetch& fetch) {
    for (int m = 0; m < rows; m += MAX_M) {
        const int count = rows - m < MAX_M ? rows - m : (int)MAX_M;
#define TUILI_SCORE(M) \
    score_block<(M < MAX_M ? M : MAX_M), N, T, FETCH>(q + m * e, e, keys, stride, scores + m * SPLIT, fetch)
        TUILI_FOR_M(count, TUILI_SCORE)
#undef TUILI_SCORE
    }
}

template <int N, typename T, bool FETCH>
static void value_columns(const typename Product<T>::Element* p, int rows, const T* const* values, int groups, int e, int at, float* out,
                          const Fetch& fetch) {
    for (int m = 0; m < rows; m += MAX_M) {
        const int count = rows - m < MAX_M ? rows - m : (int)MAX_M;
#define TUILI_VALUE(M) \
    value_block<(M < MAX_M ? M : MAX_M), N, T, FETCH>(p + m * SPLIT, values, groups, e, at, out + m * e, fetch)
        TUILI_FOR_M(count, TUILI_VALUE)
#undef TUILI_VALUE
    }
}

// As many of `left` groups at once as there are registers for; returns how many.
template <typename T, bool FETCH>
static int score_groups(const typename Product<T>::Element* q, int rows, int e, const T* const* keys, int left, int stride, float* scores,
                        const Fetch& fetch) {
    const int n = left < MAX_N ? left : (int)MAX_N;
#define TUILI_N(N) score_columns<(N < MAX_N ? N : MAX_N), T, FETCH>(q, rows, e, keys, stride, scores, fetch)
    switch (n) {
        case 1: TUILI_N(1); break;
        case 2: TUILI_N(2); break;
        case 3: TUILI_N(3); break;
        default: TUILI_N(4); break;
    }
#undef TUILI_N
    return n;
}

template <typename T, bool FETCH>
static int value_elements(const typename Product<T>::Element* p, int rows, const T* const* values, int groups, int e, int at, float* out,
                          const Fetch& fetch) {
    const int left = (e - at) / GROUP, n = left < MAX_N ? left : (int)MAX_N;
#define TUILI_N(N) value_columns<(N < MAX_N ? N : MAX_N), T, FETCH>(p, rows, values, groups, e, at, out, fetch)
    switch (n) {
        case 1: TUILI_N(1); break;
        case 2: TUILI_N(2); break;
        case 3: TUILI_N(3); break;
        default: TUILI_N(4); break;
    }
#undef TUILI_N
    return n * GROUP;
}

// A tile has up to MOST_ELEMENTS of queries (cpu.py); of the widest heads it needs most of a thread's scratch.
enum : size_t { MOST_WIDTH = 512, MOST_ELEMENTS = 1 << 15, EDGES = 16 * 64 };
static_assert(TILE_ROWS * MOST_WIDTH <= MOST_ELEMENTS, "a tile of one head's queries is no larger than a group's");
static_assert(MOST_ELEMENTS / MOST_WIDTH * (SPLIT * 6 + 16) + MOST_ELEMENTS * 10 + SPLIT * (MOST_WIDTH * 4 + 8) +
                      EDGES <= TUILI_SCRATCH_BYTES,
              "it fits the scratch");

// What a chunk works with, cut from its thread's scratch; rows of a tile are query tokens x heads of the group.
struct Tile {
    const TuiliAttentionArgs* a;
    const int32_t* table;
    int head, first, rows, heads;  // KV head; position of the first query; rows; heads of a group
    int64_t low, high;             // positions that any query sees
    float scale;                   // of the scores, times log2(e)
    float *scores, *part, *out, *top, *sum, *k_scale, *v_scale;
    float *q_scale, *p_scale;              // of rows, where pages are int8
    void *q, *probs, *k_tiles, *v_tiles;   // of Product<>::Element
};

TUILI_INLINE char* cut(char*& at, size_t bytes) {
    char* p = at;
    at += (bytes + 63) / 64 * 64;
    return p;
}

// Where a group's keys (or values) of a sequence begin, in elements. Rows of keys lie 2 * block_size apart.
TUILI_INLINE int64_t group_at(const TuiliAttentionArgs& a, const int32_t* table, int head, int64_t g, bool value) {
    const int size = a.block_size;
    if (size == GROUP) return (((int64_t)table[g] * 2 + value) * a.g + head) * GROUP * a.e;  // without a division
    const int offset = (int)(g * GROUP % size);
    const int64_t page = (((int64_t)table[g * GROUP / size] * 2 + value) * a.g + head) * size;
    return value ? (page + offset) * a.e : page * a.e + 2 * offset;
}

TUILI_INLINE int element_bytes(const TuiliAttentionArgs& a) { return a.kv_dtype == TUILI_I8 ? 1 : 2; }

// Groups of a split that any query sees.
struct Span {
    int64_t begin;
    int groups;
};
TUILI_INLINE Span span_of(const Tile& t, int64_t split) {
    int64_t begin = split * GROUPS, end = begin + GROUPS;
    if (begin < t.low / GROUP) begin = t.low / GROUP;
    if (end > (t.high + GROUP - 1) / GROUP) end = (t.high + GROUP - 1) / GROUP;
    return {begin, (int)(end - begin)};
}

// The tiles of a few rows in the order in which they are read: a split's keys, its values, the next split; then what
// the thread is likely to claim next. Hardware does not foresee these: pages stand in no order, and of each a head
// reads no more than some 2 KB of keys and of values.
struct Ahead {
    Tile tile, after;
    int64_t split;
    Span span;
    int i;
    bool more;  // whether `after` is to come
    const char* last;
};
TUILI_INLINE void ahead_start(Ahead& f, const Tile& tile) {
    f.tile = tile;
    f.split = tile.low / SPLIT;
    f.span = span_of(tile, f.split);
    f.i = 0;
}
static const char* ahead_next(Ahead& f) {
    if (f.i == 2 * f.span.groups) {
        if ((f.split + 1) * SPLIT < f.tile.high) {
            f.split++;
            f.span = span_of(f.tile, f.split);
            f.i = 0;
        } else if (f.more) {
            f.more = false;
            ahead_start(f, f.after);
        } else {
            return f.last;  // in the cache by now
        }
    }
    const bool value = f.i >= f.span.groups;
    const int64_t g = f.span.begin + f.i - (value ? f.span.groups : 0);
    f.i++;
    const TuiliAttentionArgs& a = *f.tile.a;
    f.last = (const char*)a.kv + group_at(a, f.tile.table, f.tile.head, g, value) * element_bytes(a);
    return f.last;
}

static void load_scales(const Tile& t, const Span& span) {
    const TuiliAttentionArgs& a = *t.a;
    const uint16_t* scales = (const uint16_t*)a.kv_scale;
    for (int i = 0; i < span.groups; i++) {
        const int64_t at = (span.begin + i) * GROUP;
        const bool whole = a.block_size == GROUP;
        const int64_t page = (int64_t)t.table[whole ? span.begin + i : at / a.block_size] * 2 * a.g + t.head;
        const uint16_t* k = scales + page * a.block_size + (whole ? 0 : at % a.block_size);
        const uint16_t* v = k + (int64_t)a.g * a.block_size;
        for (int j = 0; j < GROUP; j += W) {
            store(t.k_scale + i * GROUP + j, load_half(k + j));
            store(t.v_scale + i * GROUP + j, load_half(v + j));
        }
    }
}

// int16 tiles of int8 pages, for many rows.
static void convert(const Tile& t, const Span& span, const int8_t** keys, const int8_t** values,
                    const int16_t** k_tiles, const int16_t** v_tiles) {
    const int e = t.a->e, stride = 2 * t.a->block_size;
    for (int g = 0; g < span.groups; g++) {
        int16_t* k = (int16_t*)t.k_tiles + (int64_t)g * GROUP * e;
        int16_t* v = (int16_t*)t.v_tiles + (int64_t)g * GROUP * e;
        for (int j = 0; j < e / 2; j++) {
            pairs_store(k + j * 2 * GROUP, pairs_load(keys[g] + (int64_t)j * stride));
            pairs_store(v + j * 2 * GROUP, pairs_load(values[g] + (int64_t)j * 2 * GROUP));
        }
        k_tiles[g] = k;
        v_tiles[g] = v;
    }
}

// Nobody's value may be NaN, and 0 * NaN is: groups that are not seen as a whole are copied, with zeros for the rest.
static void mask_values(const Tile& t, const Span& span, const bf16_t** values) {
    const int e = t.a->e;
    for (int i = 0; i < span.groups; i++) {
        const int64_t first = (span.begin + i) * GROUP;
        if (first >= t.low && first + GROUP <= t.high) continue;
        bf16_t* tile = (bf16_t*)t.v_tiles + (int64_t)i * GROUP * e;
        for (int j = 0; j < GROUP; j += 2) {
            const int64_t position = first + j;
            const uint32_t even = position >= t.low && position < t.high ? 0xffffu : 0;
            const uint32_t odd = position + 1 >= t.low && position + 1 < t.high ? 0xffff0000u : 0;
            pairs_mask(values[i] + j * e, e, even | odd, tile + j * e);
        }
        values[i] = tile;
    }
}

// Which of the keys base .. base + count a row sees, counted from base.
struct Visible {
    int64_t begin, end;
};
TUILI_INLINE Visible visible(const Tile& t, int m, int64_t base, int count) {
    const int64_t position = t.first + m / t.heads;
    const int64_t begin = t.a->sliding_window > 0 ? position + 1 - t.a->sliding_window - base : -base;
    const int64_t end = position + 1 - base;
    return {begin < 0 ? 0 : begin, end > count ? count : end};
}

// W lanes from i on: those that are seen, as bits.
TUILI_INLINE uint32_t seen_bits(const Visible& v, int i) {
    const F at = add(lanes(), set1((float)i));
    return ge_bits(at, set1((float)v.begin)) & lt_bits(at, set1((float)v.end));
}

// Caps scores that carry a factor of log2(e), and what is the largest of them. Those that are hidden come to -softcap.
static __attribute__((noinline)) float cap_scores(float softcap, float* s, int count, float peak) {
    const F most = set1(softcap * 1.44269504f), inverse = set1(1.0f / (softcap * 1.44269504f));
    for (int i = 0; i < count; i += W) store(s + i, mul(most, tanh(mul(load(s + i), inverse))));
    return first_lane(mul(most, tanh(mul(set1(peak), inverse))));
}

// Probabilities of row m's visible keys among the `count` from `base` on, times the scales of their values where there
// are any: those are int16 with a scale of their own. Returns whether there are any.
template <typename T>
static bool softmax(const Tile& t, int m, int64_t base, int count, float* top, float* total) {
    typedef typename Product<T>::Element Element;
    constexpr bool scaled = Product<T>::kScaled;
    const Visible v = visible(t, m, base, count);
    float* s = t.scores + m * SPLIT;
    Element* probs = (Element*)t.probs + m * SPLIT;
    if (v.begin >= v.end) {
        memset(probs, 0, (size_t)count * sizeof(Element));
        return false;
    }
    const F scale = set1(scaled ? t.scale * t.q_scale[m] : t.scale), low = set1(-__builtin_inff());
    F most = low;
    for (int i = 0; i < count; i += W) {
        F x = mul(load(s + i), scaled ? mul(load(t.k_scale + i), scale) : scale);
        if (i < v.begin || i + W > v.end) x = keep(x, seen_bits(v, i), low);
        store(s + i, x);
        most = max(x, most);
    }
    float peak = hmax(most);
    if (t.a->softcap > 0.0f) peak = cap_scores(t.a->softcap, s, count, peak);
    F sums = zero(), most_p = zero();
    uint32_t nan = 0;
    for (int i = 0; i < count; i += W) {
        F p = zero();
        if (i + W > v.begin && i < v.end) {
            p = exp2_nonpositive(sub(load(s + i), set1(peak)));
            const bool whole = i >= v.begin && i + W <= v.end;
            const uint32_t seen = whole ? ~0u : seen_bits(v, i);
            if (!whole) p = keep(p, seen, zero());
            sums = add(sums, p);
            if (scaled) {
                p = mul(p, load(t.v_scale + i));
                if (!whole) p = keep(p, seen, zero());
                nan |= nan_bits(p);
                most_p = max(p, most_p);
            }
        }
        if (scaled) {
            store(s + i, p);
        } else {
            store_probs((bf16_t*)probs + i, p);
        }
    }
    *top = peak;
    *total = hsum(sums);
    if (scaled) {
        const float largest = hmax(most_p);
        const F factor = set1(largest > 1e-30f ? MOST_INT16 / largest : 0.0f);
        for (int i = 0; i < count; i += W) store_int16((int16_t*)probs + i, mul(load(s + i), factor));
        t.p_scale[m] = nan ? __builtin_nanf("") : largest / MOST_INT16;
    } else {
        t.p_scale[m] = 1.0f;
    }
    return true;
}

// o = o * exp(top - both) + part * exp(peak - both), and the sums alike.
static void merge(const Tile& t, int m, bool first, float peak, float total) {
    const int e = t.a->e;
    float *out = t.out + m * e, *part = t.part + m * e;
    const F scale = set1(t.p_scale[m]);
    if (first) {
        for (int i = 0; i < e; i += W) store(out + i, mul(load(part + i), scale));
        t.top[m] = peak;
        t.sum[m] = total;
        return;
    }
    const float both = t.top[m] > peak ? t.top[m] : peak;
    const F old_factor = exp2_nonpositive(set1(t.top[m] - both)), new_factor = exp2_nonpositive(set1(peak - both));
    const F factor = mul(new_factor, scale);
    for (int i = 0; i < e; i += W) store(out + i, fma(load(part + i), factor, mul(load(out + i), old_factor)));
    t.sum[m] = t.sum[m] * first_lane(old_factor) + total * first_lane(new_factor);
    t.top[m] = both;
}

template <typename T, bool FETCH>
static void attend(const Tile& t, const Span& span, const T* const* keys, const T* const* values, int stride,
                   const char* const* fetched) {
    typedef typename Product<T>::Element Element;
    const Element *q = (const Element*)t.q, *probs = (const Element*)t.probs;
    const int e = t.a->e;
    Fetch fetch = {fetched, 64, 0};
    if (FETCH) {
        fetch.lines = e * GROUP * element_bytes(*t.a) / 64;  // exact where a block has 16 tokens
    }
    for (int i = 0; i < span.groups;) {
        fetch.tiles = fetched + i;
        i += score_groups<T, FETCH>(q, t.rows, e, keys + i, span.groups - i, stride, t.scores + i * GROUP, fetch);
    }
    float peaks[128], totals[128];
    bool any[128];
    for (int m = 0; m < t.rows; m++)
        any[m] = softmax<T>(t, m, span.begin * GROUP, span.groups * GROUP, &peaks[m], &totals[m]);
    fetch.tiles = fetched + span.groups;
    for (int at = 0; at < e;) {
        at += value_elements<T, FETCH>(probs, t.rows, values, span.groups, e, at, t.part, fetch);
        fetch.lines = 0;
    }
    for (int m = 0; m < t.rows; m++)
        if (any[m]) merge(t, m, t.sum[m] < 0.0f, peaks[m], totals[m]);
}

static void split(const Tile& t, const Span& span, Ahead* ahead) {
    const TuiliAttentionArgs& a = *t.a;
    const int stride = 2 * a.block_size;
    const char* fetched[2 * GROUPS];
    for (int i = 0; ahead != nullptr && i < 2 * span.groups; i++) fetched[i] = ahead_next(*ahead);
    if (a.kv_dtype == TUILI_I8) {
        const int8_t *k[GROUPS], *v[GROUPS];
        for (int i = 0; i < span.groups; i++) {
            k[i] = (const int8_t*)a.kv + group_at(a, t.table, t.head, span.begin + i, false);
            v[i] = (const int8_t*)a.kv + group_at(a, t.table, t.head, span.begin + i, true);
        }
        load_scales(t, span);
        if (ahead != nullptr) {
            attend<int8_t, true>(t, span, k, v, stride, fetched);
        } else {
            const int16_t *keys[GROUPS], *values[GROUPS];
            convert(t, span, k, v, keys, values);
            attend<int16_t, false>(t, span, keys, values, 2 * GROUP, nullptr);
        }
        return;
    }
    const bf16_t *keys[GROUPS], *values[GROUPS];
    for (int i = 0; i < span.groups; i++) {
        keys[i] = (const bf16_t*)a.kv + group_at(a, t.table, t.head, span.begin + i, false);
        values[i] = (const bf16_t*)a.kv + group_at(a, t.table, t.head, span.begin + i, true);
    }
    mask_values(t, span, values);
    if (ahead != nullptr) {
        attend<bf16_t, true>(t, span, keys, values, stride, fetched);
    } else {
        attend<bf16_t, false>(t, span, keys, values, stride, nullptr);
    }
}

static int tile_tokens(const TuiliAttentionArgs& a) {
    const int heads = a.h / a.g;
    return heads >= TILE_ROWS ? 1 : TILE_ROWS / heads;
}

static int64_t attention_chunks(const void* args, const TuiliStep* step, int32_t) {
    const TuiliAttentionArgs& a = *(const TuiliAttentionArgs*)args;
    const int size = tile_tokens(a);
    int64_t tiles = 0;
    for (int r = 0; r < step->count[TUILI_ROWS]; r++)
        tiles += (a.query_start_loc[r + 1] - a.query_start_loc[r] + size - 1) / size;
    return tiles * a.g;
}

// The row, tokens and positions of a chunk. False beyond the last one.
static bool find(const TuiliAttentionArgs& a, const TuiliStep* step, int64_t chunk, Tile& t, int64_t* token) {
    const int size = tile_tokens(a), heads = a.h / a.g, rows = step->count[TUILI_ROWS];
    int64_t tile = chunk / a.g;
    int row = 0, tokens = 0;
    if (rows == step->count[TUILI_TOKENS] && step->max_query_len == 1) {  // decodes alone
        row = tile < rows ? (int)tile : rows;
        tile = 0;
        tokens = 1;
    } else {
        for (; row < rows; row++) {
            tokens = a.query_start_loc[row + 1] - a.query_start_loc[row];
            const int tiles = (tokens + size - 1) / size;
            if (tile < tiles) {
                tile = tiles - 1 - tile;  // the last queries see most keys: heavy tiles first
                break;
            }
            tile -= tiles;
        }
    }
    if (row == rows) return false;
    const int begin = (int)tile * size, end = begin + size < tokens ? begin + size : tokens;
    *token = a.query_start_loc[row] + begin;
    t.a = &a;
    t.table = a.block_tables + (int64_t)row * a.block_table_stride;
    t.scale = a.scale * 1.44269504f;
    t.head = (int)(chunk % a.g);
    t.heads = heads;
    t.rows = (end - begin) * heads;
    t.first = a.seq_lens[row] - tokens + begin;
    t.high = t.first + (end - begin);
    t.low = a.sliding_window > 0 && t.first + 1 > a.sliding_window ? t.first + 1 - a.sliding_window : 0;
    return true;
}

// Query vector m in the form in which pages are multiplied with it.
template <typename Q>
TUILI_INLINE void load_query(const Tile& t, const Q* q, int m) {
    const int e = t.a->e;
    if (t.a->kv_dtype == TUILI_I8) {
        const float most = row_absmax(q, e);
        const F factor = set1(most > 1e-30f ? MOST_INT16 / most : 0.0f);
        for (int i = 0; i < e; i += W) store_int16((int16_t*)t.q + m * e + i, mul(load(q + i), factor));
        t.q_scale[m] = most / MOST_INT16;
    } else {
        for (int i = 0; i < e; i += W) store((bf16_t*)t.q + m * e + i, load(q + i));
    }
}

// 1 / (sum + 2^(sink - top)), without leaving what a float holds.
static float inverse_with_sink(float top, float sum, float sink) {
    const float both = top > sink ? top : sink;
    const float factor = first_lane(exp2_nonpositive(set1(top - both)));
    return factor / (sum * factor + first_lane(exp2_nonpositive(set1(sink - both))));
}

static void attention_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliAttentionArgs& a = *(const TuiliAttentionArgs*)args;
    const int e = a.e, heads = a.h / a.g;
    Tile t;
    int64_t token;
    if (!find(a, step, chunk, t, &token)) return;
    char* at = (char*)thread->scratch;
    const size_t rows = (size_t)t.rows, width = (size_t)e;
    t.scores = (float*)cut(at, rows * SPLIT * 4);
    t.probs = cut(at, rows * SPLIT * 2);
    t.part = (float*)cut(at, rows * width * 4);
    t.out = (float*)cut(at, rows * width * 4);
    t.q = cut(at, rows * width * 2);
    t.top = (float*)cut(at, rows * 4);
    t.sum = (float*)cut(at, rows * 4);
    t.q_scale = (float*)cut(at, rows * 4);
    t.p_scale = (float*)cut(at, rows * 4);
    t.k_scale = (float*)cut(at, SPLIT * 4);
    t.v_scale = (float*)cut(at, SPLIT * 4);
    t.k_tiles = cut(at, SPLIT * width * 2);
    t.v_tiles = cut(at, SPLIT * width * 2);
    for (int m = 0; m < t.rows; m++) {
        t.sum[m] = -1.0f;  // nothing yet
        const int64_t from = ((token + m / heads) * a.h + t.head * heads + m % heads) * e;
        TUILI_WITH_FLOAT(a.dtype, Q, load_query(t, (const Q*)a.q + from, m));
    }
    Ahead ahead;
    const bool few = t.rows <= MAX_M;
    if (few) {
        int64_t unused;
        ahead.more = find(a, step, chunk + 1, ahead.after, &unused) && ahead.after.rows <= MAX_M;
        ahead.last = (const char*)t.q;
        ahead_start(ahead, t);
        // The chunk before has fetched these, unless there was none.
        const int lines = e * GROUP * element_bytes(a) / 64;
        for (int i = 0; i < AHEAD; i++) {
            const char* p = ahead_next(ahead);
            for (int x = 0; thread->first && x < lines; x++) fetch_line(p + x * 64);
        }
    }
    for (int64_t s = t.low / SPLIT; s * SPLIT < t.high; s++) split(t, span_of(t, s), few ? &ahead : nullptr);
    for (int m = 0; m < t.rows; m++) {
        const int64_t to = ((token + m / heads) * a.h + t.head * heads + m % heads) * e;
        const float sink = a.sinks != nullptr ? a.sinks[t.head * heads + m % heads] * 1.44269504f : 0.0f;
        const F inverse = set1(a.sinks != nullptr ? inverse_with_sink(t.top[m], t.sum[m], sink) : 1.0f / t.sum[m]);
        for (int i = 0; i < e; i += W) {
            const F v = mul(load(t.out + m * e + i), inverse);
            if (a.out_dtype == TUILI_BF16) {
                store((bf16_t*)a.out + to + i, v);
            } else {
                store((float*)a.out + to + i, v);
            }
        }
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(attention) = {"attention", sizeof(TuiliAttentionArgs), TUILI_ISA::attention_chunks,
                                TUILI_ISA::attention_run, nullptr};
