// Which instruction set serves, and on how many threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <dlfcn.h>
#include <unistd.h>
#endif

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

namespace {

// Threads take shares of the work until none is left. They are those of the OpenMP runtime that the
// process has loaded, torch's: threads of our own would fight with its threads, which spin for a
// while after each of torch's operations. A child that is forked after the core was loaded has lost
// them, and where there is no such runtime there are none, so threads are made anew there for each
// large job (some 20 us each).
struct Work {
  const Job& job;
  const Plan& plan;
  Run* run;
  int64_t shares;
  std::atomic<int64_t> next{0};

  void join() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < shares;)
      run(job, plan, plan.items * i / shares, plan.items * (i + 1) / shares);
  }
};

void join(void* work) { static_cast<Work*>(work)->join(); }

using Team = void(void (*)(void*), void*, unsigned threads, unsigned flags);

#ifdef _WIN32
Team* team() { return nullptr; }
#else
const pid_t loaded_by = getpid();

Team* team() {
  static Team* const found = reinterpret_cast<Team*>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return getpid() == loaded_by ? found : nullptr;
}
#endif

}  // namespace

void run(const Job& job, const Plan& plan, int threads) {
  const int64_t wanted = std::min<int64_t>({threads, plan.elements / grain, plan.items});
  Work work{job, plan, chosen().load()->run, 1};
  if (wanted <= 1) return work.join();
  work.shares = std::min(plan.items, 4 * wanted);  // a thread may be late
  if (Team* const started = team()) {
    started(join, &work, static_cast<unsigned>(wanted), 0);
    return;
  }
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(wanted - 1));
  try {
    while (others.size() < others.capacity()) others.emplace_back(join, &work);
  } catch (const std::system_error&) {
    // No more threads are to be had: those that there are do the work.
  }
  work.join();
  for (auto& one : others) one.join();
}

int64_t first(int64_t* out, int64_t n, int64_t k, uint32_t group, const Address& address) {
  return chosen().load()->first(out, n, k, group, address);
}

}  // namespace sitout
