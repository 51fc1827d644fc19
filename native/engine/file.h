// A file that is read as memory: its pages are the system's, not the program's, and are gone with this object.
#pragma once
#include <string>

#include "engine/plan.h"

namespace rw {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);   // throws Error
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  Bytes bytes() const { return bytes_; }

 private:
  Bytes bytes_;
};

}  // namespace rw
