// Elementary functions of whole vectors. Targets differ by a rounding or two: not all of them have a
// product and sum in one.
#pragma once

#include <cstddef>

#include "lanes.h"

namespace sitout::SITOUT_TARGET {

template <class F>
using Vector = typename F::V;

// c[k] + c[k + 1] x + c[k + 2] x^2 + ...
template <class F, size_t k = 0, size_t n>
SITOUT_INLINE Vector<F> polynomial(Vector<F> x, const double (&c)[n]) {
  if constexpr (k + 1 == n) {
    return F::all(c[k]);
  } else {
    return F::sum(polynomial<F, k + 1>(x, c), x, F::all(c[k]));
  }
}

template <class F>
constexpr bool is_float = sizeof(typename F::Value) == 4;

// exp(v) for v <= 0; 0 where the result would be subnormal.
template <class F>
SITOUT_INLINE Vector<F> decay(Vector<F> v) {
  // v = n ln 2 + r. Adding 1.5 * 2^mantissa leaves n, rounded, in the low bits.
  constexpr double shift = is_float<F> ? 12582912.0 : 6755399441055744.0;
  const auto t = F::sum(v, F::all(1.4426950408889634), F::all(shift));
  const auto n = F::subtract(t, F::all(shift));
  // The first part of ln 2 has so few digits that its product with n is exact.
  constexpr double high = 0.693145751953125, low = 1.4286068203094172e-06;
  constexpr double high_float = 0.693359375, low_float = -2.1219444005469057e-04;
  auto r = F::sum(n, F::all(is_float<F> ? -high_float : -high), v);
  r = F::sum(n, F::all(is_float<F> ? -low_float : -low), r);
  Vector<F> power;
  if constexpr (is_float<F>) {
    // Interpolates at Chebyshev points of [-ln 2 / 2, ln 2 / 2]; a relative error of 3e-9.
    power = polynomial<F>(r, {1.0, 1.00000003794329924, 0.500000004740139344, 0.166664145071695612,
                              0.0416663516384445757, 0.00837521020087001641,
                              0.00139412131000063345});
  } else {
    power = polynomial<F>(r, {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720,
                              1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800,
                              1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0});
  }
  constexpr double least = is_float<F> ? 87.0 : 708.0;
  return F::negative(F::add(v, F::all(least)), F::all(0.0), F::shift_exponent(power, t));
}

// The standard normal distribution: the probability of less than x, and exp(-x^2 / 2).
template <class F>
struct Normal {
  Vector<F> below, bell;

  SITOUT_INLINE explicit Normal(Vector<F> x) {
    const auto a = F::absolute(x);
    bell = decay<F>(F::multiply(F::multiply(a, a), F::all(-0.5)));
    // The tail beyond a is bell t P(t - 1/2) with t = 1 / (1 + slow a). The coefficients interpolate
    // at Chebyshev points up to a = 14.5 (float) and 39 (double); relative errors of 4e-9 and 4e-17.
    constexpr double slow = is_float<F> ? 0.3 : 0.25;
    const auto t = F::divide(F::all(1.0), F::sum(a, F::all(slow), F::all(1.0)));
    const auto s = F::subtract(t, F::all(0.5));
    Vector<F> p;
    if constexpr (is_float<F>) {
      p = polynomial<F>(
          s, {0.221970613328169799, 0.329158979713893164, 0.346198768912523961,
              0.222082043241830869, 0.0290600998994007808, -0.0775413864313974239,
              -0.0365209248645056474, 0.0359011863606718345, 0.0199553438870560498,
              -0.0209560242365298755});
    } else {
      p = polynomial<F>(
          s, {0.18882128260393787,     0.303948320985945879,    0.387137400742218879,
              0.373043715919388327,    0.241586299562797857,    0.0603215117247444722,
              -0.0556750777958805335,  -0.0521861901404915071,  0.00853403225721914344,
              0.0295801367448801551,   -0.000488413832105307503, -0.017993820752773618,
              0.000732165730223728503, 0.0121218923146511082,   -0.00256054109818006741,
              -0.00835424134605633344, 0.00432017384675862529,  0.00505489671348914551,
              -0.00500569345457550154, -0.00191084538718276285, 0.00365009934575251229,
              -0.0000381133546010794496, -0.00101223502134415245});
    }
    const auto tail = F::multiply(bell, F::multiply(t, p));
    below = F::negative(x, tail, F::subtract(F::all(1.0), tail));
  }
};

// 1 / (1 + exp(-x)), and the same of -x, neither with a loss of digits.
template <class F>
struct Logistic {
  Vector<F> value, other;

  SITOUT_INLINE explicit Logistic(Vector<F> x) {
    const auto e = decay<F>(F::subtract(F::all(0.0), F::absolute(x)));
    const auto large = F::divide(F::all(1.0), F::add(F::all(1.0), e));
    const auto small = F::multiply(e, large);
    value = F::negative(x, small, large);
    other = F::negative(x, large, small);
  }
};

struct Relu {
  template <class F>
  static SITOUT_INLINE Vector<F> value(Vector<F> x) {
    return F::negative(x, F::all(0.0), x);
  }
};

struct Gelu {
  template <class F>
  static SITOUT_INLINE Vector<F> value(Vector<F> x) {
    return F::multiply(x, Normal<F>(x).below);
  }
  template <class F>
  static SITOUT_INLINE Vector<F> slope(Vector<F> x) {
    const Normal<F> normal(x);
    const auto density = F::multiply(normal.bell, F::all(0.3989422804014327));  // 1 / sqrt(2 pi)
    return F::sum(x, density, normal.below);
  }
};

// x times the logistic function of 2 sqrt(2 / pi) (x + 0.044715 x^3), which is 1/2 (1 + tanh) of half.
struct GeluTanh {
  static constexpr double outer = 1.5957691216057308, inner = 0.044715;

  template <class F>
  static SITOUT_INLINE Vector<F> value(Vector<F> x) {
    const auto bend = F::sum(F::multiply(x, x), F::all(inner), F::all(1.0));
    return F::multiply(x, Logistic<F>(F::multiply(F::multiply(x, F::all(outer)), bend)).value);
  }
  template <class F>
  static SITOUT_INLINE Vector<F> slope(Vector<F> x) {
    const auto square = F::multiply(F::multiply(x, x), F::all(inner));
    const auto bend = F::add(square, F::all(1.0));
    const Logistic<F> s(F::multiply(F::multiply(x, F::all(outer)), bend));
    const auto steep = F::sum(square, F::all(3.0), F::all(1.0));
    const auto rise = F::multiply(F::all(outer), steep);
    // In this order 0 times what is large stays 0 as long as x^2 is finite.
    return F::sum(F::multiply(F::multiply(x, s.other), s.value), rise, s.value);
  }
};

struct Silu {
  template <class F>
  static SITOUT_INLINE Vector<F> value(Vector<F> x) {
    return F::multiply(x, Logistic<F>(x).value);
  }
  template <class F>
  static SITOUT_INLINE Vector<F> slope(Vector<F> x) {
    const Logistic<F> s(x);
    return F::multiply(s.value, F::sum(x, s.other, F::all(1.0)));
  }
};

// What follows is for Doubles, on words of 32 bits in lanes of 64.

// A word as a number.
SITOUT_INLINE Doubles::V number(Doubles::V words, int shift) {
  const auto big = Doubles::bits(words, shift, 0xFFFFFFFF, 0x4330000000000000);  // 2^52 + word
  return Doubles::subtract(big, Doubles::all(4503599627370496.0));
}

// log(u) for u in (0, 1].
SITOUT_INLINE Doubles::V logarithm(Doubles::V u) {
  using D = Doubles;
  // u = 2^e m with m in [1, 2), then in [sqrt(1/2), sqrt(2)).
  auto e = D::bits(u, 52, 0x7FF, 0x4330000000000000);
  auto m = D::bits(u, 0, 0xFFFFFFFFFFFFF, 0x3FF0000000000000);
  const auto under = D::subtract(m, D::all(1.4142135623730951));
  m = D::negative(under, m, D::multiply(m, D::all(0.5)));
  e = D::subtract(e, D::negative(under, D::all(4503599627370496.0 + 1023.0),
                                 D::all(4503599627370496.0 + 1022.0)));
  // log(m) = 2 atanh(s) with s = (m - 1) / (m + 1), |s| < 0.172.
  const auto s = D::divide(D::subtract(m, D::all(1.0)), D::add(m, D::all(1.0)));
  const auto series =
      polynomial<D>(D::multiply(s, s), {2.0, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11,
                                        2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21});
  return D::sum(e, D::all(0.6931471805599453), D::multiply(s, series));
}

// cos(2 pi u) for u in [0, 1).
SITOUT_INLINE Doubles::V cosine(Doubles::V u) {
  using D = Doubles;
  // With v = |u - 1/2| the cosine is -cos(2 pi v), and 2 pi v is in [0, pi]. That is
  // sin(2 pi (v - 1/4)), an odd function on [-pi/2, pi/2].
  const auto v = D::absolute(D::subtract(u, D::all(0.5)));
  const auto angle = D::multiply(D::subtract(v, D::all(0.25)), D::all(6.283185307179586));
  const auto square = D::multiply(angle, angle);
  const auto series = polynomial<D>(
      square, {1.0, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800,
               1.0 / 6227020800.0, -1.0 / 1307674368000.0, 1.0 / 355687428096000.0,
               -1.0 / 121645100408832000.0, 1.0 / 51090942171709440000.0,
               -1.0 / 25852016738884976640000.0});
  return D::multiply(angle, series);
}

// The normal number of each lane, whose low word is w and whose high word is v (Box and Muller 1958).
SITOUT_INLINE Doubles::V box_muller(Doubles::V lanes) {
  using D = Doubles;
  const auto unit = D::all(1.0 / 4294967296.0);
  const auto u1 = D::multiply(D::add(number(lanes, 0), D::all(1.0)), unit);
  const auto u2 = D::multiply(number(lanes, 32), unit);
  return D::multiply(D::root(D::multiply(logarithm(u1), D::all(-2.0))), cosine(u2));
}

}  // namespace sitout::SITOUT_TARGET
