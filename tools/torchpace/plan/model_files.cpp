#include "plan/model_files.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "results/results.hpp"
#include "support/error.hpp"
#include "support/files.hpp"
#include "torchpace/detail/crc32.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kInstead =
    "save torch.jit.script(module).save(FILE.pt), a package of "
    "torch._inductor.aoti_compile_and_package or torch.export.save(program, FILE.pt2), or name the "
    "module as module:factory";

/// The entries of a zip archive, by its central directory. The layout is that of PKWARE APPNOTE
/// 6.3.10; torchpace/io/zip_archive.hpp checks more, in the workers, and needs LibTorch.
class Directory {
 public:
  struct Entry {
    std::string name;
    uint64_t bytes = 0;
    uint64_t offset = 0;  // of the local header
    uint32_t crc32 = 0;
    bool stored = false;
  };

  /// Throws Error where the file cannot be read, is no archive or is not whole.
  explicit Directory(const std::string& path) : path_(path) {
    std::error_code error;
    if (fs::is_directory(path, error)) fail("expected a file, found a folder");
    file_.open(path, std::ios::binary);
    if (!file_) fail(fmt::format("expected a file, found none: {}", std::strerror(errno)));
    file_.seekg(0, std::ios::end);
    size_ = static_cast<uint64_t>(file_.tellg());
    if (size_ == 0) fail("expected a model, found an empty file");
    read_entries();
  }

  const std::vector<Entry>& entries() const { return entries_; }

  const Entry* find(const std::string& suffix) const {
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const Entry& e) { return e.name.ends_with(suffix); });
    return found == entries_.end() ? nullptr : &*found;
  }
  /// In the archive's own folder: deeper ones have any name, as code of torchvision.models.
  bool has_folder(const std::string& name) const {
    return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& e) {
      const auto slash = e.name.find('/');
      return slash != std::string::npos &&
             e.name.compare(slash + 1, name.size() + 1, name + '/') == 0;
    });
  }

  /// The bytes of an entry; empty where it is deflated.
  std::string bytes(const Entry& entry) {
    if (!entry.stored) return "";
    const auto header = at(entry.offset, 30);
    if (!header.starts_with("PK\3\4")) fail_damaged();
    const auto skipped = 30 + number<uint16_t>(header, 26) + number<uint16_t>(header, 28);
    return at(entry.offset + skipped, entry.bytes);
  }

  /// Throws Error where the bytes of a stored entry are not those that were written.
  void check_contents() {
    for (const auto& entry : entries_) {
      if (entry.stored && torchpace::crc32(bytes(entry)) != entry.crc32) {
        fail(
            fmt::format("expected the bytes of its checksum in {}, found others: the file is "
                        "damaged; save it again",
                        entry.name));
      }
    }
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(fmt::format("--model {}: {}", path_, what));
  }

 private:
  static constexpr uint64_t kEnd = 22, kLocator = 20, kEnd64 = 56, kEntry = 46;

  [[noreturn]] void fail_damaged() const {
    fail("expected a whole zip archive, found one that is truncated or damaged; save it again");
  }

  std::string at(uint64_t offset, uint64_t count) {
    if (offset > size_ || count > size_ - offset) fail_damaged();
    std::string text(count, '\0');
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(offset));
    if (!file_.read(text.data(), static_cast<std::streamsize>(count))) fail_damaged();
    return text;
  }

  template <class T>
  T number(const std::string& text, uint64_t offset) const {
    if (offset + sizeof(T) > text.size()) fail_damaged();
    T value{};
    std::memcpy(&value, text.data() + offset, sizeof value);
    return value;
  }

  /// What stands in place of an archive.
  [[noreturn]] void fail_foreign() {
    const auto begin = at(0, std::min<uint64_t>(size_, 4));
    if (begin.starts_with("PK")) fail_damaged();
    if (begin.starts_with("\x80\x02")) {
      fail(
          fmt::format("expected a zip archive, found a pickle of torch.save before 1.6, which "
                      "holds no program; {}",
                      kInstead));
    }
    fail(
        fmt::format("expected a zip archive as torch writes it, found {} bytes of something else; "
                    "{}",
                    size_, kInstead));
  }

  void read_entries() {
    const auto tail_bytes = std::min<uint64_t>(size_, kEnd + 0xFFFF);
    const auto tail = at(size_ - tail_bytes, tail_bytes);
    const auto place = tail.rfind(std::string("PK\5\6"));
    if (place == std::string::npos || tail.size() - place < kEnd) fail_foreign();
    const uint64_t end = size_ - tail_bytes + place;
    uint64_t count = number<uint16_t>(tail, place + 10), bytes = number<uint32_t>(tail, place + 12),
             offset = number<uint32_t>(tail, place + 16);
    if (end >= kLocator) {
      const auto locator = at(end - kLocator, kLocator);
      if (locator.starts_with("PK\6\7")) {
        const auto wide = at(number<uint64_t>(locator, 8), kEnd64);
        count = number<uint64_t>(wide, 32);
        bytes = number<uint64_t>(wide, 40);
        offset = number<uint64_t>(wide, 48);
      }
    }
    const auto directory = at(offset, bytes);
    uint64_t next = 0;
    for (uint64_t i = 0; i < count; ++i) next = read_entry(directory, next);
  }

  uint64_t read_entry(const std::string& text, uint64_t at_) {
    if (text.compare(at_, 4, "PK\1\2") != 0) fail_damaged();
    const auto name = number<uint16_t>(text, at_ + 28), extra = number<uint16_t>(text, at_ + 30),
               comment = number<uint16_t>(text, at_ + 32);
    if (at_ + kEntry + name + extra > text.size()) fail_damaged();
    Entry entry;
    entry.stored = number<uint16_t>(text, at_ + 10) == 0;
    entry.crc32 = number<uint32_t>(text, at_ + 16);
    entry.bytes = number<uint32_t>(text, at_ + 24);
    entry.offset = number<uint32_t>(text, at_ + 42);
    entry.name = text.substr(at_ + kEntry, name);
    uint64_t packed = number<uint32_t>(text, at_ + 20);
    widen(entry, packed, text.substr(at_ + kEntry + name, extra));
    if (entry.offset > size_ || packed > size_ - entry.offset) fail_damaged();
    entries_.push_back(std::move(entry));
    return at_ + kEntry + name + extra + comment;
  }

  /// Zip64: what does not fit 32 bits stands in the extra field 1, in this order.
  void widen(Entry& entry, uint64_t& packed, const std::string& extra) const {
    for (uint64_t field = 0; field + 4 <= extra.size();) {
      const auto id = number<uint16_t>(extra, field);
      uint64_t value = field + 4;
      if (id == 1) {
        for (auto* wide : {&entry.bytes, &packed, &entry.offset}) {
          if (*wide != 0xFFFFFFFF) continue;
          *wide = number<uint64_t>(extra, value);
          value += 8;
        }
      }
      field += 4 + number<uint16_t>(extra, field + 2);
    }
  }

  std::string path_;
  std::ifstream file_;
  uint64_t size_ = 0;
  std::vector<Entry> entries_;
};

/// The models that a package holds: folders of data/aotinductor.
std::set<std::string> packaged_models(const Directory& directory) {
  static const std::string kFolder = "/data/aotinductor/";
  std::set<std::string> names;
  for (const auto& entry : directory.entries()) {
    const auto begin = entry.name.find(kFolder);
    if (begin == std::string::npos) continue;
    const auto rest = entry.name.substr(begin + kFolder.size());
    if (const auto slash = rest.find('/'); slash != std::string::npos)
      names.insert(rest.substr(0, slash));
  }
  return names;
}

/// What a package says of itself. Those of others have few keys.
Json metadata_of(Directory& directory) {
  const auto* entry = directory.find("_metadata.json");
  auto json = Json::parse(entry == nullptr ? "" : directory.bytes(*entry), nullptr, false);
  return json.is_object() ? json : Json::object();
}

std::string text_of(const Json& metadata, const char* key) {
  const auto found = metadata.find(key);
  return found != metadata.end() && found->is_string() ? found->get<std::string>() : "";
}

void check_package(Directory& directory) {
  if (!text_of(metadata_of(directory), "torchpace.kind").empty()) {
    directory.fail(
        "found a package that trains (torchpace export-training); CompiledTraining runs it, and "
        "compare takes models for inference");
  }
  const auto names = packaged_models(directory);
  if (names.contains("model")) return;
  directory.fail(
      fmt::format("expected a package whose model is named 'model', found {}; package "
                  "the one that is meant alone",
                  fmt::join(names, ", ")));
}

/// What a file of torch.save holds, told by the first letters of its pickle.
std::string saved_thing(Directory& directory) {
  const auto* entry = directory.find("/data.pkl");
  const auto pickle = entry == nullptr ? "" : directory.bytes(*entry);
  if (pickle.size() < 4 || pickle[2] != 'c' || pickle.compare(2, 12, "ccollections") == 0)
    return "a dictionary of torch.save (weights), which holds no program";
  const auto name = pickle.substr(3, pickle.find('\n', pickle.find('\n', 3) + 1) - 3);
  auto text = name.substr(0, 100);
  std::replace(text.begin(), text.end(), '\n', '.');
  return fmt::format("a pickled {} of torch.save, which only Python with its source can run", text);
}

ModelFile::Kind kind_of(Directory& directory) {
  if (directory.has_folder("data/aotinductor")) {
    check_package(directory);
    return ModelFile::Kind::package;
  }
  if (directory.has_folder("code") && directory.find("/constants.pkl") != nullptr)
    return ModelFile::Kind::torchscript;
  const auto* program = directory.find("/archive_format");
  if (program != nullptr && directory.has_folder("models")) return ModelFile::Kind::program;
  if (directory.find("serialized_exported_program.json") != nullptr) {
    directory.fail(
        "found a program that torch.export.save wrote before 2.8; load it with that "
        "torch and save it with this one");
  }
  if (directory.find("/data.pkl") != nullptr)
    directory.fail(fmt::format("expected a model that can run, found {}; {}",
                               saved_thing(directory), kInstead));
  directory.fail(fmt::format("found an archive without a model; {}", kInstead));
}

std::string stamp_of(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return "";
  return fmt::format("{}-{}.{:09} {}", status.st_size, status.st_mtim.tv_sec,
                     status.st_mtim.tv_nsec, path);
}

/// Letters that mean something in a case's or a row's name are no part of it.
std::string plain(std::string text) {
  for (char& c : text) {
    const bool keeps =
        std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.';
    if (!keeps) c = '-';
  }
  return text;
}

}  // namespace

bool names_file(const std::string& text) {
  if (is_file(text)) return true;
  if (text.find(':') != std::string::npos) return false;
  return text.ends_with(".pt") || text.ends_with(".pt2") || text.ends_with(".pth");
}

ModelFile read_model_file(const std::string& path) {
  Directory directory(path);
  ModelFile file;
  file.kind = kind_of(directory);
  directory.check_contents();
  if (file.kind == ModelFile::Kind::package)
    file.inputs = text_of(metadata_of(directory), "torchpace.inputs");
  file.path = fs::absolute(path).lexically_normal();
  file.name = plain(fs::path(path).stem());
  file.stamp = stamp_of(file.path);
  return file;
}

std::vector<ModelFile> read_model_files(const std::vector<std::string>& paths) {
  std::vector<ModelFile> files;
  for (const auto& path : paths) files.push_back(read_model_file(path));
  const auto same_name = [&](const std::string& name) {
    return std::count_if(files.begin(), files.end(),
                         [&](const ModelFile& file) { return file.name == name; }) > 1;
  };
  const auto rename = [&](const auto& name_of) {
    std::vector<std::string> names;
    for (const auto& file : files)
      names.push_back(same_name(file.name) ? plain(name_of(fs::path(file.path))) : file.name);
    for (size_t i = 0; i < files.size(); ++i) files[i].name = names[i];
  };
  rename([](const fs::path& path) { return path.filename().string(); });
  rename([](const fs::path& path) {
    return path.parent_path().filename().string() + "-" + path.filename().string();
  });
  for (const auto& file : files) {
    if (same_name(file.name)) {
      throw Error(fmt::format("--model: expected each file once, found {} again", file.path));
    }
  }
  return files;
}

}  // namespace torchpace::cli
