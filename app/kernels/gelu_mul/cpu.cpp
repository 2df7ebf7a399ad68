// A row times the GELU of its gate, and int8 while it is in the first-level cache.
#include "../native/activation.h"
#include "../native/rows.h"

namespace TUILI_ISA {

template <typename T>
TUILI_INLINE void gelu_mul_row(const TuiliGeluMulArgs& a, int64_t row, float* out) {
    const int n = a.width;
    const T* gate = TUILI_ROW(const T, a.gate, row, n);
    const T* x = TUILI_ROW(const T, a.x, row, a.x_stride);
    for (int i = 0; i < n; i += W) store_at(out, i, n, mul(gelu_tanh(load_at(gate, i, n)), load_at(x, i, n)));
}

static void gelu_mul_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    const TuiliGeluMulArgs& a = *(const TuiliGeluMulArgs*)args;
    for (int64_t row = begin; row < end; row++) {
        float* gated = a.out_dtype == TUILI_F32 ? TUILI_ROW(float, a.out, row, a.width) : (float*)thread->scratch;
        TUILI_WITH_FLOAT(a.dtype, T, gelu_mul_row<T>(a, row, gated));
        store_act_row(gated, a.width, a.out_dtype, a.out, a.out_scale, row);
    }
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(gelu_mul) = {"gelu_mul", sizeof(TuiliGeluMulArgs), nullptr, nullptr, TUILI_ISA::gelu_mul_rows};
