// General networks on a card (docs/mathematics.md, "Slices"): stages of levels, and windows between them, for the program that
// the generated source describes.
//
// A block owns a pair of images. Its warps take slices by rounds (rounds.py); lanes are columns, of one slice or of several
// side by side. A warp sweeps down its slice: at each step every level of the stage makes one row, from the last few rows of
// the levels before it, which lie in registers. A row that a pool or a strided convolution reads is added to the coarse
// slices that contain it at once. They gather in shared memory; nobody else adds to them in this round, so that sums have
// one order. Then a round begins in which some warp takes them on.
//
// A slice -d of (x, z) is the slice d of (z, x). Where d and -d add to one coarse slice, they gather apart and are added to
// each other first: k(x, z) and k(z, x) have the same bits.
//
// A sample is one array: channels, then the profile of each node, then biases.
#pragma once

struct Call {
  const Scalar *left, *right;                       // samples
  const int *rows, *columns;                        // which of them
  int n_rows, n_columns, pairwise;                  // pairwise: n_rows pairs (rows[i], columns[i])
  const int* rounds;                                // [n_rounds][4]: first task, tasks, first join, joins
  int n_rounds;
  const int* tasks;                                 // [..][kTask]
  const int* joins;                                 // [..][5]: stage, entry, the two that are added to it, how many
  const Scalar *row_weights, *column_weights;       // of all readouts, one after the other
  const double* factors;                            // [kFields]
  const long long *identity_left, *identity_right;  // [samples]
  const double *scale_left, *scale_right;           // [samples]
  double* out;                                      // [kFields][pairs]
  WL_FN int pairs() const { return pairwise ? n_rows : n_rows * n_columns; }
};

// What a block has of its pair.
struct Pair {
  const Scalar *x, *z;
  Scalar* room;  // where coarse slices gather
  const Scalar *row_weights, *column_weights;
  bool same;  // the images are identical
};

WL_TABLE int kStageOf[] = WL_STAGE_OF;  // of each field: whose slices it sums

// A task: stage, di, variant, how (1: x and z change places; 2: the slice d = 0), then of each slice the first lane, of each dj,
// of each the entry where it has gathered; then the windows that read it (Push).
constexpr int kHead = 4;

// The numbers of a sample, which lie in shared memory or in that of the card, where nobody writes.
#if !defined(__CUDACC__)
WL_FN V look(const Scalar* at, I index) { return gather(at, index, index >= 0); }
#elif WL_SAMPLES_SHARED
WL_FN V look(const Scalar* at, I index) { return at[index]; }
#else
WL_FN V look(const Scalar* at, I index) { return __ldg(at + index); }
#endif

// Where a lane is: its slice, and its column in it. Lanes of no slice repeat the first column of one.
struct Place {
  I slice, column, dj, size, entry;  // size: |dj|
  I x, z;                            // columns of both images
  B active;
};

template <int Pack>
WL_FN Place place_of(const int* task, int width) {
  const I lane = lane_index(), none = lane * 0;
  Place p;
  p.slice = none;
  WL_UNROLL for (int q = 1; q < Pack; ++q) p.slice = p.slice + select(lane >= task[kHead + q], none + 1, none);
  const B all = lane >= 0;
  p.dj = gather(task + kHead + Pack, p.slice, all);
  p.entry = gather(task + kHead + 2 * Pack, p.slice, all);
  const B left = p.dj < 0;
  p.size = select(left, -p.dj, p.dj);
  p.column = lane - gather(task + kHead, p.slice, all);
  p.active = p.column < width - p.size;
  p.column = select(p.active, p.column, none);
  p.x = p.column + select(left, p.size, none);
  p.z = p.column + select(left, none, p.size);
  return p;
}

// Lanes whose column of a grid of so many columns belongs to the slice; and 1 where the one `offset` columns away does.
WL_FN B inside(const Place& p, int width) { return p.active & (p.column < width - p.size); }
WL_FN V beside(const Place& p, int width, int offset) {
  const I column = p.column + offset;
  return select(p.active & (column >= 0) & (column < width - p.size), broadcast(1), broadcast(0));
}

WL_FN V sum_lanes(V v) {
  WL_UNROLL for (int d = 16; d; d /= 2) v = v + shuffle_down(v, d);
  return v;
}

// The sum of a readout over the slice. `weights`: [2 width - 1][width], or null: 1.
WL_FN void read_out(Scalar* to, V sum, const Place& p, int width, const Scalar* weights) {
  const B where = inside(p, width);
  if (weights) sum = sum * gather(weights, (p.dj + (width - 1)) * width + p.column, where);
  scatter(to, lane_index() * 0, sum_lanes(select(where, sum, broadcast(0))), lane_index() == 0);
}

// ---------------------------------------------------------------------------------------------------------
// Entries of coarse slices: K alone, or K and Theta side by side.

#if defined(__CUDACC__)
template <int Fields> struct Entry;
template <> struct Entry<1> { Scalar k; };
template <> struct alignas(2 * sizeof(Scalar)) Entry<2> { Scalar k, theta; };

template <int Fields>
WL_FN void add_entry(Scalar* room, int at, int row, Scalar k, Scalar theta) {
  if (at < 0) return;
  auto* const to = reinterpret_cast<Entry<Fields>*>(room + (at + row));
  Entry<Fields> e = *to;
  e.k += k;
  if constexpr (Fields == 2) e.theta += theta;
  *to = e;
}
// Reads an entry and leaves 0: memory that is given out is clear.
template <int Fields>
WL_FN void take_entry(Scalar* room, int at, bool where, Scalar& k, Scalar& theta) {
  k = theta = 0;
  if (!where) return;
  auto* const from = reinterpret_cast<Entry<Fields>*>(room + at);
  const Entry<Fields> e = *from;
  k = e.k;
  if constexpr (Fields == 2) theta = e.theta;
  *from = Entry<Fields>{};
}
#else
template <int Fields>
WL_FN void add_entry(Scalar* room, I at, I row, V k, V theta) {
  for (int l = 0; l < 32; ++l) {
    if (at[l] < 0) continue;
    Scalar* const to = room + at[l] + row[l];
    to[0] += k[l];
    if (Fields == 2) to[1] += theta[l];
  }
}
template <int Fields>
WL_FN void take_entry(Scalar* room, I at, B where, V& k, V& theta) {
  k = theta = V{};
  for (int l = 0; l < 32; ++l) {
    if (!where[l]) continue;
    k[l] = room[at[l]];
    room[at[l]] = 0;
    if (Fields == 2) theta[l] = room[at[l] + 1], room[at[l] + 1] = 0;
  }
}
#endif

constexpr int kNever = 1 << 29;  // rows, or entries, until something happens that does not

// Windows G over a level: adds its rows to the coarse slices that read them. Along each axis a slice has a few runs, one for
// each coarse displacement: coarse entry R sums `count` fine entries from first + stride R on (widelimit.lattice).
template <class G>
struct Push {
  static constexpr int kDown = G::down, kAcross = G::across;
  int first[kDown], n[kDown], rows[kDown];  // of each run down: first entry, how many, rows of the coarse slice that are left
  I at[kDown][kAcross];                     // where the lane adds, as its window begins there; below 0: nowhere
  I width[kAcross], count[kAcross];
  bool used[kAcross], wide;    // whether some lane adds, and sums more than its own column
  V beside_me[G::longest];     // 1 where the column so many to the right belongs to the slice
  V held_k[kDown], held_theta[kDown];  // of windows that share no row: the sum of the rows so far
  // Windows that begin before the first column: the lane of that column adds them.
  static constexpr int kEarly = G::early > 0 ? G::early : 1;
  I early_at[kEarly][kDown][kAcross], early_count[kEarly][kAcross];

  WL_FN Push(const int* task, const Place& p) {
    const int *const down = task + G::table, *const across = down + 3 * kDown, *const entries = across + 3 * kAcross * G::pack;
    const I none = p.column * 0;
    const B all = none >= 0, mine = inside(p, G::width);
    wide = false;
    WL_UNROLL for (int a = 0; a < kDown; ++a) {
      first[a] = down[3 * a], n[a] = down[3 * a + 1], rows[a] = down[3 * a + 2];
      if (rows[a] == 0) first[a] = kNever;
      held_k[a] = held_theta[a] = broadcast(0);
    }
    WL_UNROLL for (int k = 1; k < G::longest; ++k) beside_me[k] = beside(p, G::width, k);
    WL_UNROLL for (int b = 0; b < kAcross; ++b) {
      const I run = (p.slice * kAcross + b) * 3;
      const I begin = gather(across, run, all), start = p.column - begin;
      count[b] = gather(across + 1, run, all);
      width[b] = gather(across + 2, run, all);
      used[b] = some(width[b] > 0);
      wide = wide || some(count[b] > 1);
      const I coarse = start / G::stride_across;
      const B begins = mine & (start >= 0) & (start - coarse * G::stride_across == 0) & (coarse < width[b]);
      WL_UNROLL for (int a = 0; a < kDown; ++a) {
        const I entry = gather(entries, (p.slice * kDown + a) * kAcross + b, all);
        at[a][b] = select(begins & (entry >= 0), (entry + coarse) * G::fields, none - kNever);
        WL_UNROLL for (int e = 0; e < G::early; ++e) {
          const I before = begin + G::stride_across * e;
          early_count[e][b] = count[b] + before;
          const B cut = mine & (p.column == 0) & (before < 0) & (early_count[e][b] > 0) & (width[b] > e) & (entry >= 0);
          early_at[e][a][b] = select(cut, (entry + e) * G::fields, none - kNever);
        }
      }
    }
    if constexpr (G::apart)  // windows that end before the first row
      WL_UNROLL for (int a = 0; a < kDown; ++a)
        WL_KEEP while (first[a] + n[a] <= 0) next(a);
  }

  // Row r of the level, of each in turn; `last`: its last one.
  WL_FN void add(Scalar* room, int r, int last, V k, V theta) {
    if constexpr (G::apart) {  // `first` and `at` move on from window to window
      WL_UNROLL for (int a = 0; a < kDown; ++a) {
        const int in = r - first[a];
        if (in < 0) continue;
        held_k[a] = held_k[a] + k;
        if (G::fields == 2) held_theta[a] = held_theta[a] + theta;
        if (in + 1 < n[a] && r < last) continue;
        add_row(room, a, 0, sum_columns(held_k[a], held_theta[a]));
        held_k[a] = held_theta[a] = broadcast(0);
        next(a);
      }
    } else {
      const Sums sums = sum_columns(k, theta);
      WL_UNROLL for (int a = 0; a < kDown; ++a) {
        const int from = r - first[a];
        int R = from - n[a] + 1;  // the first window that still holds this row
        R = R <= 0 ? 0 : (R + G::stride_down - 1) / G::stride_down;
        WL_KEEP for (; R < rows[a] && R * G::stride_down <= from; ++R) add_row(room, a, R, sums);
      }
    }
  }

 private:
  struct Sums { V k[G::longest], theta[G::longest]; };  // of one column, of two beginning there, of three

  WL_FN Sums sum_columns(V k, V theta) const {
    Sums s;
    WL_UNROLL for (int i = 0; i < G::longest; ++i) s.k[i] = k, s.theta[i] = theta;
    if (wide)
      WL_UNROLL for (int i = 1; i < G::longest; ++i) {
        s.k[i] = mad(beside_me[i], shuffle_down(k, i), s.k[i - 1]);
        if (G::fields == 2) s.theta[i] = mad(beside_me[i], shuffle_down(theta, i), s.theta[i - 1]);
      }
    return s;
  }

  WL_FN V choose(const V (&sums)[G::longest], I n) const {
    V v = sums[0];
    WL_UNROLL for (int k = 1; k < G::longest; ++k) v = select(n > k, sums[k], v);
    return v;
  }

  WL_FN void next(int a) {
    rows[a] -= 1;
    first[a] = rows[a] > 0 ? first[a] + G::stride_down : kNever;
    WL_UNROLL for (int b = 0; b < kAcross; ++b) {
      at[a][b] = at[a][b] + width[b] * G::fields;
      WL_UNROLL for (int e = 0; e < G::early; ++e) early_at[e][a][b] = early_at[e][a][b] + width[b] * G::fields;
    }
  }

  // A row of windows, to row R of the coarse slices that run `a` leads to.
  WL_FN void add_row(Scalar* room, int a, int R, const Sums& sums) const {
    WL_UNROLL for (int b = 0; b < kAcross; ++b) {
      if (!used[b]) continue;
      const I row = width[b] * (R * G::fields);
      add_entry<G::fields>(room, at[a][b], row, choose(sums.k, count[b]), choose(sums.theta, count[b]));
      WL_UNROLL for (int e = 0; e < G::early; ++e)
        add_entry<G::fields>(room, early_at[e][a][b], row, choose(sums.k, early_count[e][b]), choose(sums.theta, early_count[e][b]));
    }
  }
};

// Entry `to` on gains what lies at `a` and `b`, added to each other before; these are clear afterwards.
WL_FN void join(Scalar* room, int to, int a, int b, int n) {
  WL_EACH_THREAD(i, n) {
    room[to + i] += room[a + i] + room[b + i];
    room[a + i] = room[b + i] = 0;
  }
}

// ---------------------------------------------------------------------------------------------------------

// Defined by the generated source: a task, the sums of its readouts in `part`; and a join in all memories of a stage.
WL_FN void sweep(const Pair& pair, const int* task, Scalar* part);
WL_FN void join_stage(Scalar* room, const int* join);

// What one block does: pairs, each from its first to its last round. `samples`: two of them, `parts`: [2][kWarps][kFields].
WL_FN void run_stages(const Call& c, Scalar* room, Scalar* samples, Scalar* parts, double* total, int block, int n_blocks) {
  const int n = c.pairs();
  WL_KEEP for (int number = block; number < n; number += n_blocks) {
    const int row = c.rows[c.pairwise ? number : number / c.n_columns];
    const int column = c.columns[c.pairwise ? number : number % c.n_columns];
    const Scalar *const x = c.left + (long long)row * kSample, *const z = c.right + (long long)column * kSample;
#if WL_SAMPLES_SHARED
    WL_EACH_THREAD(i, kSample) samples[i] = x[i], samples[kSample + i] = z[i];
    const Scalar *const x_at = samples, *const z_at = samples + kSample;
#else
    const Scalar *const x_at = x, *const z_at = z;
#endif
    WL_EACH_THREAD(i, kRoom) room[i] = 0;
    WL_EACH_THREAD(i, kFields) total[i] = 0;
    const Pair pair{x_at, z_at, room, c.row_weights, c.column_weights, c.identity_left[row] == c.identity_right[column]};
    WL_BARRIER();
    WL_KEEP for (int round = 0; round < c.n_rounds; ++round) {
      const int* const r = c.rounds + 4 * round;
      const int* const tasks = c.tasks + (long long)r[0] * kTask;
      Scalar* const part = parts + (round & 1) * kWarps * kFields;
      WL_EACH_WARP(warp) if (warp < r[1]) sweep(pair, tasks + warp * kTask, part + warp * kFields);
      WL_BARRIER();
      WL_KEEP for (int j = 0; j < r[3]; ++j) join_stage(room, c.joins + 5 * (r[2] + j));
      if (r[3] > 0) WL_BARRIER();
      // One warp adds what readouts summed, in the order of tasks; opposite slices, one after the other, are added first.
      WL_EACH_WARP(warp) if (warp == 0) WL_EACH_LANE(f, kFields) {
        for (int i = 0; i < r[1]; ++i) {
          const int* const task = tasks + i * kTask;
          const bool alone = task[3] == 2, mine = task[0] == kStageOf[f];
          if (mine) total[f] += double(part[i * kFields + f]) + (alone ? 0. : double(part[(i + 1) * kFields + f]));
          i += !alone;
        }
      }
    }
    WL_EACH_WARP(warp) if (warp == 0) WL_EACH_LANE(f, kFields)
      c.out[(long long)f * n + number] = total[f] * (c.factors[f] * (c.scale_left[row] * c.scale_right[column]));
    WL_BARRIER();
  }
}
