// Weights in int4, in groups of 32 with a scale in bfloat16 each, for kernels.cpp.
//
// A row stands for n weights, n' of them with the zeros that fill its last unit of 128. Word 16 u + l of its n' / 8
// words holds weight 128 u + 16 t + l in bits 4 t to 4 t + 3, t = 0 .. 7, as a number plus 8; its n' / 32 scales follow.
// So a vector of words is eight vectors of weights, of any number of lanes up to 16.

#pragma once

#include "vectors.h"

#define UNIT 128
#define GROUP 32
#define SIDE_BY_SIDE 16 // weights of a unit that lie side by side

typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec_u __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline int64_t in_units(int64_t n) { return (n + UNIT - 1) / UNIT * UNIT; }
static inline int64_t int4_bytes(int64_t n) { return in_units(n) / 2 + in_units(n) / (GROUP / 2); }

// Of a packed row of n weights.
struct Row4 {
    const uint8_t *at, *scales;

    Row4(const uint8_t *at, int64_t n) : at(at), scales(at + in_units(n) / 2) {}

    uvec words(int64_t unit, int64_t lane) const {
        return *reinterpret_cast<const uvec_u *>(at + unit * (UNIT / 2) + 4 * lane);
    }
    float scale(int64_t group) const {
        uint16_t half;
        memcpy(&half, scales + 2 * group, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
};

// 1.5 + q / 16 of the weights t of some words: q + 8 as the first bits of a fraction, so that no integer is converted.
template <int t> static inline vec sixteenths(uvec words) {
    uvec moved = t < 5 ? words << (t < 5 ? 19 - 4 * t : 0) : words >> (t < 5 ? 0 : 4 * t - 19);
    return (vec)((moved & (15u << 19)) | 0x3F800000u);
}

// Inputs for int4 rows: x itself in whole units, and for each group and lane -1.5 times its two inputs, which takes
// back what `sixteenths` has too much. They fill 3 / 2 n' floats of room.
struct Inputs4 {
    const float *x, *less;

    // What has been put into `room`.
    Inputs4(const float *room, int64_t n) : x(room), less(room + in_units(n)) {}

    Inputs4(const float *from, int64_t n, float *room) : Inputs4(room, n) {
        int64_t whole = in_units(n);
        memcpy(room, from, n * sizeof(float));
        memset(room + n, 0, (whole - n) * sizeof(float));
        for (int64_t i = 0, k = whole; i < whole; i += GROUP)
            for (int64_t l = 0; l < SIDE_BY_SIDE; l++) room[k++] = -1.5f * (room[i + l] + room[i + SIDE_BY_SIDE + l]);
    }
};

// Adds a group's part of x . row to `total`: weights 2 g and 2 g + 1 of the words.
template <int g>
static inline void add_group(const Inputs4 &x, int64_t unit, int64_t lane, uvec words, const Row4 &row, vec &total) {
    const float *inputs = x.x + unit * UNIT + g * GROUP + lane;
    int64_t group = unit * (UNIT / GROUP) + g;
    vec sum = load(x.less + group * SIDE_BY_SIDE + lane);
    sum += sixteenths<2 * g>(words) * load(inputs);
    sum += sixteenths<2 * g + 1>(words) * load(inputs + SIDE_BY_SIDE);
    total += sum * splat(row.scale(group));
}

// y[j] = x . row j of R packed rows of n weights; `after` is what is read next, a line of it fetched with each line.
template <int R>
static inline void dots(const Inputs4 &x, const uint8_t *const *rows, int64_t n, const uint8_t *after, float *y) {
    vec total[R][4] = {};
    for (int64_t unit = 0; unit < in_units(n) / UNIT; unit++) {
        for (int j = 0; j < R; j++)
            __builtin_prefetch(after + (unit * R + j) * (UNIT / 2 + UNIT / (GROUP / 2)), 0, 2);
        for (int64_t lane = 0; lane < SIDE_BY_SIDE; lane += LANES)
            for (int j = 0; j < R; j++) {
                Row4 row(rows[j], n);
                uvec words = row.words(unit, lane);
                add_group<0>(x, unit, lane, words, row, total[j][0]);
                add_group<1>(x, unit, lane, words, row, total[j][1]);
                add_group<2>(x, unit, lane, words, row, total[j][2]);
                add_group<3>(x, unit, lane, words, row, total[j][3]);
            }
    }
    for (int j = 0; j < R; j++) y[j] = 16 * sum_of((total[j][0] + total[j][1]) + (total[j][2] + total[j][3]));
}

template <int t> static inline void add_weights(uvec words, float h, vec &y) { y += sixteenths<t>(words) * splat(h); }

// y += sum_j h[j] row j of R packed rows of n weights, side by side; `after` as in `dots`, one a row.
template <int R>
static inline void add_rows4(float *y, const uint8_t *const *rows, const float *h, int64_t n,
                             const uint8_t *const *after) {
    for (int64_t unit = 0; unit < in_units(n) / UNIT; unit++) {
        for (int j = 0; j < R; j++) __builtin_prefetch(after[j] + unit * (UNIT / 2 + UNIT / (GROUP / 2)), 0, 2);
        float held[UNIT], *to = y + unit * UNIT;
        int64_t n_here = n - unit * UNIT < UNIT ? n - unit * UNIT : UNIT;
        if (n_here < UNIT) {
            memset(held, 0, sizeof held);
            memcpy(held, to, n_here * sizeof(float));
        }
        float *sums = n_here < UNIT ? held : to;
        float weight[R][4], less[4] = {};
        for (int j = 0; j < R; j++)
            for (int g = 0; g < 4; g++) {
                weight[j][g] = 16 * h[j] * Row4(rows[j], n).scale(unit * (UNIT / GROUP) + g);
                less[g] -= 1.5f * weight[j][g];
            }
        for (int64_t lane = 0; lane < SIDE_BY_SIDE; lane += LANES) {
            vec sum[8];
            for (int t = 0; t < 8; t++) sum[t] = load(sums + t * SIDE_BY_SIDE + lane) + splat(less[t / 2]);
            for (int j = 0; j < R; j++) {
                uvec words = Row4(rows[j], n).words(unit, lane);
                add_weights<0>(words, weight[j][0], sum[0]), add_weights<1>(words, weight[j][0], sum[1]);
                add_weights<2>(words, weight[j][1], sum[2]), add_weights<3>(words, weight[j][1], sum[3]);
                add_weights<4>(words, weight[j][2], sum[4]), add_weights<5>(words, weight[j][2], sum[5]);
                add_weights<6>(words, weight[j][3], sum[6]), add_weights<7>(words, weight[j][3], sum[7]);
            }
            for (int t = 0; t < 8; t++) store(sums + t * SIDE_BY_SIDE + lane, sum[t]);
        }
        if (n_here < UNIT) memcpy(to, held, n_here * sizeof(float));
    }
}

// y (n', a float each) = the weights of a packed row of n.
static inline void unpack(const uint8_t *packed, int64_t n, float *y) {
    memset(y, 0, in_units(n) * sizeof(float));
    const uint8_t *rows[] = {packed};
    const float one = 1;
    add_rows4<1>(y, rows, &one, in_units(n), rows);
}
