// Products of low rank that adapters add to a linear layer's outputs (app/kernels/lora).
//
// A chunk is some neighbouring tokens. Those of one adapter that lie side by side, a prompt's, go together, up to four:
// each weight that is loaded serves all of them. A token's sums do not depend on how many go with it. Where no token of
// the step has an adapter there is no chunk, and nobody waits for the op.
#include "../native/rows.h"

namespace TUILI_ISA {

enum : int {
    kTogether = 4,        // tokens that go together at most
    kWideInput = 1 << 15, // of wider inputs each goes alone, so that they fit the scratch
    kMaxChunk = 32,       // tokens of a chunk at most
    kChunksPerThread = 4,
};

TUILI_INLINE int64_t lora_chunk_tokens(const TuiliStep* step, int32_t threads) {
    const int64_t pieces = int64_t(threads) * kChunksPerThread;
    const int64_t tokens = (step->count[TUILI_TOKENS] + pieces - 1) / pieces;
    return tokens < 1 ? 1 : tokens > kMaxChunk ? (int)kMaxChunk : tokens;
}

static int64_t lora_chunks(const void* args, const TuiliStep* step, int32_t threads) {
    const TuiliLoraArgs& a = *(const TuiliLoraArgs*)args;
    const int64_t tokens = step->count[TUILI_TOKENS], each = lora_chunk_tokens(step, threads);
    for (int64_t t = 0; t < tokens; t++)
        if (a.slots[t] >= 0) return (tokens + each - 1) / each;
    return 0;
}

// A row of x in fp32.
TUILI_INLINE void widen_row(const TuiliLoraArgs& a, int64_t row, float* out) {
    const int k = a.k;
    if (a.x_dtype != TUILI_I8) {
        TUILI_WITH_FLOAT(a.x_dtype, T, {
            const T* x = TUILI_ROW(const T, a.x, row, k);
            for (int i = 0; i < k; i += W) store_at(out, i, k, load_at(x, i, k));
        });
        return;
    }
    const int8_t* x = TUILI_ROW(const int8_t, a.x, row, k);
    const float* scales = TUILI_ROW(const float, a.x_scale, row, act_groups(k));
    for (int begin = 0; begin < k; begin += TUILI_ACT_GROUP) {
        const float scale = *scales++;
        const int end = k - begin < TUILI_ACT_GROUP ? k : begin + TUILI_ACT_GROUP;
        for (int i = begin; i < end; i++) out[i] = (float)x[i] * scale;
    }
}

// sums[m][j] = down[j] . x[m] for J rows of `down` and M tokens, in one order of K whatever J and M are.
template <int J, int M, typename Wt>
TUILI_INLINE void shrink_rows(const Wt* down, const float* x, int k, float* sums, int stride) {
    F acc[M][J];
    for (int m = 0; m < M; m++)
        for (int j = 0; j < J; j++) acc[m][j] = zero();
    const int whole = k / W * W;
    for (int i = 0; i < whole; i += W) {
        F w[J];
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) w[j] = load(down + int64_t(j) * k + i);
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
            const F v = load(x + int64_t(m) * k + i);
#pragma GCC unroll 4
            for (int j = 0; j < J; j++) acc[m][j] = fma(v, w[j], acc[m][j]);
        }
    }
    for (int m = 0; m < M; m++) {
        for (int j = 0; j < J; j++) {
            if (whole < k) {
                const F v = load_n(x + int64_t(m) * k + whole, k - whole);
                acc[m][j] = fma(v, load_n(down + int64_t(j) * k + whole, k - whole), acc[m][j]);
            }
            sums[m * stride + j] = hsum(acc[m][j]);
        }
    }
}

// out[m] (+)= up.T @ sums[m] for columns begin to end.
template <int M, typename Wt, typename Out>
TUILI_INLINE void expand_columns(const TuiliLoraArgs& a, const Wt* up, int rank, const float* sums, int stride,
                                 int64_t row, int begin, int end) {
    for (int i = begin; i < end; i += W) {
        F acc[M];
        for (int m = 0; m < M; m++) acc[m] = zero();
        for (int r = 0; r < rank; r++) {
            const F w = load_at(up + int64_t(r) * a.n, i, end);
#pragma GCC unroll 4
            for (int m = 0; m < M; m++) acc[m] = fma(set1(sums[m * stride + r]), w, acc[m]);
        }
        for (int m = 0; m < M; m++) {
            Out* out = TUILI_ROW(Out, a.out, row + m, a.n);
            store_at(out, i, end, a.add ? add(load_at(out, i, end), acc[m]) : acc[m]);
        }
    }
}

// Tokens row to row + M, all of one slot.
template <int M, typename Wt, typename Out>
static void lora_tokens(const TuiliLoraArgs& a, int64_t slot, int64_t row, float* scratch) {
    const int stride = a.rank;
    float *sums = scratch, *x = scratch + kTogether * stride;
    for (int m = 0; m < M; m++) widen_row(a, row + m, x + int64_t(m) * a.k);
    const Wt* down = (const Wt*)a.down + slot * a.parts * a.rank * a.k;
    const Wt* up = (const Wt*)a.up + slot * a.rank * a.n;
    int begin = 0;
    for (int part = 0; part < a.parts; part++, down += int64_t(a.rank) * a.k) {
        const int rank = a.ranks[slot * a.parts + part], end = a.ends[part];
        int r = 0;
        for (; r + 4 <= rank; r += 4) shrink_rows<4, M>(down + int64_t(r) * a.k, x, a.k, sums + r, stride);
        for (; r < rank; r++) shrink_rows<1, M>(down + int64_t(r) * a.k, x, a.k, sums + r, stride);
        if (rank > 0 || !a.add) expand_columns<M, Wt, Out>(a, up, rank, sums, stride, row, begin, end);
        begin = end;
    }
}

template <typename Wt, typename Out>
static void lora_block(const TuiliLoraArgs& a, int64_t begin, int64_t end, float* scratch) {
    const int64_t together = a.k > kWideInput ? 1 : kTogether;
    for (int64_t row = begin; row < end;) {
        const int64_t slot = a.slots[row];
        int64_t count = 1;
        while (count < together && row + count < end && a.slots[row + count] == slot) count++;
        if (slot >= 0) {
            switch (count) {
                case 1: lora_tokens<1, Wt, Out>(a, slot, row, scratch); break;
                case 2: lora_tokens<2, Wt, Out>(a, slot, row, scratch); break;
                case 3: lora_tokens<3, Wt, Out>(a, slot, row, scratch); break;
                default: lora_tokens<4, Wt, Out>(a, slot, row, scratch);
            }
        }
        row += count;
    }
}

static void lora_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliLoraArgs& a = *(const TuiliLoraArgs*)args;
    const int64_t each = lora_chunk_tokens(step, thread->threads), tokens = step->count[TUILI_TOKENS];
    const int64_t begin = chunk * each, end = begin + each < tokens ? begin + each : tokens;
    float* scratch = (float*)thread->scratch;
    TUILI_WITH_FLOAT(a.weight_dtype, Wt, TUILI_WITH_FLOAT(a.out_dtype, Out, (lora_block<Wt, Out>(a, begin, end, scratch))));
}

static_assert((kTogether * TUILI_MAX_RANK + kTogether * int64_t(kWideInput)) * sizeof(float) <= TUILI_SCRATCH_BYTES,
              "inputs and sums fit the scratch");
static_assert((kTogether * TUILI_MAX_RANK + TUILI_MAX_LORA_WIDTH) * sizeof(float) <= TUILI_SCRATCH_BYTES,
              "and so does a wide input alone");

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(lora) = {"lora", sizeof(TuiliLoraArgs), TUILI_ISA::lora_chunks, TUILI_ISA::lora_run, nullptr};
