// Which instruction set serves, and on how many threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "core.h"
#include "plan.h"
#include "share.h"

namespace sitout {

using Run = void(const Job& job, const Plan& plan, int64_t begin, int64_t end);
using First = int64_t(int64_t* out, int64_t n, int64_t k, uint32_t group, const Address& address);

#define SITOUT_DECLARE(name) \
  namespace name {           \
  Run run;                   \
  First first;               \
  }
#ifdef SITOUT_X86
SITOUT_DECLARE(avx512)
SITOUT_DECLARE(avx2)
#endif
#ifdef SITOUT_ARM
SITOUT_DECLARE(neon)
#endif
SITOUT_DECLARE(scalar)

namespace {

constexpr int64_t grain = 1 << 15;  // elements that are worth a thread of their own

struct Target {
  const char* name;
  bool (*runs)();
  Run* run;
  First* first;
};

#ifdef SITOUT_X86
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
#endif
bool always() { return true; }

const Target all[] = {
#ifdef SITOUT_X86
    {"avx512", has_avx512, avx512::run, avx512::first},
    {"avx2", has_avx2, avx2::run, avx2::first},
#endif
#ifdef SITOUT_ARM
    {"neon", always, neon::run, neon::first},
#endif
    {"scalar", always, scalar::run, scalar::first},
};

const Target* best() {
  return std::find_if(std::begin(all), std::end(all), [](const Target& one) { return one.runs(); });
}

std::atomic<const Target*>& chosen() {
  static std::atomic<const Target*> one{best()};
  return one;
}

}  // namespace

const char* target() { return chosen().load()->name; }

const char* targets() {
  static const std::string names = [] {
    std::string made;
    for (const Target& one : all)
      if (one.runs()) made += (made.empty() ? "" : " ") + std::string(one.name);
    return made;
  }();
  return names.c_str();
}

bool use_target(const char* name) {
  for (const Target& one : all) {
    if (std::strcmp(one.name, name) == 0 && one.runs()) {
      chosen() = &one;
      return true;
    }
  }
  return false;
}

void run(const Job& job, const Plan& plan, int threads) {
  const int64_t wanted = std::min<int64_t>({threads, plan.elements / grain, plan.items});
  Run* const kernel = chosen().load()->run;
  if (wanted <= 1) return kernel(job, plan, 0, plan.items);
  const int64_t shares = std::min(plan.items, 4 * wanted);  // a thread may be late
  share(shares, static_cast<int>(wanted), [&](int64_t i) {
    kernel(job, plan, plan.items * i / shares, plan.items * (i + 1) / shares);
  });
}

int64_t first(int64_t* out, int64_t n, int64_t k, uint32_t group, const Address& address) {
  return chosen().load()->first(out, n, k, group, address);
}

}  // namespace sitout
