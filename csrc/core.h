// What the kernels take: raw pointers, sizes and the address of a mask. No torch, no Python.
#pragma once

#include <cstdint>

namespace sitout {

enum class Type : int { float32, float64, bfloat16, float16 };

// One dim of a tensor: how far its index moves in both tensors, in the columns and in the rows.
struct Dim {
  int64_t size;
  int64_t x, y;  // strides in elements
  int64_t col;   // 0 where one mask bit serves the whole dim
  bool row;      // whether the index is the row
};

constexpr int max_dims = 16;

// seed XOR call << 32, step and site, and the positions of the rows.
struct Address {
  uint64_t key;
  uint32_t site;
  uint32_t step;
  const int64_t* steps;  // one a row, or null for `step` throughout
  const int64_t* rows;   // one a row, or null for 0, 1, 2, ...
};

// An element is dropped iff its lane of `bits` bits is less than `threshold`.
struct Rate {
  int bits;  // 16 or 32
  uint32_t threshold;
};

// Kept values become scale * x + shift, the others `dropped`.
struct Law {
  double scale, shift, dropped;
};

struct Job {
  const void* x;
  void* y;
  Type type;
  Address address;
  int64_t col;  // of the first element
  Rate rate;
  Law law;
  int dims;
  Dim dim[max_dims];
};

// Do the job on at most so many threads; the result does not depend on their number.
void drop(Job job, int threads);

// The instruction set in use: the best one of this machine, or the one that use_target named.
const char* target();
// All that this machine can run, the best one first, with spaces between.
const char* targets();
// Return whether there is one of this name; it is used from then on.
bool use_target(const char* name);

}  // namespace sitout
