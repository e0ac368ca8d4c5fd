#include "plan/sweep.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#ifdef TORCHPACE_WITH_RAPIDCHECK
#include <rapidcheck.h>
#endif

#include "cases_json.hpp"
#include "plan/file_rows.hpp"
#include "plan/model_files.hpp"
#include "support/error.hpp"
#include "torchpace/case_phase.hpp"
#include "torchpace/detail/crc32.hpp"

namespace torchpace::cli {
namespace {

using Words = std::vector<std::string>;

const Catalog& catalog() {
  static const Catalog kCatalog(kCasesJson);
  return kCatalog;
}

std::vector<Case> expand(const Words& patterns, const Words& set = {}) {
  return catalog().expand(patterns, "quick", parse_axes(set), {});
}

Words names(const std::vector<Case>& cases) {
  Words result;
  for (const auto& c : cases) result.push_back(c.name);
  return result;
}

template <class Function>
void expect_error(const Function& function, int exit_code, const std::string& part) {
  try {
    function();
    FAIL() << "expected an error with '" << part << "'";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), exit_code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

TEST(Axes, CommasSeparateKeysAndValues) {
  const auto axes = parse_axes({"batch=1,2,4,layers=3"});
  ASSERT_EQ(axes.size(), 2u);
  EXPECT_EQ(axes[0].key, "batch");
  EXPECT_EQ(axes[0].values, (Words{"1", "2", "4"}));
  EXPECT_EQ(axes[1].key, "layers");
  EXPECT_EQ(axes[1].values, Words{"3"});
}

TEST(Axes, RangesMultiplyAndAdd) {
  EXPECT_EQ(parse_axes({"batch=1:64*2"})[0].values, (Words{"1", "2", "4", "8", "16", "32", "64"}));
  EXPECT_EQ(parse_axes({"batch=8:20+5"})[0].values, (Words{"8", "13", "18"}));
  EXPECT_EQ(parse_axes({"batch=2:4"})[0].values, (Words{"2", "3", "4"}));
  EXPECT_EQ(parse_axes({"batch=1:4*2,3"})[0].values, (Words{"1", "2", "4", "3"}));
}

TEST(Axes, ValuesThatComeAgainCountOnce) {
  const auto axes = parse_axes({"batch=1,1,2", "batch=2,4"});
  ASSERT_EQ(axes.size(), 1u);
  EXPECT_EQ(axes[0].values, (Words{"1", "2", "4"}));
}

TEST(Axes, RefusesWhatIsNoAxis) {
  for (const char* text :
       {"layers", "3,layers=4", "layers=", "=4", "batch=4:1", "batch=1:8*1", "batch=0:8*2",
        "batch=1:8+0", "batch=a:b", "batch=1:", "batch=1:1000000", "batch=1:4*"}) {
    expect_error([&] { parse_axes({text}); }, kBadInput, "--set");
  }
}

#ifdef TORCHPACE_WITH_RAPIDCHECK
TEST(Axes, AnyRangeStaysWithinItsEnds) {
  EXPECT_TRUE(rc::check("a:b*m and a:b+s", [] {
    const auto first = *rc::gen::inRange<long long>(1, 1000);
    const auto last = first + *rc::gen::inRange<long long>(0, 1000);
    const bool multiply = *rc::gen::arbitrary<bool>();
    const auto step = *rc::gen::inRange<long long>(2, 50);
    const auto text = "batch=" + std::to_string(first) + ":" + std::to_string(last) +
                      (multiply ? "*" : "+") + std::to_string(step);
    const auto values = parse_axes({text})[0].values;
    RC_ASSERT(std::stoll(values.front()) == first);
    RC_ASSERT(std::stoll(values.back()) <= last);
    const auto beyond =
        multiply ? std::stoll(values.back()) * step : std::stoll(values.back()) + step;
    RC_ASSERT(beyond > last);
    for (size_t i = 1; i < values.size(); ++i) {
      const auto before = std::stoll(values[i - 1]);
      RC_ASSERT(std::stoll(values[i]) == (multiply ? before * step : before + step));
    }
  }));
}

TEST(Axes, AnyListsOfKeysParse) {
  EXPECT_TRUE(rc::check("key=v,v,key=v", [] {
    const auto lists = *rc::gen::nonEmpty(rc::gen::container<std::vector<std::vector<int>>>(
        rc::gen::nonEmpty(rc::gen::unique<std::vector<int>>(rc::gen::inRange(1, 99)))));
    std::string text;
    for (size_t i = 0; i < lists.size(); ++i) {
      text += (i == 0 ? "k" : ",k") + std::to_string(i) + "=";
      for (size_t j = 0; j < lists[i].size(); ++j)
        text += (j == 0 ? "" : ",") + std::to_string(lists[i][j]);
    }
    const auto axes = parse_axes({text});
    RC_ASSERT(axes.size() == lists.size());
    for (size_t i = 0; i < lists.size(); ++i) {
      RC_ASSERT(axes[i].values.size() == lists[i].size());
      for (size_t j = 0; j < lists[i].size(); ++j)
        RC_ASSERT(axes[i].values[j] == std::to_string(lists[i][j]));
    }
  }));
}
#endif

TEST(Plan, EveryCaseOfThePresetWithoutPatterns) {
  const auto cases = expand({});
  EXPECT_EQ(cases.size(), catalog().families().size() * kCasePhases.size());
  for (const auto& c : cases) EXPECT_NE(c.name.find("/size:quick"), std::string::npos);
}

TEST(Plan, NamesAndSettings) {
  const auto cases = expand({"dnn_deep_train"}, {"batch=16,64"});
  EXPECT_EQ(names(cases),
            (Words{"dnn_deep_train/size:quick/batch:16", "dnn_deep_train/size:quick/batch:64"}));
  const auto& settings = cases[1].settings;
  EXPECT_EQ(settings.get("case", ""), cases[1].name);
  EXPECT_EQ(settings.get("family", ""), "dnn_deep");
  EXPECT_EQ(settings.get("model", ""), "dnn");
  EXPECT_EQ(settings.get("phase", ""), "train");
  EXPECT_EQ(settings.get("batch", ""), "64");
  EXPECT_EQ(settings.get("layers", ""), "64");
  EXPECT_EQ(settings.get("data", ""), "normal");
}

TEST(Plan, PatternsChoose) {
  EXPECT_EQ(names(expand({"gptlite_train"})), Words{"gptlite_train/size:quick"});
  EXPECT_EQ(names(expand({"gptlite_*"})).size(), 3u);
  EXPECT_EQ(names(expand({"*_train", "gptlite_train"})).size(), 3u);
  EXPECT_EQ(names(expand({"dnn_wide_train/size:smoke"})), Words{"dnn_wide_train/size:smoke"});
  EXPECT_EQ(names(expand({"dnn_wide_train/*"})).size(), 3u);
  EXPECT_EQ(names(expand({"dnn_wide_train/size:*e*"})).size(), 2u);
}

TEST(Plan, ANameCarriesItsOwnAxes) {
  const auto cases = expand({"dnn_deep_train/size:smoke/batch:7"}, {"batch=1,2,width=8"});
  EXPECT_EQ(names(cases), Words{"dnn_deep_train/size:smoke/width:8/batch:7"});
}

TEST(Plan, AxesMultiplyOut) {
  EXPECT_EQ(expand({"dnn_deep_train"}, {"layers=1,2", "width=8,16,32"}).size(), 6u);
}

TEST(Plan, EveryFamilyHasTheAxesOfTheTable) {
  for (const char* text :
       {"optimizer=sgd-fused", "autocast=bfloat16", "tf32=1", "memory_format=channels_last",
        "torchscript=optimize", "freezing=0", "dynamic=1", "fullgraph=1", "gemm=torch", "runners=4",
        "lr=1e-3", "data=normal"}) {
    for (const char* name : {"gptlite_train", "dnn_deep_train", "dnn_wide_train"}) {
      const auto cases = expand({name}, {text});
      ASSERT_EQ(cases.size(), 1u);
      const std::string word = text;
      const auto equals = word.find('=');
      EXPECT_EQ(cases[0].settings.get(word.substr(0, equals), ""), word.substr(equals + 1));
    }
  }
  EXPECT_EQ(names(expand({"dnn_deep_train/autocast:bfloat16"})),
            Words{"dnn_deep_train/size:quick/autocast:bfloat16"});
  // Only training has an optimizer.
  EXPECT_EQ(names(expand({"dnn_deep_inference"}, {"optimizer=adam,sgd"})),
            Words{"dnn_deep_inference/size:quick"});
  expect_error([] { expand({"dnn_deep_train"}, {"optimizer=adam-fussed"}); }, kBadInput,
               "found 'adam-fussed'; did you mean adam-fused?");
  expect_error([] { expand({"dnn_deep_train"}, {"optimzer=adam"}); }, kBadInput,
               "did you mean optimizer");
  expect_error([] { expand({"dnn_deep_train/tf32:on"}); }, kBadInput,
               "tf32: expected one of 0, 1, found 'on'");
  expect_error([] { expand({"dnn_deep_train"}, {"runners=none"}); }, kBadInput, "integer above 0");
  expect_error([] { expand({"dnn_deep_train"}, {"lr=-1"}); }, kBadInput, "a number above 0");
}

TEST(Plan, AModelOfYourOwnTakesThePlaceOfTheFamilies) {
  Catalog own(kCasesJson);
  own.import_models({"a:make", "b:make", "c:other"}, "/here", {"2x3"});
  const auto cases = own.expand({"*_inference", "other_train"}, "quick", {}, {});
  EXPECT_EQ(names(cases),
            (Words{"make_inference", "b.make_inference", "other_inference", "other_train"}));
  EXPECT_EQ(cases[1].settings.get("factory", ""), "b:make");
  EXPECT_FALSE(cases[3].optional);  // named: it is missed where it cannot be had
  const auto all = own.expand({}, "quick", parse_axes({"dynamic=1"}), {});
  EXPECT_EQ(all.size(), 9u);
  for (const auto& c : all) EXPECT_EQ(c.optional, c.phase == "train");
  expect_error([&] { own.expand({"dnn_deep_train"}, "quick", {}, {}); }, kBadInput, "unknown case");
}

/// A zip archive whose entries are stored, as torch writes them.
std::string archive(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string files, directory;
  const auto add = [](std::string& text, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i));
  };
  for (const auto& [name, bytes] : entries) {
    const auto offset = files.size();
    std::string both;
    for (const int zero : {2, 2, 2, 2}) add(both, 0, zero);  // flags, method, time, date
    add(both, torchpace::crc32(bytes), 4);
    add(both, bytes.size(), 4);
    add(both, bytes.size(), 4);
    add(both, name.size(), 2);
    add(both, 0, 2);
    files += "PK\3\4";
    add(files, 20, 2);
    files += both + name + bytes;
    directory += "PK\1\2";
    add(directory, 20, 2);
    add(directory, 20, 2);
    directory += both;
    for (const int zero : {2, 2, 2, 4}) add(directory, 0, zero);
    add(directory, offset, 4);
    directory += name;
  }
  std::string end = "PK\5\6";
  for (const int zero : {2, 2}) add(end, 0, zero);
  add(end, entries.size(), 2);
  add(end, entries.size(), 2);
  add(end, directory.size(), 4);
  add(end, files.size(), 4);
  add(end, 0, 2);
  return files + directory + end;
}

/// Files of models in a folder that goes with the test.
class ModelFiles : public ::testing::Test {
 protected:
  ModelFiles() { std::filesystem::create_directories(folder_ / "other"); }
  ~ModelFiles() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }
  std::string script(const std::string& name) const {
    return write(name, archive({{"m/code/torchvision/models/a.py", "x"},
                                {"m/data.pkl", "x"},
                                {"m/constants.pkl", ""}}));
  }
  std::string package(const std::string& name, const std::string& inputs) const {
    const auto metadata = inputs.empty() ? "{}" : "{\"torchpace.inputs\": \"" + inputs + "\"}";
    return write(name, archive({{"p/data/aotinductor/model/a.so", "code"},
                                {"p/data/aotinductor/model/a_metadata.json", metadata},
                                {"p/archive_format", "pt2"}}));
  }
  std::string program(const std::string& name) const {
    return write(name, archive({{"e/models/model.json", "{}"}, {"e/archive_format", "pt2"}}));
  }
  static Settings settings_of(const std::string& path, const std::string& input) {
    Catalog own(kCasesJson);
    own.import_files(read_model_files({path}), input.empty() ? Words{} : Words{input}, "", {});
    return own.expand({}, "quick", {}, {}).front().settings;
  }
  /// The names of the cases that files give.
  static Words cases(const Words& paths, const Words& inputs, const Words& set = {}) {
    Catalog own(kCasesJson);
    const auto axes = parse_axes(set);
    own.import_files(read_model_files(paths), inputs, "", axes);
    return names(own.expand({}, "quick", axes, {}));
  }

  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("torchpace-files-" + std::to_string(getpid()));
};

TEST_F(ModelFiles, AreToldFromFactories) {
  EXPECT_TRUE(names_file(script("m.anything")));
  EXPECT_TRUE(names_file("nowhere/m.pt"));
  EXPECT_TRUE(names_file("m.pth"));
  EXPECT_TRUE(names_file("m.pt2"));
  EXPECT_FALSE(names_file("zoo:resnet18"));
  EXPECT_FALSE(names_file("zoo.pt:make"));
}

TEST_F(ModelFiles, TheirKindStandsInTheDirectory) {
  EXPECT_EQ(read_model_file(script("m.pt")).kind, ModelFile::Kind::torchscript);
  EXPECT_EQ(read_model_file(package("k.pt2", "")).kind, ModelFile::Kind::package);
  EXPECT_EQ(read_model_file(package("k.pt2", "?x8:float32")).inputs, "?x8:float32");
  EXPECT_EQ(read_model_file(program("p.pt2")).kind, ModelFile::Kind::program);
  const auto file = read_model_file(script("a b:c.pt"));
  EXPECT_EQ(file.name, "a-b-c");
  EXPECT_EQ(file.path, folder_ / "a b:c.pt");
  EXPECT_TRUE(file.stamp.ends_with(" " + file.path)) << file.stamp;
}

TEST_F(ModelFiles, AMemoryFormatBehindAnInputIsThatOfTheCase) {
  const auto spec = [](const Settings& settings) {
    return settings.get("input", "") + " " + settings.get("memory_format", "contiguous");
  };
  EXPECT_EQ(spec(settings_of(script("m.pt"), "4x3x8x8")), "4x3x8x8 contiguous");
  EXPECT_EQ(spec(settings_of(script("m.pt"), "4x3x8x8:float32:channels_last")),
            "4x3x8x8:float32 channels_last");
  EXPECT_EQ(spec(settings_of(script("m.pt"), "4x3:float32:contiguous")), "4x3:float32 contiguous");
  // What a package of torchpace says of itself.
  const auto own = package("k.pt2", "?x3x8x8:float32:channels_last;?x4:int64");
  EXPECT_EQ(spec(settings_of(own, "")), "?x3x8x8:float32;?x4:int64 channels_last");
  expect_error([&] { settings_of(script("m.pt"), "4x3x8:float32:channels_last"); }, kBadInput,
               "expected channels_last for every input of four sizes");
  const auto mixed = package("l.pt2", "2x3x8x8:float32:channels_last;2x3x8x8:float32");
  expect_error([&] { settings_of(mixed, ""); }, kBadInput, "a case has one memory format");
}

TEST_F(ModelFiles, WhatIsNoModelIsRefusedInOneLine) {
  const auto refused = [](const std::string& path, const std::string& part) {
    expect_error([&] { read_model_file(path); }, kBadInput, part);
  };
  refused(folder_ / "none.pt", "expected a file, found none");
  refused(folder_, "found a folder");
  refused(write("empty.pt", ""), "an empty file");
  refused(write("text.pt", "just text"), "9 bytes of something else");
  refused(write("old.pt", std::string("\x80\x02") + "}q"), "pickle of torch.save before 1.6");
  const auto whole = archive({{"m/code/a.py", "x"}, {"m/constants.pkl", ""}});
  refused(write("cut.pt", whole.substr(0, whole.size() - 30)), "truncated or damaged");
  refused(write("head.pt", whole.substr(0, 20)), "truncated or damaged");
  auto flipped = whole;
  flipped[flipped.find("a.py") + 4] = 'y';  // the one byte of that entry
  refused(write("flipped.pt", flipped), "the bytes of its checksum in m/code/a.py");
  const auto saved = [&](const std::string& pickle) {
    return write("saved.pt", archive({{"s/data.pkl", "\x80\x02" + pickle}, {"s/data/0", "x"}}));
  };
  refused(saved("ccollections\nOrderedDict\nq"), "a dictionary of torch.save (weights)");
  refused(saved("}q\1"), "a dictionary of torch.save (weights)");
  refused(saved("cmy.nets\nNet\nq"), "a pickled my.nets.Net of torch.save");
  refused(write("zip.pt", archive({{"a.txt", "x"}})), "an archive without a model");
  refused(write("many.pt2",
                archive({{"p/data/aotinductor/a/x.so", ""}, {"p/data/aotinductor/b/x.so", ""}})),
          "named 'model', found a, b");
  refused(write("trains.pt2", archive({{"p/data/aotinductor/model/a.so", ""},
                                       {"p/data/aotinductor/model/a_metadata.json",
                                        "{\"torchpace.kind\": \"training\"}"}})),
          "a package that trains");
}

TEST_F(ModelFiles, NoTwoHaveTheSameName) {
  const auto files = read_model_files({script("m.pt"), package("m.pt2", ""), script("n.pt"),
                                       script("other/n.pt"), program("p.pt2")});
  Words found;
  for (const auto& file : files) found.push_back(file.name);
  EXPECT_EQ(found,
            (Words{"m.pt", "m.pt2", folder_.filename().string() + "-n.pt", "other-n.pt", "p"}));
  expect_error([&] { read_model_files({script("m.pt"), script("m.pt")}); }, kBadInput, "once");
}

TEST_F(ModelFiles, ABatchOfOneIsLatencyAlone) {
  EXPECT_EQ(cases({script("m.pt")}, {"1x8"}), Words{"m_latency"});
  EXPECT_EQ(cases({script("m.pt")}, {"4x8"}), (Words{"m_inference", "m_latency"}));
  EXPECT_EQ(cases({script("m.pt")}, {"1x8"}, {"batch=1,8"}),
            (Words{"m_inference/batch:1", "m_inference/batch:8", "m_latency"}));
  EXPECT_EQ(cases({package("k.pt2", "4x8:float32")}, {}), Words{"k_inference"});
  EXPECT_EQ(cases({package("k.pt2", "1x8:float32")}, {}), Words{"k_latency"});
  EXPECT_EQ(cases({package("k.pt2", "?x8:float32")}, {}), Words{"k_latency"});
  EXPECT_EQ(cases({package("k.pt2", "?x8:float32")}, {"4x8"}), (Words{"k_inference", "k_latency"}));
  EXPECT_EQ(cases({program("p.pt2")}, {}), (Words{"p_inference", "p_latency"}));
}

TEST_F(ModelFiles, SeveralAreOneCase) {
  Catalog own(kCasesJson);
  const auto a = script("a.pt"), b = package("b.pt2", "4x8:float32"), p = program("p.pt2");
  own.import_files(read_model_files({a, b}), {}, "7", {});
  const auto found = own.expand({}, "quick", {}, {});
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].name, "a_inference");
  EXPECT_TRUE(found[0].optional);  // where the file cannot have it, it is left out
  EXPECT_EQ(found[0].settings.get("model", ""), "file");
  EXPECT_EQ(found[0].settings.get("file", ""), a);
  EXPECT_EQ(found[0].settings.get("input", ""), "4x8:float32");  // as the package says
  EXPECT_EQ(found[0].settings.get("below", ""), "7");
  EXPECT_TRUE(found[0].settings.get("others", "").starts_with(b + "\n"));
  EXPECT_FALSE(own.expand({"a_latency"}, "quick", {}, {})[0].optional);  // named
  EXPECT_EQ(cases({a, p}, {}), (Words{"p_inference", "p_latency"}));     // a program can do more
  expect_error([&] { cases({p, program("q.pt2")}, {}); }, kBadInput, "expected one program");
  expect_error([&] { cases({a}, {}); }, kBadInput, "expected --input");
  expect_error([&] { cases({package("c.pt2", "")}, {}); }, kBadInput, "expected --input");
  expect_error([&] { cases({a}, {"4y8"}); }, kBadInput, "--input: expected sizes");
}

TEST_F(ModelFiles, RowsAreFilesInRuntimesAndModes) {
  std::vector<WorkerSpec> runtimes;
  for (const auto& [name, artifact] : {std::pair{"cpp-aot", "aot"},
                                       {"cpp-torchscript", "torchscript"},
                                       {"py-aot", "aot"},
                                       {"py-eager", ""},
                                       {"py-torchscript", "torchscript"}}) {
    runtimes.emplace_back();
    runtimes.back().runtime = name;
    runtimes.back().artifact = artifact;
  }
  const auto rows = [&](const Words& paths, const Words& modes, const Words& patterns = {}) {
    return file_rows(read_model_files(paths), runtimes, modes, patterns);
  };
  const auto names_of = [](const std::vector<WorkerSpec>& specs) {
    Words found;
    for (const auto& spec : specs) found.push_back(spec.runtime);
    return found;
  };
  const auto a = script("a.pt"), b = package("b.pt2", ""), p = program("p.pt2");
  const auto alone = rows({a}, {"plain", "freeze"});
  EXPECT_EQ(names_of(alone), (Words{"py-torchscript", "cpp-torchscript", "py-torchscript@freeze",
                                    "cpp-torchscript@freeze"}));
  EXPECT_EQ(alone[3].settings.get("artifact", ""), a);
  EXPECT_EQ(alone[3].settings.get("torchscript", ""), "freeze");
  EXPECT_TRUE(alone[3].settings.get("stamp", "").ends_with(a));
  EXPECT_TRUE(alone[3].artifact.empty());  // nothing is made of it
  const auto both = rows({b, a}, {"plain"});
  EXPECT_EQ(names_of(both),
            (Words{"py-aot:b", "cpp-aot:b", "py-torchscript:a", "cpp-torchscript:a"}));
  const auto with_program = rows({a, p}, {"plain"});
  EXPECT_EQ(names_of(with_program),
            (Words{"py-aot:p", "py-eager:p", "py-torchscript:p", "cpp-aot:p", "cpp-torchscript:p",
                   "py-torchscript:a", "cpp-torchscript:a"}));
  EXPECT_EQ(with_program[0].artifact, "aot");  // made of the program
  EXPECT_EQ(file_reference("", read_model_files({a, p}), with_program), "py-eager:p");
  EXPECT_EQ(names_of(rows({b, a}, {"plain", "freeze"}, {"*-aot", "py-torchscript:a@freeze"})),
            (Words{"py-aot:b", "cpp-aot:b", "py-torchscript:a@freeze"}));
  EXPECT_EQ(runtimes_of(read_model_files({b, a}), {"cpp-aot:b", "py-torchscript@freeze"}),
            (Words{"cpp-aot", "py-torchscript"}));
  expect_error([&] { rows({a}, {"plain"}, {"py-eager"}); }, kNothingMatched, "one that loads");

  const auto files = read_model_files({b, a});
  EXPECT_EQ(file_reference("", files, both), "py-aot:b");
  EXPECT_EQ(file_reference("a", files, both), "py-torchscript:a");
  EXPECT_EQ(file_reference("cpp-aot", files, both), "cpp-aot:b");
  EXPECT_EQ(file_reference("cpp-torchscript:a", files, both), "cpp-torchscript:a");
  EXPECT_EQ(file_reference("a", read_model_files({a}), alone), "py-torchscript");
  expect_error([&] { file_reference("c", files, both); }, kBadInput, "neither a file nor a row");
}

TEST(Plan, LatencyIsOfOne) {
  const auto cases = expand({"gptlite_latency"}, {"batch=4,8"});
  ASSERT_EQ(cases.size(), 1u);
  EXPECT_EQ(cases[0].name, "gptlite_latency/size:quick");
  EXPECT_EQ(cases[0].settings.get("batch", ""), "1");
}

TEST(Plan, BadInputIsSaid) {
  expect_error([] { expand({"gptlite_trian"}); }, kBadInput, "did you mean gptlite_train");
  expect_error([] { expand({"resnet_*"}); }, kNothingMatched, "matches nothing");
  expect_error([] { expand({"gptlite_train/size:huge"}); }, kBadInput, "no size 'huge'");
  expect_error([] { expand({"gptlite_train/size:z*"}); }, kNothingMatched, "matches nothing");
  expect_error([] { expand({"gptlite_train/quick"}); }, kBadInput, "key:value");
  expect_error([] { expand({"gptlite_train"}, {"depth=3"}); }, kBadInput, "no key 'depth'");
  expect_error([] { expand({"dnn_deep_train"}, {"layers=many"}); }, kBadInput, "integer above 0");
  expect_error([] { expand({"dnn_deep_train"}, {"layers=0"}); }, kBadInput, "integer above 0");
  expect_error([] { (void)catalog().preset("qiuck"); }, kBadInput, "did you mean quick");
}

TEST(Plan, OwnCasesComeFromTheGreeting) {
  const auto cases = own_cases({"mlp_train", "mlp"}, {}, Settings{{"threads", "2"}});
  ASSERT_EQ(cases.size(), 2u);
  EXPECT_TRUE(cases[0].is_external());
  EXPECT_EQ(cases[0].phase, "train");
  EXPECT_EQ(cases[1].phase, "other");
  EXPECT_EQ(cases[1].settings.get("case", ""), "mlp");
  EXPECT_EQ(cases[1].settings.get("threads", ""), "2");
  EXPECT_EQ(names(own_cases({"a", "b"}, {"b"}, {})), Words{"b"});
  expect_error([] { own_cases({"mlp"}, {"mpl"}, {}); }, kBadInput, "did you mean mlp");
  expect_error([] { own_cases({"mlp"}, {"x*"}, {}); }, kNothingMatched, "matches nothing");
}

}  // namespace
}  // namespace torchpace::cli
