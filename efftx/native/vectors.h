// Sums and products on vectors, for kernels.cpp.
//
// Vectors are GCC's and Clang's vector extension, of the widest registers of the machine that compiles this. Sums are
// kept in registers, so their order, and the last bits of a result, differ from PyTorch's.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define TILE_ROWS 8
#define TILE_INPUTS 4
#define WIDENED_ROWS 4
#elif defined(__AVX__)
#define LANES 8
#define TILE_ROWS 4
#define TILE_INPUTS 2
#define WIDENED_ROWS 2
#else
#define LANES 4
#define TILE_ROWS 4
#define TILE_INPUTS 2
#define WIDENED_ROWS 2
#endif
// TILE_INPUTS * 4 sums, and TILE_INPUTS + 4 rows, fit into the registers; so do 4 * WIDENED_ROWS sums of integers.
#define TILE_VECTORS 3 // TILE_ROWS * TILE_VECTORS sums and TILE_VECTORS inputs fit into the registers
#define LINE 16        // floats in a line of the cache
#define AHEAD 2048     // floats of rows read side by side, all together, that are fetched before they are read
#define A_STEP 4       // rows of a product between two steps of what is fetched meanwhile
#define CHUNK 192      // inputs of a multiplicative layer at a time
#define COLUMNS 1024   // of four rows of weights that stay in the nearest cache for all rows of a batch
#define MOST_ROWS 32   // of a batch

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float vec_u __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

static inline vec load(const float *p) { return *reinterpret_cast<const vec_u *>(p); }
static inline void store(float *p, vec v) { *reinterpret_cast<vec_u *>(p) = v; }
static inline vec splat(float x) { return x - vec{}; }

// The sum of N numbers, by halves: compilers keep these in registers.
template <int N> struct Halves {
    typedef float half __attribute__((vector_size(2 * N)));
    template <typename V> static inline float sum(V v) {
        half low, high;
        memcpy(&low, &v, 2 * N);
        memcpy(&high, reinterpret_cast<char *>(&v) + 2 * N, 2 * N);
        return Halves<N / 2>::sum(low + high);
    }
};
template <> struct Halves<2> {
    template <typename V> static inline float sum(V v) { return v[0] + v[1]; }
};

static inline float sum_of(vec v) { return Halves<LANES>::sum(v); }

static inline void fetch(const float *p) { __builtin_prefetch(p, 0, 2); }

static inline void fetch_row(const float *p, int64_t n) {
    for (int64_t i = 0; i < n; i += LINE) fetch(p + i);
}

struct Range {
    int64_t first, last;
};

static inline Range share(int64_t n, int64_t part, int64_t parts) { return {n * part / parts, n * (part + 1) / parts}; }

// The sum of x[i] w[i].
static inline float dot(const float *x, const float *w, int64_t n) {
    vec a{}, b{}, c{}, e{};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        fetch(w + i + 512);
        if (LANES * 4 > LINE) fetch(w + i + 512 + LINE);
        if (LANES * 4 > 2 * LINE) fetch(w + i + 512 + 2 * LINE), fetch(w + i + 512 + 3 * LINE);
        a += load(x + i) * load(w + i);
        b += load(x + i + LANES) * load(w + i + LANES);
        c += load(x + i + 2 * LANES) * load(w + i + 2 * LANES);
        e += load(x + i + 3 * LANES) * load(w + i + 3 * LANES);
    }
    for (; i + LANES <= n; i += LANES) a += load(x + i) * load(w + i);
    float total = sum_of((a + b) + (c + e));
    for (; i < n; i++) total += x[i] * w[i];
    return total;
}

// R rows that are read side by side, and where what is read after them begins (null: somebody else fetches).
template <int R> struct Rows {
    const float *at[R], *after[R];

    // The lines under two vectors, a distance ahead of column `i` of rows of `n`.
    inline void fetch_ahead(int64_t i, int64_t n) const {
        if (!after[0]) return;
        bool inside = i + AHEAD / R < n;
        const float *const *row = inside ? at : after;
        int64_t soon = inside ? i + AHEAD / R : i + AHEAD / R - n;
        for (int j = 0; j < R; j++)
            for (int line = 0; line < 2 * LANES; line += LINE) fetch(row[j] + soon + line);
    }
};

// Four rows of a matrix, before the next four; or the first R of few, which are fetched already.
static inline Rows<4> rows_of(const float *w, int64_t n) {
    return {{w, w + n, w + 2 * n, w + 3 * n}, {w + 4 * n, w + 5 * n, w + 6 * n, w + 7 * n}};
}
template <int R> static inline Rows<R> near_rows(const float *w, int64_t n) {
    Rows<R> rows = {};
    for (int j = 0; j < R; j++) rows.at[j] = w + j * n;
    return rows;
}

// y[j] = x . row j.
template <int R> static inline void dots(const float *x, const Rows<R> &rows, int64_t n, float *y) {
    vec a[R][2] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vec x0 = load(x + i), x1 = load(x + i + LANES);
        rows.fetch_ahead(i, n);
        for (int j = 0; j < R; j++) {
            a[j][0] += x0 * load(rows.at[j] + i);
            a[j][1] += x1 * load(rows.at[j] + i + LANES);
        }
    }
    for (int j = 0; j < R; j++) {
        float total = sum_of(a[j][0] + a[j][1]);
        for (int64_t k = i; k < n; k++) total += x[k] * rows.at[j][k];
        y[j] = total;
    }
}

// y += sum_j h[j] row j.
template <int R> static inline void add_scaled_rows(float *y, const Rows<R> &rows, const float *h, int64_t n) {
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vec y0 = load(y + i), y1 = load(y + i + LANES);
        rows.fetch_ahead(i, n);
        for (int j = 0; j < R; j++) {
            y0 += splat(h[j]) * load(rows.at[j] + i);
            y1 += splat(h[j]) * load(rows.at[j] + i + LANES);
        }
        store(y + i, y0), store(y + i + LANES, y1);
    }
    for (; i < n; i++)
        for (int j = 0; j < R; j++) y[i] += h[j] * rows.at[j][i];
}

// y += h w.
static inline void add_scaled(float *y, const float *w, float h, int64_t n) {
    vec hs = splat(h);
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        fetch(w + i + 512);
        if (LANES * 4 > LINE) fetch(w + i + 512 + LINE);
        if (LANES * 4 > 2 * LINE) fetch(w + i + 512 + 2 * LINE), fetch(w + i + 512 + 3 * LINE);
        for (int j = 0; j < 4; j++) store(y + i + j * LANES, load(y + i + j * LANES) + hs * load(w + i + j * LANES));
    }
    for (; i + LANES <= n; i += LANES) store(y + i, load(y + i) + hs * load(w + i));
    for (; i < n; i++) y[i] += h * w[i];
}

// V vectors of the sums bias[i] + sum_r z[r] tile[r, i] from column `at` on: the largest so far in each lane, and
// where.
template <int V> static inline void larger(const float *z, const float *tile, const float *bias, int64_t R, int64_t N,
                                           int64_t at, vec &best, ivec &where) {
    vec y[V];
    for (int v = 0; v < V; v++) y[v] = load(bias + at + v * LANES);
    const float *row = tile + at;
    for (int64_t r = 0; r < R; r++, row += N) {
        vec zr = splat(z[r]);
        for (int v = 0; v < V; v++) {
            fetch(row + 16 * N + v * LANES);
            y[v] += zr * load(row + v * LANES);
        }
    }
    for (int v = 0; v < V; v++) {
        ivec here = y[v] > best;
        best = here ? y[v] : best;
        where = here ? (ivec{} + (int32_t)(at + v * LANES)) : where;
    }
}

// The place of the largest of N sums, the first of equals; `where` counts whole vectors, the lane is added at the end.
static int64_t best_unit(const float *z, const float *tile, const float *bias, int64_t R, int64_t N) {
    vec best = splat(-INFINITY);
    ivec where{};
    int64_t at = 0;
    for (; at + 4 * LANES <= N; at += 4 * LANES) larger<4>(z, tile, bias, R, N, at, best, where);
    for (; at < N; at += LANES) larger<1>(z, tile, bias, R, N, at, best, where);
    int64_t first = 0;
    for (int i = 1; i < LANES; i++) {
        bool earlier = best[i] == best[first] && where[i] + i < where[first] + first;
        if (best[i] > best[first] || earlier) first = i;
    }
    return where[first] + first;
}

// What is to be fetched while something else is computed: rows of `floats` floats, a line at a time.
struct Fetcher {
    struct {
        const float *at;
        int64_t floats, rows, stride;
    } region[5];
    int64_t n = 0, lines = 0;

    void add(const float *at, int64_t floats, int64_t rows, int64_t stride) {
        if (floats <= 0 || rows <= 0) return;
        region[n++] = {at, floats, rows, stride};
        lines += (floats + LINE - 1) / LINE * rows;
    }

    // The same of bytes: `n` and the stride are multiples of 4.
    void add(const int8_t *at, int64_t n, int64_t rows, int64_t stride) {
        add(reinterpret_cast<const float *>(at), n / 4, rows, stride / 4);
    }

    // All are fetched while products add up `tiles` times K rows, evenly: a core has few reads of memory under way at a
    // time.
    void spread(int64_t tiles, int64_t K) { steps = tiles * ((K + A_STEP - 1) / A_STEP); }

    inline void step() {
        for (due += lines; due >= steps && i < n; due -= steps) {
            fetch(region[i].at + row * region[i].stride + column);
            column += LINE;
            if (column < region[i].floats) continue;
            column = 0;
            if (++row == region[i].rows) row = 0, i++;
        }
    }

  private:
    int64_t steps = 1, due = 0, i = 0, row = 0, column = 0;
};

// Adds the products of X rows of inputs and four rows of weights, over whole vectors of the columns from `from` to `to`,
// to sum[b][j], in lanes; `ahead` takes a step with every A_STEP vectors.
template <int X> static inline void tile_dots(const float *const *x, const float *const *w, int64_t from, int64_t to,
                                              vec (*sum)[4], Fetcher &ahead) {
    vec total[X][4];
    for (int b = 0; b < X; b++)
        for (int j = 0; j < 4; j++) total[b][j] = sum[b][j];
    for (int64_t i = from, n = 0; i + LANES <= to; i += LANES, n++) {
        if (n % A_STEP == 0) ahead.step();
        vec row[4];
        for (int j = 0; j < 4; j++) row[j] = load(w[j] + i);
        for (int b = 0; b < X; b++) {
            vec input = load(x[b] + i);
            for (int j = 0; j < 4; j++) total[b][j] += input * row[j];
        }
    }
    for (int b = 0; b < X; b++)
        for (int j = 0; j < 4; j++) sum[b][j] = total[b][j];
}

// The same for B rows, in groups whose sums fit into the registers.
static void tile_dots(const float *const *x, int64_t B, const float *const *w, int64_t from, int64_t to,
                      vec (*sum)[4], Fetcher &ahead) {
    ahead.spread((B + TILE_INPUTS - 1) / TILE_INPUTS, (to - from) / LANES);
    for (int64_t b = 0; b < B; b += TILE_INPUTS)
        switch (std::min<int64_t>(B - b, TILE_INPUTS)) {
        case 1: tile_dots<1>(x + b, w, from, to, sum + b, ahead); break;
        case 2: tile_dots<2>(x + b, w, from, to, sum + b, ahead); break;
        case 3: tile_dots<3>(x + b, w, from, to, sum + b, ahead); break;
        default: tile_dots<4>(x + b, w, from, to, sum + b, ahead);
        }
}

// Rows of numbers that a product takes, `step` apart.
struct FloatRows {
    const float *at;
    int64_t step;
    static constexpr int COLUMN = 1; // numbers of a row of its weights to a column of the product
    FloatRows from(int64_t row) const { return {at + row * step, step}; }
};

// Adds A[MR, K] B[K, NR vectors] to C, `ldb` and `ldc` floats from row to row; `ahead` takes a step with every A_STEP
// of the K.
template <int MR, int NR>
static inline void add_tile(FloatRows A, const float *B, int64_t ldb, int64_t K, float *C, int64_t ldc,
                            Fetcher &ahead) {
    vec c[MR][NR];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) c[i][j] = load(C + i * ldc + j * LANES);
    for (int64_t k = 0; k < K; k++) {
        if (k % A_STEP == 0) ahead.step();
        vec b[NR];
        for (int j = 0; j < NR; j++) b[j] = load(B + k * ldb + j * LANES);
        for (int i = 0; i < MR; i++) {
            vec a = splat(A.at[i * A.step + k]);
            for (int j = 0; j < NR; j++) c[i][j] += a * b[j];
        }
    }
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) store(C + i * ldc + j * LANES, c[i][j]);
}

template <int NR, class Rows, class Weight>
static inline void add_rows(Rows A, const Weight *B, int64_t ldb, int64_t M, int64_t K, float *C, int64_t ldc,
                            Fetcher &ahead) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= M; i += TILE_ROWS)
        add_tile<TILE_ROWS, NR>(A.from(i), B, ldb, K, C + i * ldc, ldc, ahead);
    for (; i < M; i++) add_tile<1, NR>(A.from(i), B, ldb, K, C + i * ldc, ldc, ahead);
}

// C[M, n vectors] += A[M, K] B[K, n vectors], FloatRows and float weights or Int16Rows and int8 ones, in `tiles_of`
// times K rows.
template <class Rows, class Weight>
static inline void add_product(Rows A, const Weight *B, int64_t ldb, int64_t M, int64_t K, int64_t n, float *C,
                               int64_t ldc, Fetcher &ahead) {
    for (int64_t j = 0; j < n;) {
        const Weight *b = B + j * LANES * Rows::COLUMN;
        float *c = C + j * LANES;
        int64_t left = n - j, wide = left == 4 ? 2 : left < TILE_VECTORS ? left : TILE_VECTORS; // 2 + 2, not 3 + 1
        if (wide == 3) add_rows<3>(A, b, ldb, M, K, c, ldc, ahead);
        else if (wide == 2) add_rows<2>(A, b, ldb, M, K, c, ldc, ahead);
        else add_rows<1>(A, b, ldb, M, K, c, ldc, ahead);
        j += wide;
    }
}

static int64_t tiles_of(int64_t M, int64_t n) {
    return (M / TILE_ROWS + M % TILE_ROWS) * ((n + TILE_VECTORS - 1) / TILE_VECTORS);
}

// exp(x) for x <= 0, to within 2 units in the last place; 0 below -87.
static inline vec exp_of(vec x) {
    vec clipped = x < splat(-87.0f) ? splat(-87.0f) : x;
    vec scaled = clipped * splat(1.44269504f);
    ivec n = __builtin_convertvector(scaled - splat(0.5f), ivec); // to the nearest, for numbers below 0
    vec whole = __builtin_convertvector(n, vec);
    vec r = clipped - whole * splat(0.693359375f);
    r -= whole * splat(-2.12194440e-4f);
    vec p = splat(1.0f / 5040) * r + splat(1.0f / 720);
    p = p * r + splat(1.0f / 120);
    p = p * r + splat(1.0f / 24);
    p = p * r + splat(1.0f / 6);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
    vec y = p * (vec)((n + 127) << 23); // the bits of 2^n
    return x < splat(-87.0f) ? vec{} : y;
}

// The columns of each of up to three convolutions, in vectors, that are one thread's: dealt out by the work in them,
// the third, which sees the fewest modules, between the others, so that two threads have whole ones and its parts.
static void deal(Range *due, int64_t n_conv, const int64_t *modules, int64_t units, int64_t me, int64_t all) {
    int64_t work = 0, before = 0;
    for (int64_t c = 0; c < n_conv; c++) work += units * modules[c];
    Range mine = share(work, me, all);
    const int64_t order[] = {0, 2, 1};
    for (int64_t c : order) {
        if (c >= n_conv) continue;
        due[c] = {0, 0};
        for (int64_t u = 0; u < units; u++, before += modules[c])
            if (before >= mine.first && before < mine.last) {
                if (!due[c].last) due[c].first = u;
                due[c].last = u + 1;
            }
    }
}

// `rows` rows of x times block b of C columns, into y (rows, m): two vectors of columns at a time.
template <int rows> static void blocked(const float *x, const float *block, int64_t D, int64_t C, int64_t b, int64_t m,
                                        float *y) {
    for (int64_t j = 0; j < C; j += 2 * LANES) {
        vec sum[rows][2] = {};
        const float *at = block + j;
        for (int64_t i = 0; i < D; i++, at += C) {
            for (int line = 0; line < 2 * LANES; line += LINE) fetch(at + 1024 + line);
            vec left = load(at), right = load(at + LANES);
            for (int r = 0; r < rows; r++) {
                vec w = splat(x[r * D + i]);
                sum[r][0] += w * left;
                sum[r][1] += w * right;
            }
        }
        int64_t first = b * C + j, n = m - first < 2 * LANES ? m - first : 2 * LANES;
        for (int r = 0; r < rows; r++)
            for (int64_t i = 0; i < n; i++) y[r * m + first + i] = sum[r][i / LANES][i % LANES];
    }
}

// Weights in int8, row o standing for q[o] scale[o]. Inputs are rounded to int16, a scale a block: integer products are
// added exactly, four times as many at a time as floats, and BLOCK * 32767 * 127 fits into int32. The loops of a single
// row are plain, for compilers know these sums.
#define BLOCK 512
#define BYTES 64 // in a line of the cache
#define BYTES_AHEAD 4096

static inline void fetch(const int8_t *p) { __builtin_prefetch(p, 0, 2); }

static inline void fetch_row(const int8_t *p, int64_t n) {
    for (int64_t i = 0; i < n; i += BYTES) fetch(p + i);
}

typedef int16_t shorts_u __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef int8_t few_u __attribute__((vector_size(LANES), aligned(1), may_alias));

// The larger of `highest` and |v|; where v is no number, `highest`.
static inline vec larger(vec highest, vec v) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps(_mm512_abs_ps((__m512)v), (__m512)highest);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), (__m256)v), (__m256)highest);
#else
    vec size = v < vec{} ? -v : v;
    return size > highest ? size : highest;
#endif
}

// Numbers of at most 32767 to the nearest whole ones.
static inline void store_nearest(int16_t *p, vec v) {
#if defined(__AVX512F__) // compilers take several instructions for these conversions
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32((__m512)v)));
#elif defined(__AVX2__)
    __m256i whole = _mm256_cvtps_epi32((__m256)v);
    __m128i both = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), both);
#else
    ivec whole = __builtin_convertvector(v + (v < vec{} ? splat(-0.5f) : splat(0.5f)), ivec);
    *reinterpret_cast<shorts_u *>(p) = __builtin_convertvector(whole, shorts_u);
#endif
}

static inline vec floats(const int8_t *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#else
    return __builtin_convertvector(*reinterpret_cast<const few_u *>(p), vec);
#endif
}

// Whether an infinity or a NaN is among n numbers.
static inline bool has_nonfinite(const float *x, int64_t n) {
    vec zeros{}; // or NaN
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) zeros += load(x + i) - load(x + i);
    float total = sum_of(zeros);
    for (; i < n; i++) total += x[i] - x[i];
    return !(total == 0);
}

// The scale with which x[i] is q[i] scale to within half of it, `largest`, that of all |x|, being 32767 of them. What lies
// below 1e-34 counts as 0.
static inline float round_by(float largest, const float *x, int64_t n, int16_t *q) {
    float steps = largest > 0 ? 32767 / largest : 0;
    if (!(steps < INFINITY)) steps = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store_nearest(q + i, load(x + i) * splat(steps));
    for (; i < n; i++) q[i] = (int16_t)(int32_t)std::nearbyintf(x[i] * steps);
    return largest / 32767;
}

static inline float largest_of(vec highest) {
    float largest = 0;
    for (int j = 0; j < LANES; j++) largest = highest[j] > largest ? highest[j] : largest;
    return largest;
}

// The same with the largest of x itself; NaN, and every q 0, where an infinity or a NaN is among them.
static inline float rounded(const float *x, int64_t n, int16_t *q) {
    if (has_nonfinite(x, n)) {
        memset(q, 0, n * sizeof(int16_t));
        return NAN;
    }
    vec highest{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) highest = larger(highest, load(x + i));
    float largest = largest_of(highest);
    for (; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
    return round_by(largest, x, n, q);
}

// The same of x[i] w[i], of which there are no more than BLOCK, and no infinity among x.
static inline float gated(const float *x, const int8_t *w, int64_t n, int16_t *q) {
    float products[BLOCK];
    vec highest{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec v = load(x + i) * floats(w + i);
        store(products + i, v);
        highest = larger(highest, v);
    }
    float largest = largest_of(highest);
    for (; i < n; i++) {
        products[i] = x[i] * w[i];
        largest = std::max(largest, std::fabs(products[i]));
    }
    return round_by(largest, products, n, q);
}

// Inputs in int16: x[i] is q[i] scale[i / N] to within half a scale, the largest |x| of N over 32767. They fill whole
// blocks, BLOCK / 2 + BLOCK / N floats of room each. N inputs among which is an infinity or a NaN have the scale NaN.
template <int64_t N> struct RoundedBy {
    const float *scale;
    const int16_t *q;

    // What has been rounded into `room`.
    RoundedBy(const float *room, int64_t n)
        : scale(room), q(reinterpret_cast<const int16_t *>(room + blocks_of(n) * BLOCK / N)) {}

    static int64_t blocks_of(int64_t n) { return (n + BLOCK - 1) / BLOCK; }

    RoundedBy(const float *x, int64_t n, float *room) : RoundedBy(room, n) {
        int16_t *to = const_cast<int16_t *>(q);
        for (int64_t b = 0; b < blocks_of(n) * BLOCK / N; b++) {
            int64_t m = std::min<int64_t>(std::max<int64_t>(n - b * N, 0), N);
            room[b] = rounded(x + b * N, m, to + b * N);
            memset(to + b * N + m, 0, (N - m) * sizeof(int16_t));
        }
    }
};

typedef RoundedBy<BLOCK> Rounded;

// The sum of x[i] w[i] over n inputs; `after` is what is read next, a line of it fetched with each line of w.
static inline float dot(const Rounded &x, const int8_t *w, int64_t n, const int8_t *after) {
    float total = 0;
    for (int64_t b = 0, i = 0; i < n; b++, i += BLOCK) {
        int64_t m = n - i < BLOCK ? n - i : BLOCK;
        fetch_row(after + i, m);
        int32_t sum = 0;
        if (m == BLOCK)
            for (int64_t k = 0; k < BLOCK; k++) sum += (int32_t)x.q[i + k] * (int32_t)w[i + k];
        else
            for (int64_t k = 0; k < m; k++) sum += (int32_t)x.q[i + k] * (int32_t)w[i + k];
        total += x.scale[b] * sum;
    }
    return total;
}

typedef int16_t pairs __attribute__((vector_size(LANES * 4)));
typedef int16_t pairs_u __attribute__((vector_size(LANES * 4), aligned(2), may_alias));
typedef int8_t bytes_u __attribute__((vector_size(LANES * 2), aligned(1), may_alias));

static inline pairs load(const int16_t *p) { return *reinterpret_cast<const pairs_u *>(p); }
static inline pairs widened(const int8_t *p) {
#if defined(__AVX512BW__) // compilers take four instructions for these conversions
    return (pairs)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return (pairs)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#else
    return __builtin_convertvector(*reinterpret_cast<const bytes_u *>(p), pairs);
#endif
}

// Two numbers in every lane.
static inline pairs splat(const int16_t *p) {
    int32_t both;
    memcpy(&both, p, sizeof both);
    return (pairs)(both - ivec{});
}

// Adds the products of 2 LANES pairs of numbers, two of them in each lane.
static inline ivec add_products(ivec sum, pairs a, pairs b) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (ivec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sum + (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return sum + (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    for (int i = 0; i < LANES; i++) sum[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return sum;
#endif
}

// Rows of numbers rounded to int16, `step` apart, each with a scale.
struct Int16Rows {
    const int16_t *at;
    int64_t step;
    const float *scale;
    static constexpr int COLUMN = 2;
    Int16Rows from(int64_t row) const { return {at + row * step, step, scale + row}; }
};

// Adds scale[i] A[i, K] B[K, NR vectors] to row i of C, with weights in int8 in pairs of rows, (K / 2, columns, 2), of
// `ldb` columns; K is even.
template <int MR, int NR>
static inline void add_tile(Int16Rows A, const int8_t *B, int64_t ldb, int64_t K, float *C, int64_t ldc,
                            Fetcher &ahead) {
    for (int64_t first = 0, last; first < K; first = last) {
        last = std::min<int64_t>(first + BLOCK, K); // more could be more than fits into int32
        ivec sum[MR][NR] = {};
        for (int64_t k = first; k < last; k += 2) {
            if (k % A_STEP == 0) ahead.step();
            pairs b[NR];
            for (int j = 0; j < NR; j++) b[j] = widened(B + k * ldb + j * 2 * LANES);
            for (int i = 0; i < MR; i++) {
                pairs a = splat(A.at + i * A.step + k);
                for (int j = 0; j < NR; j++) sum[i][j] = add_products(sum[i][j], a, b[j]);
            }
        }
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NR; j++) {
                float *c = C + i * ldc + j * LANES;
                store(c, load(c) + __builtin_convertvector(sum[i][j], vec) * splat(A.scale[i]));
            }
    }
}

// `rows` rows of x, rounded, `x_step` apart, with a scale for each BLOCK of their D numbers, `n_parts` a row, times block
// b of C columns of weights in int8 in pairs of rows, (D / 2, C, 2), with a scale a column, into y (rows, m).
template <int rows>
static void blocked(const int16_t *x, int64_t x_step, const float *scale, int64_t n_parts, const int8_t *block,
                    const float *of_columns, int64_t D, int64_t C, int64_t b, int64_t m, float *y) {
    for (int64_t j = 0; j < C; j += 2 * LANES) {
        vec total[rows][2] = {};
        for (int64_t part = 0; part < n_parts; part++) {
            ivec sum[rows][2] = {};
            for (int64_t k = part * BLOCK, last = std::min(D, k + BLOCK); k < last; k += 2) {
                const int8_t *at = block + k * C + 2 * j;
                for (int line = 0; line < 4 * LANES; line += BYTES) fetch(at + BYTES_AHEAD + line);
                pairs left = widened(at), right = widened(at + 2 * LANES);
                for (int r = 0; r < rows; r++) {
                    pairs both = splat(x + r * x_step + k);
                    sum[r][0] = add_products(sum[r][0], both, left);
                    sum[r][1] = add_products(sum[r][1], both, right);
                }
            }
            for (int r = 0; r < rows; r++)
                for (int h = 0; h < 2; h++)
                    total[r][h] += __builtin_convertvector(sum[r][h], vec) * splat(scale[r * n_parts + part]);
        }
        int64_t first = b * C + j, n = std::min<int64_t>(m - first, 2 * LANES);
        for (int r = 0; r < rows; r++)
            for (int64_t i = 0; i < n; i++)
                y[r * m + first + i] = of_columns[first + i] * total[r][i / LANES][i % LANES];
    }
}

// Adds the products of X rows of inputs and WIDENED_ROWS neighbouring rows of weights in int8 to sum[b][j], in lanes.
// The weights are widened in registers, on the way. `after` is read soon: a line of it is fetched with each of theirs
// (null: another call fetches it).
template <int X>
static inline void dots(const Rounded *x, const int8_t *w, int64_t D, const int8_t *after, vec (*sum)[WIDENED_ROWS]) {
    for (int64_t b = 0, first = 0; first < D; b++, first += BLOCK) {
        int64_t last = std::min<int64_t>(first + BLOCK, D), k = first;
        ivec whole[X][WIDENED_ROWS] = {};
        auto add = [&](const int8_t *at, int64_t stride) {
            pairs row[WIDENED_ROWS];
            for (int j = 0; j < WIDENED_ROWS; j++) row[j] = widened(at + j * stride);
            for (int i = 0; i < X; i++) {
                pairs inputs = load(x[i].q + k);
                for (int j = 0; j < WIDENED_ROWS; j++) whole[i][j] = add_products(whole[i][j], inputs, row[j]);
            }
        };
        for (; k + 2 * LANES <= last; k += 2 * LANES) {
            if (after && k % BYTES == 0)
                for (int j = 0; j < WIDENED_ROWS; j++) fetch(after + j * D + k);
            add(w + k, D);
        }
        if (k < last) {
            int8_t rest[WIDENED_ROWS][2 * LANES] = {};
            for (int j = 0; j < WIDENED_ROWS; j++) memcpy(rest[j], w + j * D + k, last - k);
            add(rest[0], 2 * LANES);
        }
        for (int i = 0; i < X; i++)
            for (int j = 0; j < WIDENED_ROWS; j++)
                sum[i][j] += __builtin_convertvector(whole[i][j], vec) * splat(x[i].scale[b]);
    }
}

// What a byte of a packed row stands for: rows that are summed have 128 added.
static inline int8_t unpacked(uint8_t byte) { return (int8_t)(byte ^ 128); }

// y += sum_j h[j] row j of eight packed rows, side by side; `after` as in `dot`, one a row.
static inline void add_eight_rows(float *__restrict y, const uint8_t *const *row, const float *h, int64_t n,
                                  const int8_t *const *after) {
    const uint8_t *a = row[0], *b = row[1], *c = row[2], *d = row[3], *e = row[4], *f = row[5], *g = row[6];
    const uint8_t *k = row[7];
    for (int64_t first = 0; first < n; first += BYTES) {
        int64_t last = n - first < BYTES ? n : first + BYTES;
        for (int j = 0; j < 8; j++) fetch(after[j] + first);
        for (int64_t i = first; i < last; i++)
            y[i] += h[0] * unpacked(a[i]) + h[1] * unpacked(b[i]) + h[2] * unpacked(c[i]) + h[3] * unpacked(d[i]) +
                    h[4] * unpacked(e[i]) + h[5] * unpacked(f[i]) + h[6] * unpacked(g[i]) + h[7] * unpacked(k[i]);
    }
}

static inline void add_scaled(float *__restrict y, const uint8_t *w, float h, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += h * unpacked(w[i]);
}

// The place of the largest of bias[i] + scale[i] sum_r z[r] tile[r, i], i below N, the first of equals; `sums` has room
// for N.
static int64_t best_unit(const float *z, const int8_t *tile, const float *scale, const float *bias, int64_t R,
                         int64_t N, float *__restrict sums) {
    memset(sums, 0, N * sizeof(float));
    int64_t r = 0;
    for (; r + 4 <= R; r += 4) {
        const int8_t *a = tile + r * N, *b = a + N, *c = b + N, *d = c + N;
        fetch_row(a + BYTES_AHEAD, 4 * N);
        for (int64_t i = 0; i < N; i++) sums[i] += z[r] * a[i] + z[r + 1] * b[i] + z[r + 2] * c[i] + z[r + 3] * d[i];
    }
    for (; r < R; r++)
        for (int64_t i = 0; i < N; i++) sums[i] += z[r] * tile[r * N + i];
    int64_t best = 0;
    for (int64_t i = 0; i < N; i++) {
        sums[i] = bias[i] + scale[i] * sums[i];
        if (sums[i] > sums[best]) best = i;
    }
    return best;
}
