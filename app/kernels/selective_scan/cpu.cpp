// The selective scan of Mamba-2, token by token (Dao and Gu 2024, arXiv:2405.21060). A chunk is a head of a row, or some
// of its columns where rows and heads are too few for the threads.
//
// With a state S [k_dim, v_dim], a token's B, C, step * x and decay
//     S = decay * S + B (step * x)^T;  out = S^T C + d * x
// A row of S knows nothing of the others: a few rows of some columns stay in registers while up to TOKENS tokens go by,
// and only what each token reads of them is added up in memory. So a prompt reads and writes the state once for all of
// these tokens, and a token's bits do not hang on how many there are: its sum goes by ascending rows.
#include "../native/rows.h"
#include "../native/state.h"

namespace TUILI_ISA {

enum : int {
    VECTORS = 4,                // vectors of a slice
    LANES = VECTORS * W,        // columns of a slice
    HELD = W == 16 ? 4 : 2,     // rows of a slice in registers
    TOKENS = 32,                // tokens that go by at a time
    CHUNKS_PER_THREAD = 4,      // heads are cut where there are fewer chunks than this
};

TUILI_INLINE int slices_of(const TuiliSelectiveScanArgs& a) { return (a.v_dim + LANES - 1) / LANES; }

// Chunks that a head is cut into.
TUILI_INLINE int cuts(const TuiliSelectiveScanArgs& a, const TuiliStep* step, int32_t threads) {
    const int64_t heads = (int64_t)step->count[TUILI_ROWS] * a.heads;
    return threads > 1 && heads < threads * CHUNKS_PER_THREAD ? slices_of(a) : 1;
}

static int64_t selective_scan_chunks(const void* args, const TuiliStep* step, int32_t threads) {
    const TuiliSelectiveScanArgs& a = *(const TuiliSelectiveScanArgs*)args;
    return (int64_t)step->count[TUILI_ROWS] * a.heads * cuts(a, step, threads);
}

TUILI_INLINE float scalar(const float* p) { return *p; }
TUILI_INLINE float scalar(const bf16_t* p) { return bf16_to_float(*p); }

// Some tokens of a row, for one head.
struct Span {
    int count;
    float step[TOKENS], decay[TOKENS];
    float* b;      // [count, k_dim], likewise c
    float* c;
    float* added;  // [count, LANES] step * x of a slice
    float* read;   // [count, LANES] what the tokens read of it
};

struct Slice {
    float* state;
    int64_t stride;
};

TUILI_INLINE int64_t width_of(const TuiliSelectiveScanArgs& a) {
    return (int64_t)a.heads * a.v_dim + 2 * (int64_t)a.groups * a.k_dim;
}

template <typename T>
static void prepare(const TuiliSelectiveScanArgs& a, int64_t first, int head, Span* span) {
    const int n = a.k_dim, group = head / (a.heads / a.groups);
    const float rate = -__builtin_expf(a.a_log[head]);
    for (int t = 0; t < span->count; t++) {
        const float x = scalar((const T*)a.dt + (first + t) * a.dt_stride + head) + a.dt_bias[head];
        const float step = x > 20.0f ? x : __builtin_log1pf(__builtin_expf(x));
        span->step[t] = step < a.least_step ? a.least_step : step > a.greatest_step ? a.greatest_step : step;
        span->decay[t] = __builtin_expf(rate * span->step[t]);
        const T* from = (const T*)a.xbc + (first + t) * width_of(a) + (int64_t)a.heads * a.v_dim + group * n;
        for (int i = 0; i < n; i += W) {
            store_at(span->b + t * n, i, n, load_at(from, i, n));
            store_at(span->c + t * n, i, n, load_at(from + a.groups * n, i, n));
        }
    }
}

// HELD rows from `row` on, N vectors of each, while the span's tokens go by.
template <int N, int R>
TUILI_INLINE void pass(const Span& span, int n, int row, Slice from, Slice to) {
    F s[R][N];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) s[r][j] = load(from.state + (row + r) * from.stride + j * W);
    }
    for (int t = 0; t < span.count; t++) {
        const F decay = set1(span.decay[t]);
        const float *b = span.b + t * n + row, *c = span.c + t * n + row;
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            const F added = load(span.added + t * LANES + j * W);
            F read = load(span.read + t * LANES + j * W);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                s[r][j] = fma(set1(b[r]), added, mul(s[r][j], decay));
                read = fma(set1(c[r]), s[r][j], read);
            }
            store(span.read + t * LANES + j * W, read);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) store(to.state + (row + r) * to.stride + j * W, s[r][j]);
    }
}

template <int N, typename T>
static void columns(const TuiliSelectiveScanArgs& a, int64_t first, int head, int column, const Span& span, Slice from,
                    Slice to) {
    const int n = a.k_dim, inner = a.heads * a.v_dim;
    const T* x = (const T*)a.xbc + first * width_of(a) + head * a.v_dim + column;
    const F d = set1(a.d[head]);
    for (int t = 0; t < span.count; t++) {
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            const F v = load(x + t * width_of(a) + j * W);
            store(span.added + t * LANES + j * W, mul(set1(span.step[t]), v));
            store(span.read + t * LANES + j * W, mul(d, v));
        }
    }
    int row = 0;
    for (; row + HELD <= n; row += HELD) pass<N, HELD>(span, n, row, from, to);
    for (; row < n; row++) pass<N, 1>(span, n, row, from, to);
    T* out = (T*)a.out + first * inner + head * a.v_dim + column;
    for (int t = 0; t < span.count; t++) {
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) store(out + (int64_t)t * inner + j * W, load(span.read + t * LANES + j * W));
    }
}

template <typename T>
static void slice_of_span(const TuiliSelectiveScanArgs& a, int64_t first, int head, int column, const Span& span,
                          Slice from, Slice to) {
    switch (a.v_dim - column >= LANES ? VECTORS : (a.v_dim - column) / W) {
        case 1: columns<1, T>(a, first, head, column, span, from, to); break;
        case 2: columns<2, T>(a, first, head, column, span, from, to); break;
        case 3: columns<3, T>(a, first, head, column, span, from, to); break;
        default: columns<4, T>(a, first, head, column, span, from, to);
    }
}

static void selective_scan_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliSelectiveScanArgs& a = *(const TuiliSelectiveScanArgs*)args;
    const int n = a.k_dim, cut = cuts(a, step, thread->threads), slices = slices_of(a);
    const int head = (int)(chunk / cut % a.heads), part = (int)(chunk % cut);
    const int first_slice = cut > 1 ? part : 0, last_slice = cut > 1 ? part + 1 : slices;
    const StateRow row = state_row(a.query_start_loc, a.seq_lens, a.block_tables, a.block_table_stride, a.block_size,
                                   chunk / cut / a.heads);
    if (row.tokens == 0) return;
    float* kept = (float*)thread->scratch;  // [slices, k_dim, LANES] between spans
    Span span;
    span.b = kept + (int64_t)slices * n * LANES;
    span.c = span.b + TOKENS * n;
    span.added = span.c + TOKENS * n;
    span.read = span.added + TOKENS * LANES;
    const int64_t page = (int64_t)n * a.v_dim;
    if (row.in < 0) memset(kept, 0, (size_t)slices * n * LANES * sizeof(float));
    for (int done = 0; done < row.tokens; done += span.count) {
        const bool ahead = row.checkpoint >= 0 && done < row.before;
        const int left = (ahead ? row.before : row.tokens) - done;
        span.count = left < TOKENS ? left : TOKENS;
        const int stop = done + span.count;
        TUILI_WITH_FLOAT(a.dtype, T, prepare<T>(a, row.token + done, head, &span));
        for (int slice = first_slice; slice < last_slice; slice++) {
            const int column = slice * LANES;
            const auto at = [&](int64_t block) {
                return Slice{a.state + (block * a.heads + head) * page + column, a.v_dim};
            };
            const Slice mine = {kept + (int64_t)slice * n * LANES, LANES};
            const Slice from = done == 0 && row.in >= 0 ? at(row.in) : mine;
            const Slice to = stop == row.tokens && row.out >= 0 ? at(row.out) : mine;
            TUILI_WITH_FLOAT(a.dtype, T, slice_of_span<T>(a, row.token + done, head, column, span, from, to));
            if (ahead && stop == row.before) {
                const int lanes = a.v_dim - column < LANES ? a.v_dim - column : LANES;
                const Slice left_in = at(row.checkpoint);
                for (int i = 0; i < n; i++)
                    memcpy(left_in.state + i * left_in.stride, to.state + i * to.stride, lanes * sizeof(float));
            }
        }
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(selective_scan) = {"selective_scan", sizeof(TuiliSelectiveScanArgs), TUILI_ISA::selective_scan_chunks,
                                     TUILI_ISA::selective_scan_run, nullptr};
