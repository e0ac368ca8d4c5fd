// Writes one line of JSON. Enough for a worker's answers and for Measurement; nothing here reads
// JSON.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace torchpace {

/// Text as a JSON string, quoted. Bytes that are not ASCII pass through: the text is taken to be
/// UTF-8.
inline std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < ' ') {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

/// A number with the fewest digits that read back the same; null for NaN and the infinities, which
/// JSON lacks.
inline std::string json_number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  for (const int digits : {6, 9, 12, 15, 17}) {
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    if (std::strtod(text, nullptr) == value) break;
  }
  return text;
}

/// [a, b, ...] of what is already JSON.
inline std::string json_array(std::span<const std::string> parts) {
  std::string list = "[";
  for (const auto& part : parts) {
    if (list.size() > 1) list += ", ";
    list += part;
  }
  return list + ']';
}

/// {"key": value, ...} in the order of the calls.
class JsonObject {
 public:
  JsonObject& add(std::string_view key, std::string_view value) {
    return raw(key, json_string(value));
  }
  JsonObject& add(std::string_view key, const char* value) { return raw(key, json_string(value)); }
  JsonObject& add(std::string_view key, bool value) { return raw(key, value ? "true" : "false"); }
  JsonObject& add(std::string_view key, double value) { return raw(key, json_number(value)); }
  template <std::integral T>
  JsonObject& add(std::string_view key, T value) {
    return raw(key, std::to_string(value));
  }
  JsonObject& add(std::string_view key, std::span<const double> values) {
    std::string list = "[";
    for (const double value : values) {
      if (list.size() > 1) list += ',';
      list += json_number(value);
    }
    return raw(key, list + ']');
  }
  /// `json` is already JSON.
  JsonObject& raw(std::string_view key, std::string_view json) {
    if (!body_.empty()) body_ += ", ";
    body_ += json_string(key) + ": ";
    body_ += json;
    return *this;
  }
  std::string str() const { return '{' + body_ + '}'; }

 private:
  std::string body_;
};

}  // namespace torchpace
