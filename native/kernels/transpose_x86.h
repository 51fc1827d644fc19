// Transpositions in blocks: 16 x 16 bytes, 8 x 8 words of 4 bytes. What does not fill a block goes element by element.
#pragma once
#include "codes_simd.h"

namespace rw {
namespace {

// Interleaving the first half of the rows with the second half, element by element, four times, transposes 16 x 16 bytes: each
// round moves one bit of the row number into the column number.
void transpose_16x16(const uint8_t* x, int64_t x_row, uint8_t* y, int64_t y_row) {
  __m128i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i * x_row));
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 8; ++i) b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]), b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    for (int i = 0; i < 8; ++i) a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 8]), a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 8]);
  }
  for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i * y_row), a[i]);
}

void transpose_8x8(const uint8_t* x, int64_t x_row, uint8_t* y, int64_t y_row) {
  __m256 a[8], b[8];
  // Halves of rows i and i + 4 in one register: two rounds of unpacking within lanes do the rest.
  for (int i = 0; i < 4; ++i) {
    const float *upper = reinterpret_cast<const float*>(x + i * x_row), *lower = reinterpret_cast<const float*>(x + (i + 4) * x_row);
    a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(upper)), _mm_loadu_ps(lower), 1);
    a[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(upper + 4)), _mm_loadu_ps(lower + 4), 1);
  }
  for (int h = 0; h < 8; h += 4) {
    b[h] = _mm256_unpacklo_ps(a[h], a[h + 2]), b[h + 1] = _mm256_unpackhi_ps(a[h], a[h + 2]);
    b[h + 2] = _mm256_unpacklo_ps(a[h + 1], a[h + 3]), b[h + 3] = _mm256_unpackhi_ps(a[h + 1], a[h + 3]);
    a[h] = _mm256_unpacklo_ps(b[h], b[h + 2]), a[h + 1] = _mm256_unpackhi_ps(b[h], b[h + 2]);
    a[h + 2] = _mm256_unpacklo_ps(b[h + 1], b[h + 3]), a[h + 3] = _mm256_unpackhi_ps(b[h + 1], b[h + 3]);
  }
  for (int i = 0; i < 8; ++i) _mm256_storeu_ps(reinterpret_cast<float*>(y + i * y_row), a[i]);
}

// Three planes of floats to dense pixels (the usual network input): word i of 24 is plane i % 3 of pixel i / 3. Each result is made of
// one shuffle of each plane. Returns how many columns, a multiple of 8, it has done.
int interleave_3(const uint8_t* x, int64_t x_row, uint8_t* y, int columns) {
  const __m256i a = _mm256_setr_epi32(0, 3, 6, 1, 4, 7, 2, 5), b = _mm256_setr_epi32(5, 0, 3, 6, 1, 4, 7, 2), c = _mm256_setr_epi32(2, 5, 0, 3, 6, 1, 4, 7);
  int i = 0;
  for (; i + 8 <= columns; i += 8, y += 96) {
    const float* in = reinterpret_cast<const float*>(x) + i;
    float* out = reinterpret_cast<float*>(y);
    const __m256 red = _mm256_permutevar8x32_ps(_mm256_loadu_ps(in), a);
    const __m256 green = _mm256_permutevar8x32_ps(_mm256_loadu_ps(reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(in) + x_row)), b);
    const __m256 blue = _mm256_permutevar8x32_ps(_mm256_loadu_ps(reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(in) + 2 * x_row)), c);
    _mm256_storeu_ps(out, _mm256_blend_ps(_mm256_blend_ps(red, green, 0x92), blue, 0x24));
    _mm256_storeu_ps(out + 8, _mm256_blend_ps(_mm256_blend_ps(red, green, 0x24), blue, 0x49));
    _mm256_storeu_ps(out + 16, _mm256_blend_ps(_mm256_blend_ps(red, green, 0x49), blue, 0x92));
  }
  return i;
}

void transpose_blocks(const void* x, int64_t x_row, void* y, int64_t y_row, int rows, int columns, int element_bytes) {
  const uint8_t* in = static_cast<const uint8_t*>(x);
  uint8_t* out = static_cast<uint8_t*>(y);
  if (rows == 3 && element_bytes == 4 && y_row == 12) {
    const int done = interleave_3(in, x_row, out, columns);
    return transpose_portable(in + 4ll * done, x_row, out + 12ll * done, y_row, rows, columns - done, element_bytes);
  }
  const int side = element_bytes == 1 ? 16 : 8;
  const int whole_rows = rows - rows % side, whole_columns = columns - columns % side;
  for (int r = 0; r < whole_rows; r += side)
    for (int c = 0; c < whole_columns; c += side) {
      const uint8_t* from = in + r * x_row + static_cast<int64_t>(c) * element_bytes;
      uint8_t* to = out + c * y_row + static_cast<int64_t>(r) * element_bytes;
      if (side == 16)
        transpose_16x16(from, x_row, to, y_row);
      else
        transpose_8x8(from, x_row, to, y_row);
    }
  if (whole_columns < columns)
    transpose_portable(in + static_cast<int64_t>(whole_columns) * element_bytes, x_row, out + whole_columns * y_row, y_row, rows, columns - whole_columns,
                       element_bytes);
  if (whole_rows < rows && whole_columns > 0)
    transpose_portable(in + whole_rows * x_row, x_row, out + static_cast<int64_t>(whole_rows) * element_bytes, y_row, rows - whole_rows, whole_columns,
                       element_bytes);
}

}  // namespace
}  // namespace rw
