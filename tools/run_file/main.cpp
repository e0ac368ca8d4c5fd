// `torchpace run` in a process of its own: times a TorchScript file (.pt) or an AOTInductor package
// (.pt2), alone or against another. Loading a package runs the code in it, so that this program,
// and not the one that the user called, is what a bad file may bring down.
// Called with key=value words, as tools/torchpace/commands/run.cpp writes them. Exit codes:
// docs/design.md.
#include <torch/torch.h>
#include <torch/version.h>

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
#include <torchpace/detail/operator_libraries.hpp>
#include <torchpace/detail/other_load.hpp>
#include <torchpace/detail/standard_output.hpp>
#include <torchpace/environment.hpp>
#include <torchpace/outputs.hpp>
#include <torchpace/runtimes/aot.hpp>
#include <torchpace/runtimes/torchscript.hpp>
#include <utility>
#include <vector>

namespace {

using namespace torchpace;

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
        torchscript(s.one_of("torchscript", {"freeze", "plain", "optimize"})),
        model_name(s.get("model_name", "")),
        json(s.get("json", false)) {
    load_libraries(s);
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
  std::string torchscript, model_name;
  bool json;
};

/// The package at `path`, checked once and not kept longer than loading it takes; none where the
/// file is a TorchScript one.
std::unique_ptr<const AotPackage> open_package(const std::string& path, const std::string& model) {
  return path.ends_with(".pt2") ? std::make_unique<const AotPackage>(path, model) : nullptr;
}

/// A file that has run once.
struct Loaded {
  std::string file, kind;
  CompiledForward forward;
  double load_s = 0, first_s = 0;
};

/// Throws SettingsError where there is no memory for them.
torch::Tensor draw(const TensorSpec& spec, const Options& options) try {
  const auto dtype = at::isComplexType(spec.dtype) ? torch::kComplexFloat : torch::kFloat32;
  const bool exact = at::isIntegralType(spec.dtype, /*includeBool=*/true);
  const auto drawn = exact ? torch::randint(options.below, spec.sizes, torch::kInt64)
                           : torch::randn(spec.sizes, dtype);
  return drawn.to(options.device, spec.dtype).contiguous(spec.memory_format());
} catch (const c10::Error& error) {
  throw SettingsError("--input " + spec.text() + ": cannot be made: " + one_line_of(error));
}

Tensors make_inputs(const std::vector<TensorSpec>& specs, std::optional<int64_t> size,
                    const Options& options) {
  torch::manual_seed(0);
  Tensors inputs;
  for (auto spec : specs) {
    auto& sizes = spec.sizes;
    if (size && !sizes.empty() && (sizes[0] == kAnySize || !options.inputs.empty()))
      sizes[0] = *size;
    for (auto& each : sizes) each = each == kAnySize ? 1 : each;
    inputs.push_back(draw(spec, options));
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

constexpr const char* kOtherInputs = "give others with --input or --dynamic";

/// Whether the package says that it takes a first size of 1 among others: AOTInductor's own checks
/// refuse that of every dynamic size.
bool admits_one(const AotPackage& package, const Tensors& inputs) {
  const auto specs = package.input_specs();
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const auto& sizes = specs[i].sizes;
    if (!sizes.empty() && sizes[0] == kAnySize && inputs[i].size(0) == 1) return true;
  }
  return false;
}

/// Throws ArchiveError where the package is for another machine or refuses some of the inputs, by
/// what it says of them and by a run of each with AOTInductor's own checks: its code has none.
void check_package(const AotPackage& package, const std::vector<TensorSpec>& specs,
                   std::vector<Tensors> all_inputs, const Options& options) {
  package.check_environment(options.device, options.threads);
  for (auto& inputs : all_inputs) {
    package.check_inputs(inputs);
    if (admits_one(package, inputs)) inputs = make_inputs(specs, 2, options);
  }
  const auto threads = package.get("torchpace.threads");
  if (options.device.is_cpu() && !threads.empty())
    at::set_num_threads(Settings{{"threads", threads}}.require<int>("threads"));
  check_by_running(package, options.device, all_inputs, kOtherInputs);
}

Loaded load_package(const AotPackage& package, const Options& options) {
  Loaded loaded;
  const auto version = package.get("torchpace.torch");
  loaded.kind = "AOTInductor package" + (version.empty() ? "" : " of torch " + version);
  loaded.load_s = time_once_s(
      [&] {
        loaded.forward =
            aot_forward(package.load(options.device, static_cast<std::size_t>(options.streams)));
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

/// What `action` gives. Throws ArchiveError where it fails on inputs of these specs.
template <class Action>
auto tried(const Loaded& loaded, const Tensors& inputs, const Action& action) {
  try {
    const c10::InferenceMode inference;
    return action();
  } catch (const std::exception& error) {
    const auto reason = one_line_of(error);
    throw ArchiveError(loaded.file + ": the file refuses these inputs, " + text_of(inputs) + ": " +
                       reason + "; " + inputs_advice(reason, kOtherInputs));
  }
}

/// Throws ArchiveError where the file changes its inputs or buffers, or returns no tensor:
/// `outputs` are those of a call of copies that `watch` has seen.
void check_call(const Loaded& loaded, const Tensors& outputs, const ChangeWatch& watch,
                const StateWatch& state) {
  try {
    expect_unchanged(watch);
    expect_unchanged(state);
  } catch (const c10::Error& error) {
    throw ArchiveError(loaded.file + ": " + one_line_of(error));
  }
  if (outputs.empty()) {
    throw ArchiveError(loaded.file +
                       ": expected a forward that returns tensors, found one that returns none; "
                       "return a tensor in place of a number or a text");
  }
}

/// The outputs for each of the inputs, from copies of them. Throws ArchiveError where the file
/// refuses some, or cannot be timed on the same inputs again and again.
std::vector<Tensors> outputs_of(const Loaded& loaded, const std::vector<Tensors>& all_inputs) {
  const StateWatch state(loaded.forward.state);
  std::vector<Tensors> all;
  for (const auto& inputs : all_inputs) {
    const auto copies = copies_of(inputs);
    const ChangeWatch watch(copies, /*by_value=*/true);
    all.push_back(tried(loaded, inputs, [&] {
      Tensors outputs;
      for (const auto& output : loaded.forward.outputs(copies)) outputs.push_back(plain(output));
      return outputs;
    }));
    check_call(loaded, all.back(), watch, state);
  }
  return all;
}

/// Loads `path`, whose package this takes, and runs it once.
Loaded load(const std::string& path, std::unique_ptr<const AotPackage> package,
            const Tensors& inputs, const Options& options) {
  auto loaded = package ? load_package(*package, options) : load_script(path, options);
  loaded.file = path;
  const auto copies = copies_of(inputs);
  loaded.first_s = tried(loaded, inputs, [&] {
    return time_once_s([&] { loaded.forward.call(copies); }, options.device);
  });
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
        warm_up_steps([&] { loaded.forward.call(inputs); }, options.device);
        ++ready;
        while (!begin) std::this_thread::yield();
        while (!stop) {
          loaded.forward.call(inputs);
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
  const auto step = [&] { loaded.forward.call(inputs); };
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
  print("latency", format_ns(interval.median) + ' ' + format_bounds_ns(interval) + ", p90 " +
                       percentile_text(row.latency, 0.9) + ", p99 " +
                       percentile_text(row.latency, 0.99));
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
      .add("note", c.note)
      .str();
}

/// The other file, and how its outputs compare with the first one's for each of the inputs.
struct Other {
  Loaded loaded;
  std::vector<Comparison> comparisons;
};

Other load_other(std::unique_ptr<const AotPackage> package, const std::vector<Tensors>& expected,
                 const std::vector<Tensors>& all_inputs, const Options& options) {
  Other other{load(options.other, std::move(package), all_inputs[0], options), {}};
  const auto found = outputs_of(other.loaded, all_inputs);
  for (std::size_t i = 0; i < found.size(); ++i)
    other.comparisons.push_back(compare_outputs(expected[i], found[i]));
  return other;
}

/// In interleaved rounds, where the outputs agree; the reference is the file named first.
void compare_times(const Loaded& reference, const Loaded& candidate, const Tensors& inputs,
                   const Options& options, Comparison& result) {
  if (result.verdict == Verdict::kInvalid) return;
  const c10::InferenceMode inference;
  compare_steps([&] { reference.forward.call(inputs); }, [&] { candidate.forward.call(inputs); },
                options.device, {.max_seconds = options.seconds}, result);
}

/// A model that is named is the other file's too, where that one has several.
std::string other_model(const Options& options) {
  if (options.model_name.empty() || !options.other.ends_with(".pt2")) return "";
  const auto models = AotPackage::models(Archive(options.other));
  return models.size() > 1 ? options.model_name : "";
}

int run(const Options& options) {
  if (options.threads > 0) at::set_num_threads(options.threads);
  auto package = open_package(options.file, options.model_name);
  std::unique_ptr<const AotPackage> other_package;
  if (!options.other.empty()) other_package = open_package(options.other, other_model(options));
  const auto specs = choose_specs(package.get(), options);
  std::vector<std::optional<int64_t>> sizes(options.sizes.begin(), options.sizes.end());
  if (sizes.empty()) sizes.emplace_back();

  std::vector<Tensors> all_inputs;
  for (const auto& size : sizes) all_inputs.push_back(make_inputs(specs, size, options));
  if (package) check_package(*package, specs, all_inputs, options);
  if (other_package) check_package(*other_package, specs, all_inputs, options);
  const auto loaded = load(options.file, std::move(package), all_inputs[0], options);
  const auto outputs = outputs_of(loaded, all_inputs);
  std::optional<Other> other;
  if (!options.other.empty())
    other = load_other(std::move(other_package), outputs, all_inputs, options);
  if (!options.json) print_file(loaded);

  std::vector<std::string> rows, comparisons;
  int code = kOk;
  const torchpace::detail::OtherLoad others;
  for (std::size_t i = 0; i < all_inputs.size(); ++i) {
    const auto row = measure_row(loaded, all_inputs[i], options);
    rows.push_back(row_json(row));
    if (!options.json) print_row(row, options);
    if (!other) continue;
    auto& comparison = other->comparisons[i];
    compare_times(loaded, other->loaded, all_inputs[i], options, comparison);
    comparisons.push_back(comparison_json(comparison));
    if (comparison.verdict == Verdict::kInvalid) code = kParityFailed;
    if (!options.json) {
      std::ostringstream text;
      text << comparison;
      print("compared", text.str());
    }
  }
  if (const auto warning = others.warning(); !warning.empty())
    std::cerr << "torchpace: " << warning << '\n';
  const auto peak = memory(options.device);
  if (!options.json) {
    print("peak memory", memory_text(peak, options.device));
    if (other) {
      print_file(other->loaded);
      if (code == kOk) std::printf("  a speedup above 1: this second file is faster\n");
    }
    return code;
  }
  JsonObject json;
  json.raw("file", file_json(loaded)).raw("rows", json_array(rows));
  if (other)
    json.raw("other", file_json(other->loaded)).raw("comparisons", json_array(comparisons));
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
    const int code = run(Options(Settings::parse(line)));
    return output_is_lost() ? report(kLostOutput, kFailed) : code;
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
