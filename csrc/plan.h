// The order in which the memory of a job is walked.
#pragma once

#include "core.h"

namespace sitout {

// The last `shared` dims share one mask bit. If `unit`, the dim before them has neighbouring columns;
// all dims before it are outer ones.
struct Plan {
  int shared;
  bool unit;
  int64_t shared_size;
  int64_t step;    // columns of the unit dim in one item of work
  int64_t chunks;  // items in one outer iteration
  int64_t items;   // of the whole job
};

// Sort and join the dims of a job: fewest dims, walked along memory where the columns allow it.
Plan plan(Job& job);

}  // namespace sitout
