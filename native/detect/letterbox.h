// From an image to the network's input, and back: what data/preprocess.py does with OpenCV, bit for bit.
//
//     input_xy = image_xy * ratio + offset           per axis, pixel edges
//
// Resizing is OpenCV's INTER_LINEAR for u8, which works in integers: weights in 1/2048, rows first and rounded down to 1/128,
// then columns. Other interpolations are refused unless the image needs no resizing.
#pragma once
#include <cstdint>
#include <vector>

#include "detect/task.h"
#include "kernels/kernels.h"

namespace rw {

// Where the image lies in the input: Geometry of data/preprocess.py.
struct Geometry {
  double ratio_x = 1, ratio_y = 1, offset_x = 0, offset_y = 0;
  int height = 0, width = 0;  // of the image

  void to_image(float box_xyxy[4]) const;  // input pixels -> image pixels, clipped to the image
};

// How to run something on several threads; the default runs it here.
struct Parallel {
  int threads = 1;
  void (*run)(void* self, int chunks, void (*function)(void* context, int chunk, int thread), void* context) = nullptr;
  void* self = nullptr;

  void operator()(int chunks, void (*function)(void* context, int chunk, int thread), void* context) const;
};

struct Picture {
  const uint8_t* bgr;
  int height, width;
  int64_t row;  // bytes from row to row
};

class Letterbox {
 public:
  Letterbox(const Preprocess& preprocess, const Kernels& kernels) : p_(preprocess), kernels_(kernels) {}

  // channels x 256: the tensor value of every level, and its code where the input is quantized (one scale, or one per channel).
  std::vector<float> levels() const;
  std::vector<uint8_t> codes(const std::vector<float>& scale, const std::vector<int32_t>& zero) const;

  // Can images of this size be prepared here? Otherwise they need Python's OpenCV.
  bool supports(int height, int width) const;

  // Writes the whole input; returns where the image lies in it, valid until the next call. Throws Error for an image that the
  // task cannot take. Working memory only grows. Calls must not overlap.
  const Geometry& write_codes(const Picture& image, const uint8_t* tables, const Image& out, const Parallel& parallel);
  const Geometry& write_floats(const Picture& image, const float* tables, float* out, const Parallel& parallel);  // (C, H, W), or (H, W, C) by layout

 private:
  struct Call;

  void prepare(int height, int width);
  void prepare_tables(int height, int width);
  void write(Call* call, const Parallel& parallel);
  static void run_chunk(void* context, int chunk, int thread);
  void row(const Call& call, int y, uint8_t* scratch, int (&cached)[2]) const;
  const uint8_t* line(const Call& call, int y, uint8_t* scratch, int (&cached)[2], uint8_t* pixels) const;
  static void emit(const Call& call, const uint8_t* pixels, int count, int y, int x);

  Preprocess p_;
  const Kernels& kernels_;
  Geometry geometry_;
  int new_h_ = 0, new_w_ = 0, top_ = 0, left_ = 0;       // the resized image, and where it lies in the input
  int first_ = 0, columns_ = 0;                          // its columns that lie within the input
  bool copy_ = false;                                    // it needs no resizing
  std::vector<int32_t> column_, row_;                    // left and upper neighbours
  std::vector<int16_t> column_weight_, row_weight_;      // pairs
  std::vector<uint8_t> packed_, scratch_;
  size_t scratch_bytes_ = 0;                             // of one thread
};

}  // namespace rw
