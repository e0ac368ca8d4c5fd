#include <optional>
#include <torchpace/io/zip_archive.hpp>

#include "testing.hpp"
#include "zip_writer.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::TemporaryFolder;
using testing::zip;

class ArchiveTest : public ::testing::Test {
 protected:
  std::string write(const std::string& bytes) {
    const auto path = folder_.file("archive.pt");
    testing::write_file(path, bytes);
    return path;
  }
  /// What checking these bytes says, without the path.
  std::string error(const std::string& bytes, const ArchiveLimits& limits = {}) {
    const auto path = write(bytes);
    const auto text = error_of([&] { check_archive(path, limits); });
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_TRUE(text.empty() || text.starts_with(path + ": ")) << text;
    return text;
  }
  void expect_error(const std::string& bytes, const std::string& part) {
    const auto text = error(bytes);
    EXPECT_NE(text.find(part), std::string::npos)
        << "expected '" << part << "' in '" << text << "'";
  }

  TemporaryFolder folder_;
};

TEST(Crc32, IsThatOfTheStandard) {
  EXPECT_EQ(crc32("123456789"), 0xCBF43926U);
  EXPECT_EQ(crc32("The quick brown fox jumps over the lazy dog"), 0x414FA339U);
  EXPECT_EQ(crc32(""), 0U);
}

TEST_F(ArchiveTest, ListsWhatIsRight) {
  for (const bool wide : {false, true}) {
    const Archive archive(write(zip({{"a/one", "first"}, {"a/b/two.so", ""}}, wide)));
    ASSERT_EQ(archive.entries().size(), 2U);
    EXPECT_EQ(archive.bytes(archive.entries()[0]), "first");
    EXPECT_EQ(archive.find(".so"), &archive.entries()[1]);
    EXPECT_EQ(archive.find(".cpp"), nullptr);
    EXPECT_TRUE(archive.has_folder("b"));
    EXPECT_FALSE(archive.has_folder("one"));
  }
}

TEST_F(ArchiveTest, ReadsWhatTorchWrites) {
  const auto path = folder_.file("tensors.pt");
  write_tensors(path, {{"x", torch::randn({1000})}});
  EXPECT_GE(check_archive(path).size(), 3U);
}

TEST_F(ArchiveTest, RefusesEveryTruncation) {
  const auto whole = zip({{"a/one", "first"}, {"a/two", "second"}}, true);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(error(whole.substr(0, size)), "") << size << " bytes of " << whole.size();
  }
}

TEST_F(ArchiveTest, SurvivesEveryFlippedByte) {
  // Dates, versions, attributes and extra fields carry nothing; all else must be noticed.
  const auto whole = zip({{"a/one", "first"}, {"a/two", "second"}});
  std::size_t unnoticed = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    auto bytes = whole;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x40);
    if (error(bytes).empty()) ++unnoticed;
  }
  EXPECT_LT(unnoticed, whole.size() / 2);
  for (const auto* text : {"first", "second", "PK\1\2", "PK\5\6", "PK\3\4", "a/one"}) {
    auto bytes = whole;
    bytes[whole.find(text)] = static_cast<char>(bytes[whole.find(text)] ^ 0x40);
    EXPECT_NE(error(bytes), "") << text;
  }
}

TEST_F(ArchiveTest, RefusesDangerousNames) {
  expect_error(zip({{"/etc/passwd", "x"}}), "the absolute name '/etc/passwd'");
  expect_error(zip({{"C:x", "x"}}), "absolute name");
  expect_error(zip({{"a/../../x", "x"}}), "'..' in 'a/../../x'");
  expect_error(zip({{"..", "x"}}), "'..'");
  expect_error(zip({{"a\\..\\x", "x"}}), "the name 'a\\..\\x'");
  expect_error(zip({{"a\nb", "x"}}), "control characters in 'a?b'");
  expect_error(zip({{"", "x"}}), "empty name");
  EXPECT_EQ(error(zip({{"a/..b/c..", "x"}})), "");
}

TEST_F(ArchiveTest, RefusesStrangeEntries) {
  expect_error(zip({{"a", "x", 12}}), "found method 12");
  expect_error(zip({{"a", "x", 0, 1}}), "no encryption");
  expect_error(zip({{"a", "x"}, {"a", "y"}}), "a twice");
  expect_error(zip({{"a", "first"}, {"b", "x", 0, 0, {}, {}, {}, 0}}), "found another");
  expect_error(zip({{.name = "a", .data = "x", .local = "b"}}), "found another");
  expect_error(zip({{.name = "a", .data = "x", .bytes = 2}}), "expected 2 stored bytes");
  expect_error(zip({{.name = "a", .data = "x", .crc = 7}}), "CRC-32");
  expect_error(zip({{.name = "a", .data = "x", .header = 0x7FFFFFFF}}), "truncated");
  expect_error(zip({}), "found none");
  // A directory that gives one local header to two names would let a byte be read twice.
  const auto inner = zip({{"b", "x"}});
  expect_error(zip({{"a", inner}, {"b", "x", 0, 0, {}, {}, {}, 31}}), "overlap");
}

TEST_F(ArchiveTest, RefusesZipBombsBySize) {
  expect_error(zip({{.name = "a/b", .data = "packed", .method = 8, .bytes = 4000000000}}),
               "zip bomb");
  EXPECT_NE(error(zip({{"a", "0123456789"}, {"b", "0123456789"}}), {.max_bytes = 19}), "");
  EXPECT_EQ(error(zip({{"a", "0123456789"}, {"b", "0123456789"}}), {.max_bytes = 20}), "");
  EXPECT_NE(error(zip({{"a", ""}, {"b", ""}}), {.max_entries = 1}), "");
}

TEST_F(ArchiveTest, RefusesWhatIsNoArchive) {
  expect_error("", "an empty file");
  expect_error("just a text\n", "12 bytes of something else");
  EXPECT_NE(error_of([&] { check_archive(folder_.file("")); }).find("found a folder"),
            std::string::npos);
  EXPECT_NE(error_of([&] { check_archive(folder_.file("missing.pt")); }).find("cannot be opened"),
            std::string::npos);
}

}  // namespace
}  // namespace torchpace
