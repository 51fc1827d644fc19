// Damages plan files and loads them; what is accepted is run. Nothing may crash, hang, or touch memory outside: built with
// -fsanitize=address,undefined (make sanitize), inputs, outputs and the file lie in blocks of exactly their size.
//
//     fuzz_plan 10000 1 a.rwp b.rwp ...       iterations, seed, plans
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>

#include "engine/cpu.h"
#include "engine/session.h"

namespace {

using File = std::vector<uint8_t>;
using Random = std::mt19937_64;

constexpr double kLongestNs = 3e6;   // of a run, by the engine's own estimate: hostile sizes may be valid and slow

uint64_t below(Random& random, uint64_t n) { return random() % n; }

template <class T>
void put(File& file, size_t at, T value) {
  if (at + sizeof(T) <= file.size()) std::memcpy(file.data() + at, &value, sizeof(T));
}

uint64_t get64(const File& file, size_t at) {
  uint64_t v;
  std::memcpy(&v, file.data() + at, 8);
  return v;
}

void seal(File& file, bool size) {
  if (file.size() < 128) return;
  if (size) put<uint64_t>(file, 8, file.size());
  put<uint32_t>(file, 16, rw::crc32({file.data() + 20, file.size() - 20}));
}

int32_t hostile(Random& random) {
  static const int32_t values[] = {0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65535, 1 << 20, 1 << 28, INT32_MAX, INT32_MIN, 0x7f800000, 0x7fc00000, 0x3f800000};
  return values[below(random, sizeof values / sizeof *values)];
}

// Where the records are, so that they are hit more often than weights.
size_t place(const File& file, Random& random) {
  const size_t data = get64(file, 72), tensors = get64(file, 32), ops = get64(file, 48), ports = get64(file, 56);
  const size_t starts[] = {20, tensors, ops, ports}, ends[] = {128, ops > tensors ? ops : data, ports > ops ? ports : data, data};
  const auto k = below(random, 6);
  if (k >= 4 || ends[k] <= starts[k] || ends[k] > file.size()) return below(random, file.size());
  return starts[k] + below(random, ends[k] - starts[k]);
}

void damage(File& file, Random& random) {
  const int edits = 1 + static_cast<int>(below(random, 4));
  const auto kind = below(random, 10);
  for (int i = 0; i < edits; i++) {
    const size_t at = place(file, random);
    if (kind < 4) file[at] ^= uint8_t(1 << below(random, 8));
    else if (kind < 7) put<int32_t>(file, at & ~size_t(3), hostile(random));
    else if (kind < 8) put<int32_t>(file, at & ~size_t(3), *reinterpret_cast<const int32_t*>(file.data() + (at & ~size_t(3)) % (file.size() - 4) / 4 * 4) + static_cast<int32_t>(below(random, 5)) - 2);
    else file[at] = static_cast<uint8_t>(random());
  }
  if (below(random, 10) == 0) file.resize(below(random, file.size()));
  if (below(random, 20) == 0) file.resize(file.size() + below(random, 300));
  if (below(random, 8) != 0) seal(file, below(random, 2) == 0 || file.size() == get64(file, 8));
}

// The result of one try: 0 refused, 1 accepted, 2 run.
int attempt(const File& damaged, Random& random) {
  // Neither more bytes than the file has, nor aligned ones.
  const size_t shift = below(random, 2);
  std::unique_ptr<uint8_t[]> block(new uint8_t[damaged.size() + shift]);
  std::memcpy(block.get() + shift, damaged.data(), damaged.size());
  const auto isas = rw::available_isas();
  rw::Options options;
  options.threads = 1;
  options.isa = rw::isa_name(isas[below(random, isas.size())]);
  options.memory_limit = 64 << 20;
  options.winograd = static_cast<int>(below(random, 4)) * 2 - 2 < 0 ? -1 : static_cast<int>(below(random, 3)) * 2;
  std::unique_ptr<rw::Session> session;
  try {
    session = std::make_unique<rw::Session>(rw::Bytes{block.get() + shift, damaged.size()}, options);
  } catch (const rw::Error& error) {
    if (std::strlen(error.what()) < 10) std::abort();
    return 0;
  }
  block.reset();   // the file is not needed afterwards
  if (session->cost() > kLongestNs) return 1;
  std::vector<std::unique_ptr<float[]>> arrays;
  std::vector<const float*> inputs;
  std::vector<float*> outputs;
  int64_t elements = 0;
  for (const auto* ports : {&session->inputs(), &session->outputs()})
    for (const auto& port : *ports) elements += port.count();
  if (elements > 1 << 22) return 1;
  std::normal_distribution<float> normal(0, 100);
  for (const auto& port : session->inputs()) {
    arrays.emplace_back(new float[static_cast<size_t>(port.count())]);
    for (int64_t i = 0; i < port.count(); i++) arrays.back()[i] = i % 97 == 5 ? NAN : i % 89 == 7 ? 1e30f : normal(random);
    inputs.push_back(arrays.back().get());
  }
  for (const auto& port : session->outputs()) {
    arrays.emplace_back(new float[static_cast<size_t>(port.count())]());
    outputs.push_back(arrays.back().get());
  }
  session->run(inputs.data(), outputs.data());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: fuzz_plan iterations seed plan...\n");
    return 2;
  }
  std::vector<File> files;
  for (int i = 3; i < argc; i++) {
    std::ifstream stream(argv[i], std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    Random random(1);
    if (files.back().size() < 128 || attempt(files.back(), random) == 0) {
      std::fprintf(stderr, "%s is not a valid plan to begin with\n", argv[i]);
      return 1;
    }
  }
  const int iterations = std::atoi(argv[1]);
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  int64_t results[3] = {};
  for (int i = 0; i < iterations; i++) {
    Random random(seed * 1000003 + i);
    File file = files[static_cast<size_t>(i) % files.size()];
    damage(file, random);
    if (std::getenv("FUZZ_VERBOSE")) std::fprintf(stderr, "%d\n", i);
    results[attempt(file, random)]++;
  }
  std::printf("%d damaged plans: %lld refused, %lld accepted and run, %lld accepted and too slow to run\n", iterations,
              static_cast<long long>(results[0]), static_cast<long long>(results[2]), static_cast<long long>(results[1]));
  return 0;
}
