// Which rounds count: those in which the host kept the cores where it kept them most of the time.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "analysis/analyze.hpp"
#include "controller/core_latency.hpp"
#include "results/results.hpp"
#include "torchpace/comparison.hpp"

namespace torchpace::cli {
namespace {

using RoundName = std::pair<int, int>;  // invocation, round

/// `visit(row, invocation, round)` of each round of a case, row by row.
void each_round(auto& result, const auto& visit) {
  for (auto& row : result.runtimes) {
    for (auto& invocation : row.invocations) {
      for (auto& round : invocation.rounds) visit(row, invocation, round);
    }
  }
}

/// Rounds in which a block ran on migrated vCPUs. They are excluded as a whole, since they are
/// pairs, and by where the cores were alone, never by how long steps took.
std::set<RoundName> migrated_rounds(const CaseResult& result, double usual_ns) {
  std::set<RoundName> migrated;
  each_round(result, [&](const auto&, const auto& invocation, const auto& round) {
    if (std::isnan(round.core_latency_ns) || same_place(round.core_latency_ns, usual_ns)) return;
    migrated.insert({invocation.invocation, round.round});
  });
  return migrated;
}

/// Of those, the ones that a row leaves out. An invocation with hardly a usual round is left out as
/// a whole where enough others remain for an interval; else all of its rounds count.
std::set<RoundName> left_out(const RuntimeResult& row, const std::set<RoundName>& migrated,
                             double confidence) {
  std::vector<const Invocation*> usual, other;
  for (const auto& invocation : row.invocations) {
    const auto rounds = static_cast<long>(invocation.rounds.size());
    const auto usual_rounds =
        std::count_if(invocation.rounds.begin(), invocation.rounds.end(), [&](const Round& round) {
          return !migrated.contains({invocation.invocation, round.round});
        });
    const bool is_usual = usual_rounds >= std::min<long>(rounds, kFewestRounds);
    (is_usual ? usual : other).push_back(&invocation);
  }
  std::set<RoundName> left;
  for (const auto* invocation : usual) {
    for (const auto& round : invocation->rounds) {
      if (migrated.contains({invocation->invocation, round.round})) {
        left.insert({invocation->invocation, round.round});
      }
    }
  }
  if (usual.size() < std::min(row.invocations.size(), sign_test_needs(confidence))) return left;
  for (const auto* invocation : other) {
    for (const auto& round : invocation->rounds) {
      left.insert({invocation->invocation, round.round});
    }
  }
  return left;
}

void exclude(CaseResult& result, double usual_ns, double confidence) {
  const auto migrated = migrated_rounds(result, usual_ns);
  std::set<RoundName> counted, left_anywhere;  // in the rows beside the reference
  result.mixed = false;
  for (auto& row : result.runtimes) {
    if (row.runtime == result.reference) continue;
    const auto left = left_out(row, migrated, confidence);
    left_anywhere.insert(left.begin(), left.end());
    for (auto& invocation : row.invocations) {
      for (auto& round : invocation.rounds) {
        const RoundName name{invocation.invocation, round.round};
        round.excluded = left.contains(name);
        if (round.excluded) continue;
        counted.insert(name);
        result.mixed |= migrated.contains(name);
      }
    }
  }
  double all = 0, aside = 0;
  each_round(result, [&](const auto& row, const auto& invocation, auto& round) {
    if (row.runtime == result.reference) {
      const RoundName name{invocation.invocation, round.round};
      round.excluded = left_anywhere.contains(name) && !counted.contains(name);
    }
    ++all;
    aside += round.excluded;
  });
  result.excluded_share = all > 0 ? aside / all : 0;
}

/// Core-to-core latencies of all rounds.
std::vector<double> all_core_latency_ns(const Results& results) {
  std::vector<double> times_ns;
  for (const auto& result : results.cases) {
    each_round(result, [&](const auto&, const auto&, const auto& round) {
      if (!std::isnan(round.core_latency_ns)) times_ns.push_back(round.core_latency_ns);
    });
  }
  return times_ns;
}

}  // namespace

void exclude_rounds(Results& results) {
  const auto times_ns = all_core_latency_ns(results);
  results.cores = {};
  if (!times_ns.empty()) {
    results.cores.usual_ns = median(times_ns);
    std::vector<double> migrated_ns;
    std::copy_if(times_ns.begin(), times_ns.end(), std::back_inserter(migrated_ns),
                 [&](double ns) { return !same_place(ns, results.cores.usual_ns); });
    results.cores.migrated_ns = median(migrated_ns);  // NaN of none
    results.cores.migrated_share =
        static_cast<double>(migrated_ns.size()) / static_cast<double>(times_ns.size());
  }
  for (auto& result : results.cases) {
    exclude(result, results.cores.usual_ns, results.plan.confidence);
  }
}

}  // namespace torchpace::cli
