// Loops that show what a processor can do at most, for the instruction set this translation unit is compiled for.
// Timed by microbench.hpp. No standard header with inline code: see core.hpp.
#pragma once
#include <cstdint>

#include "simd.hpp"

namespace {

// Chains that run side by side: two units that take up to five cycles for an operation need at least ten. They
// and their two constants must stay in registers: 32 with AVX-512 and on ARM, 16 otherwise.
#if (defined(__AVX512F__) && !defined(WL_PLAIN)) || defined(__aarch64__)
constexpr int kChains = 24;
#else
constexpr int kChains = 12;
#endif
constexpr int kPeakOperations = kChains;  // vector operations of one turn of `fma_loop` and of `mixed_loop`

// Chains, and in plain C++ lanes, that start alike would be merged by the compiler: all start differently. The
// fixed point of x -> 3/4 x + 1/4 keeps every number near 1, where arithmetic runs at full speed.
template <class T>
WL_INLINE void start_chains(Vec<T> (&a)[kChains]) {
  constexpr int L = Vec<T>::lanes;
  alignas(64) T first[kChains * L];
  for (int i = 0; i < kChains * L; ++i) first[i] = T(1) + T(i) / T(1024);
#pragma GCC unroll 32
  for (int i = 0; i < kChains; ++i) a[i] = load(first + i * L);
}

template <class T>
WL_INLINE double sum_chains(const Vec<T> (&a)[kChains]) {
  Vec<T> s = a[0];
#pragma GCC unroll 32
  for (int i = 1; i < kChains; ++i) s = add(s, a[i]);
  alignas(64) T lanes[Vec<T>::lanes];
  store(lanes, s);
  return double(lanes[0]);
}

// n turns of kChains independent fused multiply-adds. The result keeps them from being optimised away.
template <class T>
double fma_loop(int64_t n) {
  Vec<T> a[kChains];
  start_chains(a);
  const Vec<T> factor = broadcast(T(0.75)), term = broadcast(T(0.25));
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (int k = 0; k < kChains; ++k) a[k] = fma(a[k], factor, term);
  }
  return sum_chains(a);
}

// n turns of kChains independent operations, two fused multiply-adds to one addition: about the mixture of the
// slice engine. Processors with units that only add do more of these a second than of fused multiply-adds.
template <class T>
double mixed_loop(int64_t n) {
  Vec<T> a[kChains];
  start_chains(a);
  const Vec<T> factor = broadcast(T(0.75)), term = broadcast(T(0.25));
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (int k = 0; k < kChains; ++k) a[k] = k % 3 == 2 ? add(a[k], term) : fma(a[k], factor, term);
  }
  return sum_chains(a);
}

// Sum of n numbers, n a multiple of eight vectors, p aligned: how fast memory is read.
template <class T>
double read_loop(const T* p, int64_t n) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> a[8];
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) a[k] = broadcast(T(0));
  for (int64_t i = 0; i < n; i += 8 * L) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) a[k] = add(a[k], load(p + i + k * L));
  }
  Vec<T> s = a[0];
#pragma GCC unroll 8
  for (int k = 1; k < 8; ++k) s = add(s, a[k]);
  alignas(64) T lanes[L];
  store(lanes, s);
  return double(lanes[0]);
}

}  // namespace
