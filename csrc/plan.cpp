#include "plan.h"

#include <algorithm>
#include <cstdlib>

namespace sitout {
namespace {

constexpr int64_t enough = 8192;  // elements that are worth an item of their own

bool joins(const Dim& outer, const Dim& inner) {
  if (outer.row || inner.row || outer.col != inner.size * inner.col) return false;
  for (int o = 0; o < operands; ++o)
    if (outer.stride[o] != inner.size * inner.stride[o]) return false;
  return true;
}

bool is_shared(const Dim& dim) { return dim.col == 0 && !dim.row; }

bool is_unit(const Dim& dim) { return dim.col == 1 && !dim.row; }

// Leave out dims of size 1, put the others in the order of memory, and join what can be joined.
void simplify(Job& job) {
  Dim* const end = std::remove_if(job.dim, job.dim + job.dims,
                                  [](const Dim& dim) { return dim.size == 1; });
  std::stable_sort(job.dim, end, [](const Dim& a, const Dim& b) {
    const int64_t ay = std::abs(a.stride[Y]), by = std::abs(b.stride[Y]);
    return ay != by ? ay > by : std::abs(a.stride[X]) > std::abs(b.stride[X]);
  });
  Dim* last = job.dim;
  for (const Dim* dim = job.dim; dim != end; ++dim) {
    if (last != job.dim && joins(last[-1], *dim)) {
      const int64_t size = last[-1].size;
      last[-1] = *dim;
      last[-1].size *= size;
    } else {
      *last++ = *dim;
    }
  }
  job.dims = static_cast<int>(last - job.dim);
}

int64_t ceiling(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Cut the dims into items. If `streamed`, bits are used as they are made, and none are stored.
void cut(Plan& made, bool streamed) {
  int64_t repeated = 1;
  for (int d = 0; d < made.shareds; ++d) repeated *= made.shared[d].size;
  const int64_t wanted = std::max<int64_t>(1, enough / std::min(repeated, enough));
  if (made.along == Along::tile) {
    made.tile_step = std::min<int64_t>(made.tile.size, item_words);
    const int64_t room = item_words / ceiling(made.tile_step, 64);  // mirrored, a line is a column
    made.unit_step = std::min(made.unit.size, room / 64 * 64);
    made.tile_step = std::min(made.tile_step, item_words / ceiling(made.unit_step, 64));
  } else {
    const int64_t most = streamed ? enough : item_words / 2 * 64;
    made.unit_step = std::min({made.unit.size, most, std::max<int64_t>(wanted, 512)});
    if (made.along == Along::unit && !streamed) made.unit_step = std::min(made.unit.size, most);
    const int64_t room = item_words / ceiling(made.unit_step, 64);
    made.tile_step = std::clamp<int64_t>(wanted / made.unit_step, 1, std::min(room, made.tile.size));
  }
  made.shared_step = made.shareds == 0 ? 1 : made.shared[0].size;
}

}  // namespace

Plan plan(Job job) {
  Plan made{};
  made.elements = 1;
  for (int d = 0; d < job.dims; ++d) made.elements *= job.dim[d].size;
  simplify(job);
  const Dim none{1, {}, 0, false};
  made.unit = made.tile = none;
  made.along = Along::unit;
  for (int d = 0; d < job.dims; ++d) {
    const Dim& dim = job.dim[d];
    const bool innermost = d == job.dims - 1;
    if (is_shared(dim)) {
      made.shared[made.shareds++] = dim;
      if (innermost) made.along = Along::shared;
    } else if (is_unit(dim) && made.unit.size == 1) {
      made.unit = dim;
    } else {
      made.outer[made.outers++] = dim;
      if (innermost) made.along = Along::tile;
    }
  }
  const bool few = made.unit.size < 512;
  if (made.outers > 0 && job.op != Op::noise && (few || made.along == Along::tile))
    made.tile = made.outer[--made.outers];
  if (made.along == Along::tile && made.tile.size == 1) made.along = Along::unit;
  cut(made, made.along == Along::unit && made.tile.size == 1 && made.shareds == 0);
  made.items = made.unit_parts() * made.tile_parts();
  for (int d = 0; d < made.outers; ++d) made.items *= made.outer[d].size;
  // One mask for everything would leave all threads but one without work.
  if (made.shareds > 0 && made.items < 16) {
    made.shared_step = ceiling(made.shared[0].size, 16);
    made.items *= made.shared_parts();
  }
  return made;
}

}  // namespace sitout
