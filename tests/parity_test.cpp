#include <torchpace/parity.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

TEST(ParityRule, ToleranceIsComputedFromTheTruth) {
  const TensorDict truth{{"y", torch::tensor({1.0, -2.0}, torch::kFloat64)}};
  const TensorDict reference{{"y", torch::tensor({1.0, -2.0 - 1e-6}, torch::kFloat64)}};
  const auto parity = check_parity(reference, reference, &truth, torch::kFloat32);
  EXPECT_TRUE(parity.passed);
  EXPECT_NEAR(parity.tolerance, 4e-6 + 8 * epsilon(torch::kFloat32) * 2, 1e-12);
  EXPECT_NEAR(parity.rms_tolerance,
              4e-6 / std::sqrt(2) + 8 * epsilon(torch::kFloat32) * std::sqrt(2.5), 1e-12);
}

TEST(ParityRule, SpreadAllowsWhatRoundingMayDo) {
  const TensorDict reference{{"y", torch::ones({4})}};
  const TensorDict own{{"y", torch::ones({4}) * 1.001}};
  TensorDict truth{{"y", torch::ones({4}, torch::kFloat64)}};
  EXPECT_FALSE(check_parity(own, reference, &truth, torch::kFloat32).passed);
  truth["spread.y"] = torch::full({2}, 1e-3, torch::kFloat64);
  EXPECT_TRUE(check_parity(own, reference, &truth, torch::kFloat32).passed);
}

TEST(ParityRule, RootMeanSquareSeesASmallErrorOfAll) {
  auto reference_y = torch::ones({1000});
  reference_y[0] += 1e-3;  // one element is off in the reference: the largest magnitude allows 4e-3
  const TensorDict reference{{"y", reference_y}};
  const TensorDict truth{{"y", torch::ones({1000}, torch::kFloat64)}};
  EXPECT_TRUE(check_parity(reference, reference, &truth, torch::kFloat32).passed);
  const auto parity = check_parity({{"y", reference_y + 1e-3}}, reference, &truth, torch::kFloat32);
  EXPECT_FALSE(parity.passed);
  EXPECT_LT(parity.max_abs_error, parity.tolerance);
  EXPECT_GT(parity.rms_error, parity.rms_tolerance);
}

TEST(ParityRule, NamesShapesAndFinitenessComeFirst) {
  const TensorDict reference{{"a", torch::ones({2})}, {"b", torch::ones({2})}};
  EXPECT_NE(check_parity({{"a", torch::ones({2})}}, reference, nullptr, torch::kFloat32)
                .note.find("expected b"),
            std::string::npos);
  EXPECT_NE(check_parity({{"c", torch::ones({2})}}, reference, nullptr, torch::kFloat32)
                .note.find("has no c"),
            std::string::npos);
  TensorDict other{{"a", torch::ones({2})}, {"b", torch::ones({3})}};
  EXPECT_EQ(check_parity(other, reference, nullptr, torch::kFloat32).note,
            "b: expected shape [2], found [3]");
  other["b"] = torch::tensor({1.0F, std::numeric_limits<float>::quiet_NaN()});
  const auto parity = check_parity(other, reference, nullptr, torch::kFloat32);
  EXPECT_FALSE(parity.passed);
  EXPECT_NE(parity.note.find("finite"), std::string::npos);
  EXPECT_FALSE(check_parity({}, {}, nullptr, torch::kFloat32).passed);
}

TEST(ParityRule, EpsilonIsThatOfTheDtype) {
  EXPECT_EQ(epsilon(torch::kBFloat16), 0.0078125);
  EXPECT_EQ(epsilon(torch::kFloat16), 0.0009765625);
  EXPECT_THROW(epsilon(torch::kInt64), c10::Error);
}

}  // namespace
}  // namespace torchpace
