// The Python module roadworthy._native: the only file that knows Python. Errors arrive there as ValueError with the sentence.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <vector>

#include "engine/cpu.h"
#include "engine/session.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<const float, nb::numpy, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, float>;
using Ports = std::vector<std::tuple<std::string, std::vector<int64_t>>>;

Ports ports_of(const std::vector<rw::Port>& ports) {
  Ports result;
  for (const auto& port : ports) result.emplace_back(port.name, port.dims);
  return result;
}

std::string shape_text(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); i++) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

std::vector<const float*> pointers_of(const rw::Session& session, const std::vector<Array>& inputs) {
  const auto& ports = session.inputs();
  if (inputs.size() != ports.size())
    rw::fail("The network has " + std::to_string(ports.size()) + " inputs, but " + std::to_string(inputs.size()) + " arrays were given.");
  std::vector<const float*> pointers;
  for (size_t i = 0; i < inputs.size(); i++) {
    std::vector<int64_t> dims;
    for (size_t d = 0; d < inputs[i].ndim(); d++) dims.push_back(static_cast<int64_t>(inputs[i].shape(d)));
    if (dims != ports[i].dims)
      rw::fail("Input `" + ports[i].name + "` has shape " + shape_text(dims) + "; the network takes " + shape_text(ports[i].dims) + ".");
    pointers.push_back(inputs[i].data());
  }
  return pointers;
}

struct Results {
  std::vector<Result> arrays;
  std::vector<float*> pointers;

  explicit Results(const std::vector<rw::Port>& ports) {
    for (const auto& port : ports) {
      auto* data = new float[static_cast<size_t>(port.count())];
      nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
      const std::vector<size_t> shape(port.dims.begin(), port.dims.end());
      arrays.emplace_back(data, shape.size(), shape.data(), owner);
      pointers.push_back(data);
    }
  }
};

std::vector<Result> run(rw::Session& session, const std::vector<Array>& inputs) {
  const auto pointers = pointers_of(session, inputs);
  Results results(session.outputs());
  {
    nb::gil_scoped_release release;
    session.run(pointers.data(), results.pointers.data());
  }
  return std::move(results.arrays);
}

using Profile = std::vector<std::tuple<std::string, std::string, double, int64_t>>;

Profile profile(rw::Session& session, const std::vector<Array>& inputs, int repeats) {
  const auto pointers = pointers_of(session, inputs);
  Results results(session.outputs());
  std::vector<rw::OpTime> times;
  {
    nb::gil_scoped_release release;
    times = session.profile(pointers.data(), results.pointers.data(), repeats);
  }
  Profile rows;
  for (const auto& t : times) rows.emplace_back(t.name, t.code, t.median_ns, t.macs);
  return rows;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Roadworthy's engine: runs lowered int8 and float networks on the CPU.";

  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const rw::Error& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    }
  });

  nb::class_<rw::Session>(m, "Session", "A plan (docs/engine.md) that is ready to run. Calls from several threads take turns.")
      .def(
          "__init__",
          [](rw::Session* self, nb::bytes plan, int threads, const std::string& isa, bool pin, bool poison, int winograd, double chunk_ns) {
            const rw::Bytes file{static_cast<const uint8_t*>(plan.data()), plan.size()};
            const rw::Options options{threads, isa, pin, poison, winograd, chunk_ns};
            nb::gil_scoped_release release;
            new (self) rw::Session(file, options);
          },
          "plan"_a, "threads"_a = 0, "isa"_a = "", "pin"_a = false, nb::kw_only(), "poison"_a = false, "winograd"_a = -1,
          "chunk_ns"_a = 2000.0,
          "threads: 0 for every core. isa: one of isas(), empty for the best. pin: workers stay on their core.\n"
          "poison: the arena is filled with garbage before each run. winograd: 0 never, 2 or 4 that tile, -1 by the engine's rule.\n"
          "chunk_ns: how long a piece of work for one thread should take at least.")
      .def("run", &run, "inputs"_a, "float32 arrays of the inputs' shapes; returns a list of new arrays, one per output.")
      .def("profile", &profile, "inputs"_a, "repeats"_a = 20, "Per operation: (name, opcode, median nanoseconds, multiply-adds).")
      .def_prop_ro("inputs", [](const rw::Session& s) { return ports_of(s.inputs()); }, "(name, shape) of each input")
      .def_prop_ro("outputs", [](const rw::Session& s) { return ports_of(s.outputs()); }, "(name, shape) of each output")
      .def_prop_ro("text", [](const rw::Session& s) { return nb::bytes(s.text().data(), s.text().size()); }, "the plan's text section")
      .def_prop_ro("isa", [](const rw::Session& s) { return std::string(rw::isa_name(s.isa())); })
      .def_prop_ro("threads", &rw::Session::threads)
      .def_prop_ro("arena_bytes", &rw::Session::arena_bytes)
      .def_prop_ro("weight_bytes", &rw::Session::weight_bytes);

  m.def("isas", [] {
    std::vector<std::string> names;
    for (rw::Isa isa : rw::available_isas()) names.emplace_back(rw::isa_name(isa));
    return names;
  }, "The instruction sets that this machine can run, simplest first.");

  m.def("opcodes", [] {
    nb::dict codes;
#define ROADWORTHY_OP(code, name, tensors, attributes, blobs) codes[#name] = nb::make_tuple(code, tensors, attributes, blobs);
#include "engine/opcodes.inc"
#undef ROADWORTHY_OP
    return codes;
  }, "Operation name -> (code, tensors, attributes, blobs).");
}
