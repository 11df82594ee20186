#include "moves.h"

#include <algorithm>
#include <cstring>

#include "share.h"

namespace sitout {
namespace {

constexpr int64_t grain = 1 << 15;  // elements that are worth a thread of their own

int shares_for(int64_t elements, int64_t rows, int threads) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({threads, elements / grain, rows})));
}

// Call each(row, i) for the rows of a share: i says which of the kept ones it is, -1 if it is none.
template <class Each>
void each_row(const Grid& grid, int threads, Each each) {
  const int shares = shares_for(grid.rows * grid.cols * grid.inner, grid.rows, threads);
  share(4 * shares, shares, [&](int64_t part) {
    const int64_t begin = grid.rows * part / (4 * shares), end = grid.rows * (part + 1) / (4 * shares);
    const int64_t* const last = grid.row + grid.kept_rows;
    const int64_t* kept = grid.row ? std::lower_bound(grid.row, last, begin) : nullptr;
    for (int64_t row = begin; row < end; ++row) {
      if (!grid.row) {
        each(row, row);
      } else if (kept != last && *kept == row) {
        each(row, kept++ - grid.row);
      } else {
        each(row, int64_t{-1});
      }
    }
  });
}

// Call each(to, from) with the offsets of every element that a row keeps.
template <class Each>
void each_kept(const Grid& grid, Each each) {
  if (!grid.col) {
    for (int64_t i = 0; i < grid.cols * grid.inner; ++i) each(i, i);
  } else if (grid.inner == 1) {
    for (int64_t i = 0; i < grid.kept_cols; ++i) each(grid.col[i], i);
  } else {
    for (int64_t i = 0; i < grid.kept_cols; ++i) {
      const int64_t at = grid.col[i] * grid.inner, from = i * grid.inner;
      for (int64_t j = 0; j < grid.inner; ++j) each(at + j, from + j);
    }
  }
}

template <class T>
void take_as(T* y, const T* x, const Grid& grid, int threads) {
  const int64_t line = grid.kept_cols * grid.inner, rows = grid.kept_rows;
  const int shares = shares_for(rows * line, rows, threads);
  share(shares, shares, [&](int64_t part) {
    for (int64_t i = rows * part / shares; i < rows * (part + 1) / shares; ++i) {
      const int64_t row = grid.row ? grid.row[i] : i;
      T* const to = y + i * line;
      const T* const from = x + row * grid.cols * grid.inner;
      if (!grid.col) {
        std::copy_n(from, line, to);
      } else {
        each_kept(grid, [&](int64_t at, int64_t k) { to[k] = from[at]; });
      }
    }
  });
}

template <class T>
void spread_as(T* y, const T* x, const Grid& grid, int threads) {
  const int64_t line = grid.cols * grid.inner, kept_line = grid.kept_cols * grid.inner;
  each_row(grid, threads, [&](int64_t row, int64_t i) {
    T* const to = y + row * line;
    const T* const from = x + i * kept_line;
    if (i >= 0 && !grid.col) {
      std::copy_n(from, line, to);
      return;
    }
    std::memset(static_cast<void*>(to), 0, static_cast<size_t>(line) * sizeof(T));
    if (i >= 0) each_kept(grid, [&](int64_t at, int64_t k) { to[at] = from[k]; });
  });
}

}  // namespace

void take(void* y, const void* x, const Grid& grid, int bytes, int threads) {
  const auto as = [&](auto one) {
    using T = decltype(one);
    take_as(static_cast<T*>(y), static_cast<const T*>(x), grid, threads);
  };
  bytes == 2 ? as(uint16_t{}) : bytes == 4 ? as(uint32_t{}) : as(uint64_t{});
}

void spread(void* y, const void* x, const Grid& grid, int bytes, int threads) {
  const auto as = [&](auto one) {
    using T = decltype(one);
    spread_as(static_cast<T*>(y), static_cast<const T*>(x), grid, threads);
  };
  bytes == 2 ? as(uint16_t{}) : bytes == 4 ? as(uint32_t{}) : as(uint64_t{});
}

template <class T>
void spread_add(T* y, const T* x, const Grid& grid, int threads) {
  const int64_t line = grid.cols * grid.inner, kept_line = grid.kept_cols * grid.inner;
  each_row(grid, threads, [&](int64_t row, int64_t i) {
    if (i < 0) return;
    T* const to = y + row * line;
    const T* const from = x + i * kept_line;
    each_kept(grid, [&](int64_t at, int64_t k) { to[at] += from[k]; });
  });
}

template <class T>
void keep_cols(T* y, const T* x, const Grid& grid, T scale, int threads) {
  const int64_t line = grid.cols * grid.inner;
  each_row(grid, threads, [&](int64_t row, int64_t) {
    T* const to = y + row * line;
    const T* const from = x + row * line;
    std::memset(to, 0, static_cast<size_t>(line) * sizeof(T));
    each_kept(grid, [&](int64_t at, int64_t) { to[at] = scale * from[at]; });
  });
}

template <class T>
void add_rows(T* y, const T* x, const T* branch, const double* weight, const Grid& grid, int threads) {
  const int64_t line = grid.cols * grid.inner;
  each_row(grid, threads, [&](int64_t row, int64_t i) {
    T* const to = y + row * line;
    const T* const from = x + row * line;
    const T w = i < 0 ? T{0} : static_cast<T>(weight[i]);
    if (w == T{0}) {
      std::copy_n(from, line, to);
      return;
    }
    const T* const more = branch + i * line;
    for (int64_t j = 0; j < line; ++j) to[j] = from[j] + w * more[j];
  });
}

#define SITOUT_MAKE(T)                                                                 \
  template void spread_add(T*, const T*, const Grid&, int);                            \
  template void keep_cols(T*, const T*, const Grid&, T, int);                          \
  template void add_rows(T*, const T*, const T*, const double*, const Grid&, int);
SITOUT_MAKE(float)
SITOUT_MAKE(double)

}  // namespace sitout
