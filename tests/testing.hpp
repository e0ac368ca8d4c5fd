// What the tests of torch headers share.
#pragma once

#include <dirent.h>
#include <ftw.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <torchpace/io/case_files.hpp>

namespace torchpace::testing {

/// Settings of tests/fixtures/<name>.txt with `state` set to its tensors; written by
/// tests/fixtures/dump.py.
inline Settings fixture_settings(const std::string& name) {
  const std::string path = std::string(TORCHPACE_FIXTURES) + "/" + name;
  std::ifstream file(path + ".txt");
  std::string line;
  std::getline(file, line);
  auto settings = Settings::parse(line);
  settings.set("state", path + ".pt");
  return settings;
}

/// The first line of what `action` throws, or "" when it throws nothing.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const c10::Error& e) {
    return e.what_without_backtrace();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

/// A folder that goes with the test. POSIX calls: LibTorch's wheels export an older std::filesystem
/// of their own, and which of the two a program gets depends on the order of its libraries.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    const char* parent = std::getenv("TMPDIR");
    path_ = std::string(parent == nullptr ? "/tmp" : parent) + "/torchpace-test-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~TemporaryFolder() {
    nftw(
        path_.c_str(),
        [](const char* path, const struct stat*, int, FTW*) { return std::remove(path); }, 8,
        FTW_DEPTH | FTW_PHYS);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string file(const std::string& name) const { return path_ + '/' + name; }
  std::size_t entries() const {
    std::size_t count = 0;
    DIR* folder = opendir(path_.c_str());
    while (const auto* entry = readdir(folder)) count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
  }

 private:
  std::string path_;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace torchpace::testing
