// Random programs on pools of one to four threads, each result compared with what the ops do one after another. Built
// with ThreadSanitizer by test_native_runtime.py. Includes the runtime to start its epochs close to their overflow.
#include "../../../app/kernels/native/runtime.cpp"

#include <stdio.h>

namespace {

constexpr int kWidth = 64;

struct Args {
    const int64_t* from;
    int64_t* to;
    int32_t factor;
    int32_t pieces;  // of an op that is not row-wise; 0 now and then
};

void row_wise(const void* args, const TuiliStep*, int64_t begin, int64_t end, const TuiliThread*) {
    const Args& a = *static_cast<const Args*>(args);
    for (int64_t i = begin; i < end; i++) a.to[i] = a.from[i] * a.factor + i;
}

int64_t chunks(const void* args, const TuiliStep*, int32_t) { return static_cast<const Args*>(args)->pieces; }

// Reads all of its input, so that it must wait for the whole op before it.
void whole(const void* args, const TuiliStep*, int64_t chunk, const TuiliThread*) {
    const Args& a = *static_cast<const Args*>(args);
    int64_t sum = 0;
    for (int i = 0; i < kWidth; i++) sum += a.from[i] * (i + 1);
    for (int64_t i = chunk; i < kWidth; i += a.pieces) a.to[i] = (sum >> 3) * a.factor + i;
}

const TuiliKind kRows = {"rows", sizeof(Args), nullptr, nullptr, row_wise};
const TuiliKind kWhole = {"whole", sizeof(Args), chunks, whole, nullptr};

uint64_t state = 88172645463325252u;
uint32_t random_below(uint32_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return uint32_t(state >> 33) % n;
}

struct Case {
    static constexpr int kMax = 40;
    int count;
    TuiliOp ops[kMax];
    Args args[kMax];
    int64_t buffers[kMax + 1][kWidth];

    void fill() {
        count = 1 + int(random_below(kMax));
        for (int i = 0; i < count; i++) {
            args[i] = {buffers[i], buffers[i + 1], int32_t(random_below(7)) - 3, int32_t(random_below(10))};
            ops[i] = {random_below(2) ? &kRows : &kWhole, &args[i], TUILI_TOKENS, 0};
        }
    }
    void clear() {
        for (auto& buffer : buffers)
            for (int i = 0; i < kWidth; i++) buffer[i] = i;
    }
    void run_plainly(const TuiliStep* step) {
        for (int i = 0; i < count; i++) {
            if (ops[i].kind == &kRows) row_wise(&args[i], step, 0, step->count[0], nullptr);
            for (int c = 0; ops[i].kind == &kWhole && c < args[i].pieces; c++) whole(&args[i], step, c, nullptr);
        }
    }
};

}  // namespace

int main(int argc, char** argv) {
    const int steps = argc > 1 ? atoi(argv[1]) : 1000;
    static Case current;
    static int64_t expected[Case::kMax + 1][kWidth];
    const uint32_t beginnings[] = {0, 0x7ffffff0u, 0xfffffff0u};
    for (int threads = 1; threads <= 4; threads++) {
        for (uint32_t beginning : beginnings) {
            // Short spins, so that threads sleep too.
            Pool* pool = static_cast<Pool*>(tuili_pool_new(threads, 2000, 2000));
            pool->epoch.store(beginning);
            void* program = nullptr;
            for (int n = 0; n < steps; n++) {
                if (n % 5 == 0) {
                    if (program) tuili_program_free(pool, program);
                    current.fill();
                    program = tuili_program_new(pool, current.ops, current.count);
                }
                TuiliStep step = {};
                step.count[0] = int32_t(random_below(2) ? random_below(10) : random_below(kWidth + 1));
                current.clear();
                current.run_plainly(&step);
                memcpy(expected, current.buffers, sizeof expected);
                current.clear();
                tuili_run(pool, program, &step, nullptr);
                if (memcmp(expected, current.buffers, sizeof expected) != 0) {
                    printf("threads %d, beginning %u, step %d: wrong\n", threads, beginning, n);
                    return 1;
                }
            }
            tuili_program_free(pool, program);
            tuili_pool_free(pool);
        }
    }
    printf("sound\n");
}
