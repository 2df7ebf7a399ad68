// Sampling without a sort, the bookkeeping of sampled tokens, and log-probabilities.
//
// A row's token is the same bit for bit on every instruction set: what is summed is summed as integers, which have no
// order, and whatever decides between tokens is computed one lane at a time or by scalar code.
#include "../native/rows.h"

namespace TUILI_ISA {

// Logits looked at together: small enough for the first-level cache, a multiple of every vector and mask word.
enum : int { kBlock = 1024 };

static const uint32_t kInfinity = 0x7f800000;

TUILI_INLINE uint32_t float_bits(float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    return u;
}
TUILI_INLINE float bits_float(uint32_t u) {
    float v;
    memcpy(&v, &u, 4);
    return v;
}
TUILI_INLINE bool is_finite(float v) { return (float_bits(v) & kInfinity) != kInfinity; }
TUILI_INLINE int at_most(int a, int b) { return a < b ? a : b; }
// Beyond the end stands what a maximum does not see.
TUILI_INLINE F load_or_low(const float* p, int i, int n) {
    if (n - i >= W) return load(p + i);
    float t[W];
    for (int j = 0; j < W; j++) t[j] = j < n - i ? p[i + j] : -__builtin_inff();
    return load(t);
}

// ---------------------------------------------------------------------------------------------------------------
// Maximum of a row and its first place.

struct Best {
    float value;
    int block;  // where the maximum is met first
    bool nan;
};

TUILI_INLINE void look(Best* best, const float* x, int begin, int end) {
    F top = set1(-__builtin_inff());
    uint32_t nan = 0;
    for (int i = begin; i < end; i += W) {
        const F v = load_or_low(x, i, end);
        nan |= nan_bits(v);
        top = max(v, top);
    }
    best->nan |= nan != 0;
    const float value = hmax(top);
    if (value > best->value) {
        best->value = value;
        best->block = begin;
    }
}

static Best best_of(const float* x, int n) {
    Best best = {-__builtin_inff(), 0, false};
    for (int i = 0; i < n; i += kBlock) look(&best, x, i, at_most(i + kBlock, n));
    return best;
}

static int place_of(const Best& best, const float* x, int n) {
    const F wanted = set1(best.value);
    for (int i = best.block; i < n; i += W) {
        const uint32_t found = ge_bits(load_or_low(x, i, n), wanted);
        if (found) return i + __builtin_ctz(found);
    }
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------
// Masks, bias and penalties.

struct Row {
    int64_t index;
    int64_t slot;
    bool stops;
    bool penalties;
};

static bool changes_logits(const TuiliSampleArgs& a, const Row& row) {
    return a.token_mask != nullptr || a.logit_bias != nullptr || row.stops || row.penalties;
}

static void penalize(const TuiliSampleArgs& a, const Row& row, float* __restrict__ x, int begin, int n) {
    const uint8_t* __restrict__ prompt = TUILI_ROW(const uint8_t, a.prompt_mask, row.slot, a.vocab_size) + begin;
    const int32_t* __restrict__ counts = TUILI_ROW(const int32_t, a.output_counts, row.slot, a.vocab_size) + begin;
    const float repetition = a.repetition[row.index];
    const float presence = a.presence[row.index], frequency = a.frequency[row.index];
    for (int i = 0; i < n; i++) {
        const float divided = x[i] / repetition, multiplied = x[i] * repetition;
        const float penalized = x[i] > 0.0f ? divided : multiplied;
        const int32_t seen = (counts[i] > 0) | (prompt[i] != 0);
        const float v = seen ? penalized : x[i];
        const float less = frequency * (float)counts[i];
        const float once = counts[i] > 0 ? presence : presence * 0.0f;
        x[i] = v - less - once;
    }
}

// Logits whose bit is set, -inf in place of all others.
#if defined(__AVX512F__)
TUILI_INLINE F allowed(uint32_t bits, F v) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), (__mmask16)bits, v);
}
#else
TUILI_INLINE F allowed(uint32_t bits, F v) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane);
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), v, _mm256_castsi256_ps(on));
}
#endif

// x[0 .. n) = the logits from `begin` on after masks, bias and penalties.
static void process(const TuiliSampleArgs& a, const Row& row, const float* logits, float* __restrict__ x, int begin,
                    int n) {
    memcpy(x, logits + begin, (size_t)n * sizeof(float));
    const float low = -__builtin_inff();
    if (a.token_mask != nullptr) {
        const int32_t* words = TUILI_ROW(const int32_t, a.token_mask, row.slot, (a.vocab_size + 31) / 32) + begin / 32;
        for (int i = 0; i < n; i += 32) {
            const uint32_t word = (uint32_t)words[i / 32];
            if (word == 0xffffffffu) continue;
            if (n - i >= 32) {
                for (int j = 0; j < 32; j += W) store(x + i + j, allowed(word >> j, load(x + i + j)));
            } else {
                for (int j = 0; j < n - i; j++) x[i + j] = (word >> j & 1) ? x[i + j] : low;
            }
        }
    }
    if (row.stops) {
        const uint8_t* __restrict__ stop = TUILI_ROW(const uint8_t, a.stop_mask, row.slot, a.vocab_size) + begin;
        for (int i = 0; i < n; i++) x[i] = stop[i] ? low : x[i];
    }
    if (a.logit_bias != nullptr) {
        const float* __restrict__ bias = TUILI_ROW(const float, a.logit_bias, row.slot, a.vocab_size) + begin;
        for (int i = 0; i < n; i++) x[i] += bias[i];
    }
    if (row.penalties) penalize(a, row, x, begin, n);
}

// ---------------------------------------------------------------------------------------------------------------
// Sums of weights e^x <= 1, as integers in units of 2^-40: exact, so that no order of summation shows. A weight plus
// 2^12 has an ulp of 2^-40; the mantissas are added up and the constants taken off at the end. Below 2^22 weights.

static const double kMagic = 4096.0;

#if defined(__AVX512F__)
typedef __m512i I;
struct Mass {
    I sum;
    int64_t lanes;
};
TUILI_INLINE I wide_zero() { return _mm512_setzero_si512(); }
TUILI_INLINE F where(uint32_t bits, F v) { return _mm512_maskz_mov_ps((__mmask16)bits, v); }
TUILI_INLINE void add_mass(Mass* m, F w) {
    const __m512d magic = _mm512_set1_pd(kMagic);
    const __m512d low = _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(w)), magic);
    const __m512d high = _mm512_add_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(w, 1)), magic);
    m->sum = _mm512_add_epi64(m->sum, _mm512_add_epi64(_mm512_castpd_si512(low), _mm512_castpd_si512(high)));
    m->lanes += W;
}
// Packs the floats whose bit is set to p, writing up to W of them.
TUILI_INLINE int pack(float* p, F v, uint32_t bits) {
    store(p, _mm512_maskz_compress_ps((__mmask16)bits, v));
    return __builtin_popcount(bits);
}
#else
typedef __m256i I;
struct Mass {
    I sum;
    int64_t lanes;
};
TUILI_INLINE I wide_zero() { return _mm256_setzero_si256(); }
TUILI_INLINE F where(uint32_t bits, F v) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane);
    return _mm256_and_ps(v, _mm256_castsi256_ps(on));
}
TUILI_INLINE void add_mass(Mass* m, F w) {
    const __m256d magic = _mm256_set1_pd(kMagic);
    const __m256d low = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(w)), magic);
    const __m256d high = _mm256_add_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(w, 1)), magic);
    m->sum = _mm256_add_epi64(m->sum, _mm256_add_epi64(_mm256_castpd_si256(low), _mm256_castpd_si256(high)));
    m->lanes += W;
}
TUILI_INLINE int pack(float* p, F v, uint32_t bits) {
    float t[W];
    store(t, v);
    int count = 0;
    for (; bits; bits &= bits - 1) p[count++] = t[__builtin_ctz(bits)];
    return count;
}
#endif

TUILI_INLINE uint64_t total_of(const Mass& m) {
    uint64_t lanes[W / 2], magic, sum = 0;
    memcpy(lanes, &m.sum, sizeof lanes);
    memcpy(&magic, &kMagic, sizeof magic);
    for (int i = 0; i < W / 2; i++) sum += lanes[i];
    return sum - (uint64_t)m.lanes * magic;
}

// ---------------------------------------------------------------------------------------------------------------
// Cuts. A token's distance is what its logit, relative to the maximum and divided by the temperature, lacks to 0. The
// bits of distances order as integers do, which is what the bisection goes by.

struct Distances {
    float* values;
    int64_t count;
    float largest;  // of the finite ones, which alone are held
};

static Distances distances_of(const float* x, int n, float top, float temperature, float* out) {
    const F offset = set1(top), divisor = set1(temperature), infinity = set1(__builtin_inff());
    Distances d = {out, 0, 0.0f};
    F largest = zero();
    for (int i = 0; i < n; i += W) {
        const F v = abs(div(sub(load_or_low(x, i, n), offset), divisor));
        const uint32_t finite = lt_bits(v, infinity);
        largest = max(where(finite, v), largest);
        d.count += pack(out + d.count, v, finite);
    }
    d.largest = hmax(largest);
    return d;
}

struct Sums {
    int64_t count;
    uint64_t mass;
};

// Of the distances below m.
static Sums sums_below(const Distances& d, float m, bool with_mass) {
    const F bound = set1(m);
    Mass mass = {wide_zero(), 0};
    int64_t count = 0;
    for (int64_t i = 0; i < d.count; i += W) {
        const int n = d.count - i < W ? (int)(d.count - i) : (int)W;
        const F v = n == W ? load(d.values + i) : load_n(d.values + i, n);
        uint32_t below = lt_bits(v, bound);
        if (n < W) below &= (1u << n) - 1u;
        count += __builtin_popcount(below);
        if (with_mass) add_mass(&mass, where(below, exp(sub(zero(), v))));
    }
    return {count, with_mass ? total_of(mass) : 0};
}

// Keeps the distances below m, or those not below it.
static void narrow(Distances* d, float m, bool below) {
    const F bound = set1(m);
    int64_t kept = 0;
    for (int64_t i = 0; i < d->count; i += W) {
        const int n = d->count - i < W ? (int)(d->count - i) : (int)W;
        const F v = n == W ? load(d->values + i) : load_n(d->values + i, n);
        uint32_t bits = below ? lt_bits(v, bound) : ge_bits(v, bound);
        if (n < W) bits &= (1u << n) - 1u;
        kept += pack(d->values + kept, v, bits);
    }
    d->count = kept;
}

// The largest distance d (or one that cuts alike) such that fewer than k tokens are nearer than d and, with_mass, the
// weights of those are below `limit`. It is not the largest of all: the caller knows that there is something to cut.
static float bisect(Distances* d, int64_t k, bool with_mass, double limit) {
    Sums before = {0, 0};
    uint32_t low = 0, high = float_bits(d->largest) + 1;
    for (int turn = 0; high - low > 1 && d->count > 0; turn++) {
        // Midpoints of values converge fast where the values are spread, midpoints of bits always do.
        uint32_t middle = low + (high - low) / 2;
        if (turn % 2 == 0) {
            const float mean = bits_float(low) / 2 + bits_float(high - 1) / 2;
            const uint32_t bits = float_bits(mean);
            if (bits > low && bits < high) middle = bits;
        }
        const float m = bits_float(middle);
        const Sums nearer = sums_below(*d, m, with_mass);
        const bool kept = before.count + nearer.count < k && (!with_mass || (double)(before.mass + nearer.mass) < limit);
        narrow(d, m, !kept);
        if (kept) {
            low = middle;
            before.count += nearer.count;
            before.mass += nearer.mass;
        } else {
            high = middle;
        }
    }
    return bits_float(high - 1);
}

// The greatest distance that top_k, top_p and min_p keep; infinity where they cut nothing.
static float reach_of(const TuiliSampleArgs& a, int64_t row, const float* x, float top, float temperature,
                      float* space) {
    const int n = a.vocab_size;
    float reach = __builtin_inff();
    int64_t k = a.top_k != nullptr && a.top_k[row] > 0 && a.top_k[row] < n ? a.top_k[row] : n;
    const float p = a.top_p != nullptr ? a.top_p[row] : 1.0f;
    if (k < n || p < 1.0f) {
        Distances d = distances_of(x, n, top, temperature, space);
        const bool cut_k = k < d.count;
        double total = 0.0;
        if (cut_k) {
            Distances nearest = d;
            // `space` holds two rows: one that the search for the k-th uses up, one for top_p.
            nearest.values = space + n;
            if (p < 1.0f) {
                memcpy(nearest.values, d.values, (size_t)d.count * sizeof(float));
            } else {
                nearest.values = d.values;
            }
            reach = bisect(&nearest, k, false, 0.0);
        }
        if (p < 1.0f) {
            if (cut_k) {
                // Of those equal to the k-th only as many count as k lets in.
                const Sums nearer = sums_below(d, reach, true);
                Distances one = {&reach, 1, reach};
                total = (double)nearer.mass;
                total += (double)(k - nearer.count) * (double)sums_below(one, __builtin_inff(), true).mass;
                narrow(&d, bits_float(float_bits(reach) + 1), true);
                d.largest = reach;
            } else {
                total = (double)sums_below(d, __builtin_inff(), true).mass;
            }
            const float nucleus = bisect(&d, n + 1, true, (double)p * total);
            if (nucleus < reach) reach = nucleus;
        }
    }
    if (a.min_p != nullptr && a.min_p[row] > 0.0f) {
        const float bound = -(float)__builtin_log((double)a.min_p[row]);
        if (bound < reach) reach = bound;
    }
    return reach;
}

// ---------------------------------------------------------------------------------------------------------------
// Noise.

struct Philox {
    uint32_t key[10][2];
    uint32_t position, sample;
};

static Philox philox_of(uint64_t seed, int64_t position, int64_t sample) {
    Philox philox;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++) {
        philox.key[i][0] = k0;
        philox.key[i][1] = k1;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    philox.position = (uint32_t)position;
    philox.sample = (uint32_t)sample;
    return philox;
}

#if defined(__AVX512F__)
TUILI_INLINE I set_wide(uint32_t v) { return _mm512_set1_epi64(v); }
TUILI_INLINE I mul_wide(I a, I b) { return _mm512_mul_epu32(a, b); }
TUILI_INLINE I high_half(I a) { return _mm512_srli_epi64(a, 32); }
TUILI_INLINE I to_high_half(I a) { return _mm512_slli_epi64(a, 32); }
TUILI_INLINE I low_half(I a) { return _mm512_and_si512(a, _mm512_set1_epi64(0xffffffffll)); }
TUILI_INLINE I xor_wide(I a, I b) { return _mm512_xor_si512(a, b); }
TUILI_INLINE I or_wide(I a, I b) { return _mm512_or_si512(a, b); }
// Counters in the order that brings the words into that of the tokens.
TUILI_INLINE I counters(uint32_t first) {
    return _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
}
TUILI_INLINE I first_words(I a, I b) { return _mm512_unpacklo_epi64(a, b); }
TUILI_INLINE I last_words(I a, I b) { return _mm512_unpackhi_epi64(a, b); }
TUILI_INLINE void store_wide(uint32_t* p, I v) { _mm512_storeu_si512((void*)p, v); }
// A little below (word + 0.5) / 2^32.
TUILI_INLINE F lower_uniform(const uint32_t* p) {
    const __m512i top = _mm512_srli_epi32(_mm512_loadu_si512((const void*)p), 8);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(top), _mm512_set1_ps(0x1p-24f));
}
#else
TUILI_INLINE I set_wide(uint32_t v) { return _mm256_set1_epi64x(v); }
TUILI_INLINE I mul_wide(I a, I b) { return _mm256_mul_epu32(a, b); }
TUILI_INLINE I high_half(I a) { return _mm256_srli_epi64(a, 32); }
TUILI_INLINE I to_high_half(I a) { return _mm256_slli_epi64(a, 32); }
TUILI_INLINE I low_half(I a) { return _mm256_and_si256(a, _mm256_set1_epi64x(0xffffffffll)); }
TUILI_INLINE I xor_wide(I a, I b) { return _mm256_xor_si256(a, b); }
TUILI_INLINE I or_wide(I a, I b) { return _mm256_or_si256(a, b); }
TUILI_INLINE I counters(uint32_t first) {
    return _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_setr_epi64x(0, 2, 1, 3));
}
TUILI_INLINE I first_words(I a, I b) { return _mm256_unpacklo_epi64(a, b); }
TUILI_INLINE I last_words(I a, I b) { return _mm256_unpackhi_epi64(a, b); }
TUILI_INLINE void store_wide(uint32_t* p, I v) { _mm256_storeu_si256((__m256i*)p, v); }
TUILI_INLINE F lower_uniform(const uint32_t* p) {
    const __m256i top = _mm256_srli_epi32(_mm256_loadu_si256((const __m256i*)p), 8);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(top), _mm256_set1_ps(0x1p-24f));
}
#endif

// The words of tokens `first` to `first` + 2 W - 1; `first` is a multiple of 4.
TUILI_INLINE void words_of(const Philox& philox, int first, uint32_t* words) {
    const I m0 = set_wide(0xD2511F53u), m1 = set_wide(0xCD9E8D57u);
    I c0 = counters((uint32_t)first / 4), c1 = set_wide(philox.position), c2 = set_wide(philox.sample);
    I c3 = set_wide(0);
    // Only the low halves count until the end; a multiplication reads no others.
    for (int i = 0; i < 10; i++) {
        const I p0 = mul_wide(c0, m0), p1 = mul_wide(c2, m1);
        c0 = xor_wide(xor_wide(high_half(p1), c1), set_wide(philox.key[i][0]));
        c2 = xor_wide(xor_wide(high_half(p0), c3), set_wide(philox.key[i][1]));
        c1 = p1;
        c3 = p0;
    }
    const I a = or_wide(low_half(c0), to_high_half(c1)), b = or_wide(low_half(c2), to_high_half(c3));
    store_wide(words, first_words(a, b));
    store_wide(words + W, last_words(a, b));
}

TUILI_INLINE float gumbel(uint32_t word) {
    return (float)-__builtin_log(-__builtin_log1p(-(((double)word + 0.5) * 0x1p-32)));
}

// argmax of distance and noise over the tokens within reach. -log(u) bounds the noise of a uniform u from above, so
// that a token can beat the best one known only if u < e^(its logit - best): one exponential in fp32 leaves a handful
// of tokens to the exact logarithms. No noise exceeds 22.9.
static int draw(const float* x, int n, const Best& best, int place, float temperature, float reach,
                const Philox& philox) {
    uint32_t words[2 * W];
    words_of(philox, place & ~3, words);
    float leader = gumbel(words[place & 3]);
    int winner = place;
    const F offset = set1(best.value), divisor = set1(temperature), bound = set1(-reach);
    for (int i = 0; i < n; i += 2 * W) {
        const float least = -reach > leader - 23.0f ? -reach : leader - 23.0f;
        const F scaled[2] = {
            div(sub(load_or_low(x, i, n), offset), divisor),
            i + W < n ? div(sub(load_or_low(x, i + W, n), offset), divisor) : set1(-__builtin_inff()),
        };
        if (!(ge_bits(scaled[0], set1(least)) | ge_bits(scaled[1], set1(least)))) continue;
        words_of(philox, i, words);
        for (int half = 0; half < 2; half++) {
            const F s = scaled[half];
            const F chance = exp(add(sub(s, set1(leader)), set1(1e-3f)));
            uint32_t able = lt_bits(lower_uniform(words + half * W), chance) & ge_bits(s, bound);
            if (!able) continue;
            float t[W];
            store(t, s);
            for (; able; able &= able - 1) {
                const int j = __builtin_ctz(able), token = i + half * W + j;
                const float noisy = t[j] + gumbel(words[half * W + j]);
                if (noisy > leader || (noisy == leader && token < winner)) {
                    leader = noisy;
                    winner = token;
                }
            }
        }
    }
    return winner;
}

// ---------------------------------------------------------------------------------------------------------------

static void sample_row(const TuiliSampleArgs& a, int64_t index, const TuiliThread* thread) {
    const int n = a.vocab_size;
    const float* x = TUILI_ROW(const float, a.logits, a.rows[index], n);
    float* space = TUILI_ROW(float, a.workspace, thread->thread, 3 * (int64_t)n + TUILI_SAMPLE_PADDING);
    Row row = {index, a.slots[index], false, false};
    row.stops = a.min_tokens_active != nullptr && a.min_tokens_active[index];
    row.penalties = a.repetition != nullptr &&
                    (a.repetition[index] != 1.0f || a.presence[index] != 0.0f || a.frequency[index] != 0.0f);
    Best best = {-__builtin_inff(), 0, false};
    bool sound = true;
    if (changes_logits(a, row)) {
        Best raw = {-__builtin_inff(), 0, false};
        for (int i = 0; i < n; i += kBlock) {
            const int end = at_most(i + kBlock, n);
            look(&raw, x, i, end);
            process(a, row, x, space + i, i, end - i);
            look(&best, space, i, end);
        }
        sound = !raw.nan && is_finite(raw.value);
        x = space;
    } else {
        best = best_of(x, n);
    }
    sound = sound && !best.nan && is_finite(best.value);
    a.failed[index] = !sound;
    a.out[index] = 0;
    if (!sound) return;
    int token = place_of(best, x, n);
    const float temperature = a.temperature[index];
    if (temperature > 0.0f) {
        const float reach = reach_of(a, index, x, best.value, temperature, space + n + 16);
        const Philox philox = philox_of((uint64_t)a.seeds[index], a.positions[index], a.sample_indices[index]);
        token = draw(x, n, best, token, temperature, reach, philox);
    }
    a.out[index] = token;
}

static void sample_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread* thread) {
    for (int64_t row = begin; row < end; row++) sample_row(*(const TuiliSampleArgs*)args, row, thread);
}

static void record_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    const TuiliRecordArgs& a = *(const TuiliRecordArgs*)args;
    for (int64_t row = begin; row < end; row++) {
        const int64_t slot = a.slots[row], token = a.token_ids[row];
        a.last_token[slot] = token;
        if (a.output_counts != nullptr) TUILI_ROW(int32_t, a.output_counts, slot, a.vocab_size)[token] += 1;
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Log-probabilities.

// Orders floats as integers, -0 and 0 as equals, NaN beyond the infinities.
TUILI_INLINE int32_t ordered(float v) {
    const int32_t bits = (int32_t)float_bits(v + 0.0f);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

// The k greatest, equal ones by id. `keys` is room for k. Where k is large this is slow, not wrong.
static void top_ids(const float* x, int n, int k, int64_t* ids, int32_t* keys) {
    int held = 0;
    for (int i = 0; i < n; i += W) {
        const F v = load_or_low(x, i, n);
        uint32_t able = (1u << at_most(W, n - i)) - 1u;
        // NaN may stand on either side: it is left to the integers.
        if (held == k) able &= gt_bits(v, set1(x[ids[k - 1]])) | nan_bits(v) | nan_bits(set1(x[ids[k - 1]]));
        for (; able; able &= able - 1) {
            const int id = i + __builtin_ctz(able);
            const int32_t key = ordered(x[id]);
            if (held == k && key <= keys[k - 1]) continue;
            int at = held < k ? held++ : k - 1;
            for (; at > 0 && keys[at - 1] < key; at--) {
                keys[at] = keys[at - 1];
                ids[at] = ids[at - 1];
            }
            keys[at] = key;
            ids[at] = id;
        }
    }
}

static void logprobs_row(const TuiliLogprobsArgs& a, int64_t row) {
    const int n = a.vocab_size;
    const float* x = TUILI_ROW(const float, a.logits, a.rows[row], n);
    const float own = x[a.token_ids[row]];
    const Best best = best_of(x, n);
    const F top = set1(best.value), bound = set1(own);
    Mass mass = {wide_zero(), 0};
    int64_t greater = 0;
    for (int i = 0; i < n; i += W) {
        const F v = load_or_low(x, i, n);
        add_mass(&mass, exp(sub(v, top)));
        greater += __builtin_popcount(gt_bits(v, bound));
    }
    const bool sound = !best.nan && is_finite(best.value);
    const double log_sum = sound ? __builtin_log((double)total_of(mass) * 0x1p-40) : __builtin_nan("");
    a.logprob[row] = (float)((double)own - (double)best.value - log_sum);
    a.rank[row] = greater + 1;
    if (a.k == 0) return;
    int64_t* ids = TUILI_ROW(int64_t, a.top_ids, row, a.k);
    float* logprobs = TUILI_ROW(float, a.top_logprobs, row, a.k);
    int32_t keys[TUILI_MAX_TOP_LOGPROBS];
    top_ids(x, n, a.k, ids, keys);
    for (int i = 0; i < a.k; i++) logprobs[i] = (float)((double)x[ids[i]] - (double)best.value - log_sum);
}

static void logprobs_rows(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    for (int64_t row = begin; row < end; row++) logprobs_row(*(const TuiliLogprobsArgs*)args, row);
}

}  // namespace TUILI_ISA

TUILI_DEFINE_KIND(sample) = {"sample", sizeof(TuiliSampleArgs), nullptr, nullptr, TUILI_ISA::sample_rows};
TUILI_DEFINE_KIND(record) = {"record", sizeof(TuiliRecordArgs), nullptr, nullptr, TUILI_ISA::record_rows};
TUILI_DEFINE_KIND(logprobs) = {"logprobs", sizeof(TuiliLogprobsArgs), nullptr, nullptr, TUILI_ISA::logprobs_rows};
