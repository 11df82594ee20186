// What Python sees: addresses and sizes go in, the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "core.h"
#include "moves.h"
#include "plan.h"

namespace nb = nanobind;
using Sizes = std::vector<int64_t>;
using sitout::Op;

namespace {

[[noreturn]] void refuse(const char* why) {
  throw std::invalid_argument(std::string("sitout._core: ") + why);
}

// A job whose tensors and address are still open. Making one takes longer than a small job itself,
// so Python keeps those that it has made.
class Prepared {
 public:
  // A list of strides for each tensor; an empty one where there is none.
  Prepared(int op, int type, const Sizes& sizes, const Sizes& x, const Sizes& other,
           const Sizes& bias, const Sizes& y, const Sizes& cols, int row_dim, int64_t col, int bits,
           uint32_t threshold, double scale, double shift, double dropped) {
    const bool marks = op == static_cast<int>(Op::mask);
    if (op < 0 || op > static_cast<int>(Op::mask)) refuse("no such operation");
    if (type < 0 || type > 4 || marks != (type == 4)) refuse("no such type");
    if (bits != 16 && bits != 32) refuse("lanes have 16 or 32 bits");
    if (bits == 16 && threshold > 0xFFFF) refuse("a threshold that its lanes cannot reach");
    if (col < 0 || col >= int64_t{1} << 35) refuse("the first column is out of range");
    const size_t dims = sizes.size();
    const Sizes* strides[operands] = {&x, &other, &bias, &y};
    if (dims > sitout::max_dims || cols.size() != dims) refuse("sizes that do not fit");
    for (size_t d = 0; d < dims; ++d) {
      if (sizes[d] <= 0) refuse("a size below 1");
      job_.dim[d].size = sizes[d];
      job_.dim[d].col = cols[d];
      job_.dim[d].row = static_cast<int>(d) == row_dim;
    }
    for (int o = sitout::X; o < operands; ++o) {
      if (strides[o]->size() == dims) {
        for (size_t d = 0; d < dims; ++d) job_.dim[d].stride[o] = (*strides[o])[d];
      } else if (!strides[o]->empty()) {
        refuse("strides that do not fit the sizes");
      }
    }
    job_.op = static_cast<Op>(op);
    job_.type = static_cast<sitout::Type>(type);
    job_.col = col;
    job_.rate = {bits, threshold};
    job_.law = {scale, shift, dropped};
    job_.dims = static_cast<int>(dims);
    plan_ = sitout::plan(job_);
  }

  // Tensors come as addresses of memory, 0 where there is none.
  void run(uintptr_t x, uintptr_t other, uintptr_t bias, uintptr_t y, uint64_t key, uint32_t site,
           uint32_t step, uintptr_t steps, uintptr_t rows, int threads) const {
    const bool slope = Op::relu_slope <= job_.op && job_.op <= Op::silu_slope;
    if (y == 0 || (x == 0 && job_.op != Op::mask)) refuse("a tensor is missing");
    if (other == 0 && (slope || job_.op == Op::add)) refuse("the second tensor is missing");
    sitout::Job job = job_;
    job.input[sitout::X] = reinterpret_cast<const void*>(x);
    job.input[sitout::OTHER] = reinterpret_cast<const void*>(other);
    job.input[sitout::BIAS] = reinterpret_cast<const void*>(bias);
    job.y = reinterpret_cast<void*>(y);
    job.address = {key, site, step, reinterpret_cast<const int64_t*>(steps),
                   reinterpret_cast<const int64_t*>(rows)};
    nb::gil_scoped_release without_python;
    sitout::run(job, plan_, std::max(threads, 1));
  }

 private:
  static constexpr int operands = sitout::operands;
  sitout::Job job_{};
  sitout::Plan plan_;
};

int64_t first(uintptr_t out, int64_t n, int64_t k, uint32_t group, uint64_t key, uint32_t site,
              uint32_t step) {
  if (out == 0 || k <= 0 || k > n || n > int64_t{1} << 32) refuse("no such subset");
  nb::gil_scoped_release without_python;
  return sitout::first(reinterpret_cast<int64_t*>(out), n, k, group,
                       {key, site, step, nullptr, nullptr});
}

// A grid as Python says it: addresses of the kept indices are 0 where all are.
sitout::Grid grid_of(int64_t rows, int64_t cols, int64_t inner, uintptr_t row, int64_t kept_rows,
                     uintptr_t col, int64_t kept_cols) {
  const sitout::Grid grid{rows, cols, inner, reinterpret_cast<const int64_t*>(row),
                          reinterpret_cast<const int64_t*>(col), row ? kept_rows : rows,
                          col ? kept_cols : cols};
  const auto ascend = [](const int64_t* index, int64_t kept, int64_t n) {
    if (kept < 0 || kept > n) return false;
    for (int64_t i = 0; index && i < kept; ++i)
      if (index[i] < (i > 0 ? index[i - 1] + 1 : 0) || index[i] >= n) return false;
    return true;
  };
  if (rows < 0 || cols < 0 || inner < 0) refuse("a negative size");
  if (!ascend(grid.row, grid.kept_rows, rows) || !ascend(grid.col, grid.kept_cols, cols))
    refuse("kept indices must ascend within their dim");
  return grid;
}

void take(uintptr_t y, uintptr_t x, const sitout::Grid& grid, int bytes, int threads) {
  if (bytes != 2 && bytes != 4 && bytes != 8) refuse("elements have 2, 4 or 8 bytes");
  nb::gil_scoped_release without_python;
  sitout::take(reinterpret_cast<void*>(y), reinterpret_cast<const void*>(x), grid, bytes, threads);
}

void spread(uintptr_t y, uintptr_t x, const sitout::Grid& grid, int bytes, int threads) {
  if (bytes != 2 && bytes != 4 && bytes != 8) refuse("elements have 2, 4 or 8 bytes");
  nb::gil_scoped_release without_python;
  sitout::spread(reinterpret_cast<void*>(y), reinterpret_cast<const void*>(x), grid, bytes, threads);
}

template <class T>
void define_moves(nb::module_& module, const char* type) {
  const auto name = [type](const char* move) { return std::string(move) + type; };
  const auto at = [](uintptr_t address) { return reinterpret_cast<T*>(address); };
  module.def(name("spread_add_").c_str(),
             [at](uintptr_t y, uintptr_t x, const sitout::Grid& grid, int threads) {
               nb::gil_scoped_release without_python;
               sitout::spread_add<T>(at(y), at(x), grid, threads);
             });
  module.def(name("keep_cols_").c_str(), [at](uintptr_t y, uintptr_t x, const sitout::Grid& grid,
                                              double scale, int threads) {
    nb::gil_scoped_release without_python;
    sitout::keep_cols<T>(at(y), at(x), grid, static_cast<T>(scale), threads);
  });
  module.def(name("add_rows_").c_str(),
             [at](uintptr_t y, uintptr_t x, uintptr_t branch, uintptr_t weight,
                  const sitout::Grid& grid, int threads) {
               nb::gil_scoped_release without_python;
               sitout::add_rows<T>(at(y), at(x), at(branch),
                                   reinterpret_cast<const double*>(weight), grid, threads);
             });
}

}  // namespace

NB_MODULE(_core, module) {
  nb::set_leak_warnings(false);  // jobs are kept until the process ends
  nb::class_<Prepared>(module, "Prepared")
      .def(nb::init<int, int, const Sizes&, const Sizes&, const Sizes&, const Sizes&, const Sizes&,
                    const Sizes&, int, int64_t, int, uint32_t, double, double, double>())
      .def("run", &Prepared::run);
  nb::class_<sitout::Grid>(module, "Grid");
  module.def("grid", &grid_of);
  module.def("take", &take);
  module.def("spread", &spread);
  define_moves<float>(module, "float32");
  define_moves<double>(module, "float64");
  module.def("first", &first);
  module.def("target", &sitout::target);
  module.def("targets", &sitout::targets);
  module.def("use_target", [](const std::string& name) { return sitout::use_target(name.c_str()); });
}
