/* What kernel.c uses of AVX-512 and AMX, in plain C, by Intel's description of each instruction
 * (https://www.intel.com/content/www/us/en/docs/intrinsics-guide/): its kernels can be tried on any processor. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef union { int8_t b[16]; uint8_t u[16]; } __m128i;
typedef union { uint16_t h[16]; } __m256i;
typedef union { int8_t b[64]; uint8_t u[64]; uint16_t h[32]; int32_t w[16]; uint32_t v[16]; } __m512i;
typedef struct { float f[16]; } __m512;

#define EACH(type, count, value) { type r; for (int i = 0; i < count; i++) value; return r; }

static inline __m128i _mm_loadu_si128(const __m128i *p) { __m128i r; memcpy(&r, p, 16); return r; }
static inline __m256i _mm256_loadu_si256(const __m256i *p) { __m256i r; memcpy(&r, p, 32); return r; }
static inline __m512i _mm512_loadu_si512(const void *p) { __m512i r; memcpy(&r, p, 64); return r; }
static inline __m512i _mm512_load_si512(const void *p) { return _mm512_loadu_si512(p); }
static inline void _mm512_store_si512(void *p, __m512i a) { memcpy(p, &a, 64); }
static inline __m512 _mm512_loadu_ps(const void *p) { __m512 r; memcpy(&r, p, 64); return r; }
static inline void _mm512_storeu_ps(void *p, __m512 a) { memcpy(p, &a, 64); }
static inline __m512 _mm512_setzero_ps(void) { __m512 r; memset(&r, 0, 64); return r; }
static inline __m512i _mm512_setzero_si512(void) { __m512i r; memset(&r, 0, 64); return r; }

static inline __m512i _mm512_set1_epi8(char a) EACH(__m512i, 64, r.b[i] = (int8_t)a)
static inline __m512i _mm512_set1_epi32(int a) EACH(__m512i, 16, r.w[i] = a)
static inline __m512 _mm512_set1_ps(float a) EACH(__m512, 16, r.f[i] = a)
static inline __m512i _mm512_broadcast_i32x4(__m128i a) EACH(__m512i, 64, r.u[i] = a.u[i % 16])
static inline __m512i _mm512_add_epi32(__m512i a, __m512i b) EACH(__m512i, 16, r.v[i] = a.v[i] + b.v[i])
static inline __m512i _mm512_sub_epi32(__m512i a, __m512i b) EACH(__m512i, 16, r.v[i] = a.v[i] - b.v[i])
static inline __m512i _mm512_sub_epi8(__m512i a, __m512i b) EACH(__m512i, 64, r.u[i] = (uint8_t)(a.u[i] - b.u[i]))
static inline __m512i _mm512_and_si512(__m512i a, __m512i b) EACH(__m512i, 16, r.v[i] = a.v[i] & b.v[i])
static inline __m512i _mm512_slli_epi32(__m512i a, unsigned by) EACH(__m512i, 16, r.v[i] = a.v[i] << by)
static inline __m512i _mm512_srli_epi16(__m512i a, unsigned by) EACH(__m512i, 32, r.h[i] = (uint16_t)(a.h[i] >> by))
static inline __m512 _mm512_cvtepi32_ps(__m512i a) EACH(__m512, 16, r.f[i] = (float)a.w[i])
static inline __m512i _mm512_cvtepi8_epi32(__m128i a) EACH(__m512i, 16, r.w[i] = a.b[i])
static inline __m512 _mm512_mul_ps(__m512 a, __m512 b) EACH(__m512, 16, r.f[i] = a.f[i] * b.f[i])
static inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) EACH(__m512, 16, r.f[i] = fmaf(a.f[i], b.f[i], c.f[i]))
static inline __m512i _mm512_shuffle_epi8(__m512i a, __m512i by)
    EACH(__m512i, 64, r.u[i] = by.u[i] & 128 ? 0 : a.u[i / 16 * 16 + (by.u[i] & 15)])

static inline __m512 _mm512_cvtph_ps(__m256i a)
{
    __m512 r;
    for (int i = 0; i < 16; i++) {
        int exponent = a.h[i] >> 10 & 31, fraction = a.h[i] & 1023;
        float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                   : exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
        r.f[i] = a.h[i] & 0x8000 ? -size : size;
    }
    return r;
}

static inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b)
{
    for (int i = 0; i < 64; i++)
        sum.w[i / 4] += (int)a.u[i] * (int)b.b[i];
    return sum;
}

static _Thread_local struct { int rows, bytes; int8_t b[16][64]; } tiles[8];

static inline void _tile_loadconfig(const void *config)
{
    for (int i = 0; i < 8; i++) {
        uint16_t bytes;
        memcpy(&bytes, (const uint8_t *)config + 16 + 2 * i, 2);
        tiles[i].bytes = bytes;
        tiles[i].rows = ((const uint8_t *)config)[48 + i];
    }
}

static inline void _tile_release(void) { memset(tiles, 0, sizeof tiles); }
static inline void _tile_zero(int t) { memset(tiles[t].b, 0, sizeof tiles[t].b); }

static inline void _tile_loadd(int t, const void *from, long stride)
{
    _tile_zero(t);
    for (int row = 0; row < tiles[t].rows; row++)
        memcpy(tiles[t].b[row], (const int8_t *)from + row * stride, (size_t)tiles[t].bytes);
}

static inline void _tile_stored(int t, void *to, long stride)
{
    for (int row = 0; row < tiles[t].rows; row++)
        memcpy((int8_t *)to + row * stride, tiles[t].b[row], (size_t)tiles[t].bytes);
}

/* Fours of bytes of a row of `a`, with those of a column of `b`, whose rows are fours of rows. */
static inline void _tile_dpbssd(int sums, int a, int b)
{
    if (tiles[b].rows != tiles[a].bytes / 4)
        __builtin_trap();
    for (int row = 0; row < tiles[sums].rows; row++)
        for (int column = 0; column < tiles[sums].bytes / 4; column++) {
            int32_t sum;
            memcpy(&sum, &tiles[sums].b[row][4 * column], 4);
            for (int k = 0; k < tiles[a].bytes; k++)
                sum += tiles[a].b[row][k] * tiles[b].b[k / 4][4 * column + k % 4];
            memcpy(&tiles[sums].b[row][4 * column], &sum, 4);
        }
}
