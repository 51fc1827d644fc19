#include "engine/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "engine/error.h"

namespace rw {

MappedFile::MappedFile(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail("The plan `" + path + "` cannot be opened: " + std::strerror(errno) + ".");
  struct stat about {};
  if (::fstat(file, &about) != 0 || !S_ISREG(about.st_mode)) {
    ::close(file);
    fail("The plan `" + path + "` is not a file.");
  }
  if (about.st_size == 0) {
    ::close(file);
    fail("The plan `" + path + "` is empty.");
  }
  void* memory = ::mmap(nullptr, static_cast<size_t>(about.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  const int reason = errno;
  ::close(file);
  if (memory == MAP_FAILED) fail("The plan `" + path + "` cannot be read: " + std::strerror(reason) + ".");
  bytes_ = {static_cast<const uint8_t*>(memory), static_cast<size_t>(about.st_size)};
}

MappedFile::~MappedFile() { ::munmap(const_cast<uint8_t*>(bytes_.data), bytes_.size); }

}  // namespace rw
