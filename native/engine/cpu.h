// Which instruction sets this machine has, and which one is used.
#pragma once
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace rw {

const char* isa_name(Isa isa);
std::vector<Isa> available_isas();      // simplest first; asked once

// The best one for an empty name, else the one named. ROADWORTHY_ISA in the environment takes the place of an empty name.
// Throws Error that says what is available.
Isa choose_isa(const std::string& name);

int available_cores();                  // that this process may run on

}  // namespace rw
