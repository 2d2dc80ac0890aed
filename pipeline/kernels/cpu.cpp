// The passes of `reference.py` for the CPU. One lane of sixteen does what torch does there, in the same order and without fused
// multiply-adds, so that both give the same bits; loops have fixed lengths, so that the compiler makes vectors of them.
//
// Places are cut into chunks and blocks at multiples of their sizes in the vector of all ranks. A block's sums are made by one
// thread, and added in the order of blocks: the number of threads changes no bit. Threads are plain ones, because a second OpenMP
// beside torch's would wait busily on the same cores, and does not survive a fork.
#include "noise.hpp"

#include <algorithm>
#include <thread>
#include <vector>

namespace {

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

// Adds squares of fp32 numbers, N rows of whole lines at once, to the sums of each row. By hand where it can be: what is read from
// the cache is widened by half as many instructions as what is in a register.
template <int N> __attribute__((noinline)) void add_lines(const float *const (&rows)[N], int64_t count, double (*lanes)[LANES]) {
#ifdef __AVX512F__
  __m512d low[N], high[N];
  for (int n = 0; n < N; ++n) low[n] = _mm512_loadu_pd(lanes[n]), high[n] = _mm512_loadu_pd(lanes[n] + 8);
  for (int64_t place = 0; place < count; place += LANES)
    for (int n = 0; n < N; ++n) {
      const float *from = rows[n] + place;
      const __m512d a = _mm512_cvtps_pd(_mm256_loadu_ps(from)), b = _mm512_cvtps_pd(_mm256_loadu_ps(from + 8));
      low[n] = _mm512_fmadd_pd(a, a, low[n]), high[n] = _mm512_fmadd_pd(b, b, high[n]);
    }
  for (int n = 0; n < N; ++n) _mm512_storeu_pd(lanes[n], low[n]), _mm512_storeu_pd(lanes[n] + 8, high[n]);
#else
  for (int64_t place = 0; place < count; place += LANES)
    for (int n = 0; n < N; ++n)
      for (int lane = 0; lane < LANES; ++lane) add_square(lanes[n][lane], rows[n][place + lane]);
#endif
}

// Adds squares of the places `from` to `to` of N rows whose place 0 begins a line.
template <int N> void add_squares(const float *const (&rows)[N], int64_t from, int64_t to, double (*lanes)[LANES]) {
  auto one = [&](int64_t place) UNLEARN_INNER {
    for (int n = 0; n < N; ++n) add_square(lanes[n][place % LANES], rows[n][place]);
  };
  for (; from < to && from % LANES; ++from) one(from);
  const int64_t whole = (to - from) / LANES * LANES;
  const float *rest[N];
  for (int n = 0; n < N; ++n) rest[n] = rows[n] + from;
  add_lines<N>(rest, whole, lanes);
  for (from += whole; from < to; ++from) one(from);
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
          __builtin_prefetch(g + place + AHEAD, 0, 2); // a single stream is not fetched far enough ahead by itself
          for (int lane = 0; lane < LANES; ++lane) add(place + lane, lane);
        });
    sums.into(&parts[block]);
  });
  add_up(parts, 1, out);
}

struct Move {
  float rho, k, s;
  bool apart; // whether its sum is wanted
};

template <bool ANCHOR, class G, bool GRADIENT, bool NOISE, bool COPY>
void move(float *p, const G *g, const float *a, uint16_t *q, int64_t start, int64_t count, const Move &rule, const Draw &draw,
          int threads, double *out) {
  std::vector<double> parts(3 * blocks_of(start, count));
  const float rho = rule.rho, k = rule.k, s = rule.s;
  const Source source(draw);
  over_blocks(start, count, threads, [&, rho, k, s](int64_t block, int64_t begin, int64_t end) {
    Sums<3> sums;
    alignas(64) float noise[CHUNK], lengths[3][CHUNK];
    auto one = [&, rho, k, s](int64_t place, int64_t at, int lane, float number) UNLEARN_INNER {
      const float was = p[place], centre = ANCHOR ? a[place] : 0.0f;
      const float drawn = rho == 1.0f ? was : ANCHOR ? centre + rho * (was - centre) : rho * was;
      const float target = GRADIENT ? drawn + k * widen(g[place]) : drawn;
      const float written = NOISE ? target + s * number : target;
      p[place] = written;
      if (COPY) q[place] = narrow(written);
      const float moved = target - drawn, apart = ANCHOR ? written - centre : written;
      if (NOISE) { // the processor has enough to do: see `add_lines`
        lengths[0][at] = moved, lengths[1][at] = written - target, lengths[2][at] = apart;
      } else { // it waits for memory
        add_square(sums.lanes[0][lane], moved), add_square(sums.lanes[2][lane], apart);
      }
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
        source.fill(uint64_t(chunk) * (CHUNK / GROUP) + group, noise + group * GROUP);
      }
      const int64_t shift = start - chunk * CHUNK;
      over_lines(
          start, place, last,
          [&](int64_t at) UNLEARN_INNER { one(at, at + shift, (at + shift) % LANES, NOISE ? noise[at + shift] : 0.0f); },
          [&](int64_t at) UNLEARN_INNER {
#pragma GCC ivdep
            for (int lane = 0; lane < LANES; ++lane)
              one(at + lane, at + shift + lane, lane, NOISE ? noise[at + shift + lane] : 0.0f);
          });
      if (NOISE && rule.apart)
        add_squares<3>({lengths[0], lengths[1], lengths[2]}, place + shift, last + shift, sums.lanes);
      else if (NOISE)
        add_squares<2>({lengths[0], lengths[1]}, place + shift, last + shift, sums.lanes);
      place = last;
    }
    sums.into(&parts[3 * block]);
  });
  add_up(parts, 3, out);
  if (!rule.apart) out[2] = NAN;
}

template <bool ANCHOR, class G, bool GRADIENT, class... Rest>
void move_with(bool noise, float *p, const G *g, const float *a, uint16_t *q, Rest... rest) {
  if (noise)
    q ? move<ANCHOR, G, GRADIENT, true, true>(p, g, a, q, rest...) : move<ANCHOR, G, GRADIENT, true, false>(p, g, a, q, rest...);
  else
    q ? move<ANCHOR, G, GRADIENT, false, true>(p, g, a, q, rest...) : move<ANCHOR, G, GRADIENT, false, false>(p, g, a, q, rest...);
}

// DRAW: towards the anchor by the factor; otherwise weights stay, and a copy alone is written.
template <bool ANCHOR, bool DRAW, bool COPY>
void project(float *p, const float *a, uint16_t *q, int64_t start, int64_t count, float factor, int threads, double *out) {
  std::vector<double> parts(blocks_of(start, count));
  over_blocks(start, count, threads, [&, factor](int64_t block, int64_t begin, int64_t end) {
    Sums<1> sums;
    auto one = [&, factor](int64_t place, int lane) UNLEARN_INNER {
      const float centre = ANCHOR ? a[place] : 0.0f, was = p[place];
      const float drawn = DRAW ? centre + factor * (was - centre) : was;
      if (DRAW) p[place] = drawn;
      if (COPY) q[place] = narrow(drawn);
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
  const Source source(*draw);
  over_blocks(start, count, threads, [&](int64_t, int64_t begin, int64_t end) {
    alignas(64) float noise[CHUNK];
    for (int64_t place = begin; place < end;) {
      const int64_t chunk = (start + place) / CHUNK, last = std::min(end, (chunk + 1) * CHUNK - start);
      for (int group = 0; group < CHUNK / GROUP; ++group)
        source.fill(uint64_t(chunk) * (CHUNK / GROUP) + group, noise + group * GROUP);
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
                  float s, const Draw *draw, int apart, int threads, double *out) {
  const Move rule{rho, k, s, apart != 0};
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

void unlearn_project(float *p, const float *a, uint16_t *q, int64_t start, int64_t count, float factor, int threads, double *out) {
  const bool draw = factor != 1.0f;
#define UNLEARN_PROJECT(ANCHOR, DRAW)                                                                                             \
  (q ? project<ANCHOR, DRAW, true>(p, a, q, start, count, factor, threads, out)                                                    \
     : project<ANCHOR, DRAW, false>(p, a, q, start, count, factor, threads, out))
  if (a)
    draw ? UNLEARN_PROJECT(true, true) : UNLEARN_PROJECT(true, false);
  else
    draw ? UNLEARN_PROJECT(false, true) : UNLEARN_PROJECT(false, false);
#undef UNLEARN_PROJECT
}
}
