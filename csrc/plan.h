// The order in which the memory of a job is walked.
#pragma once

#include "core.h"

namespace sitout {

// What the innermost loop runs along: neighbouring columns, columns or rows that are no neighbours,
// or elements that share one bit.
enum class Along { unit, tile, shared };

// An item of work is one index of the outer dims and a part of `tile` and of `unit`, whose bits are
// made at once, and of the first shared dim; the bits are used for every index of the shared dims.
struct Plan {
  Along along;
  Dim unit, tile;  // of size 1 if there is none
  int64_t unit_step, tile_step, shared_step;
  int outers, shareds;
  Dim outer[max_dims], shared[max_dims];  // in the order of memory; innermost last
  int64_t items, elements;

  int64_t unit_parts() const { return (unit.size + unit_step - 1) / unit_step; }
  int64_t tile_parts() const { return (tile.size + tile_step - 1) / tile_step; }
  int64_t shared_parts() const {
    return shareds == 0 ? 1 : (shared[0].size + shared_step - 1) / shared_step;
  }
};

// The words of 64 bits that an item may hold.
constexpr int64_t item_words = 512;

Plan plan(Job job);

// Do a job on at most so many threads; the result does not depend on their number.
void run(const Job& job, const Plan& plan, int threads);

}  // namespace sitout
