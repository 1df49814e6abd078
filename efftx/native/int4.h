// Weights in int4, in groups of 64 with a scale in bfloat16 each, for kernels.cpp.
//
// A row stands for n weights, n' of them with the zeros that fill its last unit of 128. Byte i of a unit's 64 holds
// weight i in its lower and weight 64 + i in its upper half, as numbers plus 8; the n' / 64 scales follow the bytes of
// all units. Inputs are rounded to int16, a scale a group, and cut into an upper and a lower byte: so the products are
// those of bytes, four of which a processor adds up at a time, and the sums are exact.

#pragma once

#include "vectors.h"

#define GROUP 64
#define UNIT (2 * GROUP)
#define LARGEST_INPUT 32639 // 127 * 256 + 127
#define SUMS 16             // of four products each, in a group
#define INT4_AHEAD 512      // bytes of a matrix that are fetched before they are read: fewer than of int8, and nearer

static inline int64_t in_units(int64_t n) { return (n + UNIT - 1) / UNIT * UNIT; }
static inline int64_t int4_bytes(int64_t n) { return in_units(n) / 2 + in_units(n) / GROUP * 2; }

static inline float of_bfloat16(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Scale g of a packed row of n weights.
static inline float scale_of(const uint8_t *row, int64_t n, int64_t g) {
    return of_bfloat16(row + in_units(n) / 2 + 2 * g);
}

// A group of inputs: x[i] is (256 upper[i] + lower[i]) scale to within half a scale, the largest |x| of the group over
// LARGEST_INPUT. `less` takes back the 8 that each weight has too much, in sums of four. A group that holds an infinity
// or a NaN has the scale NaN.
struct Group4 {
    int8_t lower[GROUP], upper[GROUP];
    int32_t less[SUMS];
    float scale;
};

// Inputs for int4 rows, a `Group4` for each 64 of them, of 49 floats.
struct Inputs4 {
    const Group4 *group;

    // What has been put into `room`.
    Inputs4(const float *room, int64_t) : group(reinterpret_cast<const Group4 *>(room)) {}

    Inputs4(const float *x, int64_t n, float *room) : Inputs4(room, n) {
        Group4 *to = reinterpret_cast<Group4 *>(room);
        for (int64_t first = 0; first < in_units(n); first += GROUP, to++) {
            float from[GROUP] = {};
            int32_t q[GROUP];
            int64_t m = n - first < GROUP ? n - first : GROUP;
            if (m > 0) memcpy(from, x + first, m * sizeof(float));
            vec highest{}, odd{};
            for (int i = 0; i < GROUP; i += LANES) {
                vec v = load(from + i), size = v < vec{} ? -v : v;
                highest = size > highest ? size : highest;
                odd += v - v;
            }
            float largest = 0;
            for (int j = 0; j < LANES; j++) largest = highest[j] > largest ? highest[j] : largest;
            bool is_odd = !(sum_of(odd) == 0);
            float steps = largest > 0 && !is_odd ? LARGEST_INPUT / largest : 0;
            if (!(steps < INFINITY)) steps = 0; // all below 1e-34: they count as 0
            to->scale = is_odd ? NAN : largest / LARGEST_INPUT;
            for (int i = 0; i < GROUP; i += LANES) {
                vec v = is_odd ? vec{} : load(from + i) * splat(steps);
                ivec whole = __builtin_convertvector(v + (v < vec{} ? splat(-0.5f) : splat(0.5f)), ivec);
                memcpy(q + i, &whole, sizeof whole);
            }
            for (int i = 0; i < GROUP; i++) to->upper[i] = (int8_t)((q[i] + 128) >> 8);
            for (int i = 0; i < GROUP; i++) to->lower[i] = (int8_t)q[i]; // what 256 times the upper one leaves
            for (int i = 0; i < SUMS; i++)
                to->less[i] = -8 * (q[4 * i] + q[4 * i + 1] + q[4 * i + 2] + q[4 * i + 3]);
        }
    }
};

// The sums of x times a row, one total for each of the two groups of its units, in lanes.
struct Totals4 {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};

    static __m512i of(const void *at) { return _mm512_loadu_si512(at); }
    inline void add(int which, const Group4 &x, __m512i q, float scale) {
        __m512i lower = _mm512_dpbusd_epi32(of(x.less), q, of(x.lower));
        __m512i upper = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, of(x.upper));
        __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(lower, _mm512_slli_epi32(upper, 8)));
        total[which] = _mm512_fmadd_ps(sum, _mm512_set1_ps(x.scale * scale), total[which]);
    }
    inline void add(const Group4 *x, const uint8_t *bytes, float scale_0, float scale_1) {
        __m512i both = of(bytes), mask = _mm512_set1_epi8(15);
        add(0, x[0], _mm512_and_si512(both, mask), scale_0);
        add(1, x[1], _mm512_and_si512(_mm512_srli_epi16(both, 4), mask), scale_1);
    }
    inline float sum() const { return _mm512_reduce_add_ps(_mm512_add_ps(total[0], total[1])); }
#elif defined(__AVX2__)
    __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};

    static __m256i of(const void *at) { return _mm256_loadu_si256(static_cast<const __m256i *>(at)); }
    inline void add(int which, const Group4 &x, int half, __m256i q, float scale) {
        __m256i ones = _mm256_set1_epi16(1); // pairs of products stay below 2 * 15 * 128
        __m256i lower = _mm256_madd_epi16(_mm256_maddubs_epi16(q, of(x.lower + 32 * half)), ones);
        __m256i upper = _mm256_madd_epi16(_mm256_maddubs_epi16(q, of(x.upper + 32 * half)), ones);
        __m256i sum = _mm256_add_epi32(_mm256_add_epi32(lower, of(x.less + 8 * half)), _mm256_slli_epi32(upper, 8));
        __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(x.scale * scale));
        total[which] = _mm256_add_ps(total[which], product);
    }
    inline void add(const Group4 *x, const uint8_t *bytes, float scale_0, float scale_1) {
        __m256i mask = _mm256_set1_epi8(15);
        for (int half = 0; half < 2; half++) {
            __m256i both = of(bytes + 32 * half);
            add(0, x[0], half, _mm256_and_si256(both, mask), scale_0);
            add(1, x[1], half, _mm256_and_si256(_mm256_srli_epi16(both, 4), mask), scale_1);
        }
    }
    inline float sum() const { return Halves<8>::sum(_mm256_add_ps(total[0], total[1])); }
#else
    float total = 0;

    inline void add(const Group4 *x, const uint8_t *bytes, float scale_0, float scale_1) {
        int32_t sums[2] = {};
        for (int i = 0; i < SUMS; i++) sums[0] += x[0].less[i], sums[1] += x[1].less[i];
        for (int i = 0; i < GROUP; i++) {
            sums[0] += (bytes[i] & 15) * (256 * x[0].upper[i] + x[0].lower[i]);
            sums[1] += (bytes[i] >> 4) * (256 * x[1].upper[i] + x[1].lower[i]);
        }
        total += x[0].scale * scale_0 * sums[0] + x[1].scale * scale_1 * sums[1];
    }
    inline float sum() const { return total; }
#endif
};

// x . row, a packed row of n weights; `after` is what is read next, a line of it fetched with each line.
static inline float dot(const Inputs4 &x, const uint8_t *row, int64_t n, const uint8_t *after) {
    Totals4 total;
    const uint8_t *scale = row + in_units(n) / 2;
    for (int64_t unit = 0; unit < in_units(n) / UNIT; unit++, scale += 4, after += GROUP + 4) {
        __builtin_prefetch(after, 0, 3);
        total.add(x.group + 2 * unit, row + unit * GROUP, of_bfloat16(scale), of_bfloat16(scale + 2));
    }
    return total.sum();
}

typedef uint8_t some_bytes __attribute__((vector_size(LANES)));

// y += sum_j h[j] row j of R packed rows of n weights, side by side; `after` as in `dot`, one a row.
template <int R>
static inline void add_rows4(float *y, const uint8_t *const *rows, const float *h, int64_t n,
                             const uint8_t *const *after) {
    for (int64_t unit = 0; unit < in_units(n) / UNIT; unit++) {
        for (int j = 0; j < R; j++) __builtin_prefetch(after[j] + unit * (GROUP + 4), 0, 2);
        float held[UNIT], *to = y + unit * UNIT;
        int64_t n_here = n - unit * UNIT < UNIT ? n - unit * UNIT : UNIT;
        if (n_here < UNIT) {
            memset(held, 0, sizeof held);
            memcpy(held, to, n_here * sizeof(float));
        }
        float *sums = n_here < UNIT ? held : to;
        float weight[R][2];
        for (int j = 0; j < R; j++)
            for (int g = 0; g < 2; g++) weight[j][g] = h[j] * scale_of(rows[j], n, 2 * unit + g);
        for (int64_t i = 0; i < GROUP; i += LANES) {
            vec first = load(sums + i), second = load(sums + GROUP + i);
            for (int j = 0; j < R; j++) {
                some_bytes both;
                memcpy(&both, rows[j] + unit * GROUP + i, sizeof both);
                ivec q = __builtin_convertvector(both, ivec); // to int32 first: compilers know that step
                first += (__builtin_convertvector(q & 15, vec) - splat(8)) * splat(weight[j][0]);
                second += (__builtin_convertvector(q >> 4, vec) - splat(8)) * splat(weight[j][1]);
            }
            store(sums + i, first), store(sums + GROUP + i, second);
        }
        if (n_here < UNIT) memcpy(to, held, n_here * sizeof(float));
    }
}

// A block of a packed row of n weights from unit `first` on, as int16; zeros where the row has ended.
static inline void widen(const uint8_t *row, int64_t n, int64_t first, int16_t *q, float *scale) {
    for (int64_t unit = 0; unit < BLOCK / UNIT; unit++, q += UNIT) {
        bool is_there = first + unit < in_units(n) / UNIT;
        const uint8_t *bytes = row + (first + unit) * GROUP;
        for (int g = 0; g < 2; g++) scale[2 * unit + g] = is_there ? scale_of(row, n, 2 * (first + unit) + g) : 0;
        if (!is_there) memset(q, 0, UNIT * sizeof(int16_t));
        else
            for (int i = 0; i < GROUP; i++) q[i] = (bytes[i] & 15) - 8, q[GROUP + i] = (bytes[i] >> 4) - 8;
    }
}

// A block of WIDENED_ROWS rows of weights, widened to int16, with a scale for each GROUP of them.
struct Widened {
    int16_t q[WIDENED_ROWS][BLOCK];
    float scale[WIDENED_ROWS][BLOCK / GROUP];
};

// Adds the products of a block of X rows of inputs and one of rows of weights to sum[b][j], in lanes.
template <int X>
static inline void tile_dots(const RoundedBy<GROUP> *x, int64_t block, const Widened &w, vec (*sum)[WIDENED_ROWS]) {
    for (int64_t g = 0; g < BLOCK / GROUP; g++) {
        ivec whole[X][WIDENED_ROWS] = {};
        for (int64_t k = g * GROUP; k < (g + 1) * GROUP; k += 2 * LANES)
            for (int b = 0; b < X; b++)
                for (int j = 0; j < WIDENED_ROWS; j++)
                    whole[b][j] = add_products(whole[b][j], load(x[b].q + block * BLOCK + k), load(w.q[j] + k));
        for (int b = 0; b < X; b++)
            for (int j = 0; j < WIDENED_ROWS; j++) {
                float scale = x[b].scale[block * (BLOCK / GROUP) + g] * w.scale[j][g];
                sum[b][j] += __builtin_convertvector(whole[b][j], vec) * splat(scale);
            }
    }
}
