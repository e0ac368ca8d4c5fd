#include "report/console_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <string_view>

#include "report/breakdown_tables.hpp"
#include "report/headline.hpp"
#include "report/number_format.hpp"
#include "report/text_table.hpp"
#include "support/error.hpp"
#include "support/process.hpp"
#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

constexpr size_t kWidth = 100;       // of text
constexpr size_t kTableWidth = 112;  // long names of runtimes stay on their row
constexpr size_t kFewCases = 3;      // of more, cold start and memory are in report.md
constexpr size_t kNameWidth = 32;    // a longer name has a line of its own
constexpr double kHtmlLimitSeconds = 300;

/// Escape sequences, or nothing where the terminal has no color.
struct Style {
  bool color;

  std::string paint(const char* code, const std::string& text) const {
    return color && !text.empty() ? fmt::format("\033[{}m{}\033[0m", code, text) : text;
  }
  std::string bold(const std::string& text) const { return paint("1", text); }
  std::string dim(const std::string& text) const { return paint("2", text); }

  /// Blue and orange are apart for every eye; the word says the same.
  std::string verdict(const std::string& word, const std::string& text) const {
    if (word.starts_with("FASTER")) return paint("1;36", text);
    if (word.starts_with("SLOWER") || word == "INVALID" || word == "IMPLAUSIBLE") {
      return paint("1;33", text);
    }
    return text;
  }
};

std::string padded(const std::string& text, size_t width) {
  const auto taken = columns(text);
  return taken >= width ? text : text + std::string(width - taken, ' ');
}

/// The words of `text` in lines of kWidth columns; `first` opens the first line, and as many blanks
/// as `indent` the others.
std::string wrapped(const std::string& first, const std::string& text, size_t indent) {
  std::string line = first;
  std::string result;
  bool at_start = true;
  size_t begin = 0;
  while (begin < text.size()) {
    const auto end = std::min(text.find_first_of(" \n", begin), text.size());
    const auto word = text.substr(begin, end - begin);
    begin = end + 1;
    if (word.empty()) continue;
    if (!at_start && columns(line) + 1 + columns(word) > kWidth) {
      result += line + "\n";
      line = std::string(indent, ' ');
      at_start = true;
    }
    if (!at_start) line += ' ';
    line += word;
    at_start = false;
  }
  return result + line + "\n";
}

/// What stands in the columns of a row that was measured.
struct Cells {
  std::string step, speedup, verdict, items, gemm_peak, limit, parity, faults, device;
};

constexpr std::array<std::string Cells::*, 9> kColumns = {
    &Cells::step,  &Cells::speedup, &Cells::verdict, &Cells::items, &Cells::gemm_peak,
    &Cells::limit, &Cells::parity,  &Cells::faults,  &Cells::device};

/// Two lines: long names would push a row beyond the width.
std::array<Cells, 2> headings(const CaseResult& result) {
  // One of the two: report.md has room for both.
  const bool has_limit = !bound_text(result).empty();
  const bool has_peak = !has_limit && !std::isnan(result.gemm_peak_flops_per_s);
  const bool on_device = has_device_time(result);
  const Cells upper{.step = "",
                    .speedup = "",
                    .verdict = "",
                    .items = "",
                    .gemm_peak = has_peak ? "% of GEMM" : "",
                    .limit = has_limit ? "% of" : "",
                    .parity = "max abs",
                    .faults = on_device ? "" : "faults",
                    .device = ""};
  const Cells lower{.step = "step",
                    .speedup = "speedup",
                    .verdict = "verdict",
                    .items = (result.item.empty() ? "items" : result.item) + "/s",
                    .gemm_peak = has_peak ? "peak" : "",
                    .limit = has_limit ? "limit" : "",
                    .parity = "error",
                    .faults = on_device ? "" : "per step",
                    .device = on_device ? "device" : ""};
  return {upper, lower};
}

std::string error_of(const RuntimeResult& row) {
  if (const auto text = approximation_text(row); !text.empty()) return text;
  return row.parity ? show_error(row.parity->max_abs_error) : "n/a";
}

Cells cells(const CaseResult& result, const RuntimeResult& row) {
  const bool is_reference = row.runtime == result.reference;
  const bool measured = row.status == Status::ok;
  return {.step = show_duration(row.step_ns).both(),
          .speedup = is_reference && measured ? "1" : show_ratio(row.speedup.ratio).both(),
          .verdict = row.is_copy()                        ? "A/A"
                     : row.speedup.verdict == "REFERENCE" ? "reference"
                                                          : verdict_text(row),
          .items = show_rate(result.items, row.step_ns).median,
          .gemm_peak = show_share(row.gemm_peak_share),
          .limit = show_share(row.limit_share),
          .parity = error_of(row),
          .faults = show_number(row.page_faults_per_step),
          .device = device_text(row)};
}

/// An invalid row has a line like any other; the reason stands below the table.
bool has_cells(const RuntimeResult& row) {
  return row.status == Status::ok || row.status == Status::invalid;
}

class CaseTable {
 public:
  CaseTable(const CaseResult& result, const std::vector<Folded>& folded, std::ostream& out,
            Style style)
      : result_(result), folded_(folded), out_(out), style_(style) {
    const auto heads = headings(result);
    std::copy_if(kColumns.begin(), kColumns.end(), std::back_inserter(shown_),
                 [&](auto column) { return !(heads[1].*column).empty(); });
    widths_.resize(shown_.size());
    for (const auto& head : heads) measure(head);
    for (const auto& row : result.runtimes) {
      if (has_cells(row)) measure(cells(result, row));
    }
    size_t taken = 2;
    for (const auto width : widths_) taken += 2 + width;
    const size_t room = kTableWidth > taken + 8 ? kTableWidth - taken : 8;
    for (const auto& row : result.runtimes) {
      if (is_folded(folded, row.runtime)) continue;
      if (columns(row.runtime) <= room) name_ = std::max(name_, columns(row.runtime));
    }
  }

  void print() {
    out_ << style_.bold(result_.name) << "\n";
    out_ << wrapped("  ", about_text(result_), 2);
    const auto heads = headings(result_);
    out_ << style_.dim(line("", heads[0])) << "\n" << style_.dim(line("runtime", heads[1])) << "\n";
    for (const auto& row : result_.runtimes) {
      if (row.status != Status::skipped && !is_folded(folded_, row.runtime)) print(row);
    }
    for (const auto& text : skipped_lines(result_, folded_)) out_ << wrapped("  ", text, 4);
    for (const auto& note : result_.notes) out_ << wrapped("  ", note, 4);
    if (const auto text = excluded_text(result_); !text.empty()) out_ << wrapped("  ", text, 4);
  }

 private:
  void measure(const Cells& row) {
    for (size_t i = 0; i < shown_.size(); ++i) {
      widths_[i] = std::max(widths_[i], columns(row.*shown_[i]));
    }
  }

  /// A line of the table; a verdict is painted after it is padded.
  std::string line(const std::string& name, const Cells& row) const {
    std::string text = "  " + padded(name, name_);
    for (size_t i = 0; i < shown_.size(); ++i) {
      const auto& cell = row.*shown_[i];
      const auto cell_text = padded(cell, widths_[i]);
      const bool is_verdict = shown_[i] == &Cells::verdict;
      text += "  " + (is_verdict ? style_.verdict(cell, cell_text) : cell_text);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    return text;
  }

  void print(const RuntimeResult& row) {
    if (!has_cells(row)) {
      const auto start = "  " + padded(row.runtime, name_) + "  ";
      const bool has_room = columns(start) + 20 < kWidth;
      if (!has_room) out_ << "  " << row.runtime << "\n";
      const auto reason = row.reason.empty() ? "no reason given" : row.reason;
      out_ << wrapped(has_room ? start : "    ",
                      fmt::format("{}: {}", to_string(row.status), reason),
                      has_room ? name_ + 4 : 4);
      return;
    }
    auto name = row.runtime;
    if (columns(name) > name_) {
      out_ << "  " << name << "\n";
      name.clear();
    }
    const auto text = line(name, cells(result_, row));
    out_ << (row.is_copy() ? style_.dim(text) : text) << "\n";
    if (!row.speedup.advice.empty()) {
      out_ << wrapped(std::string(name_ + 4, ' '), "to resolve it: " + row.speedup.advice,
                      name_ + 4);
    }
  }

  const CaseResult& result_;
  const std::vector<Folded>& folded_;
  std::ostream& out_;
  Style style_;
  size_t name_ = columns("runtime");
  std::vector<std::string Cells::*> shown_;  // those with a heading
  std::vector<size_t> widths_;
};

/// A name that would push the other cells beyond the width has a line of its own.
void print_table(const Table& table, std::ostream& out, const Style& style) {
  if (table.groups.empty()) return;
  std::vector<size_t> widths;
  for (const auto& cell : table.head) widths.push_back(columns(cell));
  for (const auto& group : table.groups) {
    for (const auto& row : group.rows) {
      for (size_t i = 1; i < row.size(); ++i) widths[i] = std::max(widths[i], columns(row[i]));
    }
  }
  size_t taken = 2;
  for (size_t i = 1; i < widths.size(); ++i) taken += 2 + widths[i];
  const size_t room = kTableWidth > taken + 8 ? kTableWidth - taken : 8;
  for (const auto& group : table.groups) {
    for (const auto& row : group.rows) {
      if (columns(row[0]) <= std::min(room, kNameWidth))
        widths[0] = std::max(widths[0], columns(row[0]));
    }
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text = "  " + padded(cells[0], widths[0]);
    if (columns(cells[0]) > widths[0]) {
      text = "  " + cells[0] + "\n  " + std::string(widths[0], ' ');
    }
    for (size_t i = 1; i < cells.size(); ++i) text += "  " + padded(cells[i], widths[i]);
    text.erase(text.find_last_not_of(' ') + 1);
    return text;
  };
  const auto about = wrapped(table.title + ": ", table.note, 2);
  out << style.bold(table.title) << about.substr(table.title.size()) << style.dim(line(table.head))
      << "\n";
  for (const auto& group : table.groups) {
    out << group.name << "\n";
    if (!group.note.empty()) out << wrapped("  ", group.note, 2);
    for (const auto& row : group.rows) out << line(row) << "\n";
  }
  out << "\n";
}

std::string text_of(const Json& environment, const char* key) {
  const auto found = environment.find(key);
  return found != environment.end() && found->is_string() ? found->get<std::string>() : "";
}

void print_heading(const Results& results, std::ostream& out, const Style& style) {
  const auto& plan = results.plan;
  std::vector<std::string> parts;
  if (const auto cpu = text_of(results.environment, "cpu"); !cpu.empty()) parts.push_back(cpu);
  parts.push_back(fmt::format("{}, {}", plan.device, plan.dtype));
  parts.push_back(counted(plan.threads, "thread"));
  parts.push_back(plan.allocator + " allocator");
  parts.push_back(counted(plan.invocations, "invocation"));
  parts.push_back("reference " + plan.reference);
  out << style.bold("torchpace " + results.torchpace) << ", " << results.created << "\n"
      << wrapped("", fmt::format("{}", fmt::join(parts, "; ")), 2);
  if (!results.complete) {
    out << wrapped("",
                   "INCOMPLETE: the run was stopped before its end; what is here was measured, the "
                   "rest was not. --resume continues it.",
                   2);
  }
}

void print_warnings(const Results& results, std::ostream& out, const Style& style) {
  const auto warnings = grouped_warnings(results);
  for (const auto& [severity, text] : warnings) {
    const bool is_note = severity == "info";
    const auto label = (is_note ? "note" : severity) + ": ";
    const auto lines = wrapped(label, text, 2);
    out << style.paint(is_note ? "2" : "33", lines.substr(0, label.size()))
        << lines.substr(label.size());
  }
  if (!warnings.empty()) out << "\n";
}

void print_fastest(const Results& results, std::ostream& out, const Style& style) {
  if (!has_several(results)) return;
  std::string lines;
  for (const auto& result : results.cases) {
    if (const auto text = fastest_text(result); !text.empty())
      lines += wrapped("  ", result.name + ": " + text, 4);
  }
  if (!lines.empty()) out << style.bold("fastest") << "\n" << lines << "\n";
}

void print_summary(const Results& results, std::ostream& out, const Style& style) {
  out << style.bold("summary") << "\n";
  for (const auto& line : summary_lines(results)) {
    const auto text = wrapped("  ", line, 4);
    out << (line.starts_with("Too noisy") ? style.paint("33", text) : text);
  }
}

std::string speedup_cell(const Results& results, const std::string& name,
                         const std::string& runtime) {
  for (const auto& result : results.cases) {
    if (result.name != name) continue;
    const auto* row = result.find(runtime);
    if (row == nullptr) return "-";
    if (row->status != Status::ok) return to_string(row->status);
    return show_ratio(row->speedup.ratio).both() + " " + verdict_text(*row);
  }
  return "-";
}

/// A, B, ..., Z, AA, ...
std::string letter(size_t i) {
  const std::string last(1, static_cast<char>('A' + i % 26));
  return i < 26 ? last : letter(i / 26 - 1) + last;
}

/// Rows of the table side by side: case, then a runtime per line.
std::vector<std::pair<std::string, std::string>> union_of_rows(
    const std::vector<NamedResults>& files) {
  std::vector<std::pair<std::string, std::string>> rows;
  for (const auto& file : files) {
    for (const auto& result : file.results.cases) {
      for (const auto& row : result.runtimes) {
        const std::pair key{result.name, row.runtime};
        if (row.is_copy() || row.runtime == result.reference) continue;
        if (std::find(rows.begin(), rows.end(), key) != rows.end()) continue;
        // Beside the case's other rows, so that each case is named once.
        const auto last = std::find_if(rows.rbegin(), rows.rend(),
                                       [&](const auto& other) { return other.first == key.first; });
        rows.insert(last == rows.rend() ? rows.end() : last.base(), key);
      }
    }
  }
  return rows;
}

}  // namespace

void print_report(const Results& results, std::ostream& out, bool color) {
  const Style style{color};
  print_heading(results, out, style);
  const auto folded = folded_rows(results);
  for (const auto& result : results.cases) {
    out << "\n";
    CaseTable(result, folded, out, style).print();
  }
  out << "\n";
  for (const auto& table : explanation_tables(results, Form::terminal)) {
    print_table(table, out, style);
  }
  for (const auto& each : folded) out << wrapped(each.runtime + ": ", each.text, 2);
  if (!folded.empty()) out << "\n";
  if (results.cases.size() <= kFewCases) {
    print_table(cold_table(results), out, style);
    print_table(memory_table(results), out, style);
  } else {
    out << "Cold start and memory of each case are in report.md.\n\n";
  }
  print_warnings(results, out, style);
  print_fastest(results, out, style);
  print_summary(results, out, style);
}

std::vector<WarningLine> grouped_warnings(const Results& results) {
  const auto rank = [](const std::string& severity) {
    return severity == "error" ? 0 : severity == "warning" ? 1 : 2;
  };
  struct Group {
    const Warning* first;
    std::vector<std::string> cases;
  };
  std::vector<Group> groups;
  for (const auto& warning : results.warnings) {
    if (is_note(warning)) continue;
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& other) {
      return other.first->text == warning.text && other.first->severity == warning.severity;
    });
    if (group == groups.end()) group = groups.insert(group, {&warning, {}});
    if (!warning.case_name.empty()) group->cases.push_back(warning.case_name);
  }
  std::stable_sort(groups.begin(), groups.end(), [&](const Group& a, const Group& b) {
    return rank(a.first->severity) < rank(b.first->severity);
  });
  std::vector<WarningLine> lines;
  for (const auto& [warning, cases] : groups) {
    lines.push_back({warning->severity, cases.empty() ? warning->text
                                                      : fmt::format("{} ({})", warning->text,
                                                                    fmt::join(cases, ", "))});
  }
  return lines;
}

void print_side_by_side(const std::vector<NamedResults>& files, std::ostream& out, bool color) {
  const Style style{color};
  out << "\n" << style.bold("side by side: speedup over the reference of each file") << "\n";
  for (size_t i = 0; i < files.size(); ++i) {
    const auto& plan = files[i].results.plan;
    out << wrapped(fmt::format("  {}  ", letter(i)),
                   fmt::format("{}: {}; {}, {}, {}; reference {}", files[i].name,
                               text_of(files[i].results.environment, "cpu"), plan.device,
                               plan.dtype, counted(plan.threads, "thread"), plan.reference),
                   5);
  }
  const auto rows = union_of_rows(files);
  size_t name_width = columns("runtime");
  for (const auto& [name, runtime] : rows) {
    name_width = std::max(name_width, std::min<size_t>(24, columns(runtime)));
  }
  std::vector<size_t> widths;
  for (size_t i = 0; i < files.size(); ++i) {
    widths.push_back(1);
    for (const auto& [name, runtime] : rows) {
      widths[i] = std::max(widths[i], columns(speedup_cell(files[i].results, name, runtime)));
    }
  }
  for (size_t first = 0; first < files.size();) {
    size_t end = first;
    for (size_t taken = name_width + 2; end < files.size(); ++end) {
      taken += widths[end] + 2;
      if (taken > kTableWidth && end > first) break;
    }
    auto head = "  " + padded("runtime", name_width);
    for (size_t i = first; i < end; ++i) head += "  " + padded(letter(i), widths[i]);
    head.erase(head.find_last_not_of(' ') + 1);
    out << "\n" << style.dim(head) << "\n";
    std::string last_case;
    for (const auto& [name, runtime] : rows) {
      if (name != last_case) out << style.bold(name) << "\n";
      last_case = name;
      auto text = "  " + padded(runtime, name_width);
      if (columns(runtime) > name_width) {
        out << "  " << runtime << "\n";
        text = std::string(name_width + 2, ' ');
      }
      for (size_t i = first; i < end; ++i) {
        text += "  " + padded(speedup_cell(files[i].results, name, runtime), widths[i]);
      }
      text.erase(text.find_last_not_of(' ') + 1);
      out << text << "\n";
    }
    first = end;
  }
}

HtmlPage make_html(const Installation& installation, const std::filesystem::path& results_json,
                   const std::filesystem::path& folder) {
  using Outcome = HtmlPage::Outcome;
  const int skipped = kSkipped << 8;  // as wait() would tell it
  try {
    Process process(python_command(installation, "torchpace.report",
                                   {results_json.string(), "--output", folder.string()}));
    process.close_input();
    const auto ending = process.wait(in_seconds(kHtmlLimitSeconds));
    if (ending.empty()) return {Outcome::written, (folder / "report.html").string()};
    const auto said = process.stderr_tail();
    if (ending == describe_status(skipped)) return {Outcome::skipped, said};
    return {Outcome::failed, said.empty() ? ending : ending + ": " + said};
  } catch (const ProcessError& error) {
    return {Outcome::failed, error.what()};
  }
}

}  // namespace torchpace::cli
