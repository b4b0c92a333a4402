// Sums over slices on a card (docs/mathematics.md, "Slices"), for the program that the generated source describes.
//
// One warp takes a slice through all layers. Lanes are columns, and the rows of K and Theta lie in registers from the
// first layer to the last; N, their number, is a constant of the compiler, so that nothing is indexed at run time and
// no row is idle. Columns are packed: the slices (di, dj) and (di, dj - W) fill W lanes, and a factor of 0 or 1 in each
// lane cuts them apart, in place of the addition of the neighbour. Narrow images put several such pairs into one warp.
// A slice -d of (x, z) is the slice d of (z, x): one kernel serves both signs, and exchanging x and z exchanges two
// numbers that `finish` adds, so that k(x, z) and k(z, x) have the same bits.
//
// A sample is one array: its channels, the profile of each activation, and its biases, all divided by one power of two.
// A field of it is laid out [cell][column][row of the cell]: a warp reads 16 bytes a lane, side by side.
#pragma once

constexpr int kCells = (kH + kCell - 1) / kCell;
constexpr int kField = kCells * kW * kCell;
constexpr int kSample = (kC + kLayers) * kField + (kLayers + kCell - 1) / kCell * kCell;
constexpr int kSlices = 32 / kW;  // pairs of slices, side by side in a warp; 0 for images wider than a warp
constexpr int kMost = kReach > 0 ? kReach : 1;
constexpr int kColumns = kW < 32 ? kW : 32;

// What a call computes. Entries are slices or packed pairs of them, four numbers each: di, dj, the sign (1: x and z
// change places; 2: they need not, the entry is its own opposite), and the number of layers to go through.
struct Call {
  const Scalar *left, *right;         // samples
  const int *rows, *columns;          // which of them
  int n_rows, n_columns, pairwise;    // pairwise: n_rows pairs (rows[i], columns[i])
  const int* entries;                 // [n_entries][4]
  const int* variants;                // [kH + 1][2]: first entry and number of entries, by the number of rows
  int n_entries;
  const Scalar* row_weights;          // [taps][kH][kH], by |di|
  const Scalar* column_weights;       // [taps][2 kW - 1][kW]
  Scalar* partial;                    // [fields][n_entries][pairs]
  WL_FN int pairs() const { return pairwise ? n_rows : n_rows * n_columns; }
};

// One element of layer S from its box sums: sigma in `s`; in `theta` the sum of Theta, or of Theta + K where this
// layer is trained (kMerge of the layer before). Returns K and Theta, and what the next layer sums in place of Theta.
template <class S>
WL_FN void element(V x, V z, V s, V theta, V bias, V& k, V& made, V& stored) {
  constexpr bool relu = S::flags & kRelu, own = S::flags & kOwn, train = S::flags & kTrain, merge = S::flags & kMerge;
  constexpr bool out_k = S::flags & kOutK, out_theta = S::flags & kOutTheta;
  if (S::flags & kBias) {
    s = s + bias;
    if (own && train) theta = theta + bias;
  }
  if (!own) theta = s;  // trained for the first time; where nothing is trained yet, no theta is asked for
  V kappa0 = broadcast(S::scale());
  if (relu)
    activate<S>(x, z, s, k, kappa0);
  else if (out_k)
    k = s * S::scale();
  made = stored = broadcast(0);
  if (!out_theta) return;
  made = kappa0 * theta;
  stored = merge ? mad(kappa0, theta, k) : made;
}

// The product of both biases of a layer (1, 2, ...).
template <class S, class At>
WL_FN V bias_of(At x, At z, int layer) {
  const int at = (kC + kLayers) * kField + layer - 1;
  return S::flags & kBias ? load(x, at) * load(z, at) : broadcast(0);
}

// ---------------------------------------------------------------------------------------------------------
// Rows in registers.

struct Lanes {
  I entry, column, pair;  // which entry, column of the image, and entry of the result
  B active;
  V left[kMost], right[kMost];  // 1 where the neighbour so many columns away belongs to the slice
  I weights;                    // of the column: place in a table of column weights
#if WL_STAGED
  P a, b;  // both samples
#else
  Q a, b;
#endif
  int tile_row, tile_column;  // first row and column of the tile of pairs that a block computes together
};

// Fields on their way into shared memory: the channels of the input, then the profile of each layer.
#if WL_TILED
constexpr int kHalf = (kTileRows + kTileColumns) * kField;  // while one field is used, the next one is sent
WL_FN void send_field(const Call& c, int tile_row, int tile_column, int field) {
  send<kTileRows + kTileColumns, kField, 32 * kWarps>(field % 2 * kHalf, [&](int i) {
    const bool left = i < kTileRows;
    const int row = tile_row + i, column = tile_column + i - kTileRows;
    const int which = left ? c.rows[row < c.n_rows ? row : c.n_rows - 1] : c.columns[column < c.n_columns ? column : c.n_columns - 1];
    return (left ? c.left : c.right) + (long long)which * kSample + field * kField;
  });
}
#endif

// The place of a field from that of the first one. Where fields are sent, once it is there.
WL_FN int place_of_field(const Call& c, const Lanes& m, int field) {
#if WL_TILED
  arrived();
  if (field + 1 < kC + kLayers) send_field(c, m.tile_row, m.tile_column, field + 1);
  return field % 2 * kHalf;
#else
  return field * kField;
#endif
}

template <int R>
WL_FN V box_columns(V v, const Lanes& m) {
  V s = v;
  WL_UNROLL for (int a = 1; a <= R; ++a) s = mad(m.right[a - 1], shuffle_down(v, a), mad(m.left[a - 1], shuffle_up(v, a), s));
  return s;
}

// Rows first .. last, those of them that there are; the bounds are constants once loops are unrolled.
template <int N, int M>
WL_FN V sum_rows(const V (&h)[N], int first) {
  V s = h[0];
  bool any_yet = false;
  WL_UNROLL for (int a = 0; a < M; ++a) {
    const int r = first + a;
    if (r < 0 || r >= N) continue;
    s = any_yet ? s + h[r] : h[r];
    any_yet = true;
  }
  return s;
}

// Rows O .. O + N - 1 of one column of a field, a cell at a time; asked for in their order. What lies in the memory of the
// card is fetched a cell ahead: it takes as long as the arithmetic of a few rows.
template <int O, int N>
struct Column {
  static constexpr int last = (O + N - 1) / kCell;
  P at;
  Cell cell, next;
  WL_FN explicit Column(P p) : at(p) {}
  WL_FN Cell fetch(int index) { return load_cell(at, index * (kW * kCell)); }
  WL_FN V get(int i) {
    const int r = i + O, index = r / kCell;
    if (i == 0 || r % kCell == 0) {
      cell = i == 0 || WL_STAGED || WL_TILED ? fetch(index) : next;
      if (!WL_STAGED && !WL_TILED && index < last) next = fetch(index + 1);
    }
    return part(cell, r % kCell);
  }
};

WL_FN V sum_lanes(V v) {
  WL_UNROLL for (int d = 16; d; d /= 2) v = v + shuffle_down(v, d);
  return v;
}

// Over the columns of the image, in the lane of the first. Where their number is even the halves are folded first, which
// change places in the entry that is its own opposite.
WL_FN V sum_columns(V v, I column) {
  if (kColumns == 32) return sum_lanes(v);
  constexpr int n = kColumns > 1 && kColumns % 2 == 0 ? kColumns / 2 : kColumns;
  if (n < kColumns) v = v + shuffle_down(v, n);
  WL_UNROLL for (int d = 16; d; d /= 2)
    if (d < n) v = v + select(column + d < n, shuffle_down(v, d), broadcast(0));
  return v;
}

// Sums over the slice of what layer S has left in K and T, one for each readout and field of R.
template <class S, class R, int N>
WL_FN void read_out(const Call& c, const V (&K)[N], const V (&T)[N], const Lanes& m, int first_tap, int first_field) {
  constexpr bool theta = S::flags & kOutTheta, merged = S::flags & kMerge;
  int f = 0;
  WL_UNROLL for (int t = 0; t < R::taps; ++t) {
    const V weight = gather(c.column_weights + (first_tap + t) * (2 * kW - 1) * kW, m.weights, m.active);
    WL_UNROLL for (int field = 0; field < 2; ++field) {
      if (!((field ? R::want_theta : R::want_k) >> t & 1)) continue;
      V sum = broadcast(0);
      WL_UNROLL for (int i = 0; i < N; ++i) {
        if (field && !theta) continue;
        const V term = !field ? K[i] : merged ? T[i] - K[i] : T[i];
        if (R::unit >> t & 1)
          sum = i ? sum + term : term;
        else
          sum = mad(term, broadcast(c.row_weights[((first_tap + t) * kH + kH - N) * kH + i]), sum);
      }
      const V total = sum_columns(sum * weight, m.column);
      scatter(c.partial + (long long)(first_field + f) * c.n_entries * c.pairs(), m.entry * c.pairs() + m.pair, total,
              m.active & (m.column == 0));
      ++f;
    }
  }
}

template <class S, int N>
WL_FN void layer(V (&K)[N], V (&T)[N], P x, P z, const Lanes& m, V bias) {
  constexpr int R = S::filter / 2;
  constexpr bool own = S::flags & kOwn, relu = S::flags & kRelu, out_k = S::flags & kOutK, out_theta = S::flags & kOutTheta;
  Column<0, N> xs(x);
  Column<kH - N, N> zs(z);
  V hk[N], ht[N];  // sums over columns
  WL_UNROLL for (int r = 0; r < R; ++r)
    if (r < N) {
      hk[r] = box_columns<R>(K[r], m);
      if (own) ht[r] = box_columns<R>(T[r], m);
    }
  auto row = [&](int i, V s, V theta) {
    V k = s, made = theta, stored = theta;
    const V xv = relu ? xs.get(i) : s, zv = relu ? zs.get(i) : s;
    element<S>(xv, zv, s, theta, bias, k, made, stored);
    if (out_k) K[i] = k;
    if (out_theta) T[i] = stored;
  };
  // Rows by twos: the windows of two neighbours share all rows but one each.
  WL_UNROLL for (int i = 0; i < N; i += 2) {
    WL_UNROLL for (int a = 0; a < 2; ++a)
      if (i + R + a < N) {
        hk[i + R + a] = box_columns<R>(K[i + R + a], m);
        if (own) ht[i + R + a] = box_columns<R>(T[i + R + a], m);
      }
    V s0 = hk[i], s1 = hk[i + 1 < N ? i + 1 : i], t0 = s0, t1 = s1;
    if (own) t0 = ht[i], t1 = ht[i + 1 < N ? i + 1 : i];
    if (R > 0) {
      const V both = sum_rows<N, 2 * R>(hk, i + 1 - R);
      s0 = i >= R ? hk[i >= R ? i - R : 0] + both : both;
      s1 = i + 1 + R < N ? both + hk[i + 1 + R < N ? i + 1 + R : 0] : both;
      if (own) {
        const V both_t = sum_rows<N, 2 * R>(ht, i + 1 - R);
        t0 = i >= R ? ht[i >= R ? i - R : 0] + both_t : both_t;
        t1 = i + 1 + R < N ? both_t + ht[i + 1 + R < N ? i + 1 + R : 0] : both_t;
      }
    }
    row(i, s0, t0);
    if (i + 1 < N) row(i + 1, s1, t1);
  }
}

// Covariance of the inputs.
template <class S, int N>
WL_FN void input(const Call& c, V (&K)[N], P x, P z, const Lanes& m) {
  WL_UNROLL for (int i = 0; i < N; ++i) K[i] = broadcast(0);
  WL_KEEP for (int channel = 0; channel < kC; ++channel) {
    const int place = place_of_field(c, m, channel);
    Column<0, N> xs(advance(x, place));
    Column<kH - N, N> zs(advance(z, place));
    WL_UNROLL for (int i = 0; i < N; ++i) K[i] = mad(xs.get(i), zs.get(i), K[i]);
  }
  WL_UNROLL for (int i = 0; i < N; ++i) K[i] = K[i] * S::scale();
}

// All layers, defined by the generated source: calls `input`, `layer` and `read_out`.
template <int N>
WL_FN void all_layers(const Call& c, P x, P z, const Lanes& m, I depth);

#if WL_ROWS
// A slice of N rows; `row` and `column` are those of its pair, and `m` lacks all that follows from the entry.
template <int N>
WL_FN void sweep_slice(const Call& c, Lanes& m, P a, P b, I row, I column) {
  m.pair = c.pairwise ? row : row * c.n_columns + column;
  const I dj = gather(c.entries, m.entry * 4 + 1, m.active), how = gather(c.entries, m.entry * 4 + 2, m.active);
  const I depth = gather(c.entries, m.entry * 4 + 3, m.active);
  const B swapped = how == 1;
  const I cut = kW - dj;
  const B before = m.column < cut;
  const I local = select(before, m.column, m.column - cut), width = select(before, cut, dj);
  const I other = select(before, m.column + dj, m.column - cut);
  WL_UNROLL for (int k = 1; k <= kReach; ++k) {
    m.left[k - 1] = select(m.active & (local >= k), broadcast(1), broadcast(0));
    m.right[k - 1] = select(m.active & (local + k < width), broadcast(1), broadcast(0));
  }
  m.weights = select(before, dj + (kW - 1), dj - 1) * kW + local;
  P x = advance(choose(swapped, b, a), m.column * kCell);
  P z = advance(choose(swapped, a, b), other * kCell);
  all_layers<N>(c, x, z, m, depth);
}

#if WL_TILED
// What one block does: the one slice of N rows that the pairs of a tile have. Fields of its samples come into shared
// memory one by one, and all warps use a field at a time.
template <int N>
WL_FN void run_rows(const Call& c, int block, int) {
  const int across = (c.n_columns + kTileColumns - 1) / kTileColumns;
  Lanes m;
  m.tile_row = block / across * kTileRows;
  m.tile_column = block % across * kTileColumns;
  WL_EACH_WARP(warp) {
    send_field(c, m.tile_row, m.tile_column, 0);
    const I lane = lane_index(), group = lane / kW;
    m.column = lane - group * kW;
    const I in = select(group < kSlices, group + warp * kSlices, group * 0);
    const I row = in / kTileColumns + m.tile_row, column = in % kTileColumns + m.tile_column;
    m.active = (group < kSlices) & (row < c.n_rows) & (column < c.n_columns);
    m.entry = in * 0 + c.variants[2 * N];
    m.a = sample_of(c.left, gather(c.rows, row, m.active), kSample);
    m.b = sample_of(c.right, gather(c.columns, column, m.active), kSample);
    const P a = staged_sample(in / kTileColumns, kField), b = staged_sample(in % kTileColumns + kTileRows, kField);
    sweep_slice<N>(c, m, a, b, row, column);
  }
}
#else
// Slices of N rows: item `task * kSlices` and those after it. Staged: of the pair `slot`, whose samples lie in shared
// memory; else items go through the entries of all pairs.
template <int N>
WL_FN void sweep(const Call& c, int slot, int task, int n_items) {
  const int first = c.variants[2 * N], count = c.variants[2 * N + 1];
  const I lane = lane_index(), group = lane / kW;
  Lanes m;
  m.tile_row = m.tile_column = 0;
  m.column = lane - group * kW;
  const I item = group + task * kSlices;
  m.active = (group < kSlices) & (item < n_items);
  const I index = select(m.active, item, item * 0);
#if WL_STAGED
  m.entry = index + first;
  I row = index * 0 + slot / c.n_columns, column = index * 0 + slot % c.n_columns;
  if (c.pairwise) row = column = index * 0 + slot;
#else
  m.entry = index % count + first;
  const I place = index / count;  // places of pairs go through tiles of kTileRows x kTileColumns
  I row = place, column = place;
  if (!c.pairwise) {
    constexpr int tile = kTileRows * kTileColumns;
    const int across = (c.n_columns + kTileColumns - 1) / kTileColumns;
    const I which = place / tile, in = place % tile;
    row = which / across * kTileRows + in / kTileColumns;
    column = which % across * kTileColumns + in % kTileColumns;
    m.active = m.active & (row < c.n_rows) & (column < c.n_columns);
  }
#endif
  if (!some(m.active)) return;
#if WL_STAGED
  m.a = staged_sample(lane * 0, kSample);
  m.b = staged_sample(lane * 0 + 1, kSample);
  const P a = m.a, b = m.b;
#else
  m.a = sample_of(c.left, gather(c.rows, row, m.active), kSample);
  m.b = sample_of(c.right, gather(c.columns, column, m.active), kSample);
  const P a{m.a}, b{m.b};
#endif
  sweep_slice<N>(c, m, a, b, row, column);
}

WL_FN int slots(const Call& c) {
  constexpr int tile = kTileRows * kTileColumns;
  if (c.pairwise) return c.n_rows;
  return ((c.n_rows + kTileRows - 1) / kTileRows) * ((c.n_columns + kTileColumns - 1) / kTileColumns) * tile;
}

// All slices of N rows, dealt out to warps; `task` is the next one of this warp, then that of the next number of rows.
template <int N>
WL_FN void sweep_all(const Call& c, int slot, int& task, int n_warps) {
  const int n_items = (WL_STAGED ? 1 : slots(c)) * c.variants[2 * N + 1];
  const int tasks = (n_items + kSlices - 1) / kSlices;
  WL_KEEP for (; task < tasks; task += n_warps) sweep<N>(c, slot, task, n_items);
  task -= tasks;
}

// What one block does, for each number of rows in turn.
template <int... Ns>
WL_FN void run_rows(const Call& c, int block, int n_blocks) {
#if WL_STAGED
  const int row = c.pairwise ? block : block / c.n_columns, column = c.pairwise ? block : block % c.n_columns;
  stage_samples<kSample, 32 * kWarps>(c.left + (long long)c.rows[row] * kSample, c.right + (long long)c.columns[column] * kSample);
  WL_EACH_WARP(warp) {
    int task = warp;
    (sweep_all<Ns>(c, block, task, kWarps), ...);
  }
#else
  WL_EACH_WARP(warp) {
    int task = block * kWarps + warp;
    (sweep_all<Ns>(c, 0, task, n_blocks * kWarps), ...);
  }
#endif
}
#endif
#endif

// ---------------------------------------------------------------------------------------------------------
// Fields in memory: images of any size. One block takes a slice through all layers, a layer at a time.

#if WL_FIELDS
constexpr int kStrip = 8;  // rows that a lane computes one after the other
constexpr int kAcross = (kW + 31) / 32, kDown = (kH + kStrip - 1) / kStrip;

struct Slice {
  int entry, pair, depth, di, height, width;  // its extent
  int x_at, z_at;                             // row * kW + column of the first pixel of either image
  int weights;                                // its row in a table of column weights
  P x, z;
};

struct Fields {
  Scalar *k, *theta;
};

WL_FN V pixel(P at, int first, int row, I column, B where) {
  const int r = row + first / kW;
  return load_or_zero(at, ((r / kCell) * kW + column + first % kW) * kCell + r % kCell, where);
}


// Layer S of a slice, or its input: the strips of one warp. `sums`: [warp][field] of the readouts of this layer.
template <class S, class R>
WL_FN void strips(const Call& c, const Slice& d, int layer, int first_tap, Fields in, Fields out, int warp, Scalar* sums) {
  constexpr int reach = S::filter / 2, M = kStrip + 2 * reach;
  constexpr bool first = S::input, own = S::flags & kOwn, relu = S::flags & kRelu;
  constexpr bool out_k = S::flags & kOutK, out_theta = S::flags & kOutTheta;
  constexpr int n = R::fields > 0 ? R::fields : 1;
  V total[n];
  WL_UNROLL for (int f = 0; f < n; ++f) total[f] = broadcast(0);
  const P x = advance(d.x, first ? 0 : (kC + layer - 1) * kField), z = advance(d.z, first ? 0 : (kC + layer - 1) * kField);
  const V bias = bias_of<S>(d.x, d.z, layer);
  const I lane = lane_index();
  WL_KEEP for (int strip = warp; strip < kAcross * kDown; strip += kWarps) {
    const int row = strip / kAcross * kStrip;
    const I column = lane + strip % kAcross * 32;
    const B inside = column < d.width;
    if (row >= d.height || !some(inside)) continue;
    V hk[M], ht[M];
    if (!first) {
      WL_UNROLL for (int a = 0; a < M; ++a) {
        const int r = row + a - reach;
        const bool there = r >= 0 && r < d.height;
        V sk = broadcast(0), st = sk;
        WL_UNROLL for (int b = -reach; b <= reach; ++b) {
          const B where = (column + b >= 0) & (column + b < d.width) & there_in_all(there);
          const V vk = gather(in.k, column + (r * kW + b), where);
          sk = b == -reach ? vk : sk + vk;
          if (own) {
            const V vt = gather(in.theta, column + (r * kW + b), where);
            st = b == -reach ? vt : st + vt;
          }
        }
        hk[a] = sk;
        ht[a] = st;
      }
    }
    V part[n];
    WL_UNROLL for (int i = 0; i < kStrip; ++i) {
      const int r = row + i;
      const B where = inside & there_in_all(r < d.height);
      V k = broadcast(0), made = k, stored = k;
      if (first) {
        WL_KEEP for (int channel = 0; channel < kC; ++channel)
          k = mad(pixel(advance(x, channel * kField), d.x_at, r, column, where),
                  pixel(advance(z, channel * kField), d.z_at, r, column, where), k);
        k = k * S::scale();
      } else {
        V s = hk[i], theta = ht[i];
        WL_UNROLL for (int a = 1; a <= 2 * reach; ++a) {
          s = s + hk[i + a];
          if (own) theta = theta + ht[i + a];
        }
        const V xv = relu ? pixel(x, d.x_at, r, column, where) : s, zv = relu ? pixel(z, d.z_at, r, column, where) : s;
        element<S>(xv, zv, s, theta, bias, k, made, stored);
      }
      if (out_k) scatter(out.k, column + r * kW, k, where);
      if (out_theta) scatter(out.theta, column + r * kW, stored, where);
      if (R::taps == 0) continue;
      int f = 0;
      WL_UNROLL for (int t = 0; t < R::taps; ++t) {
        const Scalar weight =
            R::unit >> t & 1 || r >= d.height ? Scalar(1) : c.row_weights[((first_tap + t) * kH + d.di) * kH + r];
        WL_UNROLL for (int field = 0; field < 2; ++field) {
          if (!((field ? R::want_theta : R::want_k) >> t & 1)) continue;
          const V term = select(where, (field ? made : k) * weight, broadcast(0));
          part[f] = i ? part[f] + term : term;
          ++f;
        }
      }
    }
    int f = 0;
    WL_UNROLL for (int t = 0; t < R::taps; ++t) {
      const V weight = gather(c.column_weights + ((first_tap + t) * (2 * kW - 1) + d.weights) * kW, column, inside);
      WL_UNROLL for (int field = 0; field < 2; ++field) {
        if (!((field ? R::want_theta : R::want_k) >> t & 1)) continue;
        total[f] = mad(part[f], weight, total[f]);
        ++f;
      }
    }
  }
  WL_UNROLL for (int f = 0; f < R::fields; ++f) scatter(sums, lane * 0 + warp * kFields + f, sum_lanes(total[f]), lane == 0);
}

// After all warps have done their strips: the sums of the readouts, in the order of the warps.
template <class R>
WL_FN void gather_sums(const Call& c, const Slice& d, int first_field, const Scalar* sums, int warp) {
  if (R::fields == 0 || warp != 0) return;
  WL_KEEP for (int first = 0; first < R::fields; first += 32) {  // a field a lane
    const I f = lane_index() + first;
    const B mine = f < R::fields;
    V total = broadcast(0);
    WL_KEEP for (int w = 0; w < kWarps; ++w) total = total + gather(sums, f + w * kFields, mine);
    scatter(c.partial + (long long)d.entry * c.pairs() + d.pair, (f + first_field) * (c.n_entries * c.pairs()), total, mine);
  }
}

// A layer of all warps; `turn` tells one layer from the next.
template <class S, class R>
WL_FN void field_layer(const Call& c, const Slice& d, int layer, int first_tap, int first_field, Fields (&fields)[2], int& turn,
                       Scalar* sums) {
  Scalar* const own = sums + turn * kWarps * kFields;
  WL_EACH_WARP(warp) strips<S, R>(c, d, layer, first_tap, fields[turn], fields[1 - turn], warp, own);
  WL_BARRIER();
  WL_EACH_WARP(warp) gather_sums<R>(c, d, first_field, own, warp);
  turn = 1 - turn;
}

// All layers, defined by the generated source: calls `field_layer`.
WL_FN void all_field_layers(const Call& c, const Slice& d, Fields (&fields)[2], Scalar* sums);

// What one block does: items, each an entry of a pair. `memory`: four fields.
WL_FN void run_fields(const Call& c, Scalar* memory, Scalar* sums, int block, int n_blocks) {
  Fields fields[2] = {{memory, memory + kH * kW}, {memory + 2 * kH * kW, memory + 3 * kH * kW}};
  WL_KEEP for (long long item = block; item < (long long)c.pairs() * c.n_entries; item += n_blocks) {
    Slice d;
    d.entry = int(item % c.n_entries);
    d.pair = int(item / c.n_entries);
    const int* e = c.entries + 4 * d.entry;
    const int row = c.pairwise ? d.pair : d.pair / c.n_columns, column = c.pairwise ? d.pair : d.pair % c.n_columns;
    d.depth = e[3];
    d.di = e[0];
    d.height = kH - e[0];
    d.width = kW - (e[1] < 0 ? -e[1] : e[1]);
    d.x_at = e[1] < 0 ? -e[1] : 0;
    d.z_at = e[0] * kW + (e[1] > 0 ? e[1] : 0);
    d.weights = e[1] + kW - 1;
    const P a = sample_of(c.left, lane_index() * 0 + c.rows[row], kSample);
    const P b = sample_of(c.right, lane_index() * 0 + c.columns[column], kSample);
    d.x = e[2] == 1 ? b : a;
    d.z = e[2] == 1 ? a : b;
    all_field_layers(c, d, fields, sums);
    WL_BARRIER();
  }
}
#endif

// ---------------------------------------------------------------------------------------------------------
// From sums of entries to sums of pairs, in one order; opposite displacements are added first.

struct Finish {
  const Scalar* partial;
  const int *rows, *columns;
  int n_rows, n_columns, pairwise, n_entries;
  const int* entries;
  const int* layers;                                 // [fields]: after which it is read
  const double* factors;                             // [fields]
  const long long *identity_left, *identity_right;   // [samples]
  const double* diagonal;                            // [samples of the left][fields]: of the slice d = 0 of k(x, x)
  const double *scale_left, *scale_right;            // [samples]
  double* out;                                       // [fields][pairs]
};

WL_FN void finish(const Finish& c, int field, int pair) {
  const int n = c.pairwise ? c.n_rows : c.n_rows * c.n_columns;
  const int row = c.rows[c.pairwise ? pair : pair / c.n_columns], column = c.columns[c.pairwise ? pair : pair % c.n_columns];
  const Scalar* at = c.partial + (long long)field * c.n_entries * n + pair;
  double total = 0;
  for (int e = 1; e < c.n_entries; ++e) {
    const bool alone = c.entries[4 * e + 2] == 2;
    if (c.entries[4 * e + 3] >= c.layers[field])
      total += double(at[(long long)e * n]) + (alone ? 0. : double(at[(long long)(e + 1) * n]));
    e += !alone;
  }
  const bool same = c.identity_left[row] == c.identity_right[column];
  const double zero = same ? c.diagonal[(long long)row * kFields + field] : double(at[0]);
  c.out[(long long)field * n + pair] = (zero + total) * (c.factors[field] * (c.scale_left[row] * c.scale_right[column]));
}
