/* A step's attention: its decodes and prompts, divided among the threads. */

#pragma once
#include "prompt_attention.h"

/* Whether a span is a prompt's and takes attend_prompt. With AVX-512 all take attend_few, so that a token
 * has the same bits whether it was decoded or computed again within a prompt. */
INLINE int is_tiled(const struct step *step, int64_t number) {
    return LANES < 16 && number >= step->num_decodes;
}

INLINE int64_t queries_together(const struct step *step, int64_t number) {
    return is_tiled(step, number) ? PROMPT_QUERIES : QUERIES;
}

static void attend_work(const void *args, int64_t first, int64_t last, int64_t ahead) {
    (void)ahead;
    const struct attention *a = args;
    int64_t group = a->layer->heads / a->layer->kv_heads;
    for (int64_t item = first; item < last; item++) {
        int64_t number = owner_of(item, a->first_item, a->step->num_spans);
        const int64_t *span = a->step->spans + 4 * number;
        int64_t queries = span[1] * group, place = item - a->first_item[number];
        int64_t most = queries_together(a->step, number);
        int64_t kv_head = place % a->layer->kv_heads, from = place / a->layer->kv_heads * most;
        int64_t n = queries - from < most ? queries - from : most;
        if (is_tiled(a->step, number)) attend_prompt_rows(a, span, kv_head, from, n);
        else attend_some(a, span, kv_head, from, n);
    }
}

#define ATTENTION_PHASES 2

/* Return the number of items of a step's attention; write each span's first item, and the work. */
static int64_t lay_out(const struct step *step, const struct layer *layer, int64_t *first_item,
                       int64_t *work) {
    int64_t group = layer->heads / layer->kv_heads, numbers = 0;
    first_item[0] = 0;
    for (int64_t i = 0; i < step->num_spans; i++) {
        const int64_t *span = step->spans + 4 * i;
        int64_t most = queries_together(step, i), pieces = (span[1] * group + most - 1) / most;
        first_item[i + 1] = first_item[i] + pieces * layer->kv_heads;
        numbers += span[1] * span[2] * layer->heads * layer->dim;
    }
    *work = numbers / 4 + step->rows * (layer->heads + 2 * layer->kv_heads) * layer->dim;
    return first_item[step->num_spans];
}

/* Apply RMSNorm and RoPE to q and k, store k and v, attend; q is scaled in place. */
static void attention_task(struct worker *worker, const void *args) {
    const struct attention *a = args;
    run_phase(worker, rotate_work, a, a->step->rows, 4, 0);
    run_phase(worker, attend_work, a, a->first_item[a->step->num_spans], 1, 0);
}

void attend(const struct step *step, const struct layer *layer, void *qkv, void *out) {
    int64_t first_item[step->num_spans + 1], work;
    struct attention a = {step, layer, qkv, out, first_item};
    struct phase phases[ATTENTION_PHASES] = {{0}};
    int64_t items = lay_out(step, layer, first_item, &work), rows = step->rows / 4;
    run_parallel(attention_task, &a, phases, work, items > rows ? items : rows);
}
