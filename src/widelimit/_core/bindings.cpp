// Python's view of the compiled core: plans, profiles, and jobs that release the GIL.
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
extern const Backend backend_v4;
#endif
#ifdef WL_HAVE_V3
extern const Backend backend_v3;
#endif
#ifdef WL_HAVE_V2
extern const Backend backend_v2;
#endif
#ifdef WL_HAVE_PLAIN
extern const Backend backend_plain;
#endif
}  // namespace widelimit

namespace {

struct Level {
  const char* name;
  const Backend* backend;
  bool (*supported)();
};

// Best first. What each level may use is what -march of its name allows (x86-64 psABI levels).
const Level kLevels[] = {
#ifdef WL_HAVE_V4
    {"avx512", &backend_v4,
     [] {
       return bool(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"));
     }},
#endif
#ifdef WL_HAVE_V3
    {"avx2", &backend_v3,
     [] {
       return bool(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"));
     }},
#endif
#ifdef WL_HAVE_V2
    {"sse4", &backend_v2, [] { return bool(__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt")); }},
#endif
#ifdef WL_HAVE_PLAIN
    {"plain", &backend_plain, [] { return true; }},
#endif
};

const Level& level(const std::string& name) {
  for (const Level& l : kLevels)
    if (name == l.name) {
      if (!l.supported()) throw std::invalid_argument("this processor has no " + name);
      return l;
    }
  throw std::invalid_argument("no instruction set named " + name + " in this build");
}

using Doubles = nb::ndarray<const double, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct OwnedPlan {
  Plan plan;
  std::vector<Step> steps;
  std::vector<Tap> taps;
  std::vector<std::vector<double>> tables;
};

// (filter_size, relu, is_signed, trainable, theta_in, k_out, theta_out, biased, out_scale)
using StepTuple = std::tuple<int, bool, bool, bool, bool, bool, bool, bool, double>;
// (layer, want_k, want_theta, row_weights, column_weights)
using TapTuple = std::tuple<int, bool, bool, Doubles, Doubles>;

void make_plan(OwnedPlan* self, int h, int w, int c, double in_scale, const std::vector<StepTuple>& steps,
               const std::vector<TapTuple>& taps) {
  new (self) OwnedPlan();
  for (const auto& s : steps)
    self->steps.push_back({std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s), std::get<4>(s), std::get<5>(s),
                           std::get<6>(s), std::get<7>(s), std::get<8>(s)});
  self->tables.reserve(taps.size() * 2);
  for (const auto& t : taps) {
    const Doubles &rows = std::get<3>(t), &columns = std::get<4>(t);
    if (rows.size() != size_t(2 * h - 1) * h || columns.size() != size_t(2 * w - 1) * w)
      throw std::invalid_argument("readout weights: expected tables of (2h-1, h) and (2w-1, w)");
    self->tables.emplace_back(rows.data(), rows.data() + rows.size());
    const double* r = self->tables.back().data();
    self->tables.emplace_back(columns.data(), columns.data() + columns.size());
    self->taps.push_back({std::get<0>(t), std::get<1>(t), std::get<2>(t), r, self->tables.back().data()});
  }
  self->plan = {h, w, c, int32_t(steps.size()), int32_t(taps.size()), self->steps.data(), self->taps.data(), in_scale};
}

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

template <class T>
struct BatchArrays {
  Array<const T> images, profiles, biases;
  Indices identity;
  Doubles diagonal;
  int64_t n;
  Batch<T> view() const { return {images.data(), profiles.data(), biases.data(), identity.data(), diagonal.data()}; }
};

template <class T>
void make_batch(BatchArrays<T>* self, const OwnedPlan& plan, Array<const T> images, Array<const T> profiles,
                Array<const T> biases, Indices identity, Doubles diagonal) {
  const Plan& p = plan.plan;
  const size_t n = identity.size(), s = size_t(p.n_steps), hw = size_t(p.h) * p.w;
  if (images.size() != n * hw * p.c || profiles.size() != n * s * hw || biases.size() != n * s ||
      diagonal.size() != n * p.n_taps * 2)
    throw std::invalid_argument("batch arrays do not fit the plan");
  new (self) BatchArrays<T>{images, profiles, biases, identity, diagonal, int64_t(n)};
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
    const size_t page = size_t(2) << 20, rounded = (n + page - 1) & ~(page - 1);
    data = static_cast<unsigned char*>(std::aligned_alloc(page, rounded));
    if (!data) throw std::bad_alloc();
    bytes = rounded;
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

template <class T>
void call(const Backend& b, const Job<T>& job);
template <>
void call(const Backend& b, const Job<float>& job) { b.run32(job); }
template <>
void call(const Backend& b, const Job<double>& job) { b.run64(job); }

// out: (n_taps * 2, n_rows, n_lanes) for blocks, (n_taps * 2, n) for pairs; float64, C order
template <class T>
void run(const std::string& isa, const OwnedPlan& plan, const BatchArrays<T>& x, const BatchArrays<T>& z, Indices rows,
         Indices lanes, bool pairs, Array<double> out, nb::ndarray<const int32_t, nb::c_contig> cancel) {
  const Backend& b = *level(isa).backend;
  const int64_t width = sizeof(T) == 4 ? b.lanes32 : b.lanes64;
  check_indices(rows, x.n);
  check_indices(lanes, z.n);
  const int64_t n_rows = rows.size(), n_lanes = lanes.size(), fields = plan.plan.n_taps * 2;
  if (pairs && n_rows != n_lanes) throw std::invalid_argument("pairs: as many rows as lanes expected");
  if (int64_t(out.size()) != fields * (pairs ? n_lanes : n_rows * n_lanes)) throw std::invalid_argument("out: wrong size");
  if (cancel.size() != 1) throw std::invalid_argument("cancel: one int32 expected");
  const Batch<T> xv = x.view(), zv = z.view();
  nb::gil_scoped_release release;
  const size_t bytes = size_t(sizeof(T) == 4 ? b.workspace32(plan.plan, pairs) : b.workspace64(plan.plan, pairs));
  // One a thread, kept: fresh pages are zeroed by the system, which costs as much as a small tile.
  thread_local Workspace w;
  w.reserve(bytes);
  for (int64_t start = 0; start < n_lanes; start += width) {
    const int64_t n = n_lanes - start < width ? n_lanes - start : width;
    Job<T> job{&plan.plan, &xv, &zv, rows.data() + (pairs ? start : 0), pairs ? n : n_rows, lanes.data() + start, int32_t(n),
               pairs, out.data() + start, pairs ? n_lanes : n_rows * n_lanes, pairs ? 0 : n_lanes, 1, w.data, cancel.data()};
    call<T>(b, job);
  }
}

template <class T>
void profile(const OwnedPlan& plan, nb::ndarray<const double, nb::ndim<4>, nb::c_contig> x, Doubles bias, Array<T> images,
             Array<T> profiles, Array<T> biases, Array<double> scale, Array<double> diagonal) {
  const Plan& p = plan.plan;
  const size_t n = x.shape(0), hw = size_t(p.h) * p.w;
  if (x.size() != n * hw * p.c || images.size() != x.size() || profiles.size() != n * p.n_steps * hw ||
      biases.size() != n * p.n_steps || bias.size() != size_t(p.n_steps) || scale.size() != n ||
      diagonal.size() != n * p.n_taps * 2)
    throw std::invalid_argument("profile arrays do not fit the plan");
  nb::gil_scoped_release release;
  make_profiles<T>(p, x.data(), int64_t(n), bias.data(), images.data(), profiles.data(), biases.data(), scale.data(),
                   diagonal.data());
}

}  // namespace

NB_MODULE(_engine, m) {
  m.doc() = "Compiled slice engine; see widelimit.backends.cpu for the interface people use.";
  nb::class_<OwnedPlan>(m, "Plan")
      .def("__init__", &make_plan, nb::arg("h"), nb::arg("w"), nb::arg("c"), nb::arg("in_scale"), nb::arg("steps"),
           nb::arg("taps"));
  nb::class_<BatchArrays<float>>(m, "Batch32").def("__init__", &make_batch<float>);
  nb::class_<BatchArrays<double>>(m, "Batch64").def("__init__", &make_batch<double>);
  m.def("run32", &run<float>);
  m.def("run64", &run<double>);
  m.def("profile32", &profile<float>);
  m.def("profile64", &profile<double>);
  m.def("levels", [] {
    std::vector<std::tuple<std::string, bool, int, int>> r;
    for (const Level& l : kLevels) r.emplace_back(l.name, l.supported(), l.backend->lanes32, l.backend->lanes64);
    return r;
  }, "(name, supported by this processor, float32 lanes, float64 lanes), best first");
  // What the processor can do at most, for `widelimit bench`.
  m.def("fma_peak", [](const std::string& isa, double seconds) {
    nb::gil_scoped_release release;
    return fma_peak(*level(isa).backend, seconds);
  }, "Floating-point operations per second of one core, float32 and float64");
  m.def("mixed_peak", [](const std::string& isa, double seconds) {
    nb::gil_scoped_release release;
    return mixed_peak(*level(isa).backend, seconds);
  }, "Vector instructions per second of one core, two FMA to one addition");
  m.def("read_bandwidth", [](const std::string& isa, int64_t bytes, double seconds) {
    nb::gil_scoped_release release;
    return read_bandwidth(*level(isa).backend, bytes, seconds);
  }, "Bytes per second that one core reads from a buffer of `bytes`");
  m.def("workspace_bytes", [](const std::string& isa, const OwnedPlan& plan, bool float32, bool pairs) {
    const Backend& b = *level(isa).backend;
    return float32 ? b.workspace32(plan.plan, pairs) : b.workspace64(plan.plan, pairs);
  });
}
