// Libraries of custom operators, which a file or a model may need before it can be loaded: the
// option --load-library of the program, the key `libraries` of a case.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <string>

#include "torchpace/settings.hpp"

namespace torchpace {

/// Loads the libraries of the key `libraries`, paths separated by commas, for the rest of the
/// process. Loading one runs the code in it. Throws SettingsError, with what the loader says.
inline void load_libraries(const Settings& settings) {
  const auto paths = settings.get("libraries", "");
  for (std::size_t begin = 0; begin < paths.size();) {
    const auto end = std::min(paths.find(',', begin), paths.size());
    const auto path = paths.substr(begin, end - begin);
    begin = end + 1;
    if (path.empty() || dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) continue;
    const char* reason = dlerror();
    throw SettingsError("--load-library " + path +
                        ": expected a library of operators that loads, found: " +
                        (reason == nullptr ? "no reason" : reason));
  }
}

/// What to do where a file does not load or run for `reason`: custom operators come with a library.
/// Empty where that is not it.
inline std::string operators_advice(const std::string& reason) {
  for (const char* said : {"Unknown builtin op", "Could not find schema for", "No such operator"}) {
    if (reason.find(said) == std::string::npos) continue;
    return "its custom operators are in no library that is loaded: load it first with "
           "--load-library FILE.so (of torchvision: libtorchvision.so, built from its source; the "
           "_C.so of its wheel needs Python)";
  }
  return "";
}

}  // namespace torchpace
