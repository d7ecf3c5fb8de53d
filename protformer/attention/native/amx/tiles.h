// AMX tiles, their products, and vectors that are rounded to bf16.
//
// A tile is 16 rows of 64 bytes, 1 KiB, and lies contiguous in every buffer of this engine:
//     left operand    16 rows     x 32 numbers of the summed dimension (bf16)
//     right operand   16 row pairs x 16 columns of pairs (bf16): the numbers at rows 2r and 2r + 1 of column c are
//                     neighbours, at [r][2 c] and [r][2 c + 1]
//     result          16 x 16 (fp32)
// A left operand may also be 16 rows of the caller's tensor, read in place with its own distance between rows.

#pragma once

#include "../vectors.h"

namespace favor {

using bf16 = std::uint16_t;
using Element = bf16;

// (LANES is the number of rows of a tile, too)
constexpr int STEP = 32;     // numbers of the summed dimension in a tile
constexpr int LEFT = 512;    // bf16 numbers in a tile
constexpr int RESULT = 256;  // fp32 numbers in a tile

// The compiler takes tile loads for instructions that touch no memory; nothing may move across this.
static inline void fence_tiles() { asm volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
    std::uint8_t palette = 0, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

// All eight tiles at full size while it lives; what another library had set on this thread comes back after it.
class Tiles {
  public:
    Tiles() {
        _tile_storeconfig(&before_);
        TileConfig config;
        config.palette = 1;
        for (int tile = 0; tile < 8; ++tile) {
            config.row_bytes[tile] = 64;
            config.rows[tile] = LANES;
        }
        fence_tiles();
        _tile_loadconfig(&config);
    }
    ~Tiles() {
        fence_tiles();
        if (before_.palette != 0)
            _tile_loadconfig(&before_);
        else
            _tile_release();
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

  private:
    TileConfig before_;
};
using Thread = Tiles;  // what a thread has while it works

// Where a left operand lies: its first tile, bytes between rows, bf16 numbers to the next 16 rows and the next step.
struct Left {
    const bf16* at;
    std::size_t row_bytes, next_rows, next_step;
};

// Where a right operand or a result lies: numbers to the next 16 columns, and to the next step or 16 rows.
struct Right {
    const bf16* at;
    std::size_t next_columns, next_step;
};
struct Result {
    float* at;
    std::size_t next_columns, next_rows;
};

static inline Left left_tiles(const bf16* at, std::size_t next_rows, std::size_t next_step) {
    return {at, 64, next_rows, next_step};
}

static inline Left left_in_place(const bf16* at, std::size_t row_numbers) {
    return {at, 2 * row_numbers, LANES * row_numbers, STEP};
}

// left right, over so many steps of the summed dimension.
struct Product {
    Left left;
    Right right;
    int steps;
};

// Adds a product to the result in the first four tiles.
template <int R, int N>
static inline __attribute__((always_inline)) void add_product(const Product& product) {
    Left a = product.left;
    Right b = product.right;
    for (int step = 0; step < product.steps; ++step, a.at += a.next_step, b.at += b.next_step) {
        _tile_loadd(6, b.at, 64);
        _tile_loadd(4, a.at, a.row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N > 1) {
            _tile_loadd(7, b.at + b.next_columns, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (R > 1) {
            _tile_loadd(5, a.at + a.next_rows, a.row_bytes);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (R > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
    }
}

// result = start + sum of products, for 16 R rows and 16 N columns; start lies like the result, or is zero where null.
template <int R, int N, class... Products>
static inline __attribute__((always_inline)) void multiply(Result c, const float* start, const Products&... products) {
    fence_tiles();
    if (start) {
        _tile_loadd(0, start, 64);
        if constexpr (N > 1) _tile_loadd(1, start + c.next_columns, 64);
        if constexpr (R > 1) _tile_loadd(2, start + c.next_rows, 64);
        if constexpr (R > 1 && N > 1) _tile_loadd(3, start + c.next_rows + c.next_columns, 64);
    } else {
        _tile_zero(0);
        if constexpr (N > 1) _tile_zero(1);
        if constexpr (R > 1) _tile_zero(2);
        if constexpr (R > 1 && N > 1) _tile_zero(3);
    }
    (add_product<R, N>(products), ...);
    _tile_stored(0, c.at, 64);
    if constexpr (N > 1) _tile_stored(1, c.at + c.next_columns, 64);
    if constexpr (R > 1) _tile_stored(2, c.at + c.next_rows, 64);
    if constexpr (R > 1 && N > 1) _tile_stored(3, c.at + c.next_rows + c.next_columns, 64);
    fence_tiles();
}

template <int R, int N>
static inline __attribute__((always_inline)) void multiply(Result c, const float* start, Left a, Right b, int steps) {
    multiply<R, N>(c, start, Product{a, b, steps});
}

// 32 rows of a result of `columns` tiles of columns.
template <class... Products>
static inline void multiply_rows(Result c, const float* start, int columns, Products... products) {
    int column = 0;
    for (; column + 2 <= columns; column += 2) {
        multiply<2, 2>(c, start, products...);
        c.at += 2 * c.next_columns;
        start = start ? start + 2 * c.next_columns : nullptr;
        ((products.right.at += 2 * products.right.next_columns), ...);
    }
    if (column < columns) multiply<2, 1>(c, start, products...);
}

static inline void multiply_rows(Result c, const float* start, Left a, Right b, int columns, int steps) {
    multiply_rows(c, start, columns, Product{a, b, steps});
}

// [a, b] rounded to bf16.
static inline __m512i round_pair(__m512 a, __m512 b) { return (__m512i)_mm512_cvtne2ps_pbh(b, a); }

static inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

static inline __m512 load_bf16(const bf16* x) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))); }

// A left operand's tile as a right operand's, or the reverse; rows of the former `next` numbers apart.
static inline void turn_tile(const bf16* from, bf16* to, std::size_t next = STEP) {
    __m512i x[16];
    for (int i = 0; i < LANES; ++i) x[i] = load(from + i * next);
    transpose(x);
    for (int i = 0; i < LANES; ++i) store(to + i * STEP, x[i]);
}

// One row of a right operand from [a0 .. a15, b0 .. b15]: [a0, b0, a1, b1, ...].
static inline __m512i interleave(__m512i halves) {
    alignas(64) static const std::uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(load(order), halves);
}

// A row of each of two right operands, from two rows of 32 numbers.
static inline void interleave_rows(__m512i a, __m512i b, bf16* first, bf16* second) {
    alignas(64) static const std::uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i order = load(low);
    store(first, _mm512_permutex2var_epi16(a, order, b));
    store(second, _mm512_permutex2var_epi16(a, _mm512_add_epi16(order, _mm512_set1_epi16(16)), b));
}

}  // namespace favor
