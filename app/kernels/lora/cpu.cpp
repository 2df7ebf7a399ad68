// The way to the low rank of adapters (app/kernels/lora): what `linear` adds to its sums is made of it by expand.h.
//
// A chunk is one part of some tokens that are neighbours when sorted by slot. Those of one adapter go together, up to
// four: each weight that is loaded serves all of them. Where no token of the step has an adapter there is no chunk, and
// nobody waits for the op.
#include "../native/rows.h"
#include "panel.h"

namespace TUILI_ISA {

enum : int {
    kMaxChunk = 32,  // tokens of a chunk at most
    kChunksPerThread = 4,
    kAheadBytes = 2048,
};

TUILI_INLINE int64_t lora_chunk_tokens(const TuiliStep* step, int32_t threads) {
    const int64_t pieces = int64_t(threads) * kChunksPerThread;
    const int64_t tokens = (step->count[TUILI_TOKENS] + pieces - 1) / pieces;
    return tokens < 1 ? 1 : tokens > kMaxChunk ? (int)kMaxChunk : tokens;
}

static int64_t lora_chunks(const void* args, const TuiliStep* step, int32_t threads) {
    const TuiliLoraArgs& a = *(const TuiliLoraArgs*)args;
    const int64_t tokens = step->count[TUILI_TOKENS], each = lora_chunk_tokens(step, threads);
    if (tokens == 0 || a.slots[a.order[tokens - 1]] < 0) return 0;
    return (tokens + each - 1) / each * a.parts;
}

// What a thread keeps in its scratch.
struct LoraScratch {
    float sums[kTogether][TUILI_MAX_RANK];
    Group groups[kTogether][TUILI_MAX_LORA_WIDTH / TUILI_ACT_GROUP];
};

TUILI_INLINE void load_token_groups(const TuiliLoraArgs& a, int64_t token, Group* groups) {
    const int count = act_groups(a.k);
    const int8_t* x = TUILI_ROW(const int8_t, a.x, token, a.k);
    const float* scales = TUILI_ROW(const float, a.x_scale, token, count);
    for (int g = 0; g < count; g++) {
        const int left = a.k - g * TUILI_ACT_GROUP;
        const int32_t sum = group_sum(x + g * TUILI_ACT_GROUP, left < TUILI_ACT_GROUP ? left : TUILI_ACT_GROUP);
        groups[g] = {-128 * sum, scales[g]};
    }
}

// sums[m] = down . x[m] of 16 ranks of int8.
template <int M>
TUILI_INLINE void shrink_int8(const char* const (&x)[M], LoraScratch& scratch, const char* w, int words,
                              const float* scale, int first) {
    F total[M][kPanelVectors], exact[M][kPanelVectors];
    TUILI_EACH(int m = 0; m < M; m++)
        TUILI_EACH(int v = 0; v < kPanelVectors; v++) total[m][v] = zero();
    for (int k = 0, g = 0; k < words; k += kGroupWords, g++) {
        int32_t offset[M];
        TUILI_EACH(int m = 0; m < M; m++) offset[m] = scratch.groups[m][g].offset;
        const char* group = w + int64_t(k) * kPanelWord;
        TUILI_EACH(int i = 0; i < kGroupWords; i++) __builtin_prefetch(group + kAheadBytes + i * 64);
        panel_int8<M>(x, k * 4, offset, group, words - k < kGroupWords ? words - k : (int)kGroupWords, exact);
        TUILI_EACH(int m = 0; m < M; m++)
            TUILI_EACH(int v = 0; v < kPanelVectors; v++)
                total[m][v] = fma(exact[m][v], set1(scratch.groups[m][g].scale), total[m][v]);
    }
    TUILI_EACH(int m = 0; m < M; m++)
        TUILI_EACH(int v = 0; v < kPanelVectors; v++)
            store(&scratch.sums[m][first + v * W], mul(total[m][v], load(scale + first + v * W)));
}

// Keeps a token's sums of one part, in the format of the inputs; what fills up the last word is zero.
TUILI_INLINE void store_low(const TuiliLoraArgs& a, const float* sums, int rank, char* low) {
    if (a.x_dtype == TUILI_I8) {
        LowHead* head = (LowHead*)low;
        int8_t* values = (int8_t*)(head + 1);
        const float scale = row_absmax(sums, rank) / 127.0f;
        row_to_int8(sums, rank, scale, values);
        for (int r = rank; r % 4 != 0; r++) values[r] = 0;
        int32_t sum = 0;
        for (int r = 0; r < rank; r++) sum += values[r];
        *head = {scale, -128 * sum};
        return;
    }
    bf16_t* values = (bf16_t*)low;
    for (int r = 0; r < rank; r += W) store_at(values, r, rank, load_at(sums, r, rank));
    if (rank % 2 != 0) values[rank] = 0;
}

// One part of M tokens of one slot.
template <int M>
static void shrink_tokens(const TuiliLoraArgs& a, const int32_t* tokens, int part, LoraScratch& scratch) {
    const bool int8 = a.x_dtype == TUILI_I8;
    const int64_t slot = a.slots[tokens[0]];
    const int rank = a.ranks[slot * a.parts + part], words = int8 ? a.k / 4 : a.k / 2;
    const int panels = (a.rank + kPanel - 1) / kPanel;
    const int32_t* data = a.data + slot * a.slot_words;
    const char* w = (const char*)data + int64_t(part) * panels * words * kPanelWord;
    const float* scale = (const float*)(data + a.down_scale_at) + part * panels * kPanel;
    const char* x[M];
    for (int m = 0; m < M; m++) {
        x[m] = (const char*)a.x + int64_t(tokens[m]) * words * 4;
        if (int8) load_token_groups(a, tokens[m], scratch.groups[m]);
    }
    for (int first = 0; first < rank; first += kPanel, w += int64_t(words) * kPanelWord) {
        if (int8) {
            shrink_int8<M>(x, scratch, w, words, scale, first);
        } else {
            F sums[M][kPanelVectors];
            panel_bf16<M>(x, w, words, sums);
            TUILI_EACH(int m = 0; m < M; m++)
                TUILI_EACH(int v = 0; v < kPanelVectors; v++) store(&scratch.sums[m][first + v * W], sums[m][v]);
        }
    }
    for (int m = 0; m < M && rank > 0; m++)
        store_low(a, scratch.sums[m], rank, (char*)a.low + (int64_t(tokens[m]) * a.parts + part) * a.low_bytes);
}

// Fetches the beginning of a slot's way down of a part.
TUILI_INLINE void fetch_part(const TuiliLoraArgs& a, int64_t token, int part) {
    const int64_t slot = a.slots[token];
    if (slot < 0) return;
    const int words = a.x_dtype == TUILI_I8 ? a.k / 4 : a.k / 2, panels = (a.rank + kPanel - 1) / kPanel;
    const char* w = (const char*)(a.data + slot * a.slot_words) + int64_t(part) * panels * words * kPanelWord;
    for (int i = 0; i < kAheadBytes; i += 64) __builtin_prefetch(w + i);
}

static void lora_run(const void* args, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    const TuiliLoraArgs& a = *(const TuiliLoraArgs*)args;
    const int64_t each = lora_chunk_tokens(step, thread->threads), tokens = step->count[TUILI_TOKENS];
    const int64_t begin = chunk / a.parts * each, end = begin + each < tokens ? begin + each : tokens;
    const int part = (int)(chunk % a.parts);
    LoraScratch& scratch = *(LoraScratch*)thread->scratch;
    const auto slot_of = [&a](int64_t i) { return a.slots[a.order[i]]; };
    for (int64_t i = begin; i < end;) {
        const int count = rows_together(slot_of, i, end);
        // What comes next is another slot, the chunk's first with the next part, or the next chunk's first.
        if (i + count < end) {
            fetch_part(a, a.order[i + count], part);
        } else if (part + 1 < a.parts) {
            fetch_part(a, a.order[begin], part + 1);
        } else if (end < tokens) {
            fetch_part(a, a.order[end], 0);
        }
        if (slot_of(i) >= 0) TUILI_TOGETHER(count, shrink_tokens, a, a.order + i, part, scratch);
        i += count;
    }
}

static_assert(sizeof(LoraScratch) <= TUILI_SCRATCH_BYTES, "it fits the scratch");
static_assert(TUILI_MAX_RANK % kPanel == 0, "whole panels of sums fit");

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(lora) = {"lora", sizeof(TuiliLoraArgs), TUILI_ISA::lora_chunks, TUILI_ISA::lora_run, nullptr};
