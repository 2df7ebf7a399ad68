// Gated short convolution over the tokens of a row, channel by channel. A chunk is some channels of a row.
//
// The state is the last taps - 1 inputs as they were rounded: a token is computed from the same numbers, in the same
// order, wherever its row begins.
#include "../native/rows.h"
#include "../native/state.h"

namespace TUILI_ISA {

enum : int { CHANNELS = 512, MAX_TAPS = 16 };  // channels of a chunk, whole groups; MAX_TAPS is known to cpu.py

TUILI_INLINE int64_t pieces(const TuiliGatedConvArgs& a) { return (a.channels + CHANNELS - 1) / CHANNELS; }

static int64_t gated_conv_chunks(const void* args, const TuiliStep* step, int32_t) {
    return step->count[TUILI_ROWS] * pieces(*(const TuiliGatedConvArgs*)args);
}

// The last `taps` inputs of a chunk's channels, each a line; the next one takes the oldest one's place.
template <typename T>
struct Window {
    T* lines;  // [taps, CHANNELS]
    int32_t taps;
    int32_t oldest;  // its line
};

// The j-th oldest line, j below taps.
template <typename T>
TUILI_INLINE T* line(const Window<T>& inputs, int32_t j) {
    const int32_t index = inputs.oldest + j;
    return inputs.lines + (index < inputs.taps ? index : index - inputs.taps) * CHANNELS;
}

// Leaves the state of the tokens so far in a block.
template <typename T>
static void leave(const TuiliGatedConvArgs& a, const Window<T>& inputs, int64_t block, int32_t first, int32_t n) {
    if (block < 0) return;
    T* page = (T*)a.state + block * (a.taps - 1) * a.channels + first;
    for (int32_t j = 0; j < a.taps - 1; j++) memcpy(page + (int64_t)j * a.channels, line(inputs, j), n * sizeof(T));
}

// Stores n channels of a token from fp32 ones; those of an F32 output have been written where they belong.
static void store_piece(const TuiliGatedConvArgs& a, int64_t token, int32_t first, int32_t n, const float* x) {
    if (a.out_dtype == TUILI_I8) {
        float* scales = TUILI_ROW(float, a.out_scale, token, act_groups(a.channels)) + first / TUILI_ACT_GROUP;
        quantize_row(x, n, TUILI_ROW(int8_t, a.out, token, a.channels) + first, scales);
    } else if (a.out_dtype == TUILI_BF16) {
        bf16_t* out = TUILI_ROW(bf16_t, a.out, token, a.channels) + first;
        for (int i = 0; i < n; i += W) store_at(out, i, n, load_at(x, i, n));
    }
}

template <typename T>
static void gated_conv_piece(const TuiliGatedConvArgs& a, const StateRow& row, int32_t first, float* scratch) {
    const int32_t taps = a.taps, n = a.channels - first < CHANNELS ? a.channels - first : CHANNELS;
    Window<T> inputs = {(T*)(scratch + CHANNELS), taps, 0};
    for (int32_t j = 0; j < taps - 1; j++) {
        if (row.in < 0) {
            memset(line(inputs, j), 0, n * sizeof(T));
        } else {
            const T* page = (const T*)a.state + (row.in * (taps - 1) + j) * a.channels + first;
            memcpy(line(inputs, j), page, n * sizeof(T));
        }
    }
    const float* weight = a.weight + first;
    for (int32_t token = 0; token < row.tokens; token++) {
        const T* in_gate = TUILI_ROW(const T, a.projected, row.token + token, 3 * (int64_t)a.channels) + first;
        const T* out_gate = in_gate + a.channels;
        const T* x = out_gate + a.channels;
        T* own = line(inputs, taps - 1);
        for (int32_t i = 0; i < n; i += W) store_at(own, i, n, mul(load_at(in_gate, i, n), load_at(x, i, n)));
        const T* tap[MAX_TAPS];
        for (int32_t j = 0; j < taps; j++) tap[j] = line(inputs, j);
        float* out = scratch;
        if (a.out_dtype == TUILI_F32) out = TUILI_ROW(float, a.out, row.token + token, a.channels) + first;
        for (int32_t i = 0; i < n; i += W) {
            F sum = mul(load_at(tap[0], i, n), load_at(weight, i, n));
            for (int32_t j = 1; j < taps; j++)
                sum = fma(load_at(tap[j], i, n), load_at(weight + (int64_t)j * a.channels, i, n), sum);
            if (a.bias != nullptr) sum = add(sum, load_at(a.bias + first, i, n));
            store_at(out, i, n, mul(load_at(out_gate, i, n), sum));
        }
        store_piece(a, row.token + token, first, n, out);
        inputs.oldest = inputs.oldest + 1 < taps ? inputs.oldest + 1 : 0;
        if (token + 1 == row.before) leave(a, inputs, row.checkpoint, first, n);
    }
    leave(a, inputs, row.out, first, n);
}

static void gated_conv_run(const void* args, const TuiliStep*, int64_t chunk, const TuiliThread* thread) {
    const TuiliGatedConvArgs& a = *(const TuiliGatedConvArgs*)args;
    const StateRow row = state_row(a.query_start_loc, a.seq_lens, a.block_tables, a.block_table_stride, a.block_size,
                                   chunk / pieces(a));
    if (row.tokens == 0) return;
    const int32_t first = (int32_t)(chunk % pieces(a)) * CHANNELS;
    TUILI_WITH_FLOAT(a.dtype, T, gated_conv_piece<T>(a, row, first, (float*)thread->scratch));
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(gated_conv) = {"gated_conv", sizeof(TuiliGatedConvArgs), TUILI_ISA::gated_conv_chunks,
                                 TUILI_ISA::gated_conv_run, nullptr};
