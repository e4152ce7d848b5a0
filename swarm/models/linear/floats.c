/* Products of float32 rows with float32 weights.
 *
 * The products of an output are added up one after the other, in the order of the columns, each sum rounded once (fused):
 * a row's result is the same bits however many rows share the call, and on every processor that has a kernel here.
 *
 * Layout of the weights: [panel][column][PANEL outputs], with nothing for outputs that are not there.
 */
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define WIDE 16
#define MOST_ROWS 8
typedef __m512 vector_t;
#define load _mm512_loadu_ps
#define save _mm512_storeu_ps
#define everywhere _mm512_set1_ps
#define fused _mm512_fmadd_ps
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define WIDE 8
#define MOST_ROWS 6
typedef __m256 vector_t;
#define load _mm256_loadu_ps
#define save _mm256_storeu_ps
#define everywhere _mm256_set1_ps
#define fused _mm256_fmadd_ps
#endif

#ifdef WIDE
#define PANEL (2 * WIDE)
#define DEPTH 256 /* columns whose weights of a panel stay in the nearest cache while all rows pass */
#define CHUNK 240 /* rows that pass together */

/* Adds the products of `depth` columns to `y` [count, PANEL]. */
static inline __attribute__((always_inline)) void add_rows(const float *x, long stride, const float *w, long depth,
                                                           float *y, const int count)
{
    vector_t sums[MOST_ROWS][2];
    for (int r = 0; r < count; r++) {
        sums[r][0] = load(y + r * PANEL);
        sums[r][1] = load(y + r * PANEL + WIDE);
    }
    for (long k = 0; k < depth; k++) {
        const vector_t first = load(w + k * PANEL), second = load(w + k * PANEL + WIDE);
        for (int r = 0; r < count; r++) {
            const vector_t number = everywhere(x[r * stride + k]);
            sums[r][0] = fused(number, first, sums[r][0]);
            sums[r][1] = fused(number, second, sums[r][1]);
        }
    }
    for (int r = 0; r < count; r++) {
        save(y + r * PANEL, sums[r][0]);
        save(y + r * PANEL + WIDE, sums[r][1]);
    }
}

static void add_some(const float *x, long stride, const float *w, long depth, float *y, long rows)
{
    for (; rows >= MOST_ROWS; rows -= MOST_ROWS, x += MOST_ROWS * stride, y += MOST_ROWS * PANEL)
        add_rows(x, stride, w, depth, y, MOST_ROWS);
    switch (rows) {
#if MOST_ROWS > 6
    case 7: add_rows(x, stride, w, depth, y, 7); break;
    case 6: add_rows(x, stride, w, depth, y, 6); break;
#endif
    case 5: add_rows(x, stride, w, depth, y, 5); break;
    case 4: add_rows(x, stride, w, depth, y, 4); break;
    case 3: add_rows(x, stride, w, depth, y, 3); break;
    case 2: add_rows(x, stride, w, depth, y, 2); break;
    case 1: add_rows(x, stride, w, depth, y, 1); break;
    }
}

static void panel_of(const float *w, const float *x, const float *bias, float *y, long rows, long in, long out, long panel)
{
    const long first = panel * PANEL, count = out - first < PANEL ? out - first : PANEL;
    float sums[CHUNK * PANEL];
    for (long row = 0; row < rows; row += CHUNK) {
        const long some = rows - row < CHUNK ? rows - row : CHUNK;
        memset(sums, 0, (size_t)some * PANEL * sizeof(float));
        for (long k = 0; k < in; k += DEPTH)
            add_some(x + row * in + k, in, w + (panel * in + k) * PANEL, in - k < DEPTH ? in - k : DEPTH, sums, some);
        for (long r = 0; r < some; r++) {
            float *to = y + (row + r) * out + first;
            for (long o = 0; o < count; o++)
                to[o] = bias ? sums[r * PANEL + o] + bias[first + o] : sums[r * PANEL + o];
        }
    }
}
#endif

/* Outputs of a panel; 0 where there is no kernel. */
int swarm_float_panel(void)
{
#ifdef WIDE
    return PANEL;
#else
    return 0;
#endif
}

/* y [rows, out] = x [rows, in] W^T + bias, which may be NULL. */
void swarm_floats(const float *w, const float *x, const float *bias, float *y, long rows, long in, long out, int threads)
{
#ifdef WIDE
    const long panels = (out + PANEL - 1) / PANEL, share = (panels + threads - 1) / threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
    for (int thread = 0; thread < threads; thread++) {
        const long begin = share * thread, end = begin + share < panels ? begin + share : panels;
        for (long panel = begin; panel < end; panel++)
            panel_of(w, x, bias, y, rows, in, out, panel);
    }
#else
    (void)w, (void)x, (void)bias, (void)y, (void)rows, (void)in, (void)out, (void)threads;
#endif
}
