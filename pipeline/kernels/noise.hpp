// Normal numbers by counter, in lanes of sixteen; `counter.py` has the same steps, and says why.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// Each helper is inlined by order: where the compiler decides for itself that there are too many, loops are no vectors any more.
#define UNLEARN_INNER __attribute__((always_inline))
#define UNLEARN_INLINE UNLEARN_INNER inline

namespace {

constexpr int LANES = 16;
constexpr int GROUP = 8 * LANES; // places that sixteen blocks of ChaCha20 or thirty-two of Philox fill
constexpr int CHUNK = 2 * GROUP; // places whose noise is made at once: it stays in the first cache
constexpr int BLOCK = 1 << 14; // places that have sums of their own; a multiple of CHUNK
constexpr int64_t ALONE = 8;   // blocks below which another thread costs more than it saves
constexpr int AHEAD = 1 << 11; // places between what is read and what is asked for

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

// Words for four times sixteen pairs: high and low of the radius, and the angle, as `pair` takes them.
struct Words {
  alignas(64) uint32_t high[4][LANES], low[4][LANES], angle[4][LANES];
};

// Philox's round keys. Nothing of ChaCha20's key, which is secret, is copied here.
struct Keys {
  alignas(64) uint64_t of[10][2];
  explicit Keys(const Draw &draw) {
    uint32_t k = draw.cipher == 1 ? draw.key[0] : 0u, l = draw.cipher == 1 ? draw.key[1] : 0u;
    for (auto &round : of) round[0] = k, round[1] = l, k += 0x9E3779B9u, l += 0xBB67AE85u;
  }
};

} // namespace

#ifdef __AVX512F__
#include "noise_avx512.hpp"
#else

namespace {

// Numbers of four times sixteen pairs, first ones and second ones by turns.
UNLEARN_INLINE void normals(const Words &words, float *__restrict out) {
#pragma GCC ivdep
  for (int lane = 0; lane < LANES; ++lane) // four pairs at once, because each is a long chain
    for (int n = 0; n < 4; ++n)
      pair(words.high[n][lane], words.low[n][lane], words.angle[n][lane], out[2 * n * LANES + lane],
           out[(2 * n + 1) * LANES + lane]);
}

// Words of thirty-two counters from `counter` on, a multiple of thirty-two: first and third in `high`, the others in `low`.
UNLEARN_INLINE void philox_words(const Keys &keys, uint64_t step, uint64_t counter, Words &words) {
  for (int half = 0; half < 2; ++half)
    for (int lane = 0; lane < LANES; ++lane) {
      uint32_t a = uint32_t(counter) + uint32_t(half * LANES + lane), b = uint32_t(counter >> 32); // these lanes never carry
      uint32_t c = uint32_t(step), d = uint32_t(step >> 32);
      for (const auto &key : keys.of) {
        const uint64_t p = uint64_t(a) * 0xD2511F53u, q = uint64_t(c) * 0xCD9E8D57u;
        a = uint32_t(q >> 32) ^ b ^ uint32_t(key[0]);
        b = uint32_t(q);
        c = uint32_t(p >> 32) ^ d ^ uint32_t(key[1]);
        d = uint32_t(p);
      }
      words.high[2 * half][lane] = a, words.low[2 * half][lane] = b;
      words.high[2 * half + 1][lane] = c, words.low[2 * half + 1][lane] = d;
    }
}

} // namespace
#endif

namespace {

// Numbers of GROUP places. Not inlined: among other code the compiler no longer sees that these loops are vectors.
__attribute__((noinline)) void philox(const Keys &keys, uint64_t step, uint64_t group, float *__restrict out) {
  Words words;
  philox_words(keys, step, 2 * group * LANES, words);
  for (int n = 0; n < 4; ++n)
    for (int lane = 0; lane < LANES; ++lane) {
      const uint32_t rest = words.low[n][lane];
      words.low[n][lane] = (rest & 0xffu) << 13, words.angle[n][lane] = rest & 0xffffff00u;
    }
  normals(words, out);
}

UNLEARN_INLINE void quarter_round(uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d) {
  a += b, d ^= a, d = (d << 16) | (d >> 16);
  c += d, b ^= c, b = (b << 12) | (b >> 20);
  a += b, d ^= a, d = (d << 8) | (d >> 24);
  c += d, b ^= c, b = (b << 7) | (b >> 25);
}

__attribute__((noinline)) void chacha(const Draw &draw, uint64_t group, float *__restrict out) {
  const uint32_t low = uint32_t(group * LANES), high = uint32_t((group * LANES) >> 32);
  alignas(64) float rows[8 * LANES];
  Words words;
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
    words.high[0][lane] = x0 + start[0], words.low[0][lane] = (x1 + start[1]) >> 11, words.angle[0][lane] = x2 + start[2];
    words.high[1][lane] = x4 + start[4], words.low[1][lane] = (x5 + start[5]) >> 11, words.angle[1][lane] = x6 + start[6];
    words.high[2][lane] = x8 + start[8], words.low[2][lane] = (x9 + start[9]) >> 11, words.angle[2][lane] = x10 + start[10];
    words.high[3][lane] = x12 + start[12], words.low[3][lane] = (x13 + start[13]) >> 11, words.angle[3][lane] = x14 + start[14];
  }
  normals(words, rows);
  for (int lane = 0; lane < LANES; ++lane)
    for (int row = 0; row < 8; ++row) out[lane * 8 + row] = rows[row * LANES + lane];
}

// A draw, and what is made of it once.
struct Source {
  const Draw &draw;
  Keys keys;
  explicit Source(const Draw &given) : draw(given), keys(given) {}
  UNLEARN_INLINE void fill(uint64_t group, float *__restrict out) const {
    draw.cipher == 2 ? chacha(draw, group, out) : philox(keys, draw.step, group, out);
  }
};

} // namespace
