// What the host says of a step's rows, spread over their tokens.
#include "../native/rows.h"

namespace TUILI_ISA {

static void expand_row(const TuiliExpandRowsArgs& a, int64_t row) {
    int32_t* table = TUILI_ROW(int32_t, a.tables, a.slots[row], a.table_width);
    const int32_t fresh = a.new_block_loc[row + 1] - a.new_block_loc[row];
    if (fresh > 0) memcpy(table + a.table_lens[row], a.feed + a.new_block_loc[row], fresh * sizeof(int32_t));
    const int32_t length = a.seq_lens[row], size = a.block_size;
    const int32_t blocks = (length + size - 1) / size;
    memcpy(TUILI_ROW(int32_t, a.block_tables, row, a.table_width), table, blocks * sizeof(int32_t));
    const int32_t begin = a.query_start_loc[row], end = a.query_start_loc[row + 1];
    for (int32_t token = begin; token < end; token++) {
        const int32_t position = length - (end - token);
        a.slot_mapping[token] = (int64_t)table[position / size] * size + position % size;
        if (a.token_ids == nullptr) continue;
        a.positions[token] = position;
        a.token_ids[token] = a.carried[row] ? a.last_token[a.slots[row]] : a.feed[token];
    }
    if (a.token_ids == nullptr) return;
    const int32_t first = a.logit_start_loc[row], last = a.logit_start_loc[row + 1];
    for (int32_t i = first; i < last; i++) a.logit_indices[i] = end - (last - i);
}

static void expand_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    for (int64_t row = begin; row < end; row++) expand_row(*(const TuiliExpandRowsArgs*)args, row);
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(expand_rows) = {"expand_rows", sizeof(TuiliExpandRowsArgs), nullptr, nullptr, TUILI_ISA::expand_rows};
