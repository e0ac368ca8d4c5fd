#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <string>
#include <torchpace/detail/json.hpp>
#include <vector>

namespace torchpace {
namespace {

TEST(Json, WritesOneLine) {
  const std::vector<double> list{1.5, 2};
  EXPECT_EQ(JsonObject()
                .add("a", 1)
                .add("b", "x\"y\n")
                .add("c", true)
                .add("d", 0.1)
                .add("e", std::span<const double>(list))
                .raw("f", "{}")
                .str(),
            R"({"a": 1, "b": "x\"y\u000a", "c": true, "d": 0.1, "e": [1.5,2], "f": {}})");
}

TEST(Json, ArrayOfWhatIsJson) {
  EXPECT_EQ(json_array({}), "[]");
  EXPECT_EQ(json_array(std::vector<std::string>{"{}", "2"}), "[{}, 2]");
}

TEST(Json, NumbersReadBackTheSame) {
  for (const double value : {0.1, 1.0 / 3, 12345678.9, 1e300, 5e-324, 123456789012345680.0, -0.0}) {
    EXPECT_EQ(std::strtod(json_number(value).c_str(), nullptr), value);
  }
  EXPECT_EQ(json_number(std::numeric_limits<double>::quiet_NaN()), "null");
  EXPECT_EQ(json_number(std::numeric_limits<double>::infinity()), "null");
}

}  // namespace
}  // namespace torchpace
