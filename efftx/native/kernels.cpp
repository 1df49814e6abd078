// A token's way through a block of layers as a program of operations, run by one team of threads from its first read
// to its last. Between the reads of large matrices every call, frame and object of an interpreter is cold; here
// nothing but a barrier stands between two operations. One token of one row or of a few, weights in float32, int8 or
// int4, no allocation. Several rows read a matrix once; rows of a matrix that they choose are each row's own.
//
// Shape letters: B rows of the batch, D inputs, O outputs, G blocks of units, N units a block, R rank, S modules, m
// width of a module, F positions, H heads, d width of a head, T tokens of capacity.

#include "int4.h"
#include "vectors.h"

#include <algorithm>
#include <ctime>
#include <omp.h>
#include <type_traits>

// One operation. `x` is what it reads, or null: what the last norm of this program made; with `norm_w` x is normed
// first. `y` is what it writes, or with `adds` adds to. What `size` and `at` hold is said with each operation. The
// steps are the floats from one row of the batch to the next; 0 is what all rows share.
struct Op {
    int64_t kind, adds, relu;
    int64_t size[8];
    double eps, scale;
    const float *norm_w, *norm_b, *x;
    float *y;
    const void *at[12];
    int64_t x_step, y_step, step[12];

    const float *in(int i) const { return static_cast<const float *>(at[i]); }
    const int8_t *bytes(int i) const { return static_cast<const int8_t *>(at[i]); }
    const uint8_t *packed(int i) const { return static_cast<const uint8_t *>(at[i]); }
    float *out(int i) const { return static_cast<float *>(const_cast<void *>(at[i])); }
};

// One thread of the team: its number, how many there are, room of its own and room that all share.
struct Thread {
    int64_t me, all;
    float *own, *common;

    Range share(int64_t n) const { return ::share(n, me, all); }
};

// The inputs of an operation: the first row's, how far apart rows are, how many, and room for them in the form that
// rows of int8 or int4 take, a `rounded` each.
struct Inputs {
    const float *x;
    int64_t step, B;
    float *room;
    int64_t rounded;

    const float *row(int64_t b) const { return x + b * step; }
};

// `op` for row b of the batch alone.
static Op of_row(const Op &op, int64_t b) {
    Op one = op;
    if (op.y) one.y = op.y + b * op.y_step;
    for (int i = 0; i < 12; i++)
        if (op.step[i]) one.at[i] = op.in(i) + b * op.step[i];
    return one;
}

#define BARRIER _Pragma("omp barrier")

// (x - mean) / sqrt(variance + eps) w + b.
static void norm(const float *x, int64_t D, const float *w, const float *b, double eps, float *y) {
    vec total{};
    int64_t i = 0;
    for (; i + LANES <= D; i += LANES) total += load(x + i);
    float sum = sum_of(total);
    for (; i < D; i++) sum += x[i];
    float mean = sum / D;
    vec squares{};
    for (i = 0; i + LANES <= D; i += LANES) {
        vec c = load(x + i) - splat(mean);
        squares += c * c;
    }
    float square = sum_of(squares);
    for (; i < D; i++) square += (x[i] - mean) * (x[i] - mean);
    float scale = 1 / std::sqrt(square / D + (float)eps);
    for (i = 0; i + LANES <= D; i += LANES)
        store(y + i, (load(x + i) - splat(mean)) * splat(scale) * load(w + i) + load(b + i));
    for (; i < D; i++) y[i] = (x[i] - mean) * scale * w[i] + b[i];
}

static inline void put(const Op &op, int64_t i, float value) {
    if (op.relu && value < 0) value = 0;
    op.y[i] = op.adds ? op.y[i] + value : value;
}

// For y[b, i].
static inline void put(const Op &op, int64_t b, int64_t i, float value) { put(op, b * op.y_step + i, value); }

// Calls `found(b, o + j, x[b] . w[j])` for four rows w (4, D), after which the next are read, and all rows of x: COLUMNS
// of w at a time stay in the nearest cache, and the sums of a few rows of x in the registers.
template <typename Found>
static inline void four_products(const Inputs &x, const float *w, int64_t D, int64_t o, Found found) {
    const float *inputs[MOST_ROWS], *rows[4] = {w, w + D, w + 2 * D, w + 3 * D};
    vec sum[MOST_ROWS][4] = {};
    for (int64_t b = 0; b < x.B; b++) inputs[b] = x.row(b);
    for (int64_t from = 0, to; from < D; from = to) {
        to = std::min<int64_t>(from + COLUMNS, D);
        Fetcher ahead;
        if (to < D) ahead.add(w + to, std::min<int64_t>(D - to, COLUMNS), 4, D);
        else ahead.add(w + 4 * D, std::min<int64_t>(D, COLUMNS), 4, D);
        tile_dots(inputs, x.B, rows, from, to, sum, ahead);
    }
    for (int64_t b = 0; b < x.B; b++)
        for (int j = 0; j < 4; j++) {
            float total = sum_of(sum[b][j]);
            for (int64_t i = D - D % LANES; i < D; i++) total += inputs[b][i] * rows[j][i];
            found(b, o + j, total);
        }
}

// Calls `found(b, o, x[b] . w[o])` for the rows w (O, D) of a range.
template <typename Found>
static inline void products(const Inputs &x, const float *w, int64_t D, Range mine, const Thread &, Found found) {
    int64_t o = mine.first;
    for (; o + 4 <= mine.last; o += 4) {
        if (x.B > 1) {
            four_products(x, w + o * D, D, o, found);
            continue;
        }
        float sum[4];
        dots(x.x, rows_of(w + o * D, D), D, sum);
        for (int j = 0; j < 4; j++) found(0, o + j, sum[j]);
    }
    for (; o < mine.last; o++)
        for (int64_t b = 0; b < x.B; b++) found(b, o, dot(x.row(b), w + o * D, D));
}

// Each row of inputs is rounded by one thread.
template <int64_t N> static inline void round_rows(const Inputs &x, int64_t D, const Thread &t) {
    for (int64_t b = t.me; b < x.B; b += t.all) RoundedBy<N>(x.row(b), D, x.room + b * x.rounded);
    BARRIER
}

// Calls `add(many, inputs, b)` for rows of inputs from b on that have been rounded, 4, 2 or 1 at a time.
template <int64_t N, typename Add> static inline void by_fours(const Inputs &x, int64_t D, Add add) {
    for (int64_t b = 0, many; b < x.B; b += many) {
        many = x.B - b < 2 ? 1 : x.B - b < 4 ? 2 : 4;
        auto row = [&](int64_t k) { return RoundedBy<N>(x.room + (b + k % many) * x.rounded, D); };
        const RoundedBy<N> some[] = {row(0), row(1), row(2), row(3)};
        add(many, some, b);
    }
}

// Calls `found(b, o, x[b] . w[o])` for the rows w (O, D) of a range in int8, without their scales. A single row of
// inputs is rounded by every thread for itself; for several, WIDENED_ROWS of weights stay in the nearest cache.
template <typename Found>
static inline void products(const Inputs &x, const int8_t *w, int64_t D, Range mine, const Thread &t, Found found) {
    if (x.B == 1) {
        Rounded inputs(x.x, D, t.own);
        for (int64_t o = mine.first; o < mine.last; o++)
            found(0, o, dot(inputs, w + o * D, D, w + o * D + BYTES_AHEAD));
        return;
    }
    round_rows<BLOCK>(x, D, t);
    int64_t o = mine.first;
    for (; o + WIDENED_ROWS <= mine.last; o += WIDENED_ROWS) {
        by_fours<BLOCK>(x, D, [&](int64_t many, const Rounded *some, int64_t b) {
            const int8_t *rows = w + o * D;
            const int8_t *next = b ? nullptr : rows + std::max<int64_t>(WIDENED_ROWS * D, BYTES_AHEAD);
            vec sum[4][WIDENED_ROWS] = {};
            if (many == 1) dots<1>(some, rows, D, next, sum);
            else if (many == 2) dots<2>(some, rows, D, next, sum);
            else dots<4>(some, rows, D, next, sum);
            for (int64_t i = 0; i < many; i++)
                for (int j = 0; j < WIDENED_ROWS; j++) found(b + i, o + j, sum_of(sum[i][j]));
        });
    }
    for (; o < mine.last; o++)
        for (int64_t b = 0; b < x.B; b++)
            found(b, o, dot(Rounded(x.room + b * x.rounded, D), w + o * D, D, w + o * D + BYTES_AHEAD));
}

// The same of rows in int4. A single row of inputs is prepared by every thread for itself; for several, a block of
// WIDENED_ROWS of weights is widened once for all.
template <typename Found>
static inline void products(const Inputs &x, const uint8_t *w, int64_t D, Range mine, const Thread &t, Found found) {
    int64_t bytes = int4_bytes(D);
    if (x.B == 1) {
        Inputs4 inputs(x.x, D, t.own);
        for (int64_t o = mine.first; o < mine.last; o++)
            found(0, o, dot(inputs, w + o * bytes, D, w + o * bytes + INT4_AHEAD));
        return;
    }
    round_rows<GROUP>(x, D, t);
    Widened widened = {};
    for (int64_t o = mine.first; o < mine.last; o += WIDENED_ROWS) {
        int64_t n_rows = std::min<int64_t>(mine.last - o, WIDENED_ROWS);
        vec sum[MOST_ROWS][WIDENED_ROWS];
        memset(sum, 0, x.B * sizeof(sum[0]));
        for (int64_t block = 0; block < RoundedBy<GROUP>::blocks_of(D); block++) {
            for (int64_t j = 0; j < n_rows; j++) {
                const uint8_t *row = w + (o + j) * bytes, *next = row + WIDENED_ROWS * bytes + block * (BLOCK / 2);
                fetch_row(reinterpret_cast<const int8_t *>(next), BLOCK / 2);
                widen(row, D, block * (BLOCK / UNIT), widened.q[j], widened.scale[j]);
            }
            by_fours<GROUP>(x, D, [&](int64_t many, const RoundedBy<GROUP> *some, int64_t b) {
                if (many == 1) tile_dots<1>(some, block, widened, sum + b);
                else if (many == 2) tile_dots<2>(some, block, widened, sum + b);
                else tile_dots<4>(some, block, widened, sum + b);
            });
        }
        for (int64_t j = 0; j < n_rows; j++)
            for (int64_t b = 0; b < x.B; b++) found(b, o + j, sum_of(sum[b][j]));
    }
}

// y[o] = bias[o] + x . w[o]: size D, O; at w (O, D), bias (O) or null.
static void matvec(const Op &op, const Inputs &x, const Thread &t) {
    const float *bias = op.in(1);
    products(x, op.in(0), op.size[0], t.share(op.size[1]), t,
             [&](int64_t b, int64_t o, float sum) { put(op, b, o, sum + (bias ? bias[o] : 0)); });
}

// The same of int8 weights: at w (O, D) int8, bias (O) or null, the scales (O) of w's rows.
static void matvec_int8(const Op &op, const Inputs &x, const Thread &t) {
    const float *bias = op.in(1), *scale = op.in(2);
    products(x, op.bytes(0), op.size[0], t.share(op.size[1]), t,
             [&](int64_t b, int64_t o, float sum) { put(op, b, o, scale[o] * sum + (bias ? bias[o] : 0)); });
}

// The same of packed int4 rows, which hold their scales.
static void matvec_int4(const Op &op, const Inputs &x, const Thread &t) {
    const float *bias = op.in(1);
    products(x, op.packed(0), op.size[0], t.share(op.size[1]), t,
             [&](int64_t b, int64_t o, float sum) { put(op, b, o, sum + (bias ? bias[o] : 0)); });
}

// The unit that a fixed hash of a token names in block g of N: `hashed_units` of ops/sparse_ff.py.
static int64_t hashed_unit(uint64_t token, uint64_t g, uint64_t salt, int64_t N) {
    uint64_t z = token * 0x9E3779B97F4A7C15 + g * 0xC2B2AE3D27D4EB4F + salt * 0x165667B19E3779F9;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return ((z ^ z >> 31) & 0x7FFFFFFF) % N;
}

// What is added to the logits of block g for row b: `bias` (G, N), and where there are tokens, at[9] (B) int64, the
// operation's scale more at the unit that the hash of size[7] names, in room for N.
static const float *biases_of(const Op &op, const float *bias, int64_t b, int64_t g, float *room) {
    const int64_t *token = static_cast<const int64_t *>(op.at[9]), N = op.size[2];
    if (!token) return bias + g * N;
    memcpy(room, bias + g * N, N * sizeof(float));
    room[hashed_unit(token[b], g, op.size[7], N)] += (float)op.scale;
    return room;
}

// row[b, g] = g N + the unit of block g with the largest bias + C2 (C1 x[b]): size D, G, N, R; at c1 (R, D), c2 by
// blocks (G, R, N), bias (G, N), w1 and w2 (G N, D), of which the rows that a single x chooses are fetched
// meanwhile; row (B, G) int64. The bias with a hash is that of `biases_of`.
static void choose(const Op &op, const Inputs &x, const Thread &t) {
    int64_t D = op.size[0], G = op.size[1], N = op.size[2], R = op.size[3];
    const float *c2 = op.in(1), *bias = op.in(2), *w1 = op.in(3), *w2 = op.in(4);
    int64_t *row = static_cast<int64_t *>(const_cast<void *>(op.at[5]));
    float *z = t.common;
    int64_t fetched = x.B > 1 ? 0 : 8 * D * G <= t.all << 19 ? D : 64; // whole rows only where the cache keeps them
    Range mine = t.share(G);
    if (mine.first < mine.last) fetch_row(c2 + mine.first * R * N, R * N < 4096 ? R * N : 4096);
    products(x, op.in(0), D, t.share(R), t, [&](int64_t b, int64_t r, float sum) { z[b * R + r] = sum; });
    BARRIER
    for (int64_t g = mine.first; g < mine.last; g++)
        for (int64_t b = 0; b < x.B; b++) {
            int64_t chosen = g * N + best_unit(z + b * R, c2 + g * R * N, biases_of(op, bias, b, g, t.own), R, N);
            row[b * G + g] = chosen;
            fetch_row(w1 + chosen * D, fetched);
            fetch_row(w2 + chosen * D, fetched);
        }
}

// The same of a controller in int8: size D, G, N, R, the bytes of a row of w1 and of w2, which are int8 or int4; at c1,
// c2, bias, w1, w2 and row as there, the scales of c1 (R) and of c2 (G, N).
static void choose_int8(const Op &op, const Inputs &x, const Thread &t) {
    int64_t D = op.size[0], G = op.size[1], N = op.size[2], R = op.size[3];
    int64_t bytes_1 = op.size[4], bytes_2 = op.size[5];
    const int8_t *c2 = op.bytes(1), *w1 = op.bytes(3), *w2 = op.bytes(4);
    const float *bias = op.in(2), *scale_1 = op.in(6), *scale_2 = op.in(7);
    int64_t *row = static_cast<int64_t *>(const_cast<void *>(op.at[5]));
    float *z = t.common;
    bool whole = (bytes_1 + bytes_2) * G <= t.all << 19;
    Range mine = t.share(G);
    if (mine.first < mine.last) fetch_row(c2 + mine.first * R * N, R * N < 16384 ? R * N : 16384);
    products(x, op.bytes(0), D, t.share(R), t,
             [&](int64_t b, int64_t r, float sum) { z[b * R + r] = scale_1[r] * sum; });
    BARRIER
    for (int64_t g = mine.first; g < mine.last; g++)
        for (int64_t b = 0; b < x.B; b++) {
            const float *biases = biases_of(op, bias, b, g, t.own + N);
            int64_t best = best_unit(z + b * R, c2 + g * R * N, scale_2 + g * N, biases, R, N, t.own);
            row[b * G + g] = g * N + best;
            if (x.B > 1) continue;
            fetch_row(w1 + row[b * G + g] * bytes_1, whole ? bytes_1 : BYTES);
            fetch_row(w2 + row[b * G + g] * bytes_2, whole ? bytes_2 : BYTES);
        }
}

// row[b, g] = g N + the unit of block g that the hash of size[7] names for the token of row b, at[9] (B) int64: size D,
// G, N, the bytes of a row of w1 and of w2; at w1 and w2, of which the rows of a single token are fetched, and row (B, G)
// int64.
static void choose_hashed(const Op &op, const Inputs &x, const Thread &t) {
    int64_t G = op.size[1], N = op.size[2], bytes_1 = op.size[3], bytes_2 = op.size[4];
    const int8_t *w1 = op.bytes(3), *w2 = op.bytes(4);
    int64_t *row = static_cast<int64_t *>(const_cast<void *>(op.at[5]));
    const int64_t *token = static_cast<const int64_t *>(op.at[9]);
    bool whole = (bytes_1 + bytes_2) * G <= t.all << 19;
    Range mine = t.share(G);
    for (int64_t g = mine.first; g < mine.last; g++)
        for (int64_t b = 0; b < x.B; b++) {
            row[b * G + g] = g * N + hashed_unit(token[b], g, op.size[7], N);
            if (x.B > 1) continue;
            fetch_row(w1 + row[b * G + g] * bytes_1, whole ? bytes_1 : BYTES);
            fetch_row(w2 + row[b * G + g] * bytes_2, whole ? bytes_2 : BYTES);
        }
}

// This thread's part of y for row b of the batch: D floats of common room, which begin with the bias or with zeros.
static float *begin_part(const Op &op, const Thread &t, int64_t b) {
    int64_t D = op.size[0];
    float *part = t.common + (b * t.all + t.me) * D;
    if (t.me) memset(part, 0, D * sizeof(float));
    else memcpy(part, op.in(2), D * sizeof(float));
    return part;
}

// y = the sum of every thread's part.
static void add_parts(const Op &op, const Thread &t, int64_t B) {
    int64_t D = op.size[0];
    BARRIER
    Range mine = t.share(D);
    for (int64_t b = 0; b < B; b++) {
        const float *parts = t.common + b * t.all * D;
        for (int64_t i = mine.first; i < mine.last; i++) {
            float total = parts[i];
            for (int64_t j = 1; j < t.all; j++) total += parts[j * D + i];
            put(op, b, i, total);
        }
    }
}

#define TOGETHER 8 // rows of w1, and of w2, that are read side by side

// part += sum_g relu(x . w1[row[g]] + b1[row[g]]) w2[row[g]] over a range of g; b1 is where BIASED.
template <bool BIASED>
static void add_chosen(const Op &op, const float *x, const int64_t *row, Range mine, float *part) {
    int64_t D = op.size[0];
    const float *w1 = op.in(0), *w2 = op.in(1), *b1 = op.in(4);
    int64_t g = mine.first;
    for (; g + TOGETHER <= mine.last; g += TOGETHER) {
        Rows<TOGETHER> first, second;
        for (int j = 0; j < TOGETHER; j++) {
            first.at[j] = w1 + row[g + j] * D;
            second.at[j] = first.after[j] = w2 + row[g + j] * D;
            second.after[j] = g + j + TOGETHER < mine.last ? w1 + row[g + j + TOGETHER] * D : second.at[j];
        }
        float h[TOGETHER];
        dots(x, first, D, h);
        if (BIASED)
            for (int j = 0; j < TOGETHER; j++) h[j] += b1[row[g + j]];
        for (int j = 0; j < TOGETHER; j++) h[j] = h[j] > 0 ? h[j] : 0;
        add_scaled_rows(part, second, h, D);
    }
    for (; g < mine.last; g++) {
        float h = dot(x, w1 + row[g] * D, D) + (BIASED ? b1[row[g]] : 0);
        add_scaled(part, w2 + row[g] * D, h > 0 ? h : 0, D);
    }
}

// The same of int8 weights, w2's rows packed, `size[2]` bytes each; at the scales of w1's rows and of w2's. b1 may be
// null.
static void add_chosen_int8(const Op &op, const Rounded &x, const int64_t *row, Range mine, float *part) {
    int64_t D = op.size[0], packed = op.size[2];
    const int8_t *w1 = op.bytes(0);
    const uint8_t *w2 = static_cast<const uint8_t *>(op.at[1]);
    const float *b1 = op.in(4), *scale_1 = op.in(5), *scale_2 = op.in(6);
    auto second = [&](int64_t r) { return w2 + r * packed; };
    auto hidden = [&](int64_t r) { // times the scale of the row of w2 that it weighs, whose bytes are fetched meanwhile
        float sum = dot(x, w1 + r * D, D, reinterpret_cast<const int8_t *>(second(r)));
        float h = scale_1[r] * sum + (b1 ? b1[r] : 0);
        return h > 0 ? h * scale_2[r] : 0;
    };
    int64_t g = mine.first;
    for (; g + TOGETHER <= mine.last; g += TOGETHER) {
        const uint8_t *rows[TOGETHER];
        const int8_t *after[TOGETHER];
        float h[TOGETHER];
        for (int j = 0; j < TOGETHER; j++) {
            rows[j] = second(row[g + j]);
            after[j] = w1 + row[g + j + TOGETHER < mine.last ? g + j + TOGETHER : g + j] * D;
            h[j] = hidden(row[g + j]);
        }
        add_eight_rows(part, rows, h, D, after);
    }
    for (; g < mine.last; g++) add_scaled(part, second(row[g]), hidden(row[g]), D);
}

// The same of packed int4 rows.
static void add_chosen_int4(const Op &op, const Inputs4 &x, const int64_t *row, Range mine, float *part) {
    int64_t D = op.size[0], bytes = int4_bytes(D);
    const uint8_t *w1 = op.packed(0), *w2 = op.packed(1);
    const float *b1 = op.in(4);
    for (int64_t g = mine.first, n; g < mine.last; g += n) {
        n = std::min<int64_t>(TOGETHER, mine.last - g);
        const uint8_t *first[TOGETHER], *second[TOGETHER], *after[TOGETHER];
        float h[TOGETHER];
        for (int64_t j = 0; j < n; j++) {
            first[j] = w1 + row[g + j] * bytes, second[j] = w2 + row[g + j] * bytes;
            after[j] = g + n + j < mine.last ? w1 + row[g + n + j] * bytes : second[j];
        }
        for (int64_t j = 0; j < n; j++) {
            float sum = dot(x, first[j], D, second[j]) + (b1 ? b1[row[g + j]] : 0);
            h[j] = std::max(sum, 0.0f);
        }
        if (n == TOGETHER) add_rows4<TOGETHER>(part, second, h, D, after);
        else
            for (int64_t j = 0; j < n; j++) add_rows4<1>(part, second + j, h + j, D, after + j);
    }
}

// y = b2 + what `add_chosen` adds over all g, for every row of x: size D, G; at w1, w2 (.., D), b2 (D), row (B, G)
// int64, b1 (..). Rows of the batch take their turns with the same blocks, so that what two of them choose is read
// once.
template <bool BIASED> static void chosen_rows(const Op &op, const Inputs &x, const Thread &t) {
    int64_t G = op.size[1];
    const int64_t *row = static_cast<const int64_t *>(op.at[3]);
    float *part[MOST_ROWS];
    for (int64_t b = 0; b < x.B; b++) part[b] = begin_part(op, t, b);
    Range mine = t.share(G);
    int64_t turn = x.B == 1 ? G : TOGETHER;
    for (int64_t g = mine.first; g < mine.last; g += turn)
        for (int64_t b = 0; b < x.B; b++)
            add_chosen<BIASED>(op, x.row(b), row + b * G, {g, std::min(g + turn, mine.last)}, part[b]);
    add_parts(op, t, x.B);
}

// y = b2 + sum_g relu(x[g, i]) w2[g, i] of the largest x[g, i] of every block, the first of equals: size D, G, N; x (G,
// N); at b2 (D) as its third. `add(part, n, r, h, after)` adds n rows r of w2, n no more than TOGETHER, times h, and
// fetches the rows `after`.
template <typename Add> static void largest_rows(const Op &op, const Inputs &x, const Thread &t, Add add) {
    int64_t G = op.size[1], N = op.size[2];
    Range mine = t.share(G);
    for (int64_t b = 0; b < x.B; b++) {
        const float *inputs = x.row(b);
        float *part = begin_part(op, t, b);
        int64_t rows[2][TOGETHER] = {};
        auto find = [&](int64_t g, int64_t *row) { // of the blocks from g on; those of the last ones where there are none
            for (int64_t j = 0; j < TOGETHER && g + j < mine.last; j++) {
                const float *block = inputs + (g + j) * N;
                row[j] = (g + j) * N + (std::max_element(block, block + N) - block);
            }
        };
        find(mine.first, rows[0]);
        for (int64_t g = mine.first, turn = 0; g < mine.last; g += TOGETHER, turn ^= 1) {
            float h[TOGETHER];
            int64_t n = std::min<int64_t>(TOGETHER, mine.last - g);
            for (int64_t j = 0; j < n; j++) h[j] = inputs[rows[turn][j]] > 0 ? inputs[rows[turn][j]] : 0;
            std::copy_n(rows[turn], TOGETHER, rows[turn ^ 1]);
            find(g + TOGETHER, rows[turn ^ 1]);
            add(part, n, rows[turn], h, rows[turn ^ 1]);
        }
    }
    add_parts(op, t, x.B);
}

// Rows of w2 (G N, D), at's second.
static void largest_float_rows(const Op &op, const Inputs &x, const Thread &t) {
    int64_t D = op.size[0];
    const float *w2 = op.in(1);
    largest_rows(op, x, t, [&](float *part, int64_t n, const int64_t *r, const float *h, const int64_t *after) {
        if (n < TOGETHER)
            for (int64_t j = 0; j < n; j++) add_scaled(part, w2 + r[j] * D, h[j], D);
        if (n < TOGETHER) return;
        Rows<TOGETHER> rows;
        for (int j = 0; j < TOGETHER; j++) rows.at[j] = w2 + r[j] * D, rows.after[j] = w2 + after[j] * D;
        add_scaled_rows(part, rows, h, D);
    });
}

// The same of int8 rows, packed, `size[3]` bytes each, whose scales are at's fourth.
static void largest_int8_rows(const Op &op, const Inputs &x, const Thread &t) {
    int64_t D = op.size[0], bytes = op.size[3];
    const uint8_t *w2 = op.packed(1);
    const float *scale = op.in(3);
    largest_rows(op, x, t, [&](float *part, int64_t n, const int64_t *r, const float *h, const int64_t *after) {
        const uint8_t *rows[TOGETHER];
        const int8_t *next[TOGETHER];
        float scaled[TOGETHER];
        for (int64_t j = 0; j < n; j++) {
            rows[j] = w2 + r[j] * bytes, next[j] = op.bytes(1) + after[j] * bytes;
            scaled[j] = h[j] * scale[r[j]];
        }
        if (n == TOGETHER) return add_eight_rows(part, rows, scaled, D, next);
        for (int64_t j = 0; j < n; j++) add_scaled(part, rows[j], scaled[j], D);
    });
}

// The same of packed int4 rows.
static void largest_int4_rows(const Op &op, const Inputs &x, const Thread &t) {
    int64_t D = op.size[0], bytes = int4_bytes(D);
    const uint8_t *w2 = op.packed(1);
    largest_rows(op, x, t, [&](float *part, int64_t n, const int64_t *r, const float *h, const int64_t *after) {
        const uint8_t *rows[TOGETHER], *next[TOGETHER];
        for (int64_t j = 0; j < n; j++) rows[j] = w2 + r[j] * bytes, next[j] = w2 + after[j] * bytes;
        if (n == TOGETHER) return add_rows4<TOGETHER>(part, rows, h, D, next);
        for (int64_t j = 0; j < n; j++) add_rows4<1>(part, rows + j, h + j, D, next + j);
    });
}

// The same as `chosen_rows` of quantized rows: `Prepared` is the form of inputs that `add` takes.
template <typename Prepared, typename Add>
static void chosen_quantized_rows(const Op &op, const Inputs &x, const Thread &t, Add add) {
    int64_t D = op.size[0], G = op.size[1];
    const int64_t *row = static_cast<const int64_t *>(op.at[3]);
    float *part[MOST_ROWS];
    for (int64_t b = 0; b < x.B; b++) part[b] = begin_part(op, t, b);
    Range mine = t.share(G);
    if (x.B == 1) {
        add(op, Prepared(x.x, D, t.own), row, mine, part[0]);
    } else {
        for (int64_t b = t.me; b < x.B; b += t.all) Prepared(x.row(b), D, x.room + b * x.rounded);
        BARRIER
        for (int64_t g = mine.first; g < mine.last; g += TOGETHER)
            for (int64_t b = 0; b < x.B; b++)
                add(op, Prepared(x.room + b * x.rounded, D), row + b * G,
                    Range{g, std::min<int64_t>(g + TOGETHER, mine.last)}, part[b]);
    }
    add_parts(op, t, x.B);
}

// The multiplicative layer, h[s, j] = bias[s, j] + sum_i gate[s, i] x[i] proj[i, j], and up to three convolutions
// over it, y[c] (S, m) each: size D, S, m, F, the floats from one position to the next, and the modules that each
// convolution sees (0: there is none); at gate (S, D), proj (D, m), bias (S, m), where h is to be written, and for
// each convolution its kernel (F, modules, m, m) and bias (m). Position f of the F begins F - 1 - f positions before
// h, the newest, and empty modules stand on both sides.
static void modules(const Op &op, const float *x, const Thread &t) {
    int64_t D = op.size[0], S = op.size[1], m = op.size[2], F = op.size[3], position = op.size[4];
    const int64_t *n_modules = op.size + 5;
    int64_t n_conv = n_modules[0] ? n_modules[1] ? n_modules[2] ? 3 : 2 : 1 : 0, units = m / LANES;
    const float *gate = op.in(0), *proj = op.in(1), *bias = op.in(2);
    float *newest = op.out(3), *part = t.common + t.me * S * m, *gated = t.own;
    if (t.me) memset(part, 0, S * m * sizeof(float));
    else memcpy(part, bias, S * m * sizeof(float));
    Range due[3];
    deal(due, n_conv, n_modules, units, t.me, t.all);
    // This thread's columns of position f of convolution c; while one is read, the next is fetched.
    auto weights = [&](int64_t c, int64_t f) {
        return op.in(4 + 2 * c) + f * n_modules[c] * m * m + due[c].first * LANES;
    };
    auto fetch_part = [&](Fetcher &ahead, int64_t i) {
        while (i < n_conv * F && due[i / F].first == due[i / F].last) i++;
        if (i == n_conv * F) return;
        int64_t c = i / F;
        ahead.add(weights(c, i % F), (due[c].last - due[c].first) * LANES, n_modules[c] * m, m);
    };
    Range mine = t.share(D);
    int64_t chunks = (mine.last - mine.first + CHUNK - 1) / CHUNK;
    for (int64_t i = 0; i < chunks; i++) {
        int64_t k = mine.first + i * CHUNK, next = k + CHUNK;
        int64_t n = std::min<int64_t>(mine.last - k, CHUNK), n_next = std::min<int64_t>(mine.last - next, CHUNK);
        for (int64_t s = 0; s < S; s++) {
            const float *g = gate + s * D + k;
            int64_t j = 0;
            for (; j + LANES <= n; j += LANES) store(gated + s * CHUNK + j, load(g + j) * load(x + k + j));
            for (; j < n; j++) gated[s * CHUNK + j] = g[j] * x[k + j];
        }
        Fetcher ahead; // the next chunk, or the first kernel's first position
        ahead.add(gate + next, n_next, S, D);
        ahead.add(proj + next * m, n_next * m, 1, 0);
        if (i + 1 == chunks) fetch_part(ahead, 0);
        ahead.spread(tiles_of(S, units), n);
        add_product(FloatRows{gated, CHUNK}, proj + k * m, m, S, n, units, part, m, ahead);
    }
    BARRIER
    mine = t.share(S * m);
    for (int64_t i = mine.first; i < mine.last; i++) {
        float total = t.common[i];
        for (int64_t j = 1; j < t.all; j++) total += t.common[j * S * m + i];
        newest[i] = total;
    }
    BARRIER
    for (int64_t i = 0; i < n_conv * F; i++) {
        int64_t c = i / F, f = i % F, first = due[c].first * LANES, n = due[c].last - due[c].first;
        int64_t seen = n_modules[c] * m;
        if (!n) continue;
        float *y = op.y + c * S * m + first;
        for (int64_t s = 0; s < S && !f; s++) memcpy(y + s * m, op.in(5 + 2 * c) + first, n * LANES * sizeof(float));
        Fetcher ahead;
        fetch_part(ahead, i + 1);
        ahead.spread(tiles_of(S, n), seen);
        const float *inputs = newest - (F - 1 - f) * position - n_modules[c] / 2 * m;
        add_product(FloatRows{inputs, m}, weights(c, f), m, S, seen, n, y, m, ahead);
    }
}

// The same of weights in int8, projections and kernels in pairs of rows: size as there; at gate (S, D), proj (D / 2, m,
// 2), bias (S, m), where h is to be written, for each convolution its kernel (F, modules, m / 2, m, 2) and two rows (m),
// its bias and the scales of its columns, then the scales of the gate's rows (S) and of proj's columns (m). Gated
// inputs are rounded to int16 a chunk at a time, the convolutions' a module at a time.
static void modules_int8(const Op &op, const float *x, const Thread &t) {
    int64_t D = op.size[0], S = op.size[1], m = op.size[2], F = op.size[3], position = op.size[4];
    const int64_t *n_modules = op.size + 5;
    int64_t n_conv = n_modules[0] ? n_modules[1] ? n_modules[2] ? 3 : 2 : 1 : 0, units = m / LANES;
    const int8_t *gate = op.bytes(0), *proj = op.bytes(1);
    const float *bias = op.in(2), *gate_scale = op.in(10), *proj_scale = gate_scale + S;
    float *newest = op.out(3), *part = t.common + t.me * S * m, *scale = t.own;
    int16_t *rows = reinterpret_cast<int16_t *>(scale + S);
    memset(part, 0, S * m * sizeof(float));
    Range due[3];
    deal(due, n_conv, n_modules, units, t.me, t.all);
    // This thread's columns of position f of convolution c, from module j on; while one is read, the next is fetched.
    auto weights = [&](int64_t c, int64_t f, int64_t j) {
        return op.bytes(4 + 2 * c) + (f * n_modules[c] + j) * m * m + due[c].first * 2 * LANES;
    };
    auto fetch_part = [&](Fetcher &ahead, int64_t i) {
        while (i < n_conv * F && due[i / F].first == due[i / F].last) i++;
        if (i == n_conv * F) return;
        int64_t c = i / F, columns = due[c].last - due[c].first;
        ahead.add(weights(c, i % F, 0), columns * 2 * LANES, n_modules[c] * m / 2, 2 * m);
    };
    Range two = t.share(D / 2), mine = {2 * two.first, 2 * two.last};
    int64_t chunks = (mine.last - mine.first + CHUNK - 1) / CHUNK;
    for (int64_t i = 0; i < chunks; i++) {
        int64_t k = mine.first + i * CHUNK, next = k + CHUNK;
        int64_t n = std::min<int64_t>(mine.last - k, CHUNK), n_next = std::min<int64_t>(mine.last - next, CHUNK);
        float finite = has_nonfinite(x + k, n) ? NAN : 1;
        for (int64_t s = 0; s < S; s++)
            scale[s] = finite * gate_scale[s] * gated(x + k, gate + s * D + k, n, rows + s * CHUNK);
        Fetcher ahead; // the next chunk, or the first kernel's first position
        ahead.add(gate + next, n_next, S, D);
        ahead.add(proj + next * m, n_next * m, 1, 0);
        if (i + 1 == chunks) fetch_part(ahead, 0);
        ahead.spread(tiles_of(S, units), n);
        add_product(Int16Rows{rows, CHUNK, scale}, proj + k * m, m, S, n, units, part, m, ahead);
    }
    BARRIER
    mine = t.share(S * m);
    for (int64_t i = mine.first; i < mine.last; i++) {
        float total = t.common[i];
        for (int64_t j = 1; j < t.all; j++) total += t.common[j * S * m + i];
        newest[i] = bias[i] + proj_scale[i % m] * total;
    }
    BARRIER
    // What the convolutions read, rounded: of each position the modules, with the empty ones on both sides.
    int64_t most = std::max(n_modules[0], std::max(n_modules[1], n_modules[2])), seen = S + most - 1;
    float *scales = t.common + t.all * S * m;
    int16_t *inputs = reinterpret_cast<int16_t *>(scales + F * seen);
    mine = t.share(F * seen);
    for (int64_t r = mine.first; r < mine.last; r++) {
        const float *of_position = newest - (F - 1 - r / seen) * position;
        scales[r] = rounded(of_position + (r % seen - most / 2) * m, m, inputs + r * m);
    }
    BARRIER
    for (int64_t i = 0; i < n_conv * F; i++) {
        int64_t c = i / F, f = i % F, first = due[c].first * LANES, n = due[c].last - due[c].first;
        if (!n) continue;
        float *y = op.y + c * S * m + first;
        for (int64_t s = 0; s < S && !f; s++) memset(y + s * m, 0, n * LANES * sizeof(float));
        Fetcher ahead;
        fetch_part(ahead, i + 1);
        ahead.spread(tiles_of(S, n) * n_modules[c], m);
        for (int64_t j = 0; j < n_modules[c]; j++) {
            int64_t from = f * seen + most / 2 - n_modules[c] / 2 + j;
            Int16Rows modules{inputs + from * m, m, scales + from};
            add_product(modules, weights(c, f, j), m, S, m, n, y, m, ahead);
        }
        const float *of_columns = op.in(5 + 2 * c) + first;
        for (int64_t s = 0; s < S && f == F - 1; s++)
            for (int64_t k = 0; k < n * LANES; k++) y[s * m + k] = of_columns[k] + of_columns[m + k] * y[s * m + k];
    }
}

// Softmax attention over the keys and values (H, T, d) of places `first` to `end` - 1, y (H, d): size H, T, d, place,
// first, end; at q (H, d), a new key and value (H, d), null or to be written to `place` before, keys, values. A new
// value without a key: the key is the query at unit length.
static void attend(const Op &op, const Thread &t) {
    int64_t H = op.size[0], T = op.size[1], d = op.size[2], place = op.size[3], first = op.size[4], end = op.size[5];
    const float *q = op.in(0), *k_new = op.in(1), *v_new = op.in(2);
    float *p = t.own, *sum = p + T + LANES;
    Range mine = t.share(H);
    // Groups of four places, the keys' of a head, then its values': 16 are fetched ahead.
    int64_t n_groups = (end - first + 3) / 4, n_fetched = 0, due = 2 * n_groups * (mine.last - mine.first);
    auto fetch_group = [&]() {
        if (n_fetched == due) return;
        int64_t h = mine.first + n_fetched / (2 * n_groups), of_head = n_fetched % (2 * n_groups);
        int64_t i = first + of_head % n_groups * 4;
        fetch_row(op.in(of_head < n_groups ? 3 : 4) + (h * T + i) * d, std::min<int64_t>(4, end - i) * d);
        n_fetched++;
    };
    for (int i = 0; i < 16; i++) fetch_group();
    for (int64_t h = mine.first; h < mine.last; h++) {
        float *keys = op.out(3) + h * T * d, *values = op.out(4) + h * T * d;
        if (v_new) {
            float *key = keys + place * d;
            memcpy(values + place * d, v_new + h * d, d * sizeof(float));
            memcpy(key, (k_new ? k_new : q) + h * d, d * sizeof(float));
            if (!k_new) {
                float length = std::sqrt(dot(key, key, d) / d + 1e-6f) * std::sqrt((float)d);
                for (int64_t i = 0; i < d; i++) key[i] /= length;
            }
        }
        for (int64_t i = first; i < end; i += 4) {
            fetch_group();
            switch (end - i) {
            case 1: dots(q + h * d, near_rows<1>(keys + i * d, d), d, p + i); break;
            case 2: dots(q + h * d, near_rows<2>(keys + i * d, d), d, p + i); break;
            case 3: dots(q + h * d, near_rows<3>(keys + i * d, d), d, p + i); break;
            default: dots(q + h * d, near_rows<4>(keys + i * d, d), d, p + i);
            }
        }
        store(p + end, splat(-INFINITY)); // what fills up the last vector
        vec highest = splat(-INFINITY), totals{};
        for (int64_t i = first; i < end; i += LANES) {
            vec score = load(p + i) * splat((float)op.scale);
            store(p + i, score);
            highest = score > highest ? score : highest;
        }
        float largest = highest[0];
        for (int j = 1; j < LANES; j++) largest = std::max(largest, highest[j]);
        for (int64_t i = first; i < end; i += LANES) {
            vec weight = exp_of(load(p + i) - splat(largest));
            store(p + i, weight);
            totals += weight;
        }
        float scale = 1 / sum_of(totals);
        memset(sum, 0, d * sizeof(float));
        for (int64_t i = first; i < end; i += 4) {
            fetch_group();
            switch (end - i) {
            case 1: add_scaled_rows(sum, near_rows<1>(values + i * d, d), p + i, d); break;
            case 2: add_scaled_rows(sum, near_rows<2>(values + i * d, d), p + i, d); break;
            case 3: add_scaled_rows(sum, near_rows<3>(values + i * d, d), p + i, d); break;
            default: add_scaled_rows(sum, near_rows<4>(values + i * d, d), p + i, d);
            }
        }
        float *y = op.y + h * d;
        for (int64_t i = 0; i < d; i++) y[i] = (op.adds ? y[i] : 0) + scale * sum[i];
    }
}

// Calls `times` with a constant, the number of rows that are left, of 8 at most.
template <typename Times> static inline void in_rows(int64_t left, Times times) {
    switch (left < 8 ? left : 8) {
    case 1: return times(std::integral_constant<int, 1>());
    case 2: return times(std::integral_constant<int, 2>());
    case 3: return times(std::integral_constant<int, 3>());
    case 4: return times(std::integral_constant<int, 4>());
    case 5: return times(std::integral_constant<int, 5>());
    case 6: return times(std::integral_constant<int, 6>());
    case 7: return times(std::integral_constant<int, 7>());
    default: return times(std::integral_constant<int, 8>());
    }
}

// y[s, k C + c] = sum_i gate[s, i] x[i] proj[k, i, c], few modules S with many outputs m, for every row of x: size
// D, S, the blocks, C, m; at gate (S, D) and the projection in blocks of C columns, of which the last may stand for
// fewer. A block is read once for all rows.
static void blocked_product(const Op &op, const Inputs &x, const Thread &t) {
    int64_t D = op.size[0], S = op.size[1], C = op.size[3], m = op.size[4];
    float *gated = t.common;
    Range mine = t.share(x.B * S * D);
    for (int64_t i = mine.first; i < mine.last; i++) {
        int64_t b = i / (S * D), of_gate = i % (S * D);
        gated[i] = op.in(0)[of_gate] * x.row(b)[of_gate % D];
    }
    BARRIER
    mine = t.share(op.size[2]);
    for (int64_t k = mine.first; k < mine.last; k++)
        for (int64_t b = 0; b < x.B; b++)
            for (int64_t s = 0; s < S; s += 8) {
                const float *block = op.in(1) + k * D * C, *rows = gated + (b * S + s) * D;
                float *y = op.y + b * op.y_step + s * m;
                in_rows(S - s, [&](auto some) { blocked<some()>(rows, block, D, C, k, m, y); });
            }
}

// The same of weights in int8, the projection in pairs of rows: size as there; at gate (S, D), the projection by blocks
// (D / 2, C, 2), the scales of the gate's rows (S) and of the projection's columns. Gated inputs are rounded to int16.
static void blocked_product_int8(const Op &op, const Inputs &x, const Thread &t) {
    int64_t D = op.size[0], S = op.size[1], C = op.size[3], m = op.size[4], n_parts = (D + BLOCK - 1) / BLOCK;
    const int8_t *gate = op.bytes(0);
    const float *gate_scale = op.in(2), *of_columns = gate_scale + S;
    float *scales = t.common;
    int16_t *rounded_rows = reinterpret_cast<int16_t *>(scales + x.B * S * n_parts);
    Range mine = t.share(x.B * n_parts);
    for (int64_t i = mine.first; i < mine.last; i++) {
        int64_t b = i / n_parts, part = i % n_parts, k = part * BLOCK, n = std::min<int64_t>(D - k, BLOCK);
        const float *inputs = x.row(b) + k;
        float finite = has_nonfinite(inputs, n) ? NAN : 1;
        for (int64_t s = 0; s < S; s++) {
            float scale = gated(inputs, gate + s * D + k, n, rounded_rows + (b * S + s) * D + k);
            scales[(b * S + s) * n_parts + part] = finite * gate_scale[s] * scale;
        }
    }
    BARRIER
    mine = t.share(op.size[2]);
    for (int64_t k = mine.first; k < mine.last; k++)
        for (int64_t b = 0; b < x.B; b++)
            for (int64_t s = 0; s < S; s += 8) {
                const int8_t *block = op.bytes(1) + k * D * C;
                const int16_t *rows = rounded_rows + (b * S + s) * D;
                const float *scale = scales + (b * S + s) * n_parts;
                float *y = op.y + b * op.y_step + s * m;
                auto times = [&](auto some) { blocked<some()>(rows, D, scale, n_parts, block, of_columns, D, C, k, m, y); };
                in_rows(S - s, times);
            }
}

// y[d] = r c + sqrt(3) (1 - r) x with the state c = f c + (1 - f) u, where r, f, u = bias + x kernel: size d; at
// kernel (d, 3d), bias (3d), state (d). One thread's work.
static void recurrent_unit(const Op &op, const float *x, const Thread &t) {
    if (t.me) return;
    int64_t d = op.size[0];
    float *gate = t.common, *c = op.out(2);
    memcpy(gate, op.in(1), 3 * d * sizeof(float));
    for (int64_t i = 0; i < d; i++) add_scaled(gate, op.in(0) + i * 3 * d, x[i], 3 * d);
    for (int64_t i = 0; i < d; i++) {
        float r = 1 / (1 + std::exp(-gate[i])), f = 1 / (1 + std::exp(-gate[d + i]));
        c[i] = f * c[i] + (1 - f) * gate[2 * d + i];
        put(op, i, r * c[i] + 1.7320508f * (1 - r) * x[i]);
    }
}

// y[0] = the sum of n numbers: size n; at the numbers. What reading them takes at best; each thread reads four parts
// of its share side by side.
static void sum(const Op &op, const Thread &t) {
    Range mine = t.share(op.size[0]);
    int64_t n = (mine.last - mine.first) / 4;
    Rows<4> parts;
    for (int j = 0; j < 4; j++) parts.at[j] = op.in(0) + mine.first + j * n, parts.after[j] = parts.at[j];
    vec a[4][2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        parts.fetch_ahead(i, n);
        for (int j = 0; j < 4; j++) {
            a[j][0] += load(parts.at[j] + i);
            a[j][1] += load(parts.at[j] + i + LANES);
        }
    }
    float total = 0;
    for (int j = 0; j < 4; j++) {
        total += sum_of(a[j][0] + a[j][1]);
        for (int64_t k = i; k < n; k++) total += parts.at[j][k];
    }
    for (int64_t k = mine.first + 4 * n; k < mine.last; k++) total += op.in(0)[k];
    t.common[t.me * LINE] = total;
    BARRIER
    if (t.me) return;
    for (int64_t j = 1; j < t.all; j++) total += t.common[j * LINE];
    put(op, 0, total);
}

enum Kind : int64_t {
    MATVEC,
    CHOOSE,
    CHOSEN_ROWS,
    MODULES,
    ATTEND,
    BLOCKED_PRODUCT,
    RECURRENT_UNIT,
    SUM,
    MATVEC_INT8,
    CHOOSE_INT8,
    CHOSEN_ROWS_INT8,
    MATVEC_INT4,
    CHOSEN_ROWS_INT4,
    CHOOSE_HASHED,
    LARGEST_ROWS,
    LARGEST_ROWS_INT8,
    LARGEST_ROWS_INT4,
    MODULES_INT8,
    BLOCKED_PRODUCT_INT8
};

// Fetches what this thread reads first in an operation, while others may still be busy with the one before it.
static void open(const Op &op, const Thread &t) {
    int64_t D = op.size[0];
    if (op.norm_w) fetch_row(op.norm_w, D), fetch_row(op.norm_b, D);
    switch (op.kind) {
    case MATVEC:
    case CHOOSE: {
        Range mine = t.share(op.kind == MATVEC ? op.size[1] : op.size[3]);
        for (int64_t o = mine.first; o < mine.last && o < mine.first + 4; o++)
            fetch_row(op.in(0) + o * D, std::min<int64_t>(D, AHEAD / 4));
        break;
    }
    case MATVEC_INT8:
    case CHOOSE_INT8: {
        Range mine = t.share(op.kind == MATVEC_INT8 ? op.size[1] : op.size[3]);
        fetch_row(op.bytes(0) + mine.first * D, std::min<int64_t>((mine.last - mine.first) * D, BYTES_AHEAD));
        break;
    }
    case MATVEC_INT4: {
        Range mine = t.share(op.size[1]);
        int64_t bytes = int4_bytes(D);
        fetch_row(op.bytes(0) + mine.first * bytes, std::min<int64_t>((mine.last - mine.first) * bytes, BYTES_AHEAD));
        break;
    }
    case MODULES: {
        Range mine = t.share(D);
        int64_t n = std::min<int64_t>(mine.last - mine.first, CHUNK), m = op.size[2];
        for (int64_t s = 0; s < op.size[1]; s++) fetch_row(op.in(0) + s * D + mine.first, n);
        fetch_row(op.in(1) + mine.first * m, n * m);
        break;
    }
    case MODULES_INT8: {
        Range two = t.share(D / 2);
        int64_t k = 2 * two.first, n = std::min<int64_t>(2 * two.last - k, CHUNK), m = op.size[2];
        for (int64_t s = 0; s < op.size[1]; s++) fetch_row(op.bytes(0) + s * D + k, n);
        fetch_row(op.bytes(1) + k * m, n * m);
        break;
    }
    case ATTEND: {
        Range mine = t.share(D);
        int64_t T = op.size[1], d = op.size[2], first = op.size[4], n = (op.size[5] - first) * d;
        for (int i = 3; i < 5 && mine.first < mine.last; i++)
            fetch_row(op.in(i) + (mine.first * T + first) * d, std::min<int64_t>(n, 2048));
        break;
    }
    }
}

static double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

// An operation for B rows: those with a form of their own for several, and the others row by row.
static void run_op(const Op &op, const Inputs &x, const Thread &t) {
    switch (op.kind) {
    case MATVEC: return matvec(op, x, t);
    case MATVEC_INT8: return matvec_int8(op, x, t);
    case CHOOSE: return choose(op, x, t);
    case CHOOSE_INT8: return choose_int8(op, x, t);
    case CHOSEN_ROWS: return op.at[4] ? chosen_rows<true>(op, x, t) : chosen_rows<false>(op, x, t);
    case CHOSEN_ROWS_INT8: return chosen_quantized_rows<Rounded>(op, x, t, add_chosen_int8);
    case MATVEC_INT4: return matvec_int4(op, x, t);
    case CHOSEN_ROWS_INT4: return chosen_quantized_rows<Inputs4>(op, x, t, add_chosen_int4);
    case BLOCKED_PRODUCT: return blocked_product(op, x, t);
    case BLOCKED_PRODUCT_INT8: return blocked_product_int8(op, x, t);
    case CHOOSE_HASHED: return choose_hashed(op, x, t);
    case LARGEST_ROWS: return largest_float_rows(op, x, t);
    case LARGEST_ROWS_INT8: return largest_int8_rows(op, x, t);
    case LARGEST_ROWS_INT4: return largest_int4_rows(op, x, t);
    }
    for (int64_t b = 0; b < x.B; b++) {
        if (b) {
            BARRIER // the room is the same
        }
        const Op one = of_row(op, b);
        switch (op.kind) {
        case MODULES: modules(one, x.row(b), t); break;
        case MODULES_INT8: modules_int8(one, x.row(b), t); break;
        case ATTEND: attend(one, t); break;
        case RECURRENT_UNIT: recurrent_unit(one, x.row(b), t); break;
        case SUM: sum(one, t); break;
        }
    }
}

extern "C" {

int64_t efftx_lanes() { return LANES; }
int64_t efftx_chunk() { return CHUNK; }
int64_t efftx_most_rows() { return MOST_ROWS; }

// Runs `n_programs` programs one after the other, of `n_ops[p]` operations each, for B rows. `own` floats of `room`
// are each thread's, for a normed x of up to `width` floats and what an operation needs beside it. Where B is above
// 1, B times as many follow, for the normed rows and for rows as int8 and int4 take them; the rest is everyone's.
// `ended`, where given, gets the time at which each operation ended.
void efftx_run(const Op *const *programs, const int64_t *n_ops, int64_t n_programs, int64_t B, float *room, int64_t own,
               int64_t width, double *ended, int64_t n_threads) {
#pragma omp parallel num_threads(n_threads)
    {
        int64_t me = omp_get_thread_num(), all = omp_get_num_threads(), several = B > 1 ? B : 0;
        float *shared = room + all * own, *normed = several ? shared : room + me * own;
        Thread t{me, all, room + me * own + width, shared + several * own};
        double *end = ended;
        for (int64_t p = 0; p < n_programs; p++)
            for (const Op *op = programs[p]; op < programs[p] + n_ops[p]; op++) {
                Inputs x{op->x, op->x_step, B, shared + several * width, own - width};
                if (op->norm_w) {
                    if (several) {
                        for (int64_t b = me; b < B; b += all)
                            norm(x.row(b), op->size[0], op->norm_w, op->norm_b, op->eps, normed + b * width);
#pragma omp barrier
                    } else norm(x.x, op->size[0], op->norm_w, op->norm_b, op->eps, normed);
                }
                if (op->norm_w || !op->x) x.x = normed, x.step = width;
                run_op(*op, x, t);
                if (op + 1 < programs[p] + n_ops[p]) open(op[1], t);
                else if (p + 1 < n_programs) open(*programs[p + 1], t);
#pragma omp barrier
                if (ended && !me) *end++ = now();
            }
    }
}
}
