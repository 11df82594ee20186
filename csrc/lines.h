// Moves of the kept columns of a row, [cols, inner], whose elements are T.
//   take(y, x)         y [kept_cols, inner] = x at the kept columns
//   spread(y, x)       y = x [kept_cols, inner] at the kept columns, and 0 elsewhere
//   add(y, x)          y += x [kept_cols, inner] at the kept columns
//   keep(y, x, scale)  y = scale * x at the kept columns, and 0 elsewhere
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core.h"
#include "moves.h"

#ifdef SITOUT_X86
#include <immintrin.h>
#endif

namespace sitout {

// One element after the other.
class Singly {
 public:
  explicit Singly(const Grid& grid) : grid_(grid) {}

  template <class T>
  void take(T* y, const T* x) const {
    if (!grid_.col) {
      std::copy_n(x, line(), y);
    } else {
      each([=](int64_t at, int64_t i) { y[i] = x[at]; });
    }
  }

  template <class T>
  void spread(T* y, const T* x) const {
    if (!grid_.col) {
      std::copy_n(x, line(), y);
    } else {
      std::fill_n(y, line(), T{0});
      each([=](int64_t at, int64_t i) { y[at] = x[i]; });
    }
  }

  template <class T>
  void add(T* y, const T* x) const {
    each([=](int64_t at, int64_t i) { y[at] += x[i]; });
  }

  template <class T>
  void keep(T* y, const T* x, T scale) const {
    std::fill_n(y, line(), T{0});
    each([=](int64_t at, int64_t) { y[at] = scale * x[at]; });
  }

 private:
  int64_t line() const { return grid_.cols * grid_.inner; }

  // Call move(at, i) with the offset of each kept element in the row, and among the kept ones.
  template <class Move>
  void each(Move move) const {
    if (!grid_.col) {
      for (int64_t i = 0; i < line(); ++i) move(i, i);
    } else if (grid_.inner == 1) {
      for (int64_t i = 0; i < grid_.kept_cols; ++i) move(grid_.col[i], i);
    } else {
      for (int64_t i = 0; i < grid_.kept_cols; ++i)
        for (int64_t j = 0; j < grid_.inner; ++j)
          move(grid_.col[i] * grid_.inner + j, i * grid_.inner + j);
    }
  }

  const Grid& grid_;
};

#ifdef SITOUT_X86
#define SITOUT_GAPS __attribute__((target("avx512f")))

// Sixteen columns of 32-bit elements at once: AVX-512 closes and opens the gaps within a vector.
class Blocks {
 public:
  static bool serve(const Grid& grid) {
    return grid.col && grid.inner == 1 && std::strcmp(target(), "avx512") == 0;
  }

  explicit Blocks(const Grid& grid)
      : kept_(grid.kept_cols), blocks_(static_cast<size_t>(grid.cols + 15) / 16) {
    for (const int64_t* col = grid.col; col != grid.col + kept_; ++col)
      blocks_[static_cast<size_t>(*col / 16)].kept |= static_cast<__mmask16>(1 << *col % 16);
    int64_t done = 0, left = grid.cols;
    for (Block& one : blocks_) {
      const int count = __builtin_popcount(one.kept);
      // What is moved beyond these is moved again, by the next block; not beyond the end.
      one.packed = done + 16 <= kept_ ? first(16) : first(count);
      one.there = first(left);
      one.done = done;
      done += count;
      left -= 16;
    }
  }

  template <class T>
  SITOUT_GAPS void take(T* y, const T* x) const {
    for (const Block& one : blocks_) {
      const __m512i v = _mm512_maskz_loadu_epi32(one.kept, x);
      _mm512_mask_storeu_epi32(y + one.done, one.packed, _mm512_maskz_compress_epi32(one.kept, v));
      x += 16;
    }
  }

  template <class T>
  SITOUT_GAPS void spread(T* y, const T* x) const {
    for (const Block& one : blocks_) {
      _mm512_mask_storeu_epi32(y, one.there, opened(one, x));
      y += 16;
    }
  }

  SITOUT_GAPS void add(float* y, const float* x) const {
    for (const Block& one : blocks_) {
      const __m512 before = _mm512_maskz_loadu_ps(one.kept, y);
      const __m512 more = _mm512_castsi512_ps(opened(one, x));
      _mm512_mask_storeu_ps(y, one.kept, _mm512_add_ps(before, more));
      y += 16;
    }
  }

  SITOUT_GAPS void keep(float* y, const float* x, float scale) const {
    const __m512 s = _mm512_set1_ps(scale);
    for (const Block& one : blocks_) {
      const __m512 v = _mm512_maskz_loadu_ps(one.kept, x);
      _mm512_mask_storeu_ps(y, one.there, _mm512_maskz_mul_ps(one.kept, s, v));
      x += 16;
      y += 16;
    }
  }

 private:
  struct Block {
    int64_t done;                       // kept columns before this one
    __mmask16 kept = 0, packed, there;  // of the row; of the kept ones; whether there is a column
  };

  static __mmask16 first(int64_t n) {
    return static_cast<__mmask16>(n < 16 ? (1 << n) - 1 : 0xFFFF);
  }

  template <class T>
  SITOUT_GAPS static __m512i opened(const Block& one, const T* x) {
    return _mm512_maskz_expand_epi32(one.kept, _mm512_maskz_loadu_epi32(one.packed, x + one.done));
  }

  int64_t kept_;
  std::vector<Block> blocks_;
};
#endif

}  // namespace sitout
