// gather, quantize, dequantize, transpose: what moves codes and floats between layouts. Elements have 1 or 4 bytes.
#include "kernels.h"
#include "scalar.h"

namespace rw {
namespace {

// Copies of a constant size become single instructions.
struct One {
  uint8_t bytes[1];
};
struct Four {
  uint8_t bytes[4];
};

template <class Element>
void gather_elements(const Image& x, const Image& y, const int32_t* index, int begin, int end) {
  for (int r = begin; r < end; ++r)
    for (int i = 0; i < y.w; ++i) {
      const Element* in = reinterpret_cast<const Element*>(byte_at(x, r, i));
      Element* out = reinterpret_cast<Element*>(byte_at(y, r, i));
      for (int c = 0; c < y.c; ++c) out[c] = in[index[c]];
    }
}

void gather_rows(const Image& x, const Image& y, int element_bytes, const int32_t* index, int begin, int end) {
  if (element_bytes == 1)
    gather_elements<One>(x, y, index, begin, end);
  else
    gather_elements<Four>(x, y, index, begin, end);
}

void quantize_steps(const float* x, int64_t x_step, uint8_t* y, int64_t y_step, int64_t n, float scale, int zero) {
  for (int64_t i = 0; i < n; ++i) y[i * y_step] = to_code(x[i * x_step] / scale, zero, 0, 255);
}

void quantize_elements(const float* x, uint8_t* y, int64_t n, const float* scale, const int32_t* zero) {
  for (int64_t i = 0; i < n; ++i) y[i] = to_code(x[i] / scale[i], zero[i], 0, 255);
}

void quantize_image_row(const float* const* planes, int channels, uint8_t* y, int64_t y_pixel, int w, const float* scale,
                        const int32_t* zero) {
  for (int c = 0; c < channels; ++c) quantize_steps(planes[c], 1, y + c, y_pixel, w, scale[c], zero[c]);
}

void dequantize_steps(const uint8_t* x, int64_t x_step, float* y, int64_t y_step, int64_t n, float scale, int zero) {
  for (int64_t i = 0; i < n; ++i) y[i * y_step] = static_cast<float>(x[i * x_step] - zero) * scale;
}

void dequantize_elements(const uint8_t* x, float* y, int64_t n, const float* scale, const int32_t* zero) {
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i] - zero[i]) * scale[i];
}

template <class Element>
void transpose_as(const uint8_t* x, int64_t x_row, uint8_t* y, int64_t y_row, int rows, int columns) {
  for (int c = 0; c < columns; ++c)
    for (int r = 0; r < rows; ++r) reinterpret_cast<Element*>(y + c * y_row)[r] = reinterpret_cast<const Element*>(x + r * x_row)[c];
}

void transpose_elements(const void* x, int64_t x_row, void* y, int64_t y_row, int rows, int columns, int element_bytes) {
  const uint8_t* in = static_cast<const uint8_t*>(x);
  uint8_t* out = static_cast<uint8_t*>(y);
  if (element_bytes == 1)
    transpose_as<One>(in, x_row, out, y_row, rows, columns);
  else
    transpose_as<Four>(in, x_row, out, y_row, rows, columns);
}

}  // namespace

const GatherFn gather_portable = gather_rows;
const QuantizeFn quantize_portable = quantize_steps;
const QuantizeRowFn quantize_row_portable = quantize_elements;
const QuantizePlanesFn quantize_planes_portable = quantize_image_row;
const DequantizeFn dequantize_portable = dequantize_steps;
const DequantizeRowFn dequantize_row_portable = dequantize_elements;
const TransposeFn transpose_portable = transpose_elements;

}  // namespace rw
