// What follows the sums of a linear layer, in fp32: scale, bias, what an adapter adds, activation, residual.
#pragma once
#include "tile.h"

#include "../lora/expand.h"
#include "../native/activation.h"
#include "../native/rows.h"

namespace TUILI_ISA {

TUILI_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
TUILI_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// W sums of a row of a tile, from output `i` on: scaled, biased, and with what an adapter adds if `added` is not NULL.
TUILI_INLINE F finished_sum(const TuiliLinearArgs& a, const float* c, const float* added, int64_t first, int i) {
    F y = load(c + i);
    if (a.w_scale != nullptr) y = mul(y, load(a.w_scale + first + i));
    if (a.bias != nullptr) y = add(y, load(a.bias + first + i));
    return added != nullptr ? add(y, load(added + i)) : y;
}

// One row of a tile whose epilogue is not one of the common ones; apart from them, so that they stay small.
template <typename Out>
static __attribute__((noinline)) void activate_row(const TuiliLinearArgs& a, const float* c, const float* added,
                                                   int64_t row, int64_t tile) {
    const int64_t first = tile * kTile;
    const int width = a.gate_up ? a.n / 2 : a.n, columns = a.gate_up ? kTile / 2 : (int)kTile;
    const int begin = (int)(a.gate_up ? first / 2 : first);
    Out* out = TUILI_ROW(Out, a.out, row, width);
    for (int i = 0; i < columns && begin + i < width; i += W) {
        F y = activate(a.activation, finished_sum(a, c, added, first, i));
        if (a.gate_up) y = mul(y, finished_sum(a, c, added, first, i + kTile / 2));
        store_at(out, begin + i, width, y);
    }
}

// One row of a tile: from sums to `out`. `added` [32] is what an adapter adds, or NULL.
template <typename Out>
TUILI_INLINE void finish_row(const TuiliLinearArgs& a, const float* c, const float* added, int64_t row, int64_t tile) {
    const int64_t first = tile * kTile;
    if (a.activation > TUILI_SILU || (a.activation != TUILI_NONE) != (a.gate_up != 0)) {
        activate_row<Out>(a, c, added, row, tile);
        return;
    }
    if (a.gate_up) {
        const int width = a.n / 2;
        Out* out = TUILI_ROW(Out, a.out, row, width);
        for (int i = 0; i < kTile / 2; i += W) {
            const int column = (int)(first / 2) + i;
            if (column >= width) return;
            const F gate = finished_sum(a, c, added, first, i);
            const F up = finished_sum(a, c, added, first, i + kTile / 2);
            store_at(out, column, width, mul(silu(gate), up));
        }
        return;
    }
    Out* out = TUILI_ROW(Out, a.out, row, a.n);
    for (int i = 0; i < kTile; i += W) {
        const int column = (int)first + i;
        if (column >= a.n) return;
        F y = finished_sum(a, c, added, first, i);
        if (a.residual != nullptr) {
            TUILI_WITH_FLOAT(a.residual_dtype, T,
                             y = add(y, load_at(TUILI_ROW(const T, a.residual, row, a.n), column, a.n)));
        }
        store_at(out, column, a.n, y);
    }
}

// All rows of a block, of which some may have adapters: from a tile's sums to `out`.
template <typename Out>
static __attribute__((noinline)) void finish_adapted(const TuiliLinearArgs& a, const float* sums, const int32_t* order,
                                                     int64_t begin, int64_t end, int64_t tile) {
    const auto slot_of = [&a, order](int64_t i) { return a.slots[sorted_row(order, i)]; };
    float added[kTogether][kTile];
    int64_t rows[kTogether];
    for (int64_t i = begin; i < end;) {
        const int count = rows_together(slot_of, i, end);
        for (int m = 0; m < count; m++) rows[m] = sorted_row(order, i++);
        const bool adapted = a.slots[rows[0]] >= 0;
        if (adapted) TUILI_TOGETHER(count, expand_tile, a, rows, tile, added);
        for (int m = 0; m < count; m++) {
            const float* c = sums + (rows[m] - begin) * kTile;
            finish_row<Out>(a, c, adapted ? added[m] : nullptr, rows[m], tile);
        }
    }
}

}  // namespace TUILI_ISA
