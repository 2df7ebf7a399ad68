// A row times the sigmoid of its gate, and int8 while it is in the first-level cache.
#include "../native/rows.h"

namespace TUILI_ISA {

template <typename T>
TUILI_INLINE void sigmoid_mul_row(const TuiliSigmoidMulArgs& a, int64_t row, float* out) {
    const int n = a.width;
    const T* x = TUILI_ROW(const T, a.x, row, n);
    const T* gate = TUILI_ROW(const T, a.gate, row, a.gate_stride);
    for (int i = 0; i < n; i += W)
        store_at(out, i, n, div(load_at(x, i, n), add(set1(1.0f), exp(sub(zero(), load_at(gate, i, n))))));
}

static void sigmoid_mul_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    const TuiliSigmoidMulArgs& a = *(const TuiliSigmoidMulArgs*)args;
    for (int64_t row = begin; row < end; row++) {
        float* gated = a.out_dtype == TUILI_F32 ? TUILI_ROW(float, a.out, row, a.width) : (float*)thread->scratch;
        TUILI_WITH_FLOAT(a.dtype, T, sigmoid_mul_row<T>(a, row, gated));
        store_act_row(gated, a.width, a.out_dtype, a.out, a.out_scale, row);
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(sigmoid_mul) = {"sigmoid_mul", sizeof(TuiliSigmoidMulArgs), nullptr, nullptr,
                                  TUILI_ISA::sigmoid_mul_rows};
