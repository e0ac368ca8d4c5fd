// report.md: the results as Markdown tables.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>

#include "report/breakdown_tables.hpp"
#include "report/console_report.hpp"
#include "report/number_format.hpp"
#include "report/text_table.hpp"
#include "support/error.hpp"
#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

/// Text in a cell: a bar would end the cell, a line break the table.
std::string cell(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '|' || c == '\\' || c == '`' || c == '*' || c == '_' || c == '<') result += '\\';
    result += c == '\n' || c == '\r' ? ' ' : c;
  }
  return result;
}

std::string line(const std::vector<std::string>& cells) {
  return fmt::format("| {} |\n", fmt::join(cells, " | "));
}

std::string parity_of(const RuntimeResult& row) {
  if (!row.parity) return "n/a";
  if (const auto text = approximation_text(row); !text.empty()) return text;
  return fmt::format("{} of {}", show_error(row.parity->max_abs_error),
                     show_error(row.parity->tolerance));
}

std::string peak_of(const RuntimeResult& row) {
  const auto resident = row.peak_bytes.find("resident");
  return resident == row.peak_bytes.end() ? "n/a" : show_bytes(resident->second);
}

std::string percentile_of(const RuntimeResult& row, const char* name) {
  const auto found = row.percentiles_ns.find(name);
  return found == row.percentiles_ns.end() ? "n/a" : show_seconds(found->second / 1e9);
}

std::string verdict_of(const RuntimeResult& row) {
  if (row.status == Status::failed) return to_string(row.status);
  if (row.is_copy()) return "A/A copy";
  if (row.speedup.verdict == "REFERENCE") return "reference";
  return fmt::format("**{}**{}", row.speedup.verdict, row.differs.empty() ? "" : "\\*");
}

std::string case_table(const CaseResult& result, const std::vector<Folded>& folded) {
  auto text = fmt::format("## {}\n\n{}", cell(result.name), about_text(result));
  text += "\n\n";
  const bool on_device = has_device_time(result);
  text += line({"runtime", "verdict", "speedup", "step", "p90", "p99", "items/s", "FLOP/s",
                "% of GEMM peak", "% of limit", "max abs error",
                on_device ? "device" : "page faults/step", "samples", "cold start", "peak memory"});
  text += line({"---", "---", "---", "---", "---", "---", "---", "---", "---", "---", "---", "---",
                "---", "---", "---"});
  for (const auto& row : result.runtimes) {
    if (row.status == Status::skipped || is_folded(folded, row.runtime)) continue;
    const bool measured = row.status == Status::ok;
    const bool is_reference = row.runtime == result.reference;
    text += line({cell(row.runtime), verdict_of(row),
                  measured && is_reference ? "1" : show_ratio(row.speedup.ratio).both(),
                  show_duration(row.step_ns).both(), percentile_of(row, "p90"),
                  percentile_of(row, "p99"), show_rate(result.items, row.step_ns).both(),
                  show_rate(result.flops, row.step_ns, "FLOP/s").both(),
                  show_share(row.gemm_peak_share), show_share(row.limit_share), parity_of(row),
                  on_device ? device_text(row) : show_number(row.page_faults_per_step),
                  row.samples > 0 ? std::to_string(row.samples) : "n/a",
                  show_seconds(row.cold_total_s), peak_of(row)});
  }
  for (const auto& row : result.runtimes) {
    if (is_folded(folded, row.runtime)) continue;
    if (row.status == Status::failed) {
      text += fmt::format("\n- {} failed: {}", cell(row.runtime), cell(row.reason));
    } else if (!row.speedup.advice.empty()) {
      text += fmt::format("\n- {}: to resolve it: {}", cell(row.runtime), cell(row.speedup.advice));
    }
  }
  for (const auto& skipped : skipped_lines(result, folded)) text += "\n- " + cell(skipped);
  for (const auto& note : result.notes) text += "\n- " + cell(note);
  if (const auto excluded = excluded_text(result); !excluded.empty()) {
    text += "\n- " + cell(excluded);
  }
  return text + "\n\n";
}

/// One table for all cases; what was counted of a case stands below.
std::string markdown_table(const Table& table) {
  if (table.groups.empty()) return "";
  auto text = fmt::format("## {}\n\n{}.\n\n", table.title, table.note);
  auto head = table.head;
  head.insert(head.begin(), "case");
  text += line(head) + line(std::vector<std::string>(head.size(), "---"));
  std::string notes;
  for (const auto& group : table.groups) {
    for (const auto& row : group.rows) {
      std::vector<std::string> cells{cell(group.name)};
      for (const auto& each : row) cells.push_back(cell(each));
      text += line(cells);
    }
    if (!group.note.empty()) notes += fmt::format("\n- {} {}", cell(group.name), group.note);
  }
  return text + notes + (notes.empty() ? "\n" : "\n\n");
}

/// A value of the environment on one line; null is n/a.
std::string shown(const Json& value) {
  if (value.is_null()) return "n/a";
  return value.is_string() ? value.get<std::string>()
                           : value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// The arguments, of which the first is `compare`, as a shell takes them.
std::string command_of(const std::vector<std::string>& arguments) {
  std::string text = "torchpace";
  for (const auto& argument : arguments) {
    const bool plain =
        !argument.empty() &&
        argument.find_first_not_of(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%_-+=:,./") ==
            std::string::npos;
    text += ' ';
    if (plain) {
      text += argument;
      continue;
    }
    text += '\'';
    for (const char c : argument) text += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
    text += '\'';
  }
  return text;
}

}  // namespace

std::string markdown_report(const Results& results) {
  const auto& plan = results.plan;
  std::string text = "# torchpace report\n\n";
  if (!results.complete) {
    text +=
        "**Incomplete**: the run was stopped before its end; what is here was measured, the rest "
        "was not. `--resume` continues it.\n\n";
  }
  text += fmt::format(
      "{}; {}, {}, {}, {} allocator; {}; reference {}. Medians, in brackets their intervals; "
      "speedup = reference time / runtime time. Error: the largest difference from the float64 run "
      "(without one: from the reference), of what is allowed.\n\n",
      results.created, plan.device, plan.dtype, counted(plan.threads, "thread"), plan.allocator,
      counted(plan.invocations, "invocation"), cell(plan.reference));
  const auto folded = folded_rows(results);
  for (const auto& result : results.cases) text += case_table(result, folded);
  for (const auto& each : folded) {
    text += fmt::format("- {} {}\n", cell(each.runtime), cell(each.text));
  }
  if (!folded.empty()) text += "\n";
  for (const auto& table : explanation_tables(results, Form::markdown)) {
    text += markdown_table(table);
  }
  text += markdown_table(cold_table(results)) + markdown_table(memory_table(results));
  if (const auto warnings = grouped_warnings(results); !warnings.empty()) {
    text += "## Warnings\n\n";
    for (const auto& warning : warnings) {
      text += fmt::format("- **{}** {}\n", warning.severity, cell(warning.text));
    }
    text += "\n";
  }
  text += "## Environment\n\n" + line({"", ""}) + line({"---", "---"});
  for (const auto& [key, value] : results.environment.items()) {
    text += line({cell(key), cell(shown(value))});
  }
  return text + fmt::format("\n## Again\n\n```\n{}\n```\n", command_of(plan.arguments));
}

void write_markdown(const Results& results, const std::filesystem::path& path) {
  const auto temporary = path.string() + ".tmp";
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file << markdown_report(results);
  file.close();
  if (file && std::rename(temporary.c_str(), path.c_str()) == 0) return;
  const int error = errno;
  unlink(temporary.c_str());
  throw Error(fmt::format("{}: cannot be written: {}; free some space or choose another --output",
                          path.string(), strerror(error)),
              kCaseFailed);
}

}  // namespace torchpace::cli
