#include "moves.h"

#include <algorithm>

#include "lines.h"
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

// Call use(lines) with what moves the kept columns of a row.
template <class T, class Use>
void with_lines(const Grid& grid, Use use) {
#ifdef SITOUT_X86
  if constexpr (sizeof(T) == sizeof(float))
    if (Blocks::serve(grid)) return use(Blocks(grid));
#endif
  use(Singly{grid});
}

template <class T>
void take_as(T* y, const T* x, const Grid& grid, int threads) {
  const int64_t line = grid.cols * grid.inner, kept_line = grid.kept_cols * grid.inner;
  const int64_t rows = grid.kept_rows;
  const int shares = shares_for(rows * kept_line, rows, threads);
  with_lines<T>(grid, [&](const auto& lines) {
    share(shares, shares, [&](int64_t part) {
      for (int64_t i = rows * part / shares; i < rows * (part + 1) / shares; ++i)
        lines.take(y + i * kept_line, x + (grid.row ? grid.row[i] : i) * line);
    });
  });
}

template <class T>
void spread_as(T* y, const T* x, const Grid& grid, int threads) {
  const int64_t line = grid.cols * grid.inner, kept_line = grid.kept_cols * grid.inner;
  with_lines<T>(grid, [&](const auto& lines) {
    each_row(grid, threads, [&](int64_t row, int64_t i) {
      if (i < 0) {
        std::fill_n(y + row * line, line, T{0});
      } else {
        lines.spread(y + row * line, x + i * kept_line);
      }
    });
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
  with_lines<T>(grid, [&](const auto& lines) {
    each_row(grid, threads, [&](int64_t row, int64_t i) {
      if (i >= 0) lines.add(y + row * line, x + i * kept_line);
    });
  });
}

template <class T>
void keep_cols(T* y, const T* x, const Grid& grid, T scale, int threads) {
  const int64_t line = grid.cols * grid.inner;
  with_lines<T>(grid, [&](const auto& lines) {
    each_row(grid, threads, [&](int64_t row, int64_t) {
      lines.keep(y + row * line, x + row * line, scale);
    });
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
