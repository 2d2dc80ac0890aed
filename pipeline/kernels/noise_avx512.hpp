// The two long parts of `noise.hpp` by hand, bit for bit: the compiler makes a product of 64 bits, at three times the price, of
// each of 32, and finishes one chain of sixteen numbers before it begins the next.
#pragma once

#include <immintrin.h>

namespace {

#define UNLEARN_EACH _Pragma("GCC unroll 4") for (int n = 0; n < 4; ++n)

// Step by step what `pair` does, each for all four before the next, and the sine's and cosine's between those of the logarithm: the
// processor does not look far enough ahead to find another chain's steps by itself while one waits. A fused multiply-add stands
// where the product is exact anyway.
UNLEARN_INLINE void normals(const Words &words, float *__restrict out) {
  auto all = [](float value) UNLEARN_INNER { return _mm512_set1_ps(value); };
  auto bits = [](uint32_t value) UNLEARN_INNER { return _mm512_set1_epi32(int32_t(value)); };
  // The sign bits of `by` turn the signs of `value`.
  auto turned = [=](__m512 value, __m512i by) UNLEARN_INNER {
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(value), by, bits(0x80000000u), 0x78));
  };
  const __m512i zero = _mm512_setzero_si512();
  __m512i high[4], flip[4], u[4], exponent[4], angle[4];
  __m512 x[4], z[4], e[4], z2[4], y[4], radius[4], t[4], t2[4], s[4], c[4];
  __mmask16 near[4];
  UNLEARN_EACH high[n] = _mm512_load_si512(words.high[n]);
  UNLEARN_EACH flip[n] = _mm512_srai_epi32(high[n], 31);
  UNLEARN_EACH near[n] = _mm512_cmplt_epi32_mask(high[n], zero);
  UNLEARN_EACH u[n] = _mm512_ternarylogic_epi32(_mm512_load_si512(words.low[n]), flip[n], bits(0x1fffffu), 0x28);
  UNLEARN_EACH x[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(u[n]), all(float(0x1p-53)), all(float(0x1p-54)));
  UNLEARN_EACH x[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_xor_si512(high[n], flip[n])), all(float(0x1p-32)), x[n]);
  UNLEARN_EACH u[n] = _mm512_castps_si512(_mm512_mask_sub_ps(x[n], near[n], all(1.0f), x[n]));
  UNLEARN_EACH flip[n] = _mm512_sub_epi32(u[n], bits(0x3f3504f3u));
  UNLEARN_EACH exponent[n] = _mm512_srai_epi32(flip[n], 23);
  UNLEARN_EACH u[n] = _mm512_sub_epi32(u[n], _mm512_and_si512(flip[n], bits(0xff800000u)));
  UNLEARN_EACH z[n] = _mm512_castsi512_ps(u[n]) - all(1.0f);
  UNLEARN_EACH near[n] = _mm512_mask_cmpeq_epi32_mask(near[n], exponent[n], zero);
  UNLEARN_EACH z[n] = _mm512_mask_sub_ps(z[n], near[n], _mm512_setzero_ps(), x[n]);
  UNLEARN_EACH angle[n] = _mm512_load_si512(words.angle[n]);
  UNLEARN_EACH u[n] = _mm512_xor_si512(_mm512_slli_epi32(angle[n], 2), bits(0x80000000u));
  UNLEARN_EACH y[n] = z[n] * all(float(7.0376836292e-2));
  UNLEARN_EACH t[n] = _mm512_cvtepi32_ps(u[n]) * all(float(0x1p-32 * 1.5707963267948966));
  UNLEARN_EACH y[n] = y[n] + all(float(-1.1514610310e-1));
  UNLEARN_EACH t2[n] = t[n] * t[n];
  UNLEARN_EACH y[n] = y[n] * z[n];
  UNLEARN_EACH s[n] = t2[n] * all(float(-1.9515295891e-4));
  UNLEARN_EACH y[n] = y[n] + all(float(1.1676998740e-1));
  UNLEARN_EACH c[n] = t2[n] * all(float(2.443315711809948e-5));
  UNLEARN_EACH y[n] = y[n] * z[n];
  UNLEARN_EACH s[n] = s[n] + all(float(8.3321608736e-3));
  UNLEARN_EACH y[n] = y[n] + all(float(-1.2420140846e-1));
  UNLEARN_EACH c[n] = c[n] + all(float(-1.388731625493765e-3));
  UNLEARN_EACH y[n] = y[n] * z[n];
  UNLEARN_EACH s[n] = s[n] * t2[n];
  UNLEARN_EACH y[n] = y[n] + all(float(1.4249322787e-1));
  UNLEARN_EACH c[n] = c[n] * t2[n];
  UNLEARN_EACH y[n] = y[n] * z[n];
  UNLEARN_EACH s[n] = s[n] + all(float(-1.6666654611e-1));
  UNLEARN_EACH y[n] = y[n] + all(float(-1.6668057665e-1));
  UNLEARN_EACH c[n] = c[n] + all(float(4.166664568298827e-2));
  UNLEARN_EACH y[n] = y[n] * z[n];
  UNLEARN_EACH s[n] = s[n] * t2[n];
  UNLEARN_EACH y[n] = y[n] + all(float(2.0000714765e-1));
  UNLEARN_EACH c[n] = c[n] * t2[n];
  UNLEARN_EACH y[n] = y[n] * z[n];
  UNLEARN_EACH s[n] = s[n] * t[n];
  UNLEARN_EACH y[n] = y[n] + all(float(-2.4999993993e-1));
  UNLEARN_EACH c[n] = c[n] * t2[n];
  UNLEARN_EACH y[n] = y[n] * z[n];
  UNLEARN_EACH s[n] = s[n] + t[n];
  UNLEARN_EACH y[n] = y[n] + all(float(3.3333331174e-1));
  UNLEARN_EACH c[n] = _mm512_fnmadd_ps(t2[n], all(0.5f), c[n]);
  UNLEARN_EACH y[n] = y[n] * z[n];
  UNLEARN_EACH z2[n] = z[n] * z[n];
  UNLEARN_EACH y[n] = y[n] * z2[n];
  UNLEARN_EACH e[n] = _mm512_cvtepi32_ps(exponent[n]);
  UNLEARN_EACH y[n] = y[n] + e[n] * all(float(-2.12194440e-4));
  UNLEARN_EACH c[n] = c[n] + all(1.0f);
  UNLEARN_EACH y[n] = z[n] + _mm512_fnmadd_ps(z2[n], all(0.5f), y[n]);
  UNLEARN_EACH radius[n] = _mm512_sqrt_ps(_mm512_fnmsub_ps(e[n], all(0.693359375f), y[n]));
  UNLEARN_EACH flip[n] = _mm512_slli_epi32(angle[n], 1); // in odd quarters the sine's sign turns, and the first number's
  UNLEARN_EACH s[n] = turned(s[n], flip[n]);
  UNLEARN_EACH radius[n] = turned(radius[n], angle[n]);
  UNLEARN_EACH _mm512_storeu_ps(out + 2 * n * LANES, turned(radius[n] * (c[n] - s[n]), flip[n]));
  UNLEARN_EACH _mm512_storeu_ps(out + (2 * n + 1) * LANES, radius[n] * (c[n] + s[n]));
}

// As the portable one. Even and odd counters keep to the lower halves of lanes of 64 bits: n counts even and odd ones of the first
// sixteen, then of the second.
UNLEARN_INLINE void philox_words(const Keys &keys, uint64_t step, uint64_t counter, Words &words) {
  const __m512i m = _mm512_set1_epi64(0xD2511F53), l = _mm512_set1_epi64(0xCD9E8D57);
  auto same = [](uint64_t value) UNLEARN_INNER { return _mm512_set1_epi64(int64_t(value)); };
  // A shuffle, because shifts and products would wait for the same unit.
  auto upper = [](__m512i x) UNLEARN_INNER { return _mm512_shuffle_epi32(x, _MM_PERM_DDBB); };
  // In the first two rounds half of the products are of numbers that all counters share.
  const uint64_t q = uint64_t(uint32_t(step)) * 0xCD9E8D57u;
  const uint64_t p = uint64_t(uint32_t(q >> 32) ^ uint32_t(counter >> 32) ^ uint32_t(keys.of[0][0])) * 0xD2511F53u;
  const __m512i start = _mm512_add_epi64(same(uint32_t(counter)), _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14));
  __m512i a[4], b[4], c[4], d[4];
  UNLEARN_EACH a[n] = _mm512_mul_epu32(_mm512_add_epi64(start, same((n & 1) + (n >> 1) * LANES)), m);
  UNLEARN_EACH b[n] = _mm512_mul_epu32(_mm512_xor_si512(upper(a[n]), same((step >> 32) ^ keys.of[0][1])), l);
  UNLEARN_EACH c[n] = _mm512_xor_si512(a[n], same((p >> 32) ^ keys.of[1][1]));
  UNLEARN_EACH a[n] = _mm512_xor_si512(upper(b[n]), same(uint32_t(q) ^ keys.of[1][0]));
  UNLEARN_EACH d[n] = same(p);
#pragma GCC unroll 8
  for (int round = 2; round < 10; ++round)
    UNLEARN_EACH {
      const __m512i first = _mm512_mul_epu32(a[n], m), second = _mm512_mul_epu32(c[n], l);
      a[n] = _mm512_ternarylogic_epi64(upper(second), b[n], same(keys.of[round][0]), 0x96), b[n] = second;
      c[n] = _mm512_ternarylogic_epi64(upper(first), d[n], same(keys.of[round][1]), 0x96), d[n] = first;
    }
  auto put = [](uint32_t *out, __m512i even, __m512i odd) UNLEARN_INNER {
    _mm512_store_si512(out, _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA));
  };
  for (int half = 0; half < 2; ++half) {
    put(words.high[2 * half], a[2 * half], a[2 * half + 1]), put(words.low[2 * half], b[2 * half], b[2 * half + 1]);
    put(words.high[2 * half + 1], c[2 * half], c[2 * half + 1]), put(words.low[2 * half + 1], d[2 * half], d[2 * half + 1]);
  }
}

#undef UNLEARN_EACH

} // namespace
