// The Python program that makes what workers load: initial weights, inputs, the float64 truth, and
// compiled artifacts.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "plan.hpp"
#include "process.hpp"

namespace torchpace::cli {

/// What came of one artifact. Either its path or why there is none.
struct Artifact {
  std::string kind;
  std::string path;
  double compile_s = kUnknown;  // that making it took, with empty caches
  bool cached = false;          // an earlier run made it
  std::string note;
  Status status = Status::ok;
  std::string reason;
};

/// What came of one case. Either the files or why there are none.
struct Exported {
  Settings settings;  // the case's, with the paths of the files that all runtimes load
  std::map<std::string, Artifact> artifacts;   // runtime -> what it loads besides
  std::map<std::string, Settings> own;         // runtime -> what it loads in place of the case's
  std::map<std::string, double> memory_bytes;  // counted: parameters, activations, ...
  std::string note;                            // e.g. that a damaged cache entry was rebuilt
  Status status = Status::ok;
  std::string reason;

  /// What a runtime loads.
  Settings settings_of(const std::string& runtime) const;
};

class Exporter {
 public:
  /// `command`: `python -m torchpace.export --cache DIR`. Nothing is started before it is needed.
  explicit Exporter(Command command) : command_(std::move(command)) {}

  /// Throws Error when the exporter cannot be run or ends, Interrupted on Ctrl-C.
  Exported export_case(const Case& item);

  /// Has the artifact of a kind made for the case of these settings. What fails costs only the
  /// artifact. Throws Interrupted on Ctrl-C.
  Artifact make_artifact(Settings settings, const std::string& kind, double limit_s);

 private:
  /// Throws ProcessError with the last words of the exporter, which is restarted by the next call.
  Json ask(const std::string& line, double limit_s);

  Command command_;
  std::unique_ptr<Process> process_;
};

}  // namespace torchpace::cli
