// `torchpace doctor`: what this machine will do to the numbers, and what to do about it.
#pragma once

#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "doctor/host_info.hpp"
#include "results/results.hpp"

namespace torchpace::cli {

/// One line of the doctor's.
struct Finding {
  std::string topic;
  std::string level;   // ok, note, warn
  std::string text;    // what was found and what it means
  std::string advice;  // what to do; empty where there is nothing
};

/// What is found by trying, beside what the kernel says. NaN and empty: not known.
struct MachineTrial {
  double clock_cost_ns = kUnknown;        // of one read of the steady clock
  double clock_resolution_ns = kUnknown;  // smallest step of it that was seen
  double busy_share = kUnknown;           // of processor time, by other programs, while it watched
  double steal_share = kUnknown;          // by other guests
  double steal_share_since_start = kUnknown;
  std::filesystem::path cache;
  double cache_free_bytes = kUnknown;
  std::string python;           // interpreter; empty: none was found
  std::string torch;            // version
  std::string report_packages;  // those of jinja2 and matplotlib that are missing
};

/// Judges the facts. Free of side effects.
std::vector<Finding> examine(const Json& host, const MachineTrial& trial);

/// Watches for 0.3 s who uses the processors, while this program uses none.
void watch_processors(MachineTrial& trial, const std::filesystem::path& root = "/");

struct DoctorOptions {
  bool json = false;
  bool color = false;
  std::string python;           // interpreter to look into; empty: python3
  std::filesystem::path cache;  // folder whose disk is looked at; empty: not looked at
  HostSources sources = HostSources::of_this_machine();
};

/// Measures what this machine can do at most with so many bound threads (2 s): multiply-adds by
/// dtype, and reads of working sets from 32 KiB to 256 MiB. Prints them alone, or with `json` as
/// `limits` of results.json. Returns 0.
int run_limits(int threads, bool json, std::ostream& out);

/// Tries and reads everything (about half a second) and prints the findings: a line each, its
/// advice below it, or with `json` {"host", "findings"}. Returns 0.
int run_doctor(const DoctorOptions& options, std::ostream& out);

}  // namespace torchpace::cli
