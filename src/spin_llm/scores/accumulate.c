/* Sums over the examples of a batch of |g|, g * g and share * g, with g = left[s]^T right[s] the gradient of one matrix.

In: left (examples, tokens, rows) and right (examples, tokens, columns) of which the last axis is contiguous, strides in
elements; the number of tokens of each example. Out: added to the float32 sums (rows, columns) that are not NULL. g is
formed in registers and never stored: a tile of ROWS x COLUMNS of it, example by example, goes into sums that stay in the
first cache until the batch is done. The order of the sums does not depend on the number of threads.
Both factors are packed so that the products read memory in order: a word is one token of one row or column in float32,
a pair of tokens in bfloat16. Left out: bfloat16 where the processor has no product of pairs (accumulate.py knows). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16, VECTORS = 4 };
#elif defined(__AVX__)
enum { LANES = 8, VECTORS = 2 };
#else
enum { LANES = 4, VECTORS = 4 };
#endif
enum { ROWS = 6, COLUMNS = LANES * VECTORS, ROW_PANELS = 8, COLUMN_PANELS = 8, SMALL = 1 << 24 };
#define INLINE static inline __attribute__((always_inline))
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4)));
typedef struct { const void *data; int64_t example, token, width; } factor; /* strides of an example and of a token */
typedef struct { float *absolute, *squared, *signed_; float share; } sums;

int has_bfloat16(void) {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* `size` columns of each example from `first` on, zeros behind the last one: packed[example][word][size] */
INLINE void pack(uint32_t *packed, factor f, const int64_t *tokens, int64_t examples, int64_t depth, int64_t first,
                 int64_t size, int pairs) {
    int64_t filled = least(size, f.width - first);
    for (int64_t s = 0; s < examples; s++) {
        uint32_t *out = packed + s * depth * size;
        for (int64_t t = 0; t < tokens[s]; t += 1 + pairs, out += size) {
            int64_t place = s * f.example + t * f.token + first;
            if (!pairs) {
                memcpy(out, (const uint32_t *)f.data + place, 4 * filled);
            } else {
                const uint16_t *low = (const uint16_t *)f.data + place, *high = low + f.token;
                if (t + 1 < tokens[s])
                    for (int64_t i = 0; i < filled; i++) out[i] = low[i] | (uint32_t)high[i] << 16;
                else
                    for (int64_t i = 0; i < filled; i++) out[i] = low[i];
            }
            memset(out + filled, 0, 4 * (size - filled));
        }
    }
}

INLINE vector product(vector sum, uint32_t left, const uint32_t *right, int pairs) {
#if defined(__AVX512BF16__)
    if (pairs)
        return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(left),
                                        (__m512bh)_mm512_loadu_si512(right));
#endif
    float one;
    memcpy(&one, &left, 4);
    return sum + one * *(const vector *)right;
}

/* the sums of one tile over all examples, added to `to` at (row, column) */
INLINE void tile(const uint32_t *left, const uint32_t *right, const int64_t *tokens, int64_t examples, int64_t depth,
                 sums to, int64_t row, int64_t rows, int64_t column, int64_t columns, int pairs) {
    vector absolute[ROWS][VECTORS] = {0}, squared[ROWS][VECTORS] = {0}, signed_[ROWS][VECTORS] = {0};
    for (int64_t s = 0; s < examples; s++) {
        const uint32_t *l = left + s * depth * ROWS, *r = right + s * depth * COLUMNS;
        vector g[ROWS][VECTORS] = {0};
        for (int64_t word = quotient(tokens[s], 1 + pairs); word > 0; word--, l += ROWS, r += COLUMNS)
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < VECTORS; j++) g[i][j] = product(g[i][j], l[i], r + j * LANES, pairs);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < VECTORS; j++) {
                if (to.absolute) absolute[i][j] += (vector)((integers)g[i][j] & 0x7fffffff);
                if (to.squared) squared[i][j] += g[i][j] * g[i][j];
                if (to.signed_) signed_[i][j] += to.share * g[i][j];
            }
    }
    float *out[3] = {to.absolute, to.squared, to.signed_};
    const float *in[3] = {(float *)absolute, (float *)squared, (float *)signed_};
    for (int kind = 0; kind < 3; kind++)
        for (int64_t i = 0; out[kind] && i < least(ROWS, rows - row); i++)
            for (int64_t j = 0; j < least(COLUMNS, columns - column); j++)
                out[kind][(row + i) * columns + column + j] += in[kind][i * COLUMNS + j];
}

INLINE int accumulate(factor left, factor right, const int64_t *tokens, int64_t examples, sums to, int pairs) {
    int64_t longest = 0, rows = left.width, columns = right.width, panels = quotient(columns, COLUMNS);
    for (int64_t s = 0; s < examples; s++) longest = tokens[s] > longest ? tokens[s] : longest;
    int64_t depth = quotient(longest, 1 + pairs), row_panel = examples * depth * ROWS;
    int64_t column_panel = examples * depth * COLUMNS;
    int64_t blocks = quotient(rows, ROWS * ROW_PANELS), stripes = quotient(panels, COLUMN_PANELS);
    int failed = 0;
    uint32_t *packed = malloc(4 * panels * column_panel);
    if (!packed) return 1;
#pragma omp parallel if (examples * longest * rows * columns > SMALL)
    {
        uint32_t *block = malloc(4 * ROW_PANELS * row_panel);
        if (!block) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (int64_t p = 0; p < panels; p++)
            pack(packed + p * column_panel, right, tokens, examples, depth, p * COLUMNS, COLUMNS, pairs);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t stripe = 0; stripe < stripes; stripe++) {
                if (failed) continue;
                int64_t first = b * ROW_PANELS, many = least(ROW_PANELS, quotient(rows, ROWS) - first);
                for (int64_t q = 0; q < many; q++)
                    pack(block + q * row_panel, left, tokens, examples, depth, (first + q) * ROWS, ROWS, pairs);
                for (int64_t p = stripe * COLUMN_PANELS; p < least(panels, (stripe + 1) * COLUMN_PANELS); p++)
                    for (int64_t q = 0; q < many; q++)
                        tile(block + q * row_panel, packed + p * column_panel, tokens, examples, depth, to,
                             (first + q) * ROWS, rows, p * COLUMNS, columns, pairs);
            }
        free(block);
    }
    free(packed);
    return failed;
}

int accumulate_float32(factor left, factor right, const int64_t *tokens, int64_t examples, sums to) {
    return accumulate(left, right, tokens, examples, to, 0);
}
int accumulate_bfloat16(factor left, factor right, const int64_t *tokens, int64_t examples, sums to) {
    return accumulate(left, right, tokens, examples, to, 1);
}
