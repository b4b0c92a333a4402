// The data that crosses from the bindings to the instruction-set specific kernels: plain structs only.
//
// kernels.cpp is compiled once per instruction set. It includes no standard header that emits inline
// code: a template compiled for AVX-512 must never be the copy the linker keeps for an older machine.
#pragma once
#include <cstdint>

namespace widelimit {

enum class Kind : int32_t {
  kImage,   // the covariance of the inputs
  kGather,  // windows of the slices of another stage
  kNode,    // a convolution and the activation after it
};

// Numbers and parameters as in widelimit.backends.lowered.
enum class Activation : int32_t { kIdentity, kRelu, kAbRelu, kGaussian, kErf, kGelu, kSin, kCos, kNorm, kPolynomial };

constexpr int kParameters = 2;

// Entries of a fine slice that an entry R of a coarse one sums, along one axis: `count` from first + stride R on
// (widelimit.lattice).
struct Run {
  int32_t coarse, first, count;
};

// Along one axis: the runs of fine displacement d are runs[start[d + extent - 1]] to, not including, the next start.
struct Runs {
  const Run* runs;
  const int32_t* start;
  int32_t extent, stride;  // of the fine grid, of the window
};

// Fields on one grid. A level reads others of its stage that come before it; kGather reads one of the parent stage.
struct Level {
  Kind kind;
  int32_t h, w;
  int32_t source;  // kNode: box filter of this level; kGather: a level of the parent stage
  // kNode (docs/mathematics.md, "The network's kernels (general form)")
  int32_t skip;                // a level that is added, times skip_scale; -1: none
  int32_t rows, columns;       // of the filter
  int32_t top, left;           // zeros before the first row and column
  Activation activation;
  int32_t is_signed;           // sigma may be negative
  int32_t trainable;           // Theta' gains box(K) + bias
  int32_t theta_in, theta_skip;  // a tangent kernel that is not identically zero enters, or is added
  int32_t k_out, theta_out;    // needed of this level
  int32_t biased;              // b_std != 0
  double out_scale;            // of K and Theta as they are stored; kImage: of the covariance
  double skip_scale;
  double unit;                 // true sigma = unit * sigma, for activations that are not homogeneous
  double parameters[kParameters];
  const double* table;         // of a polynomial: see Polynomial in activation.hpp
  int32_t operands;            // numbers of a pixel in the profile of an image: X, and what the activation makes of it
  int32_t number;              // among the nodes: of its bias
  int64_t profile;             // where its operands begin in the profile of an image: [operands][h][w]
  // kGather
  Runs down, across;
  int32_t fields;  // 2: Theta, too
  int64_t room;    // entries of the memory where its slices gather
  // Along the slice all levels of a stage are swept together, two rows at a time; made by the bindings.
  int32_t lag;         // pairs of rows behind the input
  int32_t ring_pairs;  // pairs of rows that others still read
};

// A readout: sum over slices and pixels of row_weight * column_weight * field of `level`.
struct Tap {
  int32_t level;
  int32_t want_k, want_theta;
  const double* row_weights;    // [2h-1][h] of its grid: displacement di + h-1, row of the slice
  const double* column_weights; // [2w-1][w]
};

// The slice of displacement d = (di, dj).
struct Slice {
  int32_t di, dj;
  int32_t variant;  // which levels it goes through
  int32_t needs;    // slices of the parent stage that must be done before
  int64_t slot;     // first entry of the memory where it gathers; those of -d follow
  int32_t strip;    // in which strip of its stage it is
  int32_t adds_to;  // the only strip of the next stage to which it adds
  int32_t first;    // it has not gone by before: readouts count it once
};

// Levels that a slice goes through, in order of their lags, and whether another of them reads each.
struct Variant {
  const int32_t* levels;
  const int32_t* consumed;
  int32_t n;
};

// Levels of one grid, swept together.
struct Stage {
  int32_t parent;  // the stage from which it gathers; -1: it begins with the image
  int32_t first, stop;  // its levels
  int32_t n_slices, n_variants;
  const Slice* slices;  // one of each pair d, -d: weights are even in d
  const Variant* variants;
  const int32_t* place;  // [h][2w-1] of the grid that it gathers on: which slice (di, dj) is, or -1
  int32_t h, w;          // that grid, the largest of them
};

// widelimit.program.Program, as far as the slices go.
struct Program {
  int32_t h, w, c;  // of images
  int32_t n_levels, n_nodes, n_stages, n_taps;
  int64_t n_profile;  // numbers in the profile of an image
  const Level* levels;
  const Stage* stages;  // a parent comes before its children
  const Tap* taps;
  int32_t closed;  // the slice d = 0 of identical images is known in closed form: Batch::diagonal
};

// Images and profiles of a batch; T is float or double.
template <class T>
struct Batch {
  const T* images;         // [n][h][w][c]
  const T* profiles;       // [n][n_profile]: operands of each node
  const T* biases;         // [n][n_nodes]
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
  T* profiles;  // not null: of pairs of images with themselves, operands are computed and put here, [n_columns][n_profile]
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
