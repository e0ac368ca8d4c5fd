// A case as `key=value` words: how the controller, the exporter and the workers of both languages
// pass it on. Values are percent-encoded (space, %, control characters). Twin:
// python/torchpace/settings.py.
#pragma once

#include <charconv>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace torchpace {

/// What a case or a settings line says that cannot be used. The message is one line: expected,
/// found, what to do.
struct SettingsError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Settings {
 public:
  Settings() = default;
  Settings(std::initializer_list<std::pair<const std::string, std::string>> values)
      : values_(values) {}

  /// Reads `key=value key=value ...`. Throws SettingsError on a word without `=`, an empty key, or
  /// a bad %XX.
  static Settings parse(std::string_view line) {
    Settings settings;
    while (!line.empty()) {
      const auto end = line.find(' ');
      const auto word = line.substr(0, end);
      line = end == std::string_view::npos ? "" : line.substr(end + 1);
      if (word.empty()) continue;
      const auto equals = word.find('=');
      if (equals == std::string_view::npos || equals == 0) {
        throw SettingsError("settings: expected key=value, got '" + std::string(word) + "'");
      }
      settings.values_[std::string(word.substr(0, equals))] = decode(word.substr(equals + 1));
    }
    return settings;
  }

  std::string line() const {
    std::string text;
    for (const auto& [key, value] : values_) {
      if (!text.empty()) text += ' ';
      text += key + '=' + encode(value);
    }
    return text;
  }

  bool has(const std::string& key) const { return values_.contains(key); }
  void set(const std::string& key, std::string value) { values_[key] = std::move(value); }
  const std::map<std::string, std::string>& values() const { return values_; }

  /// The value of `key` as T (std::string, bool, an integer or a floating type), or `fallback`.
  /// Throws SettingsError when the text is not a T.
  template <class T>
  T get(const std::string& key, T fallback) const {
    const auto found = values_.find(key);
    return found == values_.end() ? fallback : convert<T>(key, found->second);
  }
  std::string get(const std::string& key, const char* fallback) const {
    return get<std::string>(key, fallback);
  }

  /// As get, but throws SettingsError where the key is missing.
  template <class T>
  T require(const std::string& key) const {
    const auto found = values_.find(key);
    if (found == values_.end())
      throw SettingsError("settings: expected a value for '" + key + "', found none");
    return convert<T>(key, found->second);
  }

  /// The value of `key`, which must be one of `choices`; the first where the key is missing. Throws
  /// SettingsError on another.
  std::string one_of(const std::string& key, const std::vector<std::string>& choices) const {
    const auto value = get<std::string>(key, choices.front());
    std::string known;
    for (const auto& choice : choices) {
      if (value == choice) return value;
      known += (known.empty() ? "" : ", ") + choice;
    }
    throw SettingsError("settings: " + key + ": expected one of " + known + ", got '" + value +
                        "'");
  }

  static std::string encode(std::string_view value) {
    static constexpr char kHex[] = "0123456789ABCDEF";
    std::string text;
    for (const char c : value) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte <= ' ' || byte == '%' || byte == 127) {
        text += {'%', kHex[byte >> 4], kHex[byte & 15]};
      } else {
        text += c;
      }
    }
    return text;
  }

  static std::string decode(std::string_view value) {
    std::string text;
    for (std::size_t i = 0; i < value.size(); ++i) {
      if (value[i] != '%') {
        text += value[i];
        continue;
      }
      unsigned byte = 0;
      const auto* begin = value.data() + i + 1;
      if (i + 2 >= value.size() || std::from_chars(begin, begin + 2, byte, 16).ptr != begin + 2) {
        throw SettingsError("settings: expected %XX, got '" + std::string(value.substr(i, 3)) +
                            "'");
      }
      text += static_cast<char>(byte);
      i += 2;
    }
    return text;
  }

 private:
  template <class T>
  static T convert(const std::string& key, const std::string& text) {
    if constexpr (std::is_same_v<T, std::string>) {
      return text;
    } else if constexpr (std::is_same_v<T, bool>) {
      if (text == "1" || text == "true") return true;
      if (text == "0" || text == "false") return false;
      throw SettingsError("settings: " + key + ": expected 0, 1, true or false, got '" + text +
                          "'");
    } else {
      T value{};
      const auto* end = text.data() + text.size();
      const auto [stop, error] = std::from_chars(text.data(), end, value);
      if (error != std::errc() || stop != end) {
        throw SettingsError("settings: " + key + ": expected " +
                            (std::is_integral_v<T> ? "an integer" : "a number") + ", got '" + text +
                            "'");
      }
      return value;
    }
  }

  std::map<std::string, std::string> values_;
};

}  // namespace torchpace
