// AVX-512: F, BW, VL and DQ.
#include <immintrin.h>

namespace sitout::avx512 {

struct Lanes {
  using V = __m512i;
  static constexpr int count = 8, interleave = 4;
  static SITOUT_INLINE V all(uint64_t word) { return _mm512_set1_epi64(static_cast<int64_t>(word)); }
  static SITOUT_INLINE V order(uint32_t base) {
    return _mm512_add_epi64(all(base), _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0));
  }
  static SITOUT_INLINE V load(const uint32_t* words) {
    const __m256i held = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
    return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0),
                                    _mm512_cvtepu32_epi64(held));
  }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm512_mul_epu32(a, b); }
  static SITOUT_INLINE V high(V a) { return _mm512_srli_epi64(a, 32); }
  static SITOUT_INLINE V exclusive_or(V a, V b, V c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
  }
  // The words of the first half of the blocks, then of the other half, in the order of memory.
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
  static SITOUT_INLINE void words(V c0, V c1, V c2, V c3, uint32_t* out) {
    V low, high;
    arrange(c0, c1, c2, c3, low, high);
    _mm512_storeu_si512(out, low);
    _mm512_storeu_si512(out + 16, high);
  }
};

struct Floats {
  using V = __m512;
  using Value = float;
  static constexpr int count = 16;
  static SITOUT_INLINE V all(double value) { return _mm512_set1_ps(static_cast<float>(value)); }
  static SITOUT_INLINE V load(const float* x) { return _mm512_loadu_ps(x); }
  static SITOUT_INLINE void store(float* y, V v) { _mm512_storeu_ps(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm512_mul_ps(a, b); }
  static SITOUT_INLINE V divide(V a, V b) { return _mm512_div_ps(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
  static SITOUT_INLINE V subtract(V a, V b) { return _mm512_sub_ps(a, b); }
  static SITOUT_INLINE V sum(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static SITOUT_INLINE V absolute(V a) { return _mm512_abs_ps(a); }
  static SITOUT_INLINE V keep(uint64_t bits, V v) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v);
  }
  static SITOUT_INLINE V select(uint64_t bits, V a, V b) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), b, a);
  }
  static SITOUT_INLINE uint64_t nonzero(V v) {
    return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  }
  static SITOUT_INLINE V negative(V x, V a, V b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), b, a);
  }
  static SITOUT_INLINE V shift_exponent(V v, V t) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), power));
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
  using Value = double;
  static constexpr int count = 8;
  static SITOUT_INLINE V all(double value) { return _mm512_set1_pd(value); }
  static SITOUT_INLINE V load(const double* x) { return _mm512_loadu_pd(x); }
  static SITOUT_INLINE void store(double* y, V v) { _mm512_storeu_pd(y, v); }
  static SITOUT_INLINE V multiply(V a, V b) { return _mm512_mul_pd(a, b); }
  static SITOUT_INLINE V divide(V a, V b) { return _mm512_div_pd(a, b); }
  static SITOUT_INLINE V add(V a, V b) { return _mm512_add_pd(a, b); }
  static SITOUT_INLINE V subtract(V a, V b) { return _mm512_sub_pd(a, b); }
  static SITOUT_INLINE V sum(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  static SITOUT_INLINE V root(V a) { return _mm512_sqrt_pd(a); }
  static SITOUT_INLINE V absolute(V a) { return _mm512_abs_pd(a); }
  static SITOUT_INLINE V keep(uint64_t bits, V v) {
    return _mm512_maskz_mov_pd(static_cast<__mmask8>(bits), v);
  }
  static SITOUT_INLINE V select(uint64_t bits, V a, V b) {
    return _mm512_mask_blend_pd(static_cast<__mmask8>(bits), b, a);
  }
  static SITOUT_INLINE uint64_t nonzero(V v) {
    return _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NEQ_UQ);
  }
  static SITOUT_INLINE V negative(V x, V a, V b) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_LT_OQ), b, a);
  }
  static SITOUT_INLINE V shift_exponent(V v, V t) {
    const __m512i power = _mm512_slli_epi64(_mm512_castpd_si512(t), 52);
    return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(v), power));
  }
  // The bits of v shifted right, then those in `kept` of them, then `set` besides.
  static SITOUT_INLINE V bits(V v, int shift, uint64_t kept, uint64_t set) {
    const __m512i word = _mm512_srli_epi64(_mm512_castpd_si512(v), static_cast<unsigned>(shift));
    return _mm512_castsi512_pd(
        _mm512_or_si512(_mm512_and_si512(word, Lanes::all(kept)), Lanes::all(set)));
  }
};

}  // namespace sitout::avx512
