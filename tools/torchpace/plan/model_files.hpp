// A model that comes as a file: TorchScript, an AOTInductor package, or a program of torch.export.
// What kind it is stands in its zip directory, so nothing of torch is needed to tell, and nothing
// in the file is run. Free of torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace torchpace::cli {

struct ModelFile {
  enum class Kind { torchscript, package, program };

  Kind kind = Kind::torchscript;
  std::string path;    // absolute
  std::string name;    // its stem, by which rows and cases call it
  std::string inputs;  // `1x3x224x224:float32;...` of a package that says it; empty: it does not
  std::string stamp;   // size, time of its last change, path: workers look whether it is the same

  bool is_program() const { return kind == Kind::program; }
};

/// Whether a --model means a file and not module:factory: it is one, or is named like one.
bool names_file(const std::string& text);

/// Reads the directory of a file and checks that its entries lie inside. Throws Error where there
/// is none, where it is damaged, and where it holds no model, with what to save instead.
ModelFile read_model_file(const std::string& path);

/// Those of several, each named so that no two are alike. Throws Error.
std::vector<ModelFile> read_model_files(const std::vector<std::string>& paths);

}  // namespace torchpace::cli
