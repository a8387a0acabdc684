/* The update rule in one pass over memory:
 *
 *     m = μ m + (1-μ) g
 *     θ = (1 - ηλ) θ ;  θ = θ - η s m          s = scale · row_scale · column_scale
 *
 * or, to look ahead, the first line and
 *
 *     target = μ m + (1-μ) g
 *
 * which stands in θ's place below.
 *
 * A block is rows × cols entries, cut into groups of up to 32 along its rows. Groups are
 * the unit of work and, for low-bit momentum, the entries that share a momentum scale.
 * Entries that do not lie in memory as they read are found by a map of the columns, and
 * worked on in copies of a group. Arithmetic is in float32 (float64 for float64 blocks) with one rounding at the store.
 */
#include "storage.h"

enum { AHEAD = 16 };
enum param_kind { P_FLOAT32, P_BFLOAT16, P_FLOAT64 };
enum momentum_kind { M_NONE, M_FLOAT32, M_BFLOAT16, M_FLOAT64, M_INT8, M_INT4 };

/* One row of the table; its layout is repeated in cpu.py. */
struct block {
    void *param; /* the target, to look ahead */
    void *momentum;
    uint16_t *momentum_scale;
    const float *scale;        /* NULL: no block */
    const float *row_scale;    /* NULL: 1 */
    const float *column_scale; /* NULL: 1 */
    int32_t *seed;             /* NULL: round to nearest */
    /* Where the columns of a row lie; NULL: one behind the other. */
    const int64_t *param_map, *grad_map, *momentum_map;
    int64_t param_stride, grad_stride, momentum_stride; /* from row to row */
    int64_t rows, cols;
    int64_t start, pitch; /* of the indices that make noise */
    int64_t by_rows;      /* whether groups end with the rows */
    int64_t gathers;      /* whether entries do not lie as they read */
    int64_t param_kind, grad_kind, momentum_kind;
    float expected; /* what the scale was when the table was made */
};

/* m = base + weight (g - m), where base is m, or g with a weight below zero. */
struct rule {
    double weight, shrink, lr; /* lr carries the sign of the step */
    int64_t from_grad, forgets, looks_ahead;
};

/* The rule for one row in float32. */
struct numbers {
    float weight, shrink, step;
    const float *columns; /* factors on the step, NULL: 1 */
    int from_grad, forgets, looks_ahead;
    uint32_t seed, last_seed; /* hashed: of this step's noise, and of the last one's */
};

/* Groups that lie one behind the other in memory. */
struct run {
    void *param;
    const void *grad;
    void *momentum;
    uint16_t *scales;
    uint32_t index; /* of its first entry in the whole block */
    int64_t num_groups;
};

INLINE int is_coded(int64_t kind) { return kind == M_INT8 || kind == M_INT4; }

/* Where they need not end with the rows, groups run on from row to row. */
INLINE int64_t num_rows(const struct block *b) { return b->by_rows ? b->rows : 1; }

INLINE int64_t num_cols(const struct block *b) {
    return b->by_rows ? b->cols : b->rows * b->cols;
}

INLINE int64_t groups_per_row(const struct block *b) {
    return (num_cols(b) + GROUP - 1) / GROUP;
}

INLINE int64_t float_bytes(int bfloat16, int64_t entries) {
    return entries * (bfloat16 ? 2 : 4);
}

/* Where an entry lies, in entries from the first. */
INLINE int64_t place(const int64_t *map, int64_t stride, int64_t row, int64_t col) {
    return row * stride + (map ? map[col] : col);
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

static void update_float64(const struct block *b, const void *gradient,
                           const struct rule *r, int64_t first, int64_t last) {
    double *param = b->param, *momentum = b->momentum;
    const double *grad = gradient;
    double base = r->lr * *b->scale;
    for (int64_t i = first; i < last; ++i) {
        int64_t row = b->by_rows ? i / b->cols : 0, col = b->by_rows ? i % b->cols : i;
        int64_t at = place(b->param_map, b->param_stride, row, col);
        int64_t held = place(b->momentum_map, b->momentum_stride, row, col);
        double m = grad[place(b->grad_map, b->grad_stride, row, col)], step = base;
        if (b->row_scale)
            step *= b->row_scale[row];
        if (b->column_scale)
            step *= b->column_scale[col];
        if (momentum && !r->forgets)
            m = (r->from_grad ? m : momentum[held]) + r->weight * (m - momentum[held]);
        if (momentum)
            momentum[held] = m;
        param[at] = param[at] * r->shrink + step * m;
    }
}

/* Ask for the bytes of the group that is AHEAD of group u: the processor by itself does
 * not reach as far, and would wait for memory between the groups. */
INLINE void prefetch(const void *stored, int64_t u, int64_t group_bytes) {
    const char *group = (const char *)stored + (u + AHEAD) * group_bytes;
    for (int64_t line = 0; line < group_bytes; line += 64)
        __builtin_prefetch(group + line);
}

/* Update whole groups. Constants make this a function of its own for each. */
INLINE void update_groups(struct run run, struct numbers k, int p16, int g16, int kind,
                          int stochastic, int ahead) {
    float m[GROUP], p[GROUP], g[GROUP];
    float max_code = kind == M_INT8 ? 127.0f : 7.0f;
    uint32_t noise[GROUP], high[GROUP], dither[GROUP], last_dither[GROUP];
    int32_t codes[GROUP];
    for (int64_t u = 0; u < run.num_groups; ++u) {
        for (int i = 0; i < GROUP; ++i) {
            noise[i] = stochastic ? mix((run.index + (uint32_t)i) ^ k.seed) : 0;
            high[i] = noise[i] >> 16;
        }
        for (int i = 0; i < GROUP && is_coded(kind); ++i) {
            uint32_t spread = run.index * GOLDEN + (uint32_t)i * GOLDEN;
            dither[i] = stochastic ? dither_of(spread, k.seed) : 0;
            last_dither[i] = stochastic ? dither_of(spread, k.last_seed) : 0;
        }
        if (!ahead)
            prefetch(run.param, u, float_bytes(p16, GROUP));
        prefetch(run.grad, u, float_bytes(g16, GROUP));
        prefetch(run.momentum, u, momentum_bytes(kind, GROUP));
        if (!ahead)
            load(p, run.param, u * GROUP, p16);
        load(g, run.grad, u * GROUP, g16);
        if (is_coded(kind)) {
            unpack(codes, run.momentum, u * GROUP, kind == M_INT4);
            decode(m, codes, run.scales[u], last_dither, (int32_t)max_code, stochastic);
        } else if (kind != M_NONE) {
            load(m, run.momentum, u * GROUP, kind == M_BFLOAT16);
        }
        for (int i = 0; i < GROUP; ++i)
            m[i] = kind == M_NONE ? g[i] : average(m[i], g[i], k);
        if (ahead) {
            for (int i = 0; i < GROUP; ++i)
                p[i] = kind == M_NONE ? g[i] : average(m[i], g[i], k);
        } else if (k.columns) {
            const float *columns = k.columns + u * GROUP;
            for (int i = 0; i < GROUP; ++i)
                p[i] = MULTIPLY_ADD(k.step * columns[i], m[i], p[i] * k.shrink);
        } else {
            for (int i = 0; i < GROUP; ++i)
                p[i] = MULTIPLY_ADD(k.step, m[i], p[i] * k.shrink);
        }
        store(run.param, p, noise, u * GROUP, p16, stochastic);
        if (is_coded(kind)) {
            run.scales[u] = encode(codes, m, dither, max_code, stochastic);
            pack(run.momentum, codes, u * GROUP, kind == M_INT4);
        } else if (kind != M_NONE) {
            store(run.momentum, m, high, u * GROUP, kind == M_BFLOAT16, stochastic);
        }
        run.index += GROUP;
    }
}

#define STEP(kind, stochastic)                                                          \
    (b->grad_kind == P_BFLOAT16 ? update_groups(run, k, 1, 1, kind, stochastic, 0)      \
                                : update_groups(run, k, 0, 0, kind, stochastic, 0))
#define LOOK(kind, stochastic)                                                          \
    (b->grad_kind == P_BFLOAT16 ? update_groups(run, k, 0, 1, kind, stochastic, 1)      \
                                : update_groups(run, k, 0, 0, kind, stochastic, 1))
#define EITHER(how, kind) (b->seed ? how(kind, 1) : how(kind, 0))

static __attribute__((noinline)) void step_run(const struct block *b, struct numbers k,
                                               struct run run) {
    switch (b->momentum_kind) {
    case M_NONE: EITHER(STEP, M_NONE); return;
    case M_FLOAT32: EITHER(STEP, M_FLOAT32); return;
    case M_BFLOAT16: EITHER(STEP, M_BFLOAT16); return;
    case M_INT8: EITHER(STEP, M_INT8); return;
    case M_INT4: EITHER(STEP, M_INT4); return;
    }
}

/* Only the momentum rounds. */
static __attribute__((noinline)) void look_run(const struct block *b, struct numbers k,
                                               struct run run) {
    switch (b->momentum_kind) {
    case M_NONE: LOOK(M_NONE, 0); return;
    case M_FLOAT32: LOOK(M_FLOAT32, 0); return;
    case M_BFLOAT16: EITHER(LOOK, M_BFLOAT16); return;
    case M_INT8: EITHER(LOOK, M_INT8); return;
    case M_INT4: EITHER(LOOK, M_INT4); return;
    }
}

INLINE void update_run(const struct block *b, struct numbers k, struct run run) {
    k.looks_ahead ? look_run(b, k, run) : step_run(b, k, run);
}

INLINE void gather(void *restrict copy, const void *restrict stored, int two_bytes,
                   const int64_t *restrict map, int64_t stride, int64_t row, int64_t col,
                   int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        int64_t at = place(map, stride, row, col + i);
        if (two_bytes)
            ((uint16_t *)copy)[i] = ((const uint16_t *)stored)[at];
        else
            ((uint32_t *)copy)[i] = ((const uint32_t *)stored)[at];
    }
}

INLINE void scatter(void *restrict stored, const void *restrict copy, int two_bytes,
                    const int64_t *restrict map, int64_t stride, int64_t row,
                    int64_t col, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        int64_t at = place(map, stride, row, col + i);
        if (two_bytes)
            ((uint16_t *)stored)[at] = ((const uint16_t *)copy)[i];
        else
            ((uint32_t *)stored)[at] = ((const uint32_t *)copy)[i];
    }
}

/* Update a group of n entries, in copies that are filled up with zeros. */
static void update_copies(const struct block *b, const void *grad, struct numbers k,
                          uint16_t *scales, int64_t row, int64_t col, int64_t n) {
    float p[GROUP] = {0}, g[GROUP] = {0}, m[GROUP] = {0}, columns[GROUP] = {0};
    int p16 = b->param_kind == P_BFLOAT16, g16 = b->grad_kind == P_BFLOAT16;
    int m16 = b->momentum_kind == M_BFLOAT16;
    int64_t cols = num_cols(b), kind = b->momentum_kind;
    int64_t codes = row * momentum_bytes(kind, cols) + momentum_bytes(kind, col);
    size_t held = is_coded(kind) ? (size_t)momentum_bytes(kind, n) : 0;
    uint32_t index = (uint32_t)(b->start + row * b->pitch + col);
    struct run copy = {p, g, m, scales, index, 1};
    if (!k.looks_ahead)
        gather(p, b->param, p16, b->param_map, b->param_stride, row, col, n);
    gather(g, grad, g16, b->grad_map, b->grad_stride, row, col, n);
    if (held > 0)
        memcpy(m, (char *)b->momentum + codes, held);
    else if (kind != M_NONE)
        gather(m, b->momentum, m16, b->momentum_map, b->momentum_stride, row, col, n);
    if (k.columns) {
        memcpy(columns, k.columns, (size_t)n * sizeof *columns);
        k.columns = columns;
    }
    update_run(b, k, copy);
    scatter(b->param, p, p16, b->param_map, b->param_stride, row, col, n);
    if (held > 0)
        memcpy((char *)b->momentum + codes, m, held);
    else if (kind != M_NONE)
        scatter(b->momentum, m, m16, b->momentum_map, b->momentum_stride, row, col, n);
}

/* Update groups first … last-1 of a block. */
static void update_block(const struct block *b, const void *grad, const struct rule *r,
                         int64_t first, int64_t last) {
    struct numbers k = {.weight = (float)r->weight,
                        .shrink = (float)r->shrink,
                        .from_grad = r->from_grad != 0,
                        .forgets = r->forgets != 0,
                        .looks_ahead = r->looks_ahead != 0,
                        .seed = b->seed ? mix((uint32_t)*b->seed + 1u) : 0,
                        .last_seed = b->seed ? mix((uint32_t)*b->seed) : 0};
    int64_t cols = num_cols(b), groups = groups_per_row(b), rest = cols % GROUP;
    int64_t row_bytes = momentum_bytes(b->momentum_kind, cols), done;
    float step = (float)r->lr * *b->scale;
    for (; first < last; first += done) {
        int64_t row = first / groups, col = first % groups * GROUP;
        int64_t whole = (cols - col) / GROUP, left = last - first;
        int64_t held = row * row_bytes + momentum_bytes(b->momentum_kind, col);
        int64_t at = row * cols + col;
        int p16 = b->param_kind == P_BFLOAT16, g16 = b->grad_kind == P_BFLOAT16;
        uint16_t *scales = b->momentum_scale ? b->momentum_scale + first : NULL;
        k.step = b->row_scale ? step * b->row_scale[row] : step;
        k.columns = b->column_scale ? b->column_scale + col : NULL;
        done = whole < left ? whole : left;
        if (b->gathers || done == 0) {
            int64_t n = whole > 0 ? GROUP : rest;
            update_copies(b, grad, k, scales, row, col, n);
            done = 1;
        } else {
            struct run run = {(char *)b->param + float_bytes(p16, at),
                              (const char *)grad + float_bytes(g16, at),
                              b->momentum ? (char *)b->momentum + held : NULL, scales,
                              (uint32_t)(b->start + row * b->pitch + col), done};
            update_run(b, k, run);
        }
    }
}

INLINE int64_t num_groups(const struct block *b, const void *grad) {
    return grad ? num_rows(b) * groups_per_row(b) : 0;
}

/* Update groups first … last-1 of all blocks together. */
static void update_share(const struct block *blocks, const void *const *grads,
                         int64_t num_blocks, const struct rule *rule, int64_t first,
                         int64_t last) {
    for (int64_t i = 0; i < num_blocks && last > 0; ++i) {
        const struct block *b = &blocks[i];
        int64_t groups = num_groups(b, grads[i]), numel = b->rows * b->cols;
        int64_t from = first > 0 ? first : 0, to = last < groups ? last : groups;
        if (from < to && b->param_kind == P_FLOAT64)
            update_float64(b, grads[i], rule, from * numel / groups,
                           to * numel / groups);
        else if (from < to)
            update_block(b, grads[i], rule, from, to);
        first -= groups;
        last -= groups;
    }
}

/* Tell whether all scales are what they were when the table was made: somebody may have
 * written them where nobody noticed. */
int saiopt_holds(const struct block *blocks, int64_t num_blocks) {
    for (int64_t i = 0; i < num_blocks; ++i)
        if (blocks[i].scale && bits_of(*blocks[i].scale) != bits_of(blocks[i].expected))
            return 0;
    return 1;
}

/* Update all blocks that have a gradient, each thread an equal run of consecutive groups,
 * and give them new noise if asked to. */
void saiopt_update(const struct block *blocks, const void *const *grads,
                   int64_t num_blocks, const struct rule *rule, int num_threads,
                   int advances) {
    int64_t total = 0;
    for (int64_t i = 0; i < num_blocks; ++i)
        total += num_groups(&blocks[i], grads[i]);
#pragma omp parallel for num_threads(num_threads) schedule(static, 1)
    for (int t = 0; t < num_threads; ++t)
        update_share(blocks, grads, num_blocks, rule, total * t / num_threads,
                     total * (t + 1) / num_threads);
    for (int64_t i = 0; advances && i < num_blocks; ++i)
        if (grads[i] && blocks[i].seed)
            *blocks[i].seed = (int32_t)((uint32_t)*blocks[i].seed + 1u);
}
