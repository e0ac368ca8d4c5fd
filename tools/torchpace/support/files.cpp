#include "support/files.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "support/error.hpp"

namespace torchpace::cli {

namespace fs = std::filesystem;

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

TemporaryFolder::TemporaryFolder() {
  const char* named = std::getenv("TMPDIR");
  const fs::path parent = named == nullptr || *named == '\0' ? "/tmp" : named;
  auto name = (parent / "torchpace-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) {
    throw Error(
        fmt::format("TMPDIR: expected a folder to write to, found {}: {}; set TMPDIR to one",
                    parent.string(), std::strerror(errno)));
  }
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace torchpace::cli
