// A dictionary of tensors as a file that both languages read: Python torch.save(dict), loadable
// with weights_only=True. Twin: python/torchpace/io/tensor_file.py. The key `torchpace.format`
// holds the version of the format, 1.
#pragma once

#include <caffe2/serialize/inline_container.h>
#include <fcntl.h>
#include <torch/csrc/jit/serialization/pickler.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "torchpace/io/tensor_dict.hpp"
#include "torchpace/io/zip_archive.hpp"

namespace torchpace {

inline constexpr int64_t kTensorFormat = 1;
inline constexpr const char* kTensorFormatKey = "torchpace.format";

/// Reads a dictionary of tensors, on the CPU. Throws ArchiveError on a file that cannot be read or
/// is damaged, and c10::Error in one line on one that is no dictionary of tensors.
inline TensorDict read_dictionary(const std::string& path) {
  check_archive(path);
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  torch::IValue value;
  try {
    value = torch::pickle_load(bytes);
  } catch (const std::exception&) {
    TORCH_CHECK(false, path, ": expected a dictionary of tensors written by torch.save, found ",
                "another archive; delete the file and write it again");
  }
  TORCH_CHECK(value.isGenericDict(), path,
              ": expected a plain dict of tensors (not an OrderedDict), found ", value.tagKind(),
              "; save dict(state_dict)");
  TensorDict tensors;
  for (const auto& entry : value.toGenericDict()) {
    TORCH_CHECK(entry.key().isString() && entry.value().isTensor(), path,
                ": expected only names and tensors in the dictionary, found ",
                entry.value().tagKind());
    tensors[entry.key().toStringRef()] = entry.value().toTensor();
  }
  return tensors;
}

/// As read_dictionary, for a file of torchpace's: c10::Error also on another format version.
inline TensorDict read_tensors(const std::string& path) {
  auto tensors = read_dictionary(path);
  const auto format = tensors.find(kTensorFormatKey);
  TORCH_CHECK(format != tensors.end(), path, ": expected the key ", kTensorFormatKey,
              ", found none; the file was not written by torchpace");
  const auto version = format->second.numel() == 1 ? format->second.item<int64_t>() : -1;
  TORCH_CHECK(version == kTensorFormat, path, ": expected format ", kTensorFormat, ", found ",
              version, "; write the file again with this version of torchpace");
  tensors.erase(format);
  return tensors;
}

namespace detail {

/// Waits until the disk has what was written to a file or a folder. False where that fails.
inline bool flush_to_disk(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const bool flushed = fsync(file) == 0;
  close(file);
  return flushed;
}

inline std::string folder_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace detail

/// Writes the tensors (moved to the CPU) as a plain dictionary under a temporary name and renames
/// it, so that no half-written file is ever seen; `durable`, also not after a loss of power. Throws
/// c10::Error when the file cannot be written.
inline void write_dictionary(const std::string& path, const TensorDict& tensors,
                             bool durable = false) {
  c10::impl::GenericDict dict(c10::StringType::get(), c10::TensorType::get());
  for (const auto& [name, tensor] : tensors) {
    auto own = tensor.detach().cpu().contiguous();
    // a view would drag its whole storage into the file
    if (own.storage().nbytes() != own.nbytes()) own = own.clone();
    dict.insert(name, own);
  }

  const std::string temporary = path + ".part";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  {
    caffe2::serialize::PyTorchStreamWriter writer([&file](const void* data, std::size_t size) {
      file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
      return size;
    });
    // Untagged: Python's weights_only loader refuses the type tags that torch::pickle_save writes.
    std::string pickle;
    int64_t next_id = 0;
    torch::jit::Pickler pickler(
        [&pickle](const char* data, std::size_t size) { pickle.append(data, size); }, nullptr,
        nullptr, nullptr, [&next_id](const at::Tensor&) { return std::to_string(next_id++); },
        false);
    pickler.protocol();
    pickler.pushIValue(dict);
    pickler.stop();
    writer.writeRecord("data.pkl", pickle.data(), pickle.size());
    int64_t id = 0;
    for (const auto& tensor : pickler.tensorData()) {
      writer.writeRecord("data/" + std::to_string(id++), tensor.storage().data(),
                         tensor.storage().nbytes());
    }
    writer.writeEndOfFile();
  }
  file.flush();
  bool written = file.good();
  file.close();
  if (durable) written = written && detail::flush_to_disk(temporary);
  if (!written || std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    TORCH_CHECK(false, path,
                ": could not be written; is the folder writable and the disk not full?");
  }
  if (durable) detail::flush_to_disk(detail::folder_of(path));
}

/// As write_dictionary, with the format's version.
inline void write_tensors(const std::string& path, TensorDict tensors, bool durable = false) {
  tensors[kTensorFormatKey] = torch::scalar_tensor(kTensorFormat, torch::kInt64);
  write_dictionary(path, tensors, durable);
}

}  // namespace torchpace
