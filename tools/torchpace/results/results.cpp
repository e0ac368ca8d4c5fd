#include "results/results.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>

#include "support/error.hpp"

namespace torchpace::cli {

const char* to_string(Status status) {
  switch (status) {
    case Status::ok:
      return "ok";
    case Status::skipped:
      return "skipped";
    case Status::invalid:
      return "invalid";
    case Status::failed:
      break;
  }
  return "failed";
}

const RuntimeResult* CaseResult::find(const std::string& runtime) const {
  const auto same = [&](const RuntimeResult& row) { return row.runtime == runtime; };
  const auto found = std::find_if(runtimes.begin(), runtimes.end(), same);
  return found == runtimes.end() ? nullptr : &*found;
}

RuntimeResult* CaseResult::find(const std::string& runtime) {
  return const_cast<RuntimeResult*>(std::as_const(*this).find(runtime));
}

bool CaseResult::counts(const RuntimeResult& row) const {
  const auto* other = find(reference);
  return row.status == Status::ok && !row.approximate && row.implausible.empty() &&
         (other == nullptr || other->implausible.empty());
}

bool is_note(const Warning& warning) {
  static const std::set<std::string> kCodes = {"note", "artifact", "export", "no-golden"};
  return !warning.case_name.empty() && kCodes.contains(warning.code);
}

void Results::warn(Warning warning) {
  const auto same = [&](const Warning& w) {
    return w.code == warning.code && w.case_name == warning.case_name &&
           w.runtime == warning.runtime && w.text == warning.text;
  };
  if (std::none_of(warnings.begin(), warnings.end(), same)) warnings.push_back(std::move(warning));
}

namespace {

std::string read_whole(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(fmt::format("{}: cannot be read: {}", path.string(), strerror(errno)));
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) throw Error(fmt::format("{}: cannot be read to its end", path.string()));
  return text;
}

void write_whole(int file, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const auto written = write(file, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw std::system_error(errno, std::generic_category());
    done += static_cast<size_t>(written);
  }
  // Until here the kernel may still find the disk full.
  if (fsync(file) != 0 && errno != EINVAL) throw std::system_error(errno, std::generic_category());
}

}  // namespace

Results load_results(const std::filesystem::path& path) {
  std::error_code ignored;
  const auto file = std::filesystem::is_directory(path, ignored) ? path / "results.json" : path;
  const auto text = read_whole(file);
  try {
    return from_json(Json::parse(text), file.string());
  } catch (const Json::parse_error& error) {
    throw Error(
        fmt::format("{}: expected a whole results.json, found text that is not JSON at byte "
                    "{} of {} (truncated?): run the comparison again",
                    file.string(), error.byte, text.size()));
  }
}

void save_json(const Json& json, const std::filesystem::path& path) {
  // What a worker wrote on standard error may not be UTF-8: replaced, not thrown.
  const auto text = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  const auto temporary = path.string() + ".tmp";
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  try {
    if (file < 0) throw std::system_error(errno, std::generic_category());
    write_whole(file, text);
    if (rename(temporary.c_str(), path.c_str()) != 0) {
      throw std::system_error(errno, std::generic_category());
    }
    close(file);
  } catch (const std::system_error& error) {
    if (file >= 0) close(file);
    unlink(temporary.c_str());
    throw Error(fmt::format("{}: cannot be written: {}; free some space or choose another --output",
                            path.string(), error.code().message()),
                kCaseFailed);
  }
}

}  // namespace torchpace::cli
