// Where a row's recurrent state stands in its pages (LayerState in app/kernels/types.py).
#pragma once
#include "simd.h"

namespace TUILI_ISA {

struct StateRow {
    int64_t token;       // the row's first token of the step
    int32_t tokens;
    int64_t in, out;     // blocks read from and left in; -1 for none
    int64_t checkpoint;  // block of the boundary within the row, -1 for none
    int32_t before;      // tokens of the row ahead of that boundary
};

TUILI_INLINE StateRow state_row(const int32_t* query_start_loc, const int32_t* seq_lens, const int32_t* block_tables,
                                int32_t block_table_stride, int32_t block_size, int64_t row) {
    StateRow r;
    r.token = query_start_loc[row];
    r.tokens = query_start_loc[row + 1] - query_start_loc[row];
    r.in = r.out = r.checkpoint = -1;
    r.before = 0;
    if (r.tokens == 0) return r;
    const int32_t* table = block_tables + row * block_table_stride;
    const int32_t end = seq_lens[row], start = end - r.tokens, boundary = end / block_size * block_size;
    if (start > 0) r.in = table[(start - 1) / block_size];
    r.out = table[(end - 1) / block_size];
    if (start < boundary && boundary < end) {
        r.checkpoint = table[boundary / block_size - 1];
        r.before = boundary - start;
    }
    return r;
}

}  // namespace TUILI_ISA
