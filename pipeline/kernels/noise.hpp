// Normal numbers by counter, in lanes of sixteen; `counter.py` has the same steps, and says why.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

// Each helper is inlined by order: where the compiler decides for itself that there are too many, loops are no vectors any more.
#define UNLEARN_INNER __attribute__((always_inline))
#define UNLEARN_INLINE UNLEARN_INNER inline

namespace {

constexpr int LANES = 16;
constexpr int GROUP = 8 * LANES; // places that sixteen blocks of ChaCha20 or thirty-two of Philox fill
constexpr int CHUNK = 2 * GROUP; // places whose noise is made at once: it stays in the first cache
constexpr int BLOCK = 1 << 14; // places that have sums of their own; a multiple of CHUNK
constexpr int64_t ALONE = 8;   // blocks below which another thread costs more than it saves
constexpr int AHEAD = 512;     // places between what is read and what is asked for

UNLEARN_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

UNLEARN_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

UNLEARN_INLINE float widen(float value) { return value; }
UNLEARN_INLINE float widen(uint16_t value) { return float_of(uint32_t(value) << 16); }

UNLEARN_INLINE uint16_t narrow(float value) { // to bf16, to nearest, ties to even
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return value != value ? uint16_t(0x7fc0) : uint16_t(rounded);
}

// Two normal numbers of 53 bits for the radius and 32 for the angle; `counter.py` has the same steps, and says why.
UNLEARN_INLINE void pair(uint32_t high, uint32_t low, uint32_t angle, float &first, float &second) {
  const bool near = int32_t(high) < 0;
  const uint32_t flip = near ? 0xffffffffu : 0u;
  const float wide = float(int32_t(high ^ flip)) * 2097152.0f;
  const float x = (wide + (float(int32_t((low ^ flip) & 0x1fffffu)) + 0.5f)) * float(0x1p-53);
  const float u = near ? 1.0f - x : x;
  const int32_t bits = int32_t(bits_of(u));
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float mantissa = float_of(uint32_t(bits) - (uint32_t(exponent) << 23));
  const float z = near && exponent == 0 ? -x : mantissa - 1.0f;
  const float e = float(exponent), z2 = z * z;
  float y = z * float(7.0376836292e-2) + float(-1.1514610310e-1);
  y = y * z + float(1.1676998740e-1);
  y = y * z + float(-1.2420140846e-1);
  y = y * z + float(1.4249322787e-1);
  y = y * z + float(-1.6668057665e-1);
  y = y * z + float(2.0000714765e-1);
  y = y * z + float(-2.4999993993e-1);
  y = y * z + float(3.3333331174e-1);
  y = y * z * z2;
  y = y + e * float(-2.12194440e-4);
  y = y - z2 * 0.5f;
  const float radius = std::sqrt(-(z + y + e * 0.693359375f));

  const float t = float(int32_t((angle << 2) ^ 0x80000000u)) * float(0x1p-32 * 1.5707963267948966);
  const float t2 = t * t;
  float s = t2 * float(-1.9515295891e-4) + float(8.3321608736e-3);
  s = s * t2 + float(-1.6666654611e-1);
  s = s * t2 * t + t;
  float c = t2 * float(2.443315711809948e-5) + float(-1.388731625493765e-3);
  c = c * t2 + float(4.166664568298827e-2);
  c = c * t2 * t2 - t2 * 0.5f + 1.0f;
  const float less = radius * (c - s), more = radius * (c + s);
  const uint32_t quarter = angle >> 30;
  const bool odd = quarter & 1u;
  first = float_of(bits_of(odd ? more : less) ^ (((quarter + 1u) & 2u) << 30));
  second = float_of(bits_of(odd ? less : more) ^ ((quarter & 2u) << 30));
}

struct Draw {
  int32_t cipher; // 0: no noise, 1: Philox4x32-10, 2: ChaCha20
  uint32_t key[8];
  uint64_t step;
};

// Four words of each of sixteen counters.
#ifdef __AVX512F__
// By hand, because the compiler makes products of 64 bits, at three times the price, of what are products of 32: even and odd
// counters keep to the lower halves of lanes of 64 bits.
UNLEARN_INLINE void philox_words(const Draw &draw, uint64_t counter, uint32_t (&words)[4][LANES]) {
  const __m512i m = _mm512_set1_epi64(0xD2511F53), n = _mm512_set1_epi64(0xCD9E8D57), up = _mm512_set1_epi64(2);
  __m512i even[4], odd[4];
  even[0] = _mm512_add_epi64(_mm512_set1_epi64(int64_t(counter & 0xffffffffu)), _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14));
  odd[0] = _mm512_add_epi64(even[0], _mm512_srli_epi64(up, 1));
  even[1] = odd[1] = _mm512_set1_epi64(int64_t(counter >> 32));
  even[2] = odd[2] = _mm512_set1_epi64(int64_t(draw.step & 0xffffffffu));
  even[3] = odd[3] = _mm512_set1_epi64(int64_t(draw.step >> 32));
  uint32_t first = draw.key[0], second = draw.key[1];
  // A shuffle, because shifts and products would wait for the same unit.
  auto upper = [](__m512i x) UNLEARN_INNER { return _mm512_shuffle_epi32(x, _MM_PERM_DDBB); };
  auto turn = [&](__m512i(&x)[4], __m512i k, __m512i l) UNLEARN_INNER {
    const __m512i p = _mm512_mul_epu32(x[0], m), q = _mm512_mul_epu32(x[2], n);
    x[0] = _mm512_ternarylogic_epi64(upper(q), x[1], k, 0x96);
    x[1] = q;
    x[2] = _mm512_ternarylogic_epi64(upper(p), x[3], l, 0x96);
    x[3] = p;
  };
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round, first += 0x9E3779B9u, second += 0xBB67AE85u) {
    const __m512i k = _mm512_set1_epi64(first), l = _mm512_set1_epi64(second);
    turn(even, k, l);
    turn(odd, k, l);
  }
  for (int word = 0; word < 4; ++word)
    _mm512_storeu_si512(words[word], _mm512_mask_blend_epi32(0xAAAA, even[word], _mm512_slli_epi64(odd[word], 32)));
}
#else
UNLEARN_INLINE void philox_words(const Draw &draw, uint64_t counter, uint32_t (&words)[4][LANES]) {
  for (int lane = 0; lane < LANES; ++lane) {
    uint32_t a = uint32_t(counter) + uint32_t(lane), b = uint32_t(counter >> 32); // sixteen lanes never carry
    uint32_t c = uint32_t(draw.step), d = uint32_t(draw.step >> 32), k = draw.key[0], l = draw.key[1];
    for (int round = 0; round < 10; ++round, k += 0x9E3779B9u, l += 0xBB67AE85u) {
      const uint64_t p = uint64_t(a) * 0xD2511F53u, q = uint64_t(c) * 0xCD9E8D57u;
      a = uint32_t(q >> 32) ^ b ^ k;
      b = uint32_t(q);
      c = uint32_t(p >> 32) ^ d ^ l;
      d = uint32_t(p);
    }
    words[0][lane] = a, words[1][lane] = b, words[2][lane] = c, words[3][lane] = d;
  }
}
#endif

// Numbers of GROUP places. Not inlined: among other code the compiler no longer sees that these loops are vectors.
__attribute__((noinline)) void philox(const Draw &draw, uint64_t group, float *__restrict out) {
  alignas(64) uint32_t words[2][4][LANES];
  philox_words(draw, 2 * group * LANES, words[0]);
  philox_words(draw, (2 * group + 1) * LANES, words[1]);
#pragma GCC ivdep
  for (int lane = 0; lane < LANES; ++lane) // four pairs at once, because each is a long chain
    for (int half = 0; half < 2; ++half)
      for (int two = 0; two < 2; ++two) {
        const uint32_t rest = words[half][2 * two + 1][lane];
        float *part = out + (4 * half + 2 * two) * LANES + lane;
        pair(words[half][2 * two][lane], (rest & 0xffu) << 13, rest & 0xffffff00u, part[0], part[LANES]);
      }
}

UNLEARN_INLINE void quarter_round(uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d) {
  a += b, d ^= a, d = (d << 16) | (d >> 16);
  c += d, b ^= c, b = (b << 12) | (b >> 20);
  a += b, d ^= a, d = (d << 8) | (d >> 24);
  c += d, b ^= c, b = (b << 7) | (b >> 25);
}

__attribute__((noinline)) void chacha(const Draw &draw, uint64_t group, float *__restrict out) {
  const uint32_t low = uint32_t(group * LANES), high = uint32_t((group * LANES) >> 32);
  float rows[8][LANES];
#pragma GCC ivdep
  for (int lane = 0; lane < LANES; ++lane) {
    const uint32_t start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u, draw.key[0], draw.key[1],
                                draw.key[2], draw.key[3], draw.key[4], draw.key[5], draw.key[6], draw.key[7],
                                low + uint32_t(lane), high, uint32_t(draw.step), uint32_t(draw.step >> 32)};
    uint32_t x0 = start[0], x1 = start[1], x2 = start[2], x3 = start[3], x4 = start[4], x5 = start[5], x6 = start[6],
             x7 = start[7], x8 = start[8], x9 = start[9], x10 = start[10], x11 = start[11], x12 = start[12],
             x13 = start[13], x14 = start[14], x15 = start[15];
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      quarter_round(x0, x4, x8, x12), quarter_round(x1, x5, x9, x13);
      quarter_round(x2, x6, x10, x14), quarter_round(x3, x7, x11, x15);
      quarter_round(x0, x5, x10, x15), quarter_round(x1, x6, x11, x12);
      quarter_round(x2, x7, x8, x13), quarter_round(x3, x4, x9, x14);
    }
    pair(x0 + start[0], (x1 + start[1]) >> 11, x2 + start[2], rows[0][lane], rows[1][lane]);
    pair(x4 + start[4], (x5 + start[5]) >> 11, x6 + start[6], rows[2][lane], rows[3][lane]);
    pair(x8 + start[8], (x9 + start[9]) >> 11, x10 + start[10], rows[4][lane], rows[5][lane]);
    pair(x12 + start[12], (x13 + start[13]) >> 11, x14 + start[14], rows[6][lane], rows[7][lane]);
  }
  for (int lane = 0; lane < LANES; ++lane)
    for (int row = 0; row < 8; ++row) out[lane * 8 + row] = rows[row][lane];
}

UNLEARN_INLINE void fill(const Draw &draw, uint64_t group, float *__restrict out) {
  draw.cipher == 2 ? chacha(draw, group, out) : philox(draw, group, out);
}

} // namespace
