// The rows of a case that is made of files: one for each file, each runtime that loads it and each
// mode of TorchScript, `cpp-torchscript:FILE@freeze`.
#pragma once

#include <string>
#include <vector>

#include "controller/worker_client.hpp"
#include "plan/model_files.hpp"

namespace torchpace::cli {

/// The runtimes that files need: what `patterns` of --runtimes mean without the parts that only
/// rows of files have; those that load the files where there are none.
std::vector<std::string> runtimes_of(const std::vector<ModelFile>& files,
                                     const std::vector<std::string>& patterns);

/// Rows of a program first, then in the order of the files; of each mode Python's before that of
/// C++. Of several files the rows carry the name. The mode plain has none: it is what loading alone
/// gives. `patterns` are those of --runtimes, none: all. Throws Error where no row is left.
std::vector<WorkerSpec> file_rows(const std::vector<ModelFile>& files,
                                  std::vector<WorkerSpec> runtimes,
                                  const std::vector<std::string>& modes,
                                  const std::vector<std::string>& patterns);

/// The row that --reference names, itself or by its file. Without it py-eager, where a program is
/// among the files, else the first one. Throws Error.
std::string file_reference(const std::string& option, const std::vector<ModelFile>& files,
                           const std::vector<WorkerSpec>& rows);

}  // namespace torchpace::cli
