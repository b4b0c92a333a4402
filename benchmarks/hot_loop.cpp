// The inner kernel by itself, rows of several widths, everything in L1: cycles per vector of element-layers.
//
//   g++ -O3 -std=c++17 -fno-math-errno -fno-trapping-math -ffp-contract=off -march=x86-64-v4
//       -mprefer-vector-width=512 -DWL_ISA=v4 -Isrc/widelimit/_core benchmarks/hot_loop.cpp -o hot_loop
//   taskset -c 1 ./hot_loop
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "kernels.cpp"

using namespace widelimit;

template <class Body>
double seconds(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Cycles per second, from chains of dependent additions: one cycle each on every processor of today.
double clock_rate() {
  double best = 0;
  for (int sample = 0; sample < 20; ++sample) {
    unsigned long x = 1;
    const long n = 2000000;
    const double t = seconds([&] {
      for (long i = 0; i < n; ++i) asm volatile("add $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0" : "+r"(x));
    });
    if (4 * n / t > best) best = 4 * n / t;
  }
  return best;
}

template <class T>
void measure(const char* name, double hertz) {
  constexpr int L = Vec<T>::lanes, widest = 32;
  constexpr int inner = kRelu | kThetaOwn | kTrain | kOutK | kOutTheta;
  const long row = (widest + 1) * 2 * L;
  T* memory = static_cast<T*>(std::aligned_alloc(64, size_t(16 * row) * sizeof(T)));
  for (long i = 0; i < 16 * row; ++i) memory[i] = T(0.5 + 0.4 * double((i * 7919) % 1000) / 1000.0);
  auto* constants = static_cast<Constants<T>*>(std::aligned_alloc(64, (sizeof(Constants<T>) + 63) / 64 * 64));
  set_constants(*constants, 0.125);
  for (int width : {1, 2, 4, 8, 16, 24, 32}) {
    Rows<T> a;
    for (int i = 0; i < 4; ++i) a.in[i] = memory + i * row;
    for (int i = 0; i < 2; ++i) {
      a.out[i] = memory + (4 + i) * row;
      a.x[i] = memory + 6 * row + i * widest;
      a.z[i] = memory + (7 + i) * row;
    }
    a.k = constants;
    a.width = width;
    a.flags = inner;
    const RowsFunction<T> compute = choose_rows_function<T, true, false>(inner, 2);
    const int calls = 100000;
    double best = 1e9;
    for (int sample = 0; sample < 9; ++sample) {
      const double t = seconds([&] {
        for (int i = 0; i < calls; ++i) compute(a);
      });
      if (t < best) best = t;
    }
    const double vectors = 2.0 * width * calls;
    std::printf("%s, width %2d: %5.1f cycles a vector, %.2fe9 element-layers/s\n", name, width, best / vectors * hertz,
                vectors * L / best / 1e9);
  }
  std::free(memory);
  std::free(constants);
}

int main() {
  const double hertz = clock_rate();
  std::printf("clock %.2f GHz\n", hertz / 1e9);
  measure<float>("float32", hertz);
  measure<double>("float64", hertz);
}
