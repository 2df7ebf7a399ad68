// What follows the sums of a linear layer, in fp32: scale, bias, what an adapter adds, activation, residual.
#pragma once
#include "tile.h"

#include "../native/activation.h"
#include "../native/rows.h"

namespace TUILI_ISA {

TUILI_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
TUILI_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// W sums of a row at packed output `at`, scaled and biased.
TUILI_INLINE F finished_sum(const TuiliLinearArgs& a, const float* c, int64_t at) {
    F y = load(c);
    if (a.w_scale != nullptr) y = mul(y, load(a.w_scale + at));
    return a.bias != nullptr ? add(y, load(a.bias + at)) : y;
}

// One row of a tile whose epilogue is not one of the common ones; apart from them, so that they stay small.
template <typename Out>
static __attribute__((noinline)) void activate_row(const TuiliLinearArgs& a, const float* c, int64_t row, int64_t tile) {
    const int64_t first = tile * kTile;
    const int width = a.gate_up ? a.n / 2 : a.n, columns = a.gate_up ? kTile / 2 : (int)kTile;
    const int begin = (int)(a.gate_up ? first / 2 : first);
    Out* out = TUILI_ROW(Out, a.out, row, width);
    for (int i = 0; i < columns && begin + i < width; i += W) {
        F y = activate(a.activation, finished_sum(a, c + i, first + i));
        if (a.gate_up) y = mul(y, finished_sum(a, c + i + kTile / 2, first + i + kTile / 2));
        store_at(out, begin + i, width, y);
    }
}

// One row of a tile to which an adapter adds, ahead of all that follows the sums.
template <typename Out>
static __attribute__((noinline)) void adapt_row(const TuiliLinearArgs& a, const float* c, int64_t row, int64_t tile) {
    const int64_t first = tile * kTile;
    const int width = a.gate_up ? a.n / 2 : a.n, columns = a.gate_up ? kTile / 2 : (int)kTile;
    const int begin = (int)(a.gate_up ? first / 2 : first);
    const float* delta = TUILI_ROW(const float, a.delta, row, a.n);
    Out* out = TUILI_ROW(Out, a.out, row, width);
    for (int i = 0; i < columns && begin + i < width; i += W) {
        const int column = begin + i;
        F y = add(finished_sum(a, c + i, first + i), load_at(delta, column, width));
        if (a.activation != TUILI_NONE) y = activate(a.activation, y);
        if (a.gate_up) {
            const int64_t up = first + i + kTile / 2;
            y = mul(y, add(finished_sum(a, c + i + kTile / 2, up), load_at(delta + width, column, width)));
        }
        if (a.residual != nullptr) {
            TUILI_WITH_FLOAT(a.residual_dtype, T,
                             y = add(y, load_at(TUILI_ROW(const T, a.residual, row, a.n), column, a.n)));
        }
        store_at(out, column, width, y);
    }
}

// One row of a tile: from sums to `out`.
template <typename Out>
TUILI_INLINE void finish_row(const TuiliLinearArgs& a, const float* c, int64_t row, int64_t tile) {
    const int64_t first = tile * kTile;
    if (a.delta != nullptr && a.delta_slots[row] >= 0) {
        adapt_row<Out>(a, c, row, tile);
        return;
    }
    if (a.activation > TUILI_SILU || (a.activation != TUILI_NONE) != (a.gate_up != 0)) {
        activate_row<Out>(a, c, row, tile);
        return;
    }
    if (a.gate_up) {
        const int width = a.n / 2;
        Out* out = TUILI_ROW(Out, a.out, row, width);
        for (int i = 0; i < kTile / 2; i += W) {
            const int column = (int)(first / 2) + i;
            if (column >= width) return;
            const F gate = finished_sum(a, c + i, first + i);
            const F up = finished_sum(a, c + i + kTile / 2, first + i + kTile / 2);
            store_at(out, column, width, mul(silu(gate), up));
        }
        return;
    }
    Out* out = TUILI_ROW(Out, a.out, row, a.n);
    for (int i = 0; i < kTile; i += W) {
        const int column = (int)first + i;
        if (column >= a.n) return;
        F y = finished_sum(a, c + i, first + i);
        if (a.residual != nullptr) {
            TUILI_WITH_FLOAT(a.residual_dtype, T,
                             y = add(y, load_at(TUILI_ROW(const T, a.residual, row, a.n), column, a.n)));
        }
        store_at(out, column, a.n, y);
    }
}

}  // namespace TUILI_ISA
