// What the tests of torch headers share.
#pragma once

#include <gtest/gtest.h>
#include <torchpace/io/state.hpp>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

namespace torchpace::testing {

/// Settings of tests/fixtures/<name>.txt with `state` set to its tensors; written by tests/fixtures/dump.py.
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

/// A folder that goes with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "torchpace-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::size_t entries() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

}  // namespace torchpace::testing
