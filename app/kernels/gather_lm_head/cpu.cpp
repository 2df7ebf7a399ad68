// The few rows whose logits are wanted; the head itself is a linear layer over them.
#include "../native/rows.h"

namespace TUILI_ISA {

static void gather_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    const TuiliGatherArgs& a = *(const TuiliGatherArgs*)args;
    const int n = a.width;
    for (int64_t row = begin; row < end; row++) {
        TUILI_WITH_FLOAT(a.dtype, T, TUILI_WITH_FLOAT(a.out_dtype, O, {
            const T* source = TUILI_ROW(const T, a.x, a.indices[row], n);
            O* target = TUILI_ROW(O, a.out, row, n);
            for (int i = 0; i < n; i += W) store_at(target, i, n, load_at(source, i, n));
        }));
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(gather) = {"gather", sizeof(TuiliGatherArgs), nullptr, nullptr, TUILI_ISA::gather_rows};
