// The mask function: Philox4x32 with 10 rounds (Salmon et al. 2011), on as many counters as there
// are lanes. Each lane is 64 bits wide and holds a 32-bit word; what is above it is never read.
#pragma once

#include <cstdint>

namespace sitout {

template <class Lanes>
inline __attribute__((always_inline)) void philox(typename Lanes::V& c0, typename Lanes::V& c1,
                                                  typename Lanes::V& c2, typename Lanes::V& c3,
                                                  uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  const auto m0 = Lanes::all(0xD2511F53u), m1 = Lanes::all(0xCD9E8D57u);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const auto p0 = Lanes::multiply(c0, m0), p1 = Lanes::multiply(c2, m1);
    c0 = Lanes::exclusive_or(Lanes::high(p1), c1, Lanes::all(k0));
    c2 = Lanes::exclusive_or(Lanes::high(p0), c3, Lanes::all(k1));
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace sitout
