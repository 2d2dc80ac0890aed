// The passes of `reference.py` for the CPU. One lane of sixteen does what torch does there, in the same order and without fused
// multiply-adds, so that both give the same bits; loops have fixed lengths, so that the compiler makes vectors of them.
//
// Places are cut into chunks and blocks at multiples of their sizes in the vector of all ranks. A block's sums are made by one
// thread, and added in the order of blocks: the number of threads changes no bit. Threads are plain ones, because a second OpenMP
// beside torch's would wait busily on the same cores, and does not survive a fork.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
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

// Calls part(block, begin, end) for all blocks of places `start` to `start + count`; begin and end count from `start`.
template <class Part> void over_blocks(int64_t start, int64_t count, int threads, Part part) {
  const int64_t first = start / BLOCK, blocks = count ? (start + count - 1) / BLOCK - first + 1 : 0;
  auto some = [=](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block) {
      const int64_t begin = std::max<int64_t>(0, (first + block) * BLOCK - start);
      part(block, begin, std::min(count, (first + block + 1) * BLOCK - start));
    }
  };
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(threads, blocks / ALONE));
  std::vector<std::thread> others;
  for (int64_t n = 1; n < wanted; ++n) others.emplace_back(some, blocks * n / wanted, blocks * (n + 1) / wanted);
  some(0, blocks / wanted);
  for (auto &other : others) other.join();
}

inline int64_t blocks_of(int64_t start, int64_t count) { return count ? (start + count - 1) / BLOCK - start / BLOCK + 1 : 0; }

// The product of two numbers that were fp32 is exact in fp64, so fusing it with the sum changes no bit.
UNLEARN_INLINE void add_square(double &sum, double value) {
#ifdef __FMA__
  sum = __builtin_fma(value, value, sum);
#else
  sum += value * value;
#endif
}

template <int N> struct Sums {
  double lanes[N][LANES] = {};
  void into(double *out) const {
    for (int n = 0; n < N; ++n) {
      double total = 0;
      for (int lane = 0; lane < LANES; ++lane) total += lanes[n][lane];
      out[n] = total;
    }
  }
};

// Calls whole(place) for lines of LANES places that lie whole in the part, one(place) for the others; places count from `start`.
template <class One, class Whole>
UNLEARN_INLINE void over_lines(int64_t start, int64_t begin, int64_t end, One one, Whole whole) {
  int64_t place = begin;
  for (; place < end && (start + place) % LANES; ++place) one(place);
  for (; place + LANES <= end; place += LANES) whole(place);
  for (; place < end; ++place) one(place);
}

void add_up(const std::vector<double> &parts, int sums, double *out) {
  for (int n = 0; n < sums; ++n) out[n] = 0;
  for (size_t place = 0; place < parts.size(); ++place) out[place % sums] += parts[place];
}

template <class G> void square(const G *g, int64_t start, int64_t count, int threads, double *out) {
  std::vector<double> parts(blocks_of(start, count));
  over_blocks(start, count, threads, [&](int64_t block, int64_t begin, int64_t end) {
    Sums<1> sums;
    auto add = [&](int64_t place, int lane) UNLEARN_INNER {
      const double value = widen(g[place]);
      add_square(sums.lanes[0][lane], value);
    };
    over_lines(
        start, begin, end, [&](int64_t place) UNLEARN_INNER { add(place, (start + place) % LANES); },
        [&](int64_t place) UNLEARN_INNER {
          for (int lane = 0; lane < LANES; ++lane) add(place + lane, lane);
        });
    sums.into(&parts[block]);
  });
  add_up(parts, 1, out);
}

struct Move {
  float rho, k, s;
};

template <bool ANCHOR, class G, bool GRADIENT, bool NOISE, bool COPY>
void move(float *p, const G *g, const float *a, uint16_t *q, int64_t start, int64_t count, const Move &rule, const Draw &draw,
          int threads, double *out) {
  std::vector<double> parts(3 * blocks_of(start, count));
  const float rho = rule.rho, k = rule.k, s = rule.s;
  over_blocks(start, count, threads, [&, rho, k, s](int64_t block, int64_t begin, int64_t end) {
    Sums<3> sums;
    alignas(64) float noise[CHUNK];
    auto one = [&, rho, k, s](int64_t place, int lane, float number) UNLEARN_INNER {
      const float was = p[place], centre = ANCHOR ? a[place] : 0.0f;
      const float drawn = rho == 1.0f ? was : ANCHOR ? centre + rho * (was - centre) : rho * was;
      const float target = GRADIENT ? drawn + k * widen(g[place]) : drawn;
      const float written = NOISE ? target + s * number : target;
      p[place] = written;
      if (COPY) q[place] = narrow(written);
      const double moved = target - drawn, made = NOISE ? written - target : 0.0f, apart = ANCHOR ? written - centre : written;
      add_square(sums.lanes[0][lane], moved);
      if (NOISE) add_square(sums.lanes[1][lane], made);
      add_square(sums.lanes[2][lane], apart);
    };
    for (int64_t place = begin; place < end;) {
      const int64_t chunk = (start + place) / CHUNK, last = std::min(end, (chunk + 1) * CHUNK - start);
      for (int group = 0; NOISE && group < CHUNK / GROUP; ++group) {
        // While noise is made nothing is read: ask for what is read after it, a few lines at a time.
        for (int64_t line = place + CHUNK + group * GROUP; line < place + CHUNK + (group + 1) * GROUP; line += 16) {
          __builtin_prefetch(p + line, 1);
          if (GRADIENT) __builtin_prefetch(g + line);
          if (ANCHOR) __builtin_prefetch(a + line);
        }
        fill(draw, uint64_t(chunk) * (CHUNK / GROUP) + group, noise + group * GROUP);
      }
      const float *numbers = noise - (chunk * CHUNK - start);
      over_lines(
          start, place, last, [&](int64_t at) UNLEARN_INNER { one(at, (start + at) % LANES, NOISE ? numbers[at] : 0.0f); },
          [&](int64_t at) UNLEARN_INNER {
#pragma GCC ivdep
            for (int lane = 0; lane < LANES; ++lane) one(at + lane, lane, NOISE ? numbers[at + lane] : 0.0f);
          });
      place = last;
    }
    sums.into(&parts[3 * block]);
  });
  add_up(parts, 3, out);
}

template <bool ANCHOR, class G, bool GRADIENT, class... Rest>
void move_with(bool noise, float *p, const G *g, const float *a, uint16_t *q, Rest... rest) {
  if (noise)
    q ? move<ANCHOR, G, GRADIENT, true, true>(p, g, a, q, rest...) : move<ANCHOR, G, GRADIENT, true, false>(p, g, a, q, rest...);
  else
    q ? move<ANCHOR, G, GRADIENT, false, true>(p, g, a, q, rest...) : move<ANCHOR, G, GRADIENT, false, false>(p, g, a, q, rest...);
}

// Calls some(begin, end) for parts of `rows` rows, on more than one thread where the rows are long together.
template <class Some> void over_rows(int64_t rows, int64_t width, int threads, Some some) {
  const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(threads, rows * width / (ALONE * BLOCK)));
  std::vector<std::thread> others;
  for (int64_t n = 1; n < wanted; ++n) others.emplace_back(some, rows * n / wanted, rows * (n + 1) / wanted);
  some(0, rows / wanted);
  for (auto &other : others) other.join();
}

// Sum of term(place) over a row, in sixteen parts that are added at the end.
template <class Term> UNLEARN_INLINE float row_sum(int64_t width, Term term) {
  float lanes[LANES] = {};
  int64_t place = 0;
  for (; place + LANES <= width; place += LANES)
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] += term(place + lane);
  for (; place < width; ++place) lanes[place % LANES] += term(place);
  float total = 0;
  for (int lane = 0; lane < LANES; ++lane) total += lanes[lane];
  return total;
}

struct Scale {
  float mean, factor; // a normalised value is (t - mean) * factor
};

UNLEARN_INLINE Scale scale_of(const float *t, int64_t width, bool normal) {
  if (!normal) return {0.0f, 1.0f};
  const float mean = row_sum(width, [=](int64_t place) UNLEARN_INNER { return t[place]; }) / float(width);
  const float squares = row_sum(width, [=](int64_t place) UNLEARN_INNER { return (t[place] - mean) * (t[place] - mean); });
  return {mean, 1.0f / std::sqrt(squares / float(width - 1) + 1e-6f)};
}

template <class T>
void patch_errors(const T *x, const float *t, const uint8_t *hidden, const float *weight, int64_t rows, int64_t width, bool normal,
                  int threads, float *out) {
  over_rows(rows, width, threads, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T *mine = x + row * width;
      const float *theirs = t + row * width;
      const Scale scale = hidden[row] ? scale_of(theirs, width, normal) : Scale{0.0f, 1.0f};
      auto square = [=](int64_t place) UNLEARN_INNER {
        const float apart = widen(mine[place]) - (theirs[place] - scale.mean) * scale.factor;
        return apart * apart;
      };
      const float total = !hidden[row] ? 0.0f
                          : weight     ? row_sum(width, [=](int64_t place) UNLEARN_INNER { return weight[place] * square(place); })
                                       : row_sum(width, square);
      out[row] = total / float(width);
    }
  });
}

UNLEARN_INLINE void put(float *out, float value) { *out = value; }
UNLEARN_INLINE void put(uint16_t *out, float value) { *out = narrow(value); }

template <class T>
void patch_slopes(const T *x, const float *t, const uint8_t *hidden, const float *weight, const float *factors, int64_t rows,
                  int64_t width, bool normal, int threads, T *out) {
  over_rows(rows, width, threads, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T *__restrict slope = out + row * width;
      if (!hidden[row]) {
        std::memset(slope, 0, sizeof(T) * width);
        continue;
      }
      const T *mine = x + row * width;
      const float *theirs = t + row * width;
      const Scale scale = scale_of(theirs, width, normal);
      const float factor = factors[row];
      if (weight)
        for (int64_t place = 0; place < width; ++place)
          put(slope + place, factor * weight[place] * (widen(mine[place]) - (theirs[place] - scale.mean) * scale.factor));
      else
        for (int64_t place = 0; place < width; ++place)
          put(slope + place, factor * (widen(mine[place]) - (theirs[place] - scale.mean) * scale.factor));
    }
  });
}

} // namespace

extern "C" {

void unlearn_patch_errors(const void *x, int low, const float *t, const uint8_t *hidden, const float *weight, int64_t rows,
                          int64_t width, int normal, int threads, float *out) {
  low ? patch_errors(static_cast<const uint16_t *>(x), t, hidden, weight, rows, width, normal != 0, threads, out)
      : patch_errors(static_cast<const float *>(x), t, hidden, weight, rows, width, normal != 0, threads, out);
}

void unlearn_patch_slopes(const void *x, int low, const float *t, const uint8_t *hidden, const float *weight, const float *factors,
                          int64_t rows, int64_t width, int normal, int threads, void *out) {
  low ? patch_slopes(static_cast<const uint16_t *>(x), t, hidden, weight, factors, rows, width, normal != 0, threads,
                     static_cast<uint16_t *>(out))
      : patch_slopes(static_cast<const float *>(x), t, hidden, weight, factors, rows, width, normal != 0, threads,
                     static_cast<float *>(out));
}

void unlearn_normal(const Draw *draw, int64_t start, int64_t count, int threads, float *out) {
  over_blocks(start, count, threads, [=](int64_t, int64_t begin, int64_t end) {
    alignas(64) float noise[CHUNK];
    for (int64_t place = begin; place < end;) {
      const int64_t chunk = (start + place) / CHUNK, last = std::min(end, (chunk + 1) * CHUNK - start);
      for (int group = 0; group < CHUNK / GROUP; ++group)
        fill(*draw, uint64_t(chunk) * (CHUNK / GROUP) + group, noise + group * GROUP);
      std::memcpy(out + place, noise + (start + place - chunk * CHUNK), sizeof(float) * (last - place));
      place = last;
    }
  });
}

void unlearn_square(const void *g, int low, int64_t start, int64_t count, int threads, double *out) {
  low ? square(static_cast<const uint16_t *>(g), start, count, threads, out)
      : square(static_cast<const float *>(g), start, count, threads, out);
}

void unlearn_move(float *p, const void *g, int low, const float *a, uint16_t *q, int64_t start, int64_t count, float rho, float k,
                  float s, const Draw *draw, int threads, double *out) {
  const Move rule{rho, k, s};
  const bool noise = draw->cipher != 0;
  const auto *wide = static_cast<const float *>(g);
  const auto *few = static_cast<const uint16_t *>(g);
#define UNLEARN_MOVE(GRADIENT, TYPE, FROM)                                                                                        \
  (a ? move_with<true, TYPE, GRADIENT>(noise, p, FROM, a, q, start, count, rule, *draw, threads, out)                              \
     : move_with<false, TYPE, GRADIENT>(noise, p, FROM, a, q, start, count, rule, *draw, threads, out))
  if (!g)
    UNLEARN_MOVE(false, float, wide);
  else if (low)
    UNLEARN_MOVE(true, uint16_t, few);
  else
    UNLEARN_MOVE(true, float, wide);
#undef UNLEARN_MOVE
}

// factor < 1 draws towards the anchor; at 1 nothing is written.
void unlearn_project(float *p, const float *a, uint16_t *q, int64_t start, int64_t count, float factor, int threads, double *out) {
  std::vector<double> parts(blocks_of(start, count));
  over_blocks(start, count, threads, [&, factor](int64_t block, int64_t begin, int64_t end) {
    Sums<1> sums;
    auto one = [&, factor](int64_t place, int lane) UNLEARN_INNER {
      const float centre = a ? a[place] : 0.0f, was = p[place];
      const float drawn = factor == 1.0f ? was : centre + factor * (was - centre);
      if (factor != 1.0f) {
        p[place] = drawn;
        if (q) q[place] = narrow(drawn);
      }
      const double apart = drawn - centre;
      add_square(sums.lanes[0][lane], apart);
    };
    over_lines(
        start, begin, end, [&](int64_t place) UNLEARN_INNER { one(place, (start + place) % LANES); },
        [&](int64_t place) UNLEARN_INNER {
#pragma GCC ivdep
          for (int lane = 0; lane < LANES; ++lane) one(place + lane, lane);
        });
    sums.into(&parts[block]);
  });
  add_up(parts, 1, out);
}
}
