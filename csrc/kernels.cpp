// The kernels of one target: bits of a mask for a run of columns, and what they do to the values.
// The build compiles this file once for each instruction set.
#include <algorithm>

#include "core.h"
#include "lanes.h"
#include "philox.h"
#include "plan.h"

namespace sitout::SITOUT_TARGET {
namespace {

constexpr int64_t chunk = 4096;  // the most columns whose bits are made at once

enum Kind : uint32_t { narrow = 0, wide = 1 };

// Write one bit for each column of the bytes [byte, byte + count): the columns 8 byte, 8 byte + 1, ...
// May write up to 8 bytes more.
void make_bits(uint8_t* out, int64_t byte, int64_t count, uint32_t row, uint32_t step,
               const Address& address, Rate rate) {
  const bool is_narrow = rate.bits == 16;
  const auto r = Lanes::all(row), s = Lanes::all(step);
  const auto site = Lanes::all(address.site | uint32_t(is_narrow ? narrow : wide) << 28);
  const int bits = is_narrow ? 8 * Lanes::count : 4 * Lanes::count;  // that one call makes
  uint64_t word = 0;
  int held = 0;
  int64_t block = is_narrow ? byte : 2 * byte;
  for (int64_t done = 0; done < count; block += Lanes::count) {
    auto c0 = Lanes::order(static_cast<uint32_t>(block)), c1 = r, c2 = s, c3 = site;
    philox<Lanes>(c0, c1, c2, c3, address.key);
    const uint64_t made = is_narrow ? Lanes::bits16(c0, c1, c2, c3, rate.threshold)
                                    : Lanes::bits32(c0, c1, c2, c3, rate.threshold);
    if (bits >= 8) {
      std::memcpy(out + done, &made, 8);
      done += bits / 8;
    } else {  // half a byte
      word |= made << held;
      held += bits;
      if (held == 8) {
        out[done++] = static_cast<uint8_t>(word);
        word = 0;
        held = 0;
      }
    }
  }
}

// The bits from `at` on, at least 32 of them.
SITOUT_INLINE uint64_t bits_from(const uint8_t* bits, int64_t at) {
  uint64_t word;
  std::memcpy(&word, bits + (at >> 3), 8);
  return word >> (at & 7);
}

// How a type is read and written, and in which vectors it is computed.
struct Float32 {
  using Value = float;
  using Vector = Floats;
  static SITOUT_INLINE Floats::V load(const float* x) { return Floats::load(x); }
  static SITOUT_INLINE void store(float* y, Floats::V v) { Floats::store(y, v); }
};
struct Float64 {
  using Value = double;
  using Vector = Doubles;
  static SITOUT_INLINE Doubles::V load(const double* x) { return Doubles::load(x); }
  static SITOUT_INLINE void store(double* y, Doubles::V v) { Doubles::store(y, v); }
};
struct BFloat16 {
  using Value = uint16_t;
  using Vector = Floats;
  static SITOUT_INLINE Floats::V load(const uint16_t* x) { return Floats::widen_bfloat16(x); }
  static SITOUT_INLINE void store(uint16_t* y, Floats::V v) { Floats::narrow_bfloat16(y, v); }
};
struct Float16 {
  using Value = uint16_t;
  using Vector = Floats;
  static SITOUT_INLINE Floats::V load(const uint16_t* x) { return Floats::widen_float16(x); }
  static SITOUT_INLINE void store(uint16_t* y, Floats::V v) { Floats::narrow_float16(y, v); }
};

template <class T, bool shifted>
struct Values {
  using F = typename T::Vector;
  typename F::V scale, shift, dropped;

  explicit Values(const Law& law)
      : scale(F::all(law.scale)), shift(F::all(law.shift)), dropped(F::all(law.dropped)) {}

  SITOUT_INLINE void vector(const typename T::Value* x, typename T::Value* y, uint64_t bits) const {
    auto v = F::multiply(T::load(x), scale);
    if (shifted) v = F::add(v, shift);
    T::store(y, F::select(bits, v, dropped));
  }

  // Up to one vector, at any stride.
  SITOUT_INLINE void part(const typename T::Value* x, int64_t sx, typename T::Value* y, int64_t sy,
                          int64_t n, uint64_t bits) const {
    typename T::Value held[F::count] = {};
    for (int64_t i = 0; i < n; ++i) held[i] = x[i * sx];
    vector(held, held, bits);
    for (int64_t i = 0; i < n; ++i) y[i * sy] = held[i];
  }

  void run(const typename T::Value* x, int64_t sx, typename T::Value* y, int64_t sy, int64_t n,
           const uint8_t* bits, int64_t at) const {
    int64_t i = 0;
    if (sx == 1 && sy == 1) {
      for (; i + F::count <= n; i += F::count) vector(x + i, y + i, bits_from(bits, at + i));
    }
    for (; i < n; i += F::count)
      part(x + i * sx, sx, y + i * sy, sy, std::min<int64_t>(F::count, n - i),
           bits_from(bits, at + i));
  }

  // One bit for all.
  void same(const typename T::Value* x, int64_t sx, typename T::Value* y, int64_t sy, int64_t n,
            bool keep) const {
    const uint64_t bits = keep ? ~uint64_t{0} : 0;
    int64_t i = 0;
    if (sx == 1 && sy == 1) {
      for (; i + F::count <= n; i += F::count) vector(x + i, y + i, bits);
    }
    for (; i < n; i += F::count)
      part(x + i * sx, sx, y + i * sy, sy, std::min<int64_t>(F::count, n - i), bits);
  }
};

// Where an iteration over some dims stands.
struct Cursor {
  const Dim* dim;
  int count;
  int64_t index[max_dims] = {};
  int64_t x = 0, y = 0, col = 0, row = 0;

  Cursor(const Dim* dims, int n, int64_t start) : dim(dims), count(n) {
    for (int d = n - 1; d >= 0; --d) {
      index[d] = start % dim[d].size;
      start /= dim[d].size;
      move(d, index[d]);
    }
  }

  SITOUT_INLINE void move(int d, int64_t by) {
    x += by * dim[d].x;
    y += by * dim[d].y;
    col += by * dim[d].col;
    if (dim[d].row) row += by;
  }

  SITOUT_INLINE void next() {
    for (int d = count - 1; d >= 0; --d) {
      move(d, 1);
      if (++index[d] < dim[d].size) return;
      move(d, -dim[d].size);
      index[d] = 0;
    }
  }
};

SITOUT_INLINE uint32_t row_of(const Address& address, int64_t row) {
  return static_cast<uint32_t>(address.rows ? address.rows[row] : row);
}

SITOUT_INLINE uint32_t step_of(const Address& address, int64_t row) {
  return address.steps ? static_cast<uint32_t>(address.steps[row]) : address.step;
}

// Do the items [begin, end) of a job.
template <class T, bool shifted>
void drop(const Job& job, const Plan& plan, int64_t begin, int64_t end) {
  using Value = typename T::Value;
  const Values<T, shifted> values(job.law);
  const auto* x = static_cast<const Value*>(job.x);
  auto* y = static_cast<Value*>(job.y);
  const int outer = job.dims - plan.shared - plan.unit;
  const Dim run = plan.unit ? job.dim[outer] : Dim{1, 0, 0, 0, false};
  const Dim* const shared = job.dim + outer + plan.unit;
  alignas(64) uint8_t bits[chunk / 8 + 24];
  Cursor at(job.dim, outer, begin / plan.chunks);
  int64_t part = begin % plan.chunks;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = part * plan.step, n = std::min(plan.step, run.size - first);
    const int64_t col = job.col + at.col + first;
    make_bits(bits, col >> 3, ((col & 7) + n + 7) >> 3, row_of(job.address, at.row),
              step_of(job.address, at.row), job.address, job.rate);
    const Value* from = x + at.x + first * run.x;
    Value* to = y + at.y + first * run.y;
    if (plan.shared == 0) {
      values.run(from, run.x, to, run.y, n, bits, col & 7);
    } else {
      const Dim& last = shared[plan.shared - 1];
      for (int64_t i = 0; i < n; ++i) {
        const bool keep = bits_from(bits, (col & 7) + i) & 1;
        Cursor within(shared, plan.shared - 1, 0);
        for (int64_t done = 0; done < plan.shared_size; done += last.size) {
          values.same(from + i * run.x + within.x, last.x, to + i * run.y + within.y, last.y,
                      last.size, keep);
          within.next();
        }
      }
    }
    if (++part == plan.chunks) {
      part = 0;
      at.next();
    }
  }
}

template <class T>
void drop_type(const Job& job, const Plan& plan, int64_t begin, int64_t end) {
  job.law.shift == 0.0 ? drop<T, false>(job, plan, begin, end)
                       : drop<T, true>(job, plan, begin, end);
}

}  // namespace

void drop(const Job& job, const Plan& plan, int64_t begin, int64_t end) {
  switch (job.type) {
    case Type::float32: return drop_type<Float32>(job, plan, begin, end);
    case Type::float64: return drop_type<Float64>(job, plan, begin, end);
    case Type::bfloat16: return drop_type<BFloat16>(job, plan, begin, end);
    case Type::float16: return drop_type<Float16>(job, plan, begin, end);
  }
}

}  // namespace sitout::SITOUT_TARGET
