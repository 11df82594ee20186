// The kernels of one target. The build compiles this file once for each instruction set.
#include <algorithm>
#include <vector>

#include "core.h"
#include "plan.h"
#include "stream.h"
#include "values.h"

namespace sitout::SITOUT_TARGET {
namespace {

// Where an iteration over some dims stands.
class Cursor {
 public:
  int64_t at[operands] = {}, col = 0, row = 0;

  Cursor(const Dim* dims, int count, int64_t start) : dim_(dims), count_(count) {
    for (int d = count - 1; d >= 0; --d) {
      index_[d] = start % dim_[d].size;
      start /= dim_[d].size;
      move(dim_[d], index_[d]);
    }
  }

  SITOUT_INLINE void move(const Dim& dim, int64_t by) {
    for (int o = X; o < operands; ++o) at[o] += by * dim.stride[o];
    col += by * dim.col;
    if (dim.row) row += by;
  }

  SITOUT_INLINE void next() {
    for (int d = count_ - 1; d >= 0; --d) {
      move(dim_[d], 1);
      if (++index_[d] < dim_[d].size) return;
      move(dim_[d], -dim_[d].size);
      index_[d] = 0;
    }
  }

 private:
  const Dim* dim_;
  int count_;
  int64_t index_[max_dims] = {};
};

SITOUT_INLINE uint32_t row_of(const Address& address, int64_t row) {
  return static_cast<uint32_t>(address.rows ? address.rows[row] : row);
}

SITOUT_INLINE uint32_t step_of(const Address& address, int64_t row) {
  return address.steps ? static_cast<uint32_t>(address.steps[row]) : address.step;
}

SITOUT_INLINE uint64_t load_word(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, 8);
  return word;
}

constexpr uint64_t all_kept = ~uint64_t{0};

// Several lines of bits, each of whole words.
struct Lines {
  uint64_t word[item_words + 1];
  int64_t pitch;  // words of a line

  uint64_t* line(int64_t i) { return word + i * pitch; }
  bool bit(int64_t line, int64_t i) const { return word[line * pitch + i / 64] >> i % 64 & 1; }
};

int64_t words_for(int64_t bits) { return (bits + 63) / 64; }

// Mirror 64 words of 64 bits at the diagonal: bit j of word i becomes bit i of word j.
void mirror(uint64_t (&m)[64]) {
  uint64_t mask = 0x00000000FFFFFFFF;
  for (int width = 32; width > 0; width /= 2, mask ^= mask << width) {
    for (int base = 0; base < 64; base += 2 * width) {
      for (int i = base; i < base + width; ++i) {
        const uint64_t swapped = (m[i] >> width ^ m[i + width]) & mask;
        m[i] ^= swapped << width;
        m[i + width] ^= swapped;
      }
    }
  }
}

// Make columns of rows and rows of columns: `lines` lines of n bits become n lines.
void mirror(Lines& from, int64_t lines, int64_t n, Lines& to) {
  to.pitch = words_for(lines);
  for (int64_t i = 0; i < lines; i += 64) {
    for (int64_t j = 0; j < n; j += 64) {
      uint64_t m[64] = {};
      for (int64_t k = 0; k < std::min<int64_t>(64, lines - i); ++k) m[k] = from.line(i + k)[j / 64];
      mirror(m);
      for (int64_t k = 0; k < std::min<int64_t>(64, n - j); ++k) to.line(j + k)[i / 64] = m[k];
    }
  }
}

// Put the first n bits of each line behind those of the line before.
void pack(Lines& lines, int64_t count, int64_t n) {
  uint64_t* out = lines.word;
  uint64_t word = 0;
  int64_t held = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t* line = lines.line(i);
    for (int64_t left = n; left > 0; left -= 64, ++line) {
      const int64_t bits = std::min<int64_t>(left, 64);
      const uint64_t more = bits == 64 ? *line : *line & ((uint64_t{1} << bits) - 1);
      word |= more << held;
      if (held + bits >= 64) {
        *out++ = word;
        word = held == 0 ? 0 : more >> (64 - held);
        held -= 64;
      }
      held += bits;
    }
  }
  *out = word;
}

// One item of work.
struct Item {
  Cursor at;          // of its first element
  int64_t columns;    // of the unit dim
  int64_t lines;      // of the tile dim
  int64_t shared;     // of the first shared dim
};

Item item_of(const Job& job, const Plan& plan, int64_t index) {
  const int64_t parts = plan.unit_parts(), tiles = plan.tile_parts(), shares = plan.shared_parts();
  const int64_t unit = index % parts * plan.unit_step, tile = index / parts % tiles * plan.tile_step;
  const int64_t share = index / parts / tiles % shares * plan.shared_step;
  Item item{Cursor(plan.outer, plan.outers, index / parts / tiles / shares),
            std::min(plan.unit_step, plan.unit.size - unit),
            std::min(plan.tile_step, plan.tile.size - tile), 0};
  item.at.col += job.col;
  item.at.move(plan.unit, unit);
  item.at.move(plan.tile, tile);
  if (plan.shareds > 0) {
    item.shared = std::min(plan.shared_step, plan.shared[0].size - share);
    item.at.move(plan.shared[0], share);
  }
  return item;
}

// Make the bits of an item: a line for each index of the tile dim.
template <Kind kind>
void make_lines(const Job& job, const Plan& plan, const Stream& stream, const Item& item,
                Lines& lines) {
  uint8_t raw[item_words * 9 + Gatherer<kind>::margin];
  lines.pitch = words_for(item.columns);
  const auto bytes_of = [&](int64_t col) { return ((col & 7) + item.columns + 7) >> 3; };
  if (item.lines == 1) {
    each_word<kind>(stream, row_of(job.address, item.at.row), step_of(job.address, item.at.row),
                    item.at.col >> 3, words_for(bytes_of(item.at.col) * 8),
                    [&](int64_t i, uint64_t word) { std::memcpy(raw + 8 * i, &word, 8); });
  } else {
    Gatherer<kind> gather(stream, raw);
    Cursor at = item.at;
    for (int64_t i = 0; i < item.lines; ++i, at.move(plan.tile, 1))
      gather.add(row_of(job.address, at.row), step_of(job.address, at.row), at.col >> 3,
                 bytes_of(at.col));
    gather.flush();
  }
  const uint8_t* from = raw;
  int64_t col = item.at.col;
  for (int64_t i = 0; i < item.lines; ++i, col += plan.tile.col) {
    const int shift = static_cast<int>(col & 7);
    for (int64_t w = 0; w < lines.pitch; ++w) {
      const uint64_t word = load_word(from + 8 * w) >> shift;
      lines.line(i)[w] = shift == 0 ? word : word | uint64_t{from[8 * w + 8]} << (64 - shift);
    }
    from += bytes_of(col);
  }
}

template <class Kernel>
void line(const Kernel& kernel, const Run<typename Kernel::Value>& run, int64_t n,
          const uint64_t* words) {
  const bool flat = kernel.is_flat(run);
  for (int64_t i = 0; i < n; i += 64)
    kernel.word(run, flat, i, std::min<int64_t>(64, n - i), words[i / 64]);
}

template <class Kernel>
void same(const Kernel& kernel, const Run<typename Kernel::Value>& run, int64_t n, bool keep) {
  const bool flat = kernel.is_flat(run);
  if (Kernel::reads.zero && flat && !keep) {  // what sits out is not even read
    std::memset(run.y, 0, static_cast<size_t>(n) * sizeof(*run.y));
    return;
  }
  for (int64_t i = 0; i < n; i += 64)
    kernel.word(run, flat, i, std::min<int64_t>(64, n - i), keep ? all_kept : 0);
}

// Whether lines of n elements lie one behind the other.
template <class Kernel>
bool adjoin(const Dim& across, const Dim& along, int64_t n, const Job& job) {
  for (int o = X; o < operands; ++o) {
    if (o != Y && job.input[o] == nullptr) continue;
    if (along.stride[o] != 1 || across.stride[o] != n) return false;
  }
  return true;
}

// Use the bits of an item at every index of the shared dims.
template <class Kernel>
void apply(const Job& job, const Plan& plan, const Kernel& kernel, const Item& item, Lines& lines,
           Lines& spare) {
  using Value = typename Kernel::Value;
  const bool along_shared = plan.along == Along::shared;
  Dim shared[max_dims];
  std::copy(plan.shared, plan.shared + plan.shareds, shared);
  if (plan.shareds > 0) shared[0].size = item.shared;
  const int repeats = plan.shareds - along_shared;
  int64_t times = 1;
  for (int d = 0; d < repeats; ++d) times *= shared[d].size;

  // What runs along memory, and what runs across it.
  const bool turned = plan.along == Along::tile;
  if (turned && Kernel::reads.bits) mirror(lines, item.lines, item.columns, spare);
  Lines& bits = turned ? spare : lines;
  const Dim &across = turned ? plan.unit : plan.tile, &along = turned ? plan.tile : plan.unit;
  int64_t count = turned ? item.columns : item.lines, n = turned ? item.lines : item.columns;
  if (!along_shared && count > 1 && adjoin<Kernel>(across, along, n, job)) {
    if (Kernel::reads.bits) pack(bits, count, n);
    n *= count;
    count = 1;
  }
  Cursor repeat(shared, repeats, 0);
  for (int64_t time = 0; time < times; ++time, repeat.next()) {
    int64_t offset[operands];
    for (int o = X; o < operands; ++o) offset[o] = item.at.at[o] + repeat.at[o];
    if (!along_shared) {
      Run<Value> run(job, offset, along);
      for (int64_t i = 0; i < count; ++i, run.move(across, 1)) line(kernel, run, n, bits.line(i));
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      Run<Value> run(job, offset, shared[repeats]);
      run.move(across, i);
      for (int64_t j = 0; j < n; ++j, run.move(along, 1))
        same(kernel, run, shared[repeats].size, bits.bit(i, j));
    }
  }
}

// An item that is one line: each word is used as it is made.
template <Kind kind, class Kernel>
void stream_line(const Job& job, const Plan& plan, const Kernel& kernel, const Stream& stream,
                 const Item& item) {
  const Run<typename Kernel::Value> run(job, item.at.at, plan.unit);
  const bool flat = kernel.is_flat(run);
  const int64_t n = item.columns, before = item.at.col & 7;  // columns of the first byte, left out
  each_word<kind>(stream, row_of(job.address, item.at.row), step_of(job.address, item.at.row),
                  item.at.col >> 3, words_for(before + n), [&](int64_t w, uint64_t word) {
                    if (w == 0 && before > 0) {
                      kernel.word(run, flat, 0, std::min(64 - before, n), word >> before);
                    } else {
                      const int64_t i = 64 * w - before;
                      kernel.word(run, flat, i, std::min<int64_t>(64, n - i), word);
                    }
                  });
}

template <Kind kind, class Kernel>
void walk(const Job& job, const Plan& plan, int64_t begin, int64_t end) {
  const Kernel kernel(job);
  const Stream stream(job.address, kind, job.rate.threshold);
  Lines lines, spare;
  lines.pitch = spare.pitch = 1;
  const bool one_line = plan.along == Along::unit && plan.shareds == 0;
  for (int64_t index = begin; index < end; ++index) {
    const Item item = item_of(job, plan, index);
    if (Kernel::reads.bits && one_line && item.lines == 1) {
      stream_line<kind>(job, plan, kernel, stream, item);
    } else {
      if (Kernel::reads.bits) make_lines<kind>(job, plan, stream, item, lines);
      apply(job, plan, kernel, item, lines, spare);
    }
  }
}

template <class Kernel>
void walk(const Job& job, const Plan& plan, int64_t begin, int64_t end) {
  job.rate.bits == 16 ? walk<narrow, Kernel>(job, plan, begin, end)
                      : walk<wide, Kernel>(job, plan, begin, end);
}

// x times the factors of a run of columns.
template <class T>
void multiply(const Run<typename T::Value>& run, const typename T::F::Value* factor, int64_t n) {
  using F = typename T::F;
  const bool flat = run.stride[X] == 1 && run.stride[Y] == 1;
  for (int64_t i = 0; i < n; i += F::count) {
    if (flat && i + F::count <= n) {
      T::store(run.y + i, F::multiply(T::load(run.in[X] + i), F::load(factor + i)));
      continue;
    }
    const int64_t some = std::min<int64_t>(F::count, n - i);
    typename T::Value held[F::count] = {};
    for (int64_t j = 0; j < some; ++j) held[j] = run.in[X][(i + j) * run.stride[X]];
    T::store(held, F::multiply(T::load(held), F::load(factor + i)));
    for (int64_t j = 0; j < some; ++j) run.y[(i + j) * run.stride[Y]] = held[j];
  }
}

// x (1 + s z).
template <class T>
void noise(const Job& job, const Plan& plan, int64_t begin, int64_t end) {
  using F = typename T::F;
  constexpr int64_t most = 512, over = 16;  // columns at once, and what vectors reach beyond them
  const Stream stream(job.address, normal, 0);
  uint32_t words[2 * (most + over) + words_margin];
  double z[most + over];
  typename F::Value factor[most + over];
  for (int64_t index = begin; index < end; ++index) {
    Item item = item_of(job, plan, index);
    Dim shared[max_dims];
    std::copy(plan.shared, plan.shared + plan.shareds, shared);
    if (plan.shareds > 0) shared[0].size = item.shared;
    int64_t times = 1;
    for (int d = 0; d < plan.shareds; ++d) times *= shared[d].size;
    for (int64_t left = item.columns; left > 0; left -= most) {
      const int64_t n = std::min(left, most), odd = item.at.col & 1;
      write_words(words, stream, row_of(job.address, item.at.row),
                  step_of(job.address, item.at.row), item.at.col >> 1, (odd + n + 1) / 2);
      for (int64_t i = 0; i < n; i += Doubles::count) {
        double lanes[Doubles::count];
        std::memcpy(lanes, words + 2 * (odd + i), sizeof lanes);
        Doubles::store(z + i, box_muller(Doubles::load(lanes)));
      }
      for (int64_t i = 0; i < n; ++i) factor[i] = static_cast<typename F::Value>(z[i]);
      for (int64_t i = 0; i < n; i += F::count)
        F::store(factor + i, F::add(F::all(1.0), F::multiply(F::all(job.law.scale),
                                                             F::load(factor + i))));
      Cursor repeat(shared, plan.shareds, 0);
      for (int64_t time = 0; time < times; ++time, repeat.next()) {
        int64_t offset[operands];
        for (int o = X; o < operands; ++o) offset[o] = item.at.at[o] + repeat.at[o];
        multiply<T>(Run<typename T::Value>(job, offset, plan.unit), factor, n);
      }
      item.at.move(plan.unit, n);
    }
  }
}

template <class T>
void run_type(const Job& job, const Plan& plan, int64_t begin, int64_t end) {
  using F = typename T::F;
  switch (job.op) {
#define SITOUT_OP(name, ...) \
  case Op::name: return walk<Values<T, __VA_ARGS__>>(job, plan, begin, end)
    SITOUT_OP(scale, Scale<F>);
    SITOUT_OP(affine, Affine<F>);
    SITOUT_OP(add, Add<F>);
    SITOUT_OP(relu, Activation<F, Relu>);
    SITOUT_OP(gelu, Activation<F, Gelu>);
    SITOUT_OP(gelu_tanh, Activation<F, GeluTanh>);
    SITOUT_OP(silu, Activation<F, Silu>);
    SITOUT_OP(relu_slope, ReluSlope<F>);
    SITOUT_OP(gelu_slope, Slope<F, Gelu>);
    SITOUT_OP(gelu_tanh_slope, Slope<F, GeluTanh>);
    SITOUT_OP(silu_slope, Slope<F, Silu>);
#undef SITOUT_OP
    case Op::noise: return noise<T>(job, plan, begin, end);
    case Op::mask: return;
  }
}

}  // namespace

void run(const Job& job, const Plan& plan, int64_t begin, int64_t end) {
  switch (job.type) {
    case Type::float32: return run_type<Float32>(job, plan, begin, end);
    case Type::float64: return run_type<Float64>(job, plan, begin, end);
    case Type::bfloat16: return run_type<BFloat16>(job, plan, begin, end);
    case Type::float16: return run_type<Float16>(job, plan, begin, end);
    case Type::byte: return walk<Marks>(job, plan, begin, end);
  }
}

int64_t first(int64_t* out, int64_t n, int64_t k, uint32_t group, const Address& address) {
  const Stream stream(address, subset, 0);
  constexpr int64_t some = 256;  // blocks at once
  uint32_t words[4 * some + words_margin];
  std::vector<uint64_t> order(static_cast<size_t>(n));  // the word, then the index
  for (int64_t done = 0; done < n; done += 4 * some) {
    const int64_t left = std::min(n - done, 4 * some);
    write_words(words, stream, group, address.step, done / 4, (left + 3) / 4);
    for (int64_t i = 0; i < left; ++i)
      order[static_cast<size_t>(done + i)] =
          static_cast<uint64_t>(words[i]) << 32 | static_cast<uint32_t>(done + i);
  }
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end());
  for (int64_t i = 0; i < k; ++i) out[i] = static_cast<uint32_t>(order[static_cast<size_t>(i)]);
  const int64_t last = out[k - 1];
  std::sort(out, out + k);
  return last;
}

}  // namespace sitout::SITOUT_TARGET
