#include "engine/threads.h"

#include <chrono>
#include <system_error>

#include "engine/error.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace rw {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the gap between two steps, shorter than anybody would notice on his electricity bill.
constexpr auto kSpin = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Calls `ready` until it is true. Returns false after kSpin.
template <class F>
bool spin(F ready) {
  for (int i = 0; i < 64; i++) {
    if (ready()) return true;
    pause();
  }
  const auto end = Clock::now() + kSpin;
  while (!ready()) {
    for (int i = 0; i < 32; i++) pause();
    if (Clock::now() > end) return ready();
  }
  return true;
}

constexpr uint64_t word(uint32_t run, uint32_t chunks) { return uint64_t(run) << 32 | chunks; }
constexpr uint32_t run_of(uint64_t w) { return static_cast<uint32_t>(w >> 32); }
constexpr uint32_t chunks_of(uint64_t w) { return static_cast<uint32_t>(w); }
constexpr int front_of(uint64_t w) { return static_cast<int>(w >> 16 & 0xffff); }
constexpr int back_of(uint64_t w) { return static_cast<int>(w & 0xffff); }
constexpr uint64_t kFront = 1 << 16, kBack = 1;

}  // namespace

Pool::Pool(int threads, int steps, bool pin) : threads_(threads < 1 ? 1 : threads) {
  if (threads_ == 1) return;
  counters_.reset(new Counter[steps < 1 ? 1 : steps]);
  try {
    for (int i = 1; i < threads_; i++) workers_.emplace_back([this, i, pin] {
      if (pin) pin_to_core(i);
      work(i);
    });
  } catch (const std::system_error&) {
    stop();
    fail("The system starts no more threads; load the plan with fewer of them.");
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard<std::mutex> guard(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
}

void Pool::run(const Step* steps, int count, int64_t* nanoseconds) {
  if (threads_ == 1) {
    auto last = Clock::now();
    for (int i = 0; i < count; i++) {
      for (int c = 0; c < steps[i].chunks; c++) steps[i].run(steps[i].context, c, 0);
      if (!nanoseconds) continue;
      const auto now = Clock::now();
      nanoseconds[i] = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last).count();
      last = now;
    }
    return;
  }
  const uint32_t run = run_.load(std::memory_order_relaxed) + 1;
  steps_.store(steps, std::memory_order_relaxed);
  count_.store(count, std::memory_order_relaxed);
  for (int i = 0; i < count; i++) {
    counters_[i].unfinished.store(word(run, steps[i].chunks), std::memory_order_release);
    counters_[i].unclaimed.store(word(run, steps[i].chunks), std::memory_order_release);
  }
  // Sequentially consistent, as is the sleeper's pair: either he sees the new run, or we see that he sleeps.
  run_.store(run);
  if (asleep_.load() > 0) {
    { std::lock_guard<std::mutex> guard(mutex_); }
    wake_.notify_all();
  }
  take_part(run, count, 0, nanoseconds);
}

void Pool::take_part(uint32_t run, int count, int thread, int64_t* nanoseconds) {
  auto last = nanoseconds ? Clock::now() : Clock::time_point();
  for (int i = 0; i < count; i++) {
    Counter& counter = counters_[i];
    uint32_t done = 0;
    uint64_t left = counter.unclaimed.load(std::memory_order_acquire);
    while (run_of(left) == run && front_of(left) < back_of(left)) {
      const bool front = thread % 2 == 0;
      if (!counter.unclaimed.compare_exchange_weak(left, front ? left + kFront : left - kBack, std::memory_order_acq_rel)) continue;
      // The run cannot end before this chunk does, so its steps may be read.
      const Step& step = steps_.load(std::memory_order_acquire)[i];
      step.run(step.context, front ? front_of(left) : back_of(left) - 1, thread);
      done++;
      left = counter.unclaimed.load(std::memory_order_acquire);
    }
    if (done > 0) counter.unfinished.fetch_sub(done, std::memory_order_acq_rel);
    if (run_of(left) != run) return;  // late: this run is over
    const auto over = [&] {
      const uint64_t w = counter.unfinished.load(std::memory_order_acquire);
      return run_of(w) != run || chunks_of(w) == 0;
    };
    // With more threads than cores, whom we wait for may need this core.
    while (!spin(over)) std::this_thread::yield();
    if (!nanoseconds) continue;
    const auto now = Clock::now();
    nanoseconds[i] = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last).count();
    last = now;
  }
}

void Pool::work(int thread) {
  uint32_t seen = 0;
  const auto news = [&] { return run_.load() != seen || stop_.load(std::memory_order_relaxed); };
  for (;;) {
    if (!spin(news)) {
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.fetch_add(1);
      wake_.wait(lock, news);
      asleep_.fetch_sub(1);
    }
    if (stop_.load()) return;
    seen = run_.load();
    take_part(seen, count_.load(std::memory_order_acquire), thread, nullptr);
  }
}

void Pool::pin_to_core(int thread) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) == 0) return;
  int wanted = thread % CPU_COUNT(&allowed);
  for (int core = 0; core < CPU_SETSIZE; core++) {
    if (!CPU_ISSET(core, &allowed) || wanted-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    return;
  }
#else
  (void)thread;
#endif
}

}  // namespace rw
