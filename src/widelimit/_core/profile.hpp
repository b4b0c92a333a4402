// Profiles: what one image contributes to every pair it takes part in, computed once, in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core.hpp"

namespace widelimit {

// out = box_q(in) on one (h, w) field, zero outside; scratch holds w + q numbers. Plain sums, no running difference:
// zeros stay zeros.
inline void box_filter(const double* in, double* out, double* scratch, int h, int w, int q) {
  const int r = q / 2;
  for (int j = 0; j < w + 2 * r; ++j) scratch[j] = 0;
  double* sums = scratch + r;  // of the q rows around row i; r zeros on either side
  for (int i = 0; i < h; ++i) {
    const int first = i - r < 0 ? 0 : i - r, last = i + r >= h ? h - 1 : i + r;
    for (int j = 0; j < w; ++j) sums[j] = in[first * w + j];
    for (int k = first + 1; k <= last; ++k)
      for (int j = 0; j < w; ++j) sums[j] += in[k * w + j];
    double* o = out + i * w;
    for (int j = 0; j < w; ++j) o[j] = scratch[j];
    for (int k = 1; k < q; ++k)
      for (int j = 0; j < w; ++j) o[j] += scratch[j + k];
  }
}

// The power of two at or below |v|, 1 for 0.
inline double power_of_two(double v) {
  if (v == 0) return 1;
  int e;
  std::frexp(v, &e);
  return std::ldexp(1.0, e - 1);
}

// The largest profile lies in [size, 2 size). Activations take the root of numbers as small as m^2 (kernels.cpp), m being
// a product of two profiles: in float, up to 2^116 of its 2^128 leaves as much room as can be for dark pixels, and the
// rest for sums over slices. In double there is room enough.
template <class T>
constexpr double profile_size() { return 1; }
template <>
constexpr double profile_size<float>() { return double(1 << 28); }

// For chains of layers (Program::closed). Each image is divided by a power of two, `scale`, so that its largest profile is as large as that: networks
// without bias are homogeneous, a bias is divided alike. The diagonal is the slice d = 0 of k(x, x), where lambda = 1.
template <class T>
void make_profiles(const Program& p, const double* x, int64_t n, const double* bias, T* images, T* profiles, T* biases,
                   double* scale, double* diagonal) {
  const int hw = p.h * p.w, n_steps = p.n_nodes;
  const Level* const steps = p.levels + 1;  // a chain: level 0 is the image
  std::vector<double> image(size_t(hw) * p.c), var(hw), theta(hw), boxed(hw), scratch(p.w), prof(size_t(n_steps) * hw),
      b(n_steps);
  bool want_theta = false;
  for (int t = 0; t < p.n_taps; ++t) want_theta = want_theta || p.taps[t].want_theta;
  for (int s = 0; s < n_steps; ++s) scratch.resize(std::max(scratch.size(), size_t(p.w + steps[s].rows)));
  for (int64_t i = 0; i < n; ++i, x += size_t(hw) * p.c) {
    double largest = 0;
    for (int k = 0; k < hw * p.c; ++k) largest = std::fabs(x[k]) > largest ? std::fabs(x[k]) : largest;
    for (int s = 0; s < n_steps; ++s) largest = std::fmax(largest, bias[s]);
    const double s0 = power_of_two(largest);
    largest = 0;
    double* diag = diagonal + i * p.n_taps * 2;
    auto read_out = [&](int layer) {
      for (int t = 0; t < p.n_taps; ++t) {
        const Tap& tap = p.taps[t];
        if (tap.level != layer) continue;
        const double *rw = tap.row_weights + int64_t(p.h - 1) * p.h, *cw = tap.column_weights + int64_t(p.w - 1) * p.w;
        double k = 0, th = 0;
        for (int r = 0; r < p.h; ++r)
          for (int c = 0; c < p.w; ++c) {
            k += rw[r] * cw[c] * var[r * p.w + c];
            th += rw[r] * cw[c] * theta[r * p.w + c];
          }
        diag[2 * t] = tap.want_k ? k : 0;
        diag[2 * t + 1] = tap.want_theta ? th : 0;
      }
    };
    for (int k = 0; k < hw; ++k) {
      double v = 0;
      for (int c = 0; c < p.c; ++c) {
        const double u = image[size_t(k) * p.c + c] = x[size_t(k) * p.c + c] / s0;
        v += u * u;
      }
      largest = v > largest ? v : largest;
      var[k] = p.levels[0].out_scale * v;
      theta[k] = 0;
    }
    read_out(0);
    for (int s = 0; s < n_steps; ++s) {
      const Level& step = steps[s];
      b[s] = bias[s] / s0;
      box_filter(var.data(), boxed.data(), scratch.data(), p.h, p.w, step.rows);
      const double b2 = b[s] * b[s];
      double* x_of_step = prof.data() + size_t(s) * hw;
      for (int k = 0; k < hw; ++k) {
        var[k] = boxed[k] + b2;
        x_of_step[k] = std::sqrt(var[k]);
      }
      for (int k = 0; k < hw; ++k) largest = var[k] > largest ? var[k] : largest;
      if (want_theta) {
        box_filter(theta.data(), boxed.data(), scratch.data(), p.h, p.w, step.rows);
        const double trained = step.trainable ? 1 : 0;
        for (int k = 0; k < hw; ++k) theta[k] = step.out_scale * (boxed[k] + trained * var[k]);
      }
      for (int k = 0; k < hw; ++k) var[k] *= step.out_scale;
      read_out(s + 1);
    }
    const double s1 = power_of_two(std::sqrt(largest)) / profile_size<T>();
    const double inverse = 1 / s1;  // exact
    scale[i] = s0 * s1;
    for (int k = 0; k < hw * p.c; ++k) images[size_t(i) * hw * p.c + k] = T(image[k] * inverse);
    for (int k = 0; k < n_steps * hw; ++k) profiles[size_t(i) * n_steps * hw + k] = T(prof[k] * inverse);
    for (int s = 0; s < n_steps; ++s) biases[i * n_steps + s] = T(b[s] * inverse);
    for (int t = 0; t < p.n_taps * 2; ++t) diag[t] *= inverse * inverse;
  }
}

}  // namespace widelimit
