/* What kernel.c uses of AVX2, AVX-512 and AMX, in plain C, by Intel's description of each instruction
 * (https://www.intel.com/content/www/us/en/docs/intrinsics-guide/): its kernels can be tried on any processor. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef union { int8_t b[16]; uint8_t u[16]; } __m128i;
typedef union { int8_t b[32]; uint8_t u[32]; uint16_t h[16]; int16_t s[16]; int32_t w[8]; uint32_t v[8]; } __m256i;
typedef struct { float f[8]; } __m256;
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

static inline float half(uint16_t bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
               : exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
    return bits & 0x8000 ? -size : size;
}

static inline __m512 _mm512_cvtph_ps(__m256i a) EACH(__m512, 16, r.f[i] = half(a.h[i]))

static inline __m128i _mm_setr_epi8(char a, char b, char c, char d, char e, char f, char g, char h,
                                    char i, char j, char k, char l, char m, char n, char o, char p)
{
    return (__m128i){.b = {a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p}};
}
static inline __m128i _mm_loadl_epi64(const __m128i *p) { __m128i r = {.b = {0}}; memcpy(&r, p, 8); return r; }
static inline void _mm256_storeu_si256(__m256i *p, __m256i a) { memcpy(p, &a, 32); }
static inline __m256 _mm256_loadu_ps(const float *p) { __m256 r; memcpy(&r, p, 32); return r; }
static inline void _mm256_storeu_ps(float *p, __m256 a) { memcpy(p, &a, 32); }
static inline __m256i _mm256_set1_epi8(char a) EACH(__m256i, 32, r.b[i] = (int8_t)a)
static inline __m256i _mm256_set1_epi16(short a) EACH(__m256i, 16, r.s[i] = a)
static inline __m256i _mm256_set1_epi32(int a) EACH(__m256i, 8, r.w[i] = a)
static inline __m256i _mm256_setzero_si256(void) EACH(__m256i, 8, r.w[i] = 0)
static inline __m256 _mm256_setzero_ps(void) EACH(__m256, 8, r.f[i] = 0)
static inline __m256 _mm256_set1_ps(float a) EACH(__m256, 8, r.f[i] = a)
static inline __m256i _mm256_broadcastsi128_si256(__m128i a) EACH(__m256i, 32, r.u[i] = a.u[i % 16])
static inline __m256i _mm256_and_si256(__m256i a, __m256i b) EACH(__m256i, 8, r.v[i] = a.v[i] & b.v[i])
static inline __m256i _mm256_srli_epi16(__m256i a, int by) EACH(__m256i, 16, r.h[i] = (uint16_t)(a.h[i] >> by))
static inline __m256i _mm256_add_epi32(__m256i a, __m256i b) EACH(__m256i, 8, r.v[i] = a.v[i] + b.v[i])
static inline __m256i _mm256_sub_epi32(__m256i a, __m256i b) EACH(__m256i, 8, r.v[i] = a.v[i] - b.v[i])
static inline __m256i _mm256_madd_epi16(__m256i a, __m256i b)
    EACH(__m256i, 8, r.w[i] = a.s[2 * i] * b.s[2 * i] + a.s[2 * i + 1] * b.s[2 * i + 1])
static inline __m256i _mm256_shuffle_epi8(__m256i a, __m256i by)
    EACH(__m256i, 32, r.u[i] = by.u[i] & 128 ? 0 : a.u[i / 16 * 16 + (by.u[i] & 15)])
static inline __m256i _mm256_cvtepi8_epi32(__m128i a) EACH(__m256i, 8, r.w[i] = a.b[i])
static inline __m256 _mm256_cvtepi32_ps(__m256i a) EACH(__m256, 8, r.f[i] = (float)a.w[i])
static inline __m256 _mm256_mul_ps(__m256 a, __m256 b) EACH(__m256, 8, r.f[i] = a.f[i] * b.f[i])
static inline __m256 _mm256_fmadd_ps(__m256 a, __m256 b, __m256 c) EACH(__m256, 8, r.f[i] = fmaf(a.f[i], b.f[i], c.f[i]))

static inline __m256 _mm256_cvtph_ps(__m128i a)
{
    __m256 r;
    uint16_t bits[8];
    memcpy(bits, &a, 16);
    for (int i = 0; i < 8; i++)
        r.f[i] = half(bits[i]);
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
