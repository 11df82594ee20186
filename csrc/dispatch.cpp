// Which instruction set serves, and on how many threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core.h"
#include "plan.h"

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

constexpr int64_t grain = 1 << 16;  // elements that are worth a thread of their own

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

// Threads are made anew for each large job. They cost some 20 us, no state outlives the call, and
// so neither a fork nor a second caller can meet a pool in the middle of its work.
void run(const Job& job, const Plan& plan, int threads) {
  const auto work = chosen().load()->run;
  const int64_t wanted = std::min<int64_t>({threads, plan.elements / grain, plan.items});
  const int64_t count = std::max<int64_t>(1, wanted);
  const auto share = [&](int64_t i) {
    work(job, plan, plan.items * i / count, plan.items * (i + 1) / count);
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(count - 1));
  int64_t started = 1;
  try {
    for (; started < count; ++started) others.emplace_back(share, started);
  } catch (const std::system_error&) {
    // No more threads are to be had: this one does their work.
  }
  share(0);
  for (int64_t i = started; i < count; ++i) share(i);
  for (auto& one : others) one.join();
}

int64_t first(int64_t* out, int64_t n, int64_t k, uint32_t group, const Address& address) {
  return chosen().load()->first(out, n, k, group, address);
}

}  // namespace sitout
