#include "plan.h"

#include <algorithm>
#include <cstdlib>

namespace sitout {
namespace {

constexpr int64_t chunk = 4096;  // elements, about, in one item of work

bool joins(const Dim& outer, const Dim& inner) {
  return !outer.row && !inner.row && outer.x == inner.size * inner.x &&
         outer.y == inner.size * inner.y && outer.col == inner.size * inner.col;
}

bool is_shared(const Dim& dim) { return dim.col == 0 && !dim.row; }

bool is_unit(const Dim& dim) { return dim.col == 1 && !dim.row; }

void sort_by_memory(Job& job) {
  std::stable_sort(job.dim, job.dim + job.dims, [](const Dim& a, const Dim& b) {
    return std::abs(a.y) != std::abs(b.y) ? std::abs(a.y) > std::abs(b.y)
                                          : std::abs(a.x) > std::abs(b.x);
  });
}

void join(Job& job) {
  int last = 0;
  for (int d = 1; d < job.dims; ++d) {
    if (joins(job.dim[last], job.dim[d])) {
      const int64_t size = job.dim[last].size;
      job.dim[last] = job.dim[d];
      job.dim[last].size *= size;
    } else {
      job.dim[++last] = job.dim[d];
    }
  }
  job.dims = std::min(job.dims, last + 1);
}

}  // namespace

Plan plan(Job& job) {
  job.dims = static_cast<int>(std::remove_if(job.dim, job.dim + job.dims,
                                             [](const Dim& dim) { return dim.size == 1; }) -
                              job.dim);
  sort_by_memory(job);
  join(job);
  Plan made{0, false, 1, chunk, 1, 1};
  Dim* const end = job.dim + job.dims;
  while (made.shared < job.dims && is_shared(end[-1 - made.shared]))
    made.shared_size *= end[-1 - made.shared++].size;
  Dim* const inner = end - made.shared;
  Dim* const found = std::find_if(job.dim, inner, is_unit);
  made.unit = found != inner;
  if (made.unit) std::rotate(found, found + 1, inner);
  for (const Dim* dim = job.dim; dim < inner - made.unit; ++dim) made.items *= dim->size;
  if (made.unit) {
    made.step = std::max<int64_t>(8, chunk / std::min(made.shared_size, chunk));
    made.chunks = (inner[-1].size + made.step - 1) / made.step;
  }
  made.items *= made.chunks;
  return made;
}

}  // namespace sitout
