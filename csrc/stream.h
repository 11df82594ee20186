// From addresses to bits: runs of columns of one row, and a few columns of many rows.
#pragma once

#include <algorithm>

#include "core.h"
#include "lanes.h"
#include "philox.h"

namespace sitout::SITOUT_TARGET {

using Batch = Counters<Lanes>[Lanes::interleave];

// All of an address but the row and the step, and the rate.
struct Stream {
  Keys keys;
  uint64_t site;  // and the kind
  uint32_t threshold;

  Stream(const Address& address, Kind kind, uint32_t t)
      : keys(address.key), site(address.site | static_cast<uint32_t>(kind) << 28), threshold(t) {}
};

template <Kind kind>
SITOUT_INLINE uint64_t bits_of(const Counters<Lanes>& c, uint32_t threshold) {
  return kind == narrow ? Lanes::bits16(c.c0, c.c1, c.c2, c.c3, threshold)
                        : Lanes::bits32(c.c0, c.c1, c.c2, c.c3, threshold);
}

// Hand the bits of the columns 8 byte, 8 byte + 1, ... to take(i, word), 64 in each word.
template <Kind kind, class Take>
SITOUT_INLINE void each_word(const Stream& stream, uint32_t row, uint32_t step, int64_t byte,
                             int64_t words, Take take) {
  constexpr int one = kind == narrow ? 8 * Lanes::count : 4 * Lanes::count;  // bits of a batch
  constexpr int all = one * Lanes::interleave;
  constexpr int turns = all < 64 ? 64 / all : 1, made = all < 64 ? 1 : all / 64;
  const auto r = Lanes::all(row), s = Lanes::all(step), site = Lanes::all(stream.site);
  uint32_t block = static_cast<uint32_t>(kind == narrow ? byte : 2 * byte);
  for (int64_t w = 0; w < words; w += made) {
    uint64_t word[made] = {};
    for (int turn = 0; turn < turns; ++turn) {
      Batch c;
#pragma GCC unroll 8
      for (auto& batch : c) {
        batch = {Lanes::order(block), r, s, site};
        block += Lanes::count;
      }
      philox<Lanes>(c, stream.keys);
#pragma GCC unroll 8
      for (int i = 0; i < Lanes::interleave; ++i) {
        const int at = (turn * Lanes::interleave + i) * one;
        word[at / 64] |= bits_of<kind>(c[i], stream.threshold) << at % 64;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < made; ++i)
      if (w + i < words) take(w + i, word[i]);
  }
}

// Write the words of the blocks block, block + 1, ...: four of each, `blocks` rounded up to batches.
inline void write_words(uint32_t* out, const Stream& stream, uint32_t row, uint32_t step,
                        int64_t block, int64_t blocks) {
  for (int64_t done = 0; done < blocks; done += Lanes::interleave * Lanes::count) {
    Batch c;
    for (int i = 0; i < Lanes::interleave; ++i) {
      const auto at = static_cast<uint32_t>(block + done + i * Lanes::count);
      c[i] = {Lanes::order(at), Lanes::all(row), Lanes::all(step), Lanes::all(stream.site)};
    }
    philox<Lanes>(c, stream.keys);
    for (int i = 0; i < Lanes::interleave; ++i)
      Lanes::words(c[i].c0, c[i].c1, c[i].c2, c[i].c3, out + 4 * (done + i * Lanes::count));
  }
}
constexpr int64_t words_margin = 4 * Lanes::interleave * Lanes::count;

// The bits of many short runs of columns, one run after the other, each in whole bytes.
template <Kind kind>
class Gatherer {
 public:
  Gatherer(const Stream& stream, uint8_t* out) : stream_(stream), out_(out) {}

  void add(uint32_t row, uint32_t step, int64_t byte, int64_t bytes) {
    uint32_t block = static_cast<uint32_t>(kind == narrow ? byte : 2 * byte);
    for (int64_t left = kind == narrow ? bytes : 2 * bytes; left > 0;) {
      const int n = static_cast<int>(std::min<int64_t>(left, capacity - held_));
      for (int i = held_; i < held_ + n; ++i) {
        block_[i] = block++;
        row_[i] = row;
        step_[i] = step;
      }
      held_ += n;
      left -= n;
      if (held_ == capacity) flush();
    }
  }

  // May write some bytes more than were added.
  void flush() {
    constexpr int one = kind == narrow ? 8 * Lanes::count : 4 * Lanes::count;
    const auto site = Lanes::all(stream_.site);
    uint64_t word = 0;
    int bits = 0;
    for (int at = 0; at < held_;) {
      Batch c;
      for (auto& batch : c) {
        batch = {Lanes::load(block_ + at), Lanes::load(row_ + at), Lanes::load(step_ + at), site};
        at += Lanes::count;
      }
      philox<Lanes>(c, stream_.keys);
      for (const auto& batch : c) {
        word |= bits_of<kind>(batch, stream_.threshold) << bits;
        bits += one;
        if (bits < 8) continue;
        std::memcpy(out_, &word, 8);
        out_ += bits / 8;
        word = 0;
        bits = 0;
      }
    }
    const int over = (held_ + at_once - 1) / at_once * at_once - held_;
    out_ -= kind == narrow ? over : over / 2;
    held_ = 0;
  }

  static constexpr int64_t margin = 64;  // bytes that may be written besides

 private:
  static constexpr int capacity = 256, at_once = Lanes::count * Lanes::interleave;
  const Stream& stream_;
  uint8_t* out_;
  int held_ = 0;
  uint32_t block_[capacity] = {}, row_[capacity] = {}, step_[capacity] = {};
};

}  // namespace sitout::SITOUT_TARGET
