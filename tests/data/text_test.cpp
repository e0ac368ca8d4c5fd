#include <torchpace/data/text.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

TEST(ParityOfText, BatchesAreThoseOfPython) {
  const auto fixture = read_tensors(std::string(TORCHPACE_FIXTURES) + "/text.pt");
  const TextBatches batches(fixture.at("tokens"), 2, 8, 3);
  for (int64_t i = 0; i < fixture.at("input").size(0); ++i) {
    const auto [x, y] = batches(i);
    EXPECT_TRUE(torch::equal(x, fixture.at("input")[i])) << i;
    EXPECT_TRUE(torch::equal(y, fixture.at("target")[i])) << i;
  }
}

TEST(ParityOfText, TokensAreThoseOfPython) {
  const auto fixture = read_tensors(std::string(TORCHPACE_FIXTURES) + "/text.pt");
  const auto tokens =
      encode_text(testing::read_file(std::string(TORCHPACE_FIXTURES) + "/text.txt"));
  EXPECT_TRUE(torch::equal(tokens, fixture.at("tokens"))) << decode_text(tokens) << "\n"
                                                          << decode_text(fixture.at("tokens"));
}

TEST(Text, EncodesAndDecodes) {
  EXPECT_EQ(decode_text(encode_text("To be, or not to be:\nthat is the question.")),
            "To be, or not to be:\nthat is the question.");
  EXPECT_TRUE(torch::equal(encode_text("\n zA"), torch::tensor({0, 1, 64, 13}, torch::kUInt8)));
}

TEST(Text, RefusesWhatItCannotUse) {
  EXPECT_NE(testing::error_of([] {
              TextBatches(encode_text("short"), 1, 8, 0);
            }).find("more than 8 tokens"),
            std::string::npos);
  EXPECT_NE(testing::error_of([] {
              decode_text(torch::tensor({65}));
            }).find("expected tokens in [0, 65), got 65"),
            std::string::npos);
}

}  // namespace
}  // namespace torchpace
