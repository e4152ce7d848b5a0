/* Products of float32 rows with weights on a grid, in whole numbers.
 *
 * Each 32 numbers of a row (16 where the groups of the weight are no multiple of 32), a "step", become whole numbers of
 * 15 bits with one scale, X = 128 hi + lo; their products with the levels are summed exactly, and the sums of the steps
 * are added up in float32, in the order of the columns. So a row's result is the same bits whichever of the kernels here
 * computes it, however many rows share the call, and on every processor.
 *
 * Layout of the levels, of 16 outputs ("panel") after 16 outputs, an even number of panels: for every 4 columns 64 bytes, [output][column], as
 * unsigned numbers (level - offset); of four bits, 64 bytes hold 8 columns, the first four in the lower halves. Scales and
 * minima: [panel][group][output]; where they are whole numbers, what these count: [panel][UNIT columns][output].
 *
 * Levels that are floats are multiplied as such with the rows as they are, column after column.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define STEP 32  /* most columns whose products are summed as whole numbers */
#define UNIT 256 /* columns whose scales, if they are whole numbers, count the same */
#define PANEL 16 /* outputs side by side */
#define BLOCK 16 /* rows of a tile */
#define ROWS 512 /* most in one call that go in tiles */
#define MOST 16256.0f /* 127 * 128 */
#define ROUND 0x1.8p23f
#define ROUND_BITS 0x4b400000

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define AVX2 1
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define VNNI 1
#endif
#if defined(VNNI) && defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__)
#define AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* The kernels, each better than those before it. */
enum { PLAIN_KIND, AVX2_KIND, VNNI_KIND, AMX_KIND };

typedef struct {
    long in, out, group, step;
    int bits, kind;              /* of a level; of scales and minima */
    int floats;                  /* whether levels of 8 bits are floats, e4m3 */
    int offset;                  /* unsigned number = level + offset */
    const uint8_t *codes;        /* packed */
    const void *scales;          /* packed */
    const void *least;           /* packed, or NULL */
    const uint16_t *units;       /* packed float16, of scales that are int8 */
    const uint16_t *least_units; /* and of minima */
    uint8_t table[16];           /* unsigned numbers of the codes of four bits */
} weight_t;

enum { FLOATS, HALVES, WHOLE }; /* scales and minima are float32, float16, int8 */

typedef struct {
    weight_t w;
    long rows;
    const float *x;  /* [rows, in] */
    float *y;        /* [rows, out] */
    float *steps;    /* [rows, in / step], to work in: scales of the rows */
    float *sums;     /* [rows, in / step], to work in: sums of the rows, for the minima */
    int32_t *shifts; /* [rows, in / step], to work in: what the offset adds to the sums of products */
    int8_t *whole;   /* [rows, 2, in], to work in: high and low of every row; AVX2: int16 [rows, in] instead */
} product_t;

/* ---- rows as whole numbers ---------------------------------------------------------------------------------- */

#ifdef AVX2
/* Every four columns in the order 0, 2, 1, 3: those of the lower bytes of 16-bit levels, then those of the upper. */
static inline void put_wide(const int16_t *whole, const int length, int16_t *to)
{
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    for (int k = 0; k < length; k += 16) {
        __m256i numbers = _mm256_loadu_si256((const __m256i *)(whole + k));
        _mm256_storeu_si256((__m256i *)(to + k), _mm256_shuffle_epi8(numbers, order));
    }
}
#endif

/* The first `tiled` rows lie in tiles instead, [block of 16][step][high, low][row][column]. */
static inline __attribute__((always_inline)) void whole_row(const product_t *p, long row, long tiled, int kernel,
                                                            const int length)
{
    const long steps = p->w.in / length;
    long stride = row < tiled ? 2 * BLOCK * length : length;
    const float *x = p->x + row * p->w.in;
    int8_t *high = p->whole + 2 * row * p->w.in, *low = high + p->w.in;
    if (row < tiled) {
        high = p->whole + row / BLOCK * BLOCK * 2 * p->w.in + row % BLOCK * length;
        low = high + BLOCK * length;
    }
#ifdef AVX2
    int8_t unread[2 * STEP];
    int16_t wide[STEP];
    if (kernel == AVX2_KIND) {
        high = unread;
        low = unread + STEP;
        stride = 0;
    }
#else
    (void)kernel;
#endif
    for (long t = 0; t < steps; t++, x += length, high += stride, low += stride) {
        uint32_t bits[STEP], most = 0;
        memcpy(bits, x, (size_t)length * 4);
        for (int k = 0; k < length; k++) { /* as whole numbers floats have the same order, and compilers vectorize it */
            uint32_t size = bits[k] & 0x7fffffffu;
            most = size > most ? size : most;
        }
        float largest, step = NAN, many = 0.0f;
        memcpy(&largest, &most, 4);
        if (most < 0x7f800000u) { /* what is not finite becomes NaN; what is too small to be divided by, nothing */
            many = largest > 1e-30f ? MOST / largest : 0.0f;
            step = largest > 1e-30f ? largest / MOST : 0.0f;
        }
        int32_t sum = 0;
        for (int k = 0; k < length; k++) {
            float shifted = many == 0.0f ? ROUND : x[k] * many + ROUND; /* rounds to the nearest whole number */
            int32_t whole;
            memcpy(&whole, &shifted, 4);
            whole -= ROUND_BITS;
            int32_t upper = (whole + 64) >> 7;
            high[k] = (int8_t)upper;
            low[k] = (int8_t)(whole - (upper << 7));
#ifdef AVX2
            wide[k] = (int16_t)whole;
#endif
            sum += whole;
        }
#ifdef AVX2
        if (kernel == AVX2_KIND)
            put_wide(wide, length, (int16_t *)p->whole + row * p->w.in + t * length);
#endif
        p->steps[row * steps + t] = step;
        p->shifts[row * steps + t] = p->w.offset * sum;
        p->sums[row * steps + t] = step * (float)sum;
    }
}

static void whole_numbers(const product_t *p, long row, long tiled, int kernel)
{
    if (p->w.step == STEP)
        whole_row(p, row, tiled, kernel, STEP);
    else
        whole_row(p, row, tiled, kernel, STEP / 2);
}

/* ---- one panel in plain C: what the others must equal ------------------------------------------------------- */

static float half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023, bits;
    float value;
    if (exponent == 31)
        bits = sign | 0x7f800000u | (fraction << 13);
    else if (exponent)
        bits = sign | ((exponent + 112) << 23) | (fraction << 13);
    else {
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, 4);
    return value;
}

/* Where the scales of 16 outputs for a column are, and what they count. */
static inline long group_of(const weight_t *w, long panel, long column)
{
    return (panel * (w->in / w->group) + column / w->group) * PANEL;
}

static inline long unit_of(const weight_t *w, long panel, long column)
{
    return (panel * (w->in / UNIT) + column / UNIT) * PANEL;
}

static inline float number(const weight_t *w, const void *from, const uint16_t *units, long group, long unit)
{
    if (w->kind == HALVES)
        return half_to_float(((const uint16_t *)from)[group]);
    if (w->kind == FLOATS)
        return ((const float *)from)[group];
    return half_to_float(units[unit]) * (float)((const int8_t *)from)[group];
}

/* The unsigned numbers of 16 outputs for the columns of a step: [step / 4][16][4] bytes. */
static void unpack_step(const product_t *p, long panel, long t, uint8_t *to)
{
    const long step = p->w.step;
    if (p->w.bits == 8) {
        memcpy(to, p->w.codes + (panel * p->w.in + t * step) * PANEL, (size_t)step * PANEL);
        return;
    }
    const uint8_t *from = p->w.codes + (panel * p->w.in + t * step) * PANEL / 2;
    for (int c = 0; c < step / 8; c++)
        for (int i = 0; i < 64; i++) {
            to[c * 128 + i] = p->w.table[from[c * 64 + i] & 15];
            to[c * 128 + 64 + i] = p->w.table[from[c * 64 + i] >> 4];
        }
}

static void store(const product_t *p, long row, long panel, const float *sums)
{
    long first = panel * PANEL, count = p->w.out - first < PANEL ? p->w.out - first : PANEL;
    if (count > 0)
        memcpy(p->y + row * p->w.out + first, sums, (size_t)count * sizeof(float));
}

static void plain_panel(const product_t *p, long panel, long first, long last)
{
    const long step = p->w.step, steps = p->w.in / step;
    uint8_t levels[STEP * PANEL];
    for (long row = first; row < last; row++) {
        float y[PANEL] = {0};
        for (long t = 0; t < steps; t++) {
            unpack_step(p, panel, t, levels);
            int32_t sums[PANEL] = {0};
            for (int c = 0; c < step / 4; c++)
                for (int k = 0; k < 4; k++) {
                    const int8_t *high = p->whole + 2 * row * p->w.in + t * step + 4 * c + k;
                    int32_t x = 128 * high[0] + high[p->w.in];
                    for (int o = 0; o < PANEL; o++)
                        sums[o] += levels[c * 64 + o * 4 + k] * x;
                }
            const long group = group_of(&p->w, panel, t * step), unit = unit_of(&p->w, panel, t * step);
            const long at = row * steps + t;
            for (int o = 0; o < PANEL; o++) {
                float scale = number(&p->w, p->w.scales, p->w.units, group + o, unit + o) * p->steps[at];
                y[o] = fmaf(scale, (float)(sums[o] - p->shifts[at]), y[o]);
                if (p->w.least)
                    y[o] = fmaf(number(&p->w, p->w.least, p->w.least_units, group + o, unit + o), p->sums[at], y[o]);
            }
        }
        store(p, row, panel, y);
    }
}

/* ---- levels that are floats ---------------------------------------------------------------------------------- */

#define HALF (PANEL / 2)

typedef float floats_t __attribute__((vector_size(4 * HALF)));
typedef uint32_t words_t __attribute__((vector_size(4 * HALF)));

/* The numbers of 8 outputs in one of four columns: e4m3 has the bits of a float32 with a smaller exponent. */
static inline __attribute__((always_inline)) void float_levels(const words_t *fours, uint32_t column, floats_t *levels)
{
    const words_t code = *fours >> 8 * column;
    *levels = (floats_t)((code & 0x80u) << 24 | (code & 0x7fu) << 20) * 0x1p120f;
}

/* Of 16 outputs. */
static inline void float_scales(const product_t *p, long panel, long column, floats_t *scales)
{
    const long group = group_of(&p->w, panel, column), unit = unit_of(&p->w, panel, column);
    float numbers[PANEL];
    for (int o = 0; o < PANEL; o++)
        numbers[o] = number(&p->w, p->w.scales, p->w.units, group + o, unit + o);
    memcpy(scales, numbers, sizeof numbers);
}

/* Products and sums are rounded one by one: there are processors that cannot do both at once. */
static inline __attribute__((always_inline)) void float_rows(const product_t *p, long panel, long first, const int count)
{
    const long in = p->w.in;
    const uint8_t *from = p->w.codes + panel * in * PANEL;
    const float *x = p->x + first * in;
    floats_t y[4][2] = {{{0}}}, scales[2];
    for (long begin = 0; begin < in; begin += p->w.step) {
        floats_t sums[4][2] = {{{0}}};
        for (long column = begin; column < begin + p->w.step; column += 4, from += 4 * PANEL) {
            words_t fours[2];
            memcpy(fours, from, sizeof fours);
            for (uint32_t k = 0; k < 4; k++) {
                floats_t levels[2];
                float_levels(&fours[0], k, &levels[0]);
                float_levels(&fours[1], k, &levels[1]);
                for (int r = 0; r < count; r++) {
                    sums[r][0] += levels[0] * x[r * in + column + k];
                    sums[r][1] += levels[1] * x[r * in + column + k];
                }
            }
        }
        float_scales(p, panel, begin, scales);
        for (int r = 0; r < count; r++) {
            y[r][0] += scales[0] * sums[r][0];
            y[r][1] += scales[1] * sums[r][1];
        }
    }
    for (int r = 0; r < count; r++) {
        float sums[PANEL];
        memcpy(sums, y[r], sizeof sums);
        store(p, first + r, panel, sums);
    }
}

static void float_panel(const product_t *p, long panel)
{
    long first = 0;
    for (; first + 4 <= p->rows; first += 4)
        float_rows(p, panel, first, 4);
    for (; first < p->rows; first++)
        float_rows(p, panel, first, 1);
}

/* ---- AVX2 ---------------------------------------------------------------------------------------------------- */

#ifdef AVX2
static inline __m256 halves8(const uint16_t *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

/* Of 8 outputs. */
static inline __m256 numbers8(const weight_t *w, const void *from, const uint16_t *units, long group, long unit)
{
    if (w->kind == HALVES)
        return halves8((const uint16_t *)from + group);
    if (w->kind == FLOATS)
        return _mm256_loadu_ps((const float *)from + group);
    const __m256i whole = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)((const int8_t *)from + group)));
    return _mm256_mul_ps(halves8(units + unit), _mm256_cvtepi32_ps(whole));
}

static inline __m256i pair(const int16_t *from)
{
    int32_t word;
    memcpy(&word, from, 4);
    return _mm256_set1_epi32(word);
}

/* Adds the products of four columns, whose levels are those of twice 8 outputs. Levels of 8 bits times numbers of 15
 * do not overflow the 32 bits of a step's sum. */
static inline __attribute__((always_inline)) void add_four(const int16_t *const *x, int column, const int count,
                                                           const __m256i *levels, __m256i (*sums)[2])
{
    const __m256i lower = _mm256_set1_epi16(255);
    const __m256i even[2] = {_mm256_and_si256(levels[0], lower), _mm256_and_si256(levels[1], lower)};
    const __m256i odd[2] = {_mm256_srli_epi16(levels[0], 8), _mm256_srli_epi16(levels[1], 8)};
    for (int r = 0; r < count; r++) {
        const __m256i first = pair(x[r] + column), second = pair(x[r] + column + 2);
        for (int half = 0; half < 2; half++) {
            sums[r][half] = _mm256_add_epi32(sums[r][half], _mm256_madd_epi16(even[half], first));
            sums[r][half] = _mm256_add_epi32(sums[r][half], _mm256_madd_epi16(odd[half], second));
        }
    }
}

static inline __attribute__((always_inline)) void avx2_rows(const product_t *p, long panel, long first, const int step,
                                                            const int count, const int bits)
{
    const long steps = p->w.in / step;
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p->w.table));
    const __m256i lower = _mm256_set1_epi8(15);
    const uint8_t *from = p->w.codes + panel * p->w.in * PANEL * bits / 8;
    __m256 y[4][2];
    for (int r = 0; r < count; r++)
        y[r][0] = y[r][1] = _mm256_setzero_ps();
    for (long t = 0; t < steps; t++) {
        const int16_t *x[4];
        __m256i sums[4][2];
        for (int r = 0; r < count; r++) {
            x[r] = (const int16_t *)p->whole + (first + r) * p->w.in + t * step;
            sums[r][0] = sums[r][1] = _mm256_setzero_si256();
        }
        for (int column = 0; column < step; column += 32 / bits, from += 64) {
            const __m256i codes[2] = {_mm256_loadu_si256((const __m256i *)from),
                                      _mm256_loadu_si256((const __m256i *)(from + 32))};
            if (bits == 8) {
                add_four(x, column, count, codes, sums);
                continue;
            }
            __m256i levels[2];
            for (int half = 0; half < 2; half++)
                levels[half] = _mm256_shuffle_epi8(table, _mm256_and_si256(codes[half], lower));
            add_four(x, column, count, levels, sums);
            for (int half = 0; half < 2; half++)
                levels[half] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes[half], 4), lower));
            add_four(x, column + 4, count, levels, sums);
        }
        const long group = group_of(&p->w, panel, t * step), unit = unit_of(&p->w, panel, t * step);
        for (int half = 0; half < 2; half++) {
            const long of = group + 8 * half, unit_8 = unit + 8 * half;
            const __m256 scale = numbers8(&p->w, p->w.scales, p->w.units, of, unit_8);
            const __m256 least = p->w.least ? numbers8(&p->w, p->w.least, p->w.least_units, of, unit_8) : scale;
            for (int r = 0; r < count; r++) {
                const long at = (first + r) * steps + t;
                const __m256i sum = _mm256_sub_epi32(sums[r][half], _mm256_set1_epi32(p->shifts[at]));
                const __m256 scaled = _mm256_mul_ps(scale, _mm256_set1_ps(p->steps[at]));
                y[r][half] = _mm256_fmadd_ps(scaled, _mm256_cvtepi32_ps(sum), y[r][half]);
                if (p->w.least)
                    y[r][half] = _mm256_fmadd_ps(least, _mm256_set1_ps(p->sums[at]), y[r][half]);
            }
        }
    }
    for (int r = 0; r < count; r++) {
        float all[PANEL];
        _mm256_storeu_ps(all, y[r][0]);
        _mm256_storeu_ps(all + 8, y[r][1]);
        store(p, first + r, panel, all);
    }
}

static inline __attribute__((always_inline)) void avx2_all(const product_t *p, long panel, long first, long last,
                                                           const int step, const int bits)
{
    for (; first + 4 <= last; first += 4)
        avx2_rows(p, panel, first, step, 4, bits);
    switch (last - first) {
    case 3: avx2_rows(p, panel, first, step, 3, bits); break;
    case 2: avx2_rows(p, panel, first, step, 2, bits); break;
    case 1: avx2_rows(p, panel, first, step, 1, bits); break;
    }
}

static void avx2_panel(const product_t *p, long panel, long first, long last)
{
    if (p->w.step == STEP && p->w.bits == 8)
        avx2_all(p, panel, first, last, STEP, 8);
    else if (p->w.step == STEP)
        avx2_all(p, panel, first, last, STEP, 4);
    else if (p->w.bits == 8)
        avx2_all(p, panel, first, last, STEP / 2, 8);
    else
        avx2_all(p, panel, first, last, STEP / 2, 4);
}
#endif

/* ---- AVX-512 with VNNI --------------------------------------------------------------------------------------- */

#ifdef VNNI
static inline __m512 halves(const uint16_t *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

static inline __m512 numbers(const weight_t *w, const void *from, const uint16_t *units, long panel, long column)
{
    const long group = group_of(w, panel, column);
    if (w->kind == HALVES)
        return halves((const uint16_t *)from + group);
    if (w->kind == FLOATS)
        return _mm512_loadu_ps((const float *)from + group);
    const __m128i whole = _mm_loadu_si128((const __m128i *)((const int8_t *)from + group));
    return _mm512_mul_ps(halves(units + unit_of(w, panel, column)), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(whole)));
}

static inline __m512 scales_at(const weight_t *w, long panel, long column)
{
    return numbers(w, w->scales, w->units, panel, column);
}

static inline __m512 least_at(const weight_t *w, long panel, long column)
{
    return w->least ? numbers(w, w->least, w->least_units, panel, column) : _mm512_setzero_ps();
}

static inline __attribute__((always_inline)) void unpack(const product_t *p, long panel, long t, const int step,
                                                         __m512i table, __m512i *to)
{
    if (p->w.bits == 8) {
        const uint8_t *from = p->w.codes + (panel * p->w.in + t * step) * PANEL;
        for (int c = 0; c < step / 4; c++)
            to[c] = _mm512_loadu_si512(from + c * 64);
        return;
    }
    const uint8_t *from = p->w.codes + (panel * p->w.in + t * step) * PANEL / 2;
    const __m512i lower = _mm512_set1_epi8(15);
    for (int c = 0; c < step / 8; c++) {
        __m512i pairs = _mm512_loadu_si512(from + c * 64);
        to[2 * c] = _mm512_shuffle_epi8(table, _mm512_and_si512(pairs, lower));
        to[2 * c + 1] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(pairs, 4), lower));
    }
}

/* What 16 outputs have for one row once the products of one more step, and the minima, are added. */
static inline __m512 added(const product_t *p, long at, __m512i upper, __m512i lower, __m512 scale, __m512 least, __m512 y)
{
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(upper, 7), lower);
    y = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(p->steps[at])), _mm512_cvtepi32_ps(sum), y);
    return p->w.least ? _mm512_fmadd_ps(least, _mm512_set1_ps(p->sums[at]), y) : y;
}

static inline __m512i four(const int8_t *from)
{
    int32_t word;
    memcpy(&word, from, 4);
    return _mm512_set1_epi32(word);
}

static inline __attribute__((always_inline)) void vnni_rows(const product_t *p, long panel, long first, const int step,
                                                            const int count)
{
    const long steps = p->w.in / step;
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p->w.table));
    __m512 y[4];
    for (int r = 0; r < count; r++)
        y[r] = _mm512_setzero_ps();
    for (long t = 0; t < steps; t++) {
        __m512i levels[STEP / 4];
        unpack(p, panel, t, step, table, levels);
        const __m512 scale = scales_at(&p->w, panel, t * step), least = least_at(&p->w, panel, t * step);
        for (int r = 0; r < count; r++) {
            const long row = first + r;
            const int8_t *high = p->whole + 2 * row * p->w.in + t * step, *low = high + p->w.in;
            __m512i upper = _mm512_setzero_si512(), lower = _mm512_setzero_si512();
            for (int c = 0; c < step / 4; c++) {
                upper = _mm512_dpbusd_epi32(upper, levels[c], four(high + 4 * c));
                lower = _mm512_dpbusd_epi32(lower, levels[c], four(low + 4 * c));
            }
            lower = _mm512_sub_epi32(lower, _mm512_set1_epi32(p->shifts[row * steps + t]));
            y[r] = added(p, row * steps + t, upper, lower, scale, least, y[r]);
        }
    }
    for (int r = 0; r < count; r++) {
        float sums[PANEL];
        _mm512_storeu_ps(sums, y[r]);
        store(p, first + r, panel, sums);
    }
}

static inline __attribute__((always_inline)) void vnni_all(const product_t *p, long panel, long first, long last,
                                                           const int step)
{
    for (; first + 4 <= last; first += 4)
        vnni_rows(p, panel, first, step, 4);
    switch (last - first) {
    case 3: vnni_rows(p, panel, first, step, 3); break;
    case 2: vnni_rows(p, panel, first, step, 2); break;
    case 1: vnni_rows(p, panel, first, step, 1); break;
    }
}

static void vnni_panel(const product_t *p, long panel, long first, long last)
{
    if (p->w.step == STEP)
        vnni_all(p, panel, first, last, STEP);
    else
        vnni_all(p, panel, first, last, STEP / 2);
}
#endif

/* ---- AMX ----------------------------------------------------------------------------------------------------- */

#ifdef AMX
#define DEPTH 4 /* steps whose sums are added up together */

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tiles_t;

static int amx_allowed(void)
{
    static int allowed = -1;
    if (allowed < 0)
        allowed = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return allowed;
}

static void set_tiles(int step)
{
    tiles_t tiles = {.palette = 1};
    for (int tile = 0; tile < 4; tile++) { /* sums: high and low, of two panels */
        tiles.bytes[tile] = 64;
        tiles.rows[tile] = BLOCK;
    }
    for (int tile = 4; tile < 6; tile++) { /* rows: high and low */
        tiles.bytes[tile] = (uint16_t)step;
        tiles.rows[tile] = BLOCK;
    }
    for (int tile = 6; tile < 8; tile++) { /* levels of two panels */
        tiles.bytes[tile] = 64;
        tiles.rows[tile] = (uint8_t)(step / 4);
    }
    _tile_loadconfig(&tiles);
}

/* The levels of two panels for some steps, with their signs: [step][panel][columns * PANEL]. */
static inline __attribute__((always_inline)) void unpack_deep(const product_t *p, long panel, long t, int depth,
                                                              const int length, int8_t *levels)
{
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p->w.table));
    const __m512i offset = _mm512_set1_epi8((char)p->w.offset);
    for (int step = 0; step < depth; step++)
        for (int side = 0; side < 2; side++, levels += length * PANEL) {
            __m512i unpacked[STEP / 4];
            unpack(p, panel + side, t + step, length, table, unpacked);
            for (int c = 0; c < length / 4; c++)
                _mm512_store_si512(levels + c * 64, _mm512_sub_epi8(unpacked[c], offset));
        }
}

/* Of a block of rows and two panels, [step][high and low of the first panel, of the second][BLOCK * PANEL]. */
static inline __attribute__((always_inline)) void products(const product_t *p, long first, long t, int depth,
                                                           const int length, const int8_t *levels, int32_t *sums)
{
    const int8_t *rows = p->whole + 2 * first * p->w.in + t * 2 * BLOCK * length;
    for (int step = 0; step < depth; step++, levels += 2 * length * PANEL, sums += 4 * BLOCK * PANEL) {
        _tile_loadd(4, rows + step * 2 * BLOCK * length, length);
        _tile_loadd(5, rows + (step * 2 + 1) * BLOCK * length, length);
        _tile_loadd(6, levels, 64);
        _tile_loadd(7, levels + length * PANEL, 64);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 5, 6);
        _tile_dpbssd(2, 4, 7);
        _tile_dpbssd(3, 5, 7);
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + BLOCK * PANEL, 64);
        _tile_stored(2, sums + 2 * BLOCK * PANEL, 64);
        _tile_stored(3, sums + 3 * BLOCK * PANEL, 64);
    }
}

static inline __attribute__((always_inline)) void add_deep(const product_t *p, long panel, long first, long t,
                                                           const int depth, const int length, const int32_t *sums,
                                                           float *y)
{
    const long steps = p->w.in / length;
    __m512 scales[DEPTH], least[DEPTH];
    for (int step = 0; step < depth; step++) {
        scales[step] = scales_at(&p->w, panel, (t + step) * length);
        least[step] = least_at(&p->w, panel, (t + step) * length);
    }
    for (int r = 0; r < BLOCK; r++) {
        __m512 total = _mm512_loadu_ps(y + r * 2 * PANEL);
        for (int step = 0; step < depth; step++) {
            const int32_t *upper = sums + step * 4 * BLOCK * PANEL + r * PANEL;
            total = added(p, (first + r) * steps + t + step, _mm512_load_si512(upper),
                          _mm512_load_si512(upper + BLOCK * PANEL), scales[step], least[step], total);
        }
        _mm512_storeu_ps(y + r * 2 * PANEL, total);
    }
}

/* Rows in blocks through two panels; `y`: [rows, 2 * PANEL] to work in. The rows that are left over go the other way. */
static inline __attribute__((always_inline)) void amx_panels(const product_t *p, long panel, const int length, float *y)
{
    const long steps = p->w.in / length, whole = p->rows / BLOCK * BLOCK;
    _Alignas(64) int8_t levels[DEPTH * 2 * STEP * PANEL];
    _Alignas(64) int32_t sums[DEPTH * 4 * BLOCK * PANEL];
    memset(y, 0, (size_t)whole * 2 * PANEL * sizeof(float));
    for (long t = 0; t < steps;) {
        const int depth = t + DEPTH <= steps ? DEPTH : 1;
        unpack_deep(p, panel, t, depth, length, levels);
        for (long first = 0; first < whole; first += BLOCK) {
            products(p, first, t, depth, length, levels, sums);
            for (int side = 0; side < 2; side++) {
                float *to = y + first * 2 * PANEL + side * PANEL;
                const int32_t *from = sums + side * 2 * BLOCK * PANEL;
                if (depth == DEPTH)
                    add_deep(p, panel + side, first, t, DEPTH, length, from, to);
                else
                    add_deep(p, panel + side, first, t, 1, length, from, to);
            }
        }
        t += depth;
    }
    for (int side = 0; side < 2; side++) {
        for (long row = 0; row < whole; row++)
            store(p, row, panel + side, y + row * 2 * PANEL + side * PANEL);
        if (whole < p->rows)
            vnni_panel(p, panel + side, whole, p->rows);
    }
}
#endif

/* ---- what is called ------------------------------------------------------------------------------------------ */

/* The best kernel of this build and machine. */
int swarm_best(void)
{
#if defined(AMX)
    return amx_allowed() ? AMX_KIND : VNNI_KIND;
#elif defined(VNNI)
    return VNNI_KIND;
#elif defined(AVX2)
    return AVX2_KIND;
#else
    return PLAIN_KIND;
#endif
}

/* Pairs of panels; the first `tiled` rows are in tiles. */
static void pairs(const product_t *p, int kernel, long first, long last, long tiled)
{
    if (p->w.floats) {
        for (long panel = 2 * first; panel < 2 * last; panel++)
            float_panel(p, panel);
        return;
    }
#ifdef AMX
    if (tiled) {
        float y[ROWS * 2 * PANEL];
        set_tiles((int)p->w.step);
        for (; first < last; first++)
            if (p->w.step == STEP)
                amx_panels(p, 2 * first, STEP, y);
            else
                amx_panels(p, 2 * first, STEP / 2, y);
        _tile_release();
    }
#endif
    (void)tiled;
    for (long panel = 2 * first; panel < 2 * last; panel++) {
#ifdef VNNI
        if (kernel >= VNNI_KIND) {
            vnni_panel(p, panel, 0, p->rows);
            continue;
        }
#endif
#ifdef AVX2
        if (kernel == AVX2_KIND) {
            avx2_panel(p, panel, 0, p->rows);
            continue;
        }
#endif
        (void)kernel;
        plain_panel(p, panel, 0, p->rows);
    }
}

/* y = x W^T; `work`: rows * in / step * (12 + 2 * step) bytes; `kernel`: no better than swarm_best(). */
void swarm_product(const weight_t *weight, const float *x, float *y, long rows, void *work, int threads, int kernel)
{
    const long cells = rows * weight->in / weight->step;
    float *steps = work;
    const product_t product = {*weight, rows, x, y, steps, steps + cells, (int32_t *)(steps + 2 * cells),
                               (int8_t *)(steps + 3 * cells)}, *p = &product;
    const long count = (p->w.out + 2 * PANEL - 1) / (2 * PANEL);
    const long tiled = kernel == AMX_KIND && rows <= ROWS ? rows / BLOCK * BLOCK : 0;
    const long share = (count + threads - 1) / threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > 1)
#endif
    for (long row = 0; row < (weight->floats ? 0 : rows); row++)
        whole_numbers(p, row, tiled, kernel);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
    for (int thread = 0; thread < threads; thread++) {
        const long first = share * thread, last = first + share;
        pairs(p, kernel, first, last < count ? last : count, tiled);
    }
}

/* ---- putting numbers on a grid: as schemes.py does, to the bit ------------------------------------------------ */

static uint16_t float_to_half(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return sign | 0x7e00;
    if (bits >= 0x477ff000u) /* rounds to what is larger than all that there is */
        return sign | 0x7c00;
    if (bits < 0x38800000u) { /* as a multiple of 2^-24 */
        float size;
        memcpy(&size, &bits, 4);
        return sign | (uint16_t)nearbyintf(size * 0x1p24f);
    }
    const uint32_t rest = bits & 0x1fff;
    bits = (bits - 0x38000000u) >> 13;
    return sign | (uint16_t)(bits + (rest > 0x1000 || (rest == 0x1000 && (bits & 1))));
}

/* The sum of squares of STEP differences, in halves. */
static float sum_in_halves(float *squares)
{
    for (int half = STEP / 2; half; half /= 2)
        for (int k = 0; k < half; k++)
            squares[k] += squares[k + half];
    return squares[0];
}

/* Levels of STEP numbers, and how far off they are. */
static float round_group(const float *w, float scale, float least, float low, float high, float *levels)
{
    float squares[STEP];
    for (int k = 0; k < STEP; k++) {
        float level = ((w[k] - least) / scale + ROUND) - ROUND;
        level = level < low ? low : level;
        levels[k] = level > high ? high : level;
        float off = levels[k] * scale + least - w[k];
        squares[k] = off * off;
    }
    return sum_in_halves(squares);
}

static uint16_t scale_of(float step)
{
    const uint16_t half = float_to_half(step);
    return half ? half : 1;
}

static void quantize_int8(const float *w, int8_t *codes, uint16_t *scale, float *error)
{
    float most = 0.0f, levels[STEP];
    for (int k = 0; k < STEP; k++)
        most = fabsf(w[k]) > most ? fabsf(w[k]) : most;
    *scale = scale_of(most / 127.0f);
    *error = round_group(w, half_to_float(*scale), 0.0f, -127.0f, 127.0f, levels);
    for (int k = 0; k < STEP; k++)
        codes[k] = (int8_t)levels[k];
}

static void quantize_int4(const float *w, const float *cuts, int count, uint8_t *codes, uint16_t *scale, uint16_t *least,
                          float *error)
{
    float low = w[0], high = w[0], levels[STEP], best[STEP] = {0};
    for (int k = 1; k < STEP; k++) {
        low = w[k] < low ? w[k] : low;
        high = w[k] > high ? w[k] : high;
    }
    for (int c = 0; c < count; c++) {
        const float cut = (high - low) * cuts[c];
        const uint16_t scaled = scale_of((high - low - 2.0f * cut) / 15.0f), begin = float_to_half(low + cut);
        const float off = round_group(w, half_to_float(scaled), half_to_float(begin), 0.0f, 15.0f, levels);
        if (c == 0 || off < *error) {
            *error = off;
            *scale = scaled;
            *least = begin;
            memcpy(best, levels, sizeof best);
        }
    }
    for (int k = 0; k < STEP; k += 2)
        codes[k / 2] = (uint8_t)((int)best[k] | (int)best[k + 1] << 4);
}

/* Groups of STEP numbers; `cuts`: of the range of a group, what is tried to be left out at either end. */
void swarm_quantize(const float *w, long groups, int bits, const float *cuts, int count, void *codes, uint16_t *scales,
                    uint16_t *least, float *errors, int threads)
{
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
    for (long g = 0; g < groups; g++) {
        if (bits == 8)
            quantize_int8(w + g * STEP, (int8_t *)codes + g * STEP, scales + g, errors + g);
        else
            quantize_int4(w + g * STEP, cuts, count, (uint8_t *)codes + g * STEP / 2, scales + g, least + g, errors + g);
    }
    (void)threads;
}
