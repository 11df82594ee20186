// NEON, as every 64-bit Arm has it.
#include <arm_neon.h>

namespace sitout::neon {

struct Lanes {
  using V = uint64x2_t;
  static constexpr int count = 2, interleave = 4;
  static SITOUT_INLINE V all(uint64_t word) { return vdupq_n_u64(word); }
  static SITOUT_INLINE V order(uint32_t base) {
    return vaddq_u64(vdupq_n_u64(base), vcombine_u64(vcreate_u64(0), vcreate_u64(1)));
  }
  static SITOUT_INLINE V load(const uint32_t* words) { return vmovl_u32(vld1_u32(words)); }
  static SITOUT_INLINE V multiply(V a, V b) { return vmull_u32(vmovn_u64(a), vmovn_u64(b)); }
  static SITOUT_INLINE V high(V a) { return vshrq_n_u64(a, 32); }
  static SITOUT_INLINE V exclusive_or(V a, V b, V c) { return veorq_u64(a, veorq_u64(b, c)); }
  static SITOUT_INLINE void arrange(V c0, V c1, V c2, V c3, uint32x4_t& low, uint32x4_t& high) {
    const uint32x4_t w01 = vtrn1q_u32(vreinterpretq_u32_u64(c0), vreinterpretq_u32_u64(c1));
    const uint32x4_t w23 = vtrn1q_u32(vreinterpretq_u32_u64(c2), vreinterpretq_u32_u64(c3));
    low = vreinterpretq_u32_u64(
        vtrn1q_u64(vreinterpretq_u64_u32(w01), vreinterpretq_u64_u32(w23)));
    high = vreinterpretq_u32_u64(
        vtrn2q_u64(vreinterpretq_u64_u32(w01), vreinterpretq_u64_u32(w23)));
  }
  static SITOUT_INLINE uint64_t bits16(V c0, V c1, V c2, V c3, uint32_t threshold) {
    uint32x4_t low, high;
    arrange(c0, c1, c2, c3, low, high);
    const uint16x8_t t = vdupq_n_u16(static_cast<uint16_t>(threshold));
    const uint16_t powers[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t bit = vld1q_u16(powers);
    const uint64_t first = vaddvq_u16(vandq_u16(vcgeq_u16(vreinterpretq_u16_u32(low), t), bit));
    const uint64_t second = vaddvq_u16(vandq_u16(vcgeq_u16(vreinterpretq_u16_u32(high), t), bit));
    return first | second << 8;
  }
  static SITOUT_INLINE uint64_t bits32(V c0, V c1, V c2, V c3, uint32_t threshold) {
    uint32x4_t low, high;
    arrange(c0, c1, c2, c3, low, high);
    const uint32x4_t t = vdupq_n_u32(threshold);
    const uint32_t powers[4] = {1, 2, 4, 8};
    const uint32x4_t bit = vld1q_u32(powers);
    const uint64_t first = vaddvq_u32(vandq_u32(vcgeq_u32(low, t), bit));
    const uint64_t second = vaddvq_u32(vandq_u32(vcgeq_u32(high, t), bit));
    return first | second << 4;
  }
  static SITOUT_INLINE void words(V c0, V c1, V c2, V c3, uint32_t* out) {
    uint32x4_t low, high;
    arrange(c0, c1, c2, c3, low, high);
    vst1q_u32(out, low);
    vst1q_u32(out + 4, high);
  }
};

struct Floats {
  using V = float32x4_t;
  using Value = float;
  static constexpr int count = 4;
  static SITOUT_INLINE V all(double value) { return vdupq_n_f32(static_cast<float>(value)); }
  static SITOUT_INLINE V load(const float* x) { return vld1q_f32(x); }
  static SITOUT_INLINE void store(float* y, V v) { vst1q_f32(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return vmulq_f32(a, b); }
  static SITOUT_INLINE V divide(V a, V b) { return vdivq_f32(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return vaddq_f32(a, b); }
  static SITOUT_INLINE V subtract(V a, V b) { return vsubq_f32(a, b); }
  static SITOUT_INLINE V sum(V a, V b, V c) { return vfmaq_f32(c, a, b); }
  static SITOUT_INLINE V absolute(V a) { return vabsq_f32(a); }
  static SITOUT_INLINE uint32x4_t wide(uint64_t bits) {
    const uint32_t powers[4] = {1, 2, 4, 8};
    return vtstq_u32(vdupq_n_u32(static_cast<uint32_t>(bits)), vld1q_u32(powers));
  }
  static SITOUT_INLINE V keep(uint64_t bits, V v) {
    return vreinterpretq_f32_u32(vandq_u32(wide(bits), vreinterpretq_u32_f32(v)));
  }
  static SITOUT_INLINE V select(uint64_t bits, V a, V b) { return vbslq_f32(wide(bits), a, b); }
  static SITOUT_INLINE uint64_t nonzero(V v) {
    const uint32_t powers[4] = {1, 2, 4, 8};
    return vaddvq_u32(vbicq_u32(vld1q_u32(powers), vceqzq_f32(v)));
  }
  static SITOUT_INLINE V negative(V x, V a, V b) { return vbslq_f32(vcltzq_f32(x), a, b); }
  static SITOUT_INLINE V shift_exponent(V v, V t) {
    const uint32x4_t power = vshlq_n_u32(vreinterpretq_u32_f32(t), 23);
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(v), power));
  }
  static SITOUT_INLINE V widen_bfloat16(const uint16_t* x) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(x), 16));
  }
  static SITOUT_INLINE void narrow_bfloat16(uint16_t* y, V v) {
    const uint32x4_t word = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(word, 16), vdupq_n_u32(1));
    const uint32x4_t even = vaddq_u32(vaddq_u32(word, odd), vdupq_n_u32(0x7FFF));
    const uint32x4_t number = vceqq_f32(v, v);
    const uint32x4_t quiet = vorrq_u32(word, vdupq_n_u32(0x400000));
    vst1_u16(y, vshrn_n_u32(vbslq_u32(number, even, quiet), 16));
  }
  static SITOUT_INLINE V widen_float16(const uint16_t* x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)));
  }
  static SITOUT_INLINE void narrow_float16(uint16_t* y, V v) {
    vst1_u16(y, vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }
};

struct Doubles {
  using V = float64x2_t;
  using Value = double;
  static constexpr int count = 2;
  static SITOUT_INLINE V all(double value) { return vdupq_n_f64(value); }
  static SITOUT_INLINE V load(const double* x) { return vld1q_f64(x); }
  static SITOUT_INLINE void store(double* y, V v) { vst1q_f64(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return vmulq_f64(a, b); }
  static SITOUT_INLINE V divide(V a, V b) { return vdivq_f64(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return vaddq_f64(a, b); }
  static SITOUT_INLINE V subtract(V a, V b) { return vsubq_f64(a, b); }
  static SITOUT_INLINE V sum(V a, V b, V c) { return vfmaq_f64(c, a, b); }
  static SITOUT_INLINE V root(V a) { return vsqrtq_f64(a); }
  static SITOUT_INLINE V absolute(V a) { return vabsq_f64(a); }
  static SITOUT_INLINE uint64x2_t wide(uint64_t bits) {
    const uint64_t powers[2] = {1, 2};
    return vtstq_u64(vdupq_n_u64(bits), vld1q_u64(powers));
  }
  static SITOUT_INLINE V keep(uint64_t bits, V v) {
    return vreinterpretq_f64_u64(vandq_u64(wide(bits), vreinterpretq_u64_f64(v)));
  }
  static SITOUT_INLINE V select(uint64_t bits, V a, V b) { return vbslq_f64(wide(bits), a, b); }
  static SITOUT_INLINE uint64_t nonzero(V v) {
    const uint64x2_t zero = vceqzq_f64(v);
    return (~vgetq_lane_u64(zero, 0) & 1) | (~vgetq_lane_u64(zero, 1) & 2);
  }
  static SITOUT_INLINE V negative(V x, V a, V b) { return vbslq_f64(vcltzq_f64(x), a, b); }
  static SITOUT_INLINE V shift_exponent(V v, V t) {
    const uint64x2_t power = vshlq_n_u64(vreinterpretq_u64_f64(t), 52);
    return vreinterpretq_f64_u64(vaddq_u64(vreinterpretq_u64_f64(v), power));
  }
  // The bits of v shifted right, then those in `kept` of them, then `set` besides.
  static SITOUT_INLINE V bits(V v, int shift, uint64_t kept, uint64_t set) {
    const uint64x2_t word = vshlq_u64(vreinterpretq_u64_f64(v), vdupq_n_s64(-shift));
    return vreinterpretq_f64_u64(vorrq_u64(vandq_u64(word, Lanes::all(kept)), Lanes::all(set)));
  }
};

}  // namespace sitout::neon
