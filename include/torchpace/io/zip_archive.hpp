// Checks a zip archive (.pt, .pt2) before anything reads it: a reader of its own for the end record
// and the central directory, the place and the name of every entry, the sizes, and every CRC-32.
// LibTorch's reader is built without CRC checks, and its package loader unpacks before it looks.
// Source: PKWARE APPNOTE 6.3.10, sections 4.3 (records), 4.4 (fields), 4.5.3 (zip64).
#pragma once

#include <caffe2/serialize/inline_container.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "torchpace/detail/crc32.hpp"

namespace torchpace {

/// What is wrong with a file. The message is one line: the file, expected, found, what to do.
struct ArchiveError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What an archive may ask for, in bytes after unpacking.
struct ArchiveLimits {
  uint64_t max_entries = uint64_t{1} << 20;
  uint64_t max_bytes = uint64_t{1} << 40;           // of all entries
  uint64_t max_deflated_bytes = uint64_t{1} << 30;  // of all deflated ones: code, never weights
  uint64_t max_ratio = 1000;                        // of one deflated entry; deflate ends at 1032
};

struct ArchiveEntry {
  std::string name;
  uint64_t bytes = 0;         // unpacked
  uint64_t packed_bytes = 0;  // in the file
  uint64_t offset = 0;        // of the data in the file
  uint32_t crc32 = 0;
  bool deflated = false;
};

/// A file whose every entry was found whole; mapped, not read into memory.
class Archive {
 public:
  /// Throws ArchiveError when the file cannot be opened, is no zip archive, is truncated, asks for
  /// more than the limits, has an entry of a dangerous name, a strange place or method, or bytes
  /// that do not give its CRC-32.
  explicit Archive(std::string path, const ArchiveLimits& limits = {})
      : path_(std::move(path)), limits_(limits) {
    map();
    try {
      read_directory();
      check_places();
      check_contents();
    } catch (...) {
      unmap();
      throw;
    }
  }
  ~Archive() { unmap(); }
  Archive(const Archive&) = delete;
  Archive& operator=(const Archive&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<ArchiveEntry>& entries() const { return entries_; }

  /// The first entry whose path ends with `suffix`; null if there is none.
  const ArchiveEntry* find(std::string_view suffix) const {
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const auto& e) { return e.name.ends_with(suffix); });
    return found == entries_.end() ? nullptr : &*found;
  }
  bool has_folder(std::string_view name) const {
    return std::any_of(entries_.begin(), entries_.end(), [&](const auto& e) {
      return e.name.find('/' + std::string(name) + '/') != std::string::npos;
    });
  }

  /// The bytes of an entry that is stored as it is. Valid as long as this archive.
  std::string_view bytes(const ArchiveEntry& entry) const {
    if (entry.deflated)
      fail(entry.name + ": expected an entry stored as it is, found a deflated one");
    return at(entry.offset, entry.bytes);
  }

  [[noreturn]] void fail(const std::string& what) const { throw ArchiveError(path_ + ": " + what); }

 private:
  static constexpr uint64_t kEndBytes = 22, kLocatorBytes = 20, kEnd64Bytes = 56,
                            kDirectoryBytes = 46, kLocalBytes = 30;
  static constexpr uint32_t kMax32 = 0xFFFFFFFF;
  static constexpr const char* kTruncated =
      "expected a whole zip archive, found one that is truncated or damaged; make the file again";

  struct Place {
    uint64_t begin, end;
    const std::string* name;
  };

  void map() {
    const int file = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) fail(std::string("cannot be opened: ") + std::strerror(errno));
    struct stat status {};
    const bool regular = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
    size_ = regular ? static_cast<uint64_t>(status.st_size) : 0;
    void* data = size_ == 0 ? nullptr : mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (!regular) fail("expected a file, found a folder or something else");
    if (size_ == 0) fail("expected a zip archive, found an empty file; make the file again");
    if (data == MAP_FAILED) fail(std::string("cannot be mapped: ") + std::strerror(errno));
    data_ = static_cast<const char*>(data);
  }
  void unmap() {
    if (data_ != nullptr) munmap(const_cast<char*>(data_), size_);
    data_ = nullptr;
  }

  std::string_view at(uint64_t offset, uint64_t count) const {
    if (offset > size_ || count > size_ - offset) fail(kTruncated);
    return {data_ + offset, count};
  }
  template <class T>
  T number(uint64_t offset) const {
    T value{};
    std::memcpy(&value, at(offset, sizeof value).data(), sizeof value);
    return value;
  }
  bool is_record(uint64_t offset, const char* letters) const {
    return offset <= size_ && size_ - offset >= 4 &&
           std::string_view(data_ + offset, 4) == std::string_view(letters, 4);
  }

  /// Where the end record begins: the last one whose comment reaches exactly to the end of the
  /// file.
  uint64_t find_end() const {
    const uint64_t furthest = std::min(size_, kEndBytes + 0xFFFF);
    for (uint64_t back = kEndBytes; back <= furthest; ++back) {
      const uint64_t offset = size_ - back;
      if (is_record(offset, "PK\5\6") && number<uint16_t>(offset + 20) == back - kEndBytes)
        return offset;
    }
    if (!is_record(0, "PK\3\4")) {
      fail("expected a zip archive (.pt, .pt2), found " + std::to_string(size_) +
           " bytes of something else");
    }
    fail(kTruncated);
  }

  void read_directory() {
    uint64_t end = find_end();
    uint64_t count = number<uint16_t>(end + 10), bytes = number<uint32_t>(end + 12),
             offset = number<uint32_t>(end + 16);
    if (end >= kLocatorBytes && is_record(end - kLocatorBytes, "PK\6\7")) {
      const auto end64 = number<uint64_t>(end - kLocatorBytes + 8);
      at(end64, kEnd64Bytes);
      if (!is_record(end64, "PK\6\6")) fail(kTruncated);
      // Both records must say the same, where the old one has the room.
      const auto widen = [&](uint64_t& value, uint64_t largest, uint64_t place) {
        const auto wide = number<uint64_t>(place);
        if (value != largest && value != wide) fail(kTruncated);
        value = wide;
      };
      widen(count, 0xFFFF, end64 + 32);
      widen(bytes, kMax32, end64 + 40);
      widen(offset, kMax32, end64 + 48);
      end = end64;
    }
    if (offset > end || bytes != end - offset || count > bytes / kDirectoryBytes) fail(kTruncated);
    if (count == 0) fail("expected an archive of some entries, found none");
    if (count > limits_.max_entries) {
      fail("expected at most " + std::to_string(limits_.max_entries) + " entries, found " +
           std::to_string(count));
    }
    directory_ = offset;
    for (uint64_t i = 0; i < count; ++i) offset = read_entry(offset);
    if (offset != end) fail(kTruncated);
  }

  /// Reads one entry of the central directory and returns where the next begins.
  uint64_t read_entry(uint64_t offset) {
    at(offset, kDirectoryBytes);
    if (!is_record(offset, "PK\1\2")) fail(kTruncated);
    const auto flags = number<uint16_t>(offset + 8);
    const auto method = number<uint16_t>(offset + 10);
    const uint64_t name_bytes = number<uint16_t>(offset + 28),
                   extra_bytes = number<uint16_t>(offset + 30),
                   comment_bytes = number<uint16_t>(offset + 32);
    ArchiveEntry entry;
    entry.name = at(offset + kDirectoryBytes, name_bytes);
    entry.crc32 = number<uint32_t>(offset + 16);
    entry.packed_bytes = number<uint32_t>(offset + 20);
    entry.bytes = number<uint32_t>(offset + 24);
    entry.offset = number<uint32_t>(offset + 42);
    read_wide_sizes(entry, offset + kDirectoryBytes + name_bytes, extra_bytes);
    check_name(entry.name);
    constexpr uint16_t kEncrypted = 1 | 1 << 6 | 1 << 13;
    if ((flags & kEncrypted) != 0) fail(entry.name + ": expected no encryption, found some");
    if (method != 0 && method != 8) {
      fail(entry.name + ": expected a stored or deflated entry, found method " +
           std::to_string(method));
    }
    entry.deflated = method == 8;
    check_size(entry);
    find_data(entry, method);
    entries_.push_back(std::move(entry));
    return offset + kDirectoryBytes + name_bytes + extra_bytes + comment_bytes;
  }

  /// Zip64: what does not fit 32 bits stands in the extra field 1, in this order.
  void read_wide_sizes(ArchiveEntry& entry, uint64_t offset, uint64_t extra_bytes) const {
    const uint64_t end = offset + extra_bytes;
    at(offset, extra_bytes);
    while (end - offset >= 4) {
      const auto id = number<uint16_t>(offset);
      const uint64_t field_end = offset + 4 + number<uint16_t>(offset + 2);
      if (field_end > end) fail(kTruncated);
      if (id == 1) {
        uint64_t field = offset + 4;
        for (auto* value : {&entry.bytes, &entry.packed_bytes, &entry.offset}) {
          if (*value != kMax32) continue;
          if (field + 8 > field_end) fail(kTruncated);
          *value = number<uint64_t>(field);
          field += 8;
        }
      }
      offset = field_end;
    }
  }

  void check_name(const std::string& name) const {
    const auto refuse = [&](const char* what) {
      std::string shown = name.substr(0, 100);
      for (char& c : shown) c = c < ' ' || c == 127 ? '?' : c;
      fail("expected names inside the archive's own folder, found " + std::string(what) + " '" +
           shown + "'; the file was not written by torch");
    };
    if (name.empty()) refuse("an empty name");
    if (name.front() == '/' || (name.size() > 1 && name[1] == ':')) refuse("the absolute name");
    if (name.find('\\') != std::string::npos) refuse("the name");
    if (std::any_of(name.begin(), name.end(),
                    [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 127; }))
      refuse("control characters in");
    for (std::size_t begin = 0; begin <= name.size();) {
      const auto end = std::min(name.find('/', begin), name.size());
      if (std::string_view(name).substr(begin, end - begin) == "..") refuse("'..' in");
      begin = end + 1;
    }
  }

  void check_size(const ArchiveEntry& entry) {
    const auto too_much = [&](uint64_t limit) {
      fail("expected at most " + std::to_string(limit) + " bytes after unpacking, found " +
           std::to_string(entry.bytes) + " from " + std::to_string(entry.packed_bytes) + " in " +
           entry.name + "; this looks like a zip bomb");
    };
    if (entry.bytes > limits_.max_bytes - total_bytes_) too_much(limits_.max_bytes);
    total_bytes_ += entry.bytes;
    if (!entry.deflated) return;
    if (entry.bytes / limits_.max_ratio > entry.packed_bytes)
      too_much(entry.packed_bytes * limits_.max_ratio);
    if (entry.bytes > limits_.max_deflated_bytes - deflated_bytes_)
      too_much(limits_.max_deflated_bytes);
    deflated_bytes_ += entry.bytes;
  }

  /// From the place of the local header to that of the data. Both headers must say the same.
  void find_data(ArchiveEntry& entry, uint16_t method) {
    const uint64_t header = entry.offset;
    at(header, kLocalBytes);
    const uint64_t name_bytes = number<uint16_t>(header + 26),
                   extra_bytes = number<uint16_t>(header + 28);
    if (!is_record(header, "PK\3\4") || number<uint16_t>(header + 8) != method ||
        at(header + kLocalBytes, name_bytes) != entry.name) {
      fail(entry.name + ": expected the header that the directory describes, found another; " +
           "the file is damaged, make it again");
    }
    entry.offset = header + kLocalBytes + name_bytes + extra_bytes;
    at(entry.offset, entry.packed_bytes);
    if (!entry.deflated && entry.bytes != entry.packed_bytes) {
      fail(entry.name + ": expected " + std::to_string(entry.bytes) + " stored bytes, found " +
           std::to_string(entry.packed_bytes) + "; the file is damaged, make it again");
    }
    headers_.push_back(header);
  }

  /// Entries lie one after the other before the directory, and no name comes twice.
  void check_places() const {
    std::vector<Place> places;
    std::set<std::string_view> names;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const auto& e = entries_[i];
      places.push_back({headers_[i], e.offset + e.packed_bytes, &e.name});
      if (!names.insert(e.name).second)
        fail("expected every name once, found " + e.name + " twice");
    }
    std::sort(places.begin(), places.end(),
              [](const Place& a, const Place& b) { return a.begin < b.begin; });
    places.push_back({directory_, directory_, nullptr});
    for (std::size_t i = 0; i + 1 < places.size(); ++i) {
      if (places[i].end > places[i + 1].begin) {
        fail(
            *places[i].name +
            ": expected entries one after the other, found some that overlap; make the file again");
      }
    }
  }

  void check_contents() const {
    std::vector<const ArchiveEntry*> deflated;
    for (const auto& e : entries_) {
      if (e.deflated) {
        deflated.push_back(&e);
      } else {
        check_crc(e, at(e.offset, e.bytes));
      }
    }
    if (!deflated.empty()) check_deflated(deflated);
  }

  void check_crc(const ArchiveEntry& entry, std::string_view bytes) const {
    if (crc32(bytes) == entry.crc32) return;
    fail(entry.name + ": expected the bytes of its CRC-32, found others; the file is damaged, " +
         "make it again");
  }

  /// Through LibTorch's reader, which unpacks into as many bytes as the directory says.
  void check_deflated(const std::vector<const ArchiveEntry*>& deflated) const {
    const auto folder = entries_.front().name.substr(0, entries_.front().name.find('/') + 1);
    try {
      caffe2::serialize::PyTorchStreamReader reader(path_);
      for (const auto* e : deflated) {
        if (!e->name.starts_with(folder)) {
          fail(e->name + ": expected all entries in the folder " + folder + ", found this one");
        }
        const auto [data, count] = reader.getRecord(e->name.substr(folder.size()));
        check_crc(*e, {static_cast<const char*>(data.get()), count});
      }
    } catch (const ArchiveError&) {
      throw;
    } catch (const std::exception&) {
      fail("expected entries that can be inflated, found damaged ones; make the file again");
    }
  }

  std::string path_;
  ArchiveLimits limits_;
  const char* data_ = nullptr;
  uint64_t size_ = 0;
  uint64_t directory_ = 0;  // where the central directory begins
  uint64_t total_bytes_ = 0, deflated_bytes_ = 0;
  std::vector<ArchiveEntry> entries_;
  std::vector<uint64_t> headers_;  // where each entry's local header begins
};

/// Checks the file as Archive does and returns its listing.
inline std::vector<ArchiveEntry> check_archive(const std::string& path,
                                               const ArchiveLimits& limits = {}) {
  return Archive(path, limits).entries();
}

}  // namespace torchpace
