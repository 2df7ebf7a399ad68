// Bidirectional grouped-query attention over packed sequences, without pages; products and sums in fp32.
//
// A chunk is a block of a sequence's queries for one KV head. It walks the sequence in tiles of 64 keys from its start
// on. Keys are laid out [e][64] first, so that scores are vectors over keys, summed over the query's elements. Then the
// running softmax is updated (scores carry a factor of log2(e), exponentials are powers of two), and the tile's values
// are added in order.
//
// The order of accumulation of a query depends on its own sequence alone: tiles begin at fixed positions of the
// sequence, and what a query does not see of a tile adds exact zeros.
#include "../native/rows.h"

namespace TUILI_ISA {

enum : int { TILE = 64, TILE_ROWS = 96, LANES = 8 };
#if defined(__AVX512F__)
enum : int { MAX_M = 6, MAX_N = 4 };
#else
enum : int { MAX_M = 4, MAX_N = 2 };
#endif

struct Block {
    const TuiliPackedAttentionArgs* a;
    int64_t begin;     // first token of the sequence
    int length;        // of the sequence
    int first, rows;   // position of the first query; query tokens x heads of the group
    int heads, head;   // heads of a group; KV head
    float *q, *keys, *values, *scores, *out, *top, *sum;
};

TUILI_INLINE float* take(char*& at, size_t floats) {
    float* p = (float*)at;
    at += (floats * 4 + 63) / 64 * 64;
    return p;
}

TUILI_INLINE __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
TUILI_INLINE __m256 load8(const bf16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}

// Eight rows of eight, transposed: out[i][j] = row j's element i.
TUILI_INLINE void transpose8(const __m256* r, float* out, int stride) {
    const __m256 a0 = _mm256_unpacklo_ps(r[0], r[1]), a1 = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 a2 = _mm256_unpacklo_ps(r[2], r[3]), a3 = _mm256_unpackhi_ps(r[2], r[3]);
    const __m256 a4 = _mm256_unpacklo_ps(r[4], r[5]), a5 = _mm256_unpackhi_ps(r[4], r[5]);
    const __m256 a6 = _mm256_unpacklo_ps(r[6], r[7]), a7 = _mm256_unpackhi_ps(r[6], r[7]);
    const __m256 b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xee);
    const __m256 b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xee);
    const __m256 b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xee);
    const __m256 b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xee);
    _mm256_storeu_ps(out + 0 * stride, _mm256_permute2f128_ps(b0, b4, 0x20));
    _mm256_storeu_ps(out + 1 * stride, _mm256_permute2f128_ps(b1, b5, 0x20));
    _mm256_storeu_ps(out + 2 * stride, _mm256_permute2f128_ps(b2, b6, 0x20));
    _mm256_storeu_ps(out + 3 * stride, _mm256_permute2f128_ps(b3, b7, 0x20));
    _mm256_storeu_ps(out + 4 * stride, _mm256_permute2f128_ps(b0, b4, 0x31));
    _mm256_storeu_ps(out + 5 * stride, _mm256_permute2f128_ps(b1, b5, 0x31));
    _mm256_storeu_ps(out + 6 * stride, _mm256_permute2f128_ps(b2, b6, 0x31));
    _mm256_storeu_ps(out + 7 * stride, _mm256_permute2f128_ps(b3, b7, 0x31));
}

// Loads the tile of `count` keys from position `at` on: keys transposed, zeros beyond the sequence; values as stored.
template <typename X>
static void load_tile(const Block& b, int at, int count) {
    const TuiliPackedAttentionArgs& a = *b.a;
    const int64_t width = (int64_t)(a.h + 2 * a.g) * a.e;
    const X* keys = (const X*)a.qkv + (b.begin + at) * width + (int64_t)(a.h + b.head) * a.e;
    const X* values = keys + (int64_t)a.g * a.e;
    for (int j = 0; j < count; j += LANES)
        for (int i = 0; i < a.e; i += LANES) {
            __m256 rows[LANES];
#pragma GCC unroll 8
            for (int k = 0; k < LANES; k++)
                rows[k] = j + k < count ? load8(keys + (j + k) * width + i) : _mm256_setzero_ps();
            transpose8(rows, b.keys + i * TILE + j, TILE);
        }
    for (int j = 0; j < count; j++)
        for (int i = 0; i < a.e; i += W) store_at(b.values + j * a.e, i, a.e, load_at(values + j * width, i, a.e));
}

// Scores of M queries against N vectors of keys.
template <int M, int N>
static void score_block(const float* q, int e, const float* keys, float* scores) {
    F acc[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) acc[m][n] = zero();
    for (int i = 0; i < e; i++) {
        F k[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) k[n] = load(keys + i * TILE + n * W);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const F x = set1(q[m * e + i]);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[m][n] = fma(x, k[n], acc[m][n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) store(scores + m * TILE + n * W, acc[m][n]);
}

// Adds `count` values, times their probabilities, to N vectors of M outputs.
template <int M, int N>
static void value_block(const float* probs, const float* values, int count, int e, float* out) {
    F acc[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) acc[m][n] = load(out + m * e + n * W);
    for (int j = 0; j < count; j++) {
        F v[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) v[n] = load(values + j * e + n * W);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const F p = set1(probs[m * TILE + j]);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[m][n] = fma(p, v[n], acc[m][n]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) store(out + m * e + n * W, acc[m][n]);
}

#define TUILI_FOR_M(m, CALL)    \
    switch (m) {                \
        case 1: CALL(1); break; \
        case 2: CALL(2); break; \
        case 3: CALL(3); break; \
        case 4: CALL(4); break; \
        case 5: CALL(5); break; \
        default: CALL(6); break; \
    }
#define TUILI_FOR_N(n, CALL)    \
    switch (n) {                \
        case 1: CALL(1); break; \
        case 2: CALL(2); break; \
        case 3: CALL(3); break; \
        default: CALL(4); break; \
    }

template <int N>
static void score_columns(const Block& b, int at) {
    const int e = b.a->e;
    for (int m = 0; m < b.rows; m += MAX_M) {
        const int count = b.rows - m < MAX_M ? b.rows - m : (int)MAX_M;
#define TUILI_SCORE(M) \
    score_block<(M < MAX_M ? M : MAX_M), N>(b.q + m * e, e, b.keys + at, b.scores + m * TILE + at)
        TUILI_FOR_M(count, TUILI_SCORE)
#undef TUILI_SCORE
    }
}

template <int N>
static void value_columns(const Block& b, int at, int keys) {
    const int e = b.a->e;
    for (int m = 0; m < b.rows; m += MAX_M) {
        const int count = b.rows - m < MAX_M ? b.rows - m : (int)MAX_M;
#define TUILI_VALUE(M) \
    value_block<(M < MAX_M ? M : MAX_M), N>(b.scores + m * TILE, b.values + at, keys, e, b.out + m * e + at)
        TUILI_FOR_M(count, TUILI_VALUE)
#undef TUILI_VALUE
    }
}

// Turns row m's scores of the tile into probabilities and updates its running softmax.
static void softmax(const Block& b, int m, int at, int count) {
    float* s = b.scores + m * TILE;
    const int position = b.first + m / b.heads, window = b.a->window, e = b.a->e;
    int begin = 0, end = count;
    if (window >= 0) {
        if (position - window > at) begin = position - window - at;
        if (position + window + 1 < at + count) end = position + window + 1 - at;
    }
    if (begin >= end) {
        memset(s, 0, TILE * sizeof(float));
        return;
    }
    for (int i = 0; i < begin; i++) s[i] = -__builtin_inff();
    for (int i = end; i < TILE; i++) s[i] = -__builtin_inff();
    const F scale = set1(b.a->scale * 1.44269504f);
    F most = set1(-__builtin_inff());
    uint32_t nan = 0;
    for (int i = 0; i < count; i += W) {
        const F x = mul(load(s + i), scale);
        nan |= nan_bits(x);
        store(s + i, x);
        most = max(x, most);
    }
    float peak = nan ? __builtin_nanf("") : hmax(most);
    if (b.top[m] > peak || b.top[m] != b.top[m]) peak = b.top[m];
    F sums = zero();
    for (int i = 0; i < count; i += W) {
        const F p = exp2_nonpositive(sub(load(s + i), set1(peak)));
        store(s + i, p);
        sums = add(sums, p);  // what is not seen is too small to change a sum of at least 1
    }
    for (int i = 0; i < begin; i++) s[i] = 0.0f;
    for (int i = end; i < count; i++) s[i] = 0.0f;
    const float decay = b.sum[m] == 0.0f ? 0.0f : hmax(exp2_nonpositive(set1(b.top[m] - peak)));
    b.sum[m] = b.sum[m] * decay + hsum(sums);
    b.top[m] = peak;
    if (decay != 1.0f)
        for (int i = 0; i < e; i += W) store(b.out + m * e + i, mul(load(b.out + m * e + i), set1(decay)));
}

static int block_tokens(const TuiliPackedAttentionArgs& a) {
    const int heads = a.h / a.g;
    return heads >= TILE_ROWS ? 1 : TILE_ROWS / heads;
}

// The blocks of sequence r begin at cu_seqlens[r] / size + r, which leaves room for the last block of every sequence.
static int64_t packed_attention_chunks(const void* args, const TuiliStep* step, int32_t) {
    const TuiliPackedAttentionArgs& a = *(const TuiliPackedAttentionArgs*)args;
    return (step->count[TUILI_TOKENS] / block_tokens(a) + step->count[TUILI_ROWS]) * (int64_t)a.g;
}

static bool find(const TuiliPackedAttentionArgs& a, const TuiliStep* step, int64_t chunk, Block& b) {
    const int size = block_tokens(a);
    const int64_t block = chunk / a.g;
    int low = 0, high = step->count[TUILI_ROWS];
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (a.cu_seqlens[middle] / size + middle <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    b.begin = a.cu_seqlens[low];
    b.length = a.cu_seqlens[low + 1] - a.cu_seqlens[low];
    b.first = (int)(block - b.begin / size - low) * size;
    if (b.first >= b.length) return false;
    const int tokens = b.length - b.first < size ? b.length - b.first : size;
    b.a = &a;
    b.heads = a.h / a.g;
    b.head = (int)(chunk % a.g);
    b.rows = tokens * b.heads;
    return true;
}

template <typename X>
static void attend(Block& b) {
    const TuiliPackedAttentionArgs& a = *b.a;
    const int e = a.e;
    const int64_t width = (int64_t)(a.h + 2 * a.g) * e;
    for (int m = 0; m < b.rows; m++) {
        const X* q = (const X*)a.qkv + (b.begin + b.first + m / b.heads) * width + (b.head * b.heads + m % b.heads) * e;
        for (int i = 0; i < e; i += W) {
            store(b.q + m * e + i, load(q + i));
            store(b.out + m * e + i, zero());
        }
        b.top[m] = -__builtin_inff();
        b.sum[m] = 0.0f;
    }
    const int last = b.first + b.rows / b.heads - 1;
    int begin = 0, end = b.length;
    if (a.window >= 0) {
        if (b.first > a.window) begin = (b.first - a.window) / TILE * TILE;
        if (last + a.window + 1 < end) end = last + a.window + 1;
    }
    for (int at = begin; at < end; at += TILE) {
        const int count = b.length - at < TILE ? b.length - at : (int)TILE;
        load_tile<X>(b, at, count);
        for (int n = 0; n < count; n += MAX_N * W) {
            const int left = (count - n + W - 1) / W;
#define TUILI_N(N) score_columns<(N < MAX_N ? N : MAX_N)>(b, n)
            TUILI_FOR_N(left, TUILI_N)
#undef TUILI_N
        }
        for (int m = 0; m < b.rows; m++) softmax(b, m, at, count);
        for (int n = 0; n < e; n += MAX_N * W) {
            const int left = (e - n) / W;
#define TUILI_N(N) value_columns<(N < MAX_N ? N : MAX_N)>(b, n, count)
            TUILI_FOR_N(left, TUILI_N)
#undef TUILI_N
        }
    }
}

static void packed_attention_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliPackedAttentionArgs& a = *(const TuiliPackedAttentionArgs*)args;
    Block b;
    if (!find(a, step, chunk, b)) return;
    char* at = (char*)thread->scratch;
    const size_t rows = (size_t)b.rows, e = (size_t)a.e;
    b.q = take(at, rows * e);
    b.out = take(at, rows * e);
    b.keys = take(at, e * TILE);
    b.values = take(at, e * TILE);
    b.scores = take(at, rows * TILE);
    b.top = take(at, rows);
    b.sum = take(at, rows);
    TUILI_WITH_FLOAT(a.dtype, X, attend<X>(b));
    for (int m = 0; m < b.rows; m++) {
        const int64_t to = ((b.begin + b.first + m / b.heads) * a.h + b.head * b.heads + m % b.heads) * a.e;
        const F inverse = set1(1.0f / b.sum[m]);
        TUILI_WITH_FLOAT(a.out_dtype, O, {
            for (int i = 0; i < a.e; i += W) store((O*)a.out + to + i, mul(load(b.out + m * a.e + i), inverse));
        });
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(packed_attention) = {"packed_attention", sizeof(TuiliPackedAttentionArgs),
                                       TUILI_ISA::packed_attention_chunks, TUILI_ISA::packed_attention_run, nullptr};
