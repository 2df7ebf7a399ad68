// Logits under their factor and their cap. A chunk is a piece of a row: one row may be all there is.
#include "../native/rows.h"

namespace TUILI_ISA {

enum : int { kPiece = 8192 };

static int64_t pieces_of(const TuiliScaleLogitsArgs& a) { return (a.width + kPiece - 1) / kPiece; }

static int64_t scale_logits_chunks(const void* args, const TuiliStep* step, int32_t) {
    return step->count[TUILI_LOGITS] * pieces_of(*(const TuiliScaleLogitsArgs*)args);
}

static void scale_logits_run(const void* args, const TuiliStep*, int64_t chunk, const TuiliThread*) {
    const TuiliScaleLogitsArgs& a = *(const TuiliScaleLogitsArgs*)args;
    const int64_t pieces = pieces_of(a);
    const int begin = (int)(chunk % pieces) * kPiece;
    const int n = a.width - begin < kPiece ? a.width - begin : kPiece;
    float* x = TUILI_ROW(float, a.logits, chunk / pieces, a.width) + begin;
    if (a.softcap == 0.0f) {
        const F scale = set1(a.scale);
        for (int i = 0; i < n; i += W) store_at(x, i, n, mul(load_at(x, i, n), scale));
        return;
    }
    const F scale = set1(a.scale / a.softcap), cap = set1(a.softcap);
    for (int i = 0; i < n; i += W) store_at(x, i, n, mul(cap, tanh(mul(load_at(x, i, n), scale))));
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(scale_logits) = {"scale_logits", sizeof(TuiliScaleLogitsArgs), TUILI_ISA::scale_logits_chunks,
                                   TUILI_ISA::scale_logits_run, nullptr};
