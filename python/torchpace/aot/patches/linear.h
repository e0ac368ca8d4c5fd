// float32 linear layers of a compiled model, act(x W^T + bias), chains of them in one parallel
// region: part of the code that AOTInductor generates, inserted by linear.py behind gemm.h, whose
// tiles it uses.
//
// Why not at::addmm: it packs the weights in every call, hands every layer to all threads and waits
// for them, and writes what the activation reads again. Here a thread takes its rows through the
// whole chain, and waits for no other until the end.
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>

namespace {
namespace torchpace_linear {

using namespace torchpace_matmul;

/// As in linear.py.
enum class Activation { kNone, kRelu, kGelu, kGeluTanh, kSilu };

struct Layer {
  const float* weight;  // [panels, in, kColumns], zeros where there is no column
  const float* bias;    // [out], or null
  int64_t in, out;
  Activation activation;
};

// What things cost, in multiply-adds of a thread.
constexpr double kRegion = 100e3;        // of a parallel region
constexpr double kMeeting = 25e3;        // of all threads, after a layer
constexpr int64_t kReading = 4;          // of a weight that is read from the caches
constexpr int64_t kScratch = 64 * 1024;  // values of a block of rows between two layers, in L2

struct Scratch {
  std::unique_ptr<float, void (*)(void*)> values{nullptr, std::free};
  int64_t size = 0;

  float* of(int64_t wanted) {
    if (wanted > size) {
      const size_t bytes = (static_cast<size_t>(wanted) * sizeof(float) + 63) / 64 * 64;
      values.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      size = values ? wanted : 0;
      if (!values) throw std::bad_alloc();
    }
    return values.get();
  }
};
thread_local Scratch scratch;

#if defined(__AVX512F__)
TORCHPACE_INLINE Vector lesser(Vector a, Vector b) { return _mm512_min_ps(a, b); }
TORCHPACE_INLINE Vector nearest(Vector x) { return _mm512_roundscale_ps(x, 0); }
TORCHPACE_INLINE Vector power_of_2(Vector n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}
#else
TORCHPACE_INLINE Vector lesser(Vector a, Vector b) { return _mm256_min_ps(a, b); }
TORCHPACE_INLINE Vector nearest(Vector x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
TORCHPACE_INLINE Vector power_of_2(Vector n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
#endif

/// e^x to 1e-7 of it, within e^-87 and e^88; NaN of NaN.
TORCHPACE_INLINE Vector exponential(Vector x) {
  x = lesser(fill(88.0f), greater(fill(-87.0f), x));
  const Vector n = nearest(x * fill(1.44269504f));
  // x - n ln 2 in two steps, of which the first is exact; then seven terms of the series.
  const Vector r = multiply_add(n, fill(2.12194440e-4f), multiply_add(n, fill(-0.693359375f), x));
  Vector p = fill(1.0f / 5040);
  p = multiply_add(p, r, fill(1.0f / 720));
  p = multiply_add(p, r, fill(1.0f / 120));
  p = multiply_add(p, r, fill(1.0f / 24));
  p = multiply_add(p, r, fill(1.0f / 6));
  p = multiply_add(p, r, fill(0.5f));
  p = multiply_add(p, r, fill(1.0f));
  p = multiply_add(p, r, fill(1.0f));
  return p * power_of_2(n);
}

TORCHPACE_INLINE Vector times_sigmoid(Vector x, Vector of) {
  return x / (fill(1.0f) + exponential(fill(0.0f) - of));
}

TORCHPACE_INLINE Vector gelu_tanh(Vector x) {  // 1 + tanh(u) = 2 sigmoid(2 u)
  const Vector inner = multiply_add(x * x * x, fill(0.044715f), x);
  return times_sigmoid(x, fill(1.5957691216f) * inner);
}

/// erf(z) = z P(z^2) / Q(z^2) to 2.5e-8 of it where |z| < 4, fitted to the least maximum.
TORCHPACE_INLINE Vector gelu(Vector x) {
  const Vector z = lesser(fill(4.0f), greater(fill(-4.0f), x * fill(0.70710678f)));
  const Vector t = z * z;
  Vector p = fill(1.986778216e-06f), q = fill(3.742021363e-05f);
  p = multiply_add(p, t, fill(2.845674462e-04f));
  q = multiply_add(q, t, fill(1.185584464e-03f));
  p = multiply_add(p, t, fill(3.883396043e-03f));
  q = multiply_add(q, t, fill(1.520735491e-02f));
  p = multiply_add(p, t, fill(5.310190842e-02f));
  q = multiply_add(q, t, fill(1.153504848e-01f));
  p = multiply_add(p, t, fill(1.935462207e-01f));
  q = multiply_add(q, t, fill(5.048584342e-01f));
  p = multiply_add(p, t, fill(1.128379107e+00f));
  q = multiply_add(q, t, fill(1.0f));
  return x * fill(0.5f) * (fill(1.0f) + z * p / q);
}

/// In place, on whole vectors: what is behind `width` is the caller's to lose.
__attribute__((optimize("O3"), noinline)) inline void activate(Activation activation, float* x,
                                                               int64_t row, int64_t rows,
                                                               int64_t width) {
  for (int64_t r = 0; r < rows; ++r, x += row) {
    if (activation == Activation::kGelu)
      for (int64_t j = 0; j < width; j += kLanes) store(x + j, gelu(load(x + j)));
    else if (activation == Activation::kGeluTanh)
      for (int64_t j = 0; j < width; j += kLanes) store(x + j, gelu_tanh(load(x + j)));
    else if (activation == Activation::kSilu)
      for (int64_t j = 0; j < width; j += kLanes) {
        const Vector v = load(x + j);
        store(x + j, times_sigmoid(v, v));
      }
  }
}

/// Rows of activations: values at `data`, the next row `row` further.
struct Rows {
  float* data;
  int64_t row;
  Rows at(int64_t i) const { return {data + i * row, row}; }
};

inline void copy_columns(const float* from, int64_t from_row, float* to, int64_t to_row,
                         int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(to + r * to_row, from + r * from_row, static_cast<size_t>(width) * sizeof(float));
}

/// Few rows, whole panels and the whole depth at once: the weights are read once, so what counts is
/// that enough sums are under way.
template <int Rows, int Panels>
inline int64_t wide_tiles(const Layer& l, const float* a, int64_t a_row, float* out,
                          int64_t out_row, int64_t begin, int64_t end, float least) {
  alignas(64) static constexpr float kZeros[Panels * kColumns] = {};
  int64_t j = begin;
  for (; j + Panels * kColumns <= end; j += Panels * kColumns)
    tile<Rows, false, Panels>(l.in, a, a_row, l.weight + j * l.in, l.in * kColumns, out + j,
                              out_row, l.bias ? l.bias + j : kZeros, false, least);
  return j;
}

/// Brings values into L1 before they are read: of the next panel, while this one is worked on,
/// since the processor does not foresee where it begins. Returns what comes after them.
__attribute__((optimize("O3"))) inline const float* fetch(const float* from, int64_t count) {
  constexpr int64_t kLine = 16;
  const float* const end = from + (count + kLine - 1) / kLine * kLine;
  for (; from < end; from += kLine) _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
  return end;
}

/// Columns begin to end, begin being a multiple of kColumns, of a layer's output.
__attribute__((optimize("O3"))) inline void columns_of(const Layer& l, const float* a,
                                                       int64_t a_row, int64_t rows, Rows out,
                                                       int64_t begin, int64_t end) {
  alignas(64) float start[kColumns] = {};
  alignas(64) float corner[kRows * kColumns];
  const float least = l.activation == Activation::kRelu ? 0 : kAny;
  const bool later = l.activation != Activation::kNone && l.activation != Activation::kRelu;
  const int64_t all = begin;
  if (rows == 1) begin = wide_tiles<1, 4>(l, a, a_row, out.data, out.row, begin, end, least);
  if (rows == 2) begin = wide_tiles<2, 2>(l, a, a_row, out.data, out.row, begin, end, least);
  if (later && begin > all) activate(l.activation, out.data + all, out.row, rows, begin - all);
  for (int64_t k = 0; k < l.in; k += kDepth) {
    const int64_t depth = std::min(kDepth, l.in - k);
    const bool last = k + depth == l.in;
    for (int64_t j = begin; j < end; j += kColumns) {
      const int64_t width = std::min(kColumns, end - j);
      const bool whole = width == kColumns;
      const float* panel = l.weight + j * l.in + k * kColumns;
      if (l.bias) std::memcpy(start, l.bias + j, static_cast<size_t>(width) * sizeof(float));
      const float* next = panel + l.in * kColumns;
      for (int64_t i = 0; i < rows; i += kRows) {
        const int64_t height = std::min(kRows, rows - i);
        if (j + kColumns < end) next = fetch(next, depth * kColumns * kRows / rows);
        const Rows target = out.at(i);
        const Rows to = whole ? Rows{target.data + j, target.row} : Rows{corner, kColumns};
        if (!whole && k > 0)
          copy_columns(target.data + j, target.row, corner, kColumns, height, width);
        tile_of<false>(height, depth, a + i * a_row + k, a_row, panel, to.data, to.row, start,
                       k > 0, last ? least : kAny);
        if (later && last) activate(l.activation, to.data, to.row, height, kColumns);
        if (!whole) copy_columns(corner, kColumns, target.data + j, target.row, height, width);
      }
    }
  }
}

struct Chain {
  const Layer* layers;
  int count;
  const float* x;
  int64_t rows;
  float* out;

  /// Of scratch rows, which must not fall on the same lines of L1.
  int64_t stride() const {
    int64_t widest = 0;
    for (int i = 0; i < count; ++i) widest = std::max({widest, layers[i].in, layers[i].out});
    return (widest + kLanes - 1) / kLanes * kLanes + kLanes;
  }
};

/// Rows begin to end through all layers, on this thread.
inline void rows_of(const Chain& c, int64_t begin, int64_t end) {
  const int64_t stride = c.stride(), first = c.layers[0].in, last = c.layers[c.count - 1].out;
  const bool copies = end - begin > kRows && first % kFarApart == 0;
  int64_t height = std::max(kRows, kScratch / stride / kRows * kRows);
  if (c.count == 1) height = kHeight;
  height = std::min(height, end - begin);
  float* const space = scratch.of(2 * height * stride);
  for (int64_t i = begin; i < end; i += height) {
    const int64_t rows = std::min(height, end - i);
    const float* a = c.x + i * first;
    int64_t a_row = first;
    if (copies) {
      float* to = space + (c.count % 2) * height * stride;
      copy_columns(a, a_row, to, stride, rows, first);
      a = to, a_row = stride;
    }
    for (int n = 0; n < c.count; ++n) {
      const Layer& l = c.layers[n];
      const bool ends = n + 1 == c.count;
      // The last of an even count reads the first half.
      const Rows out = ends ? Rows{c.out + i * last, last}
                            : Rows{space + ((c.count - 1 - n) % 2) * height * stride, stride};
      columns_of(l, a, a_row, rows, out, 0, l.out);
      a = out.data, a_row = out.row;
    }
  }
}

/// All threads wait here for each other.
class Meeting {
 public:
  explicit Meeting(int threads) : threads_(threads) {}
  void wait() {
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < 10'000)
        _mm_pause();
      else
        std::this_thread::yield();
    }
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0}, round_{0};
};

/// A thread's columns of every layer.
inline void columns_of_all(const Chain& c, float* space, Meeting& meeting, int thread,
                           int threads) {
  const int64_t stride = c.stride(), last = c.layers[c.count - 1].out;
  Rows in{const_cast<float*>(c.x), c.layers[0].in};
  for (int n = 0; n < c.count; ++n) {
    const Layer& l = c.layers[n];
    const Rows out =
        n + 1 == c.count ? Rows{c.out, last} : Rows{space + (n % 2) * c.rows * stride, stride};
    columns_of(l, in.data, in.row, c.rows, out, share(l.out, kColumns, thread, threads),
               share(l.out, kColumns, thread + 1, threads));
    if (n + 1 < c.count) meeting.wait();
    in = out;
  }
}

inline void run(const Chain& c) {
  constexpr int kThreads = TORCHPACE_MATMUL_THREADS;
  const auto cost = [](const Layer& l, int64_t rows, int64_t columns) {
    return static_cast<double>(l.in) * static_cast<double>(columns) *
           static_cast<double>(std::max(rows, kReading));
  };
  const int64_t rows_each = (c.rows + kRows * kThreads - 1) / (kRows * kThreads) * kRows;
  double alone = 0, by_rows = kRegion, by_columns = kRegion;
  for (int i = 0; i < c.count; ++i) {
    const Layer& l = c.layers[i];
    const int64_t panels = (l.out + kColumns - 1) / kColumns;
    alone += cost(l, c.rows, l.out);
    by_rows += cost(l, std::min(c.rows, rows_each), l.out);
    by_columns += cost(l, c.rows, (panels + kThreads - 1) / kThreads * kColumns) +
                  (i + 1 < c.count ? kMeeting : 0);
  }
  if (c.rows == 0) return;
  if (kThreads == 1 || alone <= std::min(by_rows, by_columns)) {
    rows_of(c, 0, c.rows);
    return;
  }
  float* const space = by_columns < by_rows ? scratch.of(2 * c.rows * c.stride()) : nullptr;
  Meeting meeting(kThreads);
#pragma omp parallel num_threads(kThreads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    if (threads != kThreads) {  // nested, or a limit: what has begun alone ends alone
      if (thread == 0) rows_of(c, 0, c.rows);
    } else if (space) {
      columns_of_all(c, space, meeting, thread, threads);
    } else {
      rows_of(c, share(c.rows, kRows, thread, threads), share(c.rows, kRows, thread + 1, threads));
    }
  }
}

}  // namespace torchpace_linear
}  // namespace
