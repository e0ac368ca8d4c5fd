// CRC-32 as in zip archives, eight bytes a turn. Free of torch.
// Source: ISO 3309; Kounavis and Berry 2005 for the tables.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace torchpace {

namespace detail {

using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

constexpr CrcTables make_crc_tables() {
  CrcTables tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
    tables[0][i] = crc;
  }
  for (std::size_t t = 1; t < tables.size(); ++t) {
    for (std::size_t i = 0; i < 256; ++i) {
      tables[t][i] = (tables[t - 1][i] >> 8) ^ tables[0][tables[t - 1][i] & 255];
    }
  }
  return tables;
}

inline constexpr CrcTables kCrcTables = make_crc_tables();

}  // namespace detail

/// CRC-32 of the bytes.
inline uint32_t crc32(std::string_view bytes) {
  const auto& t = detail::kCrcTables;
  uint32_t crc = ~0U;
  const auto* data = bytes.data();
  auto left = bytes.size();
  for (; left >= 8; left -= 8, data += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data, 8);  // little-endian, as all that LibTorch runs on here
    word ^= crc;
    crc = t[7][word & 255] ^ t[6][(word >> 8) & 255] ^ t[5][(word >> 16) & 255] ^
          t[4][(word >> 24) & 255] ^ t[3][(word >> 32) & 255] ^ t[2][(word >> 40) & 255] ^
          t[1][(word >> 48) & 255] ^ t[0][word >> 56];
  }
  for (; left > 0; --left, ++data) {
    crc = (crc >> 8) ^ t[0][(crc ^ static_cast<unsigned char>(*data)) & 255];
  }
  return ~crc;
}

}  // namespace torchpace
