// Scalar arithmetic of docs/engine.md that the portable kernels share. Every function is static: files that include this are
// compiled with different instruction sets.
#pragma once
#include "kernels.h"

namespace rw {

// rint(v) clamped to the range of int16, half to even. Both bounds are integers, so clamping first gives the same; NaN becomes
// the lower bound. Adding 1.5 * 2^23 leaves no bits behind the point (round to nearest is the mode everywhere in the engine).
static inline int round_to_int16(float v) {
  v = v > -32768.0f ? v : -32768.0f;
  v = v < 32767.0f ? v : 32767.0f;
  const float magic = 12582912.0f;
  return static_cast<int>((v + magic) - magic);
}

static inline int clamp_int(int v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : v; }

// clamp(rint(v) + zero, lo, hi)
static inline uint8_t to_code(float v, int zero, int lo, int hi) {
  return static_cast<uint8_t>(clamp_int(round_to_int16(v) + zero, lo, hi));
}

// The entry of a table of kFineEntries for rint(v) + zero.
static inline uint8_t fine_code(const uint8_t* table, float v, int zero) {
  return table[clamp_int(round_to_int16(v) + zero, 0, kFineEntries - 1)];
}

static inline uint8_t* byte_at(const Image& image, int64_t y, int64_t x) {
  return static_cast<uint8_t*>(image.data) + y * image.row + x * image.pixel;
}

}  // namespace rw
