// What Python sees: addresses and sizes go in, the GIL is released, nothing comes out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <vector>

#include "core.h"

namespace nb = nanobind;
using Sizes = std::vector<int64_t>;

namespace {

// The dims come as five lists of one length.
void drop(uintptr_t x, uintptr_t y, int type, const Sizes& sizes, const Sizes& x_strides,
          const Sizes& y_strides, const Sizes& col_strides, int row_dim, int64_t col, uint64_t key,
          uint32_t site, uint32_t step, uintptr_t steps, uintptr_t rows, int bits,
          uint32_t threshold, double scale, double shift, double dropped, int threads) {
  const size_t dims = sizes.size();
  if (dims > sitout::max_dims || x_strides.size() != dims || y_strides.size() != dims ||
      col_strides.size() != dims || type < 0 || type > 3 || (bits != 16 && bits != 32))
    throw std::invalid_argument("sitout._core.drop: arguments that do not fit together");
  sitout::Job job{};
  job.x = reinterpret_cast<const void*>(x);
  job.y = reinterpret_cast<void*>(y);
  job.type = static_cast<sitout::Type>(type);
  job.address = {key, site, step, reinterpret_cast<const int64_t*>(steps),
                 reinterpret_cast<const int64_t*>(rows)};
  job.col = col;
  job.rate = {bits, threshold};
  job.law = {scale, shift, dropped};
  job.dims = static_cast<int>(dims);
  for (size_t d = 0; d < dims; ++d) {
    if (sizes[d] < 0) throw std::invalid_argument("sitout._core.drop: a negative size");
    job.dim[d] = {sizes[d], x_strides[d], y_strides[d], col_strides[d],
                  static_cast<int>(d) == row_dim};
  }
  nb::gil_scoped_release without_python;
  sitout::drop(job, threads);
}

}  // namespace

NB_MODULE(_core, module) {
  module.def("drop", &drop);
  module.def("target", &sitout::target);
  module.def("targets", &sitout::targets);
  module.def("use_target", [](const std::string& name) { return sitout::use_target(name.c_str()); });
}
