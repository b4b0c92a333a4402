// Dual activations (widelimit.dual, docs/mathematics.md) of a pair of pixels: from sigma = s and the profiles x, z to K and
// the factor of Theta. S is a layer: its flags, and its constants, ready to be used.
#pragma once

enum : int { kRelu = 1, kSigned = 2, kOwn = 4, kTrain = 8, kOutK = 16, kOutTheta = 32, kBias = 64, kMerge = 128 };

template <int M>
WL_FN V polynomial(const Scalar (&c)[M], Scalar scale, V v) {
  // For the long polynomials of double two chains, one of the even and one of the odd powers.
  constexpr int stride = sizeof(Scalar) == 8 ? 2 : 1;
  const V power = stride == 2 ? v * v : v;
  V r = broadcast(c[M - 1] * scale), other = broadcast(c[M - stride] * scale);
  WL_UNROLL for (int n = 1; n <= (M - 1) / stride; ++n) {
    r = mad(r, power, broadcast(c[M - 1 - n * stride] * scale));
    if (stride == 2 && M - 2 - 2 * n >= 0) other = mad(other, power, broadcast(c[M - 2 - 2 * n] * scale));
  }
  return stride == 1 ? r : M % 2 ? mad(other, v, r) : mad(r, v, other);
}

// That of a ReLU, times the scale of the layer S; e is X Z - |s|, p is X Z + |s|.
template <class S>
WL_FN void half_angle(V e, V p, V s, V& k, V& kappa0) {
  constexpr bool is_signed = S::flags & kSigned, out_k = S::flags & kOutK, out_theta = S::flags & kOutTheta;
  const Scalar c = S::scale(), over_pi = Scalar(0.318309886183790671538) * c;
  const V t = e * inverse_root(mad(p, e, broadcast(kTiny))), v = t * t;
  if (is_signed) {
    const V fall = v * polynomial(WL_C, c, v);
    if (out_theta) {
      const V g = t * (broadcast(2 * over_pi) - fall);
      kappa0 = select(negative(s), g, broadcast(c) - g);
    }
    if (out_k) k = mad(t, mad(absolute(s), fall, e * over_pi), positive(s) * c);
  } else {
    kappa0 = mad(-t, polynomial(WL_A, c, v), broadcast(c));
    if (out_k) k = mad(p, t * over_pi, s * kappa0);
  }
}

template <class S>
WL_FN void activate(V x, V z, V s, V& k, V& kappa0) {
  const V size = S::flags & kSigned ? absolute(s) : s;
  half_angle<S>(mad(x, z, -size), mad(x, z, size), s, k, kappa0);
}

// Those of general layers have one shape. `same`: sigma = x z, which a fused x z - s would miss by its last bit.
struct Identity {
  template <class S>
  static WL_FN void dual(V, V, V s, bool, V& k, V& factor) {
    k = s * S::scale();
    factor = broadcast(S::scale());
  }
};

struct Relu {
  template <class S>
  static WL_FN void dual(V x, V z, V s, bool same, V& k, V& factor) {
    const V size = S::flags & kSigned ? absolute(s) : s;
    half_angle<S>(same ? broadcast(0) : mad(x, z, -size), mad(x, z, size), s, k, factor);
  }
};

// a min(u, 0) + b max(u, 0): a ReLU and the identity, in units of (a^2 + b^2)/2.
struct AbRelu {
  template <class S>
  static WL_FN void dual(V x, V z, V s, bool same, V& k, V& factor) {
    V kappa0 = s;
    Relu::dual<S>(x, z, s, same, k, kappa0);
    k = mad(s, broadcast(S::p(0)), k);
    factor = kappa0 + S::p(0);
  }
};

// m exp(gamma (lambda - 1)), where rounding must not make lambda larger than 1: the next layers would make more of it.
struct Gaussian {
  template <class S>
  static WL_FN void dual(V x, V z, V s, bool, V& k, V& factor) {
    const V m = x * z, e = exponential(-positive(m - s) * reciprocal(m + kTiny) * S::p(0));
    k = m * S::scale() * e;
    factor = e * S::p(1);
  }
};

// (2/pi) arcsin(2 s / n) = (4/pi) arctan t, t = 2 s / (n + w), with n^2 = (1 + 2 x^2)(1 + 2 z^2) and w^2 = n^2 - 4 s^2,
// where nothing cancels: w^2 = 1 + 2 (x^2 + z^2) + 4 (m - s)(m + s). Its derivative is (4/pi) / w.
struct Erf {
  template <class S>
  static WL_FN void dual(V x, V z, V s, bool, V& k, V& factor) {
    const V m = x * z, size = absolute(s), e = positive(m - size) * (m + size);
    const V w2 = mad(broadcast(S::p(1)), e, mad(broadcast(S::p(0)), x * x + z * z, broadcast(1)));
    if (S::flags & kOutK) {
      const V n2 = mad(s * s, broadcast(S::p(1)), w2);
      const V t = s * S::p(0) * reciprocal(root(n2) + root(w2));
      k = t * polynomial(WL_A, 2 * S::scale(), t * t);
    }
    factor = inverse_root(w2) * S::p(2);
  }
};

// u Phi(u). With a = 1 + x^2, b = 1 + z^2, d = a b - s^2 = 1 + x^2 + z^2 + (m - s)(m + s), and t = s / (sqrt(a b) + sqrt d):
// p = 1/4 + arctan(s / sqrt d) / (2 pi) = 1/4 + arctan(t) / pi, r = 1 / (2 pi sqrt d),
// K = s p + r ((m - s)(m + s) + s^2 (1/a + 1/b)), and its derivative is p + s r (1/a + 1/b + 1/d).
struct Gelu {
  template <class S>
  static WL_FN void dual(V x, V z, V s, bool, V& k, V& factor) {
    const V m = x * z, size = absolute(s), xx = x * x, zz = z * z, one = broadcast(1), unit = broadcast(S::p(0));
    const V of_x = mad(unit, xx, one), of_z = mad(unit, zz, one), both = of_x * of_z;
    const V gap = positive(m - size) * (m + size) * S::p(1), d = mad(unit, xx + zz, one) + gap, inverse = inverse_root(d);
    const V us = unit * s, t = us * reciprocal(root(both) + root(d));
    const V p = mad(t, polynomial(WL_A, Scalar(0.5), t * t), broadcast(Scalar(0.25)));
    const V r = inverse * Scalar(0.159154943091895335769), q = us * ((of_x + of_z) * reciprocal(both));
    k = mad(us, p, r * mad(us, q, gap)) * S::scale();
    factor = mad(r, mad(us, inverse * inverse, q), p) * S::p(2);
  }
};

// exp(-(x^2 + z^2)/2) sinh s and cosh s, for a sine; the other way round for a cosine. |s| is at most x z, rounded or not.
template <bool Cosine>
struct Wave {
  template <class S>
  static WL_FN void dual(V x, V z, V s, bool, V& k, V& factor) {
    const V size = absolute(s), over = positive(size - x * z), half = (x * x + z * z) * Scalar(0.5);
    const V near = exponential((size - over - half) * S::p(0)) * Scalar(0.5);
    const V rest = one_minus_exponential(size * (2 * S::p(0))), odd = near * rest;
    const V sine = select(negative(s), -odd, odd), cosine = near * (broadcast(2) - rest);
    k = (Cosine ? cosine : sine) * S::scale();
    factor = (Cosine ? sine : cosine) * S::p(1);
  }
};
typedef Wave<false> Sine;
typedef Wave<true> Cosine;

// s / sqrt((x^2 + eps)(z^2 + eps))
struct Norm {
  template <class S>
  static WL_FN void dual(V x, V z, V s, bool, V& k, V& factor) {
    const V unit = broadcast(S::p(0)), eps = broadcast(S::p(2));
    const V of_x = mad(unit, x * x, eps), of_z = mad(unit, z * z, eps);
    factor = inverse_root(mad(of_x, of_z, broadcast(kTiny))) * S::p(1);
    k = s * factor;
  }
};
