#include <torchpace/parity.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const double kEps = epsilon(torch::kFloat32);

Parity check(const TensorDict& values, const TensorDict& reference, const TensorDict* golden,
             torch::ScalarType dtype = torch::kFloat32) {
  return check_parity(values, reference, golden, dtype);
}

/// Against a golden run, where the reference is right.
Parity against_golden(const torch::Tensor& own, const torch::Tensor& golden,
                      torch::ScalarType dtype = torch::kFloat32) {
  const TensorDict file{{"y", golden}};
  return check({{"y", own}}, {{"y", own}}, &file, dtype);
}

Parity against_reference(const torch::Tensor& own, const torch::Tensor& reference) {
  return check({{"y", own}}, {{"y", reference}}, nullptr);
}

void expect_note(const Parity& parity, const std::string& part) {
  EXPECT_FALSE(parity.passed);
  EXPECT_NE(parity.note.find(part), std::string::npos)
      << "expected '" << part << "' in '" << parity.note << "'";
}

TEST(Parity, WhatIsMetExactlyExcusesNoOtherElement) {
  const auto values = [](double a, double b) { return torch::tensor({a, b, -1e9, -1e9}); };
  const TensorDict right{{"y", values(1, 2)}}, wrong{{"y", values(0, 0)}};
  const TensorDict golden{{"y", values(1, 2).to(torch::kFloat64)}};
  for (const TensorDict* against : {&golden, static_cast<const TensorDict*>(nullptr)}) {
    EXPECT_TRUE(check_parity(right, right, against, torch::kFloat32).passed);
    EXPECT_FALSE(check_parity(wrong, right, against, torch::kFloat32).passed);
  }
}

TEST(Parity, TheLargestNumberOfADtypeIsAnotherInFloat64) {
  const double least = std::numeric_limits<float>::lowest();
  const double wide = std::numeric_limits<double>::lowest();
  const auto of = [](double a, double b) { return torch::tensor({a, b}, torch::kFloat64); };
  const TensorDict own{{"y", of(1, least).to(torch::kFloat32)}}, golden{{"y", of(1, wide)}};
  EXPECT_TRUE(check_parity(own, own, &golden, torch::kFloat32).passed);
  const TensorDict masked{{"y", of(least, least).to(torch::kFloat32)}};
  EXPECT_FALSE(check_parity(masked, own, &golden, torch::kFloat32).passed);
}

TEST(ParityRule, ToleranceIsThatOfRoundingAlone) {
  const auto golden = torch::tensor({1.0, -2.0}, torch::kFloat64);
  const auto parity = against_golden(golden.to(torch::kFloat32) * (1 + kEps), golden);
  EXPECT_TRUE(parity.passed);
  EXPECT_EQ(against_golden(golden.to(torch::kFloat32), golden).tolerance, 0) << "met exactly";
  EXPECT_EQ(parity.note, "");
  EXPECT_EQ(parity.compared, 1);
  EXPECT_NEAR(parity.tolerance, 8 * kEps * 2, 1e-15);
  EXPECT_NEAR(parity.rms_tolerance, 8 * kEps * std::sqrt(2.5), 1e-15);
}

TEST(ParityRule, AReferenceFarFromItsGoldenRunFailsAndExcusesNoOne) {
  const TensorDict golden{{"y", torch::ones({4}, torch::kFloat64)}};
  for (const double off : {1e-3, 1.0, 100.0}) {
    const TensorDict reference{{"y", torch::ones({4}) + off}};
    const auto own = check(reference, reference, &golden);
    EXPECT_FALSE(own.passed) << off;
    EXPECT_NEAR(own.max_abs_error, off, 1e-3 * off) << "from the golden run";
    EXPECT_NEAR(own.tolerance, 8 * kEps, 1e-15) << "does not grow with " << off;
    EXPECT_TRUE(check({{"y", torch::ones({4})}}, reference, &golden).passed) << "who is right";
    EXPECT_FALSE(check({{"y", torch::ones({4}) + 2 * off}}, reference, &golden).passed);
  }
}

TEST(ParityRule, SpreadAllowsWhatRoundingMayDo) {
  const TensorDict own{{"y", torch::ones({4}) * 1.001}};
  TensorDict golden{{"y", torch::ones({4}, torch::kFloat64)}};
  EXPECT_FALSE(check(own, own, &golden).passed);
  golden["spread.y"] = torch::full({2}, 1e-3, torch::kFloat64);
  EXPECT_TRUE(check(own, own, &golden).passed);
  golden["spread.y"] = torch::tensor({1.0, 1e-9}, torch::kFloat64);
  const auto parity = check(own, own, &golden);
  EXPECT_FALSE(parity.passed) << "the root mean square sees a small error of all";
  EXPECT_LT(parity.max_abs_error, parity.tolerance);
  EXPECT_GT(parity.rms_error, parity.rms_tolerance);
}

TEST(ParityRule, WithoutAGoldenRunTheReferenceBoundsBySqrtEps) {
  const auto reference = torch::ones({4});
  const auto parity = against_reference(reference + 1e-4, reference);
  EXPECT_TRUE(parity.passed);
  EXPECT_EQ(parity.note, kNoGolden);
  EXPECT_NEAR(parity.tolerance, std::sqrt(kEps), 1e-12);
  EXPECT_FALSE(against_reference(reference + 1e-3, reference).passed);
}

TEST(ParityRule, NamesShapesAndKindsComeFirst) {
  const auto one = torch::ones({2});
  const TensorDict reference{{"a", one}, {"b", one}};
  expect_note(check({{"a", one}}, reference, nullptr), "the runtime lacks b (1 such)");
  expect_note(check({{"a", one}, {"b", one}, {"c", one}}, reference, nullptr),
              "the reference lacks c (1 such)");
  TensorDict other{{"a", one}, {"b", torch::ones({3})}};
  const auto parity = check(other, reference, nullptr);
  expect_note(parity, "b: expected shape [2] of the reference, found [3]");
  EXPECT_TRUE(std::isnan(parity.max_abs_error));
  other["b"] = torch::ones({2}, torch::kInt64);
  expect_note(check(other, reference, nullptr),
              "b: expected floating-point values as the reference has, found integer");
  expect_note(check({}, {}, nullptr), "nothing to compare");
}

TEST(ParityRule, TheGoldenRunHasTheSameNamesToo) {
  const auto one = torch::ones({2});
  const TensorDict both{{"a", one}, {"b", one}};
  TensorDict golden{{"a", one}, {"spread.a", one}};
  expect_note(check(both, both, &golden), "the float64 run lacks b");
  golden["b"] = torch::ones({2, 1});
  expect_note(check(both, both, &golden), "b: expected shape [2, 1] of the float64 run");
}

TEST(ParityRule, IntegersAndBoolsAreExact) {
  const auto labels = torch::arange(1000);
  auto other = labels.clone();
  other[3] = 4;
  EXPECT_TRUE(against_reference(labels, labels).passed);
  EXPECT_TRUE(against_golden(labels, labels).passed);
  for (const auto& parity : {against_reference(other, labels), against_golden(other, labels)}) {
    EXPECT_FALSE(parity.passed);
    EXPECT_EQ(parity.max_abs_error, 1) << "elements that differ";
    EXPECT_EQ(parity.rms_error, 1e-3) << "their share";
    EXPECT_EQ(parity.tolerance, 0);
  }
  EXPECT_TRUE(against_reference(labels.to(torch::kInt32), labels).passed) << "values, not widths";
  const auto mask = labels > 10;
  EXPECT_TRUE(against_reference(mask, mask.clone()).passed);
  EXPECT_FALSE(against_reference(mask, labels > 11).passed);
}

TEST(ParityRule, LargeIntegersAreNotRounded) {
  const auto large = torch::full({1}, int64_t{1} << 60, torch::kInt64);
  EXPECT_FALSE(against_reference(large, large + 1).passed);
}

TEST(ParityRule, ComplexNumbersArePairs) {
  const auto golden =
      torch::complex(torch::ones({3}, torch::kFloat64), torch::zeros({3}, torch::kFloat64));
  EXPECT_TRUE(against_golden(golden.to(torch::kComplexFloat), golden).passed);
  EXPECT_TRUE(against_golden(golden.to(torch::kComplexFloat).conj(), golden).passed);
  const auto turned = golden.to(torch::kComplexFloat) * c10::complex<float>(0, 1);
  EXPECT_FALSE(against_golden(turned, golden).passed) << "the same magnitudes, another angle";
  expect_note(against_golden(torch::ones({3}), golden), "expected complex values");
}

TEST(ParityRule, NanAndInfinitiesAreEqualInTheSamePlaces) {
  const auto reference = torch::tensor({1.0F, kNan, kInf, -kInf});
  EXPECT_TRUE(against_reference(reference, reference.clone()).passed);
  EXPECT_TRUE(against_golden(reference, reference.to(torch::kFloat64)).passed);
  expect_note(against_reference(torch::tensor({1.0F, 1.0F, kInf, -kInf}), reference),
              "y: the reference has 1 of 4 values NaN, the runtime 0");
  expect_note(against_reference(torch::tensor({1.0F, kNan, -kInf, kInf}), reference),
              "or in other places");
  EXPECT_FALSE(against_reference(torch::tensor({2.0F, kNan, kInf, -kInf}), reference).passed)
      << "the finite one";
  EXPECT_FALSE(against_reference(torch::full({4}, kNan), torch::ones({4})).passed);
}

TEST(ParityRule, WhatOverflowsInTheDtypeIsInfiniteInTheGoldenRun) {
  const auto golden = torch::tensor({1.0, 1e39, -1e39}, torch::kFloat64);
  const auto own = torch::tensor({1 + static_cast<float>(kEps), kInf, -kInf});
  EXPECT_TRUE(against_golden(own, golden).passed);
  EXPECT_NEAR(against_golden(own, golden).tolerance, 8 * kEps, 1e-15) << "of what is finite";
  EXPECT_FALSE(against_golden(own.abs(), golden).passed);
}

TEST(ParityRule, WhatCannotBeToldFails) {
  const auto golden = torch::tensor({1e200, 1.0}, torch::kFloat64);  // its square overflows
  EXPECT_FALSE(against_golden(golden + 1, golden, torch::kFloat64).passed);
  const TensorDict own{{"y", torch::ones({2}) * 2}};
  const TensorDict file{{"y", torch::ones({2})}, {"spread.y", torch::full({2}, kNan)}};
  EXPECT_FALSE(check(own, own, &file).passed);
}

TEST(ParityRule, EmptyTensorsAndScalarsCompare) {
  EXPECT_TRUE(against_reference(torch::ones({0, 3}), torch::ones({0, 3})).passed);
  EXPECT_TRUE(against_reference(torch::ones({}), torch::ones({})).passed);
  EXPECT_TRUE(
      against_reference(torch::zeros({0}, torch::kInt64), torch::zeros({0}, torch::kInt64)).passed);
}

TEST(ParityRule, TheWorstTensorIsNamed) {
  const TensorDict reference{{"a", torch::ones({2})}, {"b", torch::ones({2})}};
  const auto parity =
      check({{"a", torch::ones({2}) + 1e-5}, {"b", torch::ones({2}) + 1e-2}}, reference, nullptr);
  EXPECT_FALSE(parity.passed);
  EXPECT_EQ(parity.worst, "b");
  EXPECT_EQ(parity.compared, 2);
}

/// Of an approximate runtime against a golden run.
Parity measured(const TensorDict& own, const TensorDict& golden) {
  return measure_parity(own, own, &golden, torch::kFloat32);
}

TEST(ParityOfApproximateRuntimes, TellsErrorsAndFailsByNone) {
  const auto golden = torch::tensor({{1.0, 2.0}, {3.0, 0.0}}, torch::kFloat64);
  const auto own = torch::tensor({{1.0, 1.5}, {0.0, 0.5}});
  const auto parity = measured({{"y", own}}, {{"y", golden}, {"spread.y", torch::ones({2})}});
  EXPECT_TRUE(parity.passed);
  EXPECT_DOUBLE_EQ(parity.max_abs_error, 3);
  EXPECT_DOUBLE_EQ(parity.rms_error, std::sqrt((0.25 + 9 + 0.25) / 4));
  EXPECT_TRUE(std::isnan(parity.tolerance) && std::isnan(parity.rms_tolerance));
  // Over what differs: 1.0 is met exactly.
  EXPECT_NEAR(parity.cosine, 3 / std::sqrt(2.5 * 13), 1e-12);
  EXPECT_DOUBLE_EQ(parity.top1, 0.5);
  EXPECT_EQ(parity.note, "");
}

TEST(ParityOfApproximateRuntimes, TheWorstTensorIsTheOneOfTheLargestRelativeError) {
  const TensorDict golden{{"a", torch::full({3, 1}, 1e6, torch::kFloat64)},
                          {"b", torch::ones({3, 1}, torch::kFloat64)},
                          {"label", torch::arange(100)}};
  TensorDict own{{"a", torch::full({3, 1}, 1e6 + 10)},
                 {"b", torch::full({3, 1}, 1.1)},
                 {"label", torch::arange(100)}};
  own.at("label")[0] = 7;
  const auto parity = measured(own, golden);
  EXPECT_EQ(parity.worst, "b");
  EXPECT_NEAR(parity.max_abs_error, 0.1, 1e-6);
  EXPECT_NEAR(parity.cosine, 1, 1e-12);
  EXPECT_TRUE(std::isnan(parity.top1)) << "one number a row is no logits";
  own.at("label") = torch::arange(100) + 1;
  EXPECT_EQ(measured(own, golden).worst, "label");
  EXPECT_EQ(measured(own, golden).max_abs_error, 100);
}

TEST(ParityOfApproximateRuntimes, WhatIsExactOrZeroHasACosine) {
  const auto ones = torch::ones({2}), zeros = torch::zeros({2});
  EXPECT_EQ(measured({{"y", ones}}, {{"y", ones}}).cosine, 1);
  EXPECT_EQ(measured({{"y", zeros}}, {{"y", ones}}).cosine, 0);
  EXPECT_NEAR(measured({{"y", -ones}}, {{"y", ones}}).cosine, -1, 1e-12);
  EXPECT_TRUE(std::isnan(
      measured({{"y", torch::ones({2}, torch::kInt64)}}, {{"y", torch::ones({2}, torch::kInt64)}})
          .cosine));
}

TEST(ParityOfApproximateRuntimes, NamesShapesKindsAndNanMustAgree) {
  const TensorDict golden{{"y", torch::ones({2})}};
  expect_note(measured({}, golden), "lacks y");
  expect_note(measured({{"y", torch::ones({3})}}, golden), "expected shape [2]");
  expect_note(measured({{"y", torch::ones({2}, torch::kInt64)}}, golden), "floating-point");
  const auto parity = measured({{"y", torch::tensor({1.0F, kNan})}}, golden);
  expect_note(parity, "0 of 2 values NaN, the runtime 1");
  EXPECT_TRUE(std::isnan(parity.cosine) && std::isnan(parity.max_abs_error));
}

TEST(ParityOfApproximateRuntimes, WithoutAGoldenRunTheReferenceIsTheYardstick) {
  const auto parity = measure_parity({{"y", torch::ones({2}) * 1.5}}, {{"y", torch::ones({2})}},
                                     nullptr, torch::kFloat32);
  EXPECT_TRUE(parity.passed);
  EXPECT_DOUBLE_EQ(parity.max_abs_error, 0.5);
  EXPECT_EQ(parity.note, kAgainstReference);
}

TEST(ParityRule, EpsilonIsThatOfTheDtype) {
  EXPECT_EQ(epsilon(torch::kBFloat16), 0.0078125);
  EXPECT_EQ(epsilon(torch::kFloat16), 0.0009765625);
  EXPECT_THROW(epsilon(torch::kInt64), c10::Error);
}

}  // namespace
}  // namespace torchpace
