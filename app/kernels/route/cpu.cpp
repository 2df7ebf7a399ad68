// Which experts each token goes to, and the tokens of each expert.
#include "../native/simd.h"

namespace TUILI_ISA {

// Orders logits as integers: NaN above all, zeros of either sign alike.
TUILI_INLINE int32_t order_of(float logit) {
    if (logit != logit) return INT32_MAX;
    const float v = logit + 0.0f;  // of -0 makes 0
    int32_t bits;
    memcpy(&bits, &v, 4);
    return bits < 0 ? bits ^ INT32_MAX : bits;
}

// The indices of the k largest of n logits, the largest first and of equal ones the first.
TUILI_INLINE void choose(const float* logits, int n, int k, int32_t* chosen, int32_t* orders) {
    int found = 0;
    for (int i = 0; i < n; i++) {
        const int32_t order = order_of(logits[i]);
        if (found == k && order <= orders[k - 1]) continue;
        int at = found < k ? found++ : k - 1;
        for (; at > 0 && orders[at - 1] < order; at--) {
            orders[at] = orders[at - 1];
            chosen[at] = chosen[at - 1];
        }
        orders[at] = order;
        chosen[at] = i;
    }
}

// Turns n values into e^(x - top), and returns their sum, in an order that n alone decides.
TUILI_INLINE float exponentials(float* x, int n, float top) {
    F sum = zero();
    for (int i = 0; i < n; i += W) {
        const int left = n - i < W ? n - i : W;
        F y = exp(sub(load_n(x + i, left), set1(top)));
        store_n(x + i, y, left);
        sum = add(sum, load_n(x + i, left));
    }
    return hsum(sum);
}

static void route_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    const TuiliRouteArgs& a = *(const TuiliRouteArgs*)args;
    const int n = a.num_experts, k = a.chosen;
    int32_t* orders = (int32_t*)thread->scratch;
    float* all = (float*)thread->scratch + TUILI_MAX_EXPERTS;
    for (int64_t t = begin; t < end; t++) {
        const float* logits = a.logits + t * n;
        int32_t* experts = a.experts + t * k;
        float* weights = a.weights + t * k;
        choose(logits, n, k, experts, orders);
        for (int j = 0; j < k; j++) weights[j] = logits[experts[j]];
        const float top = weights[0];
        float sum = 1.0f;
        if (a.scoring == TUILI_SIGMOID) {
            exponentials(weights, k, 0.0f);
            for (int j = 0; j < k; j++) {
                const float e = weights[j];
                weights[j] = e == __builtin_inff() ? 1.0f : e / (1.0f + e);
            }
        } else {
            sum = exponentials(weights, k, top);
            if (a.scoring == TUILI_SOFTMAX && !a.normalise) {
                memcpy(all, logits, size_t(n) * sizeof(float));
                sum = exponentials(all, n, top);
            }
        }
        if (a.normalise && a.scoring == TUILI_SIGMOID) {
            sum = 0.0f;
            for (int j = 0; j < k; j++) sum += weights[j];
        }
        for (int j = 0; j < k; j++) weights[j] /= sum;
    }
}

static int64_t group_slots_chunks(const void*, const TuiliStep* step, int32_t) { return step->count[TUILI_TOKENS] > 0; }

// A counting sort, which keeps the slots of an expert in order.
static void group_slots_run(const void* args, const TuiliStep* step, int64_t, const TuiliThread* thread) {
    const TuiliGroupSlotsArgs& a = *(const TuiliGroupSlotsArgs*)args;
    const int64_t slots = int64_t(step->count[TUILI_TOKENS]) * a.chosen;
    int32_t* next = (int32_t*)thread->scratch;
    memset(a.offsets, 0, size_t(a.num_experts + 1) * sizeof(int32_t));
    for (int64_t i = 0; i < slots; i++) a.offsets[a.experts[i] + 1]++;
    for (int e = 0; e < a.num_experts; e++) {
        next[e] = a.offsets[e];
        a.offsets[e + 1] += a.offsets[e];
    }
    for (int64_t i = 0; i < slots; i++) a.slots[next[a.experts[i]]++] = int32_t(i);
}

static_assert(2 * TUILI_MAX_EXPERTS * sizeof(float) <= TUILI_SCRATCH_BYTES, "it fits the scratch");

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(route) = {"route", sizeof(TuiliRouteArgs), nullptr, nullptr, TUILI_ISA::route_rows};
TUILI_DEFINE_KIND(group_slots) = {"group_slots", sizeof(TuiliGroupSlotsArgs), TUILI_ISA::group_slots_chunks,
                                  TUILI_ISA::group_slots_run, nullptr};
