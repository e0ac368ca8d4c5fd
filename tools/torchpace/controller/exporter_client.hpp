// The Python program that makes what workers load: initial weights, inputs, the golden (float64)
// values, and compiled artifacts.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "plan/sweep.hpp"
#include "support/process.hpp"

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
  std::string no_golden;                       // why there is no float64 run
  Status status = Status::ok;
  std::string reason;
  bool mendable = false;  // the reason is something that the user has given

  /// What a runtime loads.
  Settings settings_of(const std::string& runtime) const;
};

class Exporter {
 public:
  /// `command`: `python -m torchpace.exporter --cache DIR`. Nothing is started before it is needed.
  /// `limit_s`: what the files of one case may take.
  Exporter(Command command, double limit_s) : command_(std::move(command)), limit_s_(limit_s) {}

  /// Lets it put away what it has begun.
  ~Exporter();
  Exporter(Exporter&&) = default;

  /// What fails, dies or hangs costs only the case: the next one has a new exporter. Throws
  /// Interrupted on Ctrl-C.
  Exported export_case(const Case& item);

  /// Has the artifact of a kind made for the case of these settings. What fails costs only the
  /// artifact. Throws Interrupted on Ctrl-C.
  Artifact make_artifact(Settings settings, const std::string& kind, double limit_s);

 private:
  /// Throws ProcessError with the last words of the exporter, which is restarted by the next call.
  /// `option` is the one that raises the limit.
  Json ask(const std::string& line, double limit_s, const char* option);
  void complete(std::string& reason);

  Command command_;
  double limit_s_;
  std::unique_ptr<Process> process_;
};

}  // namespace torchpace::cli
