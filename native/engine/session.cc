#include "engine/session.h"

#include <algorithm>
#include <cstdlib>

#include "engine/border.h"
#include "engine/cpu.h"

namespace rw {
namespace {

constexpr int kMostThreads = 64;
constexpr int kChunksPerThread = 2; // a slower thread leaves half of its share to the others; each chunk costs 0.05 us, at times 0.2 us
constexpr int64_t kLine = 64;

bool flag(const char* name) {
  const char* value = std::getenv(name);
  return value && *value && std::string(value) != "0";
}

int chunks_of(const Operation& op, int threads, double chunk_ns) {
  if (threads == 1) return 1;
  const int64_t grains = (op.units + op.grain - 1) / op.grain;
  const auto worth = static_cast<int64_t>(std::min(op.cost / std::max(chunk_ns, 1e-3), 1e6));
  const int64_t chunks = std::max<int64_t>(1, std::min({grains, worth, int64_t(threads) * kChunksPerThread}));
  return static_cast<int>(chunks > threads ? chunks - chunks % threads : chunks);   // as many for each
}

std::pair<int64_t, int64_t> range_of(const Operation& op, int chunk, int chunks) {
  const int64_t grains = (op.units + op.grain - 1) / op.grain;
  return {grains * chunk / chunks * op.grain, std::min(op.units, grains * (chunk + 1) / chunks * op.grain)};
}

}  // namespace

Session::Session(Bytes file, const Options& options) : kernels_(kernels(choose_isa(options.isa))), poison_(options.poison) {
  if (options.threads < 0 || options.threads > kMostThreads) fail("The number of threads is " + std::to_string(options.threads) + "; 0 (every core) to 64 are possible.");
  const int threads = options.threads ? options.threads : std::min(available_cores(), kMostThreads);
  const Plan plan = read_plan(file);
  inputs_ = plan.inputs;
  outputs_ = plan.outputs;
  text_ = plan.text;
  if (plan.arena_bytes > options.memory_limit)
    fail("The plan wants an arena of " + std::to_string(plan.arena_bytes) + " bytes; " + std::to_string(options.memory_limit) + " are allowed.");
  arena_ = Buffer(plan.arena_bytes + kSlack);
  copy_constants(plan);
  bases_.resize(2 + inputs_.size() + outputs_.size());
  bases_[0] = arena_.data();
  bases_[1] = constants_.data();

  for (const PlanOp& op : plan.ops) {
    Source source{op, kernels_, {}, threads, options.winograd, static_cast<size_t>(options.memory_limit - std::min<uint64_t>(options.memory_limit, weight_bytes_))};
    for (int id : op.tensors) source.tensors.push_back(view_of(plan, id));
    const Space target = source.tensors.back().t.space;
    source.require(target == Space::arena || target == Space::output, "writes to an input or a constant");
    auto made = make_operation(source);
    made->written = source.tensors.back();
    if (made->written.t.has_border()) {
      const Bytes fill = made->written.t.fill;
      fills_.emplace_back(fill.data, fill.data + fill.size);
      made->written.t.fill = {fills_.back().data(), fill.size};
    }
    weight_bytes_ += made->weight_bytes;
    names_.push_back(op.name);
    codes_of_op_.push_back(op_name(op.code));
    operations_.push_back(std::move(made));
  }
  share_scratch(threads);
  for (auto& op : operations_) tasks_.push_back({this, op.get(), chunks_of(*op, threads, options.chunk_ns)});
  for (auto& task : tasks_) steps_.push_back({&run_task, &task, task.chunks});
  find_codes(plan);
  pool_ = std::make_unique<Pool>(threads, static_cast<int>(std::max<size_t>(steps_.size(), 1)), options.pin || flag("ROADWORTHY_PIN"));
}

void Session::share_scratch(int threads) {
  size_t most = 0;
  for (const auto& op : operations_) most = std::max(most, (op->scratch_bytes + kLine - 1) / kLine * kLine);
  scratch_ = Buffer(most * static_cast<size_t>(threads));
  for (auto& op : operations_)
    for (int i = 0; i < threads; i++) op->scratch.push_back(scratch_.data() + most * static_cast<size_t>(i));
}

// Only what operations read from the data section is kept: the tensors in space 3, each stretch once.
void Session::copy_constants(const Plan& plan) {
  std::vector<std::pair<int64_t, int64_t>> stretches;
  for (const Tensor& t : plan.tensors)
    if (t.space == Space::constant) stretches.emplace_back(t.low / kLine * kLine, t.high);
  std::sort(stretches.begin(), stretches.end());
  std::vector<std::pair<int64_t, int64_t>> merged;
  for (const auto& s : stretches) {
    if (!merged.empty() && s.first <= merged.back().second) merged.back().second = std::max(merged.back().second, s.second);
    else merged.push_back(s);
  }
  int64_t bytes = 0;
  for (const auto& s : merged) {
    pieces_.emplace_back(s.first, bytes);
    bytes += (s.second - s.first + kLine - 1) / kLine * kLine;
  }
  constants_ = Buffer(bytes ? bytes + kSlack : 0);
  for (size_t i = 0; i < merged.size(); i++)
    std::memcpy(constants_.data() + pieces_[i].second, plan.data.data + merged[i].first, merged[i].second - merged[i].first);
}

View Session::view_of(const Plan& plan, int tensor) const {
  View view{plan.tensors[tensor], 0};
  switch (view.t.space) {
    case Space::arena: break;
    case Space::input: view.base = 2 + view.t.index; break;
    case Space::output: view.base = 2 + static_cast<int>(inputs_.size()) + view.t.index; break;
    case Space::constant: {
      view.base = 1;
      const auto after = std::upper_bound(pieces_.begin(), pieces_.end(), std::make_pair(view.t.low, INT64_MAX));
      const auto& piece = *std::prev(after);
      view.t.offset += piece.second - piece.first;
      break;
    }
  }
  return view;
}

void Session::find_codes(const Plan& plan) {
  if (plan.ops.empty() || plan.inputs.size() != 1 || plan.ops[0].code != OpCode::QUANTIZE) return;
  const PlanOp& first = plan.ops[0];
  const View y = operations_[0]->written;
  if (plan.tensors[first.tensors[0]].space != Space::input || y.t.space != Space::arena || y.t.rank != 3 || (y.t.strides[2] != 1 && y.t.dims[2] != 1)) return;
  if (plan.tensors[first.tensors[0]].count() != plan.inputs[0].count()) return;
  for (size_t i = 1; i < plan.ops.size(); i++)
    for (int id : plan.ops[i].tensors)
      if (plan.tensors[id].space == Space::input) return;
  const Bytes scale = first.blobs[0], zero = first.blobs[1];
  const size_t count = scale.size / 4;
  // Per channel only along the last dimension of the image.
  if (count != 1 && first.attributes[0] != 2) return;
  auto codes = std::make_unique<InputCodes>();
  codes->image = y.image(bases_.data());
  codes->scale.resize(count);
  codes->zero.resize(count);
  std::memcpy(codes->scale.data(), scale.data, scale.size);
  std::memcpy(codes->zero.data(), zero.data, zero.size);
  steps_from_codes_ = steps_;
  steps_from_codes_[0] = {&run_border, &tasks_[0], 1};
  codes_ = std::move(codes);
}

void Session::run_task(void* context, int chunk, int thread) {
  const Task& task = *static_cast<Task*>(context);
  const auto [begin, end] = range_of(*task.op, chunk, task.chunks);
  const Bases bases = task.session->bases_.data();
  task.op->run(bases, begin, end, thread);
  fill_border_of(*task.op, bases, begin, end);
}

void Session::run_border(void* context, int, int) {
  const Task& task = *static_cast<Task*>(context);
  const View& y = task.op->written;
  if (y.t.has_border()) fill_border(y, task.session->bases_.data(), 0, y.t.dims[0], true, true);
}

double Session::cost() const {
  double sum = 0;
  for (const auto& op : operations_) sum += op->cost;
  return sum;
}

void Session::bind(const float* const* inputs, float* const* outputs) {
  for (size_t i = 0; i < inputs_.size(); i++)
    bases_[2 + i] = inputs ? reinterpret_cast<uint8_t*>(const_cast<float*>(inputs[i])) : nullptr;
  for (size_t i = 0; i < outputs_.size(); i++) bases_[2 + inputs_.size() + i] = reinterpret_cast<uint8_t*>(outputs[i]);
}

void Session::run(const float* const* inputs, float* const* outputs) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  bind(inputs, outputs);
  if (poison_) std::memset(arena_.data(), 0xA5, arena_.bytes());
  pool_->run(steps_.data(), static_cast<int>(steps_.size()));
}

void Session::run_from_codes(float* const* outputs) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  if (!codes_) fail("This plan does not begin by quantizing its only input.");
  bind(nullptr, outputs);
  pool_->run(steps_from_codes_.data(), static_cast<int>(steps_from_codes_.size()));
}

void Session::parallel(int chunks, void (*function)(void*, int, int), void* context) {
  if (chunks < 1) return;
  if (chunks > kMostChunks) fail("A step of " + std::to_string(chunks) + " chunks is cut too finely; 65535 are possible.");
  const Step step{function, context, chunks};
  pool_->run(&step, 1);
}

std::vector<OpTime> Session::profile(const float* const* inputs, float* const* outputs, int repeats) {
  std::lock_guard<std::recursive_mutex> guard(mutex_);
  bind(inputs, outputs);
  if (repeats < 1) fail("A profile needs at least one repeat.");
  const size_t count = steps_.size();
  std::vector<int64_t> one(count), all(count * static_cast<size_t>(repeats));
  for (int r = 0; r < repeats; r++) {
    pool_->run(steps_.data(), static_cast<int>(count), one.data());
    for (size_t i = 0; i < count; i++) all[i * repeats + r] = one[i];
  }
  std::vector<OpTime> times;
  for (size_t i = 0; i < count; i++) {
    const auto first = all.begin() + static_cast<int64_t>(i * repeats), middle = first + repeats / 2;
    std::nth_element(first, middle, first + repeats);
    times.push_back({names_[i], codes_of_op_[i], operations_[i]->macs, double(*middle)});
  }
  return times;
}

}  // namespace rw
