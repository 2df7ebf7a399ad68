// A product for each head, x [T, K] @ w [K, N].
//
// The K terms of an output are added in order, by fused multiplications, however many tokens and columns are worked on
// at once. A single token's weights are read in long runs, as it waits for memory alone; several tokens share what has
// been widened.
#include "../native/rows.h"

namespace TUILI_ISA {

enum : int { COLUMNS = 256 };  // of a chunk
#if defined(__AVX512F__)
enum : int { TOKENS = 4, VECTORS = 4, ALONE = 16 };
#else
enum : int { TOKENS = 2, VECTORS = 4, ALONE = 8 };
#endif

// N vectors of columns of M tokens.
template <int M, int N, typename X, typename Wt, typename Out>
static void product_block(const X* x, int64_t x_stride, const Wt* w, int k, int n, Out* out, int64_t out_stride) {
    F acc[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) acc[m][i] = zero();
    for (int j = 0; j < k; j++, w += n) {
        F v[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) v[i] = load(w + i * W);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
            float value;
            if constexpr (sizeof(X) == 2) {
                value = bf16_to_float(x[m * x_stride + j]);
            } else {
                value = x[m * x_stride + j];
            }
            const F broadcast = set1(value);
#pragma GCC unroll 16
            for (int i = 0; i < N; i++) acc[m][i] = fma(broadcast, v[i], acc[m][i]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++)
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) store(out + m * out_stride + i * W, acc[m][i]);
}

// The columns of a token that fill no vector.
template <typename X, typename Wt, typename Out>
static void product_rest(const X* x, const Wt* w, int k, int n, int columns, Out* out) {
    F acc = zero();
    for (int j = 0; j < k; j++, w += n) {
        float value;
        if constexpr (sizeof(X) == 2) {
            value = bf16_to_float(x[j]);
        } else {
            value = x[j];
        }
        acc = fma(set1(value), load_n(w, columns), acc);
    }
    store_n(out, acc, columns);
}

template <typename X, typename Wt, typename Out>
static void product_chunk(const TuiliHeadLinearArgs& a, int tokens, int head, int begin, int end) {
    const X* x = (const X*)a.x + (int64_t)head * a.x_head_stride;
    const Wt* w = (const Wt*)a.weight + (int64_t)head * a.k * a.n;
    Out* out = (Out*)a.out + (int64_t)head * a.out_head_stride;
    const int64_t xs = a.x_token_stride, os = a.out_token_stride;
    int at = begin;
    if (tokens == 1)
        for (; at + ALONE * W <= end; at += ALONE * W)
            product_block<1, ALONE, X, Wt, Out>(x, xs, w + at, a.k, a.n, out + at, os);
    for (; at + VECTORS * W <= end; at += VECTORS * W) {
        int t = 0;
        for (; t + TOKENS <= tokens; t += TOKENS)
            product_block<TOKENS, VECTORS, X, Wt, Out>(x + t * xs, xs, w + at, a.k, a.n, out + t * os + at, os);
        for (; t < tokens; t++)
            product_block<1, VECTORS, X, Wt, Out>(x + t * xs, xs, w + at, a.k, a.n, out + t * os + at, os);
    }
    for (; at < end; at += W) {
        const int columns = end - at < W ? end - at : (int)W;
        for (int t = 0; t < tokens; t++) product_rest<X, Wt, Out>(x + t * xs, w + at, a.k, a.n, columns, out + t * os + at);
    }
}

static int64_t head_linear_chunks(const void* args, const TuiliStep* step, int32_t) {
    const TuiliHeadLinearArgs& a = *(const TuiliHeadLinearArgs*)args;
    return step->count[TUILI_TOKENS] == 0 ? 0 : (int64_t)a.heads * ((a.n + COLUMNS - 1) / COLUMNS);
}

static void head_linear_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread*) {
    const TuiliHeadLinearArgs& a = *(const TuiliHeadLinearArgs*)args;
    const int blocks = (a.n + COLUMNS - 1) / COLUMNS, head = (int)(chunk / blocks);
    const int begin = (int)(chunk % blocks) * COLUMNS, end = begin + COLUMNS < a.n ? begin + COLUMNS : a.n;
    const int tokens = step->count[TUILI_TOKENS];
    TUILI_WITH_FLOAT(a.x_dtype, X,
                     TUILI_WITH_FLOAT(a.weight_dtype, Wt,
                                      TUILI_WITH_FLOAT(a.out_dtype, Out,
                                                       (product_chunk<X, Wt, Out>(a, tokens, head, begin, end)))));
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(head_linear) = {"head_linear", sizeof(TuiliHeadLinearArgs), TUILI_ISA::head_linear_chunks,
                                  TUILI_ISA::head_linear_run, nullptr};
