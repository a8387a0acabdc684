/* The update rule in one pass over memory:
 *
 *     m = μ m + (1-μ) g
 *     θ = (1 - ηλ) θ ;  θ = θ - η s m
 *
 * A block is rows × cols entries, cut into groups of up to 32 along its rows. Groups are
 * the unit of work and, for low-bit momentum, the entries that share a momentum scale.
 * Arithmetic is in float32 (float64 for float64 blocks) with one rounding at the store.
 */
#include "storage.h"

enum { AHEAD = 16 };
enum param_kind { P_FLOAT32, P_BFLOAT16, P_FLOAT64 };
enum momentum_kind { M_NONE, M_FLOAT32, M_BFLOAT16, M_FLOAT64, M_INT8, M_INT4 };

/* One row of the table; its layout is repeated in cpu.py. */
struct block {
    void *param;
    const void *grad;
    void *momentum;
    uint16_t *momentum_scale;
    const float *scale;
    const int32_t *seed; /* NULL: round to nearest */
    int64_t rows, cols;
    int64_t param_kind, momentum_kind;
};

/* m = base + weight (g - m), where base is m, or g with a weight below zero. */
struct rule {
    double weight, shrink, lr; /* lr carries the sign of the step */
    int64_t from_grad, forgets;
};

/* The rule for one block in float32. */
struct numbers {
    float weight, shrink, step;
    int from_grad, forgets;
    uint32_t seed;
};

/* Groups that lie one behind the other in memory. */
struct run {
    void *param;
    const void *grad;
    void *momentum;
    uint16_t *scales;
    uint32_t index; /* of its first entry in the block */
    int64_t num_groups;
};

INLINE int is_coded(int64_t kind) { return kind == M_INT8 || kind == M_INT4; }

/* Without codes, groups run on from row to row. */
INLINE int64_t num_rows(const struct block *b) {
    return is_coded(b->momentum_kind) ? b->rows : 1;
}

INLINE int64_t num_cols(const struct block *b) {
    return is_coded(b->momentum_kind) ? b->cols : b->rows * b->cols;
}

INLINE int64_t groups_per_row(const struct block *b) {
    return (num_cols(b) + GROUP - 1) / GROUP;
}

INLINE int64_t param_bytes(const struct block *b, int64_t entries) {
    return entries * (b->param_kind == P_BFLOAT16 ? 2 : 4);
}

INLINE int64_t momentum_bytes(int64_t kind, int64_t entries) {
    switch (kind) {
    case M_NONE: return 0;
    case M_INT4: return (entries + 1) / 2;
    case M_INT8: return entries;
    case M_BFLOAT16: return entries * 2;
    default: return entries * 4;
    }
}

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define MULTIPLY_ADD(a, b, c) fmaf(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

INLINE float average(float old, float grad, struct numbers n) {
    if (n.forgets)
        return grad;
    return MULTIPLY_ADD(n.weight, grad - old, n.from_grad ? grad : old);
}

static void update_float64(const struct block *b, const struct rule *r, int64_t first,
                           int64_t last) {
    double *param = b->param, *momentum = b->momentum;
    const double *grad = b->grad;
    double step = r->lr * *b->scale;
    for (int64_t i = first; i < last; ++i) {
        double m = grad[i];
        if (momentum && !r->forgets)
            m = (r->from_grad ? m : momentum[i]) + r->weight * (m - momentum[i]);
        if (momentum)
            momentum[i] = m;
        param[i] = param[i] * r->shrink + step * m;
    }
}

/* Ask for the bytes of the group that is AHEAD of group u: the processor by itself does
 * not reach as far, and would wait for memory between the groups. */
INLINE void prefetch(const void *stored, int64_t u, int64_t group_bytes) {
    const char *group = (const char *)stored + (u + AHEAD) * group_bytes;
    for (int64_t line = 0; line < group_bytes; line += 64)
        __builtin_prefetch(group + line);
}

/* Update whole groups. Constant kinds make this a function of its own for each. */
INLINE void update_groups(struct run run, struct numbers k, int p16, int kind,
                          int stochastic) {
    float m[GROUP], p[GROUP], g[GROUP], max_code = kind == M_INT8 ? 127.0f : 7.0f;
    uint32_t noise[GROUP], high[GROUP];
    int32_t codes[GROUP];
    for (int64_t u = 0; u < run.num_groups; ++u) {
        for (int i = 0; i < GROUP; ++i) {
            noise[i] = stochastic ? mix((run.index + (uint32_t)i) ^ k.seed) : 0;
            high[i] = noise[i] >> 16;
        }
        prefetch(run.param, u, GROUP * (p16 ? 2 : 4));
        prefetch(run.grad, u, GROUP * (p16 ? 2 : 4));
        prefetch(run.momentum, u, momentum_bytes(kind, GROUP));
        load(p, run.param, u * GROUP, p16);
        load(g, run.grad, u * GROUP, p16);
        if (is_coded(kind)) {
            unpack(codes, run.momentum, u * GROUP, kind == M_INT4);
            decode(m, codes, run.scales[u]);
        } else if (kind != M_NONE) {
            load(m, run.momentum, u * GROUP, kind == M_BFLOAT16);
        }
        for (int i = 0; i < GROUP; ++i) {
            m[i] = kind == M_NONE ? g[i] : average(m[i], g[i], k);
            p[i] = MULTIPLY_ADD(k.step, m[i], p[i] * k.shrink);
        }
        store(run.param, p, noise, u * GROUP, p16, stochastic);
        if (is_coded(kind)) {
            run.scales[u] = encode(codes, m, high, max_code, stochastic);
            pack(run.momentum, codes, u * GROUP, kind == M_INT4);
        } else if (kind != M_NONE) {
            store(run.momentum, m, high, u * GROUP, kind == M_BFLOAT16, stochastic);
        }
        run.index += GROUP;
    }
}

#define CASES(kind)                                                                     \
    do {                                                                                \
        if (b->param_kind == P_BFLOAT16)                                                \
            b->seed ? update_groups(run, k, 1, kind, 1)                                 \
                    : update_groups(run, k, 1, kind, 0);                                \
        else                                                                            \
            b->seed ? update_groups(run, k, 0, kind, 1)                                 \
                    : update_groups(run, k, 0, kind, 0);                                \
        return;                                                                         \
    } while (0)

static __attribute__((noinline)) void update_run(const struct block *b,
                                                 struct numbers k, struct run run) {
    switch (b->momentum_kind) {
    case M_NONE: CASES(M_NONE);
    case M_FLOAT32: CASES(M_FLOAT32);
    case M_BFLOAT16: CASES(M_BFLOAT16);
    case M_INT8: CASES(M_INT8);
    case M_INT4: CASES(M_INT4);
    }
}

/* Update a group of n < GROUP entries in copies that are filled up with zeros. */
static void update_tail(const struct block *b, struct numbers k, struct run run,
                        int64_t n) {
    float param[GROUP] = {0}, grad[GROUP] = {0}, momentum[GROUP] = {0};
    struct run copy = {param, grad, momentum, run.scales, run.index, 1};
    size_t size = (size_t)param_bytes(b, n);
    size_t held = (size_t)momentum_bytes(b->momentum_kind, n);
    memcpy(param, run.param, size);
    memcpy(grad, run.grad, size);
    if (held > 0)
        memcpy(momentum, run.momentum, held);
    update_run(b, k, copy);
    memcpy(run.param, param, size);
    if (held > 0)
        memcpy(run.momentum, momentum, held);
}

/* Update groups first … last-1 of a block. */
static void update_block(const struct block *b, const struct rule *r, int64_t first,
                         int64_t last) {
    struct numbers k = {(float)r->weight, (float)r->shrink, (float)r->lr * *b->scale,
                        r->from_grad != 0, r->forgets != 0,
                        b->seed ? mix((uint32_t)*b->seed) : 0};
    int64_t cols = num_cols(b), groups = groups_per_row(b), rest = cols % GROUP;
    int64_t row_bytes = momentum_bytes(b->momentum_kind, cols);
    while (first < last) {
        int64_t row = first / groups, col = first % groups * GROUP;
        int64_t start = row * cols + col;
        int64_t held = row * row_bytes + momentum_bytes(b->momentum_kind, col);
        struct run run = {(char *)b->param + param_bytes(b, start),
                          (const char *)b->grad + param_bytes(b, start),
                          b->momentum ? (char *)b->momentum + held : NULL,
                          b->momentum_scale ? b->momentum_scale + first : NULL,
                          (uint32_t)start, last - first};
        if (rest > 0 && run.num_groups > (cols - col) / GROUP)
            run.num_groups = (cols - col) / GROUP;
        if (run.num_groups > 0)
            update_run(b, k, run);
        else
            update_tail(b, k, run, rest);
        first += run.num_groups > 0 ? run.num_groups : 1;
    }
}

/* Update groups first … last-1 of all blocks together. */
static void update_share(const struct block *blocks, int64_t num_blocks,
                         const struct rule *rule, int64_t first, int64_t last) {
    for (int64_t i = 0; i < num_blocks && last > 0; ++i) {
        const struct block *b = &blocks[i];
        int64_t groups = num_rows(b) * groups_per_row(b), numel = b->rows * b->cols;
        int64_t from = first > 0 ? first : 0, to = last < groups ? last : groups;
        if (from < to && b->param_kind == P_FLOAT64)
            update_float64(b, rule, from * GROUP,
                           to * GROUP < numel ? to * GROUP : numel);
        else if (from < to)
            update_block(b, rule, from, to);
        first -= groups;
        last -= groups;
    }
}

/* Update all blocks, each thread an equal run of consecutive groups. */
void saiopt_update(const struct block *blocks, int64_t num_blocks,
                   const struct rule *rule, int num_threads) {
    int64_t total = 0;
    for (int64_t i = 0; i < num_blocks; ++i)
        total += num_rows(&blocks[i]) * groups_per_row(&blocks[i]);
#pragma omp parallel for num_threads(num_threads) schedule(static, 1)
    for (int t = 0; t < num_threads; ++t)
        update_share(blocks, num_blocks, rule, total * t / num_threads,
                     total * (t + 1) / num_threads);
}
