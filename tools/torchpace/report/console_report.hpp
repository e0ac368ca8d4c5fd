// Results in words: the terminal's table, Markdown, several machines side by side, and the HTML
// page, which Python draws. Nothing is measured here: every number is one of the derived results.
#pragma once

#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "plan/runtime_discovery.hpp"
#include "results/results.hpp"

namespace torchpace::cli {

/// A block a case with a line a runtime, then the warnings and a summary; 100 columns wide unless
/// a name alone is longer. Takes results that are derived.
void print_report(const Results& results, std::ostream& out, bool color);

/// The same as Markdown, with all columns. Takes results that are derived.
std::string markdown_report(const Results& results);

/// Writes markdown_report to a temporary name and renames it. Throws Error in one line.
void write_markdown(const Results& results, const std::filesystem::path& path);

/// A warning as the reports show it: each text once, with the cases that it speaks of.
struct WarningLine {
  std::string severity;
  std::string text;
};

/// Errors first; without those that are notes of a case.
std::vector<WarningLine> grouped_warnings(const Results& results);

/// Results with the name of their file.
struct NamedResults {
  std::string name;
  Results results;
};

/// Speedups of the same cases and runtimes from several files, a column a file.
void print_side_by_side(const std::vector<NamedResults>& files, std::ostream& out, bool color);

/// What became of the HTML page.
struct HtmlPage {
  enum class Outcome { written, skipped, failed };
  Outcome outcome = Outcome::failed;
  std::string message;  // one line: the path of the page, or why there is none
};

/// Runs `python -m torchpace.report` on a results.json. Skipped: the interpreter lacks jinja2 or
/// matplotlib. Does not throw but for Ctrl-C: the other reports stand without the page.
HtmlPage make_html(const Installation& installation, const std::filesystem::path& results_json,
                   const std::filesystem::path& folder);

}  // namespace torchpace::cli
