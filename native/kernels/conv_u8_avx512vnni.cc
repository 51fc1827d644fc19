// conv_u8 for AVX-512 VNNI: packing, and the walk of register tiles over pixels.
//
// The output channels are cut into blocks of 1 to 4 vectors. The packed memory holds a head, and then for each block its
// constants and weights in the order in which tiles read them; the order of channels within a block is chosen so that the
// epilogue's packs bring them into the natural one (requant_avx512vnni.h).
#include <cstring>

#include "conv_u8_quads_avx512vnni.h"

namespace rw {
namespace {

// Vectors of the block that begins at channel c0. Blocks of 4 are the fastest, a single vector the slowest: 5 are 3 and 2.
int block_vectors(int n, int c0) {
  const int left = (n - c0 + 15) / 16;
  if (left == 5) return 3;
  return left < 4 ? left : 4;
}

int64_t tap_depth(const ConvShape& s) { return (s.k + 3) / 4 * 4; }

// Byte offsets within a block; `weights` is followed by the next block.
struct Layout {
  size_t bias, scale, out_scale, zero, weights, bytes;
};

Layout layout(const ConvShape& s, int vectors) {
  const size_t lanes = static_cast<size_t>(64) * vectors;
  Layout l;
  l.bias = 0;
  l.scale = lanes;
  l.out_scale = 2 * lanes;
  l.zero = 3 * lanes;
  l.weights = 4 * lanes;
  l.bytes = l.weights + static_cast<size_t>(tap_depth(s)) / 4 * s.taps * lanes;
  return l;
}

// Up to 16 channels are packed for tiles of quads, too (conv_u8_quads_avx512vnni.h), in the layout of a block of four vectors:
// which of the two is used depends on the length of rows, known when running only.
bool has_quads(const ConvShape& s) {
  return s.n <= kQuadChannels && static_cast<size_t>(tap_depth(s)) * s.taps * 64 <= kQuadMostBytes;
}

size_t packed_bytes(const ConvShape& s) {
  size_t bytes = sizeof(RequantHead) + (has_quads(s) ? layout(s, 4).bytes : 0);
  for (int c0 = 0; c0 < s.n;) {
    const int vectors = block_vectors(s.n, c0);
    bytes += layout(s, vectors).bytes;
    c0 += 16 * vectors;
  }
  return bytes;
}

// The channel, within its block, that lane `lane` of vector `j` computes.
using ChannelOf = int (*)(int vectors, int j, int lane);
int channel_of_codes(int vectors, int j, int lane) { return 4 * vectors * (lane / 4) + 4 * j + lane % 4; }
int channel_of_floats(int, int j, int lane) { return 16 * j + lane; }  // stored vector by vector
int channel_of_quads(int, int j, int lane) { return 4 * j + lane % 4; }  // a lane of 128 bits for each pixel

void pack_block(const ConvShape& s, const ConvWeights& c, int c0, int vectors, ChannelOf channel_of, uint8_t* to) {
  const Layout l = layout(s, vectors);
  const int64_t depth = tap_depth(s);
  const auto* w = static_cast<const int8_t*>(c.w);
  for (int j = 0; j < vectors; ++j)
    for (int lane = 0; lane < 16; ++lane) {
      const int channel = c0 + channel_of(vectors, j, lane), at = 16 * j + lane;
      if (channel >= s.n) continue;
      memcpy(to + l.bias + 4 * at, c.e.bias + channel, 4);
      if (c.e.scale) memcpy(to + l.scale + 4 * at, c.e.scale + channel, 4);
      if (c.e.kind == EpilogueKind::poly) memcpy(to + l.out_scale + 4 * at, c.e.out_scale + channel, 4);
      if (c.e.kind != EpilogueKind::real) {
        const int32_t zero = c.e.zero[channel] + (c.e.kind == EpilogueKind::fine ? kFineLift : 0);
        memcpy(to + l.zero + 4 * at, &zero, 4);
      }
      for (int t = 0; t < s.taps; ++t)
        for (int k = 0; k < s.k; ++k)
          to[l.weights + ((t * depth + k) / 4 * vectors + j) * 64 + 4 * lane + k % 4] =
              static_cast<uint8_t>(w[(static_cast<int64_t>(channel) * s.taps + t) * s.k + k]);
    }
}

void pack(const ConvShape& s, const ConvWeights& c, void* packed) {
  memset(packed, 0, packed_bytes(s));
  const Epilogue& e = c.e;
  auto& head = *static_cast<RequantHead*>(packed);
  head.kind = static_cast<int>(e.kind);
  head.lo = e.lo, head.hi = e.hi, head.unary = e.unary, head.raw = e.scale == nullptr;
  head.unary_a = e.unary_a, head.unary_b = e.unary_b, head.poly_b = e.poly_b;
  if (e.kind == EpilogueKind::table) memcpy(head.table, e.table, 256);
  if (e.kind == EpilogueKind::fine) memcpy(head.table, e.table, kFineEntries);
  if (e.kind == EpilogueKind::poly) memcpy(head.poly, e.poly, sizeof head.poly);
  uint8_t* to = static_cast<uint8_t*>(packed) + sizeof(RequantHead);
  for (int c0 = 0; c0 < s.n;) {
    const int vectors = block_vectors(s.n, c0);
    pack_block(s, c, c0, vectors, s.out_float ? channel_of_floats : channel_of_codes, to);
    to += layout(s, vectors).bytes;
    c0 += 16 * vectors;
  }
  if (has_quads(s)) pack_block(s, c, 0, 4, channel_of_quads, to);
}

// Walks over the pixels of a range. Where rows follow each other without a gap, the image is one long row.
class Pixels {
 public:
  Pixels(const ConvRun& r, uint8_t* y, int64_t begin) : run_(r), y_(y) {
    const bool dense = r.x_row == r.out_w * r.x_pixel && r.y_row == r.out_w * r.y_pixel;
    width_ = dense ? INT64_MAX : r.out_w;
    row_ = dense ? 0 : begin / width_;
    column_ = dense ? begin : begin % width_;
  }

  // Tiles of `pixels` pixels, at most `left` pixels together: all that fit into the row, or the one that goes beyond its end.
  // With fewer than a tile left, the last pixel stands for those that are missing. Returns the pixels taken.
  int64_t next(int pixels, int64_t left, Strip* strip) {
    const int64_t room = width_ - column_ < left ? width_ - column_ : left;
    strip->tiles = room >= pixels ? room / pixels : 1;
    strip->x_step = pixels * run_.x_pixel, strip->y_step = pixels * run_.y_pixel;
    const int64_t taken = strip->tiles * pixels < left ? strip->tiles * pixels : left;
    const uint8_t* x = run_.x + row_ * run_.x_row + column_ * run_.x_pixel;
    uint8_t* y = y_ + row_ * run_.y_row + column_ * run_.y_pixel;
    if (room >= pixels) {
      for (int m = 0; m < pixels; ++m, x += run_.x_pixel, y += run_.y_pixel) strip->x[m] = x, strip->y[m] = y;
      column_ += taken;
      if (column_ == width_) column_ = 0, ++row_;
      return taken;
    }
    for (int m = 0; m < pixels; ++m) {
      strip->x[m] = x, strip->y[m] = y;
      if (m + 1 >= taken) continue;
      step();
      x = run_.x + row_ * run_.x_row + column_ * run_.x_pixel, y = y_ + row_ * run_.y_row + column_ * run_.y_pixel;
    }
    step();
    return taken;
  }

 private:
  void step() {
    if (++column_ == width_) column_ = 0, ++row_;
  }

  const ConvRun& run_;
  uint8_t* y_;
  int64_t width_, row_, column_;
};

void run_block(const ConvRun& r, const Block& b, const TileShape& tile, uint8_t* y, int64_t begin, int64_t end) {
  const int kind = b.head->kind;
  Strip strip;
  Pixels pixels(r, y, begin);
  int64_t left = end - begin;
  while (left >= tile.pixels) {
    left -= pixels.next(tile.pixels, left, &strip);
    tile.run[kind](b, strip);
  }
  if (left == 0) return;
  if (end - begin > tile.pixels) {  // the last tile overlaps the one before and writes the same again
    Pixels(r, y, end - tile.pixels).next(tile.pixels, tile.pixels, &strip);
    tile.run[kind](b, strip);
  } else if (left < 3) {
    while (left > 0) {
      left -= pixels.next(1, left, &strip);
      tile.single[kind](b, strip);
    }
  } else {
    pixels.next(tile.pixels, left, &strip);
    tile.run[kind](b, strip);
  }
}

Block block_at(const ConvShape& s, const ConvRun& r, const uint8_t* at, int vectors, int channels) {
  const Layout l = layout(s, vectors);
  Block b;
  b.head = static_cast<const RequantHead*>(r.packed);
  b.bias = reinterpret_cast<const int32_t*>(at + l.bias);
  b.channels.scale = reinterpret_cast<const float*>(at + l.scale);
  b.channels.out_scale = reinterpret_cast<const float*>(at + l.out_scale);
  b.channels.zero = reinterpret_cast<const int32_t*>(at + l.zero);
  b.w = reinterpret_cast<const int8_t*>(at + l.weights);
  b.valid = channels < 16 * vectors ? channels : 16 * vectors;
  b.whole = b.valid == 16 * vectors;
  b.mask = b.valid == 64 ? ~uint64_t{0} : (uint64_t{1} << b.valid) - 1;
  b.scaled = b.head->raw ? 0 : 0xffff;
  b.taps = s.taps;
  b.tap = r.tap;
  b.depth = tap_depth(s);
  return b;
}

// Up to 16 channels, row by row; rows too short for quads take the tiles of single pixels.
void run_rows(const ConvShape& s, const ConvRun& r, int64_t begin, int64_t end) {
  const auto* at = static_cast<const uint8_t*>(r.packed) + sizeof(RequantHead);
  const Block single = block_at(s, r, at, 1, s.n);
  Block quads = block_at(s, r, at + layout(s, 1).bytes, 4, s.n);
  quads.whole = s.n == kQuadChannels;
  const bool dense = r.x_row == r.out_w * r.x_pixel && r.y_row == r.out_w * r.y_pixel;
  const int64_t width = dense ? INT64_MAX : r.out_w;
  auto* y = static_cast<uint8_t*>(r.y);
  while (begin < end) {
    const int64_t row = begin / width, column = begin % width;
    const int64_t pixels = end - begin < width - column ? end - begin : width - column;
    if (pixels >= kQuadLeast)
      run_quads(quads, r.x + row * r.x_row + column * r.x_pixel, r.x_pixel, y + row * r.y_row + column * r.y_pixel, r.y_pixel,
                pixels);
    else
      run_block(r, single, kTiles[1], y, begin, begin + pixels);
    begin += pixels;
  }
}

void run(const ConvShape& s, const ConvRun& r, int64_t pixel_begin, int64_t pixel_end) {
  if (pixel_begin >= pixel_end) return;
  const bool function = s.out_float && static_cast<const RequantHead*>(r.packed)->unary != kNone;  // only the other tiles apply it
  if (has_quads(s) && !function) return run_rows(s, r, pixel_begin, pixel_end);
  const auto* at = static_cast<const uint8_t*>(r.packed) + sizeof(RequantHead);
  for (int c0 = 0; c0 < s.n;) {
    const int vectors = block_vectors(s.n, c0);
    uint8_t* y = static_cast<uint8_t*>(r.y) + static_cast<int64_t>(c0) * (s.out_float ? 4 : 1);
    run_block(r, block_at(s, r, at, vectors, s.n - c0), kTiles[vectors], y, pixel_begin, pixel_end);
    at += layout(s, vectors).bytes;
    c0 += 16 * vectors;
  }
}

}  // namespace

// A multiple of most tiles, and small enough to share a small image evenly.
const ConvKernel conv_u8_avx512vnni = {packed_bytes, pack, run, 12};

}  // namespace rw
