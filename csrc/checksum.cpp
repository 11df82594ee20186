// Does many jobs and prints one number for all of their results: the same for every target.
//
//     checksum [target]
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core.h"

namespace {

uint64_t state = 1;

uint64_t next() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 33;
}

// The bits of a value; all NaN count as one, for machines differ in what they leave in them.
uint64_t bits_of(const uint8_t* at, int type, int size) {
  constexpr uint64_t infinity[] = {0x7F800000, 0x7FF0000000000000, 0x7F80, 0x7C00};
  uint64_t bits = 0;
  std::memcpy(&bits, at, static_cast<size_t>(size));
  const uint64_t sign = uint64_t{1} << (8 * size - 1);
  return (bits & ~sign) > infinity[type] ? 1 : bits;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && !sitout::use_target(arguments[1])) {
    std::printf("this machine runs %s\n", sitout::targets());
    return 1;
  }
  uint64_t sum = 14695981039346656037u;  // FNV-1a, a value at a time
  for (int job_number = 0; job_number < 3000; ++job_number) {
    const int type = static_cast<int>(next() % 4), size = type == 0 ? 4 : type == 1 ? 8 : 2;
    const auto rows = static_cast<int64_t>(1 + next() % 5);
    const auto cols = static_cast<int64_t>(1 + next() % 200);
    const auto inner = static_cast<int64_t>(1 + next() % 3);  // elements that share a bit
    const int64_t n = rows * cols * inner;
    std::vector<uint8_t> x(static_cast<size_t>(n * size)), y(x.size(), 0xAB);
    for (auto& byte : x) byte = static_cast<uint8_t>(next());
    sitout::Job job{};
    job.x = x.data();
    job.y = y.data();
    job.type = static_cast<sitout::Type>(type);
    const uint64_t high = next() << 31, low = next();
    const auto site = static_cast<uint32_t>(next() & 0xFFFFFFF), step = static_cast<uint32_t>(next());
    job.address = {high ^ low, site, step, nullptr, nullptr};
    const bool narrow = next() & 1;
    const uint64_t threshold = narrow ? 1024 + next() % 60000 : next() % 1000000000;
    job.rate = {narrow ? 16 : 32, static_cast<uint32_t>(threshold)};
    job.law = {1.25, next() & 1 ? 0.5 : 0.0, 0.0};
    job.col = static_cast<int64_t>(next() % 1000);
    job.dims = 3;
    job.dim[0] = {rows, cols * inner, cols * inner, 0, true};
    job.dim[1] = {cols, inner, inner, 1, false};
    job.dim[2] = {inner, 1, 1, 0, false};
    sitout::drop(job, static_cast<int>(1 + next() % 3));
    for (int64_t i = 0; i < n; ++i) sum = (sum ^ bits_of(&y[i * size], type, size)) * 1099511628211u;
  }
  std::printf("%016llx\n", static_cast<unsigned long long>(sum));
  return 0;
}
