// Python's view of the compiled core: programs, profiles, and calls that release the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "core.hpp"
#include "microbench.hpp"
#include "profile.hpp"

namespace nb = nanobind;
using namespace widelimit;

namespace widelimit {
#ifdef WL_HAVE_V4
extern const Functions functions_v4;
#endif
#ifdef WL_HAVE_V3
extern const Functions functions_v3;
#endif
#ifdef WL_HAVE_V2
extern const Functions functions_v2;
#endif
#ifdef WL_HAVE_PLAIN
extern const Functions functions_plain;
#endif
}  // namespace widelimit

namespace {

struct InstructionSet {
  const char* name;
  const Functions* functions;
  bool (*supported)();
};

// Best first. What each may use is what -march of its name allows (x86-64 psABI levels).
const InstructionSet kInstructionSets[] = {
#ifdef WL_HAVE_V4
    {"avx512", &functions_v4,
     [] {
       return bool(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"));
     }},
#endif
#ifdef WL_HAVE_V3
    {"avx2", &functions_v3,
     [] {
       return bool(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"));
     }},
#endif
#ifdef WL_HAVE_V2
    {"sse4", &functions_v2, [] { return bool(__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")); }},
#endif
#ifdef WL_HAVE_PLAIN
    {"plain", &functions_plain, [] { return true; }},
#endif
};

const Functions& functions_of(const std::string& name) {
  for (const InstructionSet& set : kInstructionSets)
    if (name == set.name) {
      if (!set.supported()) throw std::invalid_argument("this processor has no " + name);
      return *set.functions;
    }
  throw std::invalid_argument("no instruction set named " + name + " in this build");
}

using Doubles = nb::ndarray<const double, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A Program with the memory that it points to.
struct OwnedProgram {
  Program program;
  std::vector<Step> steps;
  std::vector<Tap> taps;
  std::vector<Slice> slices;
  std::vector<std::vector<double>> tables;
};

// (filter_size, relu, is_signed, trainable, theta_in, k_out, theta_out, biased, out_scale)
using StepTuple = std::tuple<int, bool, bool, bool, bool, bool, bool, bool, double>;
// (layer, want_k, want_theta, row_weights, column_weights)
using TapTuple = std::tuple<int, bool, bool, Doubles, Doubles>;

// `slices`: (n, 3), rows (di, dj, depth) as in core.hpp.
void make_program(OwnedProgram* self, int h, int w, int c, double in_scale, const std::vector<StepTuple>& steps,
                  const std::vector<TapTuple>& taps, nb::ndarray<const int32_t, nb::shape<-1, 3>, nb::c_contig> slices) {
  OwnedProgram p;
  for (const auto& s : steps)
    p.steps.push_back({std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s), std::get<4>(s), std::get<5>(s),
                       std::get<6>(s), std::get<7>(s), std::get<8>(s)});
  p.tables.reserve(taps.size() * 2);
  for (const auto& t : taps) {
    const Doubles &rows = std::get<3>(t), &columns = std::get<4>(t);
    if (rows.size() != size_t(2 * h - 1) * h || columns.size() != size_t(2 * w - 1) * w)
      throw std::invalid_argument("readout weights: expected tables of (2h-1, h) and (2w-1, w)");
    p.tables.emplace_back(rows.data(), rows.data() + rows.size());
    const double* r = p.tables.back().data();
    p.tables.emplace_back(columns.data(), columns.data() + columns.size());
    p.taps.push_back({std::get<0>(t), std::get<1>(t), std::get<2>(t), r, p.tables.back().data()});
  }
  for (size_t i = 0; i < slices.shape(0); ++i) {
    const Slice s{slices(i, 0), slices(i, 1), slices(i, 2)};
    const bool half = s.di > 0 || (s.di == 0 && s.dj >= 0);
    if (!half || s.di >= h || s.dj >= w || s.dj <= -w || s.depth < 0 || s.depth > int(steps.size()))
      throw std::invalid_argument("slices: expected displacements inside the image, one of each pair d, -d, and numbers of steps");
    p.slices.push_back(s);
  }
  p.program = {h, w, c, int32_t(steps.size()), int32_t(taps.size()), int32_t(p.slices.size()),
               p.steps.data(), p.taps.data(), p.slices.data(), in_scale};
  new (self) OwnedProgram(std::move(p));  // vectors that are moved keep their memory
}

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

template <class T>
struct BatchArrays {
  Array<const T> images, profiles, biases;
  Indices identity;
  Doubles diagonal;
  int64_t n;
  Program program;  // its numbers only: what the arrays were made for
  Batch<T> view() const { return {images.data(), profiles.data(), biases.data(), identity.data(), diagonal.data()}; }
  bool fits(const Program& p) const {
    return p.h == program.h && p.w == program.w && p.c == program.c && p.n_steps == program.n_steps &&
           p.n_taps == program.n_taps;
  }
};

template <class T>
void make_batch(BatchArrays<T>* self, const OwnedProgram& program, Array<const T> images, Array<const T> profiles,
                Array<const T> biases, Indices identity, Doubles diagonal) {
  const Program& p = program.program;
  const size_t n = identity.size(), s = size_t(p.n_steps), hw = size_t(p.h) * p.w;
  if (images.size() != n * hw * p.c || profiles.size() != n * s * hw || biases.size() != n * s ||
      diagonal.size() != n * p.n_taps * 2)
    throw std::invalid_argument("batch arrays do not fit the program");
  new (self) BatchArrays<T>{images, profiles, biases, identity, diagonal, int64_t(n), p};
}

// In whole pages of 2 MB: what a workspace takes.
size_t in_pages(size_t bytes) {
  const size_t page = size_t(2) << 20;
  return (bytes + page - 1) / page * page;
}

// Scratch memory, in 2 MB pages where the system has them.
struct Workspace {
  unsigned char* data = nullptr;
  size_t bytes = 0;
  void reserve(size_t n) {
    if (n <= bytes) return;
    std::free(data);
    data = nullptr;
    bytes = 0;
    data = static_cast<unsigned char*>(std::aligned_alloc(in_pages(1), in_pages(n)));
    if (!data) throw std::bad_alloc();
    bytes = in_pages(n);
#ifdef MADV_HUGEPAGE
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
  }
  ~Workspace() { std::free(data); }
};

void check_indices(const Indices& index, int64_t n) {
  for (size_t i = 0; i < index.size(); ++i)
    if (index.data()[i] < 0 || index.data()[i] >= n) throw std::out_of_range("image index outside the batch");
}

int64_t workspace_bytes(const Functions& f, const OwnedProgram& program, bool float32, bool pairwise) {
  return int64_t(in_pages(size_t((float32 ? f.workspace32 : f.workspace64)(program.program, pairwise))));
}

void call(const Functions& f, const Call<float>& c) { f.run32(c); }
void call(const Functions& f, const Call<double>& c) { f.run64(c); }

// out: (n_taps * 2, n_rows, n_columns), or (n_taps * 2, n) if pairwise; float64, C order
template <class T>
void run(const std::string& isa, const OwnedProgram& program, const BatchArrays<T>& x, const BatchArrays<T>& z, Indices rows,
         Indices columns, bool pairwise, Array<double> out, nb::ndarray<const int32_t, nb::c_contig> cancel) {
  const Functions& f = functions_of(isa);
  const Program& p = program.program;
  if (!x.fits(p) || !z.fits(p)) throw std::invalid_argument("the batches were made for another program");
  check_indices(rows, x.n);
  check_indices(columns, z.n);
  const int64_t n_rows = rows.size(), n_columns = columns.size();
  if (pairwise && n_rows != n_columns) throw std::invalid_argument("pairwise: as many rows as columns expected");
  if (int64_t(out.size()) != p.n_taps * 2 * (pairwise ? 1 : n_rows) * n_columns)
    throw std::invalid_argument("out: wrong size");
  if (cancel.size() != 1) throw std::invalid_argument("cancel: one int32 expected");
  const Batch<T> xv = x.view(), zv = z.view();
  nb::gil_scoped_release release;
  // One a thread, kept: fresh pages are zeroed by the system, which costs as much as a small tile.
  thread_local Workspace w;
  w.reserve(size_t(workspace_bytes(f, program, sizeof(T) == 4, pairwise)));
  call(f, Call<T>{&p, &xv, &zv, rows.data(), n_rows, columns.data(), n_columns, pairwise, out.data(), w.data, cancel.data()});
}

template <class T>
void profile(const OwnedProgram& program, nb::ndarray<const double, nb::ndim<4>, nb::c_contig> x, Doubles bias, Array<T> images,
             Array<T> profiles, Array<T> biases, Array<double> scale, Array<double> diagonal) {
  const Program& p = program.program;
  const size_t n = x.shape(0), hw = size_t(p.h) * p.w;
  if (x.size() != n * hw * p.c || images.size() != x.size() || profiles.size() != n * p.n_steps * hw ||
      biases.size() != n * p.n_steps || bias.size() != size_t(p.n_steps) || scale.size() != n ||
      diagonal.size() != n * p.n_taps * 2)
    throw std::invalid_argument("profile arrays do not fit the program");
  nb::gil_scoped_release release;
  make_profiles<T>(p, x.data(), int64_t(n), bias.data(), images.data(), profiles.data(), biases.data(), scale.data(),
                   diagonal.data());
}

}  // namespace

NB_MODULE(_engine, m) {
  // At exit nanobind lists objects that are still there, as faults of the binding. A model that a daemon thread, or a
  // global of some module, holds to the end is none; tests/test_bindings.py sees that batches let go of their arrays.
  nb::set_leak_warnings(false);
  m.doc() = "Compiled slice engine; see widelimit.backends.cpu for the interface people use.";
  nb::class_<OwnedProgram>(m, "Program")
      .def("__init__", &make_program, nb::arg("h"), nb::arg("w"), nb::arg("c"), nb::arg("in_scale"), nb::arg("steps"),
           nb::arg("taps"), nb::arg("slices"));
  nb::class_<BatchArrays<float>>(m, "Batch32").def("__init__", &make_batch<float>);
  nb::class_<BatchArrays<double>>(m, "Batch64").def("__init__", &make_batch<double>);
  m.def("run32", &run<float>);
  m.def("run64", &run<double>);
  m.def("profile32", &profile<float>);
  m.def("profile64", &profile<double>);
  m.def("instruction_sets", [] {
    std::vector<std::tuple<std::string, bool, int, int>> r;
    for (const InstructionSet& s : kInstructionSets)
      r.emplace_back(s.name, s.supported(), s.functions->lanes32, s.functions->lanes64);
    return r;
  }, "(name, supported by this processor, float32 lanes, float64 lanes), best first");
  // What the processor can do at most, for `widelimit bench`.
  m.def("fma_peak", [](const std::string& isa, double seconds) {
    nb::gil_scoped_release release;
    return fma_peak(functions_of(isa), seconds);
  }, "Floating-point operations per second of one core, float32 and float64");
  m.def("mixed_peak", [](const std::string& isa, double seconds) {
    nb::gil_scoped_release release;
    return mixed_peak(functions_of(isa), seconds);
  }, "Vector instructions per second of one core, two FMA to one addition");
  m.def("read_bandwidth", [](const std::string& isa, int64_t bytes, double seconds) {
    nb::gil_scoped_release release;
    return read_bandwidth(functions_of(isa), bytes, seconds);
  }, "Bytes per second that one core reads from a buffer of `bytes`");
  m.def("workspace_bytes", [](const std::string& isa, const OwnedProgram& program, bool float32, bool pairwise) {
    return workspace_bytes(functions_of(isa), program, float32, pairwise);
  });
}
