// The Python program that makes what workers load: initial weights, inputs and the float64 truth.
#pragma once

#include <memory>
#include <string>

#include "plan.hpp"
#include "process.hpp"

namespace torchpace::cli {

/// What came of one case. Either the files or why there are none.
struct Exported {
  Settings settings;  // the case's, with the paths of its files
  std::string note;   // e.g. that a damaged cache entry was rebuilt
  Status status = Status::ok;
  std::string reason;
};

class Exporter {
 public:
  /// `command`: `python -m torchpace.export --cache DIR`. Throws Error when it cannot be run.
  explicit Exporter(const Command& command);

  /// Throws Error when the exporter itself ends, Interrupted on Ctrl-C.
  Exported export_case(const Case& item);

 private:
  std::unique_ptr<Process> process_;
};

}  // namespace torchpace::cli
