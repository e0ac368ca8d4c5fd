// Words on a command line: splitting, patterns, and what the user may have meant.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace torchpace::cli {

/// Splits as a shell does: blanks separate, '...' and "..." quote, \ escapes. Nothing is expanded.
/// Throws Error on an open quote.
std::vector<std::string> split_words(std::string_view text);

/// Parts between the separators; empty parts are dropped.
std::vector<std::string> split_list(std::string_view text, char separator = ',');

/// True where fnmatch gives `*`, `?` and `[` a meaning.
bool is_pattern(std::string_view text);
bool matches(const std::string& pattern, const std::string& text);

/// `1 case`, `2 cases`.
std::string counted(long long count, const std::string& noun);

/// Those of `names` that are nearest in edit distance, at most three, nearest first.
std::vector<std::string> closest(const std::string& word, const std::vector<std::string>& names);

/// "; did you mean a, b?", or the choices where nothing is near.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& names);

}  // namespace torchpace::cli
