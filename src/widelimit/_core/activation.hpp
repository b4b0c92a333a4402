// Dual activations: from sigma = s and the profiles x, z of a pair of pixels to K and the factor of Theta.
//
// Each is a class of one layer's constants, for values V with the operations of simd.hpp. `meet` takes what is needed of
// the profiles, `dual` does the rest. Where X alone is not enough, `prepare` makes the other operands of a pixel of X, and
// `dual` reads them.
// Formulas and bounds: widelimit.dual, docs/mathematics.md.
#pragma once
#include "core.hpp"
#include "dual_coefficients.hpp"
#include "simd.hpp"

namespace widelimit {
namespace {

template <class T>
struct Dual;
template <>
struct Dual<float> {
  static constexpr int nA = sizeof(kA32) / sizeof(kA32[0]), nE = sizeof(kE32) / sizeof(kE32[0]);
  static constexpr const float* A = kA32;
  static constexpr const float* E = kE32;
  static constexpr float tiny = 1e-36f, epsilon = 0x1p-23f, rounder = 12582912.0f, most = 126.0f;
};
template <>
struct Dual<double> {
  static constexpr int nA = sizeof(kA64) / sizeof(kA64[0]), nE = sizeof(kE64) / sizeof(kE64[0]);
  static constexpr const double* A = kA64;
  static constexpr const double* E = kE64;
  static constexpr double tiny = 1e-290, epsilon = 0x1p-52, rounder = 6755399441055744.0, most = 1022.0;
};

constexpr double kLog2E = 1.44269504088896340736;

// Of one layer, ready to be loaded as vectors.
template <class T>
struct Constants {
  static constexpr int L = Vec<T>::lanes;
  alignas(64) T a[Dual<T>::nA][L];  // scaled by the layer's out_scale and the factors of `ratio`: kappa0 = scale - t * A(v)
  alignas(64) T scale[L];
  alignas(64) T scale_over_pi[L];
  alignas(64) T bias[L];
  alignas(64) T skip[L];
  alignas(64) T p[4][L];  // of other activations
  const double* table;
  int degree;
};

// The operands of a pair of pixels: number i of x, and of the lanes' images.
template <class T, bool Pairwise>
struct Operands {
  const T *x, *z;
  int64_t x_apart, z_apart;  // from one to the next
  WL_INLINE Vec<T> of_x(int i) const {
    if (Pairwise) return load(x + i * x_apart);
    return broadcast(x[i * x_apart]);
  }
  WL_INLINE Vec<T> of_z(int i) const { return load(z + i * z_apart); }
};

// Of an activation for which X is enough.
struct Plain {
  static constexpr bool has_operands = false;
};

template <class T>
void fill(T* row, T value) {
  for (int l = 0; l < Vec<T>::lanes; ++l) row[l] = value;
}

// Horner's scheme, step by step; for the long polynomials of double one for the even and one for the odd powers, which
// halves the chain of dependent operations.
template <class T, class V, int N>
struct Horner {
  static constexpr int stride = sizeof(T) == 8 ? 2 : 1, steps = (N - 1) / stride;
  const V (&c)[N];
  V r, other;
  WL_INLINE explicit Horner(const V (&coefficients)[N]) : c(coefficients), r(c[N - 1]), other(c[N - stride]) {}
  WL_INLINE void step(int n, V power) {
    if (n > steps) return;
    r = fma(r, power, c[N - 1 - n * stride]);
    if (stride == 2 && N - 2 - 2 * n >= 0) other = fma(other, power, c[N - 2 - 2 * n]);
  }
  WL_INLINE V value(V v) const { return stride == 1 ? r : N % 2 ? fma(other, v, r) : fma(r, v, other); }
};

template <class T, class V, int N>
WL_INLINE V polynomial(const V (&c)[N], V v) {
  Horner<T, V, N> h(c);
  const V power = h.stride == 2 ? mul(v, v) : v;
#pragma GCC unroll 32
  for (int n = 1; n <= h.steps; ++n) h.step(n, power);
  return h.value(v);
}

#if !defined(WL_PLAIN)
// 2^-w = 2^n 2^-r with |r| <= 1/2; below the range of T it becomes the smallest number of that. Subtracted from `rounder`,
// 3/2 of the number whose last bit is 1, w is rounded to an integer, -n, and n lies in the lowest bits of the difference.
template <class V>
struct Reduced {
  V shifted, r, q;  // q = (2^-r - 1)/r
};
template <class T>
WL_INLINE Reduced<Vec<T>> reduced(Vec<T> w) {
  using V = Vec<T>;
  V e[Dual<T>::nE];
#pragma GCC unroll 16
  for (int i = 0; i < Dual<T>::nE; ++i) e[i] = broadcast(Dual<T>::E[i]);
  w = min(w, broadcast(Dual<T>::most));
  const V rounder = broadcast(Dual<T>::rounder), shifted = sub(rounder, w), r = add(w, sub(shifted, rounder));
  return {shifted, r, polynomial<T>(e, r)};
}
template <class T>
WL_INLINE Vec<T> power_of_half(Vec<T> w) {
  const Reduced<Vec<T>> n = reduced(w);
  return times_power(fma(n.q, n.r, broadcast(T(1))), n.shifted);
}

// 1 - 2^-w for w >= 0: nothing cancels, as 2^n is 1 or at most 1/2.
template <class T>
WL_INLINE Vec<T> one_minus_power_of_half(Vec<T> w) {
  const Reduced<Vec<T>> n = reduced(w);
  const Vec<T> one = broadcast(T(1)), power = times_power(one, n.shifted);
  return fnma(mul(n.q, n.r), power, sub(one, power));
}
#endif

template <class T, class V = Vec<T>>
struct Identity : Plain {
  struct Met {};
  V scale;
  WL_INLINE Identity(const Constants<T>& k, bool) : scale(load(k.scale)) {}
  WL_INLINE void meet(V, V, V, Met&) const {}
  WL_INLINE void dual(V s, const Met&, bool, V& k, V& factor) const {
    k = mul(s, scale);
    factor = scale;
  }
};

template <class T, class V = Vec<T>>
struct Relu : Plain {
  struct Met {
    V e, p;
  };
  const bool is_signed;
  V a[Dual<T>::nA], scale, scale_over_pi, zero, tiny;

  WL_INLINE Relu(const Constants<T>& k, bool with_sign)
      : is_signed(with_sign), scale(load(k.scale)), scale_over_pi(load(k.scale_over_pi)), zero(broadcast(T(0))),
        tiny(broadcast(Dual<T>::tiny)) {
#pragma GCC unroll 16
    for (int i = 0; i < Dual<T>::nA; ++i) a[i] = load(k.a[i]);
  }
  WL_INLINE void meet(V s, V x, V z, Met& n) const {
    const V m = mul(x, z), size = is_signed ? abs(s) : s;
    n.e = max(sub(m, size), zero);
    n.p = add(m, size);
  }
  WL_INLINE void dual(V s, const Met& n, bool want_k, V& k, V& kappa0) const {
    const V t = ratio(n.e, fma(n.p, n.e, tiny)), angle = polynomial<T>(a, mul(t, t));
    kappa0 = is_signed ? product_or_rest(s, t, angle, scale) : fnma(t, angle, scale);
    // Where s < 0, terms cancel: the error is that which rounding s to its last bit would make.
    if (want_k) k = fma(n.p, mul(t, scale_over_pi), mul(s, kappa0));
  }
};

// a min(u, 0) + b max(u, 0): a ReLU and the identity. In units of (a^2 + b^2)/2, so that K(x, x) = scale X^2.
template <class T, class V = Vec<T>>
struct AbRelu : Relu<T, V> {
  using typename Relu<T, V>::Met;
  V linear;
  WL_INLINE AbRelu(const Constants<T>& k, bool with_sign) : Relu<T, V>(k, with_sign), linear(load(k.p[0])) {}
  WL_INLINE void dual(V s, const Met& n, bool want_k, V& k, V& factor) const {
    Relu<T, V>::dual(s, n, want_k, k, factor);
    if (want_k) k = fma(s, linear, k);
    factor = add(factor, linear);
  }
};

// m exp(gamma (lambda - 1)). Rounding may make lambda larger than 1, but not by more than a few units in the last place:
// the next layers would make more of it. Cut off at 1 itself, errors of either sign would no longer balance. Where m is 0,
// so is K, whatever e: lambda is no number there, and `max` makes one of it.
template <class T, class V = Vec<T>>
struct Gaussian : Plain {
  struct Met {
    V m;
  };
  V scale, gamma, slope, least;  // least: of the exponent, a little below zero
  WL_INLINE Gaussian(const Constants<T>& k, bool)
      : scale(load(k.scale)), gamma(load(k.p[0])), slope(load(k.p[1])), least(load(k.p[2])) {}
  WL_INLINE void meet(V, V x, V z, Met& n) const { n.m = mul(x, z); }
  WL_INLINE void dual(V s, const Met& n, bool, V& k, V& factor) const {
    const V e = power_of_half(max(mul(gamma, mul(sub(n.m, s), reciprocal(n.m))), least));
    k = mul(mul(n.m, scale), e);
    factor = mul(slope, e);
  }
};

// (2/pi) arcsin(2 s / n) = (4/pi) arctan t, t = 2 s / (n + w), with n^2 = (1 + 2 x^2)(1 + 2 z^2) and w^2 = n^2 - 4 s^2,
// where nothing cancels: w^2 = 1 + 2 (x^2 + z^2) + 4 (m - s)(m + s). Its derivative is (4/pi) / w.
template <class T, class V = Vec<T>>
struct Erf : Plain {
  struct Met {
    V squares, e;  // x^2 + z^2, (m - s)(m + s)
  };
  V a[Dual<T>::nA], one, two_units, four_units, slope, zero;
  WL_INLINE Erf(const Constants<T>& k, bool)
      : one(broadcast(T(1))), two_units(load(k.p[0])), four_units(load(k.p[1])), slope(load(k.p[2])), zero(broadcast(T(0))) {
#pragma GCC unroll 16
    for (int i = 0; i < Dual<T>::nA; ++i) a[i] = load(k.a[i]);
  }
  WL_INLINE void meet(V s, V x, V z, Met& n) const {
    const V m = mul(x, z), size = abs(s);
    n.squares = add(mul(x, x), mul(z, z));
    n.e = mul(max(sub(m, size), zero), add(m, size));
  }
  WL_INLINE void dual(V s, const Met& n, bool want_k, V& k, V& factor) const {
    const V w2 = fma(four_units, n.e, fma(two_units, n.squares, one));
    if (want_k) {
      const V n2 = fma(mul(s, s), four_units, w2);
      const V t = mul(mul(two_units, s), reciprocal(add(root(n2), root(w2)))), v = mul(t, t);
      k = mul(t, polynomial<T>(a, v));
    }
    factor = ratio(slope, w2);
  }
};

// u Phi(u). With a = 1 + x^2, b = 1 + z^2, d = a b - s^2 = 1 + x^2 + z^2 + (m - s)(m + s), and t = s / (sqrt(a b) + sqrt d):
// p = 1/4 + arctan(s / sqrt d) / (2 pi) = 1/4 + arctan(t) / pi, r = 1 / (2 pi sqrt d),
// K = s p + r ((m - s)(m + s) + s^2 (1/a + 1/b)), and its derivative is p + s r (1/a + 1/b + 1/d).
template <class T, class V = Vec<T>>
struct Gelu : Plain {
  struct Met {
    V xx, zz, e;  // x^2, z^2, (m - s)(m + s)
  };
  V a[Dual<T>::nA], one, quarter, unit, unit_squared, turn, scale, slope, zero;
  WL_INLINE Gelu(const Constants<T>& k, bool)
      : one(broadcast(T(1))), quarter(broadcast(T(0.25))), unit(load(k.p[0])), unit_squared(load(k.p[1])), turn(load(k.p[2])),
        scale(load(k.scale)), slope(load(k.p[3])), zero(broadcast(T(0))) {
#pragma GCC unroll 16
    for (int i = 0; i < Dual<T>::nA; ++i) a[i] = load(k.a[i]);
  }
  WL_INLINE void meet(V s, V x, V z, Met& n) const {
    const V m = mul(x, z), size = abs(s);
    n.xx = mul(x, x);
    n.zz = mul(z, z);
    n.e = mul(max(sub(m, size), zero), add(m, size));
  }
  WL_INLINE void dual(V s, const Met& n, bool want_k, V& k, V& factor) const {
    const V of_x = fma(unit, n.xx, one), of_z = fma(unit, n.zz, one), both = mul(of_x, of_z);
    const V gap = mul(unit_squared, n.e), d = add(fma(unit, add(n.xx, n.zz), one), gap), inverse = reciprocal(root(d));
    const V us = mul(unit, s), t = mul(us, reciprocal(add(root(both), root(d))));
    const V p = fma(t, polynomial<T>(a, mul(t, t)), quarter), r = mul(turn, inverse);
    const V q = mul(us, mul(add(of_x, of_z), reciprocal(both)));
    if (want_k) k = mul(scale, fma(us, p, mul(r, fma(us, q, gap))));
    factor = mul(slope, fma(r, fma(us, mul(inverse, inverse), q), p));
  }
};

// exp(-(x^2 + z^2)/2) sinh s and cosh s, for a sine; the other way round for a cosine. |s| is at most x z, rounded or not.
template <class T, bool Cosine, class V = Vec<T>>
struct Wave : Plain {
  struct Met {
    V m, half;  // half: (x^2 + z^2)/2
  };
  V scale, slope, unit, two_units, zero, two;
  WL_INLINE Wave(const Constants<T>& k, bool)
      : scale(load(k.scale)), slope(load(k.p[1])), unit(load(k.p[0])), two_units(load(k.p[2])), zero(broadcast(T(0))),
        two(broadcast(T(2))) {}
  WL_INLINE void meet(V, V x, V z, Met& n) const {
    n.m = mul(x, z);
    n.half = mul(broadcast(T(0.5)), add(mul(x, x), mul(z, z)));
  }
  WL_INLINE void dual(V s, const Met& met, bool want_k, V& k, V& factor) const {
    const V size = abs(s), twice = power_of_half(mul(unit, sub(met.half, min(size, met.m))));
    const V rest = one_minus_power_of_half(mul(two_units, size)), odd = mul(twice, rest);
    const V sine = where_negative(s, sub(zero, odd), odd), cosine = mul(twice, sub(two, rest));
    if (want_k) k = mul(scale, Cosine ? cosine : sine);
    factor = mul(slope, Cosine ? sine : cosine);
  }
};
template <class T>
using Sine = Wave<T, false>;
template <class T>
using Cosine = Wave<T, true>;

// s / sqrt((x^2 + eps)(z^2 + eps))
template <class T, class V = Vec<T>>
struct Norm : Plain {
  struct Met {
    V product;
  };
  V slope, unit, eps, tiny;
  WL_INLINE Norm(const Constants<T>& k, bool)
      : slope(load(k.p[1])), unit(load(k.p[0])), eps(load(k.p[2])), tiny(broadcast(Dual<T>::tiny)) {}
  WL_INLINE void meet(V, V x, V z, Met& n) const {
    n.product = fma(fma(unit, mul(x, x), eps), fma(unit, mul(z, z), eps), tiny);
  }
  WL_INLINE void dual(V s, const Met& n, bool, V& k, V& factor) const {
    factor = ratio(slope, n.product);
    k = mul(s, factor);
  }
};

// sum_k c_k(x) c_k(z) lambda^k, c_k(x) = g_k(X) X^k, whose squares add up to K(x, x): nothing grows beyond that. Operands:
// X, 1/X, c_0 to c_n. Row k of the table: g_k as a polynomial in X^2, of n / 2 + 1 terms.
template <class T, class V = Vec<T>>
struct Polynomial {
  static constexpr bool has_operands = true;
  struct Met {};
  const double* const table;
  const int degree;
  V scale, unit;
  WL_INLINE Polynomial(const Constants<T>& k, bool) : table(k.table), degree(k.degree), scale(load(k.scale)), unit(load(k.p[0])) {}
  template <class Put>
  WL_INLINE void prepare(V x, Put put) const {
    const V square = mul(unit, mul(x, x)), deviation = root(square);
    put(1, reciprocal(max(x, broadcast(T(sizeof(T) == 4 ? 1e-18 : 1e-145)))));  // where x is 0, so are sigma and Theta
    V power = broadcast(T(1));
    const int terms = degree / 2 + 1;
    for (int k = 0; k <= degree; ++k, power = mul(power, deviation)) {
      V g = broadcast(T(table[(k + 1) * terms - 1]));
      for (int j = terms - 2; j >= 0; --j) g = fma(g, square, broadcast(T(table[k * terms + j])));
      put(2 + k, mul(g, power));
    }
  }
  template <bool Pairwise>
  WL_INLINE void dual(V s, const Operands<T, Pairwise>& at, bool, V& k, V& factor) const {
    const V inverse = mul(at.of_x(1), at.of_z(1)), lambda = mul(s, inverse);
    V sum = mul(at.of_x(2 + degree), at.of_z(2 + degree)), slope = broadcast(T(0));
    for (int i = degree + 1; i >= 2; --i) {  // Horner's scheme, with the derivative
      slope = fma(slope, lambda, sum);
      sum = fma(sum, lambda, mul(at.of_x(i), at.of_z(i)));
    }
    k = mul(scale, sum);
    factor = mul(mul(scale, inverse), slope);
  }
};

template <class T>
void set_constants(Constants<T>& k, const Level& level) {
  const double r = 1.0 / double(ratio_scale<T>()), unit = level.unit;  // `ratio` returns t / r
  const double* p = level.parameters;
  double scale = level.out_scale;
  for (int i = 0; i < 4; ++i) fill(k.p[i], T(0));
  fill(k.skip, T(level.skip_scale));
  fill(k.bias, T(0));
  k.table = level.table;
  k.degree = level.operands - 3;
  if (level.activation == Activation::kErf) {
    for (int i = 0; i < Dual<T>::nA; ++i) fill(k.a[i], T(2 * scale * double(Dual<T>::A[i])));
    fill(k.p[0], T(2 * unit));
    fill(k.p[1], T(4 * unit * unit));
    fill(k.p[2], T(scale * unit * 4 * 0.318309886183790671538 * r));
    return;
  }
  fill(k.scale, T(scale));
  if (level.activation == Activation::kGelu) {
    for (int i = 0; i < Dual<T>::nA; ++i) fill(k.a[i], T(0.5 * double(Dual<T>::A[i])));
    fill(k.p[0], T(unit));
    fill(k.p[1], T(unit * unit));
    fill(k.p[2], T(0.5 * 0.318309886183790671538));
    fill(k.p[3], T(scale * unit));
    return;
  }
  if (level.activation == Activation::kPolynomial) {
    fill(k.p[0], T(unit));
    return;
  }
  if (level.activation == Activation::kSin || level.activation == Activation::kCos) {
    fill(k.scale, T(0.5 * scale));  // e^... of both is twice what it should be
    fill(k.p[0], T(unit * kLog2E));
    fill(k.p[1], T(0.5 * scale * unit));
    fill(k.p[2], T(2 * unit * kLog2E));
    return;
  }
  if (level.activation == Activation::kNorm) {
    fill(k.p[0], T(unit));
    fill(k.p[1], T(scale * unit * r));
    fill(k.p[2], T(p[0]));
    return;
  }
  if (level.activation == Activation::kGaussian) {
    fill(k.p[0], T(p[0] * kLog2E));
    fill(k.p[1], T(scale * p[0]));
    fill(k.p[2], T(-8 * p[0] * kLog2E * double(Dual<T>::epsilon)));
  }
  if (level.activation == Activation::kAbRelu) {
    const double sum = p[0] * p[0] + p[1] * p[1];
    fill(k.p[0], T(scale * 2 * p[0] * p[1] / sum));
    scale *= (p[1] - p[0]) * (p[1] - p[0]) / sum;
  }
  double f = scale * r;
  for (int i = 0; i < Dual<T>::nA; ++i, f *= r * r) fill(k.a[i], T(f * double(Dual<T>::A[i])));
  fill(k.scale, T(scale));
  fill(k.scale_over_pi, T(scale * r * 0.318309886183790671538));
}

}  // namespace
}  // namespace widelimit
