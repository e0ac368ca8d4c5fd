// An AOTInductor package (.pt2): checked, read and only then loaded. What it was made for stands in
// its metadata and is compared with this process first, because the code inside checks nothing.
// Not through AOTIModelPackageLoader: up to 2.15 that one unpacks to a fixed folder, /tmp, leaves
// it there when it throws, and checks no CRC. It makes its runners from the registry used here.
// Loading a package runs the machine code in it.
#pragma once

#include <ATen/Version.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner.h>
#include <torch/torch.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(TORCHPACE_WITH_CUDA_HEADERS) && __has_include(<cusparse.h>) && \
    __has_include(<cublasLt.h>) && __has_include(<cusolverDn.h>)
#define TORCHPACE_HAS_DEVICE_PROPERTIES
#include <ATen/cuda/CUDAContextLight.h>
#endif

#include "torchpace/detail/error.hpp"
#include "torchpace/detail/operator_libraries.hpp"
#include "torchpace/io/tensor_spec.hpp"
#include "torchpace/io/zip_archive.hpp"

namespace torchpace {

using PackageMetadata = std::map<std::string, std::string>;

namespace detail {

/// {"name": "text", ...}, which is all that a package's metadata may be. `at` throws on the end.
class FlatJson {
 public:
  explicit FlatJson(std::string_view text) : text_(text) {}

  /// Throws std::out_of_range or std::invalid_argument on anything else.
  PackageMetadata parse() {
    PackageMetadata result;
    expect('{');
    if (next() == '}') return result;
    for (;;) {
      const auto key = string();
      expect(':');
      result[key] = string();
      if (next() == '}') return result;
      expect(',');
    }
  }

 private:
  char next() {
    while (std::isspace(static_cast<unsigned char>(text_.at(at_))) != 0) ++at_;
    return text_[at_];
  }
  void expect(char c) {
    if (next() != c) throw std::invalid_argument("json");
    ++at_;
  }
  std::string string() {
    expect('"');
    std::string result;
    for (; text_.at(at_) != '"'; ++at_) {
      if (text_[at_] != '\\') {
        result += text_[at_];
        continue;
      }
      const char escape = text_.at(++at_);
      constexpr std::string_view kLetters = "nrtbf", kMeanings = "\n\r\t\b\f";
      if (const auto known = kLetters.find(escape); known != std::string_view::npos) {
        result += kMeanings[known];
      } else if (escape == 'u') {
        at_ += 4;
        text_.at(at_);
        result += '?';  // none of the values that are read has such a letter
      } else {
        result += escape;
      }
    }
    ++at_;
    return result;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

/// A folder in TMPDIR (else /tmp) that goes with the object. No std::filesystem: LibTorch's wheels
/// export an older one of their own.
class ScratchFolder {
 public:
  ScratchFolder() {
    const char* parent = std::getenv("TMPDIR");
    path_ =
        std::string(parent == nullptr || *parent == '\0' ? "/tmp" : parent) + "/torchpace-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr)
      throw ArchiveError(path_ + ": a temporary folder cannot be made; set TMPDIR");
  }
  ~ScratchFolder() {
    nftw(
        path_.c_str(),
        [](const char* path, const struct stat*, int, FTW*) { return std::remove(path); }, 8,
        FTW_DEPTH | FTW_PHYS);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::string& path() const { return path_; }

  /// Writes a file whose name may hold folders. Throws ArchiveError where it cannot.
  void write(const std::string& name, std::string_view bytes) const {
    for (auto slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1))
      mkdir((path_ + '/' + name.substr(0, slash)).c_str(), 0700);
    const auto path = path_ + '/' + name;
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    bool good = file >= 0;
    while (good && !bytes.empty()) {
      const auto count = ::write(file, bytes.data(), bytes.size());
      good = count > 0;
      if (good) bytes.remove_prefix(static_cast<std::size_t>(count));
    }
    if (file >= 0) close(file);
    if (!good) throw ArchiveError(path + ": cannot be written; is there space in TMPDIR?");
  }

 private:
  std::string path_;
};

/// Of "AVX512 AVX512_VNNI", the words that /proc/cpuinfo has not among its flags; none where there
/// are no such flags to read.
inline std::string missing_instructions(const std::string& wanted) {
  std::ifstream file("/proc/cpuinfo");
  std::string flags;
  while (std::getline(file, flags) && !flags.starts_with("flags")) {
  }
  if (!flags.starts_with("flags")) return "";
  std::string missing;
  std::istringstream words(wanted);
  for (std::string word; words >> word;) {
    std::string flag = word;
    for (char& c : flag) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const bool general = flag == "default" || flag == "no" || flag == "avx" || flag == "amx";
    if (!general && flags.find(' ' + flag) == std::string::npos)
      missing += (missing.empty() ? "" : " ") + word;
  }
  return missing;
}

/// "9.0" as "90", the way packages spell it; empty where it cannot be told.
inline std::string compute_capability([[maybe_unused]] const torch::Device& device) {
#if defined(TORCHPACE_HAS_DEVICE_PROPERTIES)
  const auto* properties = at::cuda::getDeviceProperties(device.index());
  return std::to_string(properties->major) + std::to_string(properties->minor);
#else
  return "";
#endif
}

}  // namespace detail

/// A loaded package, ready to run. Runs concurrently in as many threads as it has runners.
class AotRunner {
 public:
  AotRunner(std::unique_ptr<detail::ScratchFolder> folder,
            std::unique_ptr<torch::inductor::AOTIModelContainerRunner> runner)
      : folder_(std::move(folder)), runner_(std::move(runner)) {}

  /// On CUDA, enqueues to the current stream. Checks nothing: AotPackage::check_inputs does.
  std::vector<torch::Tensor> run(const std::vector<torch::Tensor>& inputs) const {
    return runner_->run(inputs);
  }

 private:
  std::unique_ptr<detail::ScratchFolder> folder_;  // outlives the runner, which reads kernels in it
  std::unique_ptr<torch::inductor::AOTIModelContainerRunner> runner_;
};

class AotPackage {
 public:
  /// Checks the archive (Archive) and reads the metadata of one of its models, by default the one
  /// named model, or the only one; loads nothing. Throws ArchiveError on a damaged file or one that
  /// is no AOTInductor package, or has no such model.
  explicit AotPackage(const std::string& path, const std::string& model = "") : archive_(path) {
    const auto* library = find_library(choose_model(model));
    folder_ = library->name.substr(0, library->name.rfind('/') + 1);
    library_ = library->name.substr(folder_.size());
    const auto* entry =
        archive_.find(library->name.substr(0, library->name.size() - 3) + "_metadata.json");
    if (entry == nullptr)
      archive_.fail("expected the metadata of the package, found none; " + kRemake);
    try {
      metadata_ = detail::FlatJson(archive_.bytes(*entry)).parse();
    } catch (const std::logic_error&) {
      archive_.fail("expected metadata of names and texts, found something else; " + kRemake);
    }
    if (get("AOTI_DEVICE_KEY").empty())
      archive_.fail("expected the key AOTI_DEVICE_KEY in the metadata, found none; " + kRemake);
  }

  /// The names of the models in a package.
  static std::set<std::string> models(const Archive& archive) {
    std::set<std::string> names;
    for (const auto& entry : archive.entries()) names.insert(model_of(entry.name));
    names.erase("");
    return names;
  }

  const std::string& path() const { return archive_.path(); }
  const PackageMetadata& metadata() const { return metadata_; }
  std::string get(const std::string& key) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? "" : found->second;
  }
  /// The bytes of the entry whose path ends with `suffix`, valid as long as this package. Throws
  /// ArchiveError where there is none.
  std::string_view bytes(const std::string& suffix) const {
    const auto* entry = archive_.find(suffix);
    if (entry == nullptr) archive_.fail("expected " + suffix + ", found none; " + kRemake);
    return archive_.bytes(*entry);
  }
  /// Whether torchpace wrote it, so that it says for which inputs, threads and torch.
  bool made_by_torchpace() const { return metadata_.contains("torchpace.format"); }
  std::vector<TensorSpec> input_specs() const {
    return parse_tensor_specs(get("torchpace.inputs"));
  }

  /// Throws ArchiveError where the package was made for another torch, device, GPU, instruction set
  /// or number of threads (0: any). What the package does not say is taken on trust.
  void check_environment(const torch::Device& device, int threads) const {
    const auto torch_version = without_build(get("torchpace.torch"));
    check("torch", TORCH_VERSION, torch_version, "a package runs with the torch that made it");
    check("device", device.is_cpu() ? "cpu" : "cuda", get("AOTI_DEVICE_KEY"),
          "make it for this device, or choose the package's with --device");
    if (device.is_cuda()) {
      check("compute capability", detail::compute_capability(device),
            get("AOTI_COMPUTE_CAPABILITY"), "make it on this GPU");
      return;
    }
    const auto wanted = get("torchpace.isa") + ' ' + get("AOTI_CPU_ISA");
    if (const auto missing = detail::missing_instructions(wanted); !missing.empty()) {
      archive_.fail("expected instructions of this CPU (" + at::get_cpu_capability() +
                    "), found code that needs " + missing + "; make it on this machine");
    }
    if (threads > 0)
      check("threads", std::to_string(threads), get("torchpace.threads"),
            "the number is compiled in: make it for this many, or take --threads as the package");
  }

  /// Throws ArchiveError where the inputs are not what the package was made for. A package that is
  /// not torchpace's own does not say, and its code reads past the end of a tensor that is too
  /// small.
  void check_inputs(const std::vector<torch::Tensor>& inputs) const {
    check_inputs(path(), input_specs(), inputs);
  }
  /// The same of a package that is loaded, and whose archive is not kept open.
  static void check_inputs(const std::string& path, const std::vector<TensorSpec>& specs,
                           const std::vector<torch::Tensor>& inputs) {
    if (specs.empty()) return;
    bool fits = specs.size() == inputs.size();
    for (std::size_t i = 0; fits && i < specs.size(); ++i) fits = specs[i].admits(inputs[i]);
    if (fits) return;
    throw ArchiveError(path + ": expected inputs " + text_of(specs) + ", found " + text_of(inputs) +
                       "; make the package for these, or with a dynamic batch");
  }

  /// Unpacks into a temporary folder, loads the code and removes the folder: at once on the CPU,
  /// with the runner on CUDA, whose kernels are read when they are first needed. With one runner
  /// `run` may not be called by two threads at a time. Throws ArchiveError where the code does not
  /// load.
  std::unique_ptr<AotRunner> load(const torch::Device& device, std::size_t runners = 1) const {
    auto folder = std::make_unique<detail::ScratchFolder>();
    std::string blob;
    for (const auto& entry : archive_.entries()) {
      const auto name = entry.name.starts_with(folder_) ? entry.name.substr(folder_.size())
                        : entry.name.find("/data/constants/") != std::string::npos
                            ? entry.name.substr(entry.name.rfind('/') + 1)
                            : "";
      if (name.empty() || name.ends_with('/') || name.ends_with(".cpp")) continue;
      folder->write(name, archive_.bytes(entry));
      if (name.ends_with(".blob")) blob = folder->path() + '/' + name;
    }
    const auto& registry = torch::inductor::getAOTIModelRunnerRegistry();
    const auto make = registry.find(get("AOTI_DEVICE_KEY"));
    if (make == registry.end()) {
      archive_.fail("expected a package for a device of this LibTorch, found one for " +
                    get("AOTI_DEVICE_KEY"));
    }
    try {
      auto runner = make->second(folder->path() + '/' + library_, runners, device.str(),
                                 folder->path(), /*run_single_threaded=*/runners == 1);
      if (!blob.empty()) runner->update_constant_buffer_from_blob(blob);
      if (device.is_cpu()) folder.reset();
      return std::make_unique<AotRunner>(std::move(folder), std::move(runner));
    } catch (const std::exception& error) {
      const auto reason = one_line_of(error);
      archive_.fail("the package does not load: " + reason + "; " + load_advice(reason));
    }
  }

 private:
  inline static const std::string kRemake =
      "make the package again (torch._inductor.aoti_compile_and_package)";

  /// The name of the model that a library belongs to; empty: the entry is no such library.
  static std::string model_of(const std::string& entry) {
    constexpr std::string_view kFolder = "data/aotinductor/";
    const auto begin = entry.find(kFolder);
    if (begin == std::string::npos || !entry.ends_with(".so")) return "";
    const auto name = entry.substr(begin + kFolder.size());
    return name.substr(0, name.find('/'));
  }

  std::string choose_model(const std::string& named) const {
    const auto models = AotPackage::models(archive_);
    if (models.empty()) {
      archive_.fail("expected an AOTInductor package with a shared library, found " +
                    std::string(what_it_is()));
    }
    const bool only = named.empty() && models.size() == 1;
    const auto wanted = only ? *models.begin() : named.empty() ? "model" : named;
    if (models.contains(wanted)) return wanted;
    std::string all;
    for (const auto& each : models) all += (all.empty() ? "" : ", ") + each;
    archive_.fail("expected a package with the model '" + wanted + "', found one of " + all +
                  "; choose one with --model-name");
  }

  const ArchiveEntry* find_library(const std::string& model) const {
    const ArchiveEntry* found = nullptr;
    for (const auto& entry : archive_.entries()) {
      if (model_of(entry.name) != model) continue;
      if (found != nullptr) archive_.fail("expected one shared library, found two; " + kRemake);
      found = &entry;
    }
    return found;
  }

  const char* what_it_is() const {
    if (archive_.has_folder("aotinductor"))
      return "a package without one; make it again (torch._inductor.aoti_compile_and_package)";
    if (archive_.has_folder("models"))
      return "a program of torch.export.save, which is not compiled; torchpace compare --model "
             "FILE.pt2 makes and times what can be made from it";
    if (archive_.has_folder("code")) return "a TorchScript file; name it .pt";
    return "another archive; make one with torch._inductor.aoti_compile_and_package";
  }

  /// Why the code does not load, and what to do.
  std::string load_advice(const std::string& reason) const {
    if (const auto operators = operators_advice(reason); !operators.empty()) return operators;
    if (reason.find("failed to map segment") == std::string::npos) return kRemake;
    const char* folder = std::getenv("TMPDIR");
    return "its code is unpacked to " +
           (folder == nullptr ? std::string("/tmp") : "TMPDIR, " + std::string(folder)) +
           ", where nothing may be executed (a noexec mount): set TMPDIR to another folder";
  }

  static std::string without_build(const std::string& version) {
    return version.substr(0, version.find('+'));
  }

  void check(const char* what, const std::string& expected, const std::string& found,
             const char* advice) const {
    if (found.empty() || expected.empty() || found == expected) return;
    archive_.fail("expected a package for " + std::string(what) + ' ' + expected +
                  ", found one for " + found + "; " + advice);
  }

  Archive archive_;
  std::string folder_;   // of the model in the archive, with a slash at its end
  std::string library_;  // relative to it
  PackageMetadata metadata_;
};

}  // namespace torchpace
