#include "plan.hpp"

#include <gtest/gtest.h>
#ifdef TORCHPACE_WITH_RAPIDCHECK
#include <rapidcheck.h>
#endif

#include "cases_json.hpp"
#include "error.hpp"
#include "experiment.hpp"

namespace torchpace::cli {
namespace {

using Words = std::vector<std::string>;

const Catalogue& catalogue() {
  static const Catalogue kCatalogue(kCasesJson);
  return kCatalogue;
}

std::vector<Case> expand(const Words& patterns, const Words& set = {}) {
  return catalogue().expand(patterns, "quick", parse_axes(set), {});
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
  EXPECT_EQ(cases.size(), catalogue().families().size() * catalogue().phases().size());
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
        "torchscript=optimize", "aot=default", "freezing=0", "dynamic=1", "fullgraph=1",
        "runners=4", "lr=1e-3", "data=normal"}) {
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
  // Only training has an optimiser.
  EXPECT_EQ(names(expand({"dnn_deep_inference"}, {"optimizer=adam,sgd"})),
            Words{"dnn_deep_inference/size:quick"});
  expect_error([] { expand({"dnn_deep_train"}, {"optimizer=adam-fussed"}); }, kBadInput,
               "found 'adam-fussed'; did you mean adam-fused?");
  expect_error([] { expand({"dnn_deep_train"}, {"optimiser=adam"}); }, kBadInput,
               "did you mean optimizer");
  expect_error([] { expand({"dnn_deep_train/tf32:on"}); }, kBadInput,
               "tf32: expected one of 0, 1, found 'on'");
  expect_error([] { expand({"dnn_deep_train"}, {"runners=none"}); }, kBadInput, "integer above 0");
  expect_error([] { expand({"dnn_deep_train"}, {"lr=-1"}); }, kBadInput, "a number above 0");
}

TEST(Plan, AModelOfYourOwnTakesThePlaceOfTheFamilies) {
  Catalogue own(kCasesJson);
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

TEST(Plan, FewerGenerationsWhereStartingTakesTheTime) {
  EXPECT_EQ(affordable_generations(9, 300, 10), 9);
  EXPECT_EQ(affordable_generations(9, 80, 10), 6);  // 7 and 8 have no narrower interval than 6
  EXPECT_EQ(affordable_generations(9, 1, 10), 6);   // never fewer
  EXPECT_EQ(affordable_generations(20, 130, 10), 12);
  EXPECT_EQ(affordable_generations(4, 1, 10), 4);  // asked for
}

TEST(Plan, TheNextLoadIsOfTheWidestInterval) {
  EXPECT_EQ(next_load({0.01, 0.05, 0.02}, {1, 1, 1}), 1u);
  EXPECT_EQ(next_load({0.01, 0.05, 0.03}, {1, 3, 1}), 2u);  // 0.05 / sqrt(3) < 0.03
  EXPECT_EQ(next_load({NAN, 0.05, 0.02}, {2, 2, 1}), 2u);   // alike until all are known
  EXPECT_EQ(next_load({NAN, NAN}, {1, 1}), 0u);
  EXPECT_EQ(next_load({-1, NAN}, {1, 9}), 1u);
  EXPECT_EQ(next_load({-1, -1}, {1, 1}), std::nullopt);
  EXPECT_EQ(next_load({0.01, INFINITY, 0.9}, {1, 5, 1}), 1u);  // before all others
  EXPECT_EQ(next_load({NAN, NAN, INFINITY}, {1, 1, 1}), 2u);
  EXPECT_EQ(next_load({INFINITY, INFINITY, INFINITY}, {2, 1, 2}), 1u);  // in turn
  std::vector<int> loads(3, 1);
  for (int i = 0; i < 97; ++i) ++loads[next_load({0.01, 0.02, 0.03}, loads).value()];
  EXPECT_NEAR(loads[1] / loads[0], 4, 1);  // as the squares of the widths
  EXPECT_NEAR(loads[2] / loads[0], 9, 2);
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
  expect_error([] { (void)catalogue().preset("qiuck"); }, kBadInput, "did you mean quick");
}

TEST(Plan, OwnCasesComeFromTheGreeting) {
  const auto cases = own_cases({"mlp_train", "mlp"}, {}, Settings{{"threads", "2"}});
  ASSERT_EQ(cases.size(), 2u);
  EXPECT_TRUE(cases[0].own());
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
