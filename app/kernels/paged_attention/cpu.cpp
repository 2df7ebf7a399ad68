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
#include "../native/simd.h"

namespace TUILI_ISA {

enum : int { SPLIT = 256, GROUP = 16, GROUPS = SPLIT / GROUP, TILE_ROWS = 48 };
// Tiles of so few rows wait for memory, not for arithmetic.
enum : int { FEW_ROWS = 16 };

// 16 sums, and the 16 pairs of bf16 that go into them.
#if defined(__AVX512F__)
enum : int { MAX_M = 6, MAX_N = 4 };
typedef __m512 Sum;
typedef __m512i Pairs;
TUILI_INLINE Sum sum_zero() { return zero(); }
TUILI_INLINE void sum_store(float* p, Sum v) { store(p, v); }
TUILI_INLINE Pairs pairs_load(const bf16_t* p) { return _mm512_loadu_si512(p); }
TUILI_INLINE Pairs pairs_set1(const bf16_t* p) {
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
TUILI_INLINE void int8_to_bf16(const int8_t* p, bf16_t* out) {  // 16 of them; exact
    const F v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
    _mm256_storeu_si256((__m256i*)out, _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16)));
}
TUILI_INLINE F keep(F v, uint32_t bits, F other) { return _mm512_mask_mov_ps(other, (__mmask16)bits, v); }
TUILI_INLINE void store_probs(bf16_t* p, F v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
#else
    store(p, v);
#endif
}
TUILI_INLINE F lanes() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#else
enum : int { MAX_M = 3, MAX_N = 1 };
struct Sum {
    F a, b;
};
struct Pairs {
    __m256i a, b;
};
TUILI_INLINE Sum sum_zero() { return {zero(), zero()}; }
TUILI_INLINE void sum_store(float* p, Sum v) {
    store(p, v.a);
    store(p + 8, v.b);
}
TUILI_INLINE Pairs pairs_load(const bf16_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 16))};
}
TUILI_INLINE Pairs pairs_set1(const bf16_t* p) {
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
TUILI_INLINE void int8_to_bf16(const int8_t* p, bf16_t* out) {
    for (int i = 0; i < 16; i += 8)
        store(out + i, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + i)))));
}
TUILI_INLINE F keep(F v, uint32_t bits, F other) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), bit), bit);
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(on));
}
TUILI_INLINE void store_probs(bf16_t* p, F v) { store(p, v); }
TUILI_INLINE F lanes() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
#endif

// Scores of M queries against N groups of 16 keys.
template <int M, int N>
static void score_block(const bf16_t* q, int e, const bf16_t* const* keys, int stride, float* scores) {
    Sum acc[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) acc[m][n] = sum_zero();
    for (int i = 0; i < e / 2; i++) {
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
template <int M, int N>
static void value_block(const bf16_t* probs, const bf16_t* const* values, int groups, int e, int at, float* out) {
    Sum acc[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) acc[m][n] = sum_zero();
    for (int g = 0; g < groups; g++) {
        const bf16_t* tile = values[g] + 2 * at;
        for (int i = 0; i < GROUP / 2; i++) {
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

template <int N>
static void score_columns(const bf16_t* q, int rows, int e, const bf16_t* const* keys, int stride, float* scores) {
    for (int m = 0; m < rows; m += MAX_M) {
        const int count = rows - m < MAX_M ? rows - m : (int)MAX_M;
#define TUILI_SCORE(M) score_block<(M < MAX_M ? M : MAX_M), N>(q + m * e, e, keys, stride, scores + m * SPLIT)
        TUILI_FOR_M(count, TUILI_SCORE)
#undef TUILI_SCORE
    }
}

template <int N>
static void value_columns(const bf16_t* p, int rows, const bf16_t* const* values, int groups, int e, int at, float* out) {
    for (int m = 0; m < rows; m += MAX_M) {
        const int count = rows - m < MAX_M ? rows - m : (int)MAX_M;
#define TUILI_VALUE(M) \
    value_block<(M < MAX_M ? M : MAX_M), N>(p + m * SPLIT, values, groups, e, at, out + m * e)
        TUILI_FOR_M(count, TUILI_VALUE)
#undef TUILI_VALUE
    }
}

// What a chunk works with, cut from its thread's scratch; rows of a tile are query tokens x heads of the group.
struct Tile {
    const TuiliAttentionArgs* a;
    const int32_t* table;
    int head, first, rows, heads;  // KV head; position of the first query; rows; heads of a group
    int64_t low, high;       // positions that any query sees
    float scale;  // of the scores, times log2(e)
    float *scores, *part, *out, *top, *sum, *k_scale, *v_scale;
    bf16_t *q, *probs, *k_tiles, *v_tiles;
};

TUILI_INLINE char* cut(char*& at, size_t bytes) {
    char* p = at;
    at += (bytes + 63) / 64 * 64;
    return p;
}

TUILI_INLINE void prefetch(const void* p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch((const char*)p + i, _MM_HINT_T0);
}

// Finds or makes the tiles of groups [begin, end) of the whole sequence.
static void gather(const Tile& t, int64_t begin, int64_t end, const bf16_t** keys, const bf16_t** values, int* stride) {
    const TuiliAttentionArgs& a = *t.a;
    const int e = a.e, size = a.block_size;
    *stride = a.kv_dtype == TUILI_I8 ? 2 * GROUP : 2 * size;
    for (int64_t g = begin; g < end; g++) {
        const int i = (int)(g - begin), offset = (int)(g * GROUP % size);
        const int64_t page = ((int64_t)t.table[g * GROUP / size] * 2 * a.g + t.head) * size;
        const int64_t k_at = page * e + 2 * offset, v_page = page + (int64_t)a.g * size;
        const int64_t v_at = (v_page + offset) * e;
        bf16_t* v_tile = t.v_tiles + (int64_t)i * GROUP * e;
        if (a.kv_dtype == TUILI_I8) {
            bf16_t* k_tile = t.k_tiles + (int64_t)i * GROUP * e;
            const int8_t* k = (const int8_t*)a.kv + k_at;
            const int8_t* v = (const int8_t*)a.kv + v_at;
            for (int j = 0; j < e / 2; j++) {
                int8_to_bf16(k + (int64_t)j * 2 * size, k_tile + j * 32);
                int8_to_bf16(k + (int64_t)j * 2 * size + 16, k_tile + j * 32 + 16);
            }
            for (int j = 0; j < GROUP * e; j += 16) int8_to_bf16(v + j, v_tile + j);
            const uint16_t* scales = (const uint16_t*)a.kv_scale;
            for (int j = 0; j < GROUP; j++) {
                t.k_scale[i * GROUP + j] = half_to_float(scales[page + offset + j]);
                t.v_scale[i * GROUP + j] = half_to_float(scales[v_page + offset + j]);
            }
            keys[i] = k_tile;
            values[i] = v_tile;
            continue;
        }
        keys[i] = (const bf16_t*)a.kv + k_at;
        values[i] = (const bf16_t*)a.kv + v_at;
        // Nobody's value may be NaN, and 0 * NaN is.
        if (g * GROUP < t.low || (g + 1) * GROUP > t.high) {
            for (int j = 0; j < GROUP; j++) {
                const int64_t position = g * GROUP + j;
                const bool seen = position >= t.low && position < t.high;
                const int64_t at = (int64_t)(j / 2) * 2 * e + j % 2;
                for (int x = 0; x < e; x++) v_tile[at + 2 * x] = seen ? values[i][at + 2 * x] : (bf16_t)0;
            }
            values[i] = v_tile;
        }
    }
}

// Probabilities of row m's visible keys among the `count` from `base` on. Returns whether there are any.
static bool softmax(const Tile& t, int m, int64_t base, int count, float* top, float* total) {
    const TuiliAttentionArgs& a = *t.a;
    const int64_t position = t.first + m / t.heads;
    int64_t begin = a.sliding_window > 0 ? position + 1 - a.sliding_window - base : -base;
    int64_t end = position + 1 - base;
    begin = begin < 0 ? 0 : begin;
    end = end > count ? count : end;
    float* s = t.scores + m * SPLIT;
    bf16_t* probs = t.probs + m * SPLIT;
    if (begin >= end) {
        memset(probs, 0, (size_t)count * sizeof(bf16_t));
        return false;
    }
    const bool scaled = a.kv_dtype == TUILI_I8;
    const F first = set1((float)begin), last = set1((float)end), low = set1(-__builtin_inff());
    F most = low;
    for (int i = 0; i < count; i += W) {
        F v = mul(load(s + i), scaled ? mul(load(t.k_scale + i), set1(t.scale)) : set1(t.scale));
        if (i < begin || i + W > end) {
            const F at = add(lanes(), set1((float)i));
            v = keep(v, ge_bits(at, first) & lt_bits(at, last), low);
        }
        store(s + i, v);
        most = max(v, most);
    }
    const float peak = hmax(most);
    F sums = zero();
    for (int i = 0; i < count; i += W) {
        if (i + W <= begin || i >= end) {
            memset(probs + i, 0, W * sizeof(bf16_t));
            continue;
        }
        F p = exp2_nonpositive(sub(load(s + i), set1(peak)));
        if (i < begin || i + W > end || scaled) {
            const F at = add(lanes(), set1((float)i));
            const uint32_t seen = ge_bits(at, first) & lt_bits(at, last);
            p = keep(p, seen, zero());
            sums = add(sums, p);
            if (scaled) p = keep(mul(p, load(t.v_scale + i)), seen, zero());
        } else {
            sums = add(sums, p);
        }
        store_probs(probs + i, p);
    }
    *top = peak;
    *total = hsum(sums);
    return true;
}

// o = o * exp(top - both) + part * exp(peak - both), and the sums alike.
static void merge(const Tile& t, int m, bool first, float peak, float total) {
    const int e = t.a->e;
    float *out = t.out + m * e, *part = t.part + m * e;
    if (first) {
        memcpy(out, part, (size_t)e * sizeof(float));
        t.top[m] = peak;
        t.sum[m] = total;
        return;
    }
    const float both = t.top[m] > peak ? t.top[m] : peak;
    const F old_factor = exp2_nonpositive(set1(t.top[m] - both)), new_factor = exp2_nonpositive(set1(peak - both));
    for (int i = 0; i < e; i += W) store(out + i, fma(load(part + i), new_factor, mul(load(out + i), old_factor)));
    float f[W], g[W];
    store(f, old_factor);
    store(g, new_factor);
    t.sum[m] = t.sum[m] * f[0] + total * g[0];
    t.top[m] = both;
}

static void split(const Tile& t, int64_t index) {
    const int e = t.a->e;
    int64_t begin = index * GROUPS, end = begin + GROUPS;
    if (begin < t.low / GROUP) begin = t.low / GROUP;
    if (end > (t.high + GROUP - 1) / GROUP) end = (t.high + GROUP - 1) / GROUP;
    const int groups = (int)(end - begin);
    const bf16_t *keys[GROUPS], *values[GROUPS];
    int stride;
    gather(t, begin, end, keys, values, &stride);
    const bool fetch = t.rows <= FEW_ROWS && t.a->kv_dtype == TUILI_BF16;
    for (int i = 0; i < groups;) {
        const int step = MAX_N >= 4 && groups - i >= 4 ? 4 : 1;
        for (int j = i; fetch && j < i + step; j++) {
            prefetch(values[j], (size_t)GROUP * e * sizeof(bf16_t));
            for (int x = 0; j + 4 < groups && x < e / 2; x++) prefetch(keys[j + 4] + (int64_t)x * stride, 64);
        }
        if (MAX_N >= 4 && groups - i >= 4) {
            score_columns<(MAX_N < 4 ? 1 : 4)>(t.q, t.rows, e, keys + i, stride, t.scores + i * GROUP);
            i += 4;
        } else {
            score_columns<1>(t.q, t.rows, e, keys + i, stride, t.scores + i * GROUP);
            i += 1;
        }
    }
    float peaks[128], totals[128];
    bool any[128];
    for (int m = 0; m < t.rows; m++) any[m] = softmax(t, m, begin * GROUP, groups * GROUP, &peaks[m], &totals[m]);
    for (int at = 0; at < e;) {
        if (MAX_N >= 4 && e - at >= 64) {
            value_columns<(MAX_N < 4 ? 1 : 4)>(t.probs, t.rows, values, groups, e, at, t.part);
            at += 64;
        } else {
            value_columns<1>(t.probs, t.rows, values, groups, e, at, t.part);
            at += 16;
        }
    }
    for (int m = 0; m < t.rows; m++)
        if (any[m]) merge(t, m, t.sum[m] < 0.0f, peaks[m], totals[m]);
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

static void attention_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliAttentionArgs& a = *(const TuiliAttentionArgs*)args;
    const int size = tile_tokens(a), e = a.e, heads = a.h / a.g;
    int64_t tile = chunk / a.g;
    int row = 0, tokens = 0;
    for (; row < step->count[TUILI_ROWS]; row++) {
        tokens = a.query_start_loc[row + 1] - a.query_start_loc[row];
        const int tiles = (tokens + size - 1) / size;
        if (tile < tiles) {
            tile = tiles - 1 - tile;  // the last queries see most keys: heavy tiles first
            break;
        }
        tile -= tiles;
    }
    const int begin = (int)tile * size, end = begin + size < tokens ? begin + size : tokens;
    const int64_t token = a.query_start_loc[row] + begin;
    Tile t;
    t.a = &a;
    t.table = a.block_tables + (int64_t)row * a.block_table_stride;
    t.scale = a.scale * 1.44269504f;
    t.head = (int)(chunk % a.g);
    t.heads = heads;
    t.rows = (end - begin) * heads;
    t.first = a.seq_lens[row] - tokens + begin;
    t.high = t.first + (end - begin);
    t.low = a.sliding_window > 0 && t.first + 1 > a.sliding_window ? t.first + 1 - a.sliding_window : 0;
    char* at = (char*)thread->scratch;
    const size_t rows = (size_t)t.rows, width = (size_t)e;
    t.scores = (float*)cut(at, rows * SPLIT * 4);
    t.probs = (bf16_t*)cut(at, rows * SPLIT * 2);
    t.part = (float*)cut(at, rows * width * 4);
    t.out = (float*)cut(at, rows * width * 4);
    t.q = (bf16_t*)cut(at, rows * width * 2);
    t.top = (float*)cut(at, rows * 4);
    t.sum = (float*)cut(at, rows * 4);
    t.k_scale = (float*)cut(at, SPLIT * 4);
    t.v_scale = (float*)cut(at, SPLIT * 4);
    t.k_tiles = (bf16_t*)cut(at, SPLIT * width * 2);
    t.v_tiles = (bf16_t*)cut(at, SPLIT * width * 2);
    for (int m = 0; m < t.rows; m++) {
        t.sum[m] = -1.0f;  // nothing yet
        const int64_t from = ((token + m / heads) * a.h + t.head * heads + m % heads) * e;
        for (int i = 0; i < e; i += W) {
            if (a.dtype == TUILI_BF16) {
                store(t.q + m * e + i, load((const bf16_t*)a.q + from + i));
            } else {
                store(t.q + m * e + i, load((const float*)a.q + from + i));
            }
        }
    }
    for (int64_t s = t.low / SPLIT; s * SPLIT < t.high; s++) split(t, s);
    for (int m = 0; m < t.rows; m++) {
        const int64_t to = ((token + m / heads) * a.h + t.head * heads + m % heads) * e;
        const F inverse = set1(1.0f / t.sum[m]);
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
