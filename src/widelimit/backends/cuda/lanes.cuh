// The 32 lanes of a warp, as the slice kernels see them: on a card one number of a thread, in the host build of the
// same source all 32 in one vector. Control flow is the same in all lanes; what differs is chosen with `select`.
//
// `Scalar`, float or double, is defined by the generated source that includes this (source.py).
#pragma once

#if defined(__CUDACC__)
// ------------------------------------------------------------------------------------------------ a card
#define WL_FN __device__ __forceinline__
#define WL_TABLE static __device__ constexpr
#define WL_UNROLL _Pragma("unroll")
#define WL_KEEP _Pragma("unroll 1")
#define WL_TURNS _Pragma("unroll 3")  // rows of a filter of 3 by turns: none of them is moved
// The shuffle tells the compiler that all lanes have the same number, and so take the same branches.
#define WL_EACH_WARP(w) for (int w = __shfl_sync(0xffffffffu, int(threadIdx.x >> 5), 0), once_ = 1; once_; once_ = 0)
#define WL_BARRIER() __syncthreads()

using V = Scalar;
using I = int;
using B = bool;

WL_FN I lane_index() { return int(threadIdx.x & 31); }
WL_FN V shuffle_up(V v, int n) { return __shfl_up_sync(0xffffffffu, v, n); }
WL_FN V shuffle_down(V v, int n) { return __shfl_down_sync(0xffffffffu, v, n); }
WL_FN B some(B b) { return __any_sync(0xffffffffu, b); }
WL_FN V select(B b, V yes, V no) { return b ? yes : no; }
WL_FN I select(B b, I yes, I no) { return b ? yes : no; }
WL_FN V broadcast(Scalar s) { return s; }
WL_FN V gather(const Scalar* at, I index, B where) { return where ? at[index] : Scalar(0); }
WL_FN I gather(const int* at, I index, B where) { return where ? at[index] : 0; }
WL_FN void scatter(Scalar* at, I index, V v, B where) { if (where) at[index] = v; }

WL_FN float mad(float a, float b, float c) { return fmaf(a, b, c); }
WL_FN double mad(double a, double b, double c) { return ::fma(a, b, c); }
WL_FN float absolute(float v) { return fabsf(v); }
WL_FN double absolute(double v) { return fabs(v); }
WL_FN bool negative(Scalar v) { return v < 0; }
WL_FN float positive(float v) { return fmaxf(v, 0.f); }
WL_FN double positive(double v) { return fmax(v, 0.0); }

// 1 / sqrt(|v|). Taking the size costs nothing: it is a part of the instruction.
WL_FN float inverse_root(float v) {
  float r;
  asm("{.reg .f32 a; abs.f32 a, %1; rsqrt.approx.ftz.f32 %0, a;}" : "=f"(r) : "f"(v));
  return r;
}
WL_FN double inverse_root(double v) {
  double r;
  const double a = fabs(v);
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(a));
  const double h = ::fma(-a * r, r, 1.0);  // 1 - a r^2: the approximation has 20 digits in base 2, this step 60
  return ::fma(r * h, ::fma(0.375, h, 0.5), r);
}

// Each errs by a few last bits. Of float e^y = 2^(y log2 e): the product is exact in its two parts.
WL_FN float exponential(float y) {
  y = fmaxf(y, -120.f);
  const float t = y * 0x1.715476p+0f, rest = fmaf(y, 0x1.715476p+0f, -t) + y * 0x1.4ae0cp-26f;
  float p;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(t));
  return fmaf(p, rest * 0x1.62e43p-1f, p);
}
WL_FN double exponential(double y) { return ::exp(y); }
WL_FN float one_minus_exponential(float w) { return -::expm1f(-w); }
WL_FN double one_minus_exponential(double w) { return -::expm1(-w); }
WL_FN float reciprocal(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
WL_FN double reciprocal(double v) { return 1.0 / v; }
WL_FN float root(float v) {
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}
WL_FN double root(double v) { return ::sqrt(v); }

// What each thread of a block does, or each lane of a warp: i is a number of its own below n.
#define WL_EACH_THREAD(i, n) for (int i = threadIdx.x; i < (n); i += 32 * kWarps)
#define WL_EACH_LANE(i, n) for (int i = threadIdx.x & 31; i < (n); i += 32)

// A cell: as many rows of one column as are loaded at a time.
constexpr int kCell = 16 / int(sizeof(Scalar));
struct alignas(16) Cell { Scalar v[kCell]; };
WL_FN V part(const Cell& c, int i) { return c.v[i]; }

WL_FN B there_in_all(bool b) { return b; }

// Where the numbers of a sample lie, which may differ from lane to lane: in shared memory a number of 32 bits says it.
#if WL_STAGED || WL_TILED
extern __shared__ float4 wl_shared[];
struct P { int at; };
WL_FN const Scalar* address(P p) { return reinterpret_cast<const Scalar*>(wl_shared) + p.at; }
WL_FN P staged_sample(I i, int size) { return {i * size}; }
#else
struct P { const Scalar* at; };
typedef P Q;
WL_FN const Scalar* address(P p) { return p.at; }
#endif
WL_FN P choose(B b, P yes, P no) { return b ? yes : no; }
#if WL_STAGED
// Samples x and z into shared memory, by all threads of a block.
template <int Size, int Threads>
WL_FN void stage_samples(const Scalar* x, const Scalar* z) {
  constexpr int n = Size / kCell;
  float4* const to = wl_shared;
  for (int i = threadIdx.x; i < n; i += Threads) {
    to[i] = reinterpret_cast<const float4*>(x)[i];
    to[n + i] = reinterpret_cast<const float4*>(z)[i];
  }
  __syncthreads();
}
#else
#if WL_TILED
struct Q { const Scalar* at; };  // in the memory of the card
WL_FN V load(Q q, int offset) { return __ldg(q.at + offset); }
#endif
WL_FN Q sample_of(const Scalar* base, I index, int size) { return {base + (long long)index * size}; }
#endif
#if WL_TILED
// Size numbers of each of some samples, on their way into shared memory: all threads of a block send their part.
template <int Samples, int Size, int Threads, class From>
WL_FN void send(int to, From from) {
  constexpr int n = Size / kCell, threads = Threads / 32 > Samples ? Threads / 32 / Samples * 32 : 32;
  WL_KEEP for (int i = threadIdx.x / threads; i < Samples; i += Threads / threads) {
    const Cell* const source = reinterpret_cast<const Cell*>(from(i));
    Cell* const target = reinterpret_cast<Cell*>(wl_shared) + to / kCell + i * n;
    for (int at = threadIdx.x % threads; at < n; at += threads) {
#if __CUDA_ARCH__ >= 800
      const unsigned address = unsigned(__cvta_generic_to_shared(target + at));
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(source + at));
#else
      target[at] = source[at];
#endif
    }
  }
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;");
#endif
}
// All that was sent is there, for all warps; and no warp still reads what was sent before that.
WL_FN void arrived() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
  __syncthreads();
}
#endif
WL_FN P advance(P p, int n) { p.at += n; return p; }
#if WL_STAGED || WL_TILED
WL_FN Cell load_cell(P p, int offset) { return *reinterpret_cast<const Cell*>(address(p) + offset); }
WL_FN V load(P p, int offset) { return address(p)[offset]; }
#else
WL_FN Cell load_cell(P p, int offset) {  // __ldg: memory of the card, which nobody writes
#if WL_SINGLE
  const float4 v = __ldg(reinterpret_cast<const float4*>(p.at + offset));
  return {{v.x, v.y, v.z, v.w}};
#else
  const double2 v = __ldg(reinterpret_cast<const double2*>(p.at + offset));
  return {{v.x, v.y}};
#endif
}
WL_FN V load(P p, int offset) { return __ldg(p.at + offset); }
#endif
WL_FN V load_or_zero(P p, I offset, B where) { return where ? address(p)[offset] : Scalar(0); }

#else
// ------------------------------------------------------------------------------------------------ the host
#include <cmath>
#if defined(__OPTIMIZE__)
#define WL_FN inline __attribute__((always_inline))
#else
#define WL_FN inline
#endif
#define WL_TABLE static constexpr
#define WL_UNROLL _Pragma("GCC unroll 128")
#define WL_KEEP
#define WL_TURNS
#define WL_EACH_WARP(w) for (int w = 0; w < kWarps; ++w)
#define WL_BARRIER()

typedef Scalar V __attribute__((vector_size(32 * sizeof(Scalar))));
typedef int I __attribute__((vector_size(32 * sizeof(int))));
typedef I B;  // 0 or -1

WL_FN I lane_index() { I r; for (int l = 0; l < 32; ++l) r[l] = l; return r; }
// As on a card, a lane without a neighbour keeps its own value.
WL_FN V shuffle_up(V v, int n) { V r; for (int l = 0; l < 32; ++l) r[l] = l >= n ? v[l - n] : v[l]; return r; }
WL_FN V shuffle_down(V v, int n) { V r; for (int l = 0; l < 32; ++l) r[l] = l + n < 32 ? v[l + n] : v[l]; return r; }
inline bool some(B b) { for (int l = 0; l < 32; ++l) if (b[l]) return true; return false; }
WL_FN V select(B b, V yes, V no) { V r; for (int l = 0; l < 32; ++l) r[l] = b[l] ? yes[l] : no[l]; return r; }
WL_FN I select(B b, I yes, I no) { return b ? yes : no; }
WL_FN V broadcast(Scalar s) { return V{} + s; }
WL_FN V gather(const Scalar* at, I index, B where) { V r; for (int l = 0; l < 32; ++l) r[l] = where[l] ? at[index[l]] : Scalar(0); return r; }
WL_FN I gather(const int* at, I index, B where) { I r; for (int l = 0; l < 32; ++l) r[l] = where[l] ? at[index[l]] : 0; return r; }
WL_FN void scatter(Scalar* at, I index, V v, B where) { for (int l = 0; l < 32; ++l) if (where[l]) at[index[l]] = v[l]; }

WL_FN V mad(V a, V b, V c) { return a * b + c; }
WL_FN V absolute(V v) { V r; for (int l = 0; l < 32; ++l) r[l] = std::fabs(v[l]); return r; }
WL_FN B negative(V v) { B r; for (int l = 0; l < 32; ++l) r[l] = v[l] < 0 ? -1 : 0; return r; }
WL_FN V positive(V v) { V r; for (int l = 0; l < 32; ++l) r[l] = v[l] > 0 ? v[l] : Scalar(0); return r; }
WL_FN V inverse_root(V v) { V r; for (int l = 0; l < 32; ++l) r[l] = 1 / std::sqrt(std::fabs(v[l])); return r; }

WL_FN V exponential(V v) { V r; for (int l = 0; l < 32; ++l) r[l] = std::exp(v[l]); return r; }
WL_FN V one_minus_exponential(V v) { V r; for (int l = 0; l < 32; ++l) r[l] = -std::expm1(-v[l]); return r; }
WL_FN V reciprocal(V v) { return 1 / v; }
WL_FN V root(V v) { V r; for (int l = 0; l < 32; ++l) r[l] = std::sqrt(v[l]); return r; }

#define WL_EACH_THREAD(i, n) for (int i = 0; i < (n); ++i)
#define WL_EACH_LANE(i, n) for (int i = 0; i < (n); ++i)

constexpr int kCell = 16 / int(sizeof(Scalar));
struct Cell { V v[kCell]; };
WL_FN V part(const Cell& c, int i) { return c.v[i]; }

WL_FN B there_in_all(bool b) { return B{} - int(b); }

struct P { const Scalar* at[32]; };
typedef P Q;
inline P sample_of(const Scalar* base, I index, int size) { P r; for (int l = 0; l < 32; ++l) r.at[l] = base + (long long)index[l] * size; return r; }
#if WL_STAGED || WL_TILED
static Scalar wl_shared[2 * (WL_STAGED + WL_TILED)];
inline P staged_sample(I i, int size) { return sample_of(wl_shared, i, size); }
#endif
#if WL_TILED  // warps run one after the other: each sends all
template <int Samples, int Size, int, class From>
inline void send(int to, From from) {
  for (int i = 0; i < Samples; ++i)
    for (int at = 0; at < Size; ++at) wl_shared[to + i * Size + at] = from(i)[at];
}
inline void arrived() {}
#endif
#if WL_STAGED
template <int Size, int>
inline void stage_samples(const Scalar* x, const Scalar* z) {
  for (int i = 0; i < Size; ++i) wl_shared[i] = x[i], wl_shared[Size + i] = z[i];
}
#endif
WL_FN P choose(B b, const P& yes, const P& no) { P r; for (int l = 0; l < 32; ++l) r.at[l] = b[l] ? yes.at[l] : no.at[l]; return r; }
WL_FN P advance(const P& p, I n) { P r; for (int l = 0; l < 32; ++l) r.at[l] = p.at[l] + n[l]; return r; }
WL_FN P advance(const P& p, int n) { P r; for (int l = 0; l < 32; ++l) r.at[l] = p.at[l] + n; return r; }
WL_FN Cell load_cell(const P& p, int offset) { Cell c; for (int i = 0; i < kCell; ++i) for (int l = 0; l < 32; ++l) c.v[i][l] = p.at[l][offset + i]; return c; }
WL_FN V load(const P& p, int offset) { V r; for (int l = 0; l < 32; ++l) r[l] = p.at[l][offset]; return r; }
WL_FN V load_or_zero(const P& p, I offset, B where) { V r; for (int l = 0; l < 32; ++l) r[l] = where[l] ? p.at[l][offset[l]] : Scalar(0); return r; }
#endif
