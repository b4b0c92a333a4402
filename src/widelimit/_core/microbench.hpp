// What this processor can do at most: arithmetic and memory, timed with the loops of peak.hpp.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <tuple>

#include "core.hpp"

namespace widelimit {

// Turns per second of `loop(n)`, n turns a call: the best of samples of a millisecond or more. The best, because
// what is sought is a limit: interrupts and other processes only ever make a sample slower.
template <class Loop>
double best_rate(double seconds, const Loop& loop) {
  using Clock = std::chrono::steady_clock;
  const auto elapsed = [](Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); };
  volatile double sink = 0;
  int64_t turns = 1;
  double best = 0;
  for (const auto start = Clock::now(); elapsed(start) < seconds || best == 0;) {
    const auto sample = Clock::now();
    sink = sink + loop(turns);
    const double t = elapsed(sample);
    if (t < 1e-3)
      turns *= 2;
    else if (double(turns) / t > best)
      best = double(turns) / t;
  }
  return best;
}

// Floating-point operations per second of one core in float32 and float64; an FMA counts as two.
inline std::tuple<double, double> fma_peak(const Functions& f, double seconds) {
  const double operations = 2.0 * f.peak_operations;
  return {operations * f.lanes32 * best_rate(seconds / 2, f.fma32), operations * f.lanes64 * best_rate(seconds / 2, f.fma64)};
}

// Vector instructions per second of one core in float32 and float64, two FMA to one addition.
inline std::tuple<double, double> mixed_peak(const Functions& f, double seconds) {
  return {f.peak_operations * best_rate(seconds / 2, f.mixed32), f.peak_operations * best_rate(seconds / 2, f.mixed64)};
}

// Bytes per second that one core reads from a buffer of `bytes`, again and again: the level of the memory
// hierarchy that the buffer fits into.
inline double read_bandwidth(const Functions& f, int64_t bytes, double seconds) {
  constexpr int64_t block = 4096;  // a multiple of what one turn of `read_loop` takes, on every level
  const int64_t size = (bytes < block ? block : bytes) / block * block, n = size / int64_t(sizeof(float));
  std::unique_ptr<float, decltype(&std::free)> p(static_cast<float*>(std::aligned_alloc(size_t(block), size_t(size))), &std::free);
  if (!p) throw std::bad_alloc();
  for (int64_t i = 0; i < n; ++i) p.get()[i] = 1;  // every page exists before the clock starts
  return double(size) * best_rate(seconds, [&](int64_t turns) {
           double sum = 0;
           for (int64_t i = 0; i < turns; ++i) sum += f.read32(p.get(), n);
           return sum;
         });
}

}  // namespace widelimit
