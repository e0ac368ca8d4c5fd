// A new model is one include and one line here, a new runtime one include and one word.
#include "registry/registry.hpp"

#include <array>
#include <iterator>
#include <torchpace/models/dnn.hpp>
#include <torchpace/models/file.hpp>
#include <torchpace/models/gptlite.hpp>
#include <torchpace/models/imported.hpp>
#include <torchpace/runtimes/aot.hpp>
#include <torchpace/runtimes/compiled_training.hpp>
#include <torchpace/runtimes/cuda_graph.hpp>
#include <torchpace/runtimes/eager.hpp>
#include <torchpace/runtimes/int8.hpp>
#include <torchpace/runtimes/torchscript.hpp>
#include <utility>

namespace torchpace {
namespace {

constexpr std::pair<const char*, Model (*)(const Settings&)> kModels[] = {
    {"dnn", make_dnn},
    {"file", make_file},
    {"gptlite", make_gptlite},
    {"imported", make_imported},
};
constexpr std::array kRuntimes = {aot_runtimes,        compiled_training_runtimes,
                                  cuda_graph_runtimes, eager_runtimes,
                                  int8_runtimes,       torchscript_runtimes};

}  // namespace

Model make_model(const std::string& name, const Settings& settings) {
  std::string known;
  for (const auto& [each, make] : kModels) {
    if (name == each) return make(settings);
    known += (known.empty() ? "" : ", ") + std::string(each);
  }
  TORCH_CHECK(false, "unknown model '", name, "': expected one of ", known);
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& [name, make] : kModels) names.emplace_back(name);
  return names;
}

std::vector<Runtime> all_runtimes() {
  std::vector<Runtime> all;
  for (const auto list : kRuntimes) {
    auto more = list();
    all.insert(all.end(), std::make_move_iterator(more.begin()),
               std::make_move_iterator(more.end()));
  }
  return all;
}

}  // namespace torchpace
