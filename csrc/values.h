// What the bits of a mask do to values: types, operations, and runs of them through memory.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core.h"
#include "functions.h"
#include "lanes.h"

namespace sitout::SITOUT_TARGET {

// How a type is read and written, and in which vectors it is computed.
struct Float32 {
  using Value = float;
  using F = Floats;
  static SITOUT_INLINE F::V load(const Value* x) { return F::load(x); }
  static SITOUT_INLINE void store(Value* y, F::V v) { F::store(y, v); }
};
struct Float64 {
  using Value = double;
  using F = Doubles;
  static SITOUT_INLINE F::V load(const Value* x) { return F::load(x); }
  static SITOUT_INLINE void store(Value* y, F::V v) { F::store(y, v); }
};
struct BFloat16 {
  using Value = uint16_t;
  using F = Floats;
  static SITOUT_INLINE F::V load(const Value* x) { return F::widen_bfloat16(x); }
  static SITOUT_INLINE void store(Value* y, F::V v) { F::narrow_bfloat16(y, v); }
};
struct Float16 {
  using Value = uint16_t;
  using F = Floats;
  static SITOUT_INLINE F::V load(const Value* x) { return F::widen_float16(x); }
  static SITOUT_INLINE void store(Value* y, F::V v) { F::narrow_float16(y, v); }
};

// An operation takes a value of each operand that it reads, and the bits of the mask.
struct Reads {
  bool other, bias, bits;
  bool zero = false;  // whether what is dropped becomes 0
};

template <class F>
struct Scale {
  static constexpr Reads reads{false, false, true, true};
  typename F::V scale;
  explicit Scale(const Law& law) : scale(F::all(law.scale)) {}
  SITOUT_INLINE Vector<F> operator()(Vector<F> x, Vector<F>, Vector<F>, uint64_t bits) const {
    return F::keep(bits, F::multiply(x, scale));
  }
};

template <class F>
struct Affine {
  static constexpr Reads reads{false, false, true};
  typename F::V scale, shift, dropped;
  explicit Affine(const Law& law)
      : scale(F::all(law.scale)), shift(F::all(law.shift)), dropped(F::all(law.dropped)) {}
  SITOUT_INLINE Vector<F> operator()(Vector<F> x, Vector<F>, Vector<F>, uint64_t bits) const {
    return F::select(bits, F::add(F::multiply(x, scale), shift), dropped);
  }
};

template <class F>
struct Add : Scale<F> {
  static constexpr Reads reads{true, false, true};
  using Scale<F>::Scale;
  SITOUT_INLINE Vector<F> operator()(Vector<F> x, Vector<F> other, Vector<F>, uint64_t bits) const {
    return F::select(bits, F::add(other, F::multiply(x, this->scale)), other);
  }
};

template <class F, class Function>
struct Activation : Scale<F> {
  static constexpr Reads reads{false, true, true, true};
  using Scale<F>::Scale;
  SITOUT_INLINE Vector<F> operator()(Vector<F> x, Vector<F>, Vector<F> bias, uint64_t bits) const {
    const auto made = Function::template value<F>(F::add(x, bias));
    return F::keep(bits, F::multiply(made, this->scale));
  }
};

template <class F, class Function>
struct Slope : Scale<F> {
  static constexpr Reads reads{true, true, true, true};
  using Scale<F>::Scale;
  SITOUT_INLINE Vector<F> operator()(Vector<F> x, Vector<F> other, Vector<F> bias,
                                     uint64_t bits) const {
    const auto slope = Function::template slope<F>(F::add(other, bias));
    return F::keep(bits, F::multiply(F::multiply(x, this->scale), slope));
  }
};

// The output of relu and dropout is not 0 exactly where a positive value was kept.
template <class F>
struct ReluSlope : Scale<F> {
  static constexpr Reads reads{true, false, false};
  using Scale<F>::Scale;
  SITOUT_INLINE Vector<F> operator()(Vector<F> x, Vector<F> other, Vector<F>, uint64_t) const {
    return F::keep(F::nonzero(other), F::multiply(x, this->scale));
  }
};

// Where the operands of a run begin, and their strides.
template <class Value>
struct Run {
  const Value* in[Y];
  Value* y;
  int64_t stride[operands];

  SITOUT_INLINE Run(const Job& job, const int64_t* offset, const Dim& along)
      : y(static_cast<Value*>(job.y) + offset[Y]) {
    for (int o = X; o < Y; ++o) in[o] = static_cast<const Value*>(job.input[o]) + offset[o];
    for (int o = X; o < operands; ++o) stride[o] = along.stride[o];
  }

  // The same at another stretch of memory.
  SITOUT_INLINE void move(const Dim& dim, int64_t by) {
    for (int o = X; o < Y; ++o) in[o] += by * dim.stride[o];
    y += by * dim.stride[Y];
  }
};

// Up to 64 elements of a run at a time, with a word of bits for them.
template <class T, class Operation>
class Values {
 public:
  using Value = typename T::Value;
  using F = typename T::F;
  static constexpr Reads reads = Operation::reads;

  explicit Values(const Job& job) : operation_(job.law), has_bias_(job.input[BIAS] != nullptr) {}

  SITOUT_INLINE bool is_flat(const Run<Value>& run) const {
    return run.stride[X] == 1 && run.stride[Y] == 1 && (!reads.other || run.stride[OTHER] == 1) &&
           (!has_bias_ || run.stride[BIAS] == 1);
  }

  SITOUT_INLINE void word(const Run<Value>& run, bool flat, int64_t i, int64_t n,
                          uint64_t bits) const {
    if (flat && n == 64) {
#pragma GCC unroll 4
      for (int j = 0; j < 64; j += F::count) vector(run, i + j, bits >> j);
    } else {
      some(run, flat, i, n, bits);
    }
  }

 private:
  SITOUT_INLINE void vector(const Run<Value>& run, int64_t i, uint64_t bits) const {
    const auto x = T::load(run.in[X] + i);
    const auto other = reads.other ? T::load(run.in[OTHER] + i) : x;
    const auto bias = reads.bias && has_bias_ ? T::load(run.in[BIAS] + i) : F::all(-0.0);
    T::store(run.y + i, operation_(x, other, bias, bits));
  }

  __attribute__((noinline)) void some(const Run<Value>& run, bool flat, int64_t i, int64_t n,
                                      uint64_t bits) const {
    int64_t done = 0;
    if (flat)
      for (; done + F::count <= n; done += F::count) vector(run, i + done, bits >> done);
    for (; done < n; done += F::count)
      part(run, i + done, std::min<int64_t>(F::count, n - done), bits >> done);
  }

  // Less than a vector, or one that does not lie together.
  void part(const Run<Value>& run, int64_t i, int64_t n, uint64_t bits) const {
    Value held[Y][F::count] = {}, made[F::count];
    for (int64_t j = 0; j < n; ++j) held[X][j] = run.in[X][(i + j) * run.stride[X]];
    if (reads.other)
      for (int64_t j = 0; j < n; ++j) held[OTHER][j] = run.in[OTHER][(i + j) * run.stride[OTHER]];
    if (reads.bias && has_bias_)
      for (int64_t j = 0; j < n; ++j) held[BIAS][j] = run.in[BIAS][(i + j) * run.stride[BIAS]];
    const auto bias = has_bias_ ? T::load(held[BIAS]) : F::all(-0.0);  // x + -0 is x, for -0 too
    T::store(made, operation_(T::load(held[X]), T::load(held[OTHER]), bias, bits));
    for (int64_t j = 0; j < n; ++j) run.y[(i + j) * run.stride[Y]] = made[j];
  }

  const Operation operation_;
  const bool has_bias_;
};

// The bits themselves, a byte each.
class Marks {
 public:
  using Value = uint8_t;
  static constexpr Reads reads{false, false, true};

  explicit Marks(const Job&) {}

  SITOUT_INLINE bool is_flat(const Run<Value>& run) const { return run.stride[Y] == 1; }

  SITOUT_INLINE void word(const Run<Value>& run, bool flat, int64_t i, int64_t n,
                          uint64_t bits) const {
    uint8_t made[64];
    for (int j = 0; j < 8; ++j) {
      // Each byte holds all eight bits, keeps its own, and becomes 1 if that is set.
      uint64_t eight = (bits >> 8 * j & 0xFF) * 0x0101010101010101 & 0x8040201008040201;
      eight = (eight + 0x7F7F7F7F7F7F7F7F) >> 7 & 0x0101010101010101;
      std::memcpy(made + 8 * j, &eight, 8);
    }
    if (flat && n == 64) {
      std::memcpy(run.y + i, made, 64);
    } else {
      for (int64_t j = 0; j < n; ++j) run.y[(i + j) * run.stride[Y]] = made[j];
    }
  }
};

}  // namespace sitout::SITOUT_TARGET
