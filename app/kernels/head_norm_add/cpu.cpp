// RMSNorm of each head of a row, an addend and a factor, a head at a time.
#include "../native/rows.h"

namespace TUILI_ISA {

template <typename X, typename Wt>
TUILI_INLINE void head_norm_add_row(const TuiliHeadNormAddArgs& a, int64_t row) {
    const int n = a.width;
    const int64_t first = row * a.heads * n;
    const Wt* weight = (const Wt*)a.weight;
    const F scale = set1(a.scale);
    for (int head = 0; head < a.heads; head++) {
        const int64_t at = first + int64_t(head) * n;
        const X *x = (const X*)a.x + at, *addend = (const X*)a.addend + at;
        X* out = (X*)a.out + at;
        const F inverse = inverse_rms(x, n, a.eps);
        for (int i = 0; i < n; i += W) {
            const F normed = mul(mul(load_at(x, i, n), inverse), load_at(weight, i, n));
            store_at(out, i, n, mul(add(normed, load_at(addend, i, n)), scale));
        }
    }
}

static void head_norm_add_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    const TuiliHeadNormAddArgs& a = *(const TuiliHeadNormAddArgs*)args;
    for (int64_t row = begin; row < end; row++)
        TUILI_WITH_FLOAT(a.dtype, X, TUILI_WITH_FLOAT(a.weight_dtype, Wt, (head_norm_add_row<X, Wt>(a, row))));
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(head_norm_add) = {"head_norm_add", sizeof(TuiliHeadNormAddArgs), nullptr, nullptr,
                                    TUILI_ISA::head_norm_add_rows};
