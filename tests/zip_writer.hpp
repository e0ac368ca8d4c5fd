// Zip archives for tests, right or wrong, written by the rules of APPNOTE.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <torchpace/io/zip_archive.hpp>
#include <vector>

namespace torchpace::testing {

inline void append(std::string& to, uint64_t value, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i, value >>= 8) to += static_cast<char>(value & 255);
}

struct Written {
  std::string name;
  std::string data;
  uint16_t method = 0;
  uint16_t flags = 0;
  std::optional<uint32_t> crc = {};       // of the data, unless given
  std::optional<uint32_t> bytes = {};     // unpacked: the data's, unless given
  std::optional<std::string> local = {};  // the name in the local header
  std::optional<uint32_t> header = {};    // where the directory says that it begins
};

/// A zip archive of these entries, right or wrong, written by the rules of APPNOTE.
inline std::string zip(const std::vector<Written>& entries, bool wide = false) {
  std::string file, directory;
  for (const auto& e : entries) {
    const auto size = static_cast<uint32_t>(e.data.size());
    const uint32_t crc = e.crc.value_or(crc32(e.data)), bytes = e.bytes.value_or(size);
    const auto local = e.local.value_or(e.name);
    const auto begin = static_cast<uint32_t>(file.size());
    const auto sizes = [&](std::string& to) {
      append(to, crc, 4);
      append(to, wide ? 0xFFFFFFFF : size, 4);
      append(to, wide ? 0xFFFFFFFF : bytes, 4);
    };
    std::string extra;
    if (wide) {
      append(extra, 1, 2);
      append(extra, 16, 2);
      append(extra, bytes, 8);
      append(extra, size, 8);
    }
    file += "PK\3\4";
    for (const uint64_t field :
         {uint64_t{20}, uint64_t{e.flags}, uint64_t{e.method}, uint64_t{0}, uint64_t{0}})
      append(file, field, 2);
    sizes(file);
    append(file, local.size(), 2);
    append(file, extra.size(), 2);
    file += local + extra + e.data;
    directory += "PK\1\2";
    for (const uint64_t field : {uint64_t{20}, uint64_t{20}, uint64_t{e.flags}, uint64_t{e.method},
                                 uint64_t{0}, uint64_t{0}})
      append(directory, field, 2);
    sizes(directory);
    append(directory, e.name.size(), 2);
    append(directory, extra.size(), 2);
    append(directory, 0, 2 + 2 + 2 + 4);
    append(directory, e.header.value_or(begin), 4);
    directory += e.name + extra;
  }
  const auto begin = file.size();
  file += directory;
  if (wide) {
    const auto end = file.size();
    file += "PK\6\6";
    append(file, 44, 8);
    append(file, 45, 2);
    append(file, 45, 2);
    append(file, 0, 8);
    append(file, entries.size(), 8);
    append(file, entries.size(), 8);
    append(file, directory.size(), 8);
    append(file, begin, 8);
    file += "PK\6\7";
    append(file, 0, 4);
    append(file, end, 8);
    append(file, 1, 4);
  }
  file += "PK\5\6";
  append(file, 0, 4);
  append(file, wide ? 0xFFFF : entries.size(), 2);
  append(file, wide ? 0xFFFF : entries.size(), 2);
  append(file, wide ? 0xFFFFFFFF : directory.size(), 4);
  append(file, wide ? 0xFFFFFFFF : begin, 4);
  append(file, 0, 2);
  return file;
}

}  // namespace torchpace::testing
