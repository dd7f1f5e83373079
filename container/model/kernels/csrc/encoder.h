/* All encoder layers of a BERT-family model (encoder_layer.py has the formula), for unpadded,
 * concatenated texts. */

#pragma once
#include "gemm.h"
#include "elementwise.h"
#include "varlen_attention.h"

#define ENCODER_PHASES 7

struct encoder_layer {
    struct weight qkv, dense, up, down;
    const void *norms[2], *biases[2]; /* [hidden] */
    float eps[2];
};

struct encoder {
    const int64_t *starts;  /* [num_texts + 1]: the first row of each, and the end of the last */
    const struct encoder_layer *layers;
    struct phase *phases;   /* [ENCODER_PHASES * num_layers], any content */
    void *x;                /* [rows, hidden], in and out */
    void *qkv, *attn_out, *up;  /* inputs and outputs of the GEMMs, [rows, ...] */
    int64_t num_texts, num_layers, hidden, heads, dim;
    float scale;
    int bf16;
};

struct encoding {
    const struct encoder *encoder;
    const struct varlen *varlen;
};

static void multiplied_texts(struct worker *worker, const struct encoder *e, const struct weight *weight,
                             const void *x, const void *add, void *out, int act) {
    struct gemm p = {weight, x, add, out, e->starts[e->num_texts], e->bf16, 0, act};
    product_task(worker, &p);
}

static void encoder_task(struct worker *worker, const void *args) {
    const struct encoding *encoding = args;
    const struct encoder *e = encoding->encoder;
    for (int64_t i = 0; i < e->num_layers; i++) {
        const struct encoder_layer *l = e->layers + i;
        struct layer_norm norms[2];
        for (int k = 0; k < 2; k++)
            norms[k] = (struct layer_norm){e->x, l->norms[k], l->biases[k], e->starts[e->num_texts],
                                           e->hidden, l->eps[k], e->bf16};
        multiplied_texts(worker, e, &l->qkv, e->x, 0, e->qkv, 0);
        texts_task(worker, encoding->varlen);
        multiplied_texts(worker, e, &l->dense, e->attn_out, e->x, e->x, 0);
        layer_norm_task(worker, norms);
        multiplied_texts(worker, e, &l->up, e->x, 0, e->up, 1);
        multiplied_texts(worker, e, &l->down, e->up, e->x, e->x, 0);
        layer_norm_task(worker, norms + 1);
    }
}

void encode(const struct encoder *encoder) {
    const struct encoder *e = encoder;
    int64_t first_item[e->num_texts + 1];
    struct varlen varlen = {e->qkv, e->attn_out, e->starts, first_item, e->num_texts, e->heads, e->dim,
                          e->scale, e->bf16};
    struct encoding encoding = {encoder, &varlen};
    first_item[0] = 0;
    for (int64_t i = 0; i < e->num_texts; i++) {
        int64_t rows = e->starts[i + 1] - e->starts[i], many = rows_together(rows);
        int64_t pieces = (rows + many - 1) / many;
        first_item[i + 1] = first_item[i] + pieces * e->heads;
    }
    __builtin_memset(e->phases, 0, (uint64_t)(e->num_layers * ENCODER_PHASES) * sizeof(struct phase));
    int64_t rows = e->starts[e->num_texts], widest = num_items(&e->layers->up, rows);
    int64_t work = gemm_cost(&e->layers->qkv, rows) + 2 * gemm_cost(&e->layers->up, rows);
    run_parallel(encoder_task, &encoding, e->phases, work, widest);
}

/* Bytes of a layer's phases; the caller allocates them. */
int64_t encoder_phases(void) { return ENCODER_PHASES * (int64_t)sizeof(struct phase); }
