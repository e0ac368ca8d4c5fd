#include <torchpace/io/tensor_file.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

TensorDict example() {
  const auto base = torch::arange(12, torch::kFloat32).view({3, 4});
  return {{"a", base},
          {"view", base.t()},
          {"ids", torch::tensor({1, 2, 3})},
          {"empty", torch::zeros({0, 2})},
          {"half", torch::ones({2}, torch::kBFloat16)}};
}

TEST(Tensors, RoundTrip) {
  TemporaryFolder folder;
  write_tensors(folder.file("t.pt"), example());
  const auto read = read_tensors(folder.file("t.pt"));
  ASSERT_EQ(read.size(), example().size());
  for (const auto& [name, tensor] : example()) {
    EXPECT_EQ(read.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(read.at(name), tensor)) << name;
  }
  EXPECT_EQ(folder.entries(), 1u) << "no temporary file stays";
}

TEST(Tensors, MissingTruncatedAndForeignFilesAreOneClearLine) {
  TemporaryFolder folder;
  EXPECT_NE(error_of([&] { read_tensors(folder.file("none.pt")); }).find("cannot be opened"),
            std::string::npos);
  write_tensors(folder.file("t.pt"), example());
  const auto whole = read_file(folder.file("t.pt"));
  for (const std::size_t part : {1, 2, 3}) {
    write_file(folder.file("cut.pt"), whole.substr(0, whole.size() * part / 4));
    const auto message = error_of([&] { read_tensors(folder.file("cut.pt")); });
    EXPECT_NE(message.find("truncated"), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  write_file(folder.file("text.pt"), "hello");
  EXPECT_NE(error_of([&] { read_tensors(folder.file("text.pt")); }).find("5 bytes"),
            std::string::npos);
}

TEST(Tensors, OtherFormatsAndOtherContentAreRefused) {
  TemporaryFolder folder;
  const auto save = [&](const torch::IValue& value) {
    const auto bytes = torch::pickle_save(value);
    write_file(folder.file("x.pt"), {bytes.begin(), bytes.end()});
    return error_of([&] { read_tensors(folder.file("x.pt")); });
  };
  EXPECT_NE(save(torch::ones({2})).find("plain dict of tensors"), std::string::npos);
  c10::Dict<std::string, torch::Tensor> dict;
  dict.insert("a", torch::ones({2}));
  EXPECT_NE(save(dict).find("expected the key torchpace.format"), std::string::npos);
  dict.insert("torchpace.format", torch::scalar_tensor(2, torch::kInt64));
  EXPECT_NE(save(dict).find("expected format 1, found 2"), std::string::npos);
}

TEST(Tensors, AFullDiskLeavesNothing) {
  EXPECT_NE(
      error_of([] { write_tensors("/dev/full/t.pt", example()); }).find("could not be written"),
      std::string::npos);
  TemporaryFolder folder;
  ASSERT_EQ(symlink("/dev/full", folder.file("t.pt.part").c_str()), 0);
  EXPECT_NE(
      error_of([&] { write_tensors(folder.file("t.pt"), example()); }).find("could not be written"),
      std::string::npos);
  EXPECT_EQ(folder.entries(), 0u);
}

}  // namespace
}  // namespace torchpace
