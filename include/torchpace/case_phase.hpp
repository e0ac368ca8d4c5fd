// The phases of a case, in one table. Twin: python/torchpace/case_phase.py. Free of torch.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "torchpace/settings.hpp"

namespace torchpace {

/// What a step of a case does, and how it is timed.
struct CasePhase {
  std::string_view name;
  bool trains = false;        // a step is forward, loss, backward and update; else it is a forward
  bool batch_of_one = false;  // and every step is synchronized: its latency, not the throughput
};

inline constexpr std::array kCasePhases{
    CasePhase{.name = "train", .trains = true},
    CasePhase{.name = "inference"},
    CasePhase{.name = "latency", .batch_of_one = true},
};

inline std::vector<std::string> case_phase_names() {
  std::vector<std::string> names;
  for (const auto& phase : kCasePhases) names.emplace_back(phase.name);
  return names;
}

/// The phase of that name; none where there is no such phase.
constexpr const CasePhase* find_case_phase(std::string_view name) {
  for (const auto& phase : kCasePhases) {
    if (phase.name == name) return &phase;
  }
  return nullptr;
}

/// As that, but a phase of cases that are not torchpace's, `other`, is none of the three.
constexpr CasePhase case_phase_named(std::string_view name) {
  const auto* phase = find_case_phase(name);
  return phase ? *phase : CasePhase{.name = name};
}

/// Of the key `phase`. Throws SettingsError where there is none, or an unknown name.
inline const CasePhase& case_phase(const Settings& settings) {
  const auto name = settings.require<std::string>("phase");
  if (const auto* phase = find_case_phase(name)) return *phase;
  throw SettingsError("phase: expected train, inference or latency, got '" + name + "'");
}

}  // namespace torchpace
