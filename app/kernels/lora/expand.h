// What adapters add to a tile of outputs, of the sums of low rank that the op `lora` left: a part of `linear`'s
// epilogue.
#pragma once
#include "panel.h"

namespace TUILI_ISA {

enum : int { kTileHalves = kTile / kPanel, kFetchedLines = 32 };

// Words of a block.
TUILI_INLINE int up_words(const TuiliLinearArgs& a) {
    return a.x_dtype == TUILI_I8 ? (a.rank + 3) / 4 : (a.rank + 1) / 2;
}

// Row i of those that go together when sorted by slot; without an order as they stand.
TUILI_INLINE int64_t sorted_row(const int32_t* order, int64_t i) { return order != nullptr ? order[i] : i; }

// Fetches what the slots of sorted rows `begin` to `end` add to a tile, of great ranks the beginning of it. Spread over
// the passes over the tile before, so that memory and arithmetic work at the same time.
static __attribute__((noinline)) void fetch_added(const TuiliLinearArgs& a, const int32_t* order, int64_t begin,
                                                  int64_t end, int64_t tile) {
    const int32_t* first = a.first_block + tile * kTileHalves;
    const int words = up_words(a), wanted = (first[kTileHalves] - first[0]) * words;
    const int lines = wanted < kFetchedLines ? wanted : (int)kFetchedLines;
    int64_t before = -1;
    for (int64_t i = begin; i < end; i++) {
        const int64_t slot = a.slots[sorted_row(order, i)];
        if (slot == before || slot < 0) continue;
        before = slot;
        const int32_t* data = a.adapters + slot * a.slot_words;
        const char* up = (const char*)(data + a.up_at) + int64_t(first[0]) * words * kPanelWord;
        for (int line = 0; line < lines; line++) __builtin_prefetch(up + line * 64, 0, 2);
        if (a.x_dtype == TUILI_I8)
            for (int at = 0; at < kTile; at += 16) __builtin_prefetch(data + a.up_scale_at + tile * kTile + at, 0, 2);
    }
}

// added[m] [32]: of M rows of one slot, in the packed order of outputs.
template <int M>
static void expand_tile(const TuiliLinearArgs& a, const int64_t* rows, int64_t tile, float (*added)[kTile]) {
    const bool int8 = a.x_dtype == TUILI_I8;
    const int64_t slot = a.slots[rows[0]];
    const int32_t* data = a.adapters + slot * a.slot_words;
    const char* up = (const char*)(data + a.up_at);
    const float* scale = (const float*)(data + a.up_scale_at);
    const int block_words = up_words(a);
    for (int half = 0; half < kTileHalves; half++) {
        F sum[M][kPanelVectors];
        TUILI_EACH(int m = 0; m < M; m++)
            TUILI_EACH(int v = 0; v < kPanelVectors; v++) sum[m][v] = zero();
        const int32_t* first = a.first_block + tile * kTileHalves + half;
        for (int block = first[0]; block < first[1]; block++) {
            const int part = a.block_part[block], rank = a.ranks[slot * a.parts + part];
            if (rank == 0) continue;
            const char* w = up + int64_t(block) * block_words * kPanelWord;
            const char* x[M];
            TUILI_EACH(int m = 0; m < M; m++)
                x[m] = (const char*)a.low + (rows[m] * a.parts + part) * a.low_bytes;
            F product[M][kPanelVectors];
            if (int8) {
                int32_t offset[M];
                TUILI_EACH(int m = 0; m < M; m++) offset[m] = ((const LowHead*)x[m])->offset;
                panel_int8<M>(x, sizeof(LowHead), offset, w, (rank + 3) / 4, product);
                TUILI_EACH(int m = 0; m < M; m++)
                    TUILI_EACH(int v = 0; v < kPanelVectors; v++)
                        sum[m][v] = fma(product[m][v], set1(((const LowHead*)x[m])->scale), sum[m][v]);
            } else {
                panel_bf16<M>(x, w, (rank + 1) / 2, product);
                TUILI_EACH(int m = 0; m < M; m++)
                    TUILI_EACH(int v = 0; v < kPanelVectors; v++) sum[m][v] = add(sum[m][v], product[m][v]);
            }
        }
        TUILI_EACH(int m = 0; m < M; m++)
            TUILI_EACH(int v = 0; v < kPanelVectors; v++) {
                const int at = half * kPanel + v * W;
                store(added[m] + at, int8 ? mul(sum[m][v], load(scale + tile * kTile + at)) : sum[m][v]);
            }
    }
}

}  // namespace TUILI_ISA
