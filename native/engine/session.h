// A plan that is ready to run: everything checked, weights packed for this CPU, memory taken, threads started.
//
//     Session session(file, options);
//     session.run(inputs, outputs);        // pointers to float32 in C order, one per input and output
//
// run() may be called from several threads; calls on one session take turns. The file is not needed afterwards.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/op.h"
#include "engine/threads.h"

namespace rw {

struct Options {
  int threads = 0;        // 0: every core that the process may use
  std::string isa;        // empty: the best there is (see cpu.h)
  bool pin = false;       // or ROADWORTHY_PIN=1
  bool poison = false;    // fills the arena with garbage before each run, for tests
  int winograd = -1;      // -1: by the rule in ops/conv.cc; 0: never; 2, 4: wherever possible, that tile
  double chunk_ns = 1000; // chunks shorter than this cost more in hand-over than they balance; tests take less
  uint64_t memory_limit = kLargest;   // bytes of the arena, and of the packed weights; a larger plan is refused
};

struct OpTime {
  std::string name;
  const char* code;
  int64_t macs;
  double median_ns;
};

// The network's quantized input: what the first operation would write.
struct InputCodes {
  Image image;                    // (H, W, C) u8 within the arena; its border is written by run
  std::vector<float> scale;       // one, or one per channel
  std::vector<int32_t> zero;
};

class Session {
 public:
  Session(Bytes file, const Options& options);   // throws Error

  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }
  const std::string& text() const { return text_; }
  Isa isa() const { return kernels_.isa; }
  int threads() const { return pool_->threads(); }
  size_t arena_bytes() const { return arena_.bytes(); }
  size_t weight_bytes() const { return weight_bytes_; }
  double cost() const;                          // of a run in nanoseconds of one core, very roughly

  void run(const float* const* inputs, float* const* outputs);

  // Runs `repeats` times and gives the median time of each operation.
  std::vector<OpTime> profile(const float* const* inputs, float* const* outputs, int repeats);

  // For a caller that writes codes itself. Null unless there is one input, which the first operation quantizes, and nothing
  // else reads it. Hold mutex() from writing the codes until run_from_codes() has returned.
  const InputCodes* input_codes() const { return codes_.get(); }
  void run_from_codes(float* const* outputs);
  std::recursive_mutex& mutex() { return mutex_; }

  // Runs function(context, chunk, thread) for each chunk on the session's threads; hold mutex().
  void parallel(int chunks, void (*function)(void* context, int chunk, int thread), void* context);

 private:
  struct Task {
    Session* session;
    Operation* op;
    int chunks;
  };

  void share_scratch(int threads);
  void copy_constants(const Plan& plan);
  View view_of(const Plan& plan, int tensor) const;
  void find_codes(const Plan& plan);
  void bind(const float* const* inputs, float* const* outputs);
  static void run_task(void* context, int chunk, int thread);
  static void run_border(void* context, int chunk, int thread);

  const Kernels& kernels_;
  std::vector<Port> inputs_, outputs_;
  std::string text_;
  Buffer arena_, constants_, scratch_;
  std::vector<std::pair<int64_t, int64_t>> pieces_;   // of the data section: begin, place in constants_ (sorted)
  std::vector<uint8_t*> bases_;
  std::vector<std::unique_ptr<Operation>> operations_;
  std::vector<std::vector<uint8_t>> fills_;
  std::vector<std::string> names_;
  std::vector<const char*> codes_of_op_;
  std::vector<Task> tasks_;
  std::vector<Step> steps_, steps_from_codes_;
  std::unique_ptr<InputCodes> codes_;
  size_t weight_bytes_ = 0;
  bool poison_ = false;
  std::recursive_mutex mutex_;
  std::unique_ptr<Pool> pool_;       // last: its threads use everything above
};

}  // namespace rw
