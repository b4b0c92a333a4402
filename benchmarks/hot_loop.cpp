// The rows of a layer by themselves, of several widths, everything in L1: cycles per vector of element-layers, for the
// inner layer and for a first one, where sigma may be negative. In processor time: what else runs does not count.
//
//   g++ -O3 -std=c++17 -fno-math-errno -fno-trapping-math -ffp-contract=off -march=x86-64-v4
//       -mprefer-vector-width=512 -DWL_ISA=v4 -Isrc/widelimit/_core benchmarks/hot_loop.cpp -o hot_loop
//   taskset -c 1 ./hot_loop
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <initializer_list>

#include "kernels.cpp"

using namespace widelimit;

template <class Body>
double seconds(const Body& body) {
  const auto now = [] {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
  };
  const double start = now();
  body();
  return now() - start;
}

// Cycles per second, from chains of dependent multiplications: three cycles each on every processor of today. (Some
// add constants without executing anything.)
double clock_rate() {
  double best = 0;
  for (int sample = 0; sample < 20; ++sample) {
    unsigned long x = 1;
    const long n = 700000;
    const double t = seconds([&] {
      for (long i = 0; i < n; ++i) asm volatile("imul %0, %0\n\timul %0, %0\n\timul %0, %0\n\timul %0, %0" : "+r"(x));
    });
    if (12 * n / t > best) best = 12 * n / t;
  }
  return best;
}

template <class T>
void measure(const char* name, Activation activation, int flags, double hertz) {
  constexpr int L = Vec<T>::lanes, widest = 32;
  const long row = (widest + 1) * 2 * L;
  T* memory = static_cast<T*>(std::aligned_alloc(64, size_t(16 * row) * sizeof(T)));
  for (long i = 0; i < 16 * row; ++i) {
    const double fraction = double((i * 7919) % 1000) / 1000;
    memory[i] = T(i < 6 * row ? 0.5 + 0.4 * fraction : 2.6 + 0.4 * fraction);  // fields; profiles: lambda in (0.5, 1)
  }
  auto* constants = static_cast<Constants<T>*>(std::aligned_alloc(64, (sizeof(Constants<T>) + 63) / 64 * 64));
  Level level{};
  level.activation = activation;
  level.out_scale = 0.125;
  level.unit = level.parameters[0] = 1;
  set_constants(*constants, level);
  for (int width : {1, 2, 4, 8, 16, 24, 32}) {
    Rows<T> a{};
    for (int i = 0; i < 4; ++i) a.in[i] = memory + i * row;
    for (int i = 0; i < 2; ++i) {
      a.out[i] = memory + (4 + i) * row;
      a.x[i] = memory + 6 * row + i * widest;
      a.z[i] = memory + (7 + i) * row;
    }
    a.k = constants;
    a.width = width;
    a.flags = flags;
    const RowsFunction<T> compute = choose_rows_function<T, true, false>(activation, flags, 2);
    const int calls = 20000;
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
  constexpr int first = kSigned | kTrain | kOutK | kOutTheta;
  measure<float>("float32, inner layer", Activation::kRelu, kInner, hertz);
  measure<float>("float32, first layer", Activation::kRelu, first, hertz);
  measure<float>("float32, last layer", Activation::kRelu, kInner | kSum, hertz);
  measure<float>("float32, Gaussian", Activation::kGaussian, kInner, hertz);
  measure<double>("float64, inner layer", Activation::kRelu, kInner, hertz);
  measure<double>("float64, first layer", Activation::kRelu, first, hertz);
  measure<double>("float64, Gaussian", Activation::kGaussian, kInner, hertz);
}
