// Python's view of the compiled core: programs, profiles, and calls that release the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
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

// A Program with the memory that it points to. Vectors that are moved keep their memory.
struct OwnedProgram {
  Program program;
  std::vector<Level> levels;
  std::vector<Tap> taps;
  std::vector<Stage> stages;
  std::vector<std::vector<double>> tables;
  std::vector<std::vector<Run>> runs;
  std::vector<std::vector<int32_t>> numbers;  // starts of runs, levels of variants, places of slices
  std::vector<std::vector<Slice>> slices;
  std::vector<std::vector<Variant>> variants;
};

template <class T>
T field(nb::handle object, const char* name) {
  return nb::cast<T>(object.attr(name));
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// `table`: rows (d, coarse, first, count), ascending in d.
Runs make_runs(OwnedProgram& p, nb::handle table, int stride, int fine, int coarse) {
  const auto rows = nb::cast<nb::ndarray<const int32_t, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu>>(table);
  std::vector<Run> runs;
  std::vector<int32_t> start(size_t(2) * fine, 0);
  int last = 1 - fine, before = -coarse;
  for (size_t i = 0; i < rows.shape(0); ++i) {
    const int d = rows(i, 0);
    const Run run{rows(i, 1), rows(i, 2), rows(i, 3)};
    if (d > last) before = -coarse;
    require(d >= last && d < fine && run.coarse > before && run.coarse < coarse && run.count > 0 && run.first > -(1 << 20) &&
                run.first < 1 << 20 && run.count < 1 << 20,
            "runs: expected displacements inside the grids, those of the fine one in order, of each the coarse ones");
    last = d;
    before = run.coarse;
    ++start[size_t(d + fine)];
    runs.push_back(run);
  }
  for (size_t i = 1; i < start.size(); ++i) start[i] += start[i - 1];
  require(stride > 0 && stride < 1 << 16, "runs: expected a stride of 1 or more");
  p.runs.push_back(std::move(runs));
  p.numbers.push_back(std::move(start));
  return {p.runs.back().data(), p.numbers.back().data(), fine, stride};
}

bool fits(int extent, int source, int filter, int before) {
  const bool same = filter % 2 == 1 && before == filter / 2 && extent == source;
  return filter > 0 && filter < 1 << 16 && (same || (before == 0 && extent == source - filter + 1));
}

// `given`: a widelimit.backends.lowered.LoweredLevel. Levels are checked so that no array is read beyond its end.
Level make_level(OwnedProgram& p, nb::handle given, const std::vector<int>& stage_of, const std::vector<Stage>& stages, int c) {
  Level v{};
  const int number = int(p.levels.size()), stage = stage_of[size_t(number)];
  v.kind = Kind(field<int>(given, "kind"));
  v.h = field<int>(given, "h");
  v.w = field<int>(given, "w");
  v.out_scale = field<double>(given, "out_scale");
  v.source = v.skip = -1;
  v.profile = p.program.n_profile;
  require(v.h > 0 && v.w > 0 && v.h < 1 << 16 && v.w < 1 << 16 && c > 0, "levels: expected grids of 1 pixel or more");
  if (v.kind == Kind::kImage) {
    require(number == 0 && v.h == p.program.h && v.w == p.program.w, "levels: expected the image first, and once");
    return v;
  }
  require(number > 0, "levels: expected the image first, and once");
  v.source = field<int>(given, "source");
  require(v.source >= 0 && v.source < number, "levels: expected each after its source");
  const Level& source = p.levels[size_t(v.source)];
  const int below = stage_of[size_t(v.source)];
  if (v.kind == Kind::kGather) {
    require(below == stages[size_t(stage)].parent, "levels: expected windows over the parent stage");
    v.fields = field<int>(given, "fields");
    v.room = field<int64_t>(given, "room");
    require((v.fields == 1 || v.fields == 2) && v.room >= 0 && v.room < int64_t(1) << 40, "levels: expected 1 or 2 fields");
    v.down = make_runs(p, given.attr("down"), field<int>(given, "stride_down"), source.h, v.h);
    v.across = make_runs(p, given.attr("across"), field<int>(given, "stride_across"), source.w, v.w);
    return v;
  }
  require(v.kind == Kind::kNode && below == stage, "levels: expected each in the stage of its source");
  v.skip = field<int>(given, "skip");
  require(v.skip >= -1 && v.skip < number, "levels: expected each after what is added to it");
  if (v.skip >= 0) {
    const Level& skip = p.levels[size_t(v.skip)];
    require(stage_of[size_t(v.skip)] == stage && skip.h == v.h && skip.w == v.w, "levels: expected sums of one grid");
  }
  v.rows = field<int>(given, "rows");
  v.columns = field<int>(given, "columns");
  v.top = field<int>(given, "top");
  v.left = field<int>(given, "left");
  require(fits(v.h, source.h, v.rows, v.top) && fits(v.w, source.w, v.columns, v.left),
          "levels: expected grids that fit their filters");
  const int activation = field<int>(given, "activation");
  require(activation >= 0 && activation <= int(Activation::kPolynomial), "levels: unknown activation");
  v.activation = Activation(activation);
  v.is_signed = field<bool>(given, "signed");
  v.trainable = field<bool>(given, "trainable");
  v.theta_in = field<bool>(given, "theta_in");
  v.theta_skip = field<bool>(given, "theta_skip");
  v.k_out = field<bool>(given, "k_out");
  v.theta_out = field<bool>(given, "theta_out");
  v.biased = field<bool>(given, "biased");
  v.skip_scale = field<double>(given, "skip_scale");
  v.unit = field<double>(given, "unit");
  const auto parameters = field<std::vector<double>>(given, "parameters");
  for (size_t i = 0; i < parameters.size() && i < kParameters; ++i) v.parameters[i] = parameters[i];
  v.operands = field<int>(given, "operands");
  if (v.activation == Activation::kPolynomial) {
    const size_t degree = size_t(v.operands - 3);
    require(v.operands >= 3 && degree <= 64 && parameters.size() == (degree + 1) * (degree / 2 + 1),
            "levels: expected a polynomial's table, and as many operands");
    p.tables.push_back(parameters);
    v.table = p.tables.back().data();
  } else {
    require(v.operands == 1, "levels: expected one operand");
  }
  v.number = p.program.n_nodes++;
  p.program.n_profile += int64_t(v.h) * v.w * v.operands;
  return v;
}

// How far each level lags behind the input, and how many pairs of rows others still read of it.
void time_levels(std::vector<Level>& levels) {
  for (Level& v : levels) {
    v.lag = 0;
    v.ring_pairs = 1;
    if (v.kind != Kind::kNode) continue;
    const int below = v.rows - 1 - v.top;
    v.lag = levels[size_t(v.source)].lag + (below + 1) / 2;
    if (v.skip >= 0 && levels[size_t(v.skip)].lag > v.lag) v.lag = levels[size_t(v.skip)].lag;
  }
  for (const Level& v : levels) {
    if (v.kind != Kind::kNode) continue;
    Level& source = levels[size_t(v.source)];
    source.ring_pairs = std::max(source.ring_pairs, v.lag - source.lag + (v.top + 1) / 2 + 1);
    if (v.skip < 0) continue;
    Level& skip = levels[size_t(v.skip)];
    skip.ring_pairs = std::max(skip.ring_pairs, v.lag - skip.lag + 1);
  }
}

// `given`: variants as lists of levels, and (n, 8) rows of di, dj, variant, needs, slot, strip, adds_to, first.
void fill_stage(OwnedProgram& p, nb::handle given, Stage& stage) {
  const char* const wrong =
      "slices: expected displacements inside the grids, one of each pair d, -d, and levels after their sources";
  std::vector<Variant> variants;
  for (const auto& through : field<std::vector<std::vector<int>>>(given, "variants")) {
    std::vector<int32_t> members, consumed(through.size(), 0);
    for (int l : through) {
      require(l >= stage.first && l < stage.stop && (members.empty() || l > members.back()), wrong);
      const Level& v = p.levels[size_t(l)];
      for (int read : {v.kind == Kind::kNode ? v.source : -1, v.skip}) {
        if (read < 0) continue;
        const auto at = std::find(members.begin(), members.end(), read);
        require(at != members.end(), wrong);
        consumed[size_t(at - members.begin())] = 1;
      }
      members.push_back(l);
    }
    std::vector<size_t> order(members.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto lag = [&](size_t i) { return p.levels[size_t(members[i])].lag; };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return lag(a) < lag(b); });
    std::vector<int32_t> sorted_members, sorted_consumed;
    for (size_t i : order) {
      sorted_members.push_back(members[i]);
      sorted_consumed.push_back(consumed[i]);
    }
    require(!order.empty(), wrong);
    p.numbers.push_back(std::move(sorted_members));
    p.numbers.push_back(std::move(sorted_consumed));
    const auto end = p.numbers.end();
    variants.push_back({(end - 2)->data(), (end - 1)->data(), int32_t(through.size())});
  }
  for (int l = stage.first; l < stage.stop; ++l) {
    const Level& v = p.levels[size_t(l)];
    if (v.kind != Kind::kGather) continue;
    stage.h = std::max(stage.h, v.h);
    stage.w = std::max(stage.w, v.w);
  }
  std::vector<int32_t> place(size_t(stage.h) * size_t(2 * stage.w), -1);
  const auto rows = nb::cast<nb::ndarray<const int64_t, nb::shape<-1, 8>, nb::c_contig, nb::device::cpu>>(given.attr("slices"));
  const int64_t parents = stage.parent < 0 ? 0 : p.stages[size_t(stage.parent)].n_slices;
  std::vector<Slice> slices;
  for (size_t i = 0; i < rows.shape(0); ++i) {
    const int64_t di = rows(i, 0), dj = rows(i, 1), variant = rows(i, 2), needs = rows(i, 3), slot = rows(i, 4);
    require((di > 0 || (di == 0 && dj >= 0)) && variant >= 0 && variant < int64_t(variants.size()) && needs >= 0 &&
                needs <= parents,
            wrong);
    const Variant& through = variants[size_t(variant)];
    for (int k = 0; k < through.n; ++k) {
      const Level& v = p.levels[size_t(through.levels[k])];
      require(di < v.h && dj < v.w && dj > -v.w, wrong);
    }
    for (int l = stage.first; l < stage.stop; ++l) {  // whatever gathers there, whether the slice goes through it or not
      const Level& v = p.levels[size_t(l)];
      if (v.kind != Kind::kGather || di >= v.h || dj >= v.w || dj <= -v.w) continue;
      const int64_t entries = (v.h - di) * (v.w - (dj < 0 ? -dj : dj)) * (di == 0 && dj == 0 ? 1 : 2);
      require(slot >= 0 && entries <= v.room && slot <= v.room - entries, "slices: expected slots inside the memory");
    }
    if (stage.h > 0) {
      require(di < stage.h && dj < stage.w && dj > -stage.w, wrong);
      int32_t& at = place[size_t(di * (2 * stage.w - 1) + dj + stage.w - 1)];
      require(at < 0, wrong);
      at = int32_t(i);
    }
    const auto rest = [&](size_t k) { return int32_t(rows(i, k)); };
    slices.push_back({int32_t(di), int32_t(dj), int32_t(variant), int32_t(needs), slot, rest(5), rest(6), rest(7)});
  }
  p.slices.push_back(std::move(slices));
  p.variants.push_back(std::move(variants));
  p.numbers.push_back(std::move(place));
  stage.n_slices = int32_t(p.slices.back().size());
  stage.n_variants = int32_t(p.variants.back().size());
  stage.slices = p.slices.back().data();
  stage.variants = p.variants.back().data();
  stage.place = p.numbers.back().data();
}

// Whether profile.hpp knows the profiles: a chain of square convolutions and ReLUs.
bool is_chain(const Program& p) {
  for (int l = 1; l < p.n_levels; ++l) {
    const Level& v = p.levels[l];
    if (v.kind != Kind::kNode || v.source != l - 1 || v.skip >= 0 || v.rows != v.columns || v.h != p.h || v.w != p.w ||
        (v.activation != Activation::kRelu && v.activation != Activation::kIdentity))
      return false;
  }
  return true;
}

// (level, want_k, want_theta, row_weights, column_weights)
using TapTuple = std::tuple<int, bool, bool, Doubles, Doubles>;

// `levels`, `stages`: of a widelimit.backends.lowered.Lowered.
void make_program(OwnedProgram* self, int h, int w, int c, const std::vector<nb::object>& levels,
                  const std::vector<nb::object>& stages, const std::vector<TapTuple>& taps, bool closed) {
  OwnedProgram p{};
  p.program.h = h;
  p.program.w = w;
  p.program.c = c;
  std::vector<int> stage_of;
  for (const nb::object& given : stages) {
    Stage s{};
    s.parent = field<int>(given, "parent");
    s.first = int32_t(stage_of.size());
    const int n = field<int>(given, "n_levels");
    require(n > 0 && n <= int(levels.size()) && s.parent < int(p.stages.size()) && (s.parent >= 0) == !p.stages.empty(),
            "stages: expected each after its parent, with levels");
    stage_of.insert(stage_of.end(), size_t(n), int(p.stages.size()));
    s.stop = int32_t(stage_of.size());
    p.stages.push_back(s);
  }
  require(stage_of.size() == levels.size() && !levels.empty(), "stages: expected all levels among them");
  for (const nb::object& given : levels) p.levels.push_back(make_level(p, given, stage_of, p.stages, c));
  time_levels(p.levels);
  for (size_t k = 0; k < stages.size(); ++k) fill_stage(p, stages[k], p.stages[k]);
  for (const auto& t : taps) {
    const int level = std::get<0>(t);
    require(level >= 0 && level < int(levels.size()), "readouts: expected levels of the program");
    const Level& v = p.levels[size_t(level)];
    const Doubles &rows = std::get<3>(t), &columns = std::get<4>(t);
    require(rows.size() == size_t(2 * v.h - 1) * size_t(v.h) && columns.size() == size_t(2 * v.w - 1) * size_t(v.w),
            "readout weights: expected tables of (2h-1, h) and (2w-1, w)");
    p.tables.emplace_back(rows.data(), rows.data() + rows.size());
    const double* r = p.tables.back().data();
    p.tables.emplace_back(columns.data(), columns.data() + columns.size());
    p.taps.push_back({level, std::get<1>(t), std::get<2>(t), r, p.tables.back().data()});
  }
  Program& q = p.program;
  q.n_levels = int32_t(p.levels.size());
  q.n_stages = int32_t(p.stages.size());
  q.n_taps = int32_t(p.taps.size());
  q.levels = p.levels.data();
  q.stages = p.stages.data();
  q.taps = p.taps.data();
  q.closed = closed;
  require(!closed || is_chain(q), "levels: expected a chain where the slice d = 0 is known in closed form");
  new (self) OwnedProgram(std::move(p));
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
    return p.h == program.h && p.w == program.w && p.c == program.c && p.n_nodes == program.n_nodes &&
           p.n_profile == program.n_profile && p.n_taps == program.n_taps;
  }
};

template <class T>
void make_batch(BatchArrays<T>* self, const OwnedProgram& program, Array<const T> images, Array<const T> profiles,
                Array<const T> biases, Indices identity, Doubles diagonal) {
  const Program& p = program.program;
  const size_t n = identity.size(), hw = size_t(p.h) * p.w;
  if (images.size() != n * hw * p.c || profiles.size() != n * size_t(p.n_profile) || biases.size() != n * p.n_nodes ||
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

// Workspaces that no call uses, for the next one: fresh pages are zeroed by the system, which costs as much as a small tile,
// and lie worse. Large ones are not kept.
class Shelf {
 public:
  std::unique_ptr<Workspace> take() {
    const std::lock_guard<std::mutex> guard(lock_);
    if (kept_.empty()) return std::make_unique<Workspace>();
    auto w = std::move(kept_.back());
    kept_.pop_back();
    return w;
  }
  void give(std::unique_ptr<Workspace> w) {
    const std::lock_guard<std::mutex> guard(lock_);
    if (w->bytes <= in_pages(1) * 4) kept_.push_back(std::move(w));
  }

 private:
  std::mutex lock_;
  std::vector<std::unique_ptr<Workspace>> kept_;
};

Shelf& shelf() {
  static Shelf& only = *new Shelf;  // never destroyed: a daemon thread may still compute when the process ends
  return only;
}

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
  require(cancel.size() == 1, "cancel: one int32 expected");
  const Batch<T> xv = x.view(), zv = z.view();
  nb::gil_scoped_release release;
  auto w = shelf().take();
  w->reserve(size_t(workspace_bytes(f, program, sizeof(T) == 4, pairwise)));
  call(f, Call<T>{&p, &xv, &zv, rows.data(), n_rows, columns.data(), n_columns, pairwise, out.data(), w->data, cancel.data(),
                  nullptr});
  shelf().give(std::move(w));
}

template <class T>
void profile(const OwnedProgram& program, nb::ndarray<const double, nb::ndim<4>, nb::c_contig> x, Doubles bias, Array<T> images,
             Array<T> profiles, Array<T> biases, Array<double> scale, Array<double> diagonal) {
  const Program& p = program.program;
  const size_t n = x.shape(0), hw = size_t(p.h) * p.w;
  if (x.size() != n * hw * p.c || images.size() != x.size() || profiles.size() != n * size_t(p.n_profile) ||
      biases.size() != n * p.n_nodes || bias.size() != size_t(p.n_nodes) || scale.size() != n ||
      diagonal.size() != n * p.n_taps * 2)
    throw std::invalid_argument("profile arrays do not fit the program");
  require(p.closed, "profiles in closed form are those of chains");
  nb::gil_scoped_release release;
  make_profiles<T>(p, x.data(), int64_t(n), bias.data(), images.data(), profiles.data(), biases.data(), scale.data(),
                   diagonal.data());
}

// X of all nodes, of pairs of images with themselves. x: (n, h, w, c); biases: (n, n_nodes); profiles: (n, n_profile).
void self_profiles(const std::string& isa, const OwnedProgram& program, nb::ndarray<const double, nb::ndim<4>, nb::c_contig> x,
                   Array<const double> biases, Array<double> profiles, nb::ndarray<const int32_t, nb::c_contig> cancel) {
  const Functions& f = functions_of(isa);
  const Program& p = program.program;
  const size_t n = x.shape(0);
  if (x.size() != n * p.h * p.w * p.c || biases.size() != n * p.n_nodes || profiles.size() != n * size_t(p.n_profile))
    throw std::invalid_argument("profile arrays do not fit the program");
  require(!p.closed && cancel.size() == 1, "profiles of pairs are those of programs without a closed form");
  nb::gil_scoped_release release;
  std::vector<int64_t> index(n);
  for (size_t i = 0; i < n; ++i) index[i] = int64_t(i);
  std::vector<double> sums(size_t(p.n_taps) * 2 * n);
  for (size_t i = 0; i < profiles.size(); ++i) profiles.data()[i] = 0;
  const Batch<double> batch{x.data(), profiles.data(), biases.data(), index.data(), nullptr};
  Workspace w;
  w.reserve(size_t(workspace_bytes(f, program, false, true)));
  f.run64(Call<double>{&p, &batch, &batch, index.data(), int64_t(n), index.data(), int64_t(n), true, sums.data(), w.data,
                       cancel.data(), profiles.data()});
}

}  // namespace

NB_MODULE(_engine, m) {
  // At exit nanobind lists objects that are still there, as faults of the binding. A model that a daemon thread, or a
  // global of some module, holds to the end is none; tests/test_bindings.py sees that batches let go of their arrays.
  nb::set_leak_warnings(false);
  m.doc() = "Compiled slice engine; see widelimit.backends.cpu for the interface people use.";
  nb::class_<OwnedProgram>(m, "Program")
      .def("__init__", &make_program, nb::arg("h"), nb::arg("w"), nb::arg("c"), nb::arg("levels"), nb::arg("stages"),
           nb::arg("taps"), nb::arg("closed"));
  nb::class_<BatchArrays<float>>(m, "Batch32").def("__init__", &make_batch<float>);
  nb::class_<BatchArrays<double>>(m, "Batch64").def("__init__", &make_batch<double>);
  // What is written to, or looked at again, is never a copy that nanobind made of another dtype or order.
  m.def("run32", &run<float>, nb::arg("isa"), nb::arg("program"), nb::arg("left"), nb::arg("right"), nb::arg("rows").noconvert(),
        nb::arg("columns").noconvert(), nb::arg("pairwise"), nb::arg("out").noconvert(), nb::arg("cancel").noconvert());
  m.def("run64", &run<double>, nb::arg("isa"), nb::arg("program"), nb::arg("left"), nb::arg("right"), nb::arg("rows").noconvert(),
        nb::arg("columns").noconvert(), nb::arg("pairwise"), nb::arg("out").noconvert(), nb::arg("cancel").noconvert());
  m.def("profile32", &profile<float>, nb::arg("program"), nb::arg("x"), nb::arg("bias"), nb::arg("images").noconvert(),
        nb::arg("profiles").noconvert(), nb::arg("biases").noconvert(), nb::arg("scale").noconvert(), nb::arg("diagonal").noconvert());
  m.def("profile64", &profile<double>, nb::arg("program"), nb::arg("x"), nb::arg("bias"), nb::arg("images").noconvert(),
        nb::arg("profiles").noconvert(), nb::arg("biases").noconvert(), nb::arg("scale").noconvert(), nb::arg("diagonal").noconvert());
  m.def("self_profiles", &self_profiles, nb::arg("isa"), nb::arg("program"), nb::arg("images"), nb::arg("biases"),
        nb::arg("profiles").noconvert(), nb::arg("cancel").noconvert());
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
  }, nb::arg("isa"), nb::arg("seconds"), "Floating-point operations per second of one core, float32 and float64");
  m.def("mixed_peak", [](const std::string& isa, double seconds) {
    nb::gil_scoped_release release;
    return mixed_peak(functions_of(isa), seconds);
  }, nb::arg("isa"), nb::arg("seconds"), "Vector instructions per second of one core, two FMA to one addition");
  m.def("read_bandwidth", [](const std::string& isa, int64_t bytes, double seconds) {
    nb::gil_scoped_release release;
    return read_bandwidth(functions_of(isa), bytes, seconds);
  }, nb::arg("isa"), nb::arg("bytes"), nb::arg("seconds"), "Bytes per second that one core reads from a buffer of `bytes`");
  m.def("workspace_bytes", [](const std::string& isa, const OwnedProgram& program, bool float32, bool pairwise) {
    return workspace_bytes(functions_of(isa), program, float32, pairwise);
  }, nb::arg("isa"), nb::arg("program"), nb::arg("single"), nb::arg("pairwise"));
}
