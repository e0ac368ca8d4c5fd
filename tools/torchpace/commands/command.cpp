#include "commands/command.hpp"

#include <utility>

#include "support/strings.hpp"

namespace torchpace::cli {

void add_repeated(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                  const std::string& type, const std::string& help) {
  app.add_option(name, values, help)->type_name(type)->take_all()->allow_extra_args(false);
}

void add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
              const std::string& type, const std::string& help) {
  const auto split = [&values](const std::vector<std::string>& texts) {
    for (const auto& text : texts) {
      for (auto& part : split_list(text)) values.push_back(std::move(part));
    }
  };
  app.add_option_function<std::vector<std::string>>(name, split, help)
      ->type_name(type)
      ->take_all()
      ->allow_extra_args(false);
}

}  // namespace torchpace::cli
