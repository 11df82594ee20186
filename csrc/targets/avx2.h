// AVX2, FMA and F16C.
#include <immintrin.h>

namespace sitout::avx2 {

struct Lanes {
  using V = __m256i;
  static constexpr int count = 4, interleave = 2;
  static SITOUT_INLINE V all(uint64_t word) { return _mm256_set1_epi64x(static_cast<int64_t>(word)); }
  static SITOUT_INLINE V order(uint32_t base) {
    return _mm256_add_epi64(all(base), _mm256_set_epi64x(3, 1, 2, 0));
  }
  static SITOUT_INLINE V load(const uint32_t* words) {
    const __m128i held = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words));
    return _mm256_permute4x64_epi64(_mm256_cvtepu32_epi64(held), 0xD8);
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
  static SITOUT_INLINE void words(V c0, V c1, V c2, V c3, uint32_t* out) {
    V low, high;
    arrange(c0, c1, c2, c3, low, high);
    _mm256_storeu_si256(reinterpret_cast<V*>(out), low);
    _mm256_storeu_si256(reinterpret_cast<V*>(out + 8), high);
  }
};

struct Floats {
  using V = __m256;
  using Value = float;
  static constexpr int count = 8;
  static SITOUT_INLINE V all(double value) { return _mm256_set1_ps(static_cast<float>(value)); }
  static SITOUT_INLINE V load(const float* x) { return _mm256_loadu_ps(x); }
  static SITOUT_INLINE void store(float* y, V v) { _mm256_storeu_ps(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm256_mul_ps(a, b); }
  static SITOUT_INLINE V divide(V a, V b) { return _mm256_div_ps(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
  static SITOUT_INLINE V subtract(V a, V b) { return _mm256_sub_ps(a, b); }
  static SITOUT_INLINE V sum(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static SITOUT_INLINE V absolute(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static SITOUT_INLINE V wide(uint64_t bits) {
    const __m256i bit = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
    const __m256i own = _mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), bit);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, bit));
  }
  static SITOUT_INLINE V keep(uint64_t bits, V v) { return _mm256_and_ps(wide(bits), v); }
  static SITOUT_INLINE V select(uint64_t bits, V a, V b) {
    return _mm256_blendv_ps(b, a, wide(bits));
  }
  static SITOUT_INLINE uint64_t nonzero(V v) {
    return static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  }
  static SITOUT_INLINE V negative(V x, V a, V b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
  }
  static SITOUT_INLINE V shift_exponent(V v, V t) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), power));
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
  using Value = double;
  static constexpr int count = 4;
  static SITOUT_INLINE V all(double value) { return _mm256_set1_pd(value); }
  static SITOUT_INLINE V load(const double* x) { return _mm256_loadu_pd(x); }
  static SITOUT_INLINE void store(double* y, V v) { _mm256_storeu_pd(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm256_mul_pd(a, b); }
  static SITOUT_INLINE V divide(V a, V b) { return _mm256_div_pd(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return _mm256_add_pd(a, b); }
  static SITOUT_INLINE V subtract(V a, V b) { return _mm256_sub_pd(a, b); }
  static SITOUT_INLINE V sum(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  static SITOUT_INLINE V root(V a) { return _mm256_sqrt_pd(a); }
  static SITOUT_INLINE V absolute(V a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static SITOUT_INLINE V wide(uint64_t bits) {
    const __m256i bit = _mm256_set_epi64x(8, 4, 2, 1);
    const __m256i own = _mm256_and_si256(Lanes::all(bits), bit);
    return _mm256_castsi256_pd(_mm256_cmpeq_epi64(own, bit));
  }
  static SITOUT_INLINE V keep(uint64_t bits, V v) { return _mm256_and_pd(wide(bits), v); }
  static SITOUT_INLINE V select(uint64_t bits, V a, V b) {
    return _mm256_blendv_pd(b, a, wide(bits));
  }
  static SITOUT_INLINE uint64_t nonzero(V v) {
    return static_cast<uint32_t>(
        _mm256_movemask_pd(_mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_NEQ_UQ)));
  }
  static SITOUT_INLINE V negative(V x, V a, V b) {
    return _mm256_blendv_pd(b, a, _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_LT_OQ));
  }
  static SITOUT_INLINE V shift_exponent(V v, V t) {
    const __m256i power = _mm256_slli_epi64(_mm256_castpd_si256(t), 52);
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(v), power));
  }
  // The bits of v shifted right, then those in `kept` of them, then `set` besides.
  static SITOUT_INLINE V bits(V v, int shift, uint64_t kept, uint64_t set) {
    const __m256i word = _mm256_srli_epi64(_mm256_castpd_si256(v), shift);
    return _mm256_castsi256_pd(
        _mm256_or_si256(_mm256_and_si256(word, Lanes::all(kept)), Lanes::all(set)));
  }
};

}  // namespace sitout::avx2
