/* Runs the kernels under an emulator for emulated_kernels.py, which has the protocol.
 *
 * A request's memory lies at ARENA, where all of its pointers lead; the reply is the same memory after the
 * call. The first thing sent are the numbers that Kernels asks a library for. */

#include "kernels.c"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ARENA ((char *)0x1000000000)
#define ARENA_SIZE (1ll << 30)
#define THREADS 3

enum function { ADD_NORM, SILU_MUL, ARGMAX, EXP_TOTALS, ATTEND, GEMM, DECODE, ENCODE };

struct request {
    uint64_t function, size, args[8];
};

static void transfer(ssize_t (*move)(int, void *, size_t), int file, void *memory, size_t size) {
    while (size > 0) {
        ssize_t moved = move(file, memory, size);
        if (moved <= 0) exit(moved < 0);
        memory = (char *)memory + moved;
        size -= (size_t)moved;
    }
}

static ssize_t send(int file, void *memory, size_t size) { return write(file, memory, size); }

struct call {
    void (*function)(void *);
    void *args;
};

static void *run_call(void *given) {
    struct call *call = given;
    call->function(call->args);
    return 0;
}

/* As GOMP_parallel does. */
static void run_threads(void (*function)(void *), void *args, unsigned count, unsigned flags) {
    (void)flags;
    pthread_t threads[THREADS];
    struct call call = {function, args};
    for (unsigned i = 1; i < count; i++) pthread_create(threads + i, 0, run_call, &call);
    function(args);
    for (unsigned i = 1; i < count; i++) pthread_join(threads[i], 0);
}

static int count_threads(void) { return THREADS; }

static float as_float(uint64_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void run(const struct request *r) {
    const uint64_t *a = r->args;
    void *p[4] = {(void *)a[0], (void *)a[1], (void *)a[2], (void *)a[3]};
    switch ((enum function)r->function) {
        case ADD_NORM: add_norm(p[0], p[1], p[2], p[3], as_float(a[4]), (int64_t)a[5], (int64_t)a[6], (int)a[7]); break;
        case SILU_MUL: silu_mul(p[0], p[1], (int64_t)a[2], (int64_t)a[3], (int)a[4]); break;
        case ARGMAX: argmax(p[0], p[1], (int64_t)a[2], (int64_t)a[3]); break;
        case EXP_TOTALS: exp_totals(p[0], p[1], (int64_t)a[2], (int64_t)a[3]); break;
        case ATTEND: attend(p[0], p[1], p[2], p[3]); break;
        case GEMM: gemm(p[0]); break;
        case DECODE: decode(p[0]); break;
        case ENCODE: encode(p[0]); break;
    }
}

int main(void) {
    int64_t facts[] = {supports_gemm(), decoder_phases(), encoder_phases()};
    struct request request;
    set_parallel((void *)run_threads, (void *)count_threads);
    if (mmap(ARENA, ARENA_SIZE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != ARENA) return 2;
    transfer(send, 1, facts, sizeof facts);
    for (;;) {
        transfer(read, 0, &request, sizeof request);
        if (request.size > ARENA_SIZE) return 3;
        transfer(read, 0, ARENA, request.size);
        run(&request);
        transfer(send, 1, ARENA, request.size);
    }
}
