/* Runs a task in phases on torch's own thread pool, whose GOMP_parallel cpu.py passes.
 *
 * Every thread runs the same phases in order. A free thread claims the next piece of a phase, and the
 * next phase begins when all pieces are done: a thread that the operating system suspends delays the
 * other threads by the pieces it has claimed, which is one, or two with look-ahead.
 */

#pragma once
#include "simd.h"
#include <sched.h>
#include <time.h>

#define MIN_PARALLEL_WORK 65536 /* least work (some 20 us of one thread) that is worth waking threads */
#define SPINS 2000     /* of a waiting thread before it yields, */
#define YIELDS 2100    /* and before it sleeps, which lets other processes run */
#define SLEEP_NS 20000

typedef void (*parallel_fn)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*count_fn)(void);
static parallel_fn parallel;
static count_fn max_threads;

/* GOMP_parallel and omp_get_max_threads. */
void set_parallel(void *run, void *count) {
    parallel = (parallel_fn)run;
    max_threads = (count_fn)count;
}

/* On separate cache lines: waiting threads poll `done`. */
struct phase {
    int64_t next __attribute__((aligned(64)));
    int64_t done __attribute__((aligned(64)));
};

struct worker {
    struct phase *phase; /* the next one */
    int64_t threads;
};

/* Process items `first` to `last`; this thread continues with item `ahead` unless that is negative. */
typedef void (*work_fn)(const void *args, int64_t first, int64_t last, int64_t ahead);
typedef void (*task_fn)(struct worker *worker, const void *args);

struct pool {
    task_fn task;
    const void *args;
    struct phase *phases;
    int64_t threads;
};

INLINE void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

INLINE int64_t claim(struct phase *phase, int64_t piece) {
    return __atomic_fetch_add(&phase->next, piece, __ATOMIC_RELAXED);
}

/* Process this thread's pieces of a phase of `count` items; return when all items are done. With
 * `looks_ahead` a thread claims its next piece before it works on one, while enough remain for all. */
static void run_phase(struct worker *worker, work_fn work, const void *args, int64_t count, int64_t piece,
                  int looks_ahead) {
    struct phase *phase = worker->phase++;
    int64_t first = claim(phase, piece);
    while (first < count) {
        int64_t last = first + piece < count ? first + piece : count, ahead = -1;
        if (looks_ahead && first + worker->threads * piece < count) ahead = claim(phase, piece);
        work(args, first, last, ahead < count ? ahead : -1);
        __atomic_fetch_add(&phase->done, last - first, __ATOMIC_RELEASE);
        first = ahead < 0 ? claim(phase, piece) : ahead;
    }
    for (int64_t waits = 0; __atomic_load_n(&phase->done, __ATOMIC_ACQUIRE) < count; waits++)
        if (waits < SPINS) cpu_relax();
        else if (waits < YIELDS) sched_yield();
        else nanosleep(&(struct timespec){0, SLEEP_NS}, 0);
}

/* Return the owner of an item, of `count` owners: the last whose first item is not after it. */
INLINE int64_t owner_of(int64_t item, const int64_t *first_item, int64_t count) {
    int64_t low = 0, high = count; /* first_item[low] <= item < first_item[high] */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (first_item[middle] <= item) low = middle;
        else high = middle;
    }
    return low;
}

static void enter(void *given) {
    const struct pool *pool = given;
    struct worker worker = {pool->phases, pool->threads};
    pool->task(&worker, pool->args);
}

/* Run a task in phases on the thread pool, with at most as many threads as the widest phase has pieces;
 * run inline if there is little work. `phases` must be zeroed. */
static void run_parallel(task_fn task, const void *args, struct phase *phases, int64_t work, int64_t widest) {
    struct pool pool = {task, args, phases, 1};
    if (parallel && max_threads && work > MIN_PARALLEL_WORK && widest > 1) {
        int64_t most = max_threads();
        pool.threads = most < widest ? most : widest;
    }
    if (pool.threads > 1) parallel(enter, &pool, (unsigned)pool.threads, 0);
    else enter(&pool);
}
