/* Sums over the examples of a batch of |g|, g * g and share * g; g = left[s]^T right[s] is the gradient of one matrix.

In: left (examples, tokens, rows) and right (examples, tokens, columns) of which the last axis is contiguous, strides in
elements; the number of tokens of each example; torch's product of small blocks, bfloat16 or float32 with sums in
float32 (oneDNN's batch-reduce product: AVX2, AVX512, AVX512-BF16 or AMX, as the processor has them). Out: added to the
float32 sums (rows, columns) that are not NULL. g is formed a block at a time and added while it is in the first cache;
memory sees the sums once a batch. Their order does not depend on the number of threads.
Both factors are packed for that product: left as [block][example][row][token], right as
[panel][example][token][column], in bfloat16 with two tokens of a column side by side. An odd last token is followed by
zeros. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
enum { ROWS = 64, COLUMNS = 64, PANELS = 8, SMALL = 1 << 24 };

typedef void product(int64_t rows, int64_t columns, int64_t tokens, int64_t left_stride, int64_t right_stride,
                     int64_t out_stride, bool add, const void *left, const void *right, float *out, bool pairs);
typedef void release(bool pairs); /* gives AMX's tiles back: oneDNN's other products configure them anew */
typedef struct { const void *data; int64_t example, token, width; } factor; /* strides of an example and of a token */
typedef struct { float *absolute, *squared, *signed_; float share; } sums;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t even(int64_t tokens) { return tokens + tokens % 2; }

/* `many` rows or columns of one example from `first` on, as 32-bit words of one token or of a pair of them: word w of
number i goes to packed[i * across + w * along]. What is behind the last one stays zero. */
INLINE void pack(uint32_t *packed, factor f, int64_t example, int64_t tokens, int64_t first, int64_t many,
                 int64_t across, int64_t along, bool pairs) {
    static const uint16_t nothing[COLUMNS];
    int64_t start = example * f.example + first, filled = least(many, f.width - first);
    int64_t words = even(tokens) / (1 + pairs);
    if (filled < many) memset(packed, 0, many * words * 4);
    for (int64_t w = 0; w < words; w++) {
        uint32_t *out = packed + w * along;
        if (pairs) {
            const uint16_t *one = (const uint16_t *)f.data + start + 2 * w * f.token;
            const uint16_t *next = 2 * w + 1 < tokens ? one + f.token : nothing;
            for (int64_t i = 0; i < filled; i++) out[i * across] = one[i] | (uint32_t)next[i] << 16;
        } else {
            const uint32_t *one = (const uint32_t *)f.data + start + w * f.token;
            for (int64_t i = 0; i < filled; i++) out[i * across] = w < tokens ? one[i] : 0;
        }
    }
}
static void pack_left(uint32_t *packed, factor f, int64_t example, int64_t tokens, int64_t first, bool pairs) {
    if (pairs) pack(packed, f, example, tokens, first, ROWS, even(tokens) / 2, 1, true);
    else pack(packed, f, example, tokens, first, ROWS, even(tokens), 1, false);
}
static void pack_right(uint32_t *packed, factor f, int64_t example, int64_t tokens, int64_t first, bool pairs) {
    if (pairs) pack(packed, f, example, tokens, first, COLUMNS, 1, COLUMNS, true);
    else pack(packed, f, example, tokens, first, COLUMNS, 1, COLUMNS, false);
}

/* g (ROWS, COLUMNS), of which the corner (rows, columns) is inside of the matrix, added to the sums from `place` on */
static void add(const float *g, sums to, int64_t place, int64_t stride, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++, g += COLUMNS, place += stride) {
        if (to.absolute)
            for (int64_t j = 0; j < columns; j++) to.absolute[place + j] += fabsf(g[j]);
        if (to.squared)
            for (int64_t j = 0; j < columns; j++) to.squared[place + j] += g[j] * g[j];
        if (to.signed_)
            for (int64_t j = 0; j < columns; j++) to.signed_[place + j] += to.share * g[j];
    }
}

/* 0, or 1 where there is no memory for the packed factors. `pairs` says that the numbers are bfloat16. */
int accumulate(factor left, factor right, const int64_t *tokens, int64_t examples, bool pairs, sums to, product *gemm,
               release *done) {
    int64_t depth = 0, rows = left.width, columns = right.width;
    int64_t blocks = quotient(rows, ROWS), panels = quotient(columns, COLUMNS), stripes = quotient(panels, PANELS);
    for (int64_t s = 0; s < examples; s++) depth = depth < even(tokens[s]) ? even(tokens[s]) : depth;
    if (!depth) return 0;
    int64_t left_step = ROWS * depth / (1 + pairs), right_step = COLUMNS * depth / (1 + pairs); /* words an example */
    uint32_t *lefts = aligned_alloc(64, 4 * blocks * examples * left_step);
    uint32_t *rights = aligned_alloc(64, 4 * panels * examples * right_step);
    int failed = !lefts || !rights;
#pragma omp parallel if (examples * depth * rows * columns > SMALL)
    if (!failed) {
        float g[ROWS * COLUMNS] __attribute__((aligned(64)));
#pragma omp for schedule(dynamic) nowait
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t s = 0; s < examples; s++)
                pack_left(lefts + (b * examples + s) * left_step, left, s, tokens[s], b * ROWS, pairs);
#pragma omp for schedule(dynamic)
        for (int64_t p = 0; p < panels; p++)
            for (int64_t s = 0; s < examples; s++)
                pack_right(rights + (p * examples + s) * right_step, right, s, tokens[s], p * COLUMNS, pairs);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t stripe = 0; stripe < stripes; stripe++)
            for (int64_t b = 0; b < blocks; b++)
                for (int64_t p = stripe * PANELS; p < least(panels, (stripe + 1) * PANELS); p++)
                    for (int64_t s = 0; s < examples; s++) {
                        const uint32_t *one = lefts + (b * examples + s) * left_step;
                        const uint32_t *other = rights + (p * examples + s) * right_step;
                        gemm(ROWS, COLUMNS, even(tokens[s]), even(tokens[s]), COLUMNS, COLUMNS, false, one, other, g,
                             pairs);
                        add(g, to, b * ROWS * columns + p * COLUMNS, columns, least(ROWS, rows - b * ROWS),
                            least(COLUMNS, columns - p * COLUMNS));
                    }
        done(pairs);
    }
    free(lefts);
    free(rights);
    return failed;
}
