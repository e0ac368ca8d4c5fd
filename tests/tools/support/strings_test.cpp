#include "support/strings.hpp"

#include <gtest/gtest.h>

#include "support/error.hpp"

namespace torchpace::cli {
namespace {

using Words = std::vector<std::string>;

TEST(Words, SplitsAsAShellDoes) {
  EXPECT_EQ(split_words("a  b\tc"), (Words{"a", "b", "c"}));
  EXPECT_EQ(split_words(R"(python -m 'my module' "a b"c)"),
            (Words{"python", "-m", "my module", "a bc"}));
  EXPECT_EQ(split_words(R"(a\ b '\n' "\"")"), (Words{"a b", "\\n", "\""}));
  EXPECT_EQ(split_words("'' x"), (Words{"", "x"}));
  EXPECT_EQ(split_words("  "), Words{});
}

TEST(Words, RefusesAnOpenQuote) {
  EXPECT_THROW(split_words("a 'b"), Error);
  EXPECT_THROW(split_words("a \"b"), Error);
}

TEST(Words, SplitsLists) {
  EXPECT_EQ(split_list("a,b,,c"), (Words{"a", "b", "c"}));
  EXPECT_EQ(split_list(""), Words{});
  EXPECT_EQ(split_list("a/b", '/'), (Words{"a", "b"}));
}

TEST(Words, NamesWhatIsNear) {
  const Words names{"gptlite_train", "gptlite_inference", "dnn_deep_train", "dnn_wide_train"};
  EXPECT_EQ(closest("gptlite_trian", names).front(), "gptlite_train");
  EXPECT_EQ(did_you_mean("gptlit_train", {"gptlite_train"}), "; did you mean gptlite_train?");
  EXPECT_EQ(did_you_mean("x", names).substr(0, 11), "; there are");
}

TEST(Words, MatchesPatternsAcrossSlashes) {
  EXPECT_TRUE(matches("gptlite_*", "gptlite_train/size:quick"));
  EXPECT_FALSE(is_pattern("gptlite_train"));
  EXPECT_TRUE(is_pattern("dnn_[dw]*"));
}

}  // namespace
}  // namespace torchpace::cli
