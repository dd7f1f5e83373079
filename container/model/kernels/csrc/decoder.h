/* All decoder layers of a Llama-family model (decoder_layer.py has the formula) in one run of the thread
 * pool. Computes, and rounds, exactly as the single functions do. */

#pragma once
#include "attention_task.h"
#include "gemm.h"
#include "elementwise.h"

#define LAYER_PHASES (4 + ATTENTION_PHASES + 3)

struct decoder_layer {
    const void *norms[2]; /* [hidden] */
    float eps[2];
    struct weight qkv, o, gate_up, down;
    struct layer attention;
};

struct decoder {
    const struct step *step;
    const struct decoder_layer *layers;
    struct phase *phases; /* [LAYER_PHASES * num_layers], any content */
    void *x;              /* [rows, hidden], in and out */
    void *normed;         /* [rows, hidden] */
    void *qkv, *attn_out, *gate_up, *gated; /* inputs and outputs of the GEMMs, [rows, ...] */
    int64_t num_layers, hidden;
    int bf16;
};

struct stack {
    const struct decoder *decoder;
    const int64_t *first_item;
};

static void normed(struct worker *worker, const struct decoder *d, const struct decoder_layer *l, int which) {
    struct norm n = {0, l->norms[which], d->x, d->normed, d->step->rows, d->hidden, l->eps[which], d->bf16};
    norm_task(worker, &n);
}

static void multiplied(struct worker *worker, const struct decoder *d, const struct weight *weight,
                       const void *x, const void *add, void *out) {
    struct gemm p = {weight, x, add, out, d->step->rows, d->bf16, 0, 0};
    product_task(worker, &p);
}

static void decoder_task(struct worker *worker, const void *args) {
    const struct stack *stack = args;
    const struct decoder *d = stack->decoder;
    for (int64_t i = 0; i < d->num_layers; i++) {
        const struct decoder_layer *l = d->layers + i;
        struct attention a = {d->step, &l->attention, d->qkv, d->attn_out, stack->first_item};
        struct gated g = {d->gate_up, d->gated, d->step->rows, l->down.inputs, d->bf16};
        normed(worker, d, l, 0);
        multiplied(worker, d, &l->qkv, d->normed, 0, d->qkv);
        attention_task(worker, &a);
        multiplied(worker, d, &l->o, d->attn_out, d->x, d->x);
        normed(worker, d, l, 1);
        multiplied(worker, d, &l->gate_up, d->normed, 0, d->gate_up);
        gated_task(worker, &g);
        multiplied(worker, d, &l->down, d->gated, d->x, d->x);
    }
}

/* Clear the attention output of padding rows, which come last and attend to nothing. */
static void clear_padding(const struct decoder *d) {
    const struct step *s = d->step;
    const int64_t *span = s->spans + 4 * (s->num_spans - 1), first = span[0] + span[1];
    int64_t width = d->layers->attention.heads * d->layers->attention.dim;
    for (int64_t i = first * width; i < s->rows * width; i += LANES) store(d->attn_out, i, all(0.0f), d->bf16);
}

void decode(const struct decoder *decoder) {
    int64_t first_item[decoder->step->num_spans + 1], work;
    struct stack stack = {decoder, first_item};
    int64_t items = lay_out(decoder->step, &decoder->layers->attention, first_item, &work);
    int64_t widest = num_items(&decoder->layers->gate_up, decoder->step->rows);
    clear_padding(decoder);
    __builtin_memset(decoder->phases, 0,
                     (uint64_t)(decoder->num_layers * LAYER_PHASES) * sizeof(struct phase));
    const struct decoder_layer *l = decoder->layers;
    int64_t rows = decoder->step->rows;
    work += gemm_cost(&l->qkv, rows) + gemm_cost(&l->o, rows) + gemm_cost(&l->gate_up, rows)
          + gemm_cost(&l->down, rows);
    run_parallel(decoder_task, &stack, decoder->phases, work, items > widest ? items : widest);
}

/* Bytes of a layer's phases; the caller allocates them. */
int64_t decoder_phases(void) { return LAYER_PHASES * (int64_t)sizeof(struct phase); }
