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

// Turns n values into their sigmoids.
TUILI_INLINE void sigmoids(float* x, int n) {
    exponentials(x, n, 0.0f);
    for (int i = 0; i < n; i++) {
        const float e = x[i];
        x[i] = e == __builtin_inff() ? 1.0f : e / (1.0f + e);
    }
}

// What a thread has in its scratch while it does a row.
struct RouteScratch {
    int32_t* orders;
    int32_t* kept;    // groups
    float* scores;    // of all experts
    float* values;    // by which they are chosen
    float* worths;    // of groups
    float* gathered;  // values of the groups that are kept
};

TUILI_INLINE RouteScratch route_scratch(const TuiliThread* thread) {
    char* at = (char*)thread->scratch;
    const size_t bytes = TUILI_MAX_EXPERTS * sizeof(float);
    return {(int32_t*)at,           (int32_t*)(at + bytes),   (float*)(at + 2 * bytes),
            (float*)(at + 3 * bytes), (float*)(at + 4 * bytes), (float*)(at + 5 * bytes)};
}

TUILI_INLINE void scores_of(const TuiliRouteArgs& a, const float* logits, float* scores) {
    const int n = a.num_experts;
    memcpy(scores, logits, size_t(n) * sizeof(float));
    if (a.scoring == TUILI_SIGMOID) {
        sigmoids(scores, n);
    } else if (a.scoring == TUILI_SOFTMAX) {
        float top = logits[0];
        for (int i = 1; i < n; i++) top = logits[i] > top ? logits[i] : top;
        const float sum = exponentials(scores, n, top);
        for (int i = 0; i < n; i++) scores[i] /= sum;
    }
}

// The sum of the best one or two of n values; NaN where one of them is.
TUILI_INLINE float worth_of(const float* values, int n, int best) {
    float first = -__builtin_inff(), second = first;
    for (int i = 0; i < n; i++) {
        const float v = values[i];
        if (v != v) return v;
        if (v > first) {
            second = first;
            first = v;
        } else if (v > second) {
            second = v;
        }
    }
    return best == 2 ? first + second : first;
}

// As choose, in the best groups alone.
static void choose_in_groups(const TuiliRouteArgs& a, const float* values, int32_t* chosen, const RouteScratch& s) {
    const int size = a.num_experts / a.groups;
    for (int g = 0; g < a.groups; g++) s.worths[g] = worth_of(values + g * size, size, a.group_best);
    choose(s.worths, a.groups, a.chosen_groups, s.kept, s.orders);
    // Ascending, so that of equal values the first expert's comes first.
    for (int i = 1; i < a.chosen_groups; i++) {
        const int32_t group = s.kept[i];
        int at = i;
        for (; at > 0 && s.kept[at - 1] > group; at--) s.kept[at] = s.kept[at - 1];
        s.kept[at] = group;
    }
    for (int i = 0; i < a.chosen_groups; i++)
        memcpy(s.gathered + i * size, values + s.kept[i] * size, size_t(size) * sizeof(float));
    choose(s.gathered, a.chosen_groups * size, a.chosen, chosen, s.orders);
    for (int j = 0; j < a.chosen; j++) chosen[j] = s.kept[chosen[j] / size] * size + chosen[j] % size;
}

// A row by a rule that has more to it than route_plainly knows.
static void route_by_scores(const TuiliRouteArgs& a, const float* logits, int32_t* experts, float* weights,
                            const RouteScratch& s) {
    const int n = a.num_experts, k = a.chosen;
    scores_of(a, logits, s.scores);
    const float* values = a.bias == nullptr && a.groups == 1 ? logits : s.scores;
    if (a.bias != nullptr) {
        for (int i = 0; i < n; i++) s.values[i] = s.scores[i] + a.bias[i];
        values = s.values;
    }
    if (a.groups > 1) {
        choose_in_groups(a, values, experts, s);
    } else {
        choose(values, n, k, experts, s.orders);
    }
    for (int j = 0; j < k; j++) weights[j] = s.scores[experts[j]];
    const bool is_nan = weights[0] != weights[0];
    if (a.scoring == TUILI_SOFTMAX_CHOSEN) {
        float top = weights[0];
        for (int j = 1; j < k; j++) top = weights[j] > top ? weights[j] : top;
        const float sum = exponentials(weights, k, top);
        for (int j = 0; j < k; j++) weights[j] /= sum;
    }
    float sum = 1.0f;
    if (a.normalise) {
        sum = 0.0f;
        for (int j = 0; j < k; j++) sum += weights[j];
        sum = (sum < a.least_sum ? a.least_sum : sum) + a.sum_offset;
    }
    for (int j = 0; j < k; j++) {
        const float factor = a.factors == nullptr ? a.scale : a.scale * a.factors[experts[j]];
        weights[j] = is_nan ? __builtin_nanf("") : weights[j] / sum * factor;
    }
}

static void route_plainly(const TuiliRouteArgs& a, const float* logits, int32_t* experts, float* weights,
                          const RouteScratch& s) {
    const int n = a.num_experts, k = a.chosen;
    choose(logits, n, k, experts, s.orders);
    for (int j = 0; j < k; j++) weights[j] = logits[experts[j]];
    const float top = weights[0];
    float sum = 1.0f;
    if (a.scoring == TUILI_SIGMOID) {
        sigmoids(weights, k);
    } else {
        sum = exponentials(weights, k, top);
        if (a.scoring == TUILI_SOFTMAX && !a.normalise) {
            memcpy(s.scores, logits, size_t(n) * sizeof(float));
            sum = exponentials(s.scores, n, top);
        }
    }
    if (a.normalise && a.scoring == TUILI_SIGMOID) {
        sum = 0.0f;
        for (int j = 0; j < k; j++) sum += weights[j];
    }
    for (int j = 0; j < k; j++) weights[j] /= sum;
}

static void route_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    const TuiliRouteArgs& a = *(const TuiliRouteArgs*)args;
    const RouteScratch s = route_scratch(thread);
    for (int64_t t = begin; t < end; t++) {
        const float* logits = a.logits + t * a.logits_stride;
        int32_t* experts = a.experts + t * a.chosen;
        float* weights = a.weights + t * a.chosen;
        if (a.plain) {
            route_plainly(a, logits, experts, weights, s);
        } else {
            route_by_scores(a, logits, experts, weights, s);
        }
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

static_assert(6 * TUILI_MAX_EXPERTS * sizeof(float) <= TUILI_SCRATCH_BYTES, "it fits the scratch");

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(route) = {"route", sizeof(TuiliRouteArgs), nullptr, nullptr, TUILI_ISA::route_rows};
TUILI_DEFINE_KIND(group_slots) = {"group_slots", sizeof(TuiliGroupSlotsArgs), TUILI_ISA::group_slots_chunks,
                                  TUILI_ISA::group_slots_run, nullptr};
