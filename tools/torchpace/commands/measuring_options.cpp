#include "commands/measuring_options.hpp"

#include <fmt/format.h>

#include "commands/command.hpp"

namespace torchpace::cli {

void add_measuring_options(CLI::App& app, CompareOptions& o, const MeasuringDefaults& defaults) {
  app.option_defaults()->take_last();  // a script's options can be overridden by what follows
  const auto add = [&](const char* name, auto& value, const char* type, const std::string& help) {
    app.add_option(name, value, help)->type_name(type);
  };
  add("--preset", o.preset, "NAME",
      "Size, invocations and time: smoke, quick or paper (default: quick)");
  add_repeated(app, "--model", o.models, "MODEL",
               "Model of your own in place of the families: MODULE:FACTORY, or a FILE of "
               "TorchScript, AOTInductor or torch.export.save; repeat for several. Several files "
               "are taken for one model, and their outputs must agree");
  add_repeated(app, "--input", o.inputs, "SPEC",
               "Input of your model, such as 1x3x224x224:float32; repeat for several inputs");
  add("--below", o.below, "N",
      "Exclusive upper bound of random integer inputs of files (default: rows of the first "
      "embedding, else 2)");
  add_list(app, "--torch", o.torch, "VERSIONS",
           "torch versions to compare side by side, each in its own environment and build: "
           "2.11.0,2.15.0");
  add_repeated(app, "--worker", o.workers, "NAME=COMMAND",
               "Worker of your own; repeat for several");
  add("--device", o.device, "NAME", "Device: auto, cpu, cuda or cuda:N (default: auto)");
  add("--dtype", o.dtype, "NAME",
      "Dtype of parameters: float32 or bfloat16; float16 and float64 for files (default: float32)");
  add("--threads", o.threads, "N",
      "Threads per worker (default: OMP_NUM_THREADS, else physical cores available to us)");
  add("--allocator", o.allocator, "NAME",
      "Heap of every worker: tuned, system or jemalloc (default: tuned)");
  add("--invocations", o.invocations, "N",
      fmt::format("Fresh processes per runtime (default: {})", defaults.invocations));
  add("--rounds", o.rounds, "N",
      "Rounds per case and invocation (default: as many as the time allows)");
  add("--max-seconds", o.max_seconds, "S",
      fmt::format("Time limit of measuring, without the making of weights, golden values and "
                  "artifacts (default: {})",
                  defaults.max_seconds));
  add("--compile-timeout", o.compile_timeout, "S",
      "Time limit of compiling one artifact (default: of the preset)");
  add("--export-timeout", o.export_timeout, "S",
      "Time limit of weights, inputs and the float64 run of one case (default: 600 for a model of "
      "your own, else 3600)");
  add_repeated(app, "--load-library", o.libraries, "FILE",
               "Shared library of custom operators, loaded before anything else of a case; repeat "
               "for several");
  add("--delta", o.delta, "X", "Largest difference that counts as SAME (default: 0.02)");
  add("--confidence", o.confidence, "X",
      "Confidence of every interval, and of --fail-on over all rows together (default: 0.95)");
  add("--seed", o.seed, "N", "Seed of weights, inputs and the order of rounds (default: 0)");
  add("--output", o.output, "DIR",
      "Folder for results.json and the report (default: torchpace-report)");
  add("--cache", o.cache, "DIR",
      "Folder for weights, inputs and artifacts (default: TORCHPACE_CACHE, ~/.cache/torchpace)");
  add("--text", o.text, "FILE", "Text to train on (default: Shakespeare's plays)");
  add("--python", o.python, "PATH",
      "Python interpreter (default: TORCHPACE_PYTHON, .venv, python3)");
  add("--worker-timeout", o.worker_timeout_s, "S",
      "Shortest time after which a silent worker counts as hung (default: 30)");
  app.add_flag("--resume", o.resume, "Measure only what is missing in the output folder");
  app.add_flag("--no-html", o.no_html, "Write no report.html");
}

}  // namespace torchpace::cli
