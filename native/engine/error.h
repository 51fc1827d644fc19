// The one exception of the engine: a sentence that names what is at fault. It never crosses the C border or the Python one.
#pragma once
#include <stdexcept>
#include <string>

namespace rw {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const std::string& sentence) { throw Error(sentence); }

}  // namespace rw
