// Does many jobs and prints one number for all of their results: the same for every target. Jobs
// whose rounding differs between targets are done too, but not counted.
//
//     checksum [target]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core.h"
#include "plan.h"

namespace {

using Bytes = std::vector<uint8_t>;

uint64_t state = 1;

uint64_t next() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 33;
}

int64_t up_to(uint64_t n) { return static_cast<int64_t>(1 + next() % n); }

// The bits of a value; all NaN count as one, for machines differ in what they leave in them.
uint64_t bits_of(const uint8_t* at, int type, int size) {
  constexpr uint64_t infinity[] = {0x7F800000, 0x7FF0000000000000, 0x7F80, 0x7C00, 0xFF};
  uint64_t bits = 0;
  std::memcpy(&bits, at, static_cast<size_t>(size));
  const uint64_t sign = type == 4 ? 0 : uint64_t{1} << (8 * size - 1);
  return (bits & ~sign) > infinity[type] ? 1 : bits;
}

// Rows, columns and elements that share a bit, laid in memory in any order.
void lay(sitout::Job& job, int64_t rows, int64_t cols, int64_t shared) {
  sitout::Dim dims[] = {{rows, {}, 0, true}, {cols, {}, 1, false}, {shared, {}, 0, false}};
  for (int d = 2; d > 0; --d) std::swap(dims[d], dims[next() % static_cast<uint64_t>(d + 1)]);
  int64_t stride = 1;
  for (int d = 2; d >= 0; --d) {
    for (int o = sitout::X; o < sitout::operands; ++o) dims[d].stride[o] = stride;
    dims[d].stride[sitout::BIAS] = dims[d].col;  // one number a column
    stride *= dims[d].size;
    job.dim[d] = dims[d];
  }
  job.dims = 3;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && !sitout::use_target(arguments[1])) {
    std::printf("this machine runs %s\n", sitout::targets());
    return 1;
  }
  constexpr int ops = static_cast<int>(sitout::Op::mask) + 1;
  constexpr bool counted[ops] = {true,  true,  true,  true,  false, false, false,
                                 true,  false, false, false, false, true};
  uint64_t sum = 14695981039346656037u;  // FNV-1a, a value at a time
  for (int number = 0; number < 2600; ++number) {
    const int op = number % ops, type = op == ops - 1 ? 4 : static_cast<int>(next() % 4);
    constexpr int sizes[] = {4, 8, 2, 2, 1};
    const int size = sizes[type];
    const bool large = next() % 32 == 0;
    const int64_t rows = up_to(large ? 700 : 9), cols = up_to(large ? 700 : 200), shared = up_to(3);
    const int64_t n = rows * cols * shared;
    Bytes x(static_cast<size_t>(n * size)), other(x.size()), y(x.size(), 0xAB);
    Bytes bias(static_cast<size_t>(cols * size));
    for (Bytes* bytes : {&x, &other, &bias})
      for (auto& byte : *bytes) byte = static_cast<uint8_t>(next());
    sitout::Job job{};
    lay(job, rows, cols, shared);
    job.op = static_cast<sitout::Op>(op);
    job.type = static_cast<sitout::Type>(type);
    job.input[sitout::X] = x.data();
    job.input[sitout::OTHER] = other.data();
    if (next() & 1) job.input[sitout::BIAS] = bias.data();
    job.y = y.data();
    const uint64_t high = next() << 31, low = next();
    const auto site = static_cast<uint32_t>(next() & 0xFFFFFFF), step = static_cast<uint32_t>(next());
    job.address = {high ^ low, site, step, nullptr, nullptr};
    const bool narrow = next() & 1;
    const uint64_t threshold = narrow ? 1024 + next() % 60000 : next() % 1000000000;
    job.rate = {narrow ? 16 : 32, static_cast<uint32_t>(threshold)};
    job.law = {1.25, 0.5, -0.25};
    job.col = static_cast<int64_t>(next() % 1000);
    sitout::run(job, sitout::plan(job), static_cast<int>(up_to(3)));
    if (!counted[op]) continue;
    for (int64_t i = 0; i < n; ++i) sum = (sum ^ bits_of(&y[i * size], type, size)) * 1099511628211u;
  }
  int64_t chosen[500];
  for (int64_t n = 1; n <= 2000; n += 37) {
    const int64_t k = std::min<int64_t>(n, 500);
    sum ^= static_cast<uint64_t>(sitout::first(chosen, n, k, 3, {next(), 5, 7, nullptr, nullptr}));
    for (int64_t i = 0; i < k; ++i) sum = (sum ^ static_cast<uint64_t>(chosen[i])) * 1099511628211u;
  }
  std::printf("%016llx\n", static_cast<unsigned long long>(sum));
  return 0;
}
