#include "report/text_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report/number_format.hpp"
#include "torchpace/measurement.hpp"

namespace torchpace::cli {
namespace {

constexpr double kShownShare = 0.01;  // of rounds that are excluded

double value_of(const std::map<std::string, double>& values, const char* key) {
  const auto found = values.find(key);
  return found == values.end() ? kUnknown : found->second;
}

std::string break_even_of(const RuntimeResult& row, const std::string& reference) {
  if (row.runtime == reference) return "reference";
  if (std::isnan(row.break_even_steps)) return "n/a";
  if (std::isinf(row.break_even_steps)) return "never";
  return row.break_even_steps < 1e6 ? fmt::format("{:.0f}", row.break_even_steps)
                                    : show_amount(row.break_even_steps, "");
}

std::string compile_of(const RuntimeResult& row) {
  if (row.artifact.empty()) return "-";
  return show_seconds(row.compile_s) + (row.compile_cached ? " (earlier)" : "");
}

/// Whether any row knows a value above 0.
bool any_peak(const Results& results, const char* kind) {
  for (const auto& result : results.cases) {
    for (const auto& row : result.runtimes) {
      if (value_of(row.peak_bytes, kind) > 0) return true;
    }
  }
  return false;
}

std::string counted_note(const CaseResult& result) {
  const auto text = counted_bytes(result);
  return text.empty() ? "" : "counted: " + text;
}

}  // namespace

std::string counted_bytes(const CaseResult& result) {
  std::vector<std::string> parts;
  for (const char* key : {"parameters", "gradients", "optimizer", "activations"}) {
    const auto found = result.memory_bytes.find(key);
    if (found != result.memory_bytes.end() && found->second > 0) {
      parts.push_back(fmt::format("{} {}", key, show_bytes(found->second)));
    }
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

bool has_device_time(const CaseResult& result) {
  return std::any_of(result.runtimes.begin(), result.runtimes.end(),
                     [](const RuntimeResult& row) { return !std::isnan(row.device_ns); });
}

std::string device_text(const RuntimeResult& row) {
  if (std::isnan(row.device_ns)) return "n/a";
  const auto device = show_seconds(row.device_ns / 1e9);
  if (std::isnan(row.host_ns)) return device;
  return fmt::format("{}, host {}{}", device, show_seconds(row.host_ns / 1e9),
                     is_launch_bound(row.host_ns, row.device_ns) ? ": launch bound" : "");
}

std::string bound_text(const CaseResult& result) {
  if (!result.limit || result.limit->bound.empty()) return "";
  if (result.limit->bound == "compute") {
    return fmt::format("bound by compute (FMA peak {})",
                       show_amount(result.limit->flops_per_s, "FLOP/s"));
  }
  return fmt::format("bound by memory reads ({} at this size)",
                     show_amount(result.limit->bytes_per_s, "B/s"));
}

std::string about_text(const CaseResult& result) {
  auto text = "noise (A/A) " + show_ratio(result.noise_floor).both();
  if (result.flops > 0) text += "; " + show_amount(result.flops, "FLOP") + " per step";
  if (result.gemm_peak_flops_per_s > 0) {
    text += "; GEMM peak " + show_amount(result.gemm_peak_flops_per_s, "FLOP/s");
  }
  if (const auto bound = bound_text(result); !bound.empty()) text += "; " + bound;
  if (result.items > 0) text += fmt::format("; {:g} {} per step", result.items, result.item);
  return text;
}

Table cold_table(const Results& results) {
  Table table{.title = "cold start",
              .note =
                  "fresh process, file caches warm: start, load, compile and first step follow "
                  "one another; then the time to the tenth step, what compiling took with "
                  "empty caches, and the steps after which it has paid",
              .head = {"runtime", "start", "load", "compile", "1st step", "sum", "to 10th",
                       "empty caches", "break-even"},
              .groups = {}};
  for (const auto& result : results.cases) {
    TableGroup group{.name = result.name, .note = "", .rows = {}};
    for (const auto& row : result.runtimes) {
      if (row.is_copy() || row.is_condition() || std::isnan(row.cold_total_s)) continue;
      std::vector<std::string> cells{row.runtime};
      for (const char* stage : {"start", "load", "compile", "first_step"}) {
        const double seconds = value_of(row.cold_s, stage);
        cells.push_back(seconds == 0 ? "-" : show_seconds(seconds));  // nothing to compile
      }
      cells.push_back(show_seconds(row.cold_total_s));
      cells.push_back(show_seconds(value_of(row.cold_s, "tenth_step")));
      cells.push_back(compile_of(row));
      cells.push_back(break_even_of(row, result.reference));
      group.rows.push_back(std::move(cells));
    }
    if (!group.rows.empty()) table.groups.push_back(std::move(group));
  }
  return table;
}

Table memory_table(const Results& results) {
  constexpr std::pair<const char*, const char*> kKinds[] = {{"resident", "resident"},
                                                            {"device_allocated", "allocated"},
                                                            {"device_reserved", "reserved"},
                                                            {"device_driver", "driver"}};
  Table table{.title = "memory",
              .note = "peak of a fresh process; counted is what the tensors need",
              .head = {"runtime"},
              .groups = {}};
  std::vector<const char*> kinds;
  for (const auto& [kind, head] : kKinds) {
    if (kinds.empty() || any_peak(results, kind)) {
      kinds.push_back(kind);
      table.head.emplace_back(head);
    }
  }
  for (const auto& result : results.cases) {
    TableGroup group{.name = result.name, .note = counted_note(result), .rows = {}};
    for (const auto& row : result.runtimes) {
      if (row.is_copy() || row.is_condition() || row.peak_bytes.empty()) continue;
      std::vector<std::string> cells{row.runtime};
      for (const auto* kind : kinds) cells.push_back(show_bytes(value_of(row.peak_bytes, kind)));
      group.rows.push_back(std::move(cells));
    }
    if (!group.rows.empty()) table.groups.push_back(std::move(group));
  }
  return table;
}

std::vector<Folded> folded_rows(const Results& results) {
  std::vector<Folded> folded;
  if (results.cases.size() < 2) return folded;
  for (const auto& row : results.cases.front().runtimes) {
    // Invalid rows stay in their tables, and their reasons below.
    if (row.status == Status::ok || row.status == Status::invalid || row.is_copy()) continue;
    const bool everywhere =
        std::all_of(results.cases.begin(), results.cases.end(), [&](const CaseResult& result) {
          const auto* other = result.find(row.runtime);
          return other != nullptr && other->status == row.status && other->reason == row.reason;
        });
    if (!everywhere) continue;
    folded.push_back({row.runtime, fmt::format("{} on all {} cases: {}", to_string(row.status),
                                               results.cases.size(), row.reason)});
  }
  return folded;
}

bool is_folded(const std::vector<Folded>& folded, const std::string& runtime) {
  return std::any_of(folded.begin(), folded.end(),
                     [&](const Folded& each) { return each.runtime == runtime; });
}

std::vector<std::string> skipped_lines(const CaseResult& result,
                                       const std::vector<Folded>& folded) {
  std::vector<std::pair<std::string, std::vector<std::string>>> reasons;
  for (const auto& row : result.runtimes) {
    if (row.status != Status::skipped || is_folded(folded, row.runtime)) continue;
    const auto reason = row.reason.empty() ? "no reason given" : row.reason;
    auto found = std::find_if(reasons.begin(), reasons.end(),
                              [&](const auto& each) { return each.first == reason; });
    if (found == reasons.end()) found = reasons.insert(found, {reason, {}});
    found->second.push_back(row.runtime);
  }
  std::vector<std::string> lines;
  for (const auto& [reason, names] : reasons) {
    lines.push_back(fmt::format("{} skipped: {}", fmt::join(names, ", "), reason));
  }
  return lines;
}

std::string excluded_text(const CaseResult& result) {
  if (result.excluded_share < kShownShare) return "";
  return fmt::format("{} of rounds excluded: vCPUs had migrated to another die",
                     show_share(result.excluded_share));
}

std::string approximation_text(const RuntimeResult& row) {
  if (!row.approximate || !row.parity || !row.parity->passed) return "";
  const auto& parity = *row.parity;
  constexpr double kSlack = 1e-9;  // of decimal numbers
  std::vector<std::string> parts;
  if (!std::isnan(parity.cosine))
    parts.push_back(fmt::format("cos {:.4f}", std::floor(1e4 * parity.cosine + kSlack) / 1e4));
  if (!std::isnan(parity.top1))
    parts.push_back(fmt::format("top-1 {:.1f} %", std::floor(1e3 * parity.top1 + kSlack) / 10));
  return parts.empty() ? show_error(parity.max_abs_error)
                       : fmt::format("{}", fmt::join(parts, ", "));
}

std::string verdict_text(const RuntimeResult& row) {
  return row.speedup.verdict + (row.differs.empty() ? "" : "*");
}

}  // namespace torchpace::cli
