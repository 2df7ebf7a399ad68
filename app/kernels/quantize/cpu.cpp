// Int8 of activations that an op before left in floating point.
#include "../native/rows.h"

namespace TUILI_ISA {

static void quantize_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    const TuiliQuantizeArgs& a = *(const TuiliQuantizeArgs*)args;
    for (int64_t row = begin; row < end; row++) {
        const int64_t source = a.indices != nullptr ? a.indices[row] : row;
        int8_t* out = TUILI_ROW(int8_t, a.out, row, a.width);
        float* scales = TUILI_ROW(float, a.scale, row, act_groups(a.width));
        TUILI_WITH_FLOAT(a.dtype, T, quantize_row(TUILI_ROW(const T, a.x, source, a.width), a.width, out, scales));
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(quantize) = {"quantize", sizeof(TuiliQuantizeArgs), nullptr, nullptr, TUILI_ISA::quantize_rows};
