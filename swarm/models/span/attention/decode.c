/* Attention of single positions, each of a sequence of its own: softmax(q K^T scale) V in float32.
 *
 * All sums are in an order that depends on the sequence alone, so a position's result is the same bits whatever shares
 * the call, and on every processor.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define WIDE 8
typedef float floats_t __attribute__((vector_size(4 * WIDE)));
typedef int32_t whole_t __attribute__((vector_size(4 * WIDE)));

typedef struct {
    const float *query;    /* [query heads, head_dim], `query_stride` from head to head */
    const float *keys;     /* [key heads, length, head_dim], `key_stride` from head to head */
    const float *values;   /* [key heads, length, value_dim], `value_stride` from head to head */
    const uint8_t *mask;   /* [length], whether to attend; or NULL */
    float *output;         /* [query heads, value_dim] */
    int64_t length, query_stride, key_stride, value_stride;
} position_t;

typedef struct {
    int64_t heads, key_heads, head_dim, value_dim;
    float scale, cap;      /* of scores; no cap with 0 */
    const float *sinks;    /* [query heads], a score that has no value; or NULL */
} shape_t;

static inline floats_t load(const float *from)
{
    floats_t numbers;
    memcpy(&numbers, from, sizeof numbers);
    return numbers;
}

static inline float sum_of(floats_t n)
{
    return ((n[0] + n[4]) + (n[2] + n[6])) + ((n[1] + n[5]) + (n[3] + n[7]));
}

static inline float product(const float *a, const float *b, long count)
{
    floats_t first = {0}, second = {0};
    long k = 0;
    for (; k + 2 * WIDE <= count; k += 2 * WIDE) {
        first += load(a + k) * load(b + k);
        second += load(a + k + WIDE) * load(b + k + WIDE);
    }
    float rest = 0.0f;
    for (; k < count; k++)
        rest += a[k] * b[k];
    return sum_of(first + second) + rest;
}

/* e^x of numbers that are not positive, within 2 units of the last place (Cephes' expf); less than -87 gives 0. */
static inline floats_t power(floats_t x)
{
    const floats_t shift = (floats_t){0} + 0x1.8p23f;
    const whole_t small = x < -87.0f; /* and is not computed with: it may be infinite */
    const floats_t least = (floats_t){0} - 87.0f;
    x = (floats_t)(((whole_t)x & ~small) | ((whole_t)least & small));
    const floats_t rounded = x * 0x1.715476p0f + shift, n = rounded - shift;
    const floats_t r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats_t p = (floats_t){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (floats_t)((((whole_t)rounded - 0x4b400000 + 127) << 23) & ~small);
}

/* Scores become weights, not yet divided by their sum, which is returned. Room for WIDE more scores is behind them. */
static float weigh(float *scores, long length, float most)
{
    floats_t total = {0};
    for (long k = length; k % WIDE; k++)
        scores[k] = -INFINITY;
    for (long k = 0; k < length; k += WIDE) {
        const floats_t weights = power(load(scores + k) - most);
        total += weights;
        memcpy(scores + k, &weights, sizeof weights);
    }
    return sum_of(total);
}

static inline __attribute__((always_inline)) void weighted(const float *weights, const float *value, long length,
                                                           long stride, float total, float *output, const int count)
{
    floats_t sums[4] = {{0}};
    for (long k = 0; k < length; k++)
        for (int part = 0; part < count / WIDE; part++)
            sums[part] += weights[k] * load(value + k * stride + part * WIDE);
    for (int part = 0; part < count / WIDE; part++) {
        sums[part] /= total;
        memcpy(output + part * WIDE, &sums[part], sizeof sums[part]);
    }
}

static void attend(const shape_t *s, const position_t *p, long head, float *scores)
{
    const long key_head = head / (s->heads / s->key_heads);
    const float *query = p->query + head * p->query_stride, *key = p->keys + key_head * p->key_stride;
    const float *value = p->values + key_head * p->value_stride;
    float most = s->sinks ? s->sinks[head] : -INFINITY, *output = p->output + head * s->value_dim;
    for (long k = 0; k < p->length; k++) {
        float score = product(query, key + k * s->head_dim, s->head_dim) * s->scale;
        if (s->cap != 0.0f)
            score = tanhf(score / s->cap) * s->cap;
        if (p->mask && !p->mask[k])
            score = -INFINITY;
        scores[k] = score;
        most = score > most ? score : most;
    }
    float total = weigh(scores, p->length, most);
    if (s->sinks)
        total += power((floats_t){0} + (s->sinks[head] - most))[0];
    long d = 0;
    for (; d + 4 * WIDE <= s->value_dim; d += 4 * WIDE)
        weighted(scores, value + d, p->length, s->value_dim, total, output + d, 4 * WIDE);
    for (; d + WIDE <= s->value_dim; d += WIDE)
        weighted(scores, value + d, p->length, s->value_dim, total, output + d, WIDE);
    for (; d < s->value_dim; d++) {
        float sum = 0.0f;
        for (long k = 0; k < p->length; k++)
            sum += scores[k] * value[k * s->value_dim + d];
        output[d] = sum / total;
    }
}

/* `work`: `room` floats for each thread, at least the longest length and WIDE. */
void swarm_attend(const shape_t *shape, const position_t *positions, long count, float *work, long room, int threads)
{
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
    for (int thread = 0; thread < threads; thread++)
        for (long at = thread; at < count * shape->heads; at += threads)
            attend(shape, positions + at / shape->heads, at % shape->heads, work + thread * room);
}
