// Wrong and damaged training packages: one line each, before any of their code is opened. The code
// inside is no library, so a package that is not refused in time fails in another line.
// Twin: python/tests/test_training_package.py.
#include <cstdlib>
#include <optional>
#include <torchpace/aot/compiled_training.hpp>

#include "testing.hpp"
#include "zip_writer.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::TemporaryFolder;
using testing::Written;

constexpr auto kLibrary = "step/data/aotinductor/model/code.wrapper.so";
constexpr auto kMetadata = "step/data/aotinductor/model/code.wrapper_metadata.json";
constexpr auto kInitial = "step/extra/torchpace/initial";

/// Linear(3, 2) with Adam and two batches to an update, right but for its code.
PackageMetadata right_metadata() {
  return {
      {"AOTI_DEVICE_KEY", "cpu"},
      {"torchpace.format", "1"},
      {"torchpace.torch", TORCH_VERSION},
      {"torchpace.device", "cpu"},
      {"torchpace.threads", std::to_string(at::get_num_threads())},
      {"torchpace.isa", ""},
      {"torchpace.gpu", ""},
      {"torchpace.kind", "training"},
      {"torchpace.inputs", "4x3:float32"},
      {"torchpace.target", "4x2:float32"},
      {"torchpace.state",
       "parameters 32:float32 0\nfirst_moment 32:float32 -\nsecond_moment 32:float32 -\n"
       "steps :int64 -\ncorrections 2:float32 128\ngradient 32:float32 -\npart :int64 -"},
      {"torchpace.parameters", "weight 2x3: 0\nbias 2: 16"},
      {"torchpace.optimizer", "kind=adam beta1=0.9 beta2=0.999 accumulate=2"},
      {"torchpace.autocast", "none"},
      {"torchpace.deterministic", "0"},
      {"torchpace.gemm", "torch"},
  };
}

std::string json_of(const PackageMetadata& metadata) {
  std::string text;
  for (const auto& [key, value] : metadata) {
    std::string escaped;
    for (const char c : value) escaped += c == '\n' ? std::string("\\n") : std::string(1, c);
    text += (text.empty() ? "{\"" : ", \"") + key + "\": \"" + escaped + '"';
  }
  return text + '}';
}

class TrainingPackageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const char* named = std::getenv("TMPDIR")) before_ = named;
    setenv("TMPDIR", temporary_.file("").c_str(), 1);
  }
  void TearDown() override { before_ ? setenv("TMPDIR", before_->c_str(), 1) : unsetenv("TMPDIR"); }

  static std::vector<Written> entries(const std::string& metadata) {
    return {{kLibrary, "no library"}, {kMetadata, metadata}, {kInitial, std::string(136, 'x')}};
  }
  void expect_bytes(const std::string& bytes, const std::string& part) {
    const auto path = folder_.file("x.pt2");
    testing::write_file(path, bytes);
    const auto text = error_of([&] { CompiledTraining{path}; });
    EXPECT_NE(text.find(part), std::string::npos)
        << "expected '" << part << "' in '" << text << "'";
    EXPECT_TRUE(text.starts_with(path + ": ")) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_EQ(temporary_.entries(), 0U) << "temporary files are left";
  }
  void expect(const std::vector<Written>& written, const std::string& part) {
    expect_bytes(testing::zip(written), part);
  }
  /// Another value under a key of the metadata, "torchpace." left out; none takes it away.
  void expect(const std::string& key, const std::optional<std::string>& value,
              const std::string& part) {
    auto metadata = right_metadata();
    metadata.erase("torchpace." + key);
    if (value) metadata["torchpace." + key] = *value;
    expect(entries(json_of(metadata)), part);
  }
  /// Another text in such a value.
  void expect_line(const std::string& key, const std::string& old, const std::string& text,
                   const std::string& part) {
    auto value = right_metadata().at("torchpace." + key);
    const auto place = value.find(old);
    ASSERT_NE(place, std::string::npos) << old;
    expect(key, value.replace(place, old.size(), text), part);
  }

  const TemporaryFolder folder_, temporary_;
  std::optional<std::string> before_;
};

TEST_F(TrainingPackageTest, OnlyTheCodeIsWrong) {
  expect(entries(json_of(right_metadata())), "the package does not load");
}

TEST_F(TrainingPackageTest, RefusesOtherConditions) {
  expect("torch", "2.0.0", "expected a package for torch " TORCH_VERSION ", found one for 2.0.0");
  expect("threads", "6400", "threads");
  expect("isa", "AVX9000", "found code that needs AVX9000");
  expect("kind", "inference", "expected a compiled training step");
  expect("device", "cuda", "code for cpu and torchpace.device cuda");
}

TEST_F(TrainingPackageTest, RefusesIncompleteMetadata) {
  for (const auto* key : {"torch", "device", "threads", "state", "parameters", "optimizer",
                          "inputs", "target", "autocast", "deterministic", "gemm"})
    expect(key, {}, std::string("no torchpace.") + key);
  expect({{kLibrary, "no library"}, {kInitial, ""}}, "expected the metadata of the package");
  expect({{kMetadata, "{}"}, {kInitial, ""}}, "expected an AOTInductor package");
  expect({{kLibrary, "no library"}, {kMetadata, json_of(right_metadata())}}, "initial, found none");
  for (const auto* text : {"", "[1]", "{\"a\": \"b", "{\"a\": 1}", "{\"a\": {}}"})
    expect(entries(text), "expected metadata of names and texts");
}

TEST_F(TrainingPackageTest, RefusesWrongState) {
  const auto outside = "bytes of state; make the package again";
  expect({{kLibrary, ""}, {kMetadata, json_of(right_metadata())}, {kInitial, "short"}}, outside);
  expect("state", "parameters 32:float32", "the line");
  expect_line("state", "parameters ", "x ", "no flat state");
  expect_line("state", "32:float32 0", "32:float32 -", "no flat state");
  expect_line("state", "steps", "part", "part twice");
  expect_line("state", "parameters ", "parameters -", "got '-32:float32'");
  expect_line("state", "parameters ", "parameters ?x", "no flat state");
  expect_line("state", "steps ", "steps ?", "no tensor can have");
  expect_line("state", "moment 32", "moment 9999999999x9999999999", "no tensor can have");
  expect_line("state", "32:", "9223372036854775807:", "parameters of");
  expect_line("state", "32:", "1000000000000:", "no first_moment");  // no memory is asked for
  expect_line("state", "steps ", "steps 9999999999", "steps of");
  expect_line("state", "float32", "float33", "got 'float33'");
  expect_line("state", "float32 0", "float32 -64", "'-64' for a number");
  expect_line("state", "float32 0", "float32 99", outside);
  expect_line("state", "float32 0", "float32 18446744073709551615", outside);
  expect_line("state", "second_moment", "moment", "no second_moment");
  expect_line("state", "first_moment 32", "first_moment 31", "no first_moment");
  expect_line("state", "gradient", "other", "no gradient");
  expect_line("state", "steps", "step", "no steps");
}

TEST_F(TrainingPackageTest, RefusesWrongNames) {
  const auto outside = "outside the flat state";
  expect_line("parameters", "2x3", "2x999", outside);
  expect_line("parameters", ": 0", ": -1", outside);
  expect_line("parameters", ": 0", ": 9223372036854775807", outside);
  expect_line("parameters", "2x3", "4294967296x4294967296", "no tensor can have");
  expect_line("parameters", "weight ", "a b ", "the line 'a b 2x3: 0'");
  expect("optimizer", "kind=lion", "the optimizer 'lion'");
  expect("optimizer", "adam", "expected key=value");
  expect("optimizer", "kind=adam beta1=x", "beta1");
  expect("inputs", "4x:float32", "got '4x:float32'");
  expect("inputs", "?x3:float32", "no tensor can have");
  expect("target", "4:float8", "got 'float8'");
  expect("deterministic", "yes", "not 0 or 1");
  expect("gemm", "mkl", "not torchpace or torch");
}

TEST_F(TrainingPackageTest, RefusesDamagedArchives) {
  const auto written = entries(json_of(right_metadata()));
  const auto whole = testing::zip(written);
  for (const auto& entry : written) {
    auto flipped = whole;
    char& byte = flipped[whole.find(entry.data) + entry.data.size() / 2];
    byte = static_cast<char>(byte ^ 4);
    expect_bytes(flipped, "CRC-32");
  }
  expect_bytes("", "empty file");
  expect_bytes("a text\n", "of something else");
  expect_bytes(whole.substr(0, whole.size() - 1), "truncated");
  expect_bytes(whole.substr(0, whole.size() / 2), "truncated");
  expect_bytes(whole.substr(100), "truncated");
  auto more = written;
  more.push_back({"step/../../x", "x"});
  expect(more, "'..' in");
  more.back() = {"/tmp/x", "x"};
  expect(more, "the absolute name");
  more.back() = {kInitial, "x"};
  expect(more, "twice");
  more.back() = {.name = "step/zeros", .data = "packed", .method = 8, .bytes = 4000000000};
  expect(more, "zip bomb");
}

}  // namespace
}  // namespace torchpace
