// Threads take shares of the work until none is left. They are those of the OpenMP runtime that the
// process has loaded, torch's: threads of our own would fight with its threads, which spin for a
// while after each of torch's operations. A child that is forked after the core was loaded has lost
// them, and where there is no such runtime there are none, so threads are made anew there for each
// large job (some 20 us each).
#include "share.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace sitout {
namespace {

struct Work {
  Part* part;
  void* work;
  int64_t shares;
  std::atomic<int64_t> next{0};

  void join() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < shares;) part(work, i);
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

void share(int64_t shares, int threads, Part* part, void* state) {
  Work work{part, state, shares};
  if (threads <= 1 || shares <= 1) return work.join();
  if (Team* const started = team()) {
    started(join, &work, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads - 1));
  try {
    while (others.size() < others.capacity()) others.emplace_back(join, &work);
  } catch (const std::system_error&) {
    // No more threads are to be had: those that there are do the work.
  }
  work.join();
  for (auto& one : others) one.join();
}

}  // namespace sitout
