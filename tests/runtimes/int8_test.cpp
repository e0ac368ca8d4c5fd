#include <torchpace/runtimes/int8.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

TEST(Int8, IsApproximateAndSkipsTraining) {
  const auto runtime = int8_runtimes().at(0);
  EXPECT_EQ(runtime.artifact, "int8");
  EXPECT_TRUE(runtime.approximate);
  EXPECT_FALSE(aot_runtimes().at(0).approximate);
  EXPECT_THROW(runtime.load({{"phase", "train"}}, {}), DeviceUnavailable);
}

}  // namespace
}  // namespace torchpace
