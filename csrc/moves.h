// Moves of whole rows and columns: those that a subset keeps are gathered, and spread again.
#pragma once

#include <cstdint>

namespace sitout {

// A tensor [rows, cols, inner], contiguous, and the indices that are kept along its first two dims,
// ascending; null for all of them.
struct Grid {
  int64_t rows, cols, inner;
  const int64_t* row;
  const int64_t* col;
  int64_t kept_rows, kept_cols;
};

// y [kept_rows, kept_cols, inner] = x at the kept indices. Elements have 2, 4 or 8 bytes.
void take(void* y, const void* x, const Grid& grid, int bytes, int threads);
// y [rows, cols, inner] = x at the kept indices, and 0 elsewhere.
void spread(void* y, const void* x, const Grid& grid, int bytes, int threads);

// The following compute, in float or double.
// y += x at the kept indices.
template <class T>
void spread_add(T* y, const T* x, const Grid& grid, int threads);
// y = scale * x at the kept columns, and 0 elsewhere; both are [rows, cols, inner].
template <class T>
void keep_cols(T* y, const T* x, const Grid& grid, T scale, int threads);
// y = x, plus weight[i] * branch[i] in the kept rows; branch is [kept_rows, cols, inner]. A branch
// of weight 0 is not read.
template <class T>
void add_rows(T* y, const T* x, const T* branch, const double* weight, const Grid& grid, int threads);

}  // namespace sitout
