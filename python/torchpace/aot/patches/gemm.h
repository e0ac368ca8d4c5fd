// float32 matrix products of a compiled training step: part of the code that AOTInductor generates,
// inserted by gemm.py, which defines TORCHPACE_MATMUL_THREADS. No name is visible outside of the
// package.
//
// Why not at::mm: it is MKL, which has only an AVX2 kernel for processors that are not Intel's, and
// hands work to all threads however small it is.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {
namespace torchpace_matmul {

// Around this AOTInductor's code is compiled without optimization, which inlines nothing else.
#define TORCHPACE_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
using Vector = __m512;
constexpr int64_t kLanes = 16, kRows = 8;
TORCHPACE_INLINE Vector load(const float* x) { return _mm512_loadu_ps(x); }
TORCHPACE_INLINE void store(float* x, Vector v) { _mm512_storeu_ps(x, v); }
TORCHPACE_INLINE Vector fill(float x) { return _mm512_set1_ps(x); }
TORCHPACE_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm512_fmadd_ps(a, b, c);
}
/// b where one of them is NaN.
TORCHPACE_INLINE Vector greater(Vector a, Vector b) { return _mm512_max_ps(a, b); }
#else
using Vector = __m256;
constexpr int64_t kLanes = 8, kRows = 6;
TORCHPACE_INLINE Vector load(const float* x) { return _mm256_loadu_ps(x); }
TORCHPACE_INLINE void store(float* x, Vector v) { _mm256_storeu_ps(x, v); }
TORCHPACE_INLINE Vector fill(float x) { return _mm256_set1_ps(x); }
TORCHPACE_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
  return _mm256_fmadd_ps(a, b, c);
}
/// b where one of them is NaN.
TORCHPACE_INLINE Vector greater(Vector a, Vector b) { return _mm256_max_ps(a, b); }
#endif

constexpr int64_t kColumns = 2 * kLanes;  // of a tile: kRows x 2 accumulators
constexpr int64_t kDepth = 256;           // of a packed block: a panel of b stays in L1,
constexpr int64_t kHeight = 32 * kRows;   // a block of a in L2
constexpr int64_t kFarApart = 1024;       // rows of a that fall on the same lines of L1
constexpr double kWorthThreads =
    1024 * 1024;  // multiply-adds and adds; below, one thread is faster

/// A matrix with any strides, in elements.
struct Matrix {
  const float* data;
  int64_t row, column;
  Matrix at(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

struct Product {
  Matrix a, b;
  float* out;
  int64_t out_row, rows, columns, depth;
  const float* bias;  // of each column, or null
};

/// out[Rows, Panels * kColumns] = the greater of `least` and start + a b over `depth`. `panel`
/// holds b: kColumns values for each depth, the next panel `stride` further. start: the values in
/// `out`, or without `accumulate` those at `bias`. NaN stays.
template <int Rows, bool Packed, int Panels = 1>
__attribute__((optimize("O3"), noinline)) void tile(int64_t depth, const float* a, int64_t a_row,
                                                    const float* panel, int64_t stride, float* out,
                                                    int64_t out_row, const float* bias,
                                                    bool accumulate, float least) {
  constexpr int kVectors = 2 * Panels;
  Vector sum[Rows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const float* from = accumulate ? out + r * out_row : bias;
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) sum[r][c] = load(from + c * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector b[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) b[c] = load(panel + c / 2 * stride + c % 2 * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vector x = fill(Packed ? a[r] : a[r * a_row]);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) sum[r][c] = multiply_add(x, b[c], sum[r][c]);
    }
    panel += kColumns;
    a += Packed ? kRows : 1;
  }
  const Vector lowest = fill(least);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c)
      store(out + r * out_row + c * kLanes, greater(lowest, sum[r][c]));
  }
}

constexpr float kAny = -__builtin_inff();

/// tile() for any number of rows up to kRows.
template <bool Packed, int Rows = kRows>
void tile_of(int64_t rows, int64_t depth, const float* a, int64_t a_row, const float* panel,
             float* out, int64_t out_row, const float* bias, bool accumulate, float least = kAny) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      tile<Rows, Packed>(depth, a, a_row, panel, 0, out, out_row, bias, accumulate, least);
    else
      tile_of<Packed, Rows - 1>(rows, depth, a, a_row, panel, out, out_row, bias, accumulate,
                                least);
  }
}

/// `width` values of each depth, side by side, filled up with zeros to `full`.
__attribute__((optimize("O3"))) inline void pack(const float* from, int64_t stride,
                                                 int64_t depth_stride, int64_t width, int64_t full,
                                                 int64_t depth, float* to) {
  if (stride == 1) {
    for (int64_t k = 0; k < depth; ++k, to += full, from += depth_stride) {
      std::memcpy(to, from, static_cast<size_t>(width) * sizeof(float));
      for (int64_t i = width; i < full; ++i) to[i] = 0;
    }
    return;
  }
  for (int64_t i = 0; i < full; ++i) {
    for (int64_t k = 0; k < depth; ++k)
      to[k * full + i] = i < width ? from[i * stride + k * depth_stride] : 0;
  }
}

/// The part of a product with these rows and columns, on this thread.
__attribute__((optimize("O3"))) inline void multiply_part(const Product& p, int64_t row_begin,
                                                          int64_t row_end, int64_t column_begin,
                                                          int64_t column_end) {
  alignas(64) float panel[kDepth * kColumns];
  alignas(64) float block[kDepth * kHeight];
  alignas(64) float corner[kRows * kColumns];
  alignas(64) float start[kColumns] = {};
  const bool packed = p.a.column != 1 || p.a.row >= kFarApart;
  for (int64_t i0 = row_begin; i0 < row_end; i0 += kHeight) {
    const int64_t height = std::min(kHeight, row_end - i0);
    for (int64_t k0 = 0; k0 < p.depth; k0 += kDepth) {
      const int64_t depth = std::min(kDepth, p.depth - k0);
      const Matrix a = p.a.at(i0, k0);
      if (packed) {
        for (int64_t i = 0; i < height; i += kRows)
          pack(a.at(i, 0).data, a.row, a.column, std::min(kRows, height - i), kRows, depth,
               block + i * kDepth);
      }
      for (int64_t j = column_begin; j < column_end; j += kColumns) {
        const int64_t width = std::min(kColumns, column_end - j);
        const Matrix b = p.b.at(k0, j);
        pack(b.data, b.column, b.row, width, kColumns, depth, panel);
        if (p.bias) std::memcpy(start, p.bias + j, static_cast<size_t>(width) * sizeof(float));
        for (int64_t i = 0; i < height; i += kRows) {
          const int64_t rows = std::min(kRows, height - i);
          float* out = p.out + (i0 + i) * p.out_row + j;
          const bool whole = width == kColumns;
          if (!whole && k0 > 0) {
            for (int64_t r = 0; r < rows; ++r)
              std::memcpy(corner + r * kColumns, out + r * p.out_row,
                          static_cast<size_t>(width) * sizeof(float));
          }
          float* to = whole ? out : corner;
          const int64_t to_row = whole ? p.out_row : kColumns;
          if (packed)
            tile_of<true>(rows, depth, block + i * kDepth, 0, panel, to, to_row, start, k0 > 0);
          else
            tile_of<false>(rows, depth, a.at(i, 0).data, a.row, panel, to, to_row, start, k0 > 0);
          if (!whole) {
            for (int64_t r = 0; r < rows; ++r)
              std::memcpy(out + r * p.out_row, corner + r * kColumns,
                          static_cast<size_t>(width) * sizeof(float));
          }
        }
      }
    }
  }
}

/// The begin of a thread's share of `total`, in whole tiles.
inline int64_t share(int64_t total, int64_t tile, int thread, int threads) {
  const int64_t tiles = (total + tile - 1) / tile;
  return std::min(total, tiles * thread / threads * tile);
}

inline void multiply(const Product& p) {
  constexpr int kThreads = TORCHPACE_MATMUL_THREADS;
  const double work = 2.0 * static_cast<double>(p.rows) * static_cast<double>(p.columns) *
                      static_cast<double>(p.depth);
  if (kThreads == 1 || work < kWorthThreads) {
    multiply_part(p, 0, p.rows, 0, p.columns);
    return;
  }
  // Along the side on which the shares are more equal; each thread packs what it needs itself.
  const int64_t panels = (p.columns + kColumns - 1) / kColumns;
  const bool by_columns = panels % kThreads == 0 || panels >= 8 * kThreads;
#pragma omp parallel num_threads(kThreads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    if (by_columns)
      multiply_part(p, 0, p.rows, share(p.columns, kColumns, thread, threads),
                    share(p.columns, kColumns, thread + 1, threads));
    else
      multiply_part(p, share(p.rows, kRows, thread, threads),
                    share(p.rows, kRows, thread + 1, threads), 0, p.columns);
  }
}

}  // namespace torchpace_matmul
}  // namespace
