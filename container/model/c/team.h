/* Threads that work through the same stages: torch's own pool, whose GOMP_parallel kernels.py passes.
 *
 * Every thread goes the same way, stage after stage. Pieces of a stage are taken one after another by
 * whichever thread is free, and the next stage begins when all are done: a thread that the system
 * holds up delays the others by its own piece, not by those that it has not taken.
 */

#pragma once
#include "vectors.h"
#include <sched.h>

#define PARALLEL 65536 /* how much work, some 20 us of one thread, makes others worth waking */
#define SPINS 2000     /* before a thread that waits lets others run */

typedef void (*parallel_fn)(void (*)(void *), void *, unsigned, unsigned);
static parallel_fn parallel;

void set_parallel(void *function) { parallel = (parallel_fn)function; }

struct stage {
    int64_t next, done;
} __attribute__((aligned(64)));

struct member {
    struct stage *stage; /* the next */
};

/* From `first` to `last`; this thread will go on with `ahead`, if that is not negative. */
typedef void (*work_fn)(const void *what, int64_t first, int64_t last, int64_t ahead);
typedef void (*way_fn)(struct member *me, const void *what);

struct team {
    way_fn way;
    const void *what;
    struct stage *stages;
};

INLINE void rest(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Do one's part of a stage of `count` things; return when all are done. */
static void share(struct member *me, work_fn work, const void *what, int64_t count, int64_t piece) {
    struct stage *stage = me->stage++;
    int64_t first = __atomic_fetch_add(&stage->next, piece, __ATOMIC_RELAXED);
    while (first < count) {
        int64_t last = first + piece < count ? first + piece : count;
        int64_t ahead = __atomic_fetch_add(&stage->next, piece, __ATOMIC_RELAXED);
        work(what, first, last, ahead < count ? ahead : -1);
        __atomic_fetch_add(&stage->done, last - first, __ATOMIC_RELEASE);
        first = ahead;
    }
    for (int spins = 0; __atomic_load_n(&stage->done, __ATOMIC_ACQUIRE) < count; spins++)
        if (spins < SPINS) rest();
        else sched_yield();
}

static void enter(void *given) {
    const struct team *team = given;
    struct member me = {team->stages};
    team->way(&me, team->what);
}

/* Go a way of stages, zeroed before; alone if it is little work. */
static void go(way_fn way, const void *what, struct stage *stages, int64_t work) {
    struct team team = {way, what, stages};
    if (parallel && work > PARALLEL) parallel(enter, &team, 0, 0); /* as many threads as torch uses */
    else enter(&team);
}
