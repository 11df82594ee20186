// The mask function: Philox4x32 with 10 rounds (Salmon et al. 2011), on as many counters as there
// are lanes, in several batches at once: one batch alone would wait for its own products.
#pragma once

#include <cstdint>

namespace sitout {

// The keys of all rounds.
struct Keys {
  uint64_t round[10][2];

  explicit Keys(uint64_t key) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (auto& k : round) {
      k[0] = k0;
      k[1] = k1;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
  }
};

// Each lane is 64 bits wide and holds a 32-bit word; what is above it is never read.
template <class Lanes>
struct Counters {
  typename Lanes::V c0, c1, c2, c3;
};

template <class Lanes, int n>
inline __attribute__((always_inline)) void philox(Counters<Lanes> (&c)[n], const Keys& keys) {
  const auto m0 = Lanes::all(0xD2511F53u), m1 = Lanes::all(0xCD9E8D57u);
#pragma GCC unroll 10
  for (int r = 0; r < 10; ++r) {
    const auto k0 = Lanes::all(keys.round[r][0]), k1 = Lanes::all(keys.round[r][1]);
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      const auto p0 = Lanes::multiply(c[i].c0, m0), p1 = Lanes::multiply(c[i].c2, m1);
      c[i].c0 = Lanes::exclusive_or(Lanes::high(p1), c[i].c1, k0);
      c[i].c2 = Lanes::exclusive_or(Lanes::high(p0), c[i].c3, k1);
      c[i].c1 = p1;
      c[i].c3 = p0;
    }
  }
}

}  // namespace sitout
