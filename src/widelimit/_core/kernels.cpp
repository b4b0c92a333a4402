// The slice engine. Compiled once per instruction set with -DWL_ISA=<name>; see core.hpp for the rule on headers.
//
// One slice (docs/mathematics.md, "Slices") is swept from top to bottom by all layers together. A layer keeps the
// few rows that its box filter needs in a ring; two rows at a time go through box filter, dual activation and back
// to the ring of the next layer, so a slice of any size needs O(layers * width) memory.
#include "core.hpp"
#include "dual_coefficients.hpp"
#include "peak.hpp"
#include "simd.hpp"

#define WL_CONCAT_(a, b) a##b
#define WL_CONCAT(a, b) WL_CONCAT_(a, b)

namespace widelimit {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Coefficients of the dual activation for one layer, scaled by the layer's out_scale and the factors of
// `ratio`, ready to be loaded as vectors.

template <class T>
struct Dual;
template <>
struct Dual<float> {
  static constexpr int nA = sizeof(kA32) / sizeof(kA32[0]), nB = sizeof(kB32) / sizeof(kB32[0]);
  static constexpr const float* A = kA32;
  static constexpr const float* B = kB32;
  static constexpr float tiny = 1e-36f;
};
template <>
struct Dual<double> {
  static constexpr int nA = sizeof(kA64) / sizeof(kA64[0]), nB = sizeof(kB64) / sizeof(kB64[0]);
  static constexpr const double* A = kA64;
  static constexpr const double* B = kB64;
  static constexpr double tiny = 1e-290;
};

template <class T>
struct Constants {
  static constexpr int L = Vec<T>::lanes;
  alignas(64) T a[Dual<T>::nA][L];  // kappa0 = scale - t * A(v)
  alignas(64) T b[Dual<T>::nB][L];  // signed layer: K = scale * max(s, 0) + e t B(v)
  alignas(64) T scale[L];
  alignas(64) T scale_over_pi[L];
  alignas(64) T bias[L];
};

template <class T>
void fill(T* row, T value) {
  for (int l = 0; l < Vec<T>::lanes; ++l) row[l] = value;
}

template <class T>
void set_constants(Constants<T>& k, double scale) {
  const double r = 1.0 / double(ratio_scale<T>());  // `ratio` returns t / r
  double f = scale * r;
  for (int i = 0; i < Dual<T>::nA; ++i, f *= r * r) fill(k.a[i], T(f * double(Dual<T>::A[i])));
  f = scale * r;
  for (int i = 0; i < Dual<T>::nB; ++i, f *= r * r) fill(k.b[i], T(f * double(Dual<T>::B[i])));
  fill(k.scale, T(scale));
  fill(k.scale_over_pi, T(scale * r * 0.318309886183790671538));
  fill(k.bias, T(0));
}

// ---------------------------------------------------------------------------------------------------------
// Two rows (or one) of one layer.

// What a step does, as bits: the common combinations are compiled with the bits known.
enum : int {
  kRelu = 1,
  kSigned = 2,
  kThetaOwn = 4,   // Theta has its own ring; otherwise it is zero on entry
  kTrain = 8,      // Theta' += sigma
  kOutK = 16,
  kOutTheta = 32,
  kBias = 64,
  kDynamic = -1,
};

// A cell of a ring holds the lanes of K, then the lanes of Theta. Cell `width` of every row is zero.
template <class T>
struct Rows {
  const T* in[4];  // rows r-1, r, r+1, r+2 of the input (filter 3), or r, r+1 of box sums (any other filter)
  T* out[2];
  const T* x[2];   // profile of x, at the pixels p of the rows
  const T* z[2];   // profile of the lanes' images, at p + d
  const Constants<T>* k;
  int width;
  int flags;
};

// Horner's scheme; for the long polynomials of double one for the even and one for the odd powers, which halves
// the chain of dependent operations.
template <class T, int N>
WL_INLINE Vec<T> polynomial(const Vec<T> (&c)[N], Vec<T> v) {
  constexpr int stride = sizeof(T) == 8 ? 2 : 1;
  const Vec<T> power = stride == 2 ? mul(v, v) : v;
  Vec<T> r = c[N - 1], other = c[N - stride];
#pragma GCC unroll 32
  for (int i = N - 1 - stride; i >= 0; i -= stride) r = fma(r, power, c[i]);
  if (stride == 1) return r;
#pragma GCC unroll 32
  for (int i = N - 2 - stride; i >= 0; i -= stride) other = fma(other, power, c[i]);
  return N % 2 ? fma(other, v, r) : fma(r, v, other);
}

template <class T, int Flags, int R, bool Fused, bool Pairwise>
void compute_rows(const Rows<T>& a) {
  using V = Vec<T>;
  constexpr int L = V::lanes, Cell = 2 * L;
  const int flags = Flags == kDynamic ? a.flags : Flags;
  const bool relu = flags & kRelu, is_signed = flags & kSigned, own = flags & kThetaOwn, train = flags & kTrain;
  const bool out_k = flags & kOutK, out_theta = flags & kOutTheta, biased = flags & kBias;
  const Constants<T>& k = *a.k;
  const V zero = broadcast(T(0)), tiny = broadcast(Dual<T>::tiny);
  const V scale = load(k.scale), scale_over_pi = load(k.scale_over_pi), bias = load(k.bias);

  // Local copies: a store to a row must not make the compiler fetch these again.
  V ca[Dual<T>::nA], cb[Dual<T>::nB];
  for (int i = 0; i < Dual<T>::nA; ++i) ca[i] = load(k.a[i]);
  for (int i = 0; i < Dual<T>::nB; ++i) cb[i] = is_signed ? load(k.b[i]) : zero;
  const T *const in0 = a.in[0], *const in1 = a.in[1], *const in2 = a.in[2], *const in3 = a.in[3];
  const T *const xs[2] = {a.x[0], a.x[1]}, *const zs[2] = {a.z[0], a.z[1]};
  T* const outs[2] = {a.out[0], a.out[1]};
  const int width = a.width;

  // Vertical sums of the input rows at cell j, for each output row: field 0 is K, field 1 Theta.
  auto column = [&](int j, int field, V* v) {
    const int o = j * Cell + field * L;
    const V b = load(in1 + o), c = load(in2 + o), bc = add(b, c);
    v[0] = add(load(in0 + o), bc);
    if (R == 2) v[1] = add(bc, load(in3 + o));
  };
  V pair_k[2] = {zero, zero}, last_k[2] = {zero, zero};  // column j-1 + column j, column j
  V pair_t[2] = {zero, zero}, last_t[2] = {zero, zero};
  if (Fused) {
    column(0, 0, last_k);
    if (own) column(0, 1, last_t);
    for (int r = 0; r < R; ++r) {
      pair_k[r] = last_k[r];
      pair_t[r] = last_t[r];
    }
  }
  struct Entry {  // one column between box filter and activation
    V s[2], th[2], e[2], p[2];
  };
  auto fetch = [&](int j, Entry& n) {
    if (Fused) {
      V next[2];
      column(j + 1, 0, next);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        n.s[r] = add(pair_k[r], next[r]);
        pair_k[r] = add(last_k[r], next[r]);
        last_k[r] = next[r];
      }
      if (own) {
        column(j + 1, 1, next);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
          n.th[r] = add(pair_t[r], next[r]);
          pair_t[r] = add(last_t[r], next[r]);
          last_t[r] = next[r];
        }
      }
    } else {
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        n.s[r] = load((r ? in1 : in0) + j * Cell);
        if (own) n.th[r] = load((r ? in1 : in0) + j * Cell + L);
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      if (biased) n.s[r] = add(n.s[r], bias);
      if (train) n.th[r] = own ? add(n.th[r], n.s[r]) : n.s[r];
      if (!train && !own) n.th[r] = zero;
      if (relu) {
        const V x = Pairwise ? load(xs[r] + j * L) : broadcast(xs[r][j]);
        const V m = mul(x, load(zs[r] + j * L));
        const V size = is_signed ? abs(n.s[r]) : n.s[r];
        n.e[r] = max(sub(m, size), zero);
        n.p[r] = add(m, size);
      }
    }
  };
  auto finish = [&](int j, const Entry& n) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      T* out = outs[r] + j * Cell;
      if (!relu) {
        if (out_k) store(out, mul(n.s[r], scale));
        if (out_theta) store(out + L, mul(n.th[r], scale));
        continue;
      }
      const V t = ratio(n.e[r], fma(n.p[r], n.e[r], tiny)), v = mul(t, t), g = polynomial<T>(ca, v);
      V kappa0 = fnma(t, g, scale);
      if (is_signed) kappa0 = where_negative(n.s[r], mul(t, g), kappa0);
      if (out_k) {
        V kk;
        if (is_signed)
          kk = fma(mul(n.e[r], t), polynomial<T>(cb, v), mul(max(n.s[r], zero), scale));
        else
          kk = fma(n.p[r], mul(t, scale_over_pi), mul(n.s[r], kappa0));
        store(out, kk);
      }
      if (out_theta) store(out + L, mul(n.th[r], kappa0));
    }
  };
  for (int j = 0; j < width; ++j) {
    Entry now;
    fetch(j, now);
    finish(j, now);
  }
  for (int r = 0; r < R; ++r) {
    store(outs[r] + width * Cell, zero);
    store(outs[r] + width * Cell + L, zero);
  }
}

template <class T>
using RowsFunction = void (*)(const Rows<T>&);

template <class T, bool Fused, bool Pairwise>
RowsFunction<T> choose_rows_function(int flags, int rows) {
#define WL_CASE(f)                                                                             \
  case (f):                                                                                    \
    return rows == 2 ? compute_rows<T, (f), 2, Fused, Pairwise> : compute_rows<T, (f), 1, Fused, Pairwise>
  switch (flags) {
    WL_CASE(kRelu | kThetaOwn | kTrain | kOutK | kOutTheta);  // inner layers
    WL_CASE(kRelu | kThetaOwn | kTrain | kOutTheta);          // last layer, readout not trained
    WL_CASE(kRelu | kTrain | kOutK | kOutTheta);              // first trained layer
    WL_CASE(kRelu | kTrain | kOutTheta);                      // both
    WL_CASE(kRelu | kSigned | kOutK);                         // first layer, not trained
    WL_CASE(kRelu | kSigned | kTrain | kOutK | kOutTheta);    // first layer
    WL_CASE(kRelu | kOutK);                                   // NNGP alone
  }
#undef WL_CASE
  return rows == 2 ? compute_rows<T, kDynamic, 2, Fused, Pairwise> : compute_rows<T, kDynamic, 1, Fused, Pairwise>;
}

// ---------------------------------------------------------------------------------------------------------
// Rows of the input covariance, sum_c x z.

template <class T, int C, bool Pairwise>
void input_row(const T* x, const T* z, int channels, int width, Vec<T> scale, T* out) {
  using V = Vec<T>;
  constexpr int L = V::lanes;
  const int n = C > 0 ? C : channels;
  for (int j = 0; j < width; ++j) {
    V s = broadcast(T(0));
    for (int c = 0; c < n; ++c) {
      const V xv = Pairwise ? load(x + (j * n + c) * L) : broadcast(x[j * n + c]);
      s = fma(xv, load(z + (j * n + c) * L), s);
    }
    store(out + j * 2 * L, mul(s, scale));
  }
  store(out + width * 2 * L, broadcast(T(0)));
}

// Box sums of K and, if there is one, Theta for filters other than 3, of two output rows whose windows share all but
// one row each: rows[0..q] are input rows, out[0] sums the first q of them, out[1] the last q. Q = 0: any filter.
template <class T, int Q>
void box_rows(const T* const* rows, int filter_size, int width, bool own, T* scratch, T* const* out) {
  using V = Vec<T>;
  constexpr int L = V::lanes, Cell = 2 * L;
  const int q = Q > 0 ? Q : filter_size, r = q / 2, stride = (width + 2 * r) * L;
  for (int i = 0; i < 2; ++i)  // vertical sums of either row between r zero cells on both sides
    for (int j = 0; j < r; ++j) {
      store(scratch + i * stride + j * L, broadcast(T(0)));
      store(scratch + i * stride + (r + width + j) * L, broadcast(T(0)));
    }
  for (int field = 0; field <= int(own); ++field) {
    for (int j = 0; j < width; ++j) {
      const int o = j * Cell + field * L;
      V v = load(rows[1] + o);
#pragma GCC unroll 8
      for (int i = 2; i < q; ++i) v = add(v, load(rows[i] + o));
      store(scratch + (r + j) * L, add(load(rows[0] + o), v));
      store(scratch + stride + (r + j) * L, add(v, load(rows[q] + o)));
    }
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < width; ++j) {
        const T* from = scratch + i * stride + j * L;
        V v = load(from);
#pragma GCC unroll 8
        for (int k = 1; k < q; ++k) v = add(v, load(from + k * L));
        store(out[i] + j * Cell + field * L, v);
      }
  }
}

// ---------------------------------------------------------------------------------------------------------
// Memory of one call.

template <class T>
struct Stage {   // output of layer l: a ring of pairs of rows; for l >= 1 also how it is computed
  T* ring;
  int ring_pairs;
  int slot;      // where in the ring the next pair goes
  int lag;       // in pairs of rows behind the input
  int reach;
  int filter_size;
  RowsFunction<T> compute[3];  // by the number of rows
  int flags;
  bool read;     // by some readout
  const T *x, *z;  // profiles at the next pair of rows of the slice that is under way
};

template <class T>
struct Layout {
  static constexpr int L = Vec<T>::lanes;
  int64_t row, ring_rows_total, bytes;
  int max_filter;

  Layout(const Program& p, bool pairwise) {
    row = int64_t(p.w + 1) * 2 * L;
    ring_rows_total = 0;
    max_filter = 1;
    for (int l = 0; l <= p.n_steps; ++l) ring_rows_total += 2 * ring_pairs(p, l);
    for (int l = 0; l < p.n_steps; ++l)
      if (p.steps[l].filter_size > max_filter) max_filter = p.steps[l].filter_size;
    const int64_t image = int64_t(p.h) * p.w * p.c * L, profile = int64_t(p.n_steps) * p.h * p.w * L;
    int64_t n = 0;                                   // in T
    n += (image + profile + p.n_steps * L) * (pairwise ? 2 : 1);
    n += row * (ring_rows_total + 1);                // rings and the row of zeros
    n += row * 2;                                    // box sums
    n += int64_t(p.w + max_filter) * L * 2;          // vertical sums
    int64_t b = n * int64_t(sizeof(T));
    b += int64_t(p.n_steps + 1) * int64_t(sizeof(Constants<T>));
    b += int64_t(p.n_taps) * 2 * L * 4 * int64_t(sizeof(double));
    b += int64_t(p.n_steps + 1) * int64_t(sizeof(Stage<T>)) + int64_t(max_filter + 2) * 8;  // stages and the filter's window
    bytes = b + 64 * (24 + p.n_steps);                                // alignment of each part
  }
  // Pairs of rows on either side of an output pair that a filter reaches.
  static int reach(const Program& p, int step) { return (p.steps[step].filter_size / 2 + 1) / 2; }
  static int ring_pairs(const Program& p, int layer) { return layer == p.n_steps ? 1 : 2 * reach(p, layer) + 1; }
};

template <class T>
struct Bump {
  unsigned char* at;
  template <class U>
  U* take(int64_t n) {
    at = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(at) + 63) & ~uintptr_t(63));
    U* r = reinterpret_cast<U*>(at);
    at += n * int64_t(sizeof(U));
    return r;
  }
};

// ---------------------------------------------------------------------------------------------------------
// Denormal numbers cost a hundred times a normal one and carry no information here.
struct FlushDenormals {
#if defined(__SSE__) && !defined(WL_PLAIN)
  unsigned saved;
  FlushDenormals() : saved(_mm_getcsr()) { _mm_setcsr(saved | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};

template <class T, bool Pairwise>
struct Sweep {
  static constexpr int L = Vec<T>::lanes, Cell = 2 * L;
  const Call<T>& call;
  const Program& program;
  Layout<T> layout;
  T *z_image, *z_profile, *z_bias, *x_image, *x_profile, *x_bias;
  T *zero_row, *box_sums, *scratch;
  Constants<T>* constants;
  Stage<T>* stages;
  const T** window;
  int n_lanes;  // of the group under way
  double *slice_sum, *opposite, *at_zero, *total;  // [tap][field][lane]

  explicit Sweep(const Call<T>& c) : call(c), program(*c.program), layout(program, Pairwise) {
    Bump<T> b{call.workspace};
    const int64_t image = int64_t(program.h) * program.w * program.c * L, profile = int64_t(program.n_steps) * program.h * program.w * L;
    z_image = b.template take<T>(image);
    z_profile = b.template take<T>(profile);
    z_bias = b.template take<T>(program.n_steps * L);
    if (Pairwise) {
      x_image = b.template take<T>(image);
      x_profile = b.template take<T>(profile);
      x_bias = b.template take<T>(program.n_steps * L);
    }
    zero_row = b.template take<T>(layout.row);
    box_sums = b.template take<T>(2 * layout.row);
    scratch = b.template take<T>(int64_t(program.w + layout.max_filter) * L * 2);
    constants = b.template take<Constants<T>>(program.n_steps);
    stages = b.template take<Stage<T>>(program.n_steps + 1);
    window = b.template take<const T*>(layout.max_filter + 2);
    slice_sum = b.template take<double>(program.n_taps * 2 * L);
    opposite = b.template take<double>(program.n_taps * 2 * L);
    total = b.template take<double>(program.n_taps * 2 * L);
    at_zero = b.template take<double>(program.n_taps * 2 * L);
    for (int64_t i = 0; i < layout.row; ++i) zero_row[i] = 0;
    for (int64_t i = 0; i < 2 * layout.row; ++i) box_sums[i] = 0;
    int lag = 0;
    for (int l = 0; l <= program.n_steps; ++l) {
      Stage<T>& v = stages[l];
      v.ring_pairs = Layout<T>::ring_pairs(program, l);
      v.ring = b.template take<T>(layout.row * 2 * v.ring_pairs);
      for (int64_t i = 0; i < layout.row * 2 * v.ring_pairs; ++i) v.ring[i] = 0;
      v.reach = 0;
      v.read = false;
      for (int i = 0; i < program.n_taps; ++i) v.read = v.read || program.taps[i].layer == l;
      if (l > 0) {
        const Step& s = program.steps[l - 1];
        v.reach = Layout<T>::reach(program, l - 1);
        v.filter_size = s.filter_size;
        lag += v.reach;
        v.flags = (s.relu ? kRelu : 0) | (s.is_signed ? kSigned : 0) | (s.theta_in ? kThetaOwn : 0) |
                  (s.trainable && s.theta_out ? kTrain : 0) | (s.k_out ? kOutK : 0) |
                  (s.theta_out ? kOutTheta : 0) | (s.biased ? kBias : 0);
        for (int r = 1; r <= 2; ++r)
          v.compute[r] = s.filter_size == 3 ? choose_rows_function<T, true, Pairwise>(v.flags, r)
                                           : choose_rows_function<T, false, Pairwise>(v.flags, r);
        set_constants(constants[l - 1], s.out_scale);
      }
      v.lag = lag;
    }
  }

  void interleave(const T* source, int64_t size, const int64_t* index, T* out) {
    // [lane][size] -> [size][lane], a block at a time so that the lines of all lanes stay in L1
    constexpr int64_t block = 64;
    for (int64_t i0 = 0; i0 < size; i0 += block) {
      const int64_t n = size - i0 < block ? size - i0 : block;
      for (int l = 0; l < L; ++l) {
        T* o = out + i0 * L + l;
        if (l < n_lanes) {
          const T* s = source + index[l] * size + i0;
          for (int64_t i = 0; i < n; ++i) o[i * L] = s[i];
        } else {
          for (int64_t i = 0; i < n; ++i) o[i * L] = 0;
        }
      }
    }
  }

  void pack(const Batch<T>& batch, const int64_t* index, T* image, T* profile, T* bias) {
    interleave(batch.images, int64_t(program.h) * program.w * program.c, index, image);
    interleave(batch.profiles, int64_t(program.n_steps) * program.h * program.w, index, profile);
    interleave(batch.biases, program.n_steps, index, bias);
  }

  bool cancelled() const { return *static_cast<const volatile int32_t*>(call.cancel) != 0; }

  // Row r of what a level has in its ring, given the slot of the pair that holds row `origin` (even).
  const T* row_of(const Stage<T>& v, int r, int origin, int slot, int height) const {
    if (r < 0 || r >= height) return zero_row;
    const int away = r - origin;
    slot += away >= 0 ? away / 2 : -((1 - away) / 2);
    if (slot < 0) slot += v.ring_pairs;
    if (slot >= v.ring_pairs) slot -= v.ring_pairs;
    return v.ring + (2 * slot + (r & 1)) * layout.row;
  }

  static const double* weights(const double* table, int extent, int d) { return table + int64_t(d + extent - 1) * extent; }

  // Add rows [r, r + n) of the output of a layer, `row` and the one after it, to the sums of its readouts.
  void read_out(int layer, const T* row, int r, int n, int width, int di, int dj) {
    for (int i = 0; i < program.n_taps; ++i) {
      const Tap& tap = program.taps[i];
      if (tap.layer != layer) continue;
      const double* rw = weights(tap.row_weights, program.h, di) + r;
      const double* cw = weights(tap.column_weights, program.w, dj);
      if (rw[0] == 0 && (n == 1 || rw[1] == 0)) continue;
      for (int field = 0; field < 2; ++field) {
        if (!(field ? tap.want_theta : tap.want_k)) continue;
        // Four sums, by row and by parity of the column: one alone would wait for itself.
        const T* f = row + field * L;
        Vec<T> a[4];
        for (int q = 0; q < 4; ++q) a[q] = broadcast(T(0));
        int j = 0;
        for (; j + 1 < width; j += 2)
          for (int q = 0; q < 4; ++q)
            a[q] = fma(load(f + (q >> 1) * layout.row + (j + (q & 1)) * Cell), broadcast(T(cw[j + (q & 1)])), a[q]);
        if (j < width)
          for (int q = 0; q < 4; q += 2) a[q] = fma(load(f + (q >> 1) * layout.row + j * Cell), broadcast(T(cw[j])), a[q]);
        double* sum = slice_sum + (i * 2 + field) * L;
        for (int q = 0; q < n; ++q) {
          alignas(64) T lanes[L];
          store(lanes, add(a[2 * q], a[2 * q + 1]));
          for (int l = 0; l < L; ++l) sum[l] += rw[q] * double(lanes[l]);
        }
      }
    }
  }

  // The slice of displacement (di, dj) through all layers up to `depth`; sums go to slice_sum.
  void slice(const T* x_img, const T* x_prof, int di, int dj, int depth) {
    constexpr int XL = Pairwise ? L : 1;
    const int h = program.h, w = program.w, c = program.c;
    const int height = h - (di < 0 ? -di : di), width = w - (dj < 0 ? -dj : dj);
    const int xi = di < 0 ? -di : 0, xj = dj < 0 ? -dj : 0, zi = di > 0 ? di : 0, zj = dj > 0 ? dj : 0;
    const int pairs = (height + 1) / 2;
    const Vec<T> in_scale = broadcast(T(program.in_scale));
    const int64_t at_x = (int64_t(xi) * w + xj) * XL, at_z = (int64_t(zi) * w + zj) * L, field = int64_t(h) * w;
    const T *x_row = x_img + at_x * c, *z_row = z_image + at_z * c;  // images at the next row
    stages[0].slot = 0;
    for (int l = 1; l <= depth; ++l) {
      stages[l].slot = 0;
      stages[l].x = x_prof + (l - 1) * field * XL + at_x;
      stages[l].z = z_profile + (l - 1) * field * L + at_z;
    }
    for (int step = 0; step < pairs + stages[depth].lag && !cancelled(); ++step) {
      for (int l = 0; l <= depth; ++l) {
        Stage<T>& out = stages[l];
        const int pair = step - out.lag;
        if (pair < 0) break;
        if (pair >= pairs) continue;
        const int r = 2 * pair, n = r + 1 < height ? 2 : 1;
        T* row = out.ring + 2 * out.slot * layout.row;
        if (l == 0) {
          for (int i = 0; i < n; ++i) {
            T* o = row + i * layout.row;
            if (c == 3)
              input_row<T, 3, Pairwise>(x_row, z_row, c, width, in_scale, o);
            else if (c == 1)
              input_row<T, 1, Pairwise>(x_row, z_row, c, width, in_scale, o);
            else
              input_row<T, 0, Pairwise>(x_row, z_row, c, width, in_scale, o);
            x_row += w * c * XL;
            z_row += w * c * L;
          }
        } else {
          const Stage<T>& in = stages[l - 1];
          // The input's next slot holds the pair that comes `reach` after this one, plus one.
          int slot = in.slot - 1 - out.reach;
          if (pair + out.reach >= pairs) slot += pair + out.reach - pairs + 1;
          if (slot < 0) slot += in.ring_pairs;
          Rows<T> a;
          if (out.filter_size == 3) {
            const T* pair_rows = in.ring + 2 * slot * layout.row;
            const int before = slot == 0 ? in.ring_pairs - 1 : slot - 1, after = slot + 1 == in.ring_pairs ? 0 : slot + 1;
            a.in[0] = r == 0 ? zero_row : in.ring + (2 * before + 1) * layout.row;
            a.in[1] = pair_rows;
            a.in[2] = n == 2 ? pair_rows + layout.row : zero_row;
            a.in[3] = r + 2 < height ? in.ring + 2 * after * layout.row : zero_row;
          } else {
            const int q = out.filter_size;
            for (int k = 0; k <= q; ++k) window[k] = row_of(in, r - q / 2 + k, r, slot, height);
            T* const sums[2] = {box_sums, box_sums + layout.row};
            const bool own = out.flags & kThetaOwn;
            for (int i = 0; i < 2; ++i) a.in[i] = q == 1 ? window[i] : sums[i];
            a.in[2] = a.in[3] = zero_row;  // not read
            if (q == 5)
              box_rows<T, 5>(window, q, width, own, scratch, sums);
            else if (q == 7)
              box_rows<T, 7>(window, q, width, own, scratch, sums);
            else if (q > 1)
              box_rows<T, 0>(window, q, width, own, scratch, sums);
          }
          for (int i = 0; i < 2; ++i) {
            a.out[i] = row + i * layout.row;
            a.x[i] = out.x + i * w * XL;
            a.z[i] = out.z + i * w * L;
          }
          out.x += 2 * w * XL;
          out.z += 2 * w * L;
          a.k = constants + (l - 1);
          a.width = width;
          a.flags = out.flags;
          out.compute[n](a);
        }
        if (out.read) read_out(l, row, r, n, width, di, dj);
        if (++out.slot == out.ring_pairs) out.slot = 0;
      }
    }
  }

  void sum_slice(const T* x_img, const T* x_prof, int di, int dj, int depth) {
    for (int i = 0; i < program.n_taps * 2 * L; ++i) slice_sum[i] = 0;
    slice(x_img, x_prof, di, dj, depth);
  }

  // All slices of one row and a lane group. d and -d are added before they join the total, so that k(x, z) and
  // k(z, x) agree to the last bit.
  bool group(const T* x_img, const T* x_prof) {
    const int n = program.n_taps * 2 * L;
    for (int i = 0; i < n; ++i) at_zero[i] = total[i] = 0;
    for (int a = 0; a < program.n_slices; ++a) {
      const Slice d = program.slices[a];
      sum_slice(x_img, x_prof, d.di, d.dj, d.depth);
      double* const sum = d.di == 0 && d.dj == 0 ? at_zero : opposite;
      for (int i = 0; i < n; ++i) sum[i] = slice_sum[i];
      if (sum == at_zero) continue;
      sum_slice(x_img, x_prof, -d.di, -d.dj, d.depth);
      for (int i = 0; i < n; ++i) total[i] += opposite[i] + slice_sum[i];
    }
    return !cancelled();
  }

  // The columns from `first` on that fill the lanes, against their rows; false if the call was cancelled.
  bool columns(int64_t first) {
    const int64_t left = call.n_columns - first;
    n_lanes = left < L ? int(left) : L;
    const int64_t* const rows = call.rows + (Pairwise ? first : 0);
    const int64_t n_rows = Pairwise ? 1 : call.n_rows;
    pack(*call.z, call.columns + first, z_image, z_profile, z_bias);
    if (Pairwise) pack(*call.x, rows, x_image, x_profile, x_bias);
    const int64_t image = int64_t(program.h) * program.w * program.c, profile = int64_t(program.n_steps) * program.h * program.w;
    for (int64_t i = 0; i < n_rows; ++i) {
      const int64_t row = rows[i];
      const T* bias = call.x->biases + row * program.n_steps;
      for (int s = 0; s < program.n_steps; ++s)
        for (int l = 0; l < L; ++l)
          constants[s].bias[l] = (Pairwise ? x_bias[s * L + l] : bias[s]) * z_bias[s * L + l];
      if (!group(Pairwise ? x_image : call.x->images + row * image, Pairwise ? x_profile : call.x->profiles + row * profile))
        return false;
      for (int l = 0; l < n_lanes; ++l) {
        const int64_t xr = rows[Pairwise ? l : i], zr = call.columns[first + l];
        const bool same = call.x->identity[xr] == call.z->identity[zr];
        for (int f = 0; f < program.n_taps * 2; ++f) {
          const double zero = same ? call.x->diagonal[xr * program.n_taps * 2 + f] : at_zero[f * L + l];
          call.out[(f * n_rows + i) * call.n_columns + first + l] = zero + total[f * L + l];
        }
      }
    }
    return true;
  }

  void run() {
    FlushDenormals flush;
    (void)flush;
    for (int64_t first = 0; first < call.n_columns; first += L)
      if (!columns(first)) return;
  }
};

template <class T>
int64_t workspace(const Program& program, bool pairwise) {
  return Layout<T>(program, pairwise).bytes;
}

template <class T>
void run(const Call<T>& call) {
  if (call.pairwise)
    Sweep<T, true>(call).run();
  else
    Sweep<T, false>(call).run();
}

}  // namespace

extern const Functions WL_CONCAT(functions_, WL_ISA);
const Functions WL_CONCAT(functions_, WL_ISA) = {
    Vec<float>::lanes, Vec<double>::lanes, workspace<float>, workspace<double>,  run<float>,         run<double>,
    kPeakOperations,   fma_loop<float>,    fma_loop<double>, mixed_loop<float>, mixed_loop<double>, read_loop<float>,
};

}  // namespace widelimit
