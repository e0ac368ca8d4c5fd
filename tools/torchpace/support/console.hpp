// Where the program speaks: results on standard output, all else on standard error.
#pragma once

#include <string>

namespace torchpace::cli {

/// A line on standard error, "torchpace: TEXT". Never throws: a reader that has gone, of a pipe to
/// `head` say, is no reason to end.
void log(const std::string& text) noexcept;

/// The text as it is on standard error, at once.
void show_on_error(const std::string& text) noexcept;

/// Whether standard output could not take what was written to it: disk full, say. Not where its
/// reader has gone, such as `head`, which has what it wanted.
bool output_is_lost() noexcept;

}  // namespace torchpace::cli
