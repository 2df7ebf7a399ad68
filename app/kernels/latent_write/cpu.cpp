// A token's latent, normed, and the key beside it, rotated, to their place in the pages; its queries rotated.
#include "../native/rows.h"

namespace TUILI_ISA {

// n elements from or to either float type.
template <typename T>
TUILI_INLINE void widen(const T* from, int n, float* to) {
    for (int i = 0; i < n; i += W) store_at(to, i, n, load_at(from, i, n));
}
template <typename T>
TUILI_INLINE void narrow(const float* from, int n, T* to) {
    for (int i = 0; i < n; i += W) store_at(to, i, n, load_at(from, i, n));
}

static void rotate(const float* rope, int half, bool interleaved, float* x) {
    if (interleaved) {
        for (int i = 0; i < half; i++) {
            const float first = x[2 * i], second = x[2 * i + 1], cos = rope[i], sin = rope[half + i];
            x[2 * i] = first * cos - second * sin;
            x[2 * i + 1] = second * cos + first * sin;
        }
        return;
    }
    for (int i = 0; i < half; i++) {
        const float first = x[i], second = x[half + i], cos = rope[i], sin = rope[half + i];
        x[i] = first * cos - second * sin;
        x[half + i] = second * cos + first * sin;
    }
}

template <typename T>
static void norm_latent(const TuiliLatentWriteArgs& a, float* x) {
    const F inverse = inverse_rms(x, a.rank, a.eps);
    const T* weight = (const T*)a.norm;
    for (int i = 0; i < a.rank; i += W)
        store_at(x, i, a.rank, mul(mul(load_at(x, i, a.rank), inverse), load_at(weight, i, a.rank)));
}

template <typename T>
static void write_token(const TuiliLatentWriteArgs& a, int64_t t, float* x) {
    const int width = a.rank + a.rotary, half = a.rotary / 2;
    const float* rope = a.rope + a.positions[t] * a.rotary;
    widen(TUILI_ROW(const T, a.latent, t, width), width, x);
    TUILI_WITH_FLOAT(a.norm_dtype, Wt, norm_latent<Wt>(a, x));
    rotate(rope, half, a.interleaved, x + a.rank);
    TUILI_WITH_FLOAT(a.page_dtype, P, narrow(x, width, TUILI_ROW(P, a.pages, a.slots[t], width)));
    for (int head = 0; head < a.heads; head++) {
        widen((const T*)a.q + t * a.q_token_stride + (int64_t)head * a.q_head_stride, a.rotary, x);
        rotate(rope, half, a.interleaved, x);
        narrow(x, a.rotary, (T*)a.q_out + t * a.out_token_stride + (int64_t)head * a.out_head_stride);
    }
}

static void latent_write_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end,
                              const TuiliThread* thread) {
    const TuiliLatentWriteArgs& a = *(const TuiliLatentWriteArgs*)args;
    for (int64_t t = begin; t < end; t++) TUILI_WITH_FLOAT(a.dtype, T, write_token<T>(a, t, (float*)thread->scratch));
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(latent_write) = {"latent_write", sizeof(TuiliLatentWriteArgs), nullptr, nullptr,
                                   TUILI_ISA::latent_write_rows};
