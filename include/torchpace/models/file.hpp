// A model that comes as a file: what it computes is in the artifact that a row loads. C++ looks
// only whether that is still the file which the run was planned with. Twin:
// python/torchpace/models/file.py.
#pragma once

#include <sys/stat.h>
#include <torch/torch.h>

#include <cstdio>
#include <sstream>
#include <string>

#include "torchpace/model.hpp"
#include "torchpace/models/imported.hpp"

namespace torchpace {

namespace detail {

/// Size and time of the last change, as tools/torchpace/plan/model_files.cpp writes them; empty
/// without a file.
inline std::string file_stamp(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return "";
  char nanoseconds[16];
  std::snprintf(nanoseconds, sizeof nanoseconds, "%09ld", status.st_mtim.tv_nsec);
  return std::to_string(status.st_size) + '-' + std::to_string(status.st_mtim.tv_sec) + '.' +
         nanoseconds;
}

/// Throws SettingsError where the file of `stamp`, with its path behind a space, is not the one
/// that the run began with, or where it was refused when the case was made: lines of `refused`, a
/// path and the reason below it.
inline void expect_same_file(const Settings& settings) {
  const auto stamp = settings.get("stamp", "");
  const auto space = stamp.find(' ');
  if (space == std::string::npos) return;
  const auto path = stamp.substr(space + 1);
  if (const auto found = file_stamp(path); found != stamp.substr(0, space)) {
    throw SettingsError(path + ": expected the file that the run began with, found " +
                        (found.empty() ? "none" : "another one"));
  }
  std::istringstream refused(settings.get("refused", ""));
  for (std::string name, reason; std::getline(refused, name) && std::getline(refused, reason);) {
    if (name == path) throw SettingsError(reason);
  }
}

}  // namespace detail

/// Settings: those of an imported model, `stamp` and `refused`. Throws SettingsError where the file
/// cannot be measured.
inline Model make_file(const Settings& s) {
  detail::expect_same_file(s);
  return make_imported(s);
}

}  // namespace torchpace
