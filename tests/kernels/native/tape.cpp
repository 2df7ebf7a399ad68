// Runs taped programs on another machine, a slower or an emulated one: `tape LIBRARY ISA THREADS FILE` reads a program
// with the memory that it works on, as test_native_isas.py writes it, runs it, and leaves that memory in the file.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../app/kernels/native/abi.h"

namespace {

FILE* file;

void fail(const char* what) {
    printf("%s\n", what);
    exit(1);
}

uint64_t number() {
    uint64_t n;
    if (fread(&n, sizeof n, 1, file) != 1) fail("the tape is too short");
    return n;
}

char* bytes(uint64_t size) {
    char* p = static_cast<char*>(aligned_alloc(64, (size + 64) / 64 * 64));
    if (!p || (size && fread(p, size, 1, file) != 1)) fail("the tape is too short");
    return p;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) fail("usage: tape LIBRARY ISA THREADS FILE");
    void* library = dlopen(argv[1], RTLD_NOW);
    if (!library) fail(dlerror());
    const auto best_isa = reinterpret_cast<const char* (*)()>(dlsym(library, "tuili_best_isa"));
    const auto kind = reinterpret_cast<const TuiliKind* (*)(const char*, const char*)>(dlsym(library, "tuili_kind"));
    const auto pool_new = reinterpret_cast<void* (*)(int32_t, uint64_t, uint64_t)>(dlsym(library, "tuili_pool_new"));
    const auto program_new =
        reinterpret_cast<void* (*)(void*, const TuiliOp*, int32_t)>(dlsym(library, "tuili_program_new"));
    const auto run =
        reinterpret_cast<void (*)(void*, void*, const TuiliStep*, uint64_t*)>(dlsym(library, "tuili_run"));

    file = fopen(argv[4], "rb");
    if (!file) fail("no such tape");
    const uint64_t num_buffers = number();
    uint64_t* sizes = new uint64_t[num_buffers];
    char** buffers = new char*[num_buffers];
    for (uint64_t i = 0; i < num_buffers; i++) {
        sizes[i] = number();
        buffers[i] = bytes(sizes[i]);
    }
    const uint64_t num_ops = number();
    TuiliOp* ops = new TuiliOp[num_ops];
    for (uint64_t i = 0; i < num_ops; i++) {
        const char* name = bytes(number());
        ops[i] = {kind(name, argv[2]), nullptr, int32_t(number()), 0};
        if (!ops[i].kind) fail("no such op");
        char* args = bytes(number());
        ops[i].args = args;
        for (uint64_t left = number(); left > 0; left--) {
            const uint64_t field = number(), buffer = number(), offset = number();
            char* const address = buffers[buffer] + offset;
            memcpy(args + field, &address, sizeof address);
        }
    }
    const auto step = reinterpret_cast<const TuiliStep*>(bytes(sizeof(TuiliStep)));
    fclose(file);

    void* pool = pool_new(atoi(argv[3]), 2000, 2000);
    void* program = pool ? program_new(pool, ops, int32_t(num_ops)) : nullptr;
    if (!program) fail("out of memory");
    run(pool, program, step, nullptr);
    file = fopen(argv[4], "wb");
    for (uint64_t i = 0; i < num_buffers; i++)
        if (sizes[i] && fwrite(buffers[i], sizes[i], 1, file) != 1) fail("the disk is full");
    fclose(file);
    printf("%s\n", best_isa());
    fflush(stdout);
    _Exit(0);  // the pool's threads may sleep
}
