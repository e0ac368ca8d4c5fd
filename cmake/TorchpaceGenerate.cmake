# Public headers, relative to include/.
function(torchpace_public_headers result)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE "${torchpace_SOURCE_DIR}/include"
    "${torchpace_SOURCE_DIR}/include/torchpace/*.hpp")
  list(FILTER headers EXCLUDE REGEX "/detail/")
  list(SORT headers)
  set(${result} ${headers} PARENT_SCOPE)
endfunction()

# Embeds a text file as `inline constexpr std::string_view torchpace::<variable>` in the header
# <output>.
function(torchpace_embed input variable output)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${input}")
  file(READ "${input}" text)
  file(CONFIGURE OUTPUT "${output}" CONTENT "// Generated.
#pragma once

#include <string_view>

namespace torchpace {
inline constexpr std::string_view ${variable} = R\"torchpace(${text})torchpace\";
}  // namespace torchpace
" @ONLY)
endfunction()
