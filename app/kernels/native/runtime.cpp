// The thread pool, and the program that it runs: a step of the model as one call.
//
// Every thread walks the same list of ops. An op is cut into chunks and these into as many ranges as there are threads.
// A thread claims chunks one at a time, those of its own range first, then those that others have not claimed: so it
// works on neighbouring memory, and a thread that is delayed does fewer. An op is over when its chunks are done,
// whichever threads did them, so that a thread that is not running delays the others only if it sleeps within a chunk.
// Where the step has few rows, handing out row-wise ops costs more than computing them: the thread that finishes the op
// before them does them at once.
//
// Waiting spins for a bounded time, then sleeps on a futex: a spinning thread would keep the one that it waits for off
// its core.
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <new>

#include "abi.h"

namespace {

// Up to this many rows a row-wise op is done by the thread that finished the op before it.
constexpr int64_t kInlineRows = 8;
constexpr int64_t kRowChunksPerThread = 4;

uint64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is a plain word");

void futex_wait(std::atomic<uint32_t>* word, uint32_t expected) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>* word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// A word that threads wait for to change: bounded spin, then sleep.
struct Event {
    std::atomic<uint32_t> version{0};
    std::atomic<int32_t> sleepers{0};

    // After the condition has become true.
    void notify() {
        if (sleepers.load(std::memory_order_seq_cst) > 0) {
            version.fetch_add(1, std::memory_order_seq_cst);
            futex_wake_all(&version);
        }
    }

    template <typename Condition>
    void wait(uint64_t spin_ns, Condition condition) {
        if (condition()) return;
        const uint64_t deadline = now_ns() + spin_ns;
        do {
            for (int i = 0; i < 32; i++) {
                if (condition()) return;
                pause_cpu();
            }
        } while (now_ns() < deadline);
        for (;;) {
            sleepers.fetch_add(1, std::memory_order_seq_cst);
            const uint32_t seen = version.load(std::memory_order_seq_cst);
            // The condition reads with seq_cst too: either it sees the change, or the notifier sees a sleeper.
            if (!condition()) futex_wait(&version, seen);
            sleepers.fetch_sub(1, std::memory_order_seq_cst);
            if (condition()) return;
        }
    }
};

// Where the threads stand with one op of the program. Epochs count steps: a thread that comes late tells by them that
// the step is over, so that nobody has to wait until all threads have left the step before.
struct alignas(64) OpState {
    std::atomic<int64_t> undone{0};
    int64_t chunks = 0;                 // read only by threads that hold a claim
    std::atomic<uint32_t> finished{0};  // epoch of the last step that finished it
};

// A thread's share of an op's chunks.
struct alignas(64) Range {
    std::atomic<uint64_t> unclaimed{0};  // epoch << 32 | chunks that nobody has claimed yet
};

struct Program {
    int32_t num_ops = 0;
    TuiliOp* ops = nullptr;
    int32_t* followers = nullptr;  // row-wise ops right behind, counted by the same number
    OpState* states = nullptr;
    Range* ranges = nullptr;       // [ops, threads]
};

// Where the range of a thread begins.
int64_t range_begin(int64_t chunks, int32_t thread, int32_t threads) { return chunks * thread / threads; }

struct Pool;

struct Worker {
    Pool* pool;
    pthread_t id;
    TuiliThread context;
};

struct Pool {
    int32_t threads = 1;
    uint64_t step_spin_ns = 0;
    uint64_t op_spin_ns = 0;
    Worker* workers = nullptr;
    std::atomic<bool> stopping{false};
    std::atomic<int32_t> walking{0};  // workers that may hold the program
    alignas(64) std::atomic<uint32_t> epoch{0};
    std::atomic<const Program*> program{nullptr};
    std::atomic<const TuiliStep*> step{nullptr};
    alignas(64) Event started;
    alignas(64) Event progressed;
};

bool reached(uint32_t epoch, uint32_t wanted) { return int32_t(epoch - wanted) >= 0; }

int64_t rows_of(const TuiliOp& op, const TuiliStep* step) { return step->count[op.dim]; }

int64_t rows_a_chunk(int64_t rows, int32_t threads) {
    const int64_t pieces = threads * kRowChunksPerThread;
    return rows <= pieces ? 1 : (rows + pieces - 1) / pieces;
}

int64_t chunks_of(const TuiliOp& op, const TuiliStep* step, int32_t threads) {
    if (op.kind->rows == nullptr) return op.kind->chunks(op.args, step, threads);
    const int64_t rows = rows_of(op, step);
    if (rows <= kInlineRows) return rows > 0;
    const int64_t size = rows_a_chunk(rows, threads);
    return (rows + size - 1) / size;
}

void run_chunk(const TuiliOp& op, const TuiliStep* step, int64_t chunk, const TuiliThread* thread) {
    if (op.kind->rows == nullptr) {
        op.kind->run(op.args, step, chunk, thread);
        return;
    }
    const int64_t rows = rows_of(op, step);
    const int64_t size = rows <= kInlineRows ? rows : rows_a_chunk(rows, thread->threads);
    const int64_t begin = chunk * size;
    op.kind->rows(op.args, step, begin, begin + size < rows ? begin + size : rows, thread);
}

// Ops that are done together with op i: itself, and its followers when the rows are few.
int32_t span_of(const Program& program, int32_t i, const TuiliStep* step) {
    const int32_t followers = program.followers[i];
    return followers > 0 && rows_of(program.ops[i], step) <= kInlineRows ? 1 + followers : 1;
}

// After the last chunk of op i: runs the ops that follow it inline, then tells the waiting threads.
void finish(Pool* pool, const Program& program, int32_t i, const TuiliStep* step, uint32_t epoch,
            const TuiliThread* thread) {
    const int32_t end = i + span_of(program, i, step);
    for (int32_t j = i + 1; j < end; j++) {
        const TuiliOp& op = program.ops[j];
        op.kind->rows(op.args, step, 0, rows_of(op, step), thread);
        program.states[j].finished.store(epoch, std::memory_order_release);
    }
    program.states[i].finished.store(epoch, std::memory_order_seq_cst);
    pool->progressed.notify();
}

enum class Claims { kOpOver, kStepOver };

// Does chunks of op i until there are none left to claim.
Claims work_on(Pool* pool, const Program& program, int32_t i, const TuiliStep* step, uint32_t epoch,
               TuiliThread* thread) {
    OpState& state = program.states[i];
    const int32_t threads = thread->threads;
    int64_t done = 0;
    thread->first = 1;
    for (int32_t turn = 0; turn < threads; turn++) {
        const int32_t owner = (thread->thread + turn) % threads;
        std::atomic<uint64_t>& range = program.ranges[int64_t(i) * threads + owner].unclaimed;
        uint64_t unclaimed = range.load(std::memory_order_acquire);
        for (;;) {
            // The arguments may be the next step's from here on, and so may the header.
            if (uint32_t(unclaimed >> 32) != epoch) return Claims::kStepOver;
            if (uint32_t(unclaimed) == 0) break;
            if (!range.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acq_rel,
                                             std::memory_order_acquire)) {
                continue;
            }
            // A claimed chunk keeps the step from ending.
            const int64_t chunk = range_begin(state.chunks, owner + 1, threads) - int64_t(uint32_t(unclaimed));
            run_chunk(program.ops[i], step, chunk, thread);
            thread->first = 0;
            done++;
            unclaimed = range.load(std::memory_order_acquire);
        }
    }
    if (done > 0 && state.undone.fetch_sub(done, std::memory_order_acq_rel) == done)
        finish(pool, program, i, step, epoch, thread);
    return Claims::kOpOver;
}

// Works through a step. Returns when its last op is finished, or when the step turns out to be over already.
void walk(Pool* pool, const Program& program, const TuiliStep* step, uint32_t epoch, TuiliThread* thread,
          uint64_t* op_ns) {
    uint64_t began = op_ns ? now_ns() : 0;
    for (int32_t i = 0; i < program.num_ops; i++) {
        if (work_on(pool, program, i, step, epoch, thread) == Claims::kStepOver) return;
        OpState& state = program.states[i];
        pool->progressed.wait(pool->op_spin_ns,
                              [&] { return reached(state.finished.load(std::memory_order_seq_cst), epoch); });
        if (op_ns) {
            const uint64_t now = now_ns();
            op_ns[i] += now - began;
            began = now;
        }
    }
}

void* work(void* given) {
    Worker* worker = static_cast<Worker*>(given);
    Pool* pool = worker->pool;
    uint32_t seen = 0;
    for (;;) {
        pool->started.wait(pool->step_spin_ns, [&] { return pool->epoch.load(std::memory_order_seq_cst) != seen; });
        if (pool->stopping.load(std::memory_order_acquire)) return nullptr;
        pool->walking.fetch_add(1, std::memory_order_seq_cst);
        seen = pool->epoch.load(std::memory_order_seq_cst);
        // Both may be a later epoch's by now: the epochs in its ops' ranges tell.
        const Program* program = pool->program.load(std::memory_order_seq_cst);
        const TuiliStep* step = pool->step.load(std::memory_order_seq_cst);
        if (program != nullptr) walk(pool, *program, step, seen, &worker->context, nullptr);
        pool->walking.fetch_sub(1, std::memory_order_seq_cst);
    }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Reserves memory for weights or pages: anonymous, zero, 2 MiB aligned, on huge pages where the kernel has any to
// give. NULL when there is no memory.
void* tuili_alloc(size_t bytes) {
    constexpr size_t huge = size_t(2) << 20;
    const size_t size = (bytes + huge - 1) / huge * huge;
    char* reserved = static_cast<char*>(
        mmap(nullptr, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (reserved == MAP_FAILED) return nullptr;
    char* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(reserved) + huge - 1) / huge * huge);
    if (aligned > reserved) munmap(reserved, size_t(aligned - reserved));
    if (aligned + size < reserved + size + huge) munmap(aligned + size, size_t(reserved + huge - aligned));
#if defined(MADV_HUGEPAGE)
    madvise(aligned, size, MADV_HUGEPAGE);
#endif
    return aligned;
}

void tuili_free(void* memory, size_t bytes) {
    constexpr size_t huge = size_t(2) << 20;
    munmap(memory, (bytes + huge - 1) / huge * huge);
}

// A pool of `threads`, the caller of tuili_run among them. Idle threads spin for `step_spin_ns` between steps and for
// `op_spin_ns` between ops before they sleep. NULL when threads or memory are lacking.
void* tuili_pool_new(int32_t threads, uint64_t step_spin_ns, uint64_t op_spin_ns) {
    Pool* pool = new (std::nothrow) Pool;
    if (pool == nullptr) return nullptr;
    pool->threads = threads < 1 ? 1 : threads;
    pool->step_spin_ns = step_spin_ns;
    pool->op_spin_ns = op_spin_ns;
    pool->workers = new (std::nothrow) Worker[size_t(pool->threads)];
    if (pool->workers == nullptr) return nullptr;
    for (int32_t i = 0; i < pool->threads; i++) {
        Worker& worker = pool->workers[i];
        worker.pool = pool;
        worker.context = {i, pool->threads, 0, 0, aligned_alloc(4096, TUILI_SCRATCH_BYTES), TUILI_SCRATCH_BYTES};
        if (worker.context.scratch == nullptr) return nullptr;
        if (i > 0 && pthread_create(&worker.id, nullptr, work, &worker) != 0) return nullptr;
    }
    return pool;
}

// No program may be running.
void tuili_pool_free(void* handle) {
    Pool* pool = static_cast<Pool*>(handle);
    pool->stopping.store(true, std::memory_order_release);
    pool->program.store(nullptr, std::memory_order_release);
    pool->epoch.fetch_add(1, std::memory_order_seq_cst);
    pool->started.notify();
    for (int32_t i = 1; i < pool->threads; i++) pthread_join(pool->workers[i].id, nullptr);
    for (int32_t i = 0; i < pool->threads; i++) free(pool->workers[i].context.scratch);
    delete[] pool->workers;
    delete pool;
}

// Copies `ops`; the arguments that they point to stay the caller's and must outlive the program, which `pool` alone
// can run.
void* tuili_program_new(void* pool_handle, const TuiliOp* ops, int32_t num_ops) {
    const int32_t threads = static_cast<Pool*>(pool_handle)->threads;
    Program* program = new (std::nothrow) Program;
    if (program == nullptr) return nullptr;
    program->num_ops = num_ops;
    program->ops = new (std::nothrow) TuiliOp[size_t(num_ops)];
    program->followers = new (std::nothrow) int32_t[size_t(num_ops)];
    program->states = new (std::nothrow) OpState[size_t(num_ops)];
    program->ranges = new (std::nothrow) Range[size_t(num_ops) * size_t(threads)];
    if (program->ops == nullptr || program->followers == nullptr || program->states == nullptr ||
        program->ranges == nullptr) {
        return nullptr;
    }
    memcpy(program->ops, ops, sizeof(TuiliOp) * size_t(num_ops));
    for (int32_t i = num_ops - 1; i >= 0; i--) {
        const bool followed = i + 1 < num_ops && ops[i + 1].kind->rows != nullptr && ops[i + 1].dim == ops[i].dim;
        program->followers[i] = followed ? program->followers[i + 1] + 1 : 0;
    }
    return program;
}

// Frees a program of `pool`. Not while it runs.
void tuili_program_free(void* pool_handle, void* handle) {
    Pool* pool = static_cast<Pool*>(pool_handle);
    Program* program = static_cast<Program*>(handle);
    // A worker that came late may still be looking at it.
    pool->program.store(nullptr, std::memory_order_seq_cst);
    while (pool->walking.load(std::memory_order_seq_cst) != 0) sched_yield();
    delete[] program->ranges;
    delete[] program->states;
    delete[] program->followers;
    delete[] program->ops;
    delete program;
}

// Runs a step and returns when it is done. `op_ns`, if given, gains for each op the time from the end of the one before
// to its own end, as the calling thread saw it.
void tuili_run(void* pool_handle, void* program_handle, const TuiliStep* step, uint64_t* op_ns) {
    Pool* pool = static_cast<Pool*>(pool_handle);
    Program* program = static_cast<Program*>(program_handle);
    const uint32_t epoch = pool->epoch.load(std::memory_order_relaxed) + 1;
    const int32_t threads = pool->threads;
    // A program may be new, or have rested for half a turn of the epochs: what it holds must not look like a later one.
    for (int32_t i = 0; i < program->num_ops; i++)
        program->states[i].finished.store(epoch - 1, std::memory_order_relaxed);
    int32_t inline_until = 0;
    for (int32_t i = 0; i < program->num_ops; i++) {
        OpState& state = program->states[i];
        int64_t chunks = 0;
        if (i >= inline_until) {
            chunks = chunks_of(program->ops[i], step, threads);
            // Without a chunk nobody would finish it, nor what follows it inline.
            inline_until = i + (chunks > 0 ? span_of(*program, i, step) : 1);
            if (chunks == 0) state.finished.store(epoch, std::memory_order_relaxed);
        }
        state.chunks = chunks;
        state.undone.store(chunks, std::memory_order_relaxed);
        for (int32_t t = 0; t < threads; t++) {
            const int64_t size = range_begin(chunks, t + 1, threads) - range_begin(chunks, t, threads);
            program->ranges[int64_t(i) * threads + t].unclaimed.store(uint64_t(epoch) << 32 | uint64_t(size),
                                                                     std::memory_order_release);
        }
    }
    pool->program.store(program, std::memory_order_seq_cst);
    pool->step.store(step, std::memory_order_seq_cst);
    pool->epoch.store(epoch, std::memory_order_seq_cst);
    pool->started.notify();
    walk(pool, *program, step, epoch, &pool->workers[0].context, op_ns);
}

}  // extern "C"

#pragma GCC visibility pop
