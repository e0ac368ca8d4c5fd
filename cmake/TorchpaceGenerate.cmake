# Generates from the folders what would otherwise be lists to edit: the umbrella header and the registries of models and
# runtimes. Files are rewritten only when their content changes, so nothing is compiled again without need.

function(_torchpace_write file content)
  file(CONFIGURE OUTPUT "${file}" CONTENT "${content}" @ONLY)
endfunction()

# Public headers, relative to include/.
function(torchpace_public_headers result)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE "${torchpace_SOURCE_DIR}/include"
    "${torchpace_SOURCE_DIR}/include/torchpace/*.hpp")
  list(FILTER headers EXCLUDE REGEX "/detail/")
  list(SORT headers)
  set(${result} ${headers} PARENT_SCOPE)
endfunction()

# torchpace/torchpace.hpp: what a program that measures needs. What serves runtimes and workers, or defines main, or needs
# more than LibTorch, is included one by one: it would double what this header adds to the compile time of <torch/torch.h>.
function(torchpace_generate_umbrella headers)
  list(FILTER headers EXCLUDE REGEX "^torchpace/(axes|commands|google_benchmark|profile|torchpace|worker|workload|(data|io|runtimes)/.*)\\.hpp$")
  set(content "// What a program that measures needs. Generated from the folder include/torchpace.\n#pragma once\n\n")
  foreach(header IN LISTS headers)
    string(APPEND content "#include <${header}>\n")
  endforeach()
  _torchpace_write("${torchpace_BINARY_DIR}/generated/torchpace/torchpace.hpp" "${content}")
endfunction()

# The names of the files of a folder whose header has the function that registers it; others are shared parts.
function(_torchpace_registered folder function_of_name result)
  set(names "")
  file(GLOB headers CONFIGURE_DEPENDS "${torchpace_SOURCE_DIR}/include/torchpace/${folder}/*.hpp")
  list(SORT headers)
  foreach(header IN LISTS headers)
    get_filename_component(name "${header}" NAME_WE)
    string(REPLACE "@" "${name}" function "${function_of_name}")
    file(STRINGS "${header}" hits REGEX "(^|[ >])${function} *\\(")
    if(hits)
      list(APPEND names ${name})
    else()
      message(VERBOSE "torchpace: ${folder}/${name}.hpp has no ${function}(): not registered")
    endif()
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${header}")
  endforeach()
  set(${result} ${names} PARENT_SCOPE)
endfunction()

# The sources of the registry: one unit for all models, which are cheap beside what LibTorch's headers cost each unit, and
# one per runtime.
function(torchpace_generate_registry result)
  set(folder "${torchpace_BINARY_DIR}/generated/registry")
  _torchpace_registered(models make_@ models)
  _torchpace_registered(runtimes @_runtimes runtimes)

  _torchpace_write("${folder}/torchpace_registry.hpp" [[
// What the folders models/ and runtimes/ hold. Generated.
#pragma once

#include <torchpace/settings.hpp>
#include <torchpace/workload.hpp>

#include <string>
#include <vector>

namespace torchpace {
/// Throws c10::Error, naming the known ones, for an unknown name.
Model make_model(const std::string& name, const Settings& settings);
std::vector<std::string> model_names();
std::vector<Runtime> all_runtimes();
}  // namespace torchpace
]])

  set(sources "${folder}/registry.cpp")
  set(declarations "")
  set(makers "")
  set(names "")
  set(calls "")
  set(model_includes "")
  foreach(name IN LISTS models)
    string(APPEND model_includes "#include <torchpace/models/${name}.hpp>\n")
    string(APPEND makers "  if (name == \"${name}\") return make_${name}(settings);\n")
    list(APPEND names "\"${name}\"")
  endforeach()
  foreach(name IN LISTS runtimes)
    _torchpace_write("${folder}/runtime_${name}.cpp" "// Generated.
#include <torchpace/runtimes/${name}.hpp>
#include <torchpace/workload.hpp>

namespace torchpace::registry {
std::vector<Runtime> ${name}_runtimes();
std::vector<Runtime> ${name}_runtimes() { return torchpace::${name}_runtimes(); }
}  // namespace torchpace::registry
")
    list(APPEND sources "${folder}/runtime_${name}.cpp")
    string(APPEND declarations "std::vector<Runtime> ${name}_runtimes();\n")
    string(APPEND calls "  add(registry::${name}_runtimes());\n")
  endforeach()
  list(JOIN names ", " names)

  _torchpace_write("${folder}/registry.cpp" "// Generated.
#include \"torchpace_registry.hpp\"

${model_includes}
#include <iterator>
#include <utility>

namespace torchpace::registry {
${declarations}}  // namespace torchpace::registry

namespace torchpace {

Model make_model(const std::string& name, [[maybe_unused]] const Settings& settings) {
${makers}  std::string known;
  for (const auto& each : model_names()) known += (known.empty() ? \"\" : \", \") + each;
  TORCH_CHECK(false, \"unknown model '\", name, \"': expected one of \", known);
}

std::vector<std::string> model_names() { return {${names}}; }

std::vector<Runtime> all_runtimes() {
  std::vector<Runtime> all;
  [[maybe_unused]] const auto add = [&all](std::vector<Runtime> more) {
    all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  };
${calls}  return all;
}

}  // namespace torchpace
")
  set(${result} ${sources} PARENT_SCOPE)
endfunction()

# Embeds a text file as `inline constexpr std::string_view torchpace::<variable>` in the header <output>.
function(torchpace_embed input variable output)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${input}")
  file(READ "${input}" text)
  _torchpace_write("${output}" "// Generated.
#pragma once

#include <string_view>

namespace torchpace {
inline constexpr std::string_view ${variable} = R\"torchpace(${text})torchpace\";
}  // namespace torchpace
")
endfunction()
