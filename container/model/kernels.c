/* What lies between the products of a decoder layer, in few calls: see kernels.py.
 *
 * Numbers are bfloat16 or float32 in memory (`bf16` says which) and float32 in registers. Vectors
 * are GCC's and clang's vector extension, so that one source serves every processor: it is compiled
 * once for each instruction set. Sizes that run in vectors are multiples of LANES; kernels.py
 * checks that. No row's result depends on another row, nor on which thread computes it.
 */

#include <stdint.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define MAX_DIM 256  /* of a head */
#define QUERIES 8    /* that share what is read of the cache */
#define PARALLEL 65536 /* how much, some 20 us of one thread, makes others worth waking */
#define INLINE static inline __attribute__((always_inline))

/* Which source this was compiled from: see build_kernels.py. */
const char *source_hash(void) { return SOURCE_HASH; }

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

/* Two operations for which GCC's vectors become several instructions where the processor has one. */
#ifdef __AVX512F__
INLINE words widened(halves x) { return (words)_mm512_cvtepu16_epi32((__m256i)x); }
INLINE floats larger(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }
#else
INLINE words widened(halves x) { return __builtin_convertvector(x, words); }
INLINE floats larger(floats a, floats b) {
    ints where = a > b;
    return (floats)((where & (ints)a) | (~where & (ints)b));
}
#endif

/* Sixteen numbers from element `i` on. */
INLINE floats load(const void *from, int64_t i, int bf16) {
    if (bf16) {
        halves upper;
        __builtin_memcpy(&upper, (const uint16_t *)from + i, sizeof upper);
        return (floats)(widened(upper) << 16);
    }
    floats read;
    __builtin_memcpy(&read, (const float *)from + i, sizeof read);
    return read;
}

/* bfloat16 is rounded to nearest, ties to even. */
INLINE void store(void *to, int64_t i, floats x, int bf16) {
    if (bf16) {
        words bits = (words)x;
        bits += 0x7fff + ((bits >> 16) & 1);
        halves upper = __builtin_convertvector(bits >> 16, halves);
        __builtin_memcpy((uint16_t *)to + i, &upper, sizeof upper);
    } else {
        __builtin_memcpy((float *)to + i, &x, sizeof x);
    }
}

INLINE const void *at(const void *from, int64_t i, int bf16) {
    return (const char *)from + i * (bf16 ? 2 : 4);
}

INLINE floats all(float x) { return x - (floats){0}; }

INLINE floats pick(ints where, floats yes, floats no) {
    return (floats)((where & (ints)yes) | (~where & (ints)no));
}

#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* x[i] and x[i ^ 8], x[i ^ 4] ... : each lane ends with the result of all. */
#define FOLD(x, join)                                                                   \
    x = join(x, SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));   \
    x = join(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));   \
    x = join(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));   \
    x = join(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));

INLINE floats plus(floats a, floats b) { return a + b; }

INLINE float sum(floats x) {
    FOLD(x, plus)
    return x[0];
}

INLINE float largest(floats x) {
    FOLD(x, larger)
    return x[0];
}

/* The sums of sixteen vectors, in a vector: halves of two are added side by side, then quarters. */
INLINE floats sums(floats *x) {
    for (int i = 0; i < 8; i++)
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
             + SHUFFLE(x[2 * i], x[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
             + SHUFFLE(x[2 * i], x[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29)
             + SHUFFLE(x[2 * i], x[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    return SHUFFLE(x[0], x[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
         + SHUFFLE(x[0], x[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

/* e^x = 2^n e^r with |r| <= ln 2 / 2; the polynomial is that of Cephes' expf (Moshier), 2 ulp. */
INLINE floats exponential(floats x) {
    const floats shifter = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    x = -larger(all(-88.0f), -larger(all(-87.0f), x)); /* what is no number stays none */
    floats n = (x * 1.44269504088896341f + shifter) - shifter;
    floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (floats)((__builtin_convertvector(n, ints) + 127) << 23);
}

/* ---- Work for several threads: torch's own pool, whose GOMP_parallel kernels.py passes. ---- */

typedef void (*parallel_fn)(void (*)(void *), void *, unsigned, unsigned);
static parallel_fn parallel;

void set_parallel(void *function) { parallel = (parallel_fn)function; }

struct job {
    void (*work)(const void *what, int64_t first, int64_t last);
    const void *what;
    int64_t count, piece, next;
};

static void work_off(void *given) {
    struct job *job = given;
    for (;;) {
        int64_t first = __atomic_fetch_add(&job->next, job->piece, __ATOMIC_RELAXED);
        if (first >= job->count) return;
        int64_t last = first + job->piece;
        job->work(job->what, first, last < job->count ? last : job->count);
    }
}

/* Pieces are taken one after another by whichever thread is free. `work` says how much it is. */
static void run(struct job job, int64_t work) {
    if (parallel && work > PARALLEL && job.count > job.piece)
        parallel(work_off, &job, 0, 0); /* as many threads as torch uses */
    else
        work_off(&job);
}

/* ---- y = x + y; out = y / sqrt(mean(y^2) + eps) * weight ---- */

struct norm {
    const void *x, *weight; /* [rows, width] or null; [width] or null: no norm */
    void *y, *out;          /* [rows, width] */
    int64_t width;
    float eps;
    int bf16;
};

INLINE void norm_row(const void *y, const void *weight, void *out, int64_t width, float eps, int bf16) {
    floats squares = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        floats part = load(y, i, bf16);
        squares += part * part;
    }
    float scale = 1.0f / __builtin_sqrtf(sum(squares) / (float)width + eps);
    for (int64_t i = 0; i < width; i += LANES)
        store(out, i, load(y, i, bf16) * scale * load(weight, i, bf16), bf16);
}

INLINE void norm_rows(const struct norm *n, int64_t first, int64_t last, int bf16) {
    for (int64_t row = first; row < last; row++) {
        void *y = (void *)at(n->y, row * n->width, bf16);
        if (n->x) {
            const void *x = at(n->x, row * n->width, bf16);
            for (int64_t i = 0; i < n->width; i += LANES)
                store(y, i, load(x, i, bf16) + load(y, i, bf16), bf16);
        }
        if (n->weight)
            norm_row(y, n->weight, (void *)at(n->out, row * n->width, bf16), n->width, n->eps, bf16);
    }
}

static void norm_work(const void *what, int64_t first, int64_t last) {
    const struct norm *n = what;
    if (n->bf16) norm_rows(n, first, last, 1);
    else norm_rows(n, first, last, 0);
}

void add_norm(const void *x, void *y, const void *weight, void *out, float eps,
              int64_t rows, int64_t width, int bf16) {
    struct norm n = {x, weight, y, out, width, eps, bf16};
    run((struct job){norm_work, &n, rows, 4, 0}, rows * width);
}

/* ---- out = silu(gate) * up, silu(x) = x / (1 + e^-x); gate and up side by side in a row ---- */

struct gated {
    const void *gate_up; /* [rows, 2 * width] */
    void *out;           /* [rows, width] */
    int64_t width;
    int bf16;
};

INLINE void gated_rows(const struct gated *g, int64_t first, int64_t last, int bf16) {
    for (int64_t row = first; row < last; row++)
        for (int64_t i = 0; i < g->width; i += LANES) {
            floats gate = load(g->gate_up, 2 * row * g->width + i, bf16);
            floats up = load(g->gate_up, (2 * row + 1) * g->width + i, bf16);
            store(g->out, row * g->width + i, gate / (1.0f + exponential(-gate)) * up, bf16);
        }
}

static void gated_work(const void *what, int64_t first, int64_t last) {
    const struct gated *g = what;
    if (g->bf16) gated_rows(g, first, last, 1);
    else gated_rows(g, first, last, 0);
}

void silu_mul(const void *gate_up, void *out, int64_t rows, int64_t width, int bf16) {
    struct gated g = {gate_up, out, width, bf16};
    run((struct job){gated_work, &g, rows, 2, 0}, rows * width);
}

/* ---- out = where each row of x, [rows, width] of float32, is largest; the first such place ---- */

struct best {
    const float *x;
    int64_t *out;
    int64_t width;
};

static void best_work(const void *what, int64_t first, int64_t last) {
    const struct best *b = what;
    for (int64_t row = first; row < last; row++) {
        const float *x = b->x + row * b->width;
        floats most = all(-__builtin_inff());
        int64_t i = 0;
        for (; i + LANES <= b->width; i += LANES) most = larger(load(x, i, 0), most);
        float highest = largest(most);
        for (; i < b->width; i++) highest = x[i] > highest ? x[i] : highest;
        for (i = 0; i < b->width - 1 && x[i] != highest;) i++;
        b->out[row] = x[i] == highest ? i : 0;
    }
}

void argmax(const float *x, int64_t *out, int64_t rows, int64_t width) {
    struct best b = {x, out, width};
    run((struct job){best_work, &b, rows, 1, 0}, rows * width / 2);
}

/* ---- Attention over the paged cache ---- */

struct step {              /* the same for all layers */
    const void *cos, *sin; /* [rows, dim] */
    const int64_t *slots;  /* [rows]: block * block_size + offset, where a row's k and v are kept */
    const int64_t *spans;  /* [num_spans, 4], of one sequence each: first row, number of rows, how
                              many positions the last row sees, and where in `blocks` its ids begin */
    const int64_t *blocks;
    int64_t rows, num_spans, block_size;
};

struct layer {
    void *keys, *values;  /* [blocks * kv_heads, block_size, dim] */
    const void *norms;    /* [heads + kv_heads, dim], what q and k are normed with, or null */
    int64_t heads, kv_heads, dim;
    int64_t window;       /* how many positions a row sees; 0: all */
    float scale, eps;
    int bf16;
};

struct attention {
    const struct step *step;
    const struct layer *layer;
    void *qkv, *out;          /* [rows, (heads + 2 * kv_heads) * dim], [rows, heads * dim] */
    const int64_t *first_item; /* [num_spans + 1] */
};

/* (a, b) -> (a cos - b sin, b cos + a sin), a and b the halves of a head (Su et al., 2021). */
INLINE void rotate_head(float *x, const float *cos, const float *sin, int64_t dim, float scale) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = (a * cos[i] - b * sin[i]) * scale;
        x[i + half] = (b * cos[i + half] + a * sin[i + half]) * scale;
    }
}

INLINE void rotate_rows(const struct attention *a, int64_t first, int64_t last, int bf16) {
    const struct step *s = a->step;
    const struct layer *l = a->layer;
    int64_t dim = l->dim, all_heads = l->heads + 2 * l->kv_heads;
    float x[MAX_DIM], cos[MAX_DIM], sin[MAX_DIM];
    for (int64_t row = first; row < last; row++) {
        for (int64_t i = 0; i < dim; i += LANES) {
            store(cos, i, load(s->cos, row * dim + i, bf16), 0);
            store(sin, i, load(s->sin, row * dim + i, bf16), 0);
        }
        int64_t block = s->slots[row] / s->block_size, offset = s->slots[row] % s->block_size;
        for (int64_t head = 0; head < all_heads; head++) {
            int64_t from = (row * all_heads + head) * dim;
            int is_query = head < l->heads, is_value = head >= l->heads + l->kv_heads;
            int64_t kv_head = head - l->heads - (is_value ? l->kv_heads : 0);
            int64_t kept = ((block * l->kv_heads + kv_head) * s->block_size + offset) * dim;
            for (int64_t i = 0; i < dim; i += LANES) store(x, i, load(a->qkv, from + i, bf16), 0);
            if (l->norms && !is_value) {
                float normed[MAX_DIM];
                const void *weight = at(l->norms, head * dim, bf16);
                floats squares = {0};
                for (int64_t i = 0; i < dim; i += LANES) squares += load(x, i, 0) * load(x, i, 0);
                float scale = 1.0f / __builtin_sqrtf(sum(squares) / (float)dim + l->eps);
                for (int64_t i = 0; i < dim; i += LANES)
                    store(normed, i, load(x, i, 0) * scale * load(weight, i, bf16), 0);
                __builtin_memcpy(x, normed, (uint64_t)dim * sizeof(float));
            }
            if (!is_value) rotate_head(x, cos, sin, dim, is_query ? l->scale : 1.0f);
            void *to = is_query ? a->qkv : is_value ? l->values : l->keys;
            for (int64_t i = 0; i < dim; i += LANES)
                store(to, (is_query ? from : kept) + i, load(x, i, 0), bf16);
        }
    }
}

static void rotate_work(const void *what, int64_t first, int64_t last) {
    const struct attention *a = what;
    if (a->layer->bf16) rotate_rows(a, first, last, 1);
    else rotate_rows(a, first, last, 0);
}

/* Where a head's positions lie in the cache, sixteen after sixteen. Those past the last one repeat
 * it; what they give is hidden. */
struct places {
    const int64_t *blocks;
    int64_t kv_heads, kv_head, block_size, dim, position, last;
};

INLINE void next_tile(struct places *p, int64_t *kept) {
    const int64_t *block = p->blocks + (p->position <= p->last ? p->position : p->last) / p->block_size;
    int64_t offset = (p->position <= p->last ? p->position : p->last) % p->block_size;
    for (int j = 0; j < LANES; j++) {
        kept[j] = ((*block * p->kv_heads + p->kv_head) * p->block_size + offset) * p->dim;
        if (p->position + j < p->last && ++offset == p->block_size) offset = 0, block++;
    }
    p->position += LANES;
}

/* `n` queries of one KV head of one sequence, from number `from` on: those of its first row's
 * heads, then the next row's. Softmax over tiles of 16 positions with a running maximum (Milakov and
 * Gimelshein, 2018; Dao et al., 2022). Tiles lie at multiples of 16 and what a query may not see
 * adds an exact zero, so it does not matter which queries go together. */
INLINE void attend_few(const struct attention *a, const int64_t *span, int64_t kv_head, int64_t from,
                       const int n, const int bf16) {
    const ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const struct step *s = a->step;
    const struct layer *l = a->layer;
    const int64_t dim = l->dim, group = l->heads / l->kv_heads, width = l->heads + 2 * l->kv_heads;
    float q[QUERIES][MAX_DIM], seen[QUERIES][MAX_DIM], weights[QUERIES][LANES], most[LANES];
    floats scores[QUERIES][LANES], total[QUERIES];
    int64_t first[QUERIES], last[QUERIES], to[QUERIES];
    store(most, 0, all(-__builtin_inff()), 0);
    for (int g = 0; g < n; g++) {
        int64_t row = span[0] + (from + g) / group, head = kv_head * group + (from + g) % group;
        last[g] = span[2] - span[1] + (from + g) / group;
        first[g] = l->window && last[g] >= l->window ? last[g] + 1 - l->window : 0;
        to[g] = (row * l->heads + head) * dim;
        total[g] = all(0.0f);
        for (int64_t i = 0; i < dim; i += LANES) {
            store(q[g], i, load(a->qkv, (row * width + head) * dim + i, bf16), 0);
            store(seen[g], i, all(0.0f), 0);
        }
    }
    struct places places = {s->blocks + span[3], l->kv_heads, kv_head, s->block_size, dim,
                            first[0] / LANES * LANES, last[n - 1]};
    int64_t ahead[LANES], kept[LANES], next_head[LANES];
    next_tile(&places, ahead);
    for (int j = 0; j < LANES; j++) next_head[j] = ahead[j] + s->block_size * dim;
    for (int64_t tile = first[0] / LANES * LANES; tile <= last[n - 1]; tile += LANES) {
        __builtin_memcpy(kept, ahead, sizeof kept);
        if (tile + LANES <= last[n - 1]) next_tile(&places, ahead);
        else __builtin_memcpy(ahead, next_head, sizeof ahead); /* often what comes next */
        for (int j = 0; j < LANES; j++) {
            floats part[QUERIES];
            for (int g = 0; g < n; g++) part[g] = all(0.0f);
            for (int64_t i = 0; i < dim; i += bf16 ? 32 : 16) { /* lines of 64 bytes */
                __builtin_prefetch(at(l->keys, ahead[j] + i, bf16));
                __builtin_prefetch(at(l->values, ahead[j] + i, bf16));
            }
            for (int64_t i = 0; i < dim; i += LANES) {
                floats key = load(l->keys, kept[j] + i, bf16);
                for (int g = 0; g < n; g++) part[g] += key * load(q[g], i, 0);
            }
            for (int g = 0; g < n; g++) scores[g][j] = part[g];
        }
        float now[LANES];
        int is_new = 0;
        store(now, 0, load(most, 0, 0), 0);
        for (int g = 0; g < n; g++) {
            ints is_seen = (lanes + (int32_t)tile >= (int32_t)first[g])
                         & (lanes + (int32_t)tile <= (int32_t)last[g]);
            scores[g][0] = pick(is_seen, sums(scores[g]), all(-__builtin_inff()));
            float highest = largest(scores[g][0]);
            is_new |= highest > most[g];
            now[g] = highest > most[g] ? highest : most[g];
        }
        if (is_new) { /* what was added up so far shrinks; by exactly 1 where nothing is new */
            floats before = load(most, 0, 0), after = load(now, 0, 0);
            float shrink[LANES];
            store(shrink, 0, pick(after > before, exponential(before - after), all(1.0f)), 0);
            store(most, 0, after, 0);
            for (int g = 0; g < n; g++) {
                total[g] *= shrink[g];
                for (int64_t i = 0; i < dim; i += LANES)
                    store(seen[g], i, load(seen[g], i, 0) * shrink[g], 0);
            }
        }
        for (int g = 0; g < n; g++) {
            floats weight = exponential(scores[g][0] - most[g]);
            weight = pick(scores[g][0] > -__builtin_inff(), weight, all(0.0f));
            total[g] += weight;
            store(weights[g], 0, weight, 0);
        }
        for (int64_t i = 0; i < dim; i += LANES) {
            floats part[QUERIES];
            for (int g = 0; g < n; g++) part[g] = load(seen[g], i, 0);
            for (int j = 0; j < LANES; j++) {
                floats value = load(l->values, kept[j] + i, bf16);
                for (int g = 0; g < n; g++) part[g] += value * weights[g][j];
            }
            for (int g = 0; g < n; g++) store(seen[g], i, part[g], 0);
        }
    }
    for (int g = 0; g < n; g++) {
        float share = 1.0f / sum(total[g]);
        for (int64_t i = 0; i < dim; i += LANES)
            store(a->out, to[g] + i, load(seen[g], i, 0) * share, bf16);
    }
}

/* The compiler makes a form of its own for each number of queries, so that sums stay in registers. */
#define FORMS(n)                                                          \
    case n:                                                               \
        if (a->layer->bf16) { attend_few(a, span, kv_head, from, n, 1); } \
        else { attend_few(a, span, kv_head, from, n, 0); }                \
        break;

static void attend_some(const struct attention *a, const int64_t *span, int64_t kv_head, int64_t from,
                        int64_t n) {
    switch (n) { FORMS(1) FORMS(2) FORMS(3) FORMS(4) FORMS(5) FORMS(6) FORMS(7) default: FORMS(8) }
}

static void attend_work(const void *what, int64_t first, int64_t last) {
    const struct attention *a = what;
    int64_t group = a->layer->heads / a->layer->kv_heads;
    for (int64_t item = first; item < last; item++) {
        int64_t low = 0, high = a->step->num_spans; /* first_item[low] <= item < first_item[high] */
        while (high - low > 1) {
            int64_t middle = (low + high) / 2;
            if (a->first_item[middle] <= item) low = middle;
            else high = middle;
        }
        const int64_t *span = a->step->spans + 4 * low;
        int64_t queries = span[1] * group, place = item - a->first_item[low];
        int64_t kv_head = place % a->layer->kv_heads, from = place / a->layer->kv_heads * QUERIES;
        int64_t n = queries - from < QUERIES ? queries - from : QUERIES;
        attend_some(a, span, kv_head, from, n);
    }
}

/* Norm and rotate q and k, keep k and v, attend; q is scaled in place. */
void attend(const struct step *step, const struct layer *layer, void *qkv, void *out) {
    int64_t first_item[step->num_spans + 1], numbers = 0, group = layer->heads / layer->kv_heads;
    first_item[0] = 0;
    for (int64_t i = 0; i < step->num_spans; i++) {
        const int64_t *span = step->spans + 4 * i;
        int64_t pieces = (span[1] * group + QUERIES - 1) / QUERIES;
        first_item[i + 1] = first_item[i] + pieces * layer->kv_heads;
        numbers += span[1] * span[2] * layer->heads * layer->dim;
    }
    struct attention a = {step, layer, qkv, out, first_item};
    int64_t width = (layer->heads + 2 * layer->kv_heads) * layer->dim;
    run((struct job){rotate_work, &a, step->rows, 4, 0}, step->rows * width);
    run((struct job){attend_work, &a, first_item[step->num_spans], 1, 0}, numbers / 4);
}
