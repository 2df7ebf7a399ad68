// Short convolution over the tokens of a row, channel by channel, and SiLU. A chunk is some channels of a row.
//
// The state is the last taps - 1 inputs, unrounded: a token is computed from the same numbers, in the same order,
// wherever its row begins.
#include "../native/rows.h"
#include "../native/state.h"

namespace TUILI_ISA {

enum : int { CHANNELS = 512, MAX_TAPS = 16 };  // channels of a chunk; MAX_TAPS is known to cpu.py

TUILI_INLINE int64_t pieces(const TuiliCausalConvArgs& a) { return (a.channels + CHANNELS - 1) / CHANNELS; }

static int64_t causal_conv_chunks(const void* args, const TuiliStep* step, int32_t) {
    return step->count[TUILI_ROWS] * pieces(*(const TuiliCausalConvArgs*)args);
}

// Inputs of a row's channels by token; those ahead of the row, at -1 and below, are its state's.
template <typename T>
struct Inputs {
    const T* x;
    int64_t stride;
    const T* state;  // [taps - 1, n]
    int32_t kept;    // taps - 1
    int32_t n;
};

template <typename T>
TUILI_INLINE const T* input(const Inputs<T>& in, int64_t token) {
    return token >= 0 ? in.x + token * in.stride : in.state + (in.kept + token) * in.n;
}

// Leaves the state of the row's first `tokens` tokens in a block.
template <typename T>
static void leave(const TuiliCausalConvArgs& a, const Inputs<T>& inputs, int64_t block, int64_t tokens, int32_t first) {
    if (block < 0) return;
    T* page = (T*)a.state + block * inputs.kept * a.channels + first;
    for (int32_t j = 0; j < inputs.kept; j++)
        memcpy(page + (int64_t)j * a.channels, input(inputs, tokens - inputs.kept + j), inputs.n * sizeof(T));
}

template <typename T, bool BIAS>
static void conv_piece(const TuiliCausalConvArgs& a, const StateRow& row, int32_t first, T* kept) {
    const int32_t n = a.channels - first < CHANNELS ? a.channels - first : CHANNELS;
    const Inputs<T> inputs = {(const T*)a.x + row.token * a.x_stride + first, a.x_stride, kept, a.taps - 1, n};
    if (row.in < 0) {
        memset(kept, 0, (size_t)inputs.kept * n * sizeof(T));
    } else {
        const T* page = (const T*)a.state + row.in * inputs.kept * a.channels + first;
        for (int32_t j = 0; j < inputs.kept; j++)
            memcpy(kept + (int64_t)j * n, page + (int64_t)j * a.channels, n * sizeof(T));
    }
    const float* weight = a.weight + first;
    for (int32_t token = 0; token < row.tokens; token++) {
        const T* tap[MAX_TAPS];
        for (int32_t j = 0; j < a.taps; j++) tap[j] = input(inputs, (int64_t)token - inputs.kept + j);
        T* out = (T*)a.out + (row.token + token) * a.channels + first;
        for (int32_t i = 0; i < n; i += W) {
            F sum = mul(load_at(tap[0], i, n), load_at(weight, i, n));
            for (int32_t j = 1; j < a.taps; j++)
                sum = fma(load_at(tap[j], i, n), load_at(weight + (int64_t)j * a.channels, i, n), sum);
            if (BIAS) sum = add(sum, load_at(a.bias + first, i, n));
            store_at(out, i, n, div(sum, add(set1(1.0f), exp(sub(zero(), sum)))));
        }
    }
    leave(a, inputs, row.checkpoint, row.before, first);
    leave(a, inputs, row.out, row.tokens, first);
}

static void causal_conv_run(const void* args, const TuiliStep*, int64_t chunk, const TuiliThread* thread) {
    const TuiliCausalConvArgs& a = *(const TuiliCausalConvArgs*)args;
    const StateRow row = state_row(a.query_start_loc, a.seq_lens, a.block_tables, a.block_table_stride, a.block_size,
                                   chunk / pieces(a));
    if (row.tokens == 0) return;
    const int32_t first = (int32_t)(chunk % pieces(a)) * CHANNELS;
    if (a.bias) {
        TUILI_WITH_FLOAT(a.dtype, T, (conv_piece<T, true>(a, row, first, (T*)thread->scratch)));
    } else {
        TUILI_WITH_FLOAT(a.dtype, T, (conv_piece<T, false>(a, row, first, (T*)thread->scratch)));
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(causal_conv) = {"causal_conv", sizeof(TuiliCausalConvArgs), TUILI_ISA::causal_conv_chunks,
                                  TUILI_ISA::causal_conv_run, nullptr};
