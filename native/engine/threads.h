// A pool that runs a list of steps, one after the other, each cut into chunks that the threads claim.
//
// A step is over when its last chunk is. Nobody waits for a thread, only for chunks that somebody has begun: a thread that
// sleeps, or whose core was taken away, costs no more than its own work. What is left to claim carries the number of the
// run, so that a thread that comes late cannot take part in a run that it does not know.
//
// Even threads claim from the front, odd ones from the back. So with two of them each finds, in the cache of its core, most
// of what it wrote in the step before.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace rw {

constexpr int kMostChunks = 65535;

struct Step {
  void (*run)(void* context, int chunk, int thread);
  void* context;
  int chunks;      // 1 to kMostChunks
};

class Pool {
 public:
  // threads: with the caller of run(), so that 1 starts none. steps: the longest list that will be run.
  // pin: worker i stays on the i-th core that the process may use; the caller's thread is left alone.
  Pool(int threads, int steps, bool pin);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // One caller at a time; allocates nothing. nanoseconds: where given, receives the time of each step.
  void run(const Step* steps, int count, int64_t* nanoseconds = nullptr);

 private:
  // unclaimed: run << 32 | first chunk << 16 | chunk behind the last. Only who sees chunks of his own run unclaimed may claim, by
  // exchanging the whole word. unfinished: run << 32 | number of chunks; apart, as who waits reads it all the time.
  struct Counter {
    alignas(64) std::atomic<uint64_t> unclaimed{0};
    alignas(64) std::atomic<uint64_t> unfinished{0};
  };

  void stop();
  void work(int thread);
  void take_part(uint32_t run, int count, int thread, int64_t* nanoseconds);
  void pin_to_core(int thread);

  int threads_;
  std::unique_ptr<Counter[]> counters_;
  std::atomic<const Step*> steps_{nullptr};
  std::atomic<int> count_{0};
  alignas(64) std::atomic<uint32_t> run_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;   // last: they use everything above
};

}  // namespace rw
