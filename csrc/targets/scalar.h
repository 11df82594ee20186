// Plain C++, for every machine: one lane, one number.
#include <cmath>

namespace sitout::scalar {

struct Lanes {
  using V = uint64_t;
  static constexpr int count = 1, interleave = 2;
  static SITOUT_INLINE V all(uint64_t word) { return word; }
  static SITOUT_INLINE V order(uint32_t base) { return base; }
  static SITOUT_INLINE V load(const uint32_t* words) { return *words; }
  static SITOUT_INLINE V multiply(V a, V b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
  static SITOUT_INLINE V high(V a) { return a >> 32; }
  static SITOUT_INLINE V exclusive_or(V a, V b, V c) { return a ^ b ^ c; }
  static SITOUT_INLINE uint64_t bits16(V c0, V c1, V c2, V c3, uint32_t threshold) {
    const uint32_t word[4] = {uint32_t(c0), uint32_t(c1), uint32_t(c2), uint32_t(c3)};
    uint64_t bits = 0;
    for (int lane = 0; lane < 8; ++lane)
      bits |= uint64_t((word[lane >> 1] >> (lane & 1) * 16 & 0xFFFF) >= threshold) << lane;
    return bits;
  }
  static SITOUT_INLINE uint64_t bits32(V c0, V c1, V c2, V c3, uint32_t threshold) {
    return uint64_t(uint32_t(c0) >= threshold) | uint64_t(uint32_t(c1) >= threshold) << 1 |
           uint64_t(uint32_t(c2) >= threshold) << 2 | uint64_t(uint32_t(c3) >= threshold) << 3;
  }
  static SITOUT_INLINE void words(V c0, V c1, V c2, V c3, uint32_t* out) {
    out[0] = uint32_t(c0), out[1] = uint32_t(c1), out[2] = uint32_t(c2), out[3] = uint32_t(c3);
  }
};

template <class To, class From>
SITOUT_INLINE To cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// What both widths share; Word is an unsigned integer of the width.
template <class Number, class Word, int mantissa>
struct Numbers {
  using V = Number;
  using Value = Number;
  static constexpr int count = 1;
  static SITOUT_INLINE V all(double value) { return static_cast<V>(value); }
  static SITOUT_INLINE V load(const V* x) { return *x; }
  static SITOUT_INLINE void store(V* y, V v) { *y = v; }
  static SITOUT_INLINE V multiply(V a, V b) { return a * b; }
  static SITOUT_INLINE V divide(V a, V b) { return a / b; }
  static SITOUT_INLINE V add(V a, V b) { return a + b; }
  static SITOUT_INLINE V subtract(V a, V b) { return a - b; }
  static SITOUT_INLINE V sum(V a, V b, V c) { return a * b + c; }
  static SITOUT_INLINE V absolute(V a) { return std::fabs(a); }
  static SITOUT_INLINE V keep(uint64_t bits, V v) { return bits & 1 ? v : V{0}; }
  static SITOUT_INLINE V select(uint64_t bits, V a, V b) { return bits & 1 ? a : b; }
  static SITOUT_INLINE uint64_t nonzero(V v) { return v != 0; }
  static SITOUT_INLINE V negative(V x, V a, V b) { return x < 0 ? a : b; }
  static SITOUT_INLINE V shift_exponent(V v, V t) {
    return cast<V>(static_cast<Word>(cast<Word>(v) + (cast<Word>(t) << mantissa)));
  }
};

struct Floats : Numbers<float, uint32_t, 23> {
  static SITOUT_INLINE V widen_bfloat16(const uint16_t* x) { return cast<float>(uint32_t(*x) << 16); }
  static SITOUT_INLINE void narrow_bfloat16(uint16_t* y, V v) {
    const uint32_t word = cast<uint32_t>(v);
    const uint32_t even = word + 0x7FFF + (word >> 16 & 1);
    *y = static_cast<uint16_t>((v != v ? word | 0x400000 : even) >> 16);
  }
  static SITOUT_INLINE V widen_float16(const uint16_t* x) {
    const uint32_t sign = uint32_t(*x & 0x8000) << 16, rest = *x & 0x7FFF;
    if (rest >= 0x7C00) return cast<float>(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    // Subnormal or not, the value is that of the shifted bits times 2^112.
    return cast<float>(sign | cast<uint32_t>(cast<float>(rest << 13) * cast<float>(0x77800000u)));
  }
  static SITOUT_INLINE void narrow_float16(uint16_t* y, V v) {
    const uint32_t word = cast<uint32_t>(v), rest = word & 0x7FFFFFFF;
    const uint16_t sign = static_cast<uint16_t>(word >> 16 & 0x8000);
    uint32_t half;
    if (rest > 0x7F800000) {
      half = 0x7E00 | (rest >> 13 & 0x3FF);  // NaN
    } else if (rest >= 0x477FF000) {
      half = 0x7C00;  // what rounds to 65536 or more
    } else if (rest < 0x38800000) {
      // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
      half = cast<uint32_t>(cast<float>(rest) + 0.5f) - 0x3F000000;
    } else {
      half = (rest + 0xFFF + (rest >> 13 & 1) - 0x38000000) >> 13;
    }
    *y = static_cast<uint16_t>(sign | half);
  }
};

struct Doubles : Numbers<double, uint64_t, 52> {
  static SITOUT_INLINE V root(V a) { return std::sqrt(a); }
  // The bits of v shifted right, then those in `kept` of them, then `set` besides.
  static SITOUT_INLINE V bits(V v, int shift, uint64_t kept, uint64_t set) {
    return cast<double>((cast<uint64_t>(v) >> shift & kept) | set);
  }
};

}  // namespace sitout::scalar
