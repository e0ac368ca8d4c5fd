// Exceptions as one line, as a row or an answer has room for.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>
#include <string>
#include <string_view>

namespace torchpace {

/// The line of an exception's message that says RuntimeError, as what Python code raised does, else
/// the first that is not empty. Without a backtrace.
inline std::string one_line_of(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string_view rest =
      torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  std::string_view first;
  while (!rest.empty()) {
    constexpr std::string_view kPython = "RuntimeError: ";
    const auto line = rest.substr(0, rest.find('\n'));
    if (line.starts_with(kPython)) return std::string(line.substr(kPython.size()));
    if (first.empty()) first = line;
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
  }
  return std::string(first);
}

}  // namespace torchpace
