// One vector of lanes, for the instruction set this translation unit is compiled for.
#pragma once

#if defined(WL_PLAIN)
#include <cmath>
#elif defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE4_2__)
#include <immintrin.h>
#endif

namespace {

template <class T>
struct Vec;

#define WL_INLINE inline __attribute__((always_inline))

#if defined(WL_PLAIN)

// Plain C++: the compiler vectorises the loops over lanes where it can.
template <class T, int N>
struct PlainVec {
  static constexpr int lanes = N;
  T v[N];
};
template <>
struct Vec<float> : PlainVec<float, 4> {};
template <>
struct Vec<double> : PlainVec<double, 2> {};
#define WL_EACH(expr)                                     \
  Vec<T> r;                                               \
  for (int l = 0; l < Vec<T>::lanes; ++l) r.v[l] = (expr); \
  return r
template <class T>
WL_INLINE Vec<T> load(const T* p) { WL_EACH(p[l]); }
template <class T>
WL_INLINE Vec<T> broadcast(T s) { WL_EACH(s); }
template <class T>
WL_INLINE void store(T* p, Vec<T> a) {
  for (int l = 0; l < Vec<T>::lanes; ++l) p[l] = a.v[l];
}
template <class T>
WL_INLINE Vec<T> load_unaligned(const T* p) { WL_EACH(p[l]); }
// The first halves of a and b, lane by lane in turns: a0 b0 a1 b1 ..; `zip_high`: the second halves.
template <class T>
WL_INLINE Vec<T> zip_low(Vec<T> a, Vec<T> b) { WL_EACH((l % 2 ? b : a).v[l / 2]); }
template <class T>
WL_INLINE Vec<T> zip_high(Vec<T> a, Vec<T> b) { WL_EACH((l % 2 ? b : a).v[(l + Vec<T>::lanes) / 2]); }
template <class T>
WL_INLINE Vec<T> add(Vec<T> a, Vec<T> b) { WL_EACH(a.v[l] + b.v[l]); }
template <class T>
WL_INLINE Vec<T> sub(Vec<T> a, Vec<T> b) { WL_EACH(a.v[l] - b.v[l]); }
template <class T>
WL_INLINE Vec<T> mul(Vec<T> a, Vec<T> b) { WL_EACH(a.v[l] * b.v[l]); }
template <class T>
WL_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) { WL_EACH(a.v[l] * b.v[l] + c.v[l]); }
template <class T>
WL_INLINE Vec<T> fnma(Vec<T> a, Vec<T> b, Vec<T> c) { WL_EACH(c.v[l] - a.v[l] * b.v[l]); }
template <class T>
WL_INLINE Vec<T> max(Vec<T> a, Vec<T> b) { WL_EACH(a.v[l] > b.v[l] ? a.v[l] : b.v[l]); }
template <class T>
WL_INLINE Vec<T> min(Vec<T> a, Vec<T> b) { WL_EACH(a.v[l] < b.v[l] ? a.v[l] : b.v[l]); }
template <class T>
WL_INLINE Vec<T> abs(Vec<T> a) { WL_EACH(a.v[l] < 0 ? -a.v[l] : a.v[l]); }
// s < 0 ? a : b
template <class T>
WL_INLINE Vec<T> where_negative(Vec<T> s, Vec<T> a, Vec<T> b) { WL_EACH(s.v[l] < 0 ? a.v[l] : b.v[l]); }
// e / sqrt(w), without the factor that `ratio_scale` names.
template <class T>
WL_INLINE Vec<T> ratio(Vec<T> e, Vec<T> w) { WL_EACH(e.v[l] / std::sqrt(w.v[l])); }
template <class T>
constexpr T ratio_scale() { return 1; }
template <class T>
WL_INLINE Vec<T> root(Vec<T> a) { WL_EACH(std::sqrt(a.v[l])); }
template <class T>
WL_INLINE Vec<T> reciprocal(Vec<T> a) { WL_EACH(1 / a.v[l]); }
// 2^-w and 1 - 2^-w
WL_INLINE Vec<float> power_of_half(Vec<float> w) {
  for (int l = 0; l < 4; ++l) w.v[l] = __builtin_exp2f(-w.v[l]);
  return w;
}
WL_INLINE Vec<double> power_of_half(Vec<double> w) {
  for (int l = 0; l < 2; ++l) w.v[l] = __builtin_exp2(-w.v[l]);
  return w;
}
WL_INLINE Vec<float> one_minus_power_of_half(Vec<float> w) {
  for (int l = 0; l < 4; ++l) w.v[l] = -__builtin_expm1f(-0.693147180559945309f * w.v[l]);
  return w;
}
WL_INLINE Vec<double> one_minus_power_of_half(Vec<double> w) {
  for (int l = 0; l < 2; ++l) w.v[l] = -__builtin_expm1(-0.693147180559945309 * w.v[l]);
  return w;
}
#undef WL_EACH

#elif defined(__AVX512F__)

template <>
struct Vec<float> {
  static constexpr int lanes = 16;
  __m512 v;
};
template <>
struct Vec<double> {
  static constexpr int lanes = 8;
  __m512d v;
};
using F = Vec<float>;
using D = Vec<double>;
WL_INLINE F load(const float* p) { return {_mm512_load_ps(p)}; }
WL_INLINE D load(const double* p) { return {_mm512_load_pd(p)}; }
WL_INLINE F broadcast(float s) { return {_mm512_set1_ps(s)}; }
WL_INLINE D broadcast(double s) { return {_mm512_set1_pd(s)}; }
WL_INLINE void store(float* p, F a) { _mm512_store_ps(p, a.v); }
WL_INLINE void store(double* p, D a) { _mm512_store_pd(p, a.v); }
WL_INLINE F load_unaligned(const float* p) { return {_mm512_loadu_ps(p)}; }
WL_INLINE D load_unaligned(const double* p) { return {_mm512_loadu_pd(p)}; }
WL_INLINE F zip_low(F a, F b) {
  return {_mm512_permutex2var_ps(a.v, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b.v)};
}
WL_INLINE F zip_high(F a, F b) {
  return {_mm512_permutex2var_ps(a.v, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b.v)};
}
WL_INLINE D zip_low(D a, D b) {
  return {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b.v)};
}
WL_INLINE D zip_high(D a, D b) {
  return {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b.v)};
}
WL_INLINE F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
WL_INLINE D add(D a, D b) { return {_mm512_add_pd(a.v, b.v)}; }
WL_INLINE F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
WL_INLINE D sub(D a, D b) { return {_mm512_sub_pd(a.v, b.v)}; }
WL_INLINE F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
WL_INLINE D mul(D a, D b) { return {_mm512_mul_pd(a.v, b.v)}; }
WL_INLINE F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
WL_INLINE D fma(D a, D b, D c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
WL_INLINE F fnma(F a, F b, F c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
WL_INLINE D fnma(D a, D b, D c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
WL_INLINE F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
WL_INLINE F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
WL_INLINE D max(D a, D b) { return {_mm512_max_pd(a.v, b.v)}; }
WL_INLINE D min(D a, D b) { return {_mm512_min_pd(a.v, b.v)}; }
WL_INLINE F abs(F a) { return {_mm512_abs_ps(a.v)}; }
WL_INLINE D abs(D a) { return {_mm512_abs_pd(a.v)}; }
// s < 0 ? t g : c - t g. One multiplication, and the rest for units that have less to do: the sign of s goes to t and takes
// c away. Where s is a zero, of either sign, both are the same up to rounding.
WL_INLINE F product_or_rest(F s, F t, F g, F c) {
  const __m512i bits = _mm512_castps_si512(s.v), sign = _mm512_set1_epi32(int(0x80000000u));
  const __m512i turned = _mm512_ternarylogic_epi32(_mm512_castps_si512(t.v), bits, sign, 0x78);  // t ^ (bits & sign)
  const __m512i rest = _mm512_andnot_si512(_mm512_srai_epi32(bits, 31), _mm512_castps_si512(c.v));
  return {_mm512_fnmadd_ps(_mm512_castsi512_ps(turned), g.v, _mm512_castsi512_ps(rest))};
}
WL_INLINE D product_or_rest(D s, D t, D g, D c) {
  const __m512i bits = _mm512_castpd_si512(s.v), sign = _mm512_set1_epi64(int64_t(1) << 63);
  const __m512i turned = _mm512_ternarylogic_epi64(_mm512_castpd_si512(t.v), bits, sign, 0x78);
  const __m512i rest = _mm512_andnot_si512(_mm512_srai_epi64(bits, 63), _mm512_castpd_si512(c.v));
  return {_mm512_fnmadd_pd(_mm512_castsi512_pd(turned), g.v, _mm512_castsi512_pd(rest))};
}
// 2^-14 estimate, one Newton step (two in double) with the factors 1/2 left to the coefficients.
WL_INLINE F ratio(F e, F w) {
  F y{_mm512_rsqrt14_ps(w.v)};
  return mul(mul(e, y), fnma(mul(w, y), y, broadcast(3.0f)));
}
WL_INLINE D ratio(D e, D w) {
  D y{_mm512_rsqrt14_pd(w.v)};
  y = mul(y, fnma(mul(w, y), y, broadcast(3.0)));
  return mul(mul(e, y), fnma(mul(w, y), y, broadcast(12.0)));
}
template <class T>
constexpr T ratio_scale();
template <>
constexpr float ratio_scale<float>() { return 2; }
template <>
constexpr double ratio_scale<double>() { return 16; }
WL_INLINE F where_negative(F s, F a, F b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(s.v, _mm512_setzero_ps(), _CMP_LT_OQ), b.v, a.v)};
}
WL_INLINE D where_negative(D s, D a, D b) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(s.v, _mm512_setzero_pd(), _CMP_LT_OQ), b.v, a.v)};
}
// The estimate of 14 bits, and one Newton step.
WL_INLINE F reciprocal(F a) {
  F y{_mm512_rcp14_ps(a.v)};
  return mul(y, fnma(a, y, broadcast(2.0f)));
}
WL_INLINE D reciprocal(D a) { return {_mm512_div_pd(_mm512_set1_pd(1), a.v)}; }
WL_INLINE F root(F a) { return {_mm512_sqrt_ps(a.v)}; }
WL_INLINE D root(D a) { return {_mm512_sqrt_pd(a.v)}; }
// p times 2 to the integer in the lowest bits of n
WL_INLINE F times_power(F p, F n) {
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), _mm512_slli_epi32(_mm512_castps_si512(n.v), 23)))};
}
WL_INLINE D times_power(D p, D n) {
  return {_mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(p.v), _mm512_slli_epi64(_mm512_castpd_si512(n.v), 52)))};
}

#elif defined(__AVX2__) && defined(__FMA__)

template <>
struct Vec<float> {
  static constexpr int lanes = 8;
  __m256 v;
};
template <>
struct Vec<double> {
  static constexpr int lanes = 4;
  __m256d v;
};
using F = Vec<float>;
using D = Vec<double>;
WL_INLINE F load(const float* p) { return {_mm256_load_ps(p)}; }
WL_INLINE D load(const double* p) { return {_mm256_load_pd(p)}; }
WL_INLINE F broadcast(float s) { return {_mm256_set1_ps(s)}; }
WL_INLINE D broadcast(double s) { return {_mm256_set1_pd(s)}; }
WL_INLINE void store(float* p, F a) { _mm256_store_ps(p, a.v); }
WL_INLINE void store(double* p, D a) { _mm256_store_pd(p, a.v); }
WL_INLINE F load_unaligned(const float* p) { return {_mm256_loadu_ps(p)}; }
WL_INLINE D load_unaligned(const double* p) { return {_mm256_loadu_pd(p)}; }
WL_INLINE F zip_low(F a, F b) {
  return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x20)};
}
WL_INLINE F zip_high(F a, F b) {
  return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x31)};
}
WL_INLINE D zip_low(D a, D b) {
  return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x20)};
}
WL_INLINE D zip_high(D a, D b) {
  return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x31)};
}
WL_INLINE F add(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
WL_INLINE D add(D a, D b) { return {_mm256_add_pd(a.v, b.v)}; }
WL_INLINE F sub(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
WL_INLINE D sub(D a, D b) { return {_mm256_sub_pd(a.v, b.v)}; }
WL_INLINE F mul(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
WL_INLINE D mul(D a, D b) { return {_mm256_mul_pd(a.v, b.v)}; }
WL_INLINE F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
WL_INLINE D fma(D a, D b, D c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
WL_INLINE F fnma(F a, F b, F c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
WL_INLINE D fnma(D a, D b, D c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
WL_INLINE F max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
WL_INLINE F min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
WL_INLINE D max(D a, D b) { return {_mm256_max_pd(a.v, b.v)}; }
WL_INLINE D min(D a, D b) { return {_mm256_min_pd(a.v, b.v)}; }
WL_INLINE F abs(F a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
WL_INLINE D abs(D a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
WL_INLINE F where_negative(F s, F a, F b) {
  return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(s.v, _mm256_setzero_ps(), _CMP_LT_OQ))};
}
WL_INLINE D where_negative(D s, D a, D b) {
  return {_mm256_blendv_pd(b.v, a.v, _mm256_cmp_pd(s.v, _mm256_setzero_pd(), _CMP_LT_OQ))};
}
// The estimate has 12 bits: one third-order step brings it to 24. There is no estimate in double.
WL_INLINE F ratio(F e, F w) {
  F y{_mm256_rsqrt_ps(w.v)};
  F d = fnma(mul(w, y), y, broadcast(1.0f));
  F r = mul(e, y);
  return fma(mul(r, d), fma(d, broadcast(0.375f), broadcast(0.5f)), r);
}
WL_INLINE D ratio(D e, D w) { return {_mm256_div_pd(e.v, _mm256_sqrt_pd(w.v))}; }
template <class T>
constexpr T ratio_scale() { return 1; }
WL_INLINE F reciprocal(F a) { return {_mm256_div_ps(_mm256_set1_ps(1), a.v)}; }
WL_INLINE D reciprocal(D a) { return {_mm256_div_pd(_mm256_set1_pd(1), a.v)}; }
WL_INLINE F root(F a) { return {_mm256_sqrt_ps(a.v)}; }
WL_INLINE D root(D a) { return {_mm256_sqrt_pd(a.v)}; }
// p times 2 to the integer in the lowest bits of n
WL_INLINE F times_power(F p, F n) {
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p.v), _mm256_slli_epi32(_mm256_castps_si256(n.v), 23)))};
}
WL_INLINE D times_power(D p, D n) {
  return {_mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(p.v), _mm256_slli_epi64(_mm256_castpd_si256(n.v), 52)))};
}

#else

template <>
struct Vec<float> {
  static constexpr int lanes = 4;
  __m128 v;
};
template <>
struct Vec<double> {
  static constexpr int lanes = 2;
  __m128d v;
};
using F = Vec<float>;
using D = Vec<double>;
WL_INLINE F load(const float* p) { return {_mm_load_ps(p)}; }
WL_INLINE D load(const double* p) { return {_mm_load_pd(p)}; }
WL_INLINE F broadcast(float s) { return {_mm_set1_ps(s)}; }
WL_INLINE D broadcast(double s) { return {_mm_set1_pd(s)}; }
WL_INLINE void store(float* p, F a) { _mm_store_ps(p, a.v); }
WL_INLINE void store(double* p, D a) { _mm_store_pd(p, a.v); }
WL_INLINE F load_unaligned(const float* p) { return {_mm_loadu_ps(p)}; }
WL_INLINE D load_unaligned(const double* p) { return {_mm_loadu_pd(p)}; }
WL_INLINE F zip_low(F a, F b) { return {_mm_unpacklo_ps(a.v, b.v)}; }
WL_INLINE D zip_low(D a, D b) { return {_mm_unpacklo_pd(a.v, b.v)}; }
WL_INLINE F zip_high(F a, F b) { return {_mm_unpackhi_ps(a.v, b.v)}; }
WL_INLINE D zip_high(D a, D b) { return {_mm_unpackhi_pd(a.v, b.v)}; }
WL_INLINE F add(F a, F b) { return {_mm_add_ps(a.v, b.v)}; }
WL_INLINE D add(D a, D b) { return {_mm_add_pd(a.v, b.v)}; }
WL_INLINE F sub(F a, F b) { return {_mm_sub_ps(a.v, b.v)}; }
WL_INLINE D sub(D a, D b) { return {_mm_sub_pd(a.v, b.v)}; }
WL_INLINE F mul(F a, F b) { return {_mm_mul_ps(a.v, b.v)}; }
WL_INLINE D mul(D a, D b) { return {_mm_mul_pd(a.v, b.v)}; }
WL_INLINE F fma(F a, F b, F c) { return add(mul(a, b), c); }
WL_INLINE D fma(D a, D b, D c) { return add(mul(a, b), c); }
WL_INLINE F fnma(F a, F b, F c) { return sub(c, mul(a, b)); }
WL_INLINE D fnma(D a, D b, D c) { return sub(c, mul(a, b)); }
WL_INLINE F max(F a, F b) { return {_mm_max_ps(a.v, b.v)}; }
WL_INLINE F min(F a, F b) { return {_mm_min_ps(a.v, b.v)}; }
WL_INLINE D max(D a, D b) { return {_mm_max_pd(a.v, b.v)}; }
WL_INLINE D min(D a, D b) { return {_mm_min_pd(a.v, b.v)}; }
WL_INLINE F abs(F a) { return {_mm_andnot_ps(_mm_set1_ps(-0.0f), a.v)}; }
WL_INLINE D abs(D a) { return {_mm_andnot_pd(_mm_set1_pd(-0.0), a.v)}; }
WL_INLINE F where_negative(F s, F a, F b) {
  return {_mm_blendv_ps(b.v, a.v, _mm_cmplt_ps(s.v, _mm_setzero_ps()))};
}
WL_INLINE D where_negative(D s, D a, D b) {
  return {_mm_blendv_pd(b.v, a.v, _mm_cmplt_pd(s.v, _mm_setzero_pd()))};
}
WL_INLINE F ratio(F e, F w) { return {_mm_div_ps(e.v, _mm_sqrt_ps(w.v))}; }
WL_INLINE D ratio(D e, D w) { return {_mm_div_pd(e.v, _mm_sqrt_pd(w.v))}; }
template <class T>
constexpr T ratio_scale() { return 1; }
WL_INLINE F reciprocal(F a) { return {_mm_div_ps(_mm_set1_ps(1), a.v)}; }
WL_INLINE D reciprocal(D a) { return {_mm_div_pd(_mm_set1_pd(1), a.v)}; }
WL_INLINE F root(F a) { return {_mm_sqrt_ps(a.v)}; }
WL_INLINE D root(D a) { return {_mm_sqrt_pd(a.v)}; }
// p times 2 to the integer in the lowest bits of n
WL_INLINE F times_power(F p, F n) {
  return {_mm_castsi128_ps(_mm_add_epi32(_mm_castps_si128(p.v), _mm_slli_epi32(_mm_castps_si128(n.v), 23)))};
}
WL_INLINE D times_power(D p, D n) {
  return {_mm_castsi128_pd(_mm_add_epi64(_mm_castpd_si128(p.v), _mm_slli_epi64(_mm_castpd_si128(n.v), 52)))};
}

#endif

#if defined(WL_PLAIN) || !defined(__AVX512F__)
// s < 0 ? t g : c - t g
template <class T>
WL_INLINE Vec<T> product_or_rest(Vec<T> s, Vec<T> t, Vec<T> g, Vec<T> c) {
  return where_negative(s, mul(t, g), fnma(t, g, c));
}
#endif

// The square of L numbers a side, transposed: shuffled together, the halves of the list become neighbours, and that
// log2(L) times takes number l of vector i to number i of vector l.
template <class T>
WL_INLINE void transpose(Vec<T> (&a)[Vec<T>::lanes]) {
  constexpr int L = Vec<T>::lanes;
#pragma GCC unroll 4
  for (int n = 1; n < L; n *= 2) {
    Vec<T> b[L];
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; ++i) {
      b[2 * i] = zip_low(a[i], a[i + L / 2]);
      b[2 * i + 1] = zip_high(a[i], a[i + L / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) a[i] = b[i];
  }
}

}  // namespace
