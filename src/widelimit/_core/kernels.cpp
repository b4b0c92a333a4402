// The slice engine. Compiled once per instruction set with -DWL_ISA=<name>; see core.hpp for the rule on headers.
//
// One slice (docs/mathematics.md, "Slices") is swept from top to bottom by all layers of a stage together. A layer keeps
// the few rows that the box filters after it need in a ring; two rows at a time go through box filter, dual activation and
// into its ring, so a slice of any size needs O(layers * width) memory. Where a pool or a strided convolution reads a
// layer, each pair of rows is added, as soon as it is there, to the slices of the coarse grid that contain it.
#include "activation.hpp"
#include "core.hpp"
#include "peak.hpp"
#include "simd.hpp"

#define WL_CONCAT_(a, b) a##b
#define WL_CONCAT(a, b) WL_CONCAT_(a, b)

namespace widelimit {
namespace {

// ---------------------------------------------------------------------------------------------------------
// Two rows (or one) of one layer.

// What a layer does, as bits: the common combinations are compiled with the bits known.
enum : int {
  kSigned = 2,
  kThetaOwn = 4,   // Theta has its own ring; otherwise it is zero on entry
  kTrain = 8,      // Theta' += sigma
  kOutK = 16,
  kOutTheta = 32,
  kBias = 64,
  kSum = 128,  // K and Theta are not stored but summed along the row
  kSkip = 256,       // K of another level is added to sigma
  kSkipTheta = 512,  // and its Theta to Theta'
  kSame = 1024,  // in lanes of identical images sigma = X Z: the slice d = 0
  kSelf = 2048,  // in all, and X is made of sigma
  kInside = 4096,  // the filter stays inside: its columns begin at the output's, not one before
  kDynamic = -1,
};

// A cell of a ring holds the lanes of K, then the lanes of Theta. Cell `width` of every row is zero.
template <class T>
struct Rows {
  const T* in[4];  // rows r-1, r, r+1, r+2 of the input (filter 3), or r, r+1 of box sums (any other filter)
  T* out[2];       // with kSum: the sum of K, then that of Theta
  const T* x[2];   // profile of x, at the pixels p of the rows
  const T* z[2];   // profile of the lanes' images, at p + d
  int64_t x_apart, z_apart;  // from one operand of a profile to the next
  const T* skip[2];
  const T* same;  // a lane below zero: identical images
  const Constants<T>* k;
  int width;
  int flags;
};

template <class T, class A, int Flags, int R, bool Fused, bool Pairwise>
void compute_rows(const Rows<T>& a) {
  using V = Vec<T>;
  constexpr int L = V::lanes, Cell = 2 * L;
  const int flags = Flags == kDynamic ? a.flags : Flags;
  const bool is_signed = flags & kSigned, own = flags & kThetaOwn, train = flags & kTrain;
  const bool out_k = flags & kOutK, out_theta = flags & kOutTheta, biased = flags & kBias, sum = flags & kSum;
  const bool skip = flags & kSkip, skip_theta = flags & kSkipTheta, same = flags & kSame, self = flags & kSelf;
  const int shift = flags & kInside ? Cell : 0;
  const Constants<T>& k = *a.k;
  const V zero = broadcast(T(0));
  const V bias = load(k.bias), skip_scale = load(k.skip);
  const A activation(k, is_signed);

  // Local copies: a store to a row must not make the compiler fetch these again.
  const T *const in0 = a.in[0] + shift, *const in1 = a.in[1] + shift, *const in2 = a.in[2] + shift, *const in3 = a.in[3] + shift;
  const T *const xs[2] = {a.x[0], a.x[1]}, *const zs[2] = {a.z[0], a.z[1]};
  const T *const skips[2] = {a.skip[0], a.skip[1]}, *const sames = a.same;
  T* const outs[2] = {a.out[0], a.out[1]};
  const int64_t x_apart = a.x_apart, z_apart = a.z_apart;
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
    if (shift != 0) {
      V first[2];
      column(-1, 0, first);
      for (int r = 0; r < R; ++r) pair_k[r] = add(first[r], last_k[r]);
      if (own) column(-1, 1, first);
      for (int r = 0; own && r < R; ++r) pair_t[r] = add(first[r], last_t[r]);
    }
  }
  struct Entry {  // one column between box filter and activation
    V s[2], th[2];
    typename A::Met met[2];
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
      if (skip) n.s[r] = fma(load(skips[r] + j * Cell), skip_scale, n.s[r]);
      if (skip_theta) n.th[r] = fma(load(skips[r] + j * Cell + L), skip_scale, n.th[r]);
      V x = Pairwise ? load(xs[r] + j * L) : broadcast(xs[r][j]);
      V z = load(zs[r] + j * L);
      if (Pairwise && self) {
        x = z = root(max(n.s[r], zero));
        store(const_cast<T*>(xs[r]) + j * L, x);
        store(const_cast<T*>(zs[r]) + j * L, z);
        n.s[r] = mul(x, z);
        if constexpr (A::has_operands)
          activation.prepare(x, [&](int i, V value) {
            store(const_cast<T*>(xs[r]) + i * x_apart + j * L, value);
            store(const_cast<T*>(zs[r]) + i * z_apart + j * L, value);
          });
      } else if (same) {
        n.s[r] = where_negative(load(sames), mul(x, z), n.s[r]);
      }
      if constexpr (!A::has_operands) activation.meet(n.s[r], x, z, n.met[r]);
    }
  };
  // Sums of either row, over every other column: one sum alone would wait for itself.
  V sum_k[2] = {zero, zero}, turn_k[2] = {zero, zero}, sum_t[2] = {zero, zero}, turn_t[2] = {zero, zero};
  auto finish = [&](int j, const Entry& n) {
    V made_k[2], made_t[2];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      V factor;
      made_k[r] = zero;
      if constexpr (A::has_operands)
        activation.dual(n.s[r], Operands<T, Pairwise>{xs[r] + j * (Pairwise ? L : 1), zs[r] + j * L, x_apart, z_apart}, out_k,
                        made_k[r], factor);
      else
        activation.dual(n.s[r], n.met[r], out_k, made_k[r], factor);
      made_t[r] = mul(n.th[r], factor);
      if (out_k && !sum) store(outs[r] + j * Cell, made_k[r]);
      if (out_theta && !sum) store(outs[r] + j * Cell + L, made_t[r]);
    }
    if (!sum) return;
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      if (out_k) {
        const V grown = add(sum_k[r], made_k[r]);
        sum_k[r] = turn_k[r];
        turn_k[r] = grown;
      }
      if (out_theta) {
        const V grown = add(sum_t[r], made_t[r]);
        sum_t[r] = turn_t[r];
        turn_t[r] = grown;
      }
    }
  };
  for (int j = 0; j < width; ++j) {
    Entry now;
    fetch(j, now);
    finish(j, now);
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    T* const end = sum ? outs[r] : outs[r] + width * Cell;
    store(end, sum ? add(sum_k[r], turn_k[r]) : zero);
    store(end + L, sum ? add(sum_t[r], turn_t[r]) : zero);
  }
}

template <class T>
using RowsFunction = void (*)(const Rows<T>&);

template <class T, class A, int Flags, bool Fused, bool Pairwise>
RowsFunction<T> by_rows(int rows) {
  return rows == 2 ? compute_rows<T, A, Flags, 2, Fused, Pairwise> : compute_rows<T, A, Flags, 1, Fused, Pairwise>;
}

constexpr int kInner = kThetaOwn | kTrain | kOutK | kOutTheta;

template <class T, bool Fused, bool Pairwise>
RowsFunction<T> choose_rows_function(Activation activation, int flags, int rows) {
#define WL_CASE(A, f) \
  case (f):           \
    return by_rows<T, A<T>, (f), Fused, Pairwise>(rows)
  switch (activation) {
    case Activation::kRelu:
      switch (flags) {
        WL_CASE(Relu, kInner);                                     // inner layers
        WL_CASE(Relu, kThetaOwn | kTrain | kOutTheta);             // last layer, readout not trained
        WL_CASE(Relu, kTrain | kOutK | kOutTheta);                 // first trained layer
        WL_CASE(Relu, kTrain | kOutTheta);                         // both
        WL_CASE(Relu, kSigned | kOutK);                            // first layer, not trained
        WL_CASE(Relu, kSigned | kTrain | kOutK | kOutTheta);       // first layer
        WL_CASE(Relu, kOutK);                                      // NNGP alone
        WL_CASE(Relu, kInner | kSum);  // last layers that are read by one readout alone
        WL_CASE(Relu, kThetaOwn | kTrain | kOutTheta | kSum);
        WL_CASE(Relu, kTrain | kOutTheta | kSum);
        WL_CASE(Relu, kOutK | kSum);
      }
      return by_rows<T, Relu<T>, kDynamic, Fused, Pairwise>(rows);
    case Activation::kAbRelu:
      return by_rows<T, AbRelu<T>, kDynamic, Fused, Pairwise>(rows);
    case Activation::kGaussian:
      switch (flags == kDynamic ? flags : flags & ~kSigned) {
        WL_CASE(Gaussian, kInner);
        WL_CASE(Gaussian, kTrain | kOutK | kOutTheta);
        WL_CASE(Gaussian, kOutK);
      }
      return by_rows<T, Gaussian<T>, kDynamic, Fused, Pairwise>(rows);
    case Activation::kErf:
      return by_rows<T, Erf<T>, kDynamic, Fused, Pairwise>(rows);
    case Activation::kGelu:
      return by_rows<T, Gelu<T>, kDynamic, Fused, Pairwise>(rows);
    case Activation::kSin:
      return by_rows<T, Sine<T>, kDynamic, Fused, Pairwise>(rows);
    case Activation::kCos:
      return by_rows<T, Cosine<T>, kDynamic, Fused, Pairwise>(rows);
    case Activation::kNorm:
      return by_rows<T, Norm<T>, kDynamic, Fused, Pairwise>(rows);
    case Activation::kPolynomial:
      return by_rows<T, Polynomial<T>, kDynamic, Fused, Pairwise>(rows);
    case Activation::kIdentity:
      break;
  }
#undef WL_CASE
  return by_rows<T, Identity<T>, kDynamic, Fused, Pairwise>(rows);
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

// A filter that is no square of 3, and its rows of input.
struct Filter {
  int rows, columns;
  int left;   // zeros before the first column
  int width;  // of the input
};

// Box sums of K and, if there is one, Theta, of two output rows whose windows share all but one row each: rows[0..q] are
// input rows, out[0] sums the first q of them, out[1] the last q. Q: a square known beforehand; 0: any filter.
template <class T, int Q>
void box_rows(const T* const* rows, const Filter& filter, int width, bool own, T* scratch, T* const* out) {
  using V = Vec<T>;
  constexpr int L = V::lanes, Cell = 2 * L;
  const int q = Q > 0 ? Q : filter.rows, across = Q > 0 ? Q : filter.columns, left = filter.left, inner = filter.width;
  const int cells = width + across - 1, stride = cells * L;
  for (int i = 0; i < 2; ++i) {  // vertical sums of either row between zero cells
    for (int j = 0; j < left; ++j) store(scratch + i * stride + j * L, broadcast(T(0)));
    for (int j = left + inner; j < cells; ++j) store(scratch + i * stride + j * L, broadcast(T(0)));
  }
  for (int field = 0; field <= int(own); ++field) {
    for (int j = 0; j < inner; ++j) {
      const int o = j * Cell + field * L;
      V first = load(rows[0] + o), second = load(rows[1] + o);
      if (q > 1) {
        V v = second;
#pragma GCC unroll 8
        for (int i = 2; i < q; ++i) v = add(v, load(rows[i] + o));
        first = add(first, v);
        second = add(v, load(rows[q] + o));
      }
      store(scratch + (left + j) * L, first);
      store(scratch + stride + (left + j) * L, second);
    }
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < width; ++j) {
        const T* from = scratch + i * stride + j * L;
        V v = load(from);
#pragma GCC unroll 8
        for (int k = 1; k < across; ++k) v = add(v, load(from + k * L));
        store(out[i] + j * Cell + field * L, v);
      }
  }
}

// ---------------------------------------------------------------------------------------------------------
// Rows of a fine slice that join coarse ones.

// A coarse slice that a fine one adds to, and which of its entries.
template <class T>
struct Target {
  T* out;             // the coarse slice: [height][width][fields][lanes]
  int height, width;
  int next;           // no row before this one is still to come
  Run down, across;
  int stride_down, stride_across;
  int begin, end;     // columns whose windows lie inside the fine slice
  int fields;
};

// A coarse slice that both d and -d add to: the two gather apart and are added to each other before they join it, so that
// k(x, z) and k(z, x) agree to the last bit.
template <class T>
struct Shared {
  T* slice;
  T* parts;  // of d, then of -d
  int64_t size;
};

// Adds the windows of one coarse row, of which Rows rows of the fine slice are here; Count: their columns, 0: any number.
template <class T, int Rows, int Count, int Fields>
void add_windows(const T* from, int64_t row, const Target<T>& t, int fine_width, T* out) {
  using V = Vec<T>;
  constexpr int L = V::lanes, Cell = 2 * L;
  const int count = Count > 0 ? Count : t.across.count, stride = t.stride_across;
  auto edge = [&](int j) {
    for (int k = 0; k < count; ++k) {
      const int i = t.across.first + stride * j + k;
      if (i < 0 || i >= fine_width) continue;
      for (int field = 0; field < Fields; ++field) {
        V v = load(from + i * Cell + field * L);
        if (Rows == 2) v = add(v, load(from + row + i * Cell + field * L));
        T* const o = out + (j * Fields + field) * L;
        store(o, add(load(o), v));
      }
    }
  };
  for (int j = 0; j < t.begin; ++j) edge(j);
  const T* f = from + (t.across.first + stride * t.begin) * Cell;
  const T* const end = out + t.end * Fields * L;
  const int step = stride * Cell;
  for (T* o = out + t.begin * Fields * L; o < end; o += Fields * L, f += step) {
#pragma GCC unroll 2
    for (int field = 0; field < Fields; ++field) {
      V v = load(f + field * L);
#pragma GCC unroll 4
      for (int k = 1; k < count; ++k) v = add(v, load(f + k * Cell + field * L));
      if (Rows == 2) {
        V u = load(f + row + field * L);
#pragma GCC unroll 4
        for (int k = 1; k < count; ++k) u = add(u, load(f + row + k * Cell + field * L));
        v = add(v, u);
      }
      store(o + field * L, add(load(o + field * L), v));
    }
  }
  for (int j = t.end > t.begin ? t.end : t.begin; j < t.width; ++j) edge(j);
}

// Adds rows [r, r + n) of a fine slice to a coarse one.
template <class T, int Fields>
void push(Target<T>& t, const T* rows, int64_t row, int r, int n, int fine_width) {
  const int down = t.stride_down;
  while (t.next < t.height && t.down.first + down * t.next + t.down.count <= r) ++t.next;
  for (int i = t.next; i < t.height; ++i) {
    const int first = t.down.first + down * i, last = first + t.down.count;
    if (first >= r + n) break;
    const bool both = n == 2 && first <= r && last > r + 1;
    const T* from = rows + (first > r ? row : 0);
    T* out = t.out + int64_t(i) * t.width * Fields * Vec<T>::lanes;
#define WL_COUNT(c)                                           \
  both ? add_windows<T, 2, c, Fields>(from, row, t, fine_width, out) \
       : add_windows<T, 1, c, Fields>(from, row, t, fine_width, out)
    switch (t.across.count) {
      case 1: WL_COUNT(1); break;
      case 2: WL_COUNT(2); break;
      case 3: WL_COUNT(3); break;
      default: WL_COUNT(0);
    }
#undef WL_COUNT
  }
}

// ---------------------------------------------------------------------------------------------------------
// Memory of one call.

// A level while a slice is under way.
template <class T>
struct Rings {
  Kind kind;
  int lag, ring_pairs;
  int slot;      // where in the ring the next pair goes
  int in_slot, skip_slot;  // and where in those of its source and skip that pair lies
  int height, width, pairs;  // of the slice
  int plain;     // the readout that sums it as it is made, or -1
  T* ring;       // pairs of rows
  int64_t row;   // numbers of one
  const Rings *in, *skip;   // its source, and what is added or null
  int flags;
  bool fused;    // a filter of 3 x 3
  bool around;   // that reaches one pixel beyond the image
  bool read;     // by some readout
  bool gathered; // by another stage
  Rows<T> next;  // its next pair of rows
  int64_t x_step, z_step;  // from one row of a profile to the next
  const RowsFunction<T>* run;                    // one of these, by the number of rows
  RowsFunction<T> compute[3], sum[3], exact[3];  // `exact`: any flags
  const T* coarse;  // where the next row of a slice has gathered
  const Level* level;
  Target<T>* targets;  // coarse slices that this one adds to, of all gathers that read the level
  int n_targets;
};

template <class T>
struct Bump {
  uintptr_t at;
  template <class U>
  U* take(int64_t n) {
    at = (at + 63) & ~uintptr_t(63);
    U* r = reinterpret_cast<U*>(at);
    at += uintptr_t(n) * sizeof(U);
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
  T *z_image, *z_profile, *z_bias, *x_image, *x_profile, *x_bias;
  T *zero_row, *box_sums, *scratch, *same;
  int64_t row;  // numbers of the longest row
  Constants<T>* constants;  // by level
  Rings<T>* levels;
  Rings<T>** active;  // of the slice that is under way
  const T** window;
  T** rooms;              // by level: where the slices of a gather lie
  unsigned char** begun;  // by level and slice: whether something has been added already
  Shared<T>* shared;
  T* spare;               // memory of their parts
  int n_shared;
  int32_t* done;          // slices, by stage
  int n_lanes;  // of the group under way
  double *slice_sum, *opposite, *at_zero, *total;  // [tap][field][lane]

  // Where everything lies; with no memory, how much it is.
  static int64_t arrange(Sweep* s, const Program& p, unsigned char* memory) {
    Bump<T> b{reinterpret_cast<uintptr_t>(memory)};
    const int64_t image = int64_t(p.h) * p.w * p.c * L, profile = p.n_profile * L;
    int widest = p.w, most = 1, targets = 0;
    int64_t spares = 0, most_shared = 0;
    for (int l = 0; l < p.n_levels; ++l) {
      const Level& v = p.levels[l];
      widest = v.w > widest ? v.w : widest;
      if (v.kind == Kind::kNode) {
        most = v.rows > most ? v.rows : most;
        most = v.columns > most ? v.columns : most;
      }
      if (v.kind != Kind::kGather) continue;
      const int down = most_runs(v.down), across = most_runs(v.across);
      targets += down * across;
      const int64_t twice = int64_t(most_shared_runs(v.down)) * most_shared_runs(v.across);
      most_shared += twice;
      spares += 2 * twice * v.h * v.w * v.fields * L;
    }
    const int64_t row = int64_t(widest + 1) * 2 * L;
    T *const z_image = b.template take<T>(image), *const z_profile = b.template take<T>(profile);
    T* const z_bias = b.template take<T>(p.n_nodes * L);
    T *const x_image = b.template take<T>(Pairwise ? image : 0), *const x_profile = b.template take<T>(Pairwise ? profile : 0);
    T* const x_bias = b.template take<T>(Pairwise ? p.n_nodes * L : 0);
    T *const zero_row = b.template take<T>(row), *const box_sums = b.template take<T>(2 * row);
    T* const scratch = b.template take<T>(int64_t(widest + most) * L * 2);
    T* const same = b.template take<T>(L);
    auto* const constants = b.template take<Constants<T>>(p.n_levels);
    auto* const levels = b.template take<Rings<T>>(p.n_levels);
    auto* const active = b.template take<Rings<T>*>(p.n_levels);
    auto* const window = b.template take<const T*>(most + 2);
    auto* const rooms = b.template take<T*>(p.n_levels);
    auto* const begun = b.template take<unsigned char*>(p.n_levels);
    auto* const shared = b.template take<Shared<T>>(most_shared);
    T* const spare = b.template take<T>(spares);
    auto* const done = b.template take<int32_t>(p.n_stages);
    double *const slice_sum = b.template take<double>(p.n_taps * 2 * L), *const opposite = b.template take<double>(p.n_taps * 2 * L);
    double *const at_zero = b.template take<double>(p.n_taps * 2 * L), *const total = b.template take<double>(p.n_taps * 2 * L);
    for (int l = 0; l < p.n_levels; ++l) {
      const Level& v = p.levels[l];
      const int64_t own = int64_t(v.w + 1) * 2 * L;
      T* const ring = b.template take<T>(own * 2 * v.ring_pairs);
      const bool gathers = v.kind == Kind::kGather;
      T* const room = b.template take<T>(gathers ? v.room * v.fields * L : 0);
      auto* const marks = b.template take<unsigned char>(gathers ? p.stages[stage_of(p, l)].n_slices : 0);
      if (!s) continue;
      levels[l].ring = ring;
      levels[l].row = own;
      rooms[l] = room;
      begun[l] = marks;
    }
    auto* targets_at = b.template take<Target<T>>(targets);
    if (!s) return int64_t(b.at) + 64;
    for (int l = 0; l < p.n_levels; ++l) {
      levels[l].targets = targets_at;
      for (int g = 0; g < p.n_levels; ++g)
        if (p.levels[g].kind == Kind::kGather && p.levels[g].source == l)
          targets_at += most_runs(p.levels[g].down) * most_runs(p.levels[g].across);
    }
    s->z_image = z_image, s->z_profile = z_profile, s->z_bias = z_bias;
    s->x_image = x_image, s->x_profile = x_profile, s->x_bias = x_bias;
    s->zero_row = zero_row, s->box_sums = box_sums, s->scratch = scratch, s->same = same, s->row = row;
    s->constants = constants, s->levels = levels, s->active = active, s->window = window, s->rooms = rooms, s->begun = begun;
    s->shared = shared, s->spare = spare, s->n_shared = 0, s->done = done;
    s->slice_sum = slice_sum, s->opposite = opposite, s->at_zero = at_zero, s->total = total;
    return int64_t(b.at);
  }

  static int stage_of(const Program& p, int level) {
    int k = 0;
    while (level >= p.stages[k].stop) ++k;
    return k;
  }

  // Coarse displacements that one fine one adds to, at most; and that d and -d both add to.
  static int most_runs(const Runs& r) {
    int most = 0;
    for (int i = 0; i < 2 * r.extent - 1; ++i) most = r.start[i + 1] - r.start[i] > most ? r.start[i + 1] - r.start[i] : most;
    return most;
  }
  static int most_shared_runs(const Runs& r) {
    int most = 0;
    for (int d = 0; d < r.extent; ++d) {
      int n = 0;
      for (int i = r.start[d + r.extent - 1]; i < r.start[d + r.extent]; ++i) n += find_run(r, -d, r.runs[i].coarse);
      most = n > most ? n : most;
    }
    return most;
  }
  static bool find_run(const Runs& r, int d, int coarse) {
    for (int i = r.start[d + r.extent - 1]; i < r.start[d + r.extent]; ++i)
      if (r.runs[i].coarse == coarse) return true;
    return false;
  }

  explicit Sweep(const Call<T>& c) : call(c), program(*c.program) {
    arrange(this, program, call.workspace);
    for (int64_t i = 0; i < row; ++i) zero_row[i] = 0;
    for (int64_t i = 0; i < 2 * row; ++i) box_sums[i] = 0;
    for (int l = 0; l < L; ++l) same[l] = 1;
    for (int l = 0; l < program.n_levels; ++l) {
      const Level& level = program.levels[l];
      Rings<T>& v = levels[l];
      for (int64_t i = 0; i < v.row * 2 * level.ring_pairs; ++i) v.ring[i] = 0;
      v.kind = level.kind;
      v.lag = level.lag;
      v.ring_pairs = level.ring_pairs;
      v.level = &level;
      v.x_step = int64_t(level.w) * (Pairwise ? L : 1);
      v.z_step = int64_t(level.w) * L;
      v.next.k = constants + l;
      v.next.same = same;
      v.read = false;
      for (int i = 0; i < program.n_taps; ++i) v.read = v.read || program.taps[i].level == l;
      v.gathered = false;
      for (int g = 0; g < program.n_levels; ++g)
        v.gathered = v.gathered || (program.levels[g].kind == Kind::kGather && program.levels[g].source == l);
      v.n_targets = 0;
      if (level.kind != Kind::kNode) continue;
      v.in = levels + level.source;
      v.skip = level.skip < 0 ? nullptr : levels + level.skip;
      const bool inside = level.top == 0 && level.left == 0 && level.rows == 3;
      v.around = level.top == 1;
      v.fused = level.rows == 3 && level.columns == 3 && (inside || (level.top == 1 && level.left == 1));
      v.flags = (level.is_signed ? kSigned : 0) | (level.theta_in ? kThetaOwn : 0) |
                (level.trainable && level.theta_out ? kTrain : 0) | (level.k_out ? kOutK : 0) |
                (level.theta_out ? kOutTheta : 0) | (level.biased ? kBias : 0) | (level.skip >= 0 ? kSkip : 0) |
                (level.theta_skip ? kSkipTheta : 0) | (v.fused && inside ? kInside : 0);
      for (int r = 1; r <= 2; ++r) {
        const auto choose = v.fused ? choose_rows_function<T, true, Pairwise> : choose_rows_function<T, false, Pairwise>;
        v.compute[r] = choose(level.activation, v.flags, r);
        v.sum[r] = choose(level.activation, v.flags | kSum, r);
        v.exact[r] = choose(level.activation, kDynamic, r);
      }
      set_constants(constants[l], level);
    }
  }

  // [lane][size] -> [size][lane], a square of L numbers a side at a time; lanes without an image become zero
  void interleave(const T* source, int64_t size, const int64_t* index, T* out) {
    const T* from[L];
    for (int l = 0; l < n_lanes; ++l) from[l] = source + index[l] * size;
    int64_t i = 0;
    for (; i + L <= size; i += L) {
      Vec<T> square[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) square[l] = l < n_lanes ? load_unaligned(from[l] + i) : broadcast(T(0));
      transpose<T>(square);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) store(out + (i + l) * L, square[l]);
    }
    for (; i < size; ++i)
      for (int l = 0; l < L; ++l) out[i * L + l] = l < n_lanes ? from[l][i] : T(0);
  }

  void pack(const Batch<T>& batch, const int64_t* index, T* image, T* profile, T* bias) {
    interleave(batch.images, int64_t(program.h) * program.w * program.c, index, image);
    interleave(batch.profiles, program.n_profile, index, profile);
    interleave(batch.biases, program.n_nodes, index, bias);
  }

  bool cancelled() const { return *static_cast<const volatile int32_t*>(call.cancel) != 0; }

  // Row r of what a level has in its ring, given the slot of the pair that holds row `origin` (even).
  const T* row_of(const Rings<T>& v, int r, int origin, int slot) const {
    if (r < 0 || r >= v.height) return zero_row;
    const int away = r - origin;
    slot += away >= 0 ? away / 2 : -((1 - away) / 2);
    if (slot < 0) slot += v.ring_pairs;
    if (slot >= v.ring_pairs) slot -= v.ring_pairs;
    return v.ring + (2 * slot + (r & 1)) * v.row;
  }

  static const double* weights(const double* table, int extent, int d) { return table + int64_t(d + extent - 1) * extent; }

  // Add rows [r, r + n) of the output of a level, `rows` and the one after it, to the sums of its readouts.
  void read_out(const Rings<T>& v, const T* rows, int r, int n, int di, int dj) {
    for (int i = 0; i < program.n_taps; ++i) {
      const Tap& tap = program.taps[i];
      if (program.levels + tap.level != v.level) continue;
      const double* rw = weights(tap.row_weights, v.level->h, di) + r;
      const double* cw = weights(tap.column_weights, v.level->w, dj);
      if (rw[0] == 0 && (n == 1 || rw[1] == 0)) continue;
      for (int field = 0; field < 2; ++field) {
        if (!(field ? tap.want_theta : tap.want_k)) continue;
        // Four sums, by row and by parity of the column: one alone would wait for itself.
        const T* f = rows + field * L;
        Vec<T> a[4];
        for (int q = 0; q < 4; ++q) a[q] = broadcast(T(0));
        int j = 0;
        for (; j + 1 < v.width; j += 2)
          for (int q = 0; q < 4; ++q)
            a[q] = fma(load(f + (q >> 1) * v.row + (j + (q & 1)) * Cell), broadcast(T(cw[j + (q & 1)])), a[q]);
        if (j < v.width)
          for (int q = 0; q < 4; q += 2) a[q] = fma(load(f + (q >> 1) * v.row + j * Cell), broadcast(T(cw[j])), a[q]);
        double* sum = slice_sum + (i * 2 + field) * L;
        for (int q = 0; q < n; ++q) {
          alignas(64) T lanes[L];
          store(lanes, add(a[2 * q], a[2 * q + 1]));
          for (int l = 0; l < L; ++l) sum[l] += rw[q] * double(lanes[l]);
        }
      }
    }
  }

  // The same for rows that have been summed already, with weights of 1 along the columns.
  void add_rows(int i, const T* sums, int64_t apart, int r, int n, int di) {
    const Tap& tap = program.taps[i];
    const double* rw = weights(tap.row_weights, program.levels[tap.level].h, di) + r;
    for (int field = 0; field < 2; ++field) {
      if (!(field ? tap.want_theta : tap.want_k)) continue;
      double* sum = slice_sum + (i * 2 + field) * L;
      for (int q = 0; q < n; ++q)
        for (int l = 0; l < L; ++l) sum[l] += rw[q] * double(sums[q * apart + field * L + l]);
    }
  }

  // The readout of a level if it has one alone, and this gives all columns of a slice the weight 1; else -1.
  int plain_tap(int level, int dj) const {
    int found = -1;
    for (int i = 0; i < program.n_taps; ++i) {
      if (program.taps[i].level != level) continue;
      if (found >= 0) return -1;
      found = i;
    }
    if (found < 0 || program.levels[level].kind != Kind::kNode) return -1;
    const double* cw = weights(program.taps[found].column_weights, program.levels[level].w, dj);
    for (int j = 0; j < levels[level].width; ++j)
      if (cw[j] != 1) return -1;
    return found;
  }

  // Memory of a coarse slice (di, dj) of gather g, or null if no strip of this number has it; zeros when it is first asked for.
  T* coarse_slice(int g, int di, int dj, int strip) {
    const Level& level = program.levels[g];
    const Stage& stage = program.stages[stage_of(program, g)];
    const bool negative = di < 0 || (di == 0 && dj < 0);
    const int index = stage.place[(negative ? -di : di) * (2 * stage.w - 1) + (negative ? -dj : dj) + stage.w - 1];
    if (index < 0 || stage.slices[index].strip != strip) return nullptr;
    const int64_t entries = int64_t(level.h - (di < 0 ? -di : di)) * (level.w - (dj < 0 ? -dj : dj)), size = entries * level.fields * L;
    T* const slice = rooms[g] + stage.slices[index].slot * level.fields * L;
    if (!begun[g][index]) {
      begun[g][index] = 1;
      for (int64_t i = 0; i < (di == 0 && dj == 0 ? size : 2 * size); i += L) store(slice + i, broadcast(T(0)));
    }
    return negative ? slice + size : slice;
  }

  // The coarse slices of a strip that the level adds to, in slice (di, dj); `again`: after its opposite.
  void aim(int l, int di, int dj, int strip, bool again) {
    Rings<T>& v = levels[l];
    v.n_targets = 0;
    for (int g = 0; g < program.n_levels; ++g) {
      const Level& level = program.levels[g];
      if (level.kind != Kind::kGather || level.source != l) continue;
      const Runs &down = level.down, &across = level.across;
      for (int a = down.start[di + down.extent - 1]; a < down.start[di + down.extent]; ++a)
        for (int b = across.start[dj + across.extent - 1]; b < across.start[dj + across.extent]; ++b) {
          const int Di = down.runs[a].coarse, Dj = across.runs[b].coarse;
          Target<T> t;
          t.out = coarse_slice(g, Di, Dj, strip);
          if (!t.out) continue;
          t.height = level.h - (Di < 0 ? -Di : Di);
          t.width = level.w - (Dj < 0 ? -Dj : Dj);
          t.next = 0;
          t.down = down.runs[a];
          t.across = across.runs[b];
          t.stride_down = down.stride;
          t.stride_across = across.stride;
          t.fields = level.fields;
          const int s = across.stride, first = t.across.first, spread = v.width - t.across.count - first;
          t.begin = first < 0 ? (s - 1 - first) / s : 0;
          t.end = spread < 0 ? 0 : spread / s + 1;
          if (t.begin > t.width) t.begin = t.width;
          if (t.end > t.width) t.end = t.width;
          const bool both = (di != 0 || dj != 0) && find_run(down, -di, Di) && find_run(across, -dj, Dj);
          if (both) t.out = share(t.out, int64_t(t.height) * t.width * level.fields * L, again);
          v.targets[v.n_targets++] = t;
        }
    }
  }

  // Memory where what d, or `again` -d, adds to a coarse slice gathers.
  T* share(T* slice, int64_t size, bool again) {
    int64_t used = 0;
    for (int i = 0; i < n_shared; ++i) {
      if (again && shared[i].slice == slice) return shared[i].parts + size;
      used += 2 * shared[i].size;
    }
    Shared<T>& s = shared[n_shared++];
    s = {slice, spare + used, size};
    for (int64_t i = 0; i < 2 * size; i += L) store(s.parts + i, broadcast(T(0)));
    return s.parts;
  }

  void join() {
    for (int i = 0; i < n_shared; ++i) {
      const Shared<T>& s = shared[i];
      for (int64_t j = 0; j < s.size; j += L)
        store(s.slice + j, add(load(s.slice + j), add(load(s.parts + j), load(s.parts + s.size + j))));
    }
    n_shared = 0;
  }

  // A row of a coarse slice, from the memory where it gathered.
  void take_row(const T* from, int fields, int width, T* out) {
    for (int j = 0; j < width; ++j)
      for (int field = 0; field < fields; ++field) store(out + j * Cell + field * L, load(from + (j * fields + field) * L));
    store(out + width * Cell, broadcast(T(0)));
    store(out + width * Cell + L, broadcast(T(0)));
  }

  // A slice, or `again` its opposite, through the levels of its variant; sums go to slice_sum.
  void slice(const T* x_img, const T* x_prof, const Variant& variant, const Slice& d, bool again) {
    constexpr int XL = Pairwise ? L : 1;
    const int di = again ? -d.di : d.di, dj = again ? -d.dj : d.dj;
    const int c = program.c;
    const int xi = di < 0 ? -di : 0, xj = dj < 0 ? -dj : 0, zi = di > 0 ? di : 0, zj = dj > 0 ? dj : 0;
    const bool exact = di == 0 && dj == 0 && (call.profiles || !program.closed);
    const Vec<T> in_scale = broadcast(T(program.levels[0].out_scale));
    const T *x_row = nullptr, *z_row = nullptr;  // images at the next row
    int steps = 0;
    for (int i = 0; i < variant.n; ++i) {
      const int l = variant.levels[i];
      const Level& level = program.levels[l];
      Rings<T>& v = levels[l];
      const int64_t at_x = (int64_t(xi) * level.w + xj) * XL, at_z = (int64_t(zi) * level.w + zj) * L;
      v.slot = 0;
      v.height = level.h - xi - zi;
      v.width = level.w - xj - zj;
      v.pairs = (v.height + 1) / 2;
      v.plain = -1;
      active[i] = &v;
      if (v.pairs + level.lag > steps) steps = v.pairs + level.lag;
      switch (level.kind) {
        case Kind::kImage:
          x_row = x_img + at_x * c;
          z_row = z_image + at_z * c;
          break;
        case Kind::kGather:
          v.coarse = coarse_slice(l, di, dj, d.strip);
          break;
        case Kind::kNode:
          v.in_slot = v.skip_slot = 0;
          for (int q = 0; q < 2; ++q) {
            v.next.x[q] = x_prof + level.profile * XL + at_x + q * v.x_step;
            v.next.z[q] = z_profile + level.profile * L + at_z + q * v.z_step;
          }
      }
      if (v.gathered) aim(l, di, dj, d.adds_to, again);
      if (!variant.consumed[i] && v.n_targets == 0) v.plain = plain_tap(l, dj);  // summed as it is made, and never stored
      const bool summed = v.plain >= 0;
      v.next.width = v.width;
      v.next.x_apart = v.x_step * level.h;
      v.next.z_apart = v.z_step * level.h;
      v.next.flags = v.flags | (summed ? kSum : 0) | (!exact ? 0 : call.profiles ? kSelf : kSame);
      v.run = exact ? v.exact : summed ? v.sum : v.compute;
    }
    int first = 0;  // levels before it are done
    for (int step = 0; step < steps && !cancelled(); ++step) {
      while (step - active[first]->lag >= active[first]->pairs) ++first;
      for (int i = first; i < variant.n; ++i) {
        Rings<T>& out = *active[i];
        const int pair = step - out.lag;
        if (pair < 0) break;  // none that follow lags less
        if (pair >= out.pairs) continue;
        const int r = 2 * pair, n = r + 1 < out.height ? 2 : 1;
        T* rows = out.ring + 2 * out.slot * out.row;
        if (out.kind == Kind::kNode) {
          Rows<T>& a = out.next;
          input_rows(out, r, n, a);
          for (int q = 0; q < 2; ++q) a.out[q] = rows + q * out.row;
          out.run[n](a);
          for (int q = 0; q < 2; ++q) {
            a.x[q] += 2 * out.x_step;
            a.z[q] += 2 * out.z_step;
          }
          if (out.plain >= 0) {
            add_rows(out.plain, rows, out.row, r, n, di);
            continue;
          }
        } else if (out.kind == Kind::kImage) {
          for (int q = 0; q < n; ++q) {
            T* o = rows + q * out.row;
            if (c == 3)
              input_row<T, 3, Pairwise>(x_row, z_row, c, out.width, in_scale, o);
            else if (c == 1)
              input_row<T, 1, Pairwise>(x_row, z_row, c, out.width, in_scale, o);
            else
              input_row<T, 0, Pairwise>(x_row, z_row, c, out.width, in_scale, o);
            x_row += out.x_step * c;
            z_row += out.z_step * c;
          }
        } else {
          const int fields = out.level->fields;
          for (int q = 0; q < n; ++q, out.coarse += out.width * fields * L)
            take_row(out.coarse, fields, out.width, rows + q * out.row);
        }
        if (out.read) read_out(out, rows, r, n, di, dj);
        for (int q = 0; q < out.n_targets; ++q) {
          Target<T>& t = out.targets[q];
          (t.fields == 2 ? push<T, 2> : push<T, 1>)(t, rows, out.row, r, n, out.width);
        }
        if (++out.slot == out.ring_pairs) out.slot = 0;
      }
    }
  }

  // The rows that a node reads for its rows r and r + 1, box sums already if its filter is no square of 3.
  WL_INLINE void input_rows(Rings<T>& out, int r, int n, Rows<T>& a) {
    const Rings<T>& in = *out.in;
    const int slot = out.in_slot;
    if (++out.in_slot == in.ring_pairs) out.in_slot = 0;
    if (out.skip) {
      a.skip[0] = out.skip->ring + 2 * out.skip_slot * out.skip->row;
      a.skip[1] = a.skip[0] + out.skip->row;
      if (++out.skip_slot == out.skip->ring_pairs) out.skip_slot = 0;
    }
    if (out.fused && out.around) {
      const T* pair_rows = in.ring + 2 * slot * in.row;
      const int before = slot == 0 ? in.ring_pairs - 1 : slot - 1, after = slot + 1 == in.ring_pairs ? 0 : slot + 1;
      a.in[0] = r == 0 ? zero_row : in.ring + (2 * before + 1) * in.row;
      a.in[1] = pair_rows;
      a.in[2] = n == 2 ? pair_rows + in.row : zero_row;
      a.in[3] = r + 2 < in.height ? in.ring + 2 * after * in.row : zero_row;
      return;
    }
    other_rows(out, r, slot, a);
  }

  void other_rows(const Rings<T>& out, int r, int slot, Rows<T>& a) {
    const Rings<T>& in = *out.in;
    const Level& level = *out.level;
    const int q = level.rows;
    for (int k = 0; k <= q; ++k) window[k] = row_of(in, r - level.top + k, r, slot);
    if (out.fused) {
      for (int k = 0; k <= q; ++k) a.in[k] = window[k];
      return;
    }
    T* const sums[2] = {box_sums, box_sums + row};
    const bool own = level.theta_in, square = level.columns == q, single = square && q == 1;
    for (int i = 0; i < 2; ++i) a.in[i] = single ? window[i] : sums[i];
    a.in[2] = a.in[3] = zero_row;  // not read
    const Filter filter{level.rows, level.columns, level.left, in.width};
    if (square && q == 5)
      box_rows<T, 5>(window, filter, out.width, own, scratch, sums);
    else if (square && q == 7)
      box_rows<T, 7>(window, filter, out.width, own, scratch, sums);
    else if (!single)
      box_rows<T, 0>(window, filter, out.width, own, scratch, sums);
  }

  void sum_slice(const T* x_img, const T* x_prof, const Variant& variant, const Slice& d, bool again) {
    for (int i = 0; i < program.n_taps * 2 * L; ++i) slice_sum[i] = 0;
    slice(x_img, x_prof, variant, d, again);
  }

  // The next slice of a stage and its opposite, after all slices of the parent stage that they need. d and -d are added
  // before they join the total, so that k(x, z) and k(z, x) agree to the last bit.
  void advance(const T* x_img, const T* x_prof, int stage) {
    const Stage& s = program.stages[stage];
    const Slice d = s.slices[done[stage]];
    while (s.parent >= 0 && done[s.parent] < d.needs && !cancelled()) advance(x_img, x_prof, s.parent);
    if (cancelled()) return;
    ++done[stage];
    const int n = d.first ? program.n_taps * 2 * L : 0;
    sum_slice(x_img, x_prof, s.variants[d.variant], d, false);
    if (d.di == 0 && d.dj == 0) {
      for (int i = 0; i < n; ++i) at_zero[i] += slice_sum[i];
      return;
    }
    for (int i = 0; i < n; ++i) opposite[i] = slice_sum[i];
    sum_slice(x_img, x_prof, s.variants[d.variant], d, true);
    for (int i = 0; i < n; ++i) total[i] += opposite[i] + slice_sum[i];
    join();
  }

  // All slices of one row and a lane group.
  bool group(const T* x_img, const T* x_prof) {
    for (int i = 0; i < program.n_taps * 2 * L; ++i) at_zero[i] = total[i] = 0;
    for (int k = 0; k < program.n_stages; ++k) {
      const Stage& s = program.stages[k];
      done[k] = 0;
      for (int l = s.first; l < s.stop; ++l)
        for (int i = 0; program.levels[l].kind == Kind::kGather && i < s.n_slices; ++i) begun[l][i] = 0;
    }
    for (int k = program.n_stages - 1; k >= 0; --k)
      while (done[k] < program.stages[k].n_slices && !cancelled()) advance(x_img, x_prof, k);
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
    const int64_t image = int64_t(program.h) * program.w * program.c, profile = program.n_profile;
    for (int64_t i = 0; i < n_rows; ++i) {
      const int64_t row = rows[i];
      const T* bias = call.x->biases + row * program.n_nodes;
      for (int s = 0; s < program.n_levels; ++s) {
        if (program.levels[s].kind != Kind::kNode) continue;
        const int b = program.levels[s].number;
        for (int l = 0; l < L; ++l) constants[s].bias[l] = (Pairwise ? x_bias[b * L + l] : bias[b]) * z_bias[b * L + l];
      }
      for (int l = 0; l < n_lanes; ++l)
        same[l] = call.x->identity[rows[Pairwise ? l : i]] == call.z->identity[call.columns[first + l]] ? T(-1) : T(1);
      if (!group(Pairwise ? x_image : call.x->images + row * image, Pairwise ? x_profile : call.x->profiles + row * profile))
        return false;
      for (int l = 0; l < n_lanes; ++l) {
        const int64_t xr = rows[Pairwise ? l : i];
        for (int f = 0; f < program.n_taps * 2; ++f) {
          const bool known = program.closed && same[l] < 0;
          const double zero = known ? call.x->diagonal[xr * program.n_taps * 2 + f] : at_zero[f * L + l];
          call.out[(f * n_rows + i) * call.n_columns + first + l] = zero + total[f * L + l];
        }
        for (int64_t j = 0; call.profiles && j < profile; ++j) call.profiles[(first + l) * profile + j] = z_profile[j * L + l];
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
  return pairwise ? Sweep<T, true>::arrange(nullptr, program, nullptr) : Sweep<T, false>::arrange(nullptr, program, nullptr);
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
