// Which cases are run: families x phases x sizes of cases.json, chosen by patterns, multiplied by
// axes. A case is named family_phase/size:S, with /key:value for each axis that --set gives.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "plan/model_files.hpp"
#include "results/results.hpp"
#include "torchpace/settings.hpp"

namespace torchpace::cli {

struct Case {
  std::string name;
  std::string family;  // empty for a case that a worker of the user's own offers
  std::string phase;
  Settings settings;
  bool optional = false;  // left out where it cannot be had: the user named no such case

  bool is_external() const { return family.empty(); }
};

/// One `key=list` of --set, ranges written out.
struct Axis {
  std::string key;
  std::vector<std::string> values;
};

/// `layers=64,batch=1:64*2,4`: commas separate keys and the values of one key; a:b*m and a:b+s are
/// ranges of integers that include both ends where they hit them. A key that comes again adds
/// values. Throws Error.
std::vector<Axis> parse_axes(const std::vector<std::string>& texts);

struct Preset {
  std::string name;
  std::string size;
  int invocations = 0;
  double max_seconds = 0;             // with two runtimes
  double seconds_per_runtime = 0;     // with each further one
  double compile_timeout = 0;         // seconds that making one artifact may take
  std::vector<std::string> runtimes;  // patterns; none: all
  std::map<std::string, int> curves;  // family -> training steps
};

class Catalog {
 public:
  /// Reads the text of cases.json. Throws Error.
  explicit Catalog(std::string_view json);

  /// Puts a model of the user's in place of all families: cases FACTORY_PHASE. `text` is
  /// module:factory, `path` the folder to import from, `inputs` are SIZES[:DTYPE]. Throws Error.
  void import_models(const std::vector<std::string>& texts, const std::string& path,
                     const std::vector<std::string>& inputs);

  /// Puts files of one model in place of all families: the cases NAME_inference and NAME_latency of
  /// the first, or of the program where there is one. `inputs` are SIZES[:DTYPE], `below` the bound
  /// of integers (empty: the default), `axes` those of --set. Throws Error.
  void import_files(const std::vector<ModelFile>& files, const std::vector<std::string>& inputs,
                    const std::string& below, const std::vector<Axis>& axes);

  const Json& json() const { return json_; }
  std::vector<std::string> families() const { return keys("families"); }
  std::vector<std::string> phases(const std::string& family) const;
  std::vector<std::string> sizes(const std::string& family) const;

  /// Throws Error for an unknown name.
  Preset preset(const std::string& name) const;

  /// Throws Error where `key` is no setting that one row may have of its own, since it would make
  /// it another case, or `value` is none of its values.
  void check_row_setting(const std::string& key, const std::string& value) const;

  /// The cases that the patterns choose, in the order of cases.json; all of `size` without
  /// patterns. `common` is added to every settings line. Throws Error: exit code 2 for an unknown
  /// name or key, 4 for a pattern that matches nothing.
  std::vector<Case> expand(const std::vector<std::string>& patterns, const std::string& size,
                           const std::vector<Axis>& axes, const Settings& common) const;

 private:
  std::vector<std::string> keys(const char* section) const;
  void check(const std::string& family, const Axis& axis) const;
  void check_value(const std::string& key, const std::string& value) const;
  std::vector<std::string> chosen_sizes(const std::string& family,
                                        const std::string& pattern) const;
  void add(std::vector<Case>& cases, const std::string& family, const std::string& phase,
           const std::string& size, const std::vector<Axis>& axes, const Settings& common) const;

  Json json_;
};

/// The cases that workers of the user's own offer, chosen by patterns.
std::vector<Case> own_cases(const std::vector<std::string>& offered,
                            const std::vector<std::string>& patterns, const Settings& common);

}  // namespace torchpace::cli
