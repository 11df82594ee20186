// One instruction set, chosen by the macro that the build defines. Its file in targets/ holds:
//
// Lanes, for the mask function. V is `count` lanes of 64 bits, each with a 32-bit word.
//   interleave             batches of blocks that are worked on at once, to keep all units busy
//   order(base)            the counters base, base + 1, ... in the order that the rest expects
//   load(words)            words[0], words[1], ... in that order
//   bits16, bits32         one bit for each lane of 16 or 32 bits, set where it reaches a threshold
//   words                  write the words of all blocks, in the order of the columns
//
// Floats and Doubles, for values. V is `count` numbers.
//   sum(a, b, c)           a b + c, rounded once where the machine can
//   keep(bits, v)          v where the bit is set, else +0
//   select(bits, a, b)     a where the bit is set, else b
//   nonzero(v)             one bit for each number that is not 0, as NaN is not
//   negative(x, a, b)      a where x < 0, else b
//   shift_exponent(v, t)   v times 2 to the power of the low bits of t
#pragma once

#include <cstdint>
#include <cstring>

#define SITOUT_INLINE inline __attribute__((always_inline))

#if defined(SITOUT_AVX512)
#define SITOUT_TARGET avx512
#include "targets/avx512.h"
#elif defined(SITOUT_AVX2)
#define SITOUT_TARGET avx2
#include "targets/avx2.h"
#elif defined(SITOUT_NEON)
#define SITOUT_TARGET neon
#include "targets/neon.h"
#else
#define SITOUT_TARGET scalar
#include "targets/scalar.h"
#endif
