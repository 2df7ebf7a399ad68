// Causal attention over paged latents.
//
// A chunk is a tile of lines, each a query of one head: some tokens of a row, and all of their heads or a share of
// them. It goes through the row's latents a tile of 64 positions at a time. They are widened to fp32 once for all
// lines; keys and values are the same memory, so that the second product finds it in the caches.
//
// One order of accumulation, whatever else is in the step: a score is 16 (8) sums of neighbours' products, in order,
// folded in halves; tiles begin at absolute multiples of 64 and follow each other, what is summed so far being scaled
// to the new maximum before a tile's values are added to it, position by position. A hidden position adds exact zeros.
//
// Scores carry a factor of log2(e), so that the exponentials are powers of two.
#include "../native/rows.h"

namespace TUILI_ISA {

enum : int { TILE = 64, LINES = 48, PAD = 4, KEYS = 4, AHEAD = 8 };
#if defined(__AVX512F__)
enum : int { VALUE_LINES = 4, VALUE_VECTORS = 4 };
#else
enum : int { VALUE_LINES = 2, VALUE_VECTORS = 4 };
#endif

TUILI_INLINE int rounded_up(int n, int to) { return (n + to - 1) / to * to; }

// What a chunk works with, cut from its thread's scratch.
struct Work {
    const TuiliLatentAttentionArgs* a;
    const int32_t* table;
    int heads, first_head, lines, padded_lines;  // heads of a token in this chunk
    int wide, narrow;                            // width and rank, in whole vectors of 16
    int first;                                   // position of the first query
    int64_t token, high;                         // that query; positions that any query sees
    float *q, *out, *tile, *scores, *factor, *top, *sum;
};

// Positions of line m's that are seen, counted from `base`.
TUILI_INLINE int64_t seen_by(const Work& w, int m, int64_t base) {
    const int64_t end = w.first + m / w.heads + 1 - base;
    return end < 0 ? 0 : end < TILE ? end : (int64_t)TILE;
}

#if defined(__AVX512F__)
// The sums of four accumulators of each of four lines, folded as hsum folds one: halves, quarters, pairs.
TUILI_INLINE __m512 fold(const F (&acc)[4][KEYS]) {
    F half[8];  // of two neighbours' halves
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        // Vector 4 * key + line, so that a line's keys end up side by side.
        const F x = acc[2 * i % 4][2 * i / 4], y = acc[(2 * i + 1) % 4][2 * i / 4];
        half[i] = add(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    }
    F quarter[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        quarter[i] = add(_mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(half[2 * i], half[2 * i + 1], 0xdd));
    const F even = add(_mm512_shuffle_ps(quarter[0], quarter[1], 0x44), _mm512_shuffle_ps(quarter[0], quarter[1], 0xee));
    const F odd = add(_mm512_shuffle_ps(quarter[2], quarter[3], 0x44), _mm512_shuffle_ps(quarter[2], quarter[3], 0xee));
    return add(_mm512_shuffle_ps(even, odd, 0x88), _mm512_shuffle_ps(even, odd, 0xdd));
}
#endif

// Scores of all lines against KEYS latents, which stand in the tile from `keys` on.
static void score(const Work& w, const float* keys, float* scores) {
    const int width = w.wide;
#if defined(__AVX512F__)
    for (int m = 0; m < w.padded_lines; m += 4) {
        const float* q = w.q + (int64_t)m * width;
        F acc[4][KEYS];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
            for (int n = 0; n < KEYS; n++) acc[i][n] = zero();
        for (int at = 0; at < width; at += W) {
            F k[KEYS];
#pragma GCC unroll 4
            for (int n = 0; n < KEYS; n++) k[n] = load(keys + n * width + at);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const F x = load(q + i * width + at);
#pragma GCC unroll 4
                for (int n = 0; n < KEYS; n++) acc[i][n] = fma(x, k[n], acc[i][n]);
            }
        }
        const F sums = fold(acc);
        _mm_storeu_ps(scores + m * TILE, _mm512_castps512_ps128(sums));
        _mm_storeu_ps(scores + (m + 1) * TILE, _mm512_extractf32x4_ps(sums, 1));
        _mm_storeu_ps(scores + (m + 2) * TILE, _mm512_extractf32x4_ps(sums, 2));
        _mm_storeu_ps(scores + (m + 3) * TILE, _mm512_extractf32x4_ps(sums, 3));
    }
#else
    for (int m = 0; m < w.padded_lines; m += 2) {
        const float* q = w.q + (int64_t)m * width;
        F acc[2][KEYS];
#pragma GCC unroll 4
        for (int i = 0; i < 2; i++)
#pragma GCC unroll 4
            for (int n = 0; n < KEYS; n++) acc[i][n] = zero();
        for (int at = 0; at < width; at += W) {
            const F x = load(q + at), y = load(q + width + at);
#pragma GCC unroll 4
            for (int n = 0; n < KEYS; n++) {
                const F k = load(keys + n * width + at);
                acc[0][n] = fma(x, k, acc[0][n]);
                acc[1][n] = fma(y, k, acc[1][n]);
            }
        }
        for (int i = 0; i < 2; i++)
            for (int n = 0; n < KEYS; n++) scores[(m + i) * TILE + n] = hsum(acc[i][n]);
    }
#endif
}

// One tile's scores of a line become its probabilities; the line's maximum and sum are taken along.
static void softmax(const Work& w, int m, int64_t base) {
    const int64_t seen = seen_by(w, m, base);
    float* s = w.scores + m * TILE;
    w.factor[m] = 1.0f;
    if (seen == 0) {
        memset(s, 0, TILE * sizeof(float));
        return;
    }
    for (int64_t i = seen; i < TILE; i++) s[i] = -__builtin_inff();
    F most = set1(-__builtin_inff());
    for (int i = 0; i < TILE; i += W) most = max(load(s + i), most);
    const float peak = hmax(most), top = w.top[m] > peak ? w.top[m] : peak;
    const F least = set1(1.17549435e-38f);  // what is less would slow every product with it down a hundredfold
    for (int i = 0; i < TILE; i += W) {
        const F p = exp2_nonpositive(sub(load(s + i), set1(top)));
        store(s + i, select_lt(p, least, zero(), p));
    }
    F sums = zero();
    for (int i = 0; i < TILE; i += W) sums = add(sums, load(s + i));
    float old[W];
    store(old, exp2_nonpositive(set1(w.top[m] - top)));
    w.factor[m] = old[0];
    w.sum[m] = w.sum[m] * old[0] + hsum(sums);
    w.top[m] = top;
}

// `count` positions' values, times their probabilities, onto what the lines have so far.
static void add_values(const Work& w, int count) {
    enum : int { M = VALUE_LINES, N = VALUE_VECTORS };
    for (int at = 0; at < w.narrow; at += N * W) {
        const int vectors = (w.narrow - at) / W < N ? (w.narrow - at) / W : (int)N;
        for (int m = 0; m < w.padded_lines; m += M) {
            float* out = w.out + (int64_t)m * w.narrow + at;
            const float *p = w.scores + m * TILE, *v = w.tile + at;
            if (vectors < N) {
                for (int i = 0; i < M; i++)
                    for (int n = 0; n < vectors; n++) {
                        F acc = mul(load(out + i * w.narrow + n * W), set1(w.factor[m + i]));
                        for (int j = 0; j < count; j++)
                            acc = fma(set1(p[i * TILE + j]), load(v + (int64_t)j * w.wide + n * W), acc);
                        store(out + i * w.narrow + n * W, acc);
                    }
                continue;
            }
            F acc[M][N];
#pragma GCC unroll 4
            for (int i = 0; i < M; i++)
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) acc[i][n] = mul(load(out + i * w.narrow + n * W), set1(w.factor[m + i]));
            for (int j = 0; j < count; j++, v += w.wide) {
                F x[N];
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) x[n] = load(v + n * W);
#pragma GCC unroll 4
                for (int i = 0; i < M; i++) {
                    const F weight = set1(p[i * TILE + j]);
#pragma GCC unroll 4
                    for (int n = 0; n < N; n++) acc[i][n] = fma(weight, x[n], acc[i][n]);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < M; i++)
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) store(out + i * w.narrow + n * W, acc[i][n]);
        }
    }
}

template <typename P>
TUILI_INLINE const P* latent_at(const Work& w, int64_t position) {
    const TuiliLatentAttentionArgs& a = *w.a;
    const int64_t block = w.table[position / a.block_size];
    return (const P*)a.pages + (block * a.block_size + position % a.block_size) * a.width;
}

// The latents of a tile in fp32, and its scores while they are near; of whole groups of KEYS, filled up with zeros.
template <typename P>
static int load_and_score(const Work& w, int64_t base) {
    const int width = w.a->width;
    const int count = w.high - base < TILE ? (int)(w.high - base) : (int)TILE;
    for (int j = 0; j < count; j += KEYS) {
        for (int n = 0; n < KEYS; n++) {
            float* to = w.tile + (int64_t)(j + n) * w.wide;
            if (j + n >= count) {
                memset(to, 0, (size_t)w.wide * sizeof(float));
                continue;
            }
            const int64_t position = base + j + n;
            const P* from = latent_at<P>(w, position);
            const P* next = position + AHEAD < w.high ? latent_at<P>(w, position + AHEAD) : from;
            for (int i = 0; i < width; i += W) {
                if (i % (64 / (int)sizeof(P)) == 0) _mm_prefetch((const char*)(next + i), _MM_HINT_T0);
                store(to + i, load_at(from, i, width));
            }
        }
        score(w, w.tile + (int64_t)j * w.wide, w.scores + j);
    }
    return count;
}

// Tiles of a step: how many heads and tokens one has.
struct Shape {
    int heads, shares, tokens;
};
static Shape shape_of(const TuiliLatentAttentionArgs& a, const TuiliStep* step, int threads) {
    // Few rows share out their heads, so that all threads have work: latents are read once for each share.
    const int rows = step->count[TUILI_TOKENS] > 0 ? step->count[TUILI_TOKENS] : 1;
    int shares = (a.heads + LINES - 1) / LINES;
    if (rows * shares < threads) shares = (threads + rows - 1) / rows;
    int heads = rounded_up((a.heads + shares - 1) / shares, PAD);
    if (heads > a.heads) heads = a.heads;
    return {heads, (a.heads + heads - 1) / heads, heads >= LINES ? 1 : LINES / heads};
}

static int64_t latent_attention_chunks(const void* args, const TuiliStep* step, int32_t threads) {
    const TuiliLatentAttentionArgs& a = *(const TuiliLatentAttentionArgs*)args;
    const Shape shape = shape_of(a, step, threads);
    int64_t tiles = 0;
    for (int r = 0; r < step->count[TUILI_ROWS]; r++)
        tiles += (a.query_start_loc[r + 1] - a.query_start_loc[r] + shape.tokens - 1) / shape.tokens;
    return tiles * shape.shares;
}

// The lines of a chunk. False beyond the last one.
static bool find(const TuiliLatentAttentionArgs& a, const TuiliStep* step, int64_t chunk, int threads, Work& w) {
    const Shape shape = shape_of(a, step, threads);
    int64_t tile = chunk / shape.shares;
    for (int row = 0; row < step->count[TUILI_ROWS]; row++) {
        const int tokens = a.query_start_loc[row + 1] - a.query_start_loc[row];
        const int tiles = (tokens + shape.tokens - 1) / shape.tokens;
        if (tile >= tiles) {
            tile -= tiles;
            continue;
        }
        tile = tiles - 1 - tile;  // the last queries see most latents: heavy tiles first
        const int begin = (int)tile * shape.tokens;
        const int count = begin + shape.tokens < tokens ? shape.tokens : tokens - begin;
        w.a = &a;
        w.table = a.block_tables + (int64_t)row * a.block_table_stride;
        w.first_head = (int)(chunk % shape.shares) * shape.heads;
        w.heads = a.heads - w.first_head < shape.heads ? a.heads - w.first_head : shape.heads;
        w.lines = count * w.heads;
        w.token = a.query_start_loc[row] + begin;
        w.first = a.seq_lens[row] - tokens + begin;
        w.high = w.first + count;
        return true;
    }
    return false;
}

TUILI_INLINE float* cut(char*& at, int64_t elements) {
    char* p = at;
    at += (elements * 4 + 63) / 64 * 64;
    return (float*)p;
}

static void latent_attention_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliLatentAttentionArgs& a = *(const TuiliLatentAttentionArgs*)args;
    Work w;
    if (!find(a, step, chunk, thread->threads, w)) return;
    w.wide = rounded_up(a.width, 16);
    w.narrow = rounded_up(a.rank, 16);
    w.padded_lines = rounded_up(w.lines, PAD);
    char* at = (char*)thread->scratch;
    w.q = cut(at, (int64_t)w.padded_lines * w.wide);
    w.out = cut(at, (int64_t)w.padded_lines * w.narrow);
    w.tile = cut(at, (int64_t)TILE * w.wide);
    w.scores = cut(at, (int64_t)w.padded_lines * TILE);
    w.factor = cut(at, w.padded_lines);
    w.top = cut(at, w.padded_lines);
    w.sum = cut(at, w.padded_lines);
    memset(w.q, 0, (size_t)w.padded_lines * w.wide * sizeof(float));
    memset(w.out, 0, (size_t)w.padded_lines * w.narrow * sizeof(float));
    if (w.wide > a.width) memset(w.tile, 0, (size_t)TILE * w.wide * sizeof(float));
    const F scale = set1(a.scale * 1.44269504f);
    for (int m = 0; m < w.padded_lines; m++) {
        w.factor[m] = 1.0f;
        w.top[m] = -__builtin_inff();
        w.sum[m] = 0.0f;
    }
    for (int m = 0; m < w.lines; m++) {
        const int64_t from = ((w.token + m / w.heads) * a.heads + w.first_head + m % w.heads) * a.width;
        float* q = w.q + (int64_t)m * w.wide;
        TUILI_WITH_FLOAT(a.dtype, T, {
            for (int i = 0; i < a.width; i += W)
                store_at(q, i, a.width, mul(load_at((const T*)a.q + from, i, a.width), scale));
        });
    }
    for (int64_t base = 0; base < w.high; base += TILE) {
        int count = 0;
        TUILI_WITH_FLOAT(a.page_dtype, P, count = load_and_score<P>(w, base));
        for (int m = 0; m < w.lines; m++) softmax(w, m, base);
        for (int m = w.lines; m < w.padded_lines; m++) memset(w.scores + m * TILE, 0, TILE * sizeof(float));
        add_values(w, count);
    }
    for (int m = 0; m < w.lines; m++) {
        const int64_t to = ((w.token + m / w.heads) * a.heads + w.first_head + m % w.heads) * a.rank;
        const F inverse = set1(1.0f / w.sum[m]);
        const float* out = w.out + (int64_t)m * w.narrow;
        TUILI_WITH_FLOAT(a.out_dtype, T, {
            for (int i = 0; i < a.rank; i += W) store_at((T*)a.out + to, i, a.rank, mul(load(out + i), inverse));
        });
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(latent_attention) = {"latent_attention", sizeof(TuiliLatentAttentionArgs),
                                       TUILI_ISA::latent_attention_chunks, TUILI_ISA::latent_attention_run, nullptr};
