// Work that threads take shares of.
#pragma once

#include <cstdint>

namespace sitout {

using Part = void(void* work, int64_t index);

// Call part(work, 0), ..., part(work, shares - 1), on at most so many threads.
void share(int64_t shares, int threads, Part* part, void* work);

template <class Each>
void share(int64_t shares, int threads, Each each) {
  share(shares, threads, [](void* work, int64_t i) { (*static_cast<Each*>(work))(i); }, &each);
}

}  // namespace sitout
