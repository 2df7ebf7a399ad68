// The gated delta rule, token by token (Yang et al. 2024, arXiv:2412.06464). A chunk is a value head of a row, or some
// of its columns where rows and heads are too few for the threads.
//
// With a state S [k_dim, v_dim], a token's unit vectors k and q, value v, decay d and beta
//     delta = beta * (v - d * S^T k);  out = d * S^T q + (q . k) * delta;  S = d * S + k delta^T
// so that a token reads S once, and the pass that updates it is the one that the next token reads by. Columns know
// nothing of each other: the state goes by slices that stay in the first-level cache while some tokens are done.
//
// There is no form for prompts that computes tokens in chunks: at these sizes it has as many products and more passes,
// and a token's bits would depend on where its row begins.
#include "../native/rows.h"
#include "../native/state.h"

namespace TUILI_ISA {

enum : int {
    VECTORS = 4,              // vectors of a slice
    LANES = VECTORS * W,      // columns of a slice
    TOKENS = 32,              // tokens that are prepared at a time
    CHUNKS_PER_THREAD = 4,    // heads are cut where there are fewer chunks than this
};

struct Token {
    float decay, beta, qk;
};

TUILI_INLINE int slices_of(const TuiliGatedDeltaArgs& a) { return (a.v_dim + LANES - 1) / LANES; }

// Chunks that a head is cut into.
TUILI_INLINE int cuts(const TuiliGatedDeltaArgs& a, const TuiliStep* step, int32_t threads) {
    const int64_t heads = (int64_t)step->count[TUILI_ROWS] * a.v_heads;
    return threads > 1 && heads < threads * CHUNKS_PER_THREAD ? slices_of(a) : 1;
}

static int64_t gated_delta_chunks(const void* args, const TuiliStep* step, int32_t threads) {
    const TuiliGatedDeltaArgs& a = *(const TuiliGatedDeltaArgs*)args;
    return (int64_t)step->count[TUILI_ROWS] * a.v_heads * cuts(a, step, threads);
}

// x / |x| * factor.
template <typename T>
TUILI_INLINE void normalise(const T* x, int n, float factor, float* out) {
    F squares = zero();
    for (int i = 0; i < n; i += W) {
        const F v = load_at(x, i, n);
        squares = fma(v, v, squares);
    }
    const F inverse = set1(factor / __builtin_sqrtf(hsum(squares) + 1e-6f));
    for (int i = 0; i < n; i += W) store_at(out, i, n, mul(load_at(x, i, n), inverse));
}

TUILI_INLINE float scalar(const float* p) { return *p; }
TUILI_INLINE float scalar(const bf16_t* p) { return bf16_to_float(*p); }

template <typename T>
static Token prepare(const TuiliGatedDeltaArgs& a, int64_t token, int head, float* q, float* k) {
    const int n = a.k_dim, k_head = head / (a.v_heads / a.k_heads);
    const T* from = (const T*)a.qkv + token * (2 * a.k_heads * n + a.v_heads * a.v_dim) + k_head * n;
    normalise(from, n, 1.0f / __builtin_sqrtf((float)n), q);
    normalise(from + a.k_heads * n, n, 1.0f, k);
    F products = zero();
    for (int i = 0; i < n; i += W) products = fma(load_at(q, i, n), load_at(k, i, n), products);
    const float b = scalar((const T*)a.b + token * a.gate_stride + head);
    const float x = scalar((const T*)a.a + token * a.gate_stride + head) + a.dt_bias[head];
    const float softplus = x > 20.0f ? x : __builtin_log1pf(__builtin_expf(x));
    return {__builtin_expf(-__builtin_expf(a.a_log[head]) * softplus), 1.0f / (1.0f + __builtin_expf(-b)),
            hsum(products)};
}

struct Slice {
    float* state;
    int64_t stride;
};

// One pass over a slice of the state: UPDATE by a token, and READ by the one that follows.
template <int N, bool UPDATE, bool READ>
TUILI_INLINE void pass(int n, Slice from, Slice to, const float* k, float decay, const F* delta, const float* next_q,
                       const float* next_k, F* by_q, F* by_k) {
    F change[N], q_sum[N], k_sum[N];
    const F d = set1(decay);
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) {
        q_sum[j] = k_sum[j] = zero();
        if (UPDATE) change[j] = delta[j];
    }
    for (int i = 0; i < n; i++) {
        F s[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            s[j] = load(from.state + i * from.stride + j * W);
            if (UPDATE) {
                s[j] = fma(set1(k[i]), change[j], mul(s[j], d));
                store(to.state + i * to.stride + j * W, s[j]);
            }
            if (READ) {
                q_sum[j] = fma(set1(next_q[i]), s[j], q_sum[j]);
                k_sum[j] = fma(set1(next_k[i]), s[j], k_sum[j]);
            }
        }
    }
    if (READ) {
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            by_q[j] = q_sum[j];
            by_k[j] = k_sum[j];
        }
    }
}

// Some tokens of a row, prepared, and where their head's state goes from and to.
struct Span {
    const TuiliGatedDeltaArgs* a;
    int head;
    int64_t first;   // token
    int count;
    const float *q, *k;  // [count, k_dim]
    const Token* tokens;
    Slice from;      // before the first token
    Slice kept;      // this thread's own, between tokens
    Slice to;        // behind the last one
    int before;      // tokens ahead of a checkpoint, 0 for none
    Slice checkpoint;
};

template <int N, typename T>
static void columns(const Span& s, int column) {
    const TuiliGatedDeltaArgs& a = *s.a;
    const int n = a.k_dim;
    const int64_t width = 2 * (int64_t)a.k_heads * n + (int64_t)a.v_heads * a.v_dim;
    const T* value = (const T*)a.qkv + s.first * width + 2 * a.k_heads * n + s.head * a.v_dim + column;
    T* out = (T*)a.out + (s.first * a.v_heads + s.head) * a.v_dim + column;
    F by_q[N], by_k[N], delta[N];
    pass<N, false, true>(n, s.from, s.from, nullptr, 0.0f, nullptr, s.q, s.k, by_q, by_k);
    Slice from = s.from;
    for (int t = 0; t < s.count; t++) {
        const Token& token = s.tokens[t];
        const F decay = set1(token.decay);
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) {
            delta[j] = mul(set1(token.beta), sub(load(value + t * width + j * W), mul(decay, by_k[j])));
            const F y = fma(set1(token.qk), delta[j], mul(decay, by_q[j]));
            store(out + t * (int64_t)a.v_heads * a.v_dim + j * W, y);
        }
        const float* k = s.k + t * n;
        if (t + 1 == s.count) {
            pass<N, true, false>(n, from, s.to, k, token.decay, delta, nullptr, nullptr, nullptr, nullptr);
            from = s.to;
        } else {
            pass<N, true, true>(n, from, s.kept, k, token.decay, delta, s.q + (t + 1) * n, k + n, by_q, by_k);
            from = s.kept;
        }
        if (t + 1 == s.before) {
            for (int i = 0; i < n; i++)
                memcpy(s.checkpoint.state + i * s.checkpoint.stride, from.state + i * from.stride, N * W * 4);
        }
    }
}

template <typename T>
static void slice_of_span(const Span& s, int column) {
    switch (s.a->v_dim - column >= LANES ? VECTORS : (s.a->v_dim - column) / W) {
        case 1: columns<1, T>(s, column); break;
        case 2: columns<2, T>(s, column); break;
        case 3: columns<3, T>(s, column); break;
        default: columns<4, T>(s, column);
    }
}

static void gated_delta_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliGatedDeltaArgs& a = *(const TuiliGatedDeltaArgs*)args;
    const int n = a.k_dim, cut = cuts(a, step, thread->threads), slices = slices_of(a);
    const int head = (int)(chunk / cut % a.v_heads), part = (int)(chunk % cut);
    const int first_slice = cut > 1 ? part : 0, last_slice = cut > 1 ? part + 1 : slices;
    const StateRow row = state_row(a.query_start_loc, a.seq_lens, a.block_tables, a.block_table_stride, a.block_size,
                                   chunk / cut / a.v_heads);
    if (row.tokens == 0) return;
    float* kept = (float*)thread->scratch;  // [slices, k_dim, LANES]
    float* q = kept + (int64_t)slices * n * LANES;
    float* k = q + TOKENS * n;
    Token* tokens = (Token*)(k + TOKENS * n);
    const int64_t page = (int64_t)n * a.v_dim;
    if (row.in < 0) memset(kept, 0, (size_t)slices * n * LANES * sizeof(float));
    for (int done = 0; done < row.tokens; done += TOKENS) {
        const int count = row.tokens - done < TOKENS ? row.tokens - done : TOKENS;
        const bool last = done + count == row.tokens;
        for (int t = 0; t < count; t++) {
            const int64_t token = row.token + done + t;
            TUILI_WITH_FLOAT(a.dtype, T, tokens[t] = prepare<T>(a, token, head, q + t * n, k + t * n));
        }
        const bool has_checkpoint = row.checkpoint >= 0 && row.before > done && row.before <= done + count;
        for (int slice = first_slice; slice < last_slice; slice++) {
            const int column = slice * LANES;
            const auto at = [&](int64_t block) {
                return Slice{a.state + (block * a.v_heads + head) * page + column, a.v_dim};
            };
            const Slice mine = {kept + (int64_t)slice * n * LANES, LANES};
            const Slice from = done == 0 && row.in >= 0 ? at(row.in) : mine;
            const Slice to = last && row.out >= 0 ? at(row.out) : mine;
            const Span span = {&a,   head, row.token + done, count, q, k, tokens, from, mine, to,
                               has_checkpoint ? row.before - done : 0, has_checkpoint ? at(row.checkpoint) : mine};
            TUILI_WITH_FLOAT(a.dtype, T, slice_of_span<T>(span, column));
        }
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(gated_delta) = {"gated_delta", sizeof(TuiliGatedDeltaArgs), TUILI_ISA::gated_delta_chunks,
                                  TUILI_ISA::gated_delta_run, nullptr};
