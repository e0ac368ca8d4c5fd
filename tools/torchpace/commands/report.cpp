// `torchpace report`: prints what results.json files hold, one after the other and side by side.
#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>

#include "analysis/analyze.hpp"
#include "analysis/regression_check.hpp"
#include "commands/command.hpp"
#include "plan/runtime_discovery.hpp"
#include "report/console_report.hpp"
#include "report/display.hpp"
#include "support/console.hpp"
#include "support/error.hpp"
#include "support/files.hpp"

namespace torchpace::cli {
namespace {

struct ReportOptions {
  std::vector<std::string> paths;
  std::string output, fail_on, python;
  bool json = false;
};

int report_files(const ReportOptions& options) {
  const auto& [paths, output, fail_on_text, python, json] = options;
  std::optional<FailOn> fail_on;
  if (!fail_on_text.empty()) fail_on = parse_fail_on(fail_on_text);
  std::vector<NamedResults> files;
  for (const auto& path : paths) {
    files.push_back({path, load_results(path)});
    analyze(files.back().results);
  }
  if (json) {
    if (files.size() > 1) throw Error("--json: expected one file of results, found several");
    std::cout << to_json_with_display(files[0].results)
                     .dump(-1, ' ', false, Json::error_handler_t::replace)
              << "\n"
              << std::flush;
    return kOk;
  }
  const bool color = isatty(STDOUT_FILENO) == 1;
  int worst = kOk;
  for (const auto& file : files) {
    print_report(file.results, std::cout, color);
    if (fail_on) {
      for (const auto& line : find_regressions(file.results, *fail_on).found) {
        log("regression: " + line);
        worst = kRegression;
      }
    }
  }
  if (files.size() > 1) print_side_by_side(files, std::cout, color);
  std::cout.flush();
  if (!output.empty()) {
    if (files.size() > 1) throw Error("--output: expected one file of results, found several");
    std::filesystem::create_directories(output);
    write_markdown(files[0].results, std::filesystem::path(output) / "report.md");
    // Analyzed again: an older program may have derived less than the page shows.
    const TemporaryFolder folder;
    const auto page_source = folder.path() / "results.json";
    save_json(to_json_with_display(files[0].results), page_source);
    const auto page = make_html(find_installation(python), page_source, output);
    log(page.message);
    if (page.outcome == HtmlPage::Outcome::failed && worst == kOk) worst = kCaseFailed;
  }
  return worst;
}

}  // namespace

void register_report(CLI::App& app, CommandLine& line) {
  auto& command = *app.add_subcommand("report", "Print what results.json files hold");
  const auto o = std::make_shared<ReportOptions>();
  command.add_option("RESULTS", o->paths, "Folders or results.json files")->required();
  const auto add = [&command](const char* name, std::string& value, const char* type,
                              const char* help) {
    command.add_option(name, value, help)->type_name(type);
  };
  add("--output", o->output, "DIR", "Folder for report.md and report.html (default: none)");
  add("--fail-on", o->fail_on, "RULE",
      "Exit with code 5 where a whole interval is below X: speedup<X");
  add("--python", o->python, "PATH",
      "Python interpreter for report.html (default: TORCHPACE_PYTHON, .venv, python3)");
  command.add_flag("--json", o->json, "Print results.json anew, analyzed again, and nothing else");
  command.callback([o, &line] { line.action = [o] { return report_files(*o); }; });
}

}  // namespace torchpace::cli
