// Which rounds count: those in which the host kept the cores where it kept them most of the time.
#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "cores.hpp"
#include "results.hpp"
#include "torchpace/comparison.hpp"

namespace torchpace::cli {
namespace {

/// `visit(generation, round)` of each round of a case, row by row.
void each_round(auto& result, const auto& visit) {
  for (auto& row : result.runtimes) {
    for (auto& generation : row.generations) {
      for (auto& round : generation.rounds) visit(generation, round);
    }
  }
}

std::vector<double> all_message_ns(const Results& results) {
  std::vector<double> times_ns;
  for (const auto& result : results.cases) {
    each_round(result, [&](const Generation&, const Round& round) {
      if (!std::isnan(round.message_ns)) times_ns.push_back(round.message_ns);
    });
  }
  return times_ns;
}

/// Rounds are set aside as a whole, since they are pairs, and by where the cores were alone, never
/// by how long steps took. A generation without a usual round is left out as a whole where enough
/// others remain for an interval; else all of its rounds count.
void set_aside(CaseResult& result, double usual_ns) {
  std::map<int, std::map<int, bool>> elsewhere;  // generation -> round
  each_round(result, [&](const Generation& generation, const Round& round) {
    elsewhere[generation.generation][round.round] |=
        !std::isnan(round.message_ns) && !same_place(round.message_ns, usual_ns);
  });
  const auto is_usual = [](const auto& rounds) {
    return std::any_of(rounds.begin(), rounds.end(), [](const auto& each) { return !each.second; });
  };
  const auto usual = static_cast<size_t>(
      std::count_if(elsewhere.begin(), elsewhere.end(),
                    [&](const auto& generation) { return is_usual(generation.second); }));
  const bool enough = usual >= std::min(elsewhere.size(), kFewestForSignTest);
  for (auto& [number, rounds] : elsewhere) {
    if (enough || is_usual(rounds)) continue;
    for (auto& each : rounds) each.second = false;
  }
  each_round(result, [&](const Generation& generation, Round& round) {
    round.set_aside = elsewhere.at(generation.generation).at(round.round);
  });
}

double set_aside_share(const CaseResult& result) {
  double all = 0, aside = 0;
  each_round(result, [&](const Generation&, const Round& round) {
    ++all;
    aside += round.set_aside;
  });
  return all > 0 ? aside / all : 0;
}

}  // namespace

void derive_cores(Results& results) {
  const auto times_ns = all_message_ns(results);
  results.cores = {};
  if (!times_ns.empty()) {
    results.cores.usual_ns = median(times_ns);
    std::vector<double> elsewhere_ns;
    std::copy_if(times_ns.begin(), times_ns.end(), std::back_inserter(elsewhere_ns),
                 [&](double ns) { return !same_place(ns, results.cores.usual_ns); });
    results.cores.elsewhere_ns = median(elsewhere_ns);  // NaN of none
    results.cores.elsewhere_share =
        static_cast<double>(elsewhere_ns.size()) / static_cast<double>(times_ns.size());
  }
  for (auto& result : results.cases) {
    set_aside(result, results.cores.usual_ns);
    result.set_aside_share = set_aside_share(result);
  }
}

}  // namespace torchpace::cli
