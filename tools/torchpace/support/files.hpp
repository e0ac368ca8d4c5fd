// Files and folders, beyond what <filesystem> has.
#pragma once

#include <filesystem>

namespace torchpace::cli {

/// False also where it cannot be told.
bool is_file(const std::filesystem::path& path);

/// A folder that is gone when its owner is, however that ends, with all that a child left in it.
/// Throws Error where none can be made.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace torchpace::cli
