#include "plan/sweep.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <optional>
#include <regex>
#include <set>

#include "support/error.hpp"
#include "support/strings.hpp"
#include "torchpace/case_phase.hpp"
#include "torchpace/optim/algorithms.hpp"

namespace torchpace::cli {
namespace {

/// Keys that only training has.
const std::set<std::string> kTrainingKeys = {"optimizer", "lr", "eps"};
constexpr size_t kMostValues = 1000;  // a range that is longer is a slip of the pen

std::optional<long long> to_integer(std::string_view text) {
  long long value = 0;
  const auto* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc() || stop != end) return std::nullopt;
  return value;
}

[[noreturn]] void bad_range(std::string_view text) {
  throw Error(
      fmt::format("--set: expected a range a:b, a:b+step or a:b*factor of integers with a <= "
                  "b, step >= 1, factor >= 2 and at most {} values, found '{}'",
                  kMostValues, text));
}

std::vector<std::string> parse_values(std::string_view text) {
  const auto colon = text.find(':');
  if (colon == std::string_view::npos) return {std::string(text)};
  const auto sign = text.find_first_of("*+", colon);
  const auto first = to_integer(text.substr(0, colon));
  const auto last = to_integer(text.substr(colon + 1, sign - colon - 1));
  const bool stepped = sign != std::string_view::npos;
  const auto step = stepped ? to_integer(text.substr(sign + 1)) : 1;
  const bool multiplies = stepped && text[sign] == '*';
  if (!first || !last || !step || *first > *last || *step < (multiplies ? 2 : 1) ||
      (multiplies && *first < 1)) {
    bad_range(text);
  }
  std::vector<std::string> values;
  for (long long value = *first; value <= *last;) {
    if (values.size() == kMostValues) bad_range(text);
    values.push_back(std::to_string(value));
    long long next = 0;
    const bool overflow = multiplies ? __builtin_mul_overflow(value, *step, &next)
                                     : __builtin_add_overflow(value, *step, &next);
    if (overflow) break;
    value = next;
  }
  return values;
}

void add_values(Axis& axis, std::string_view text) {
  for (auto& value : parse_values(text)) {
    if (std::find(axis.values.begin(), axis.values.end(), value) == axis.values.end()) {
      axis.values.push_back(std::move(value));
    }
  }
}

/// family_phase[/size:S][/key:value]... of --cases.
struct CasePattern {
  std::string text;
  std::string base;
  std::string size;
  std::vector<Axis> axes;
};

CasePattern parse_pattern(const std::string& text, const std::string& default_size) {
  const auto parts = split_list(text, '/');
  if (parts.empty()) throw Error(fmt::format("--cases: expected a name, found '{}'", text));
  CasePattern pattern{.text = text, .base = parts[0], .size = default_size, .axes = {}};
  for (size_t i = 1; i < parts.size(); ++i) {
    const auto colon = parts[i].find(':');
    const auto key = parts[i].substr(0, colon);
    const auto value = colon == std::string::npos ? "" : parts[i].substr(colon + 1);
    if (value.empty() && parts[i] != "*") {
      throw Error(
          fmt::format("--cases: expected key:value after '/', found '{}' in '{}'", parts[i], text));
    }
    if (key == "size" || parts[i] == "*") {
      pattern.size = key == "size" ? value : "*";
    } else {
      pattern.axes.push_back({key, {value}});
    }
  }
  return pattern;
}

/// The axes of --set; those that the pattern itself gives win.
std::vector<Axis> joined(std::vector<Axis> axes, const std::vector<Axis>& pattern_axes) {
  for (const auto& axis : pattern_axes) {
    std::erase_if(axes, [&](const Axis& a) { return a.key == axis.key; });
    axes.push_back(axis);
  }
  return axes;
}

void set_all(Settings& settings, const Json& values) {
  for (const auto& [key, value] : values.items()) {
    settings.set(key, value.is_string() ? value.get<std::string>() : value.dump());
  }
}

/// `1x3x224x224`, `1x3x224x224:float32` or `1x3x224x224:float32:channels_last`.
bool is_input(const std::string& text) {
  static const std::regex kInput(
      "[1-9][0-9]*(x[1-9][0-9]*)*(:[a-z]+[0-9]*(:contiguous|:channels_last)?)?");
  return std::regex_match(text, kInput);
}

void check_inputs(const std::vector<std::string>& inputs) {
  for (const auto& input : inputs) {
    if (!is_input(input)) {
      throw Error(fmt::format(
          "--input: expected sizes and a dtype such as 1x3x224x224:float32, found '{}'", input));
    }
  }
}

/// Sets the key `input`, and `memory_format` where a spec says channels_last: a case has one memory
/// format for all its inputs of four dimensions.
void set_inputs(Json& settings, const std::string& specs) {
  if (specs.empty()) return;
  std::vector<std::string> plain;
  bool any = false, fits = true;
  for (const auto& spec : split_list(specs, ';')) {
    const auto dtype = spec.find(':');
    const auto format = dtype == std::string::npos ? dtype : spec.find(':', dtype + 1);
    plain.push_back(spec.substr(0, format));
    const bool is_image = std::ranges::count(spec.substr(0, dtype), 'x') == 3;
    const bool channels_last = spec.ends_with(":channels_last");
    any |= channels_last;
    fits &= channels_last == is_image;
  }
  settings["input"] = fmt::format("{}", fmt::join(plain, ";"));
  if (!any) return;
  if (!fits) {
    throw Error(fmt::format(
        "--input: expected channels_last for every input of four sizes and for no other, found "
        "'{}'; a case has one memory format",
        specs));
  }
  settings["memory_format"] = "channels_last";
}

/// The phases of a file. Those of which only a run can tell are both given, and left out then.
std::vector<std::string> phases_of_file(const ModelFile& file,
                                        const std::vector<std::string>& inputs,
                                        const std::vector<Axis>& axes) {
  const bool varies =
      std::any_of(axes.begin(), axes.end(), [](const Axis& axis) { return axis.key == "batch"; });
  const auto known = inputs.empty() ? file.inputs : inputs.front();
  if (varies || known.empty()) return {"inference", "latency"};
  const auto batch = known.substr(0, known.find_first_of("x:;"));
  if (batch == "1" || batch == "?") return {"latency"};
  // A package for this one batch only.
  if (!file.inputs.empty() && !file.inputs.starts_with("?")) return {"inference"};
  return {"inference", "latency"};
}

/// Refuses `./model.py` and `folder/model`: a module is imported, from the current folder.
void expect_module(const std::string& module, const std::string& factory) {
  const bool is_file = module.ends_with(".py");
  if (!is_file && module.find('/') == std::string::npos) return;
  const auto stem = module.substr(0, module.size() - (is_file ? 3 : 0));
  throw Error(fmt::format(
      "--model: expected module:factory, not a file: {}:{}, with its folder as the current one; "
      "found '{}:{}'",
      stem.substr(stem.rfind('/') + 1), factory, module, factory));
}

/// Of several files the program, which can be run in every way, else the first.
const ModelFile& main_file(const std::vector<ModelFile>& files) {
  const auto found = std::find_if(files.begin(), files.end(),
                                  [](const ModelFile& file) { return file.is_program(); });
  return found == files.end() ? files.front() : *found;
}

bool is_positive(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && value > 0 && std::isfinite(value);
}

/// Adds a case unless its name is there: two patterns may choose the same.
void add_once(std::vector<Case>& cases, Case added) {
  const auto same = [&](const Case& c) { return c.name == added.name; };
  if (std::none_of(cases.begin(), cases.end(), same)) cases.push_back(std::move(added));
}

std::string phase_of_own(const std::string& name) {
  const auto base = name.substr(0, name.find('/'));
  for (const auto& phase : kCasePhases) {
    if (base.ends_with(fmt::format("_{}", phase.name))) return std::string(phase.name);
  }
  return "other";
}

}  // namespace

std::vector<Axis> parse_axes(const std::vector<std::string>& texts) {
  std::vector<Axis> axes;
  for (const auto& text : texts) {
    Axis* current = nullptr;
    for (const auto& part : split_list(text)) {
      const auto equals = part.find('=');
      if (equals != std::string::npos) {
        const auto key = part.substr(0, equals);
        auto found =
            std::find_if(axes.begin(), axes.end(), [&](const Axis& a) { return a.key == key; });
        if (found == axes.end()) found = axes.insert(axes.end(), Axis{key, {}});
        current = &*found;
      }
      const auto value = equals == std::string::npos ? part : part.substr(equals + 1);
      if (current == nullptr || current->key.empty() || value.empty()) {
        throw Error(fmt::format("--set: expected key=value,..., found '{}' in '{}'", part, text));
      }
      add_values(*current, value);
    }
  }
  return axes;
}

Catalog::Catalog(std::string_view json) {
  try {
    json_ = Json::parse(json);
  } catch (const Json::exception& error) {
    throw Error(fmt::format("cases.json: {}", error.what()));
  }
}

std::vector<std::string> Catalog::keys(const char* section) const {
  std::vector<std::string> names;
  for (const auto& item : json_.at(section).items()) names.push_back(item.key());
  return names;
}

std::vector<std::string> Catalog::phases(const std::string& family) const {
  const auto& json = json_.at("families").at(family);
  return json.contains("phases") ? json.at("phases").get<std::vector<std::string>>()
                                 : case_phase_names();
}

std::vector<std::string> Catalog::sizes(const std::string& family) const {
  std::vector<std::string> names;
  for (const auto& item : json_.at("families").at(family).at("sizes").items()) {
    names.push_back(item.key());
  }
  return names;
}

Preset Catalog::preset(const std::string& name) const {
  const auto& presets = json_.at("presets");
  if (!presets.contains(name)) {
    throw Error(
        fmt::format("--preset: unknown preset '{}'{}", name, did_you_mean(name, keys("presets"))));
  }
  const auto& json = presets.at(name);
  return {.name = name,
          .size = json.at("size").get<std::string>(),
          .invocations = json.at("invocations").get<int>(),
          .max_seconds = json.at("max_seconds").get<double>(),
          .seconds_per_runtime = json.at("seconds_per_runtime").get<double>(),
          .compile_timeout = json.at("compile_timeout").get<double>(),
          .runtimes = json.value("runtimes", Json::array()).get<std::vector<std::string>>(),
          .curves = json.value("curves", Json::object()).get<std::map<std::string, int>>()};
}

void Catalog::import_models(const std::vector<std::string>& texts, const std::string& path,
                            const std::vector<std::string>& inputs) {
  check_inputs(inputs);
  auto families = Json::object();
  for (const auto& text : texts) {
    const auto colon = text.find(':');
    const auto module = text.substr(0, colon);
    const auto factory = colon == std::string::npos ? "" : text.substr(colon + 1);
    if (module.empty() || factory.empty() || factory.find_first_of(":/,* ") != std::string::npos) {
      throw Error(fmt::format("--model: expected module:factory, found '{}'", text));
    }
    expect_module(module, factory);
    // Two modules may name their factories alike.
    const auto name = families.contains(factory) ? module + "." + factory : factory;
    Json settings = {{"factory", text}, {"path", path}};
    set_inputs(settings, fmt::format("{}", fmt::join(inputs, ";")));
    families[name] = {{"model", "imported"}, {"settings", settings}, {"sizes", Json::object()}};
  }
  json_["families"] = families;
}

void Catalog::import_files(const std::vector<ModelFile>& files,
                           const std::vector<std::string>& inputs, const std::string& below,
                           const std::vector<Axis>& axes) {
  check_inputs(inputs);
  const auto& file = main_file(files);
  std::string others, specs = fmt::format("{}", fmt::join(inputs, ";"));
  for (const auto& other : files) {
    if (other.is_program() && &other != &file) {
      throw Error(fmt::format(
          "--model: expected one program of torch.export.save, found {} and {}; compare them in "
          "two runs",
          file.path, other.path));
    }
    if (specs.empty() && !file.is_program()) specs = other.inputs;
    if (&other != &file) others += fmt::format("{}\n{}\n", other.path, other.stamp);
  }
  if (specs.empty() && !file.is_program()) {
    throw Error(fmt::format(
        "--model {}: expected --input SIZES:DTYPE (1x3x224x224:float32), found none; only programs "
        "of torch.export.save and packages that torchpace wrote say what they take",
        file.path));
  }
  Json settings = {{"file", file.path}, {"stamp", file.stamp}};
  set_inputs(settings, specs);
  if (!others.empty()) settings["others"] = others;
  if (!below.empty()) settings["below"] = below;
  json_["families"] = {{file.name,
                        {{"model", "file"},
                         {"settings", settings},
                         {"phases", phases_of_file(file, inputs, axes)},
                         {"sizes", Json::object()}}}};
}

void Catalog::check_value(const std::string& key, const std::string& value) const {
  const auto axis = json_.at("axes").find(key);
  if (axis == json_.at("axes").end()) return;
  const auto fail = [&](const std::string& expected, const std::string& hint = "") {
    throw Error(fmt::format("--set: {}: expected {}, found '{}'{}", key, expected, value, hint));
  };
  if (*axis == "count") {
    if (to_integer(value).value_or(0) < 1) fail("an integer above 0");
  } else if (*axis == "number") {
    if (!is_positive(value)) fail("a number above 0");
  } else {
    const auto words =
        *axis == "optimizer" ? optimizer_names() : axis->get<std::vector<std::string>>();
    if (std::find(words.begin(), words.end(), value) != words.end()) return;
    const auto near = closest(value, words);
    fail(fmt::format("one of {}", fmt::join(words, ", ")),
         near.empty() ? "" : fmt::format("; did you mean {}?", near.front()));
  }
}

void Catalog::check_row_setting(const std::string& key, const std::string& value) const {
  static const std::vector<std::string> kKeys = {"gemm", "freezing", "fullgraph", "runners",
                                                 "torchscript"};
  if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) {
    throw Error(fmt::format("--runtimes: @{}: expected one of {}, which leave the case as it is{}",
                            key, fmt::join(kKeys, ", "), did_you_mean(key, kKeys)));
  }
  check_value(key, value);
}

void Catalog::check(const std::string& family, const Axis& axis) const {
  const auto& json = json_.at("families").at(family);
  std::set<std::string> known;
  std::set<std::string> counts;  // what a size gives is a number of something
  for (const auto& item : json_.at("axes").items()) known.insert(item.key());
  for (const auto& item : json.at("settings").items()) known.insert(item.key());
  for (const auto& size : json.at("sizes")) {
    for (const auto& item : size.items()) {
      if (!known.contains(item.key())) counts.insert(item.key());
    }
  }
  if (counts.empty()) counts.insert("batch");
  known.insert(counts.begin(), counts.end());
  if (!known.contains(axis.key)) {
    throw Error(fmt::format("--set: {} has no key '{}'{}", family, axis.key,
                            did_you_mean(axis.key, {known.begin(), known.end()})));
  }
  for (const auto& value : axis.values) {
    check_value(axis.key, value);
    if (counts.contains(axis.key) && to_integer(value).value_or(0) < 1) {
      throw Error(
          fmt::format("--set: {}: expected an integer above 0, found '{}'", axis.key, value));
    }
  }
}

void Catalog::add(std::vector<Case>& cases, const std::string& family, const std::string& phase,
                  const std::string& size, const std::vector<Axis>& axes,
                  const Settings& common) const {
  const auto& json = json_.at("families").at(family);
  Case basic{.name = fmt::format("{}_{}", family, phase),
             .family = family,
             .phase = phase,
             .settings = common};
  set_all(basic.settings, json.at("settings"));
  if (!size.empty()) {
    basic.name += "/size:" + size;
    set_all(basic.settings, json.at("sizes").at(size));
  }
  basic.settings.set("family", family);
  basic.settings.set("model", json.at("model").get<std::string>());
  basic.settings.set("phase", phase);
  const auto kind = case_phase_named(phase);
  std::vector<Case> products{basic};
  for (const auto& axis : axes) {
    check(family, axis);
    if (kind.batch_of_one && axis.key == "batch") continue;
    if (!kind.trains && kTrainingKeys.contains(axis.key)) continue;
    std::vector<Case> next;
    for (const auto& product : products) {
      for (const auto& value : axis.values) {
        next.push_back(product);
        next.back().name += fmt::format("/{}:{}", axis.key, value);
        next.back().settings.set(axis.key, value);
      }
    }
    products = std::move(next);
  }
  for (auto& product : products) {
    if (kind.batch_of_one) product.settings.set("batch", "1");
    product.settings.set("case", product.name);
    add_once(cases, std::move(product));
  }
}

/// The sizes of a family that a name or a pattern chooses. Throws Error for an unknown name.
std::vector<std::string> Catalog::chosen_sizes(const std::string& family,
                                               const std::string& pattern) const {
  const auto known = sizes(family);
  if (known.empty()) return {""};  // a model of the user's own
  std::vector<std::string> chosen;
  std::copy_if(known.begin(), known.end(), std::back_inserter(chosen),
               [&](const std::string& name) { return matches(pattern, name); });
  if (chosen.empty() && !is_pattern(pattern)) {
    throw Error(fmt::format("--cases: {} has no size '{}'{}", family, pattern,
                            did_you_mean(pattern, known)));
  }
  return chosen;
}

std::vector<Case> Catalog::expand(const std::vector<std::string>& patterns, const std::string& size,
                                  const std::vector<Axis>& axes, const Settings& common) const {
  std::vector<std::string> bases;
  for (const auto& family : families()) {
    for (const auto& phase : phases(family)) bases.push_back(family + "_" + phase);
  }
  std::vector<Case> cases;
  for (const auto& text : patterns.empty() ? std::vector<std::string>{"*"} : patterns) {
    const auto pattern = parse_pattern(text, size);
    bool base_matched = false, matched = false;
    for (const auto& base : bases) {
      if (!matches(pattern.base, base)) continue;
      base_matched = true;
      const auto split = base.rfind('_');
      const auto family = base.substr(0, split);
      for (const auto& name : chosen_sizes(family, pattern.size)) {
        matched = true;
        const auto begin = cases.size();
        add(cases, family, base.substr(split + 1), name, joined(axes, pattern.axes), common);
        // A model of the user's own may have no loss: then nobody asked for its training. And a
        // file may be for one batch only.
        const bool may_lack = name.empty() && is_pattern(pattern.base);
        const bool is_file = json_.at("families").at(family).at("model") == "file";
        for (size_t i = begin; i < cases.size(); ++i) {
          cases[i].optional = may_lack && (is_file || case_phase_named(cases[i].phase).trains);
        }
      }
    }
    if (!base_matched && !is_pattern(pattern.base)) {
      throw Error(fmt::format("--cases: unknown case '{}'{}", pattern.base,
                              did_you_mean(pattern.base, bases)));
    }
    if (!matched) {
      throw Error(fmt::format("--cases: '{}' matches nothing; there are {} (torchpace list)", text,
                              fmt::join(bases, ", ")),
                  kNothingMatched);
    }
  }
  return cases;
}

std::vector<Case> own_cases(const std::vector<std::string>& offered,
                            const std::vector<std::string>& patterns, const Settings& common) {
  std::vector<Case> cases;
  for (const auto& pattern : patterns.empty() ? std::vector<std::string>{"*"} : patterns) {
    bool matched = false;
    for (const auto& name : offered) {
      if (!matches(pattern, name) && !matches(pattern, name.substr(0, name.find('/')))) continue;
      matched = true;
      Case added{.name = name, .family = "", .phase = phase_of_own(name), .settings = common};
      added.settings.set("case", name);
      added.settings.set("phase", added.phase);
      add_once(cases, std::move(added));
    }
    if (matched) continue;
    if (is_pattern(pattern)) {
      throw Error(fmt::format("--cases: '{}' matches nothing; the workers offer {}", pattern,
                              fmt::join(offered, ", ")),
                  kNothingMatched);
    }
    throw Error(
        fmt::format("--cases: unknown case '{}'{}", pattern, did_you_mean(pattern, offered)));
  }
  return cases;
}

}  // namespace torchpace::cli
