// What the kernels take: raw pointers, sizes and the address of a mask. No torch, no Python.
#pragma once

#include <cstdint>

namespace sitout {

// The mask function's words serve several ends, each with a number of its own.
enum Kind : uint32_t { narrow = 0, wide = 1, subset = 2, normal = 3 };

enum class Type : int { float32, float64, bfloat16, float16, byte };

// What happens to a value; `s` is the scale of the job.
enum class Op : int {
  scale,            // kept: s x; else 0
  affine,           // kept: s x + shift; else `dropped`
  add,              // other + (kept: s x; else 0)
  relu,             // kept: s f(x + bias); else 0
  gelu,
  gelu_tanh,
  silu,
  relu_slope,       // s x where `other`, the output, is not 0; else 0
  gelu_slope,       // kept: s x f'(other + bias); else 0
  gelu_tanh_slope,
  silu_slope,
  noise,            // x (1 + s z), z standard normal
  mask,             // the mask bit itself, as a byte
};

enum Operand { X, OTHER, BIAS, Y, operands };

// One dim of a job: how far its index moves in each operand, in the columns and in the rows.
struct Dim {
  int64_t size;
  int64_t stride[operands];  // in elements
  int64_t col;               // 0 where one mask bit serves the whole dim
  bool row;                  // whether the index is the row
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

struct Law {
  double scale, shift, dropped;
};

struct Job {
  Op op;
  Type type;
  const void* input[Y];  // null where there is none
  void* y;
  Address address;
  int64_t col;  // of the first element
  Rate rate;
  Law law;
  int dims;
  Dim dim[max_dims];
};

// Write the `k` of `n` candidates that come first in the order of (word, index), in ascending order;
// return the one of them that comes last in that order. 0 < k <= n. The row is the group.
int64_t first(int64_t* out, int64_t n, int64_t k, uint32_t group, const Address& address);

// The instruction set in use: the best one of this machine, or the one that use_target named.
const char* target();
// All that this machine can run, the best one first, with spaces between.
const char* targets();
// Return whether there is one of this name; it is used from then on.
bool use_target(const char* name);

}  // namespace sitout
