#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

#include "analysis/analyze.hpp"
#include "report/console_report.hpp"
#include "report/display.hpp"
#include "report/headline.hpp"
#include "report/number_format.hpp"
#include "report/text_table.hpp"
#include "support/error.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;
const fs::path kFixtures = TORCHPACE_FIXTURES;
const double kNan = kUnknown;

Interval interval(double median, double low = kUnknown, double high = kUnknown) {
  return {.median = median, .low = low, .high = high};
}

Results fixture() {
  auto results = load_results(kFixtures / "results.json");
  analyze(results);
  return results;
}

std::string printed(const Results& results, bool color = false) {
  std::ostringstream out;
  print_report(results, out, color);
  return out.str();
}

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Compares with a file beside the fixture; TORCHPACE_UPDATE_GOLDEN writes it instead.
void expect_golden(const std::string& text, const std::string& name) {
  const auto path = kFixtures / name;
  if (std::getenv("TORCHPACE_UPDATE_GOLDEN") != nullptr) std::ofstream(path) << text;
  EXPECT_EQ(text, read(path)) << "if the change is meant: TORCHPACE_UPDATE_GOLDEN=1";
}

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

Results one_row(RuntimeResult row) {
  Results results;
  results.complete = true;
  CaseResult result;
  result.name = "own/size:1";
  result.reference = "reference";
  result.runtimes.push_back(std::move(row));
  results.cases.push_back(std::move(result));
  return results;
}

TEST(Numbers, ShowNoDigitThatTheIntervalDoesNotSupport) {
  EXPECT_EQ(show_duration(interval(11.4761e6, 11.3449e6, 11.6554e6)).both(),
            "11.5 ms [11.3, 11.7]");
  EXPECT_EQ(show_duration(interval(8.652e6, 8.621e6, 8.802e6)).both(), "8.65 ms [8.62, 8.80]");
  EXPECT_EQ(show_duration(interval(123.4e6, 101e6, 180e6)).both(), "120 ms [100, 180]");
  EXPECT_EQ(show_duration(interval(1.24e9, 1.21e9, 1.3e9)).both(), "1.24 s [1.21, 1.30]");
  EXPECT_EQ(show_duration(interval(41.5e3)).both(), "42 µs");  // alone: two digits
  EXPECT_EQ(show_duration(interval(750)).both(), "750 ns");
  EXPECT_EQ(show_duration(interval(41.5e3, 41.5e3, 41.5e3)).both(), "41.50 µs [41.50, 41.50]");
  EXPECT_EQ(show_duration(interval(104e6, 2.31e6, 2512e6)).both(), "100 ms [2, 2500]");
  EXPECT_EQ(show_duration(interval(300, 80, 173412)).both(), "300 ns [80, 173400]");
  EXPECT_EQ(show_duration(interval(kNan)).both(), "n/a");
}

TEST(Numbers, KeepTheSideOfOne) {
  EXPECT_EQ(show_ratio(interval(1.3208, 1.3146, 1.3566)).both(), "1.321x [1.315, 1.357]");
  EXPECT_EQ(show_ratio(interval(1.5, 1.004, 2.1)).both(), "1.5x [1.004, 2.1]");
  EXPECT_EQ(show_ratio(interval(0.7, 0.3, 0.98)).both(), "0.7x [0.3, 0.98]");
  EXPECT_EQ(show_ratio(interval(123.4, 100, 200)).both(), "123x [100, 200]");
  EXPECT_EQ(show_ratio(interval(1.33)).both(), "1.3x");
  EXPECT_EQ(show_ratio(interval(kNan)).both(), "n/a");
}

TEST(Numbers, ShowRatesFromStepTimes) {
  EXPECT_EQ(show_rate(512, interval(11.476e6, 11.345e6, 11.655e6)).both(), "44.6k [43.9, 45.1]");
  EXPECT_EQ(show_rate(2.6e9, interval(8.652e6, 8.621e6, 8.802e6), "FLOP/s").both(),
            "301 GFLOP/s [295, 302]");
  EXPECT_EQ(show_rate(0, interval(1e6)).both(), "n/a");
  EXPECT_EQ(show_rate(10, interval(kNan)).both(), "n/a");
}

TEST(Numbers, ShowSingleValues) {
  EXPECT_EQ(show_number(0), "0");
  EXPECT_EQ(show_number(0.0123), "0.012");
  EXPECT_EQ(show_number(312), "312");
  EXPECT_EQ(show_number(kNan), "n/a");
  EXPECT_EQ(show_seconds(3.31), "3.3 s");
  EXPECT_EQ(show_seconds(0.0871), "87 ms");
  EXPECT_EQ(show_seconds(0.435), "440 ms");
  EXPECT_EQ(show_seconds(331.4), "5 min 31 s");
  EXPECT_EQ(show_bytes(412 * 0x1p20), "412 MiB");
  EXPECT_EQ(show_bytes(0), "0 B");
  EXPECT_EQ(show_amount(2.6e9, "FLOP"), "2.60 GFLOP");
  EXPECT_EQ(show_error(2.384e-7), "2.4e-07");
  EXPECT_EQ(show_error(kNan), "n/a");
}

TEST(Numbers, CountColumnsOfUnicode) {
  EXPECT_EQ(columns("läufer"), 6U);
  EXPECT_EQ(columns("日本"), 4U);
  EXPECT_EQ(columns("µs π"), 4U);
}

/// The fixtures of the page: what they show is what this program makes of them.
TEST(Display, IsInTheFixturesOfThePage) {
  for (const char* name : {"results.json", "explanation.json"}) {
    const auto path = kFixtures / name;
    auto file = Json::parse(read(path));
    auto results = load_results(path);
    analyze(results);
    const auto found = display(results);
    if (std::getenv("TORCHPACE_UPDATE_GOLDEN") != nullptr) {
      auto text = read(path);  // the last member, so that the lines of the others stay
      text.resize(std::min(text.find(",\n\"display\":"), text.rfind('}')));
      std::ofstream(path) << text << ",\n\"display\":" << found.dump() << "}\n";
      file["display"] = Json::parse(found.dump());
    }
    EXPECT_EQ(Json::parse(found.dump()), file["display"]) << name;
  }
}

TEST(Display, RanksAndSaysWhatTheTerminalSays) {
  const auto results = fixture();
  const auto shown = display(results);
  const auto text = printed(results);
  for (const auto& line : shown["summary"]) {
    EXPECT_NE(text.find(line.get<std::string>().substr(0, 40)), std::string::npos) << line;
  }
  for (size_t i = 0; i < results.cases.size(); ++i) {
    double last = INFINITY;
    for (const auto& name : shown["cases"][i]["ranking"]) {
      const auto& row = *results.cases[i].find(name.get<std::string>());
      EXPECT_FALSE(row.is_copy() || row.is_condition()) << name;
      EXPECT_LE(row.speedup.ratio.median, last);
      last = row.speedup.ratio.median;
    }
    EXPECT_EQ(shown["cases"][i]["rows"].size(), results.cases[i].runtimes.size());
  }
}

TEST(Headline, NamesAnUndecidedRuntimeThatMayBeAsFast) {
  CaseResult result;
  result.reference = "reference";
  const auto add = [&](const char* name, const char* verdict, double low, double median,
                       double high) {
    RuntimeResult row;
    row.runtime = name;
    row.speedup = {.ratio = interval(median, low, high), .method = "", .verdict = verdict};
    result.runtimes.push_back(row);
  };
  add("sure", "FASTER", 1.4, 1.5, 1.6);
  add("perhaps", "UNSURE", 0.9, 1.2, 1.45);
  add("no", "SAME", 0.99, 1.0, 1.01);
  result.fastest = Fastest{"sure", {"perhaps"}};
  const auto [leader, sentence, others] = headline(result, 0.02);
  EXPECT_EQ(leader, "sure");
  EXPECT_NE(sentence.find("Not significantly different from perhaps 1.2x"), std::string::npos);
  EXPECT_EQ(others, "The same as reference within 2 %: no 1.00x [0.99, 1.01].");
  result.fastest.reset();
  EXPECT_EQ(headline(result, 0.02).leader, "");
  result.runtimes.clear();
  EXPECT_EQ(headline(result, 0.02).sentence, "Nothing to compare: only the reference ran.");
}

void expect_same_limit(const Json& found, const Json& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [key, value] : expected.items()) {
    if (value.is_string()) {
      EXPECT_EQ(found[key], value) << key;
    } else {
      EXPECT_NEAR(found[key].get<double>() / value.get<double>(), 1, 1e-9) << key;
    }
  }
}

TEST(Report, DerivingTheFixtureGivesItsOwnSummaries) {
  // Written by tests/fixtures/make_results.py, with statistics of its own.
  const auto file = Json::parse(read(kFixtures / "results.json"));
  const auto derived = to_json(fixture());
  for (size_t i = 0; i < file["cases"].size(); ++i) {
    for (const char* key : {"fastest", "notes"}) {
      EXPECT_EQ(derived["cases"][i][key], file["cases"][i][key]) << file["cases"][i]["case"];
    }
    const char* peak = "gemm_peak_flops_per_s";
    EXPECT_NEAR(derived["cases"][i][peak].get<double>() / file["cases"][i][peak].get<double>(), 1,
                1e-9);
    const auto none = Json::object();
    expect_same_limit(derived["cases"][i].value("limit", none),
                      file["cases"][i].value("limit", none));
    for (size_t j = 0; j < file["cases"][i]["runtimes"].size(); ++j) {
      const auto& expected = file["cases"][i]["runtimes"][j];
      const auto& found = derived["cases"][i]["runtimes"][j];
      const auto where = expected["runtime"].dump() + " of case " + std::to_string(i);
      EXPECT_EQ(found["speedup"]["verdict"], expected["speedup"]["verdict"]) << where;
      EXPECT_EQ(found["speedup"]["advice"], expected["speedup"]["advice"]) << where;
      if (expected["status"] != "ok") continue;
      EXPECT_EQ(found["differs"], expected["differs"]) << where;
      EXPECT_EQ(found["break_even_steps"], expected["break_even_steps"]) << where;
      EXPECT_EQ(found.value("implausible", ""), expected.value("implausible", "")) << where;
      for (const char* share : {"fma_peak_share", "bandwidth_share", "limit_share"}) {
        ASSERT_EQ(found.contains(share), expected.contains(share)) << where;
        if (!found.contains(share)) continue;
        EXPECT_NEAR(found[share].get<double>() / expected[share].get<double>(), 1, 1e-9) << where;
      }
      EXPECT_NEAR(found["cold_total_s"].get<double>(), expected["cold_total_s"].get<double>(), 1e-9)
          << where;
      for (const char* name : {"step_ns", "speedup"}) {
        for (const char* bound : {"median", "low", "high"}) {
          const auto& value = expected[name][bound];
          if (value.is_null()) continue;  // of the reference to itself
          EXPECT_NEAR(found[name][bound].get<double>() / value.get<double>(), 1, 1e-9)
              << where << " " << name << " " << bound;
        }
      }
    }
  }
}

TEST(Report, ARowSaysWhereTheDeviceWaitsForTheHost) {
  RuntimeResult row;
  EXPECT_EQ(device_text(row), "n/a");
  row.device_ns = 100e3;
  EXPECT_EQ(device_text(row), "100 µs");
  row.host_ns = 89e3;
  EXPECT_EQ(device_text(row), "100 µs, host 89 µs");
  row.host_ns = 90e3;
  EXPECT_EQ(device_text(row), "100 µs, host 90 µs: launch bound");
  CaseResult result;
  EXPECT_FALSE(has_device_time(result));
  result.runtimes.push_back(row);
  EXPECT_TRUE(has_device_time(result));
}

TEST(Report, TableIsTheGoldenOne) { expect_golden(printed(fixture()), "report.txt"); }

TEST(Report, MarkdownIsTheGoldenOne) { expect_golden(markdown_report(fixture()), "report.md"); }

/// True where `token`, as printed, is `value` in some unit, rounded at the token's last place.
bool is_shown_as(const std::string& token, double value) {
  const auto point = token.find('.');
  const auto decimals = point == std::string::npos ? 0 : token.size() - point - 1;
  const double number = std::stod(token);
  for (const double unit : {1.0, 1e3, 1e6, 1e9, 1e12}) {
    double place = std::pow(10.0, -static_cast<double>(decimals));
    // Whole numbers may end in zeros that are rounded.
    while (decimals == 0 && number != 0 && std::fmod(number, place * 10) == 0) place *= 10;
    if (std::abs(value / unit - number) <= 0.5000001 * place) return true;
  }
  return false;
}

TEST(Report, EveryNumberOfARowIsOneOfItsResults) {
  const auto results = fixture();
  const auto lines = lines_of(printed(results));
  const std::regex numbers(R"([0-9]+\.?[0-9]*(e-?[0-9]+)?)");
  int checked = 0;
  for (const auto& result : results.cases) {
    auto line = std::find(lines.begin(), lines.end(), result.name);
    ASSERT_NE(line, lines.end());
    for (const auto& row : result.runtimes) {
      if (row.status != Status::ok) continue;
      while (line != lines.end() && !line->starts_with("  " + row.runtime)) ++line;
      ASSERT_NE(line, lines.end()) << row.runtime;
      auto text = line->substr(2 + row.runtime.size());
      if (text.empty()) text = *++line;  // the name has a line of its own
      std::vector<double> values = {1, row.page_faults_per_step, row.parity->max_abs_error};
      for (const auto& bounds : {row.step_ns, row.speedup.ratio}) {
        values.insert(values.end(), {bounds.median, bounds.low, bounds.high});
      }
      values.push_back(result.items * 1e9 / row.step_ns.median);
      values.push_back(100 * row.gemm_peak_share);
      values.push_back(100 * row.limit_share);
      for (std::sregex_iterator token(text.begin(), text.end(), numbers), end; token != end;
           ++token) {
        const auto digits = token->str();
        const bool is_error = digits.find('e') != std::string::npos;
        const auto matches = [&](double value) {
          return is_error ? std::abs(value / std::stod(digits) - 1) < 0.05
                          : is_shown_as(digits, value);
        };
        EXPECT_TRUE(std::any_of(values.begin(), values.end(), matches))
            << digits << " in " << *line;
        ++checked;
      }
    }
  }
  EXPECT_GT(checked, 100);
}

TEST(Report, FitsIntoTheWidthOfItsTables) {
  for (const auto& line : lines_of(printed(fixture()))) EXPECT_LE(columns(line), 112U) << line;
}

void scale(Invocation& invocation, double factor) {
  for (auto& round : invocation.rounds) {
    for (double& ns : round.step_ns) ns *= factor;
  }
}

TEST(Report, NamesTheFastestAndWhatCannotBeToldFromIt) {
  auto results = fixture();
  results.cases.resize(1);
  auto& result = results.cases[0];
  auto& fast = *result.find("cpp-compiled-train");
  auto& close = *result.find("cpp-eager");
  fast.environment = close.environment;
  close.invocations = fast.invocations;
  for (auto& invocation : close.invocations) scale(invocation, 1.0001);
  analyze(results);
  const auto one_line = std::regex_replace(printed(results), std::regex("\\s+"), " ");
  EXPECT_NE(
      one_line.find(result.name + ": cpp-compiled-train, " + show_ratio(fast.speedup.ratio).both() +
                    "; not significantly different from cpp-eager"),
      std::string::npos)
      << one_line;
  for (auto* row : {&fast, &close}) {
    for (auto& invocation : row->invocations) scale(invocation, 4);
  }
  analyze(results);
  EXPECT_NE(printed(results).find(result.name + ": py-eager (the reference)"), std::string::npos);
}

TEST(Report, AConditionOfARuntimeIsNoCandidateForTheFastest) {
  auto results = fixture();
  auto& result = results.cases[0];
  result.find("cpp-compiled-train")->condition_of = "cpp-eager";
  analyze(results);
  ASSERT_TRUE(result.fastest);
  EXPECT_EQ(result.fastest->runtime, "cpp-eager");
}

TEST(Report, AnImplausibleRowIsShownAndIsNowhereCounted) {
  const auto text = printed(fixture());
  EXPECT_TRUE(std::regex_search(text, std::regex("  cpp-aot +7.9[0-9]* µs .* IMPLAUSIBLE")))
      << text;
  EXPECT_NE(text.find("  cpp-aot: implausible: 177 times the FMA peak"), std::string::npos);
  EXPECT_NE(text.find("warning: cpp-aot: 177 times the FMA peak"), std::string::npos);
  EXPECT_NE(text.find("gptlite_inference/size:quick: cpp-eager, 1.003x"), std::string::npos);
  EXPECT_NE(text.find("INVALID 1, IMPLAUSIBLE 1"), std::string::npos);
  auto results = fixture();
  results.cases = {results.cases[1], results.cases[1]};
  EXPECT_NE(printed(results).find("no geometric mean of cpp-aot"), std::string::npos);
}

TEST(Report, AnApproximateRowIsShownAndIsNowhereCounted) {
  auto results = fixture();
  for (auto& result : results.cases) {
    auto* row = result.find("cpp-eager");
    if (row == nullptr) continue;
    row->approximate = true;
    row->parity = Parity();
    row->parity->passed = true;
    row->parity->max_abs_error = 0.02;
    row->parity->cosine = 0.99989;
    row->parity->top1 = 0.9919;
  }
  analyze(results);
  auto& result = results.cases[1];  // cpp-eager is the fastest, and cpp-aot implausible
  const auto& row = *result.find("cpp-eager");
  EXPECT_EQ(row.speedup.verdict, "APPROXIMATE");
  EXPECT_TRUE(row.speedup.ratio.bounded());
  EXPECT_TRUE(std::isnan(row.break_even_steps));
  EXPECT_FALSE(result.fastest);
  EXPECT_TRUE(ranking(result).empty());
  for (const auto& [word, count] : tally(results)) EXPECT_NE(word, "APPROXIMATE");
  const auto said = headline(result, 0.02);
  EXPECT_EQ(said.leader, "");
  EXPECT_NE(said.others.find("Approximate: cpp-eager " + speedup_text(row) +
                             " (cos 0.9998, top-1 99.1 %)."),
            std::string::npos)
      << said.others;
  const auto text = printed(results), markdown = markdown_report(results);
  EXPECT_TRUE(std::regex_search(
      text, std::regex("  cpp-eager\\s+3.* APPROXIMATE .* cos 0\\.9998, top-1 99\\.1 %")))
      << text;
  EXPECT_NE(text.find("cpp-eager: approximate: no tolerance judges the error"), std::string::npos);
  EXPECT_EQ(text.find("geometric mean of cpp-eager"), std::string::npos);
  EXPECT_EQ(text.find("cpp-eager: geometric mean"), std::string::npos);
  EXPECT_NE(markdown.find("**APPROXIMATE**"), std::string::npos);
  EXPECT_NE(markdown.find("| cos 0.9998, top-1 99.1 % |"), std::string::npos);
  EXPECT_EQ(display(results)["cases"][1]["rows"][1]["error"], "cos 0.9998, top-1 99.1 %");
}

TEST(Report, TheErrorOfAnApproximateRowIsRoundedDown) {
  RuntimeResult row;
  row.parity = Parity();
  row.parity->passed = true;
  row.parity->max_abs_error = 3;
  row.parity->cosine = 0.99999;
  row.parity->top1 = 0.9996;
  EXPECT_EQ(approximation_text(row), "");
  row.approximate = true;
  EXPECT_EQ(approximation_text(row), "cos 0.9999, top-1 99.9 %");
  row.parity->top1 = 1;
  row.parity->cosine = 1;
  EXPECT_EQ(approximation_text(row), "cos 1.0000, top-1 100.0 %");
  row.parity->top1 = kNan;
  EXPECT_EQ(approximation_text(row), "cos 1.0000");
  row.parity->cosine = kNan;
  EXPECT_EQ(approximation_text(row), "3.0e+00");
  row.parity->passed = false;
  EXPECT_EQ(approximation_text(row), "");
}

TEST(Report, NotesOfRowsStandOnceBelowTheirTable) {
  const auto results = fixture();
  const auto text = printed(results), markdown = markdown_report(results);
  const auto count = [](const std::string& all, const std::string& part) {
    int found = 0;
    for (auto at = all.find(part); at != std::string::npos; at = all.find(part, at + 1)) ++found;
    return found;
  };
  EXPECT_EQ(count(text, "cpp-eager, cpp-aot: traced: a TracerWarning"), 1) << text;
  EXPECT_EQ(count(markdown, "\n- cpp-eager, cpp-aot: traced: a TracerWarning"), 1);
  EXPECT_EQ(count(text, "TracerWarning"), 1);
  EXPECT_EQ(count(text, "no float64 run (its weights are packed)"), 1);
  EXPECT_EQ(count(markdown, "no float64 run"), 1);
  EXPECT_EQ(count(text, "  cpp-compiled-train: invalid: output differs by 0.0417"), 1);
  EXPECT_EQ(count(markdown, "\n- cpp-compiled-train: invalid: output differs by 0.0417"), 1);
}

TEST(Report, TheReferenceIsJudgedToo) {
  auto results = fixture();
  results.cases.resize(1);
  for (auto& row : results.cases[0].runtimes) {
    row.status = Status::invalid;
    row.invocations.clear();
    row.reason = "the reference is farther from its own float64 run than rounding explains";
  }
  analyze(results);
  const auto text = printed(results);
  EXPECT_TRUE(std::regex_search(text, std::regex("  py-eager +n/a +n/a +INVALID .* 2.4e-07")))
      << text;
  EXPECT_NE(text.find("  py-eager, cpp-eager, cpp-compiled-train: invalid: the reference is "),
            std::string::npos)
      << text;
}

TEST(Report, ShowsWhatIsMissingAsNotAvailable) {
  RuntimeResult row;
  row.runtime = "lonely";
  const auto text = printed(one_row(row));
  const auto lines = lines_of(text);
  const auto line = std::find_if(lines.begin(), lines.end(),
                                 [](const auto& each) { return each.starts_with("  lonely"); });
  ASSERT_NE(line, lines.end());
  EXPECT_TRUE(std::regex_match(*line, std::regex("  lonely +n/a +n/a +NONE +n/a +n/a +n/a")))
      << *line;
  EXPECT_EQ(text.find("nan"), std::string::npos) << text;
  EXPECT_EQ(markdown_report(one_row(row)).find("nan"), std::string::npos);
}

TEST(Report, KeepsEveryReasonWholeThoughItIsLong) {
  RuntimeResult row;
  row.runtime = std::string(120, 'x');
  row.status = Status::failed;
  for (int i = 0; i < 60; ++i) row.reason += "word" + std::to_string(i) + "\n";
  const auto text = printed(one_row(row));
  EXPECT_NE(text.find(row.runtime), std::string::npos);
  for (int i = 0; i < 60; ++i) EXPECT_NE(text.find("word" + std::to_string(i)), std::string::npos);
}

TEST(Report, AveragesOnlyWhatWasMeasuredEverywhere) {
  auto results = fixture();
  auto text = printed(results);
  EXPECT_NE(text.find("no geometric mean of cpp-eager, "), std::string::npos);
  results.cases.pop_back();
  text = printed(results);
  double product = 1;
  for (const auto& result : results.cases)
    product *= result.find("cpp-eager")->speedup.ratio.median;
  const auto mean = show_ratio(interval(std::pow(product, 0.25))).median;
  EXPECT_NE(text.find("cpp-eager: geometric mean of 4 speedups " + mean), std::string::npos)
      << text;
}

TEST(Report, SaysAWarningOnceForAllItsCases) {
  Results results;
  Warning warning;
  warning.text = "random tokens";
  for (const char* name : {"a", "b"}) {
    warning.case_name = name;
    results.warn(warning);
  }
  Warning error;
  error.severity = "error";
  error.text = "no memory";
  results.warn(error);
  const auto lines = grouped_warnings(results);
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0].text, "no memory");
  EXPECT_EQ(lines[1].text, "random tokens (a, b)");
}

TEST(Report, SaysThatARunIsIncomplete) {
  auto results = fixture();
  EXPECT_EQ(printed(results).find("INCOMPLETE"), std::string::npos);
  results.complete = false;
  EXPECT_NE(printed(results).find("INCOMPLETE"), std::string::npos);
  EXPECT_NE(markdown_report(results).find("**Incomplete**"), std::string::npos);
}

TEST(Report, ColorAddsNothingButColor) {
  const auto colored = printed(fixture(), true);
  EXPECT_NE(colored.find("\033["), std::string::npos);
  EXPECT_EQ(std::regex_replace(colored, std::regex("\033\\[[0-9;]*m"), ""), printed(fixture()));
}

TEST(Report, PutsMachinesSideBySide) {
  const auto first = fixture();
  auto second = fixture();
  second.environment["cpu"] = "Another CPU";
  second.cases.erase(second.cases.begin());
  std::ostringstream out;
  print_side_by_side({{"a.json", first}, {"b.json", second}}, out, false);
  const auto text = out.str();
  EXPECT_NE(text.find("A  a.json: Example CPU"), std::string::npos) << text;
  EXPECT_NE(text.find("B  b.json: Another CPU"), std::string::npos) << text;
  EXPECT_TRUE(
      std::regex_search(text, std::regex("cpp-eager +1.321x \\[1.315, 1.357\\] FASTER +-\n")))
      << text;
  EXPECT_TRUE(std::regex_search(
      text,
      std::regex("cpp-eager +0.910x \\[0.900, 0.920\\] SLOWER +0.910x \\[0.900, 0.920\\] SLOWER")))
      << text;
  for (const auto& line : lines_of(text)) EXPECT_LE(columns(line), 100U) << line;
}

TEST(Report, MarkdownKeepsItsTablesWhole) {
  RuntimeResult row;
  row.runtime = "a|b\nc";
  row.status = Status::failed;
  row.reason = "no | device";
  auto text = markdown_report(one_row(row));
  EXPECT_NE(text.find("| a\\|b c | failed |"), std::string::npos) << text;
  row.status = Status::skipped;
  text = markdown_report(one_row(row));
  EXPECT_EQ(text.find("| a\\|b c |"), std::string::npos) << text;
  EXPECT_NE(text.find("- a\\|b c skipped: no \\| device"), std::string::npos) << text;
}

TEST(Report, MarkdownThatCannotBeWrittenIsOneLine) {
  try {
    write_markdown(fixture(), "/proc/nowhere/report.md");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), kCaseFailed);
    EXPECT_NE(std::string(error.what()).find("/proc/nowhere/report.md"), std::string::npos);
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

TEST(Report, MarkdownIsReplacedWhole) {
  const auto folder = fs::temp_directory_path() / ("torchpace-" + std::to_string(getpid()));
  fs::create_directories(folder);
  write_markdown(fixture(), folder / "report.md");
  EXPECT_EQ(read(folder / "report.md"), markdown_report(fixture()));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 1);
  fs::remove_all(folder);
}

/// An interpreter that ends as a script says.
Installation installation_of(const fs::path& folder, const std::string& script) {
  Installation installation;
  installation.python = folder / "python";
  installation.package = folder;
  std::ofstream(installation.python) << "#!/bin/sh\n" << script << "\n";
  fs::permissions(installation.python, fs::perms::owner_all);
  return installation;
}

TEST(Report, TellsAPageThatIsSkippedFromOneThatFailed) {
  using Outcome = HtmlPage::Outcome;
  const auto folder = fs::temp_directory_path() / ("torchpace-html-" + std::to_string(getpid()));
  fs::create_directories(folder);
  const auto page_of = [&](const std::string& script) {
    return make_html(installation_of(folder, script), "results.json", folder);
  };
  const auto written = page_of("exit 0");
  EXPECT_EQ(written.outcome, Outcome::written);
  EXPECT_EQ(written.message, (folder / "report.html").string());
  const auto skipped = page_of("echo needs jinja2 >&2; exit 77");
  EXPECT_EQ(skipped.outcome, Outcome::skipped);
  EXPECT_NE(skipped.message.find("needs jinja2"), std::string::npos);
  const auto failed = page_of("echo broken >&2; exit 2");
  EXPECT_EQ(failed.outcome, Outcome::failed);
  EXPECT_NE(failed.message.find("broken"), std::string::npos);
  Installation none;
  none.python = folder / "no-such-python";
  EXPECT_EQ(make_html(none, "results.json", folder).outcome, Outcome::failed);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace torchpace::cli
