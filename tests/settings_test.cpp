#include <gtest/gtest.h>

#include <torchpace/settings.hpp>
#ifdef TORCHPACE_WITH_RAPIDCHECK
#include <rapidcheck.h>
#endif

#include <functional>

namespace torchpace {
namespace {

std::string message(const std::function<void()>& action) {
  try {
    action();
  } catch (const SettingsError& e) {
    return e.what();
  }
  return "";
}

TEST(Settings, ReadsALine) {
  const auto s = Settings::parse("model=dnn layers=64  lr=2e-4 causal=0 state=/tmp/a%20b");
  EXPECT_EQ(s.require<std::string>("model"), "dnn");
  EXPECT_EQ(s.require<int64_t>("layers"), 64);
  EXPECT_DOUBLE_EQ(s.get<double>("lr", 0), 2e-4);
  EXPECT_FALSE(s.get<bool>("causal", true));
  EXPECT_EQ(s.get("state", ""), "/tmp/a b");
  EXPECT_EQ(s.get<int64_t>("heads", 4), 4);
}

TEST(Settings, SaysWhatWasExpectedAndFound) {
  EXPECT_EQ(message([] { Settings::parse("layers"); }),
            "settings: expected key=value, got 'layers'");
  EXPECT_EQ(message([] { Settings::parse("a=%2"); }), "settings: expected %XX, got '%2'");
  EXPECT_EQ(message([] { Settings::parse("a=%zz"); }), "settings: expected %XX, got '%zz'");
  const auto s = Settings::parse("layers=4x lr=fast causal=maybe");
  EXPECT_EQ(message([&] { s.require<int64_t>("layers"); }),
            "settings: layers: expected an integer, got '4x'");
  EXPECT_EQ(message([&] { s.get<double>("lr", 0); }),
            "settings: lr: expected a number, got 'fast'");
  EXPECT_EQ(message([&] { s.get<bool>("causal", true); }),
            "settings: causal: expected 0, 1, true or false, got 'maybe'");
  EXPECT_EQ(message([&] { s.require<int64_t>("width"); }),
            "settings: expected a value for 'width', found none");
}

TEST(Settings, OneOfTakesTheFirstWhereNothingIsSaid) {
  EXPECT_EQ(Settings().one_of("autocast", {"none", "bfloat16"}), "none");
  const auto s = Settings::parse("autocast=bfloat16 bad=x");
  EXPECT_EQ(s.one_of("autocast", {"none", "bfloat16"}), "bfloat16");
  EXPECT_EQ(message([&] {
              s.one_of("bad", {"a", "b"});
            }),
            "settings: bad: expected one of a, b, got 'x'");
}

#ifdef TORCHPACE_WITH_RAPIDCHECK
TEST(Settings, EveryValueSurvivesALine) {
  EXPECT_TRUE(rc::check([](const std::string& value) {
    Settings s{{"key", value}, {"other", "1"}};
    const auto line = s.line();
    RC_ASSERT(line.find('\n') == std::string::npos);
    RC_ASSERT(Settings::parse(line).values() == s.values());
  }));
}
#endif

}  // namespace
}  // namespace torchpace
