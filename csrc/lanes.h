// One instruction set, chosen by the macro SITOUT_TARGET that the build defines: lanes for the mask
// function, and vectors of floats that are kept or dropped by the bits of a mask.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(SITOUT_AVX512) || defined(SITOUT_AVX2)
#include <immintrin.h>
#elif defined(SITOUT_NEON)
#include <arm_neon.h>
#endif

#define SITOUT_INLINE inline __attribute__((always_inline))

#if defined(SITOUT_AVX512)
#define SITOUT_TARGET avx512
#elif defined(SITOUT_AVX2)
#define SITOUT_TARGET avx2
#elif defined(SITOUT_NEON)
#define SITOUT_TARGET neon
#else
#define SITOUT_TARGET scalar
#endif

namespace sitout::SITOUT_TARGET {

// Each Lanes has: count, the number of lanes; order(base), the counters base, base + 1, ... in the
// order that bits16 and bits32 expect; and these two, which compare the words of `count` blocks
// with a threshold and return one bit for each lane of 16 or 32 bits, in the order of the columns.

#if defined(SITOUT_AVX512)

struct Lanes {
  using V = __m512i;
  static constexpr int count = 8;
  static SITOUT_INLINE V all(uint32_t word) { return _mm512_set1_epi64(word); }
  static SITOUT_INLINE V order(uint32_t base) {
    return _mm512_add_epi64(_mm512_set1_epi64(base), _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0));
  }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm512_mul_epu32(a, b); }
  static SITOUT_INLINE V high(V a) { return _mm512_srli_epi64(a, 32); }
  static SITOUT_INLINE V exclusive_or(V a, V b, V c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
  }
  // The words of blocks 0 to 3, then of 4 to 7, in the order of memory.
  static SITOUT_INLINE void arrange(V c0, V c1, V c2, V c3, V& low, V& high) {
    const V w01 = _mm512_mask_blend_epi32(0xAAAA, c0, _mm512_slli_epi64(c1, 32));
    const V w23 = _mm512_mask_blend_epi32(0xAAAA, c2, _mm512_slli_epi64(c3, 32));
    low = _mm512_unpacklo_epi64(w01, w23);
    high = _mm512_unpackhi_epi64(w01, w23);
  }
  static SITOUT_INLINE uint64_t bits16(V c0, V c1, V c2, V c3, uint32_t threshold) {
    V low, high;
    arrange(c0, c1, c2, c3, low, high);
    const V t = _mm512_set1_epi16(static_cast<int16_t>(threshold));
    return _mm512_cmpge_epu16_mask(low, t) |
           static_cast<uint64_t>(_mm512_cmpge_epu16_mask(high, t)) << 32;
  }
  static SITOUT_INLINE uint64_t bits32(V c0, V c1, V c2, V c3, uint32_t threshold) {
    V low, high;
    arrange(c0, c1, c2, c3, low, high);
    const V t = _mm512_set1_epi32(static_cast<int32_t>(threshold));
    return _mm512_cmpge_epu32_mask(low, t) |
           static_cast<uint64_t>(_mm512_cmpge_epu32_mask(high, t)) << 16;
  }
};

struct Floats {
  using V = __m512;
  static constexpr int count = 16;
  static SITOUT_INLINE V all(double value) { return _mm512_set1_ps(static_cast<float>(value)); }
  static SITOUT_INLINE V load(const float* x) { return _mm512_loadu_ps(x); }
  static SITOUT_INLINE void store(float* y, V v) { _mm512_storeu_ps(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm512_mul_ps(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
  static SITOUT_INLINE V select(uint64_t bits, V kept, V dropped) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), dropped, kept);
  }
  static SITOUT_INLINE V widen_bfloat16(const uint16_t* x) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static SITOUT_INLINE void narrow_bfloat16(uint16_t* y, V v) {
    const __m512i word = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
    const __m512i even = _mm512_add_epi32(_mm512_add_epi32(word, odd), _mm512_set1_epi32(0x7FFF));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(word, _mm512_set1_epi32(0x400000));
    const __m512i out = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, even, quiet), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_cvtepi32_epi16(out));
  }
  static SITOUT_INLINE V widen_float16(const uint16_t* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static SITOUT_INLINE void narrow_float16(uint16_t* y, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

struct Doubles {
  using V = __m512d;
  static constexpr int count = 8;
  static SITOUT_INLINE V all(double value) { return _mm512_set1_pd(value); }
  static SITOUT_INLINE V load(const double* x) { return _mm512_loadu_pd(x); }
  static SITOUT_INLINE void store(double* y, V v) { _mm512_storeu_pd(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm512_mul_pd(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return _mm512_add_pd(a, b); }
  static SITOUT_INLINE V select(uint64_t bits, V kept, V dropped) {
    return _mm512_mask_blend_pd(static_cast<__mmask8>(bits), dropped, kept);
  }
};

#elif defined(SITOUT_AVX2)

struct Lanes {
  using V = __m256i;
  static constexpr int count = 4;
  static SITOUT_INLINE V all(uint32_t word) { return _mm256_set1_epi64x(word); }
  static SITOUT_INLINE V order(uint32_t base) {
    return _mm256_add_epi64(_mm256_set1_epi64x(base), _mm256_set_epi64x(3, 1, 2, 0));
  }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm256_mul_epu32(a, b); }
  static SITOUT_INLINE V high(V a) { return _mm256_srli_epi64(a, 32); }
  static SITOUT_INLINE V exclusive_or(V a, V b, V c) {
    return _mm256_xor_si256(a, _mm256_xor_si256(b, c));
  }
  static SITOUT_INLINE void arrange(V c0, V c1, V c2, V c3, V& low, V& high) {
    const V w01 = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xAA);
    const V w23 = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xAA);
    low = _mm256_unpacklo_epi64(w01, w23);
    high = _mm256_unpackhi_epi64(w01, w23);
  }
  static SITOUT_INLINE uint64_t bits16(V c0, V c1, V c2, V c3, uint32_t threshold) {
    V low, high;
    arrange(c0, c1, c2, c3, low, high);
    const V t = _mm256_set1_epi16(static_cast<int16_t>(threshold));
    low = _mm256_cmpeq_epi16(_mm256_max_epu16(low, t), low);  // all ones where low >= t
    high = _mm256_cmpeq_epi16(_mm256_max_epu16(high, t), high);
    const V bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8);
    return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
  }
  static SITOUT_INLINE uint64_t bits32(V c0, V c1, V c2, V c3, uint32_t threshold) {
    V low, high;
    arrange(c0, c1, c2, c3, low, high);
    const V t = _mm256_set1_epi32(static_cast<int32_t>(threshold));
    low = _mm256_cmpeq_epi32(_mm256_max_epu32(low, t), low);
    high = _mm256_cmpeq_epi32(_mm256_max_epu32(high, t), high);
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(low))) |
           static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(high))) << 8;
  }
};

struct Floats {
  using V = __m256;
  static constexpr int count = 8;
  static SITOUT_INLINE V all(double value) { return _mm256_set1_ps(static_cast<float>(value)); }
  static SITOUT_INLINE V load(const float* x) { return _mm256_loadu_ps(x); }
  static SITOUT_INLINE void store(float* y, V v) { _mm256_storeu_ps(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm256_mul_ps(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
  static SITOUT_INLINE V select(uint64_t bits, V kept, V dropped) {
    const __m256i bit = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
    const __m256i own = _mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), bit);
    return _mm256_blendv_ps(dropped, kept, _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, bit)));
  }
  static SITOUT_INLINE V widen_bfloat16(const uint16_t* x) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static SITOUT_INLINE void narrow_bfloat16(uint16_t* y, V v) {
    const __m256i word = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
    const __m256i even = _mm256_add_epi32(_mm256_add_epi32(word, odd), _mm256_set1_epi32(0x7FFF));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(word, _mm256_set1_epi32(0x400000));
    const __m256i out = _mm256_srli_epi32(_mm256_blendv_epi8(even, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(out, out), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm256_castsi256_si128(packed));
  }
  static SITOUT_INLINE V widen_float16(const uint16_t* x) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static SITOUT_INLINE void narrow_float16(uint16_t* y, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

struct Doubles {
  using V = __m256d;
  static constexpr int count = 4;
  static SITOUT_INLINE V all(double value) { return _mm256_set1_pd(value); }
  static SITOUT_INLINE V load(const double* x) { return _mm256_loadu_pd(x); }
  static SITOUT_INLINE void store(double* y, V v) { _mm256_storeu_pd(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm256_mul_pd(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return _mm256_add_pd(a, b); }
  static SITOUT_INLINE V select(uint64_t bits, V kept, V dropped) {
    const __m256i bit = _mm256_set_epi64x(8, 4, 2, 1);
    const __m256i own = _mm256_and_si256(_mm256_set1_epi64x(static_cast<int64_t>(bits)), bit);
    return _mm256_blendv_pd(dropped, kept, _mm256_castsi256_pd(_mm256_cmpeq_epi64(own, bit)));
  }
};

#elif defined(SITOUT_NEON)

struct Lanes {
  using V = uint64x2_t;
  static constexpr int count = 2;
  static SITOUT_INLINE V all(uint32_t word) { return vdupq_n_u64(word); }
  static SITOUT_INLINE V order(uint32_t base) {
    return vaddq_u64(vdupq_n_u64(base), vcombine_u64(vcreate_u64(0), vcreate_u64(1)));
  }
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
};

struct Floats {
  using V = float32x4_t;
  static constexpr int count = 4;
  static SITOUT_INLINE V all(double value) { return vdupq_n_f32(static_cast<float>(value)); }
  static SITOUT_INLINE V load(const float* x) { return vld1q_f32(x); }
  static SITOUT_INLINE void store(float* y, V v) { vst1q_f32(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return vmulq_f32(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return vaddq_f32(a, b); }
  static SITOUT_INLINE V select(uint64_t bits, V kept, V dropped) {
    const uint32_t powers[4] = {1, 2, 4, 8};
    return vbslq_f32(vtstq_u32(vdupq_n_u32(static_cast<uint32_t>(bits)), vld1q_u32(powers)), kept,
                     dropped);
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
  static constexpr int count = 2;
  static SITOUT_INLINE V all(double value) { return vdupq_n_f64(value); }
  static SITOUT_INLINE V load(const double* x) { return vld1q_f64(x); }
  static SITOUT_INLINE void store(double* y, V v) { vst1q_f64(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return vmulq_f64(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return vaddq_f64(a, b); }
  static SITOUT_INLINE V select(uint64_t bits, V kept, V dropped) {
    const uint64_t powers[2] = {1, 2};
    return vbslq_f64(vtstq_u64(vdupq_n_u64(bits), vld1q_u64(powers)), kept, dropped);
  }
};

#else

struct Lanes {
  using V = uint64_t;
  static constexpr int count = 1;
  static SITOUT_INLINE V all(uint32_t word) { return word; }
  static SITOUT_INLINE V order(uint32_t base) { return base; }
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
};

struct Floats {
  using V = float;
  static constexpr int count = 1;
  static SITOUT_INLINE V all(double value) { return static_cast<float>(value); }
  static SITOUT_INLINE V load(const float* x) { return *x; }
  static SITOUT_INLINE void store(float* y, V v) { *y = v; }
  static SITOUT_INLINE V multiply(V a, V b) { return a * b; }
  static SITOUT_INLINE V add(V a, V b) { return a + b; }
  static SITOUT_INLINE V select(uint64_t bits, V kept, V dropped) {
    return bits & 1 ? kept : dropped;
  }
  static SITOUT_INLINE uint32_t word_of(float v) {
    uint32_t word;
    std::memcpy(&word, &v, 4);
    return word;
  }
  static SITOUT_INLINE float float_of(uint32_t word) {
    float v;
    std::memcpy(&v, &word, 4);
    return v;
  }
  static SITOUT_INLINE V widen_bfloat16(const uint16_t* x) { return float_of(uint32_t(*x) << 16); }
  static SITOUT_INLINE void narrow_bfloat16(uint16_t* y, V v) {
    const uint32_t word = word_of(v);
    const uint32_t even = word + 0x7FFF + (word >> 16 & 1);
    *y = static_cast<uint16_t>((v != v ? word | 0x400000 : even) >> 16);
  }
  static SITOUT_INLINE V widen_float16(const uint16_t* x) {
    const uint32_t sign = uint32_t(*x & 0x8000) << 16, rest = *x & 0x7FFF;
    if (rest >= 0x7C00) return float_of(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    // Subnormal or not, the value is that of the shifted bits times 2^112.
    return float_of(sign | word_of(float_of(rest << 13) * float_of(0x77800000)));
  }
  static SITOUT_INLINE void narrow_float16(uint16_t* y, V v) {
    const uint32_t word = word_of(v), rest = word & 0x7FFFFFFF;
    const uint16_t sign = static_cast<uint16_t>(word >> 16 & 0x8000);
    uint32_t half;
    if (rest > 0x7F800000) {
      half = 0x7E00 | (rest >> 13 & 0x3FF);  // NaN
    } else if (rest >= 0x477FF000) {
      half = 0x7C00;  // what rounds to 65536 or more
    } else if (rest < 0x38800000) {
      // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits.
      half = word_of(float_of(rest) + 0.5f) - 0x3F000000;
    } else {
      half = (rest + 0xFFF + (rest >> 13 & 1) - 0x38000000) >> 13;
    }
    *y = static_cast<uint16_t>(sign | half);
  }
};

struct Doubles {
  using V = double;
  static constexpr int count = 1;
  static SITOUT_INLINE V all(double value) { return value; }
  static SITOUT_INLINE V load(const double* x) { return *x; }
  static SITOUT_INLINE void store(double* y, V v) { *y = v; }
  static SITOUT_INLINE V multiply(V a, V b) { return a * b; }
  static SITOUT_INLINE V add(V a, V b) { return a + b; }
  static SITOUT_INLINE V select(uint64_t bits, V kept, V dropped) {
    return bits & 1 ? kept : dropped;
  }
};

#endif

}  // namespace sitout::SITOUT_TARGET
