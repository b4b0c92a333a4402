// The data that crosses from the bindings to the instruction-set specific kernels: plain structs only.
//
// kernels.cpp is compiled once per instruction set. It includes no standard header that emits inline
// code: a template compiled for AVX-512 must never be the copy the linker keeps for an older machine.
#pragma once
#include <cstdint>

namespace widelimit {

// One convolution and, if `relu`, the activation after it, on a slice
// (docs/mathematics.md, "The network's kernels (general form)").
struct Step {
  int32_t filter_size;  // odd
  int32_t relu;         // 1: activation follows; 0: linear layer
  int32_t is_signed;    // sigma may be negative here (no activation before this one)
  int32_t trainable;    // Theta' gains box(K) + bias
  int32_t theta_in;     // a tangent kernel that is not identically zero enters
  int32_t k_out;        // covariance needed after this step
  int32_t theta_out;    // tangent kernel needed after this step
  int32_t biased;       // b_std != 0
  double out_scale;     // 1/q^2 of the step that follows, 1 after the last one
};

// A readout: sum over slices and pixels of row_weight * column_weight * field after step `layer`.
struct Tap {
  int32_t layer;                // 0: the input covariance
  int32_t want_k, want_theta;
  const double* row_weights;    // [2h-1][h]: displacement di + h-1, row of the slice
  const double* column_weights; // [2w-1][w]
};

// The slice of displacement d = (di, dj), and how many steps it goes through: to the deepest readout that weighs it.
struct Slice {
  int32_t di, dj, depth;
};

// widelimit.program.Program, as far as the slices go.
struct Program {
  int32_t h, w, c;
  int32_t n_steps, n_taps, n_slices;
  const Step* steps;
  const Tap* taps;
  const Slice* slices;  // one of each pair d, -d: weights are even in d
  double in_scale;      // 1/q^2 of the first step, 1 if there is none
};

// Images and profiles of a batch; T is float or double.
template <class T>
struct Batch {
  const T* images;         // [n][h][w][c]
  const T* profiles;       // [n][n_steps][h][w]: X of each activation
  const T* biases;         // [n][n_steps]
  const int64_t* identity; // [n]: equal numbers mean identical images
  const double* diagonal;  // [n][n_taps][2]: contribution of the slice d = 0 to k(x, x)
};

// What one call computes: the sums of every row against every column, or, if `pairwise`, of rows[i] against columns[i].
template <class T>
struct Call {
  const Program* program;
  const Batch<T>* x;  // of the rows
  const Batch<T>* z;  // of the columns
  const int64_t* rows;
  int64_t n_rows;
  const int64_t* columns;
  int64_t n_columns;
  bool pairwise;
  double* out;  // [n_taps][2][n_rows][n_columns]; [n_taps][2][n_columns] if pairwise
  unsigned char* workspace;
  const int32_t* cancel;  // non-zero: return early
};

// What kernels.cpp offers, compiled for one instruction set.
struct Functions {
  int32_t lanes32, lanes64;
  int64_t (*workspace32)(const Program&, bool pairwise);
  int64_t (*workspace64)(const Program&, bool pairwise);
  void (*run32)(const Call<float>&);
  void (*run64)(const Call<double>&);
  // Loops for micro-benchmarks (peak.hpp).
  int32_t peak_operations;
  double (*fma32)(int64_t);
  double (*fma64)(int64_t);
  double (*mixed32)(int64_t);
  double (*mixed64)(int64_t);
  double (*read32)(const float*, int64_t);
};

}  // namespace widelimit
