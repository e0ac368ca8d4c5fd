// `torchpace run` in a process of its own: times a TorchScript file (.pt) or an AOTInductor package
// (.pt2), alone or against another. Loading a package runs the code in it, so that this program,
// and not the one that the user called, is what a bad file may bring down.
// Called with key=value words, as bench/cli/run.cpp writes them. Exit codes: docs/design.md.
#include <sys/mman.h>
#include <torch/torch.h>
#include <torch/version.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <torchpace/benchmark.hpp>
#include <torchpace/environment.hpp>
#include <torchpace/runtimes/aot_inductor.hpp>
#include <torchpace/runtimes/torchscript.hpp>
#include <utility>
#include <vector>

namespace {

using namespace torchpace;
using Tensors = std::vector<torch::Tensor>;

constexpr int kOk = 0, kFailed = 1, kBadInput = 2, kParityFailed = 3, kSkipped = 77;

/// A number that must be above 0.
template <class T>
T positive(const Settings& settings, const std::string& key, T fallback) {
  const T value = settings.get(key, fallback);
  if (value > 0) return value;
  throw SettingsError("--" + key + ": expected a number above 0, got '" + settings.get(key, "") +
                      "'");
}

struct Options {
  explicit Options(const Settings& s)
      : file(s.require<std::string>("file")),
        other(s.get("compare", "")),
        inputs(parse_tensor_specs(s.get("input", ""))),
        below(positive<int64_t>(s, "below", 2)),
        device(choose_device(s.get("device", "cpu"))),
        threads(s.has("threads") ? positive(s, "threads", 1) : 0),
        streams(positive<int64_t>(s, "streams", 1)),
        seconds(positive(s, "seconds", 5.0)),
        torchscript(s.get("torchscript", "freeze")),
        json(s.get("json", false)) {
    std::istringstream list(s.get("dynamic", ""));
    for (std::string size; std::getline(list, size, ',');)
      sizes.push_back(Settings{{"dynamic", size}}.require<int64_t>("dynamic"));
  }

  std::string file, other;
  std::vector<TensorSpec> inputs;
  int64_t below;
  torch::Device device;
  int threads;
  int64_t streams;
  std::vector<int64_t> sizes;  // of a dynamic first dimension, to try one after the other
  double seconds;
  std::string torchscript;
  bool json;
};

/// What the child writes to standard error while `action` runs, since AOTInductor says there, and
/// not in what it throws, why it refuses.
std::string captured_errors(const std::function<void()>& action, std::exception_ptr& thrown) {
  const int file = memfd_create("stderr", MFD_CLOEXEC), saved = dup(STDERR_FILENO);
  dup2(file, STDERR_FILENO);
  try {
    action();
  } catch (...) {
    thrown = std::current_exception();
  }
  dup2(saved, STDERR_FILENO);
  close(saved);
  std::string text(static_cast<std::size_t>(lseek(file, 0, SEEK_END)), '\0');
  const auto count = pread(file, text.data(), text.size(), 0);
  close(file);
  text.resize(count < 0 ? 0 : static_cast<std::size_t>(count));
  return text;
}

/// A file that is loaded and has run once.
struct Loaded {
  std::string file, kind;
  std::vector<TensorSpec> specs;  // of the inputs, from a package; empty: the file does not say
  TensorFunction forward;
  double load_s = 0, first_s = 0;
};

/// Throws ArchiveError where an AOTInductor package refuses these inputs. Its code checks them only
/// where the environment asks for it before the first run, so a copy of it is loaded for this.
void check_by_running(const AotPackage& package, const Options& options, const Tensors& inputs) {
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);
  std::exception_ptr thrown;
  const auto said = captured_errors(
      [&] {
        c10::InferenceMode inference;
        package.load(options.device)->run(inputs);
        synchronize(options.device);
      },
      thrown);
  unsetenv("AOTI_RUNTIME_CHECK_INPUTS");
  if (!thrown) return;
  std::string reason;
  try {
    std::rethrow_exception(thrown);
  } catch (const ArchiveError&) {
    throw;
  } catch (const std::exception& error) {
    reason = one_line_of(error);
  }
  std::istringstream lines(said);
  for (std::string line; std::getline(lines, line);) {
    if (const auto place = line.find("input_handles"); place != std::string::npos)
      reason = line.substr(place);
  }
  throw ArchiveError(package.path() + ": the package refuses these inputs: " + reason +
                     "; give others with --input");
}

/// The package at `path`, checked once and not kept longer than loading it takes; none where the
/// file is a TorchScript one.
std::unique_ptr<const AotPackage> open_package(const std::string& path) {
  return path.ends_with(".pt2") ? std::make_unique<const AotPackage>(path) : nullptr;
}

Tensors make_inputs(const std::vector<TensorSpec>& specs, std::optional<int64_t> size,
                    const Options& options) {
  torch::manual_seed(0);
  Tensors inputs;
  for (const auto& spec : specs) {
    auto sizes = spec.sizes;
    if (size && !sizes.empty() && (sizes[0] == kAnySize || !options.inputs.empty()))
      sizes[0] = *size;
    for (auto& each : sizes) each = each == kAnySize ? 1 : each;
    const auto floating = at::isFloatingType(spec.dtype);
    const auto drawn = floating ? torch::randn(sizes, torch::kFloat32)
                                : torch::randint(options.below, sizes, torch::kInt64);
    inputs.push_back(drawn.to(options.device, spec.dtype));
  }
  return inputs;
}

/// What the inputs are: as given, else as the package says.
std::vector<TensorSpec> choose_specs(const AotPackage* package, const Options& options) {
  if (!options.inputs.empty()) return options.inputs;
  if (package != nullptr) {
    if (auto specs = package->input_specs(); !specs.empty()) return specs;
  } else {
    const Archive archive(options.file);  // what is damaged is said before what is missing
  }
  throw SettingsError(options.file +
                      ": expected --input SIZES:DTYPE (1x3x224x224:float32), found none; only "
                      "packages that torchpace wrote say what they take");
}

Loaded load_package(const AotPackage& package, const Options& options, const Tensors& inputs) {
  package.check_environment(options.device, options.threads);
  package.check_inputs(inputs);
  if (!package.is_own()) check_by_running(package, options, inputs);
  Loaded loaded;
  const auto version = package.get("torchpace.torch");
  loaded.kind = "AOTInductor package" + (version.empty() ? "" : " of torch " + version);
  loaded.specs = package.input_specs();
  const auto threads = package.get("torchpace.threads");
  if (options.device.is_cpu() && !threads.empty())
    at::set_num_threads(Settings{{"threads", threads}}.require<int>("threads"));
  loaded.load_s = time_once_s(
      [&] {
        auto runner = std::shared_ptr<AotRunner>(
            package.load(options.device, static_cast<std::size_t>(options.streams)));
        loaded.forward = [runner](const Tensors& x) { return first_floating(runner->run(x)); };
      },
      options.device);
  return loaded;
}

Loaded load_script(const std::string& path, const Options& options) {
  Loaded loaded;
  loaded.kind = "TorchScript file";
  loaded.load_s = time_once_s(
      [&] {
        loaded.forward =
            torchscript_forward(load_torchscript(path, options.device, options.torchscript));
      },
      options.device);
  return loaded;
}

/// Loads `path`, whose package this takes, and runs it once.
Loaded load(const std::string& path, std::unique_ptr<const AotPackage> package,
            const Options& options, const Tensors& inputs) {
  auto loaded = package ? load_package(*package, options, inputs) : load_script(path, options);
  loaded.file = path;
  c10::InferenceMode inference;
  try {
    loaded.first_s = time_once_s([&] { loaded.forward(inputs); }, options.device);
  } catch (const std::exception& error) {
    throw ArchiveError(path + ": the file refuses these inputs: " + one_line_of(error) +
                       "; give others with --input");
  }
  return loaded;
}

/// Calls per second of several threads at once, each on a stream of its own.
double concurrent_calls_per_s(const Loaded& loaded, const Tensors& inputs, const Options& options) {
  std::atomic<int64_t> calls{0}, ready{0};
  std::atomic<bool> begin{false}, stop{false};
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < options.streams; ++i) {
    threads.emplace_back([&] {
      at::init_num_threads();
      std::optional<c10::StreamGuard> stream;
      if (options.device.is_cuda()) {
        stream.emplace(c10::impl::VirtualGuardImpl(options.device.type())
                           .getStreamFromGlobalPool(options.device, false));
      }
      try {
        c10::InferenceMode inference;
        settle_steps([&] { loaded.forward(inputs); }, options.device);
        ++ready;
        while (!begin) std::this_thread::yield();
        while (!stop) {
          loaded.forward(inputs);
          if (stream) stream->current_stream().synchronize();
          ++calls;
        }
      } catch (const std::exception&) {
        failed = true;
        ++ready;
      }
    });
  }
  while (ready < options.streams) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  int64_t counted = 0;
  const double seconds = time_once_s(
      [&] {
        calls = 0;
        begin = true;
        std::this_thread::sleep_for(std::chrono::duration<double>(options.seconds));
        counted = calls;
        stop = true;
      },
      torch::kCPU);
  for (auto& thread : threads) thread.join();
  if (failed)
    throw std::runtime_error(loaded.file + ": fails with several callers; take --streams 1");
  return static_cast<double>(counted) / seconds;
}

struct Row {
  std::vector<TensorSpec> inputs;
  Measurement latency;
  double calls_per_s = 0;
};

Row measure_row(const Loaded& loaded, const Tensors& inputs, const Options& options) {
  Row row;
  for (const auto& input : inputs) row.inputs.push_back(TensorSpec::of(input));
  c10::InferenceMode inference;
  const auto step = [&] { loaded.forward(inputs); };
  MeasureOptions measuring{.phase = Phase::kLatency, .stop = {.max_seconds = options.seconds}};
  row.latency = measure(step, options.device, measuring);
  row.latency.name = loaded.file;
  row.latency.items = inputs[0].dim() > 0 ? static_cast<double>(inputs[0].size(0)) : 1;
  if (options.streams > 1) {
    row.calls_per_s = concurrent_calls_per_s(loaded, inputs, options);
  } else if (options.device.is_cuda()) {
    measuring.phase = Phase::kThroughput;
    row.calls_per_s = measure(step, options.device, measuring).steps_per_second();
  } else {
    row.calls_per_s = row.latency.steps_per_second();
  }
  return row;
}

std::string percentile_text(const Measurement& m, double q) {
  const auto p = m.percentile(q);
  return p ? format_ns(p->median) : "n/a (needs " + std::to_string(percentile_needs(q)) + ")";
}

void print(const std::string& label, const std::string& text) {
  std::printf("  %-12s%s\n", label.c_str(), text.c_str());
}

void print_file(const Loaded& loaded) {
  std::printf("%s: %s\n", loaded.file.c_str(), loaded.kind.c_str());
  print("load", format_ns(loaded.load_s * 1e9) + ", first call " + format_ns(loaded.first_s * 1e9));
}

void print_row(const Row& row, const Options& options) {
  const auto interval = row.latency.step();
  print("inputs", text_of(row.inputs));
  print("latency", format_ns(interval.median) + " [" + format_ns(interval.low) + ", " +
                       format_ns(interval.high) + "], p90 " + percentile_text(row.latency, 0.9) +
                       ", p99 " + percentile_text(row.latency, 0.99));
  print("throughput",
        format_si(row.calls_per_s * row.latency.items) + "items/s, " + format_si(row.calls_per_s) +
            "calls/s" +
            (options.streams > 1 ? " with " + std::to_string(options.streams) + " callers" : ""));
}

std::string memory_text(const Memory& m, const torch::Device& device) {
  std::string text = format_si(m.resident_peak_bytes) + "B resident";
  if (!device.is_cpu()) {
    text += ", on the device " + format_si(m.device_allocated_peak_bytes) + "B allocated, " +
            format_si(m.device_reserved_peak_bytes) + "B reserved";
  }
  return text;
}

std::string row_json(const Row& row) {
  return JsonObject()
      .add("inputs", text_of(row.inputs))
      .raw("latency", row.latency.json())
      .add("calls_per_s", row.calls_per_s)
      .add("items_per_s", row.calls_per_s * row.latency.items)
      .str();
}

std::string file_json(const Loaded& loaded) {
  return JsonObject()
      .add("file", loaded.file)
      .add("kind", loaded.kind)
      .add("load_s", loaded.load_s)
      .add("first_call_s", loaded.first_s)
      .str();
}

std::string comparison_json(const Comparison& c) {
  const auto interval = [](const Interval& i) {
    return JsonObject().add("median", i.median).add("low", i.low).add("high", i.high).str();
  };
  return JsonObject()
      .raw("speedup", interval(c.speedup))
      .raw("noise", interval(c.noise))
      .add("verdict", to_string(c.verdict))
      .add("max_abs_error", c.max_abs_error)
      .add("tolerance", c.tolerance)
      .add("rounds", c.rounds)
      .str();
}

/// Interleaved, the outputs checked first; the reference is the file named first.
Comparison compare_files(const Loaded& reference, const Loaded& candidate, const Tensors& inputs,
                         const Options& options) {
  const auto callable = [](const Loaded& loaded) {
    return [&loaded](const auto&... x) { return loaded.forward({x...}); };
  };
  if (inputs.size() > 4) throw SettingsError("--compare: expected 1 to 4 inputs");
  Inputs all(inputs[0]);
  all.assign(inputs.begin(), inputs.end());
  return compare(callable(reference), callable(candidate), all, {.max_seconds = options.seconds});
}

int run(const Options& options) {
  if (options.threads > 0) at::set_num_threads(options.threads);
  auto package = open_package(options.file);
  const auto specs = choose_specs(package.get(), options);
  std::vector<std::optional<int64_t>> sizes(options.sizes.begin(), options.sizes.end());
  if (sizes.empty()) sizes.emplace_back();

  auto inputs = make_inputs(specs, sizes[0], options);
  const auto loaded = load(options.file, std::move(package), options, inputs);
  std::optional<Loaded> other;
  if (!options.other.empty())
    other = load(options.other, open_package(options.other), options, inputs);
  if (!options.json) print_file(loaded);

  std::vector<std::string> rows, comparisons;
  int code = kOk;
  for (const auto& size : sizes) {
    inputs = make_inputs(specs, size, options);
    AotPackage::check_inputs(loaded.file, loaded.specs, inputs);
    if (other) AotPackage::check_inputs(other->file, other->specs, inputs);
    const auto row = measure_row(loaded, inputs, options);
    rows.push_back(row_json(row));
    if (!options.json) print_row(row, options);
    if (!other) continue;
    const auto comparison = compare_files(loaded, *other, inputs, options);
    comparisons.push_back(comparison_json(comparison));
    if (comparison.verdict == Verdict::kInvalid) code = kParityFailed;
    if (!options.json) {
      std::ostringstream text;
      text << comparison;
      print("compared", text.str());
    }
  }
  const auto peak = memory(options.device);
  if (!options.json) {
    print("peak memory", memory_text(peak, options.device));
    if (other) {
      print_file(*other);
      std::printf("  a speedup above 1: this second file is faster\n");
    }
    return code;
  }
  JsonObject json;
  json.raw("file", file_json(loaded)).raw("rows", json_array(rows));
  if (other) json.raw("other", file_json(*other)).raw("comparisons", json_array(comparisons));
  json.add("peak_resident_bytes", peak.resident_peak_bytes)
      .add("device_allocated_peak_bytes", peak.device_allocated_peak_bytes)
      .add("device_reserved_peak_bytes", peak.device_reserved_peak_bytes)
      .raw("environment", environment_json(environment(options.device)));
  std::printf("%s\n", json.str().c_str());
  return code;
}

int report(const std::string& text, int code) {
  std::cerr << "torchpace: " << text << '\n';
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Settings settings;
    std::string line;
    for (int i = 1; i < argc; ++i) line += std::string(argv[i]) + ' ';
    return run(Options(Settings::parse(line)));
  } catch (const DeviceUnavailable& error) {
    return report(error.what(), kSkipped);
  } catch (const SettingsError& error) {
    return report(error.what(), kBadInput);
  } catch (const ArchiveError& error) {
    return report(error.what(), kBadInput);
  } catch (const std::exception& error) {
    return report(one_line_of(error), kFailed);
  }
}
