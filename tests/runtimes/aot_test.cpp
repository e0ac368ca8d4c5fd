#include <cstdlib>
#include <torchpace/runtimes/aot.hpp>

#include "testing.hpp"
#include "zip_writer.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::TemporaryFolder;
using testing::zip;

const std::string kModel = "x/data/aotinductor/model/";

/// A package with this metadata and a library that is none; TMPDIR is a folder of the test's own.
class AotPackageTest : public ::testing::Test {
 protected:
  AotPackageTest() { setenv("TMPDIR", scratch_.file("").c_str(), 1); }
  ~AotPackageTest() override {
    EXPECT_EQ(scratch_.entries(), 0U) << "left in the temporary folder";
    unsetenv("TMPDIR");
  }

  std::string package(const std::string& metadata, const std::string& library = "no ELF") {
    return write({{kModel + "a.wrapper.so", library},
                  {kModel + "a.wrapper_metadata.json", metadata},
                  {kModel + "a.wrapper.cpp", "int main() {}"}});
  }
  std::string write(const std::vector<testing::Written>& entries) {
    const auto path = folder_.file("model.pt2");
    testing::write_file(path, zip(entries));
    return path;
  }
  static void expect(const std::function<void()>& action, const std::string& part) {
    const auto text = error_of(action);
    EXPECT_NE(text.find(part), std::string::npos)
        << "expected '" << part << "' in '" << text << "'";
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }

  TemporaryFolder folder_, scratch_;
};

TEST_F(AotPackageTest, ReadsItsMetadata) {
  const AotPackage own(
      package(R"({"AOTI_DEVICE_KEY": "cpu", "a\"b": "c\\d\ne", "torchpace.format" : "1", )"
              R"("torchpace.inputs": "?x8:float32;4:int64"})"));
  EXPECT_EQ(own.get("a\"b"), "c\\d\ne");
  EXPECT_TRUE(own.made_by_torchpace());
  EXPECT_EQ(text_of(own.input_specs()), "?x8:float32;4:int64");
  EXPECT_FALSE(AotPackage(package(R"({"AOTI_DEVICE_KEY": "cpu"})")).made_by_torchpace());
}

TEST_F(AotPackageTest, RefusesWhatIsNoPackage) {
  expect(
      [&] {
        AotPackage(write({{"x/models/model.json", "{}"}, {"x/version", "1"}}));
      },
      "found a program of torch.export.save");
  expect(
      [&] {
        AotPackage(write({{"x/code/a.py", ""}, {"x/constants.pkl", "1"}}));
      },
      "found a TorchScript file");
  expect(
      [&] {
        AotPackage(write({{"x/models/model.json", "{}"}, {"x/version", "1"}}));
      },
      "torchpace compare --model FILE.pt2");
  expect([&] { AotPackage(write({{"x/data.pkl", ""}})); }, "found another archive");
  expect([&] { AotPackage(write({{kModel + "a.so", ""}})); }, "expected the metadata");
  expect([&] { AotPackage(write({{kModel + "a.so", ""}, {kModel + "b.so", ""}})); }, "found two");
  for (const auto* json :
       {"", "{", "[]", R"({"a": 1})", R"({"a": "b)", R"({"a" "b"})", R"({"a":"\u1"})"})
    expect([&] { AotPackage{package(json)}; }, "expected metadata of names and texts");
  expect([&] { AotPackage{package("{}")}; }, "expected the key AOTI_DEVICE_KEY");
}

TEST_F(AotPackageTest, ChoosesAmongItsModels) {
  const std::string json = R"({"AOTI_DEVICE_KEY": "cpu", "of": ")";
  const auto entries = [&](const std::string& name) {
    const auto folder = "x/data/aotinductor/" + name + "/";
    return std::vector<testing::Written>{{folder + "a.so", "no ELF"},
                                         {folder + "a_metadata.json", json + name + "\"}"}};
  };
  const auto both = [&](const std::string& a, const std::string& b) {
    auto all = entries(a);
    for (const auto& each : entries(b)) all.push_back(each);
    return write(all);
  };
  expect([&] { AotPackage{both("encoder", "decoder")}; },
         "expected a package with the model 'model', found one of decoder, encoder; choose one "
         "with --model-name");
  EXPECT_EQ(AotPackage(both("encoder", "decoder"), "encoder").get("of"), "encoder");
  EXPECT_EQ(AotPackage(both("model", "decoder")).get("of"), "model");
  EXPECT_EQ(AotPackage(write(entries("encoder"))).get("of"), "encoder") << "the only one";
  expect([&] { AotPackage(write(entries("encoder")), "decoder"); }, "the model 'decoder'");
}

TEST_F(AotPackageTest, RefusesAnotherEnvironment) {
  const auto check = [&](const std::string& more, int threads = 1) {
    const AotPackage made(package(R"({"AOTI_DEVICE_KEY": "cpu")" + more + "}"));
    made.check_environment(torch::kCPU, threads);
  };
  EXPECT_EQ(error_of([&] { check(""); }), "");
  EXPECT_EQ(error_of([&] { check(R"(, "torchpace.torch": ")" TORCH_VERSION R"(+cu130")"); }), "");
  expect([&] { check(R"(, "torchpace.torch": "2.10.0")"); }, "found one for 2.10.0");
  expect([&] { check(R"(, "torchpace.threads": "3")"); }, "threads 1, found one for 3");
  EXPECT_EQ(error_of([&] { check(R"(, "torchpace.threads": "3")", 0); }), "");
  expect([&] { check(R"(, "AOTI_CPU_ISA": "AVX2 AVX9000")"); }, "needs AVX9000");
  expect(
      [&] {
        AotPackage(package(R"({"AOTI_DEVICE_KEY": "cuda"})")).check_environment(torch::kCPU, 1);
      },
      "device cpu, found one for cuda");
}

TEST_F(AotPackageTest, RefusesOtherInputs) {
  const AotPackage made(
      package(R"({"AOTI_DEVICE_KEY": "cpu", "torchpace.inputs": "?x8:float32;4:int64"})"));
  const auto tokens = torch::zeros({4}, torch::kInt64);
  EXPECT_EQ(error_of([&] { made.check_inputs({torch::zeros({5, 8}), tokens}); }), "");
  expect(
      [&] {
        made.check_inputs({torch::zeros({5, 7}), tokens});
      },
      "expected inputs ?x8:float32;4:int64, found 5x7:float32;4:int64");
  expect([&] { made.check_inputs({torch::zeros({5, 8}), tokens.to(torch::kInt32)}); }, "4:int32");
  expect([&] { made.check_inputs({torch::zeros({5, 8})}); }, "found 5x8:float32;");
}

TEST_F(AotPackageTest, LeavesNothingWhereTheCodeDoesNotLoad) {
  const AotPackage made(package(R"({"AOTI_DEVICE_KEY": "cpu"})"));
  expect([&] { made.load(torch::kCPU); }, "make the package again");
  const AotPackage other(package(R"({"AOTI_DEVICE_KEY": "abacus"})"));
  expect([&] { other.load(torch::kCPU); }, "found one for abacus");
}

TEST(AotInductor, SkipsTraining) {
  const auto runtime = aot_runtimes().at(0);
  EXPECT_EQ(runtime.artifact, "aot");
  EXPECT_THROW(runtime.load({{"phase", "train"}}, {}), DeviceUnavailable);
}

TEST(TensorSpec, ReadsAndWrites) {
  for (const auto* text :
       {"1x3x224x224:float32", "?x8:int64", ":bool", "4:bfloat16", "2x3:complex64"})
    EXPECT_EQ(TensorSpec::parse(text).text(), text);
  EXPECT_EQ(TensorSpec::parse("2x3").text(), "2x3:float32");
  const auto last = TensorSpec::parse("2x3x4x5:float32:channels_last");
  EXPECT_EQ(last.text(), "2x3x4x5:float32:channels_last");
  const auto tensor = torch::ones(last.sizes).contiguous(last.memory_format());
  EXPECT_EQ(tensor.stride(1), 1);
  EXPECT_EQ(TensorSpec::of(tensor).text(), last.text());
  EXPECT_EQ(TensorSpec::of(torch::ones(last.sizes)).text(), "2x3x4x5:float32");
  for (const auto* text : {"x", "1x", "x1", "-1:float32", "1.5", "1x3:float", "a:float32", "1 x 2",
                           "2x3:float32:channels_last", "1x2x3x4:float32:banana"})
    EXPECT_NE(error_of([&] { TensorSpec::parse(text); }), "") << text;
}

}  // namespace
}  // namespace torchpace
