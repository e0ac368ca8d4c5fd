# What the programs and the tests need beside LibTorch. Nothing is downloaded: each comes from the
# folder that FETCHCONTENT_SOURCE_DIR_<NAME> names, else from the system; else its part is left out,
# and said.
include(FetchContent)

# torchpace_find(<name> <package> <version or 0> <target> <Debian package>
#                <what is left out without it>)
# Sets <name>_AVAILABLE.
function(torchpace_find name package version target debian_package part)
  string(TOUPPER "${name}" upper)
  if(NOT TARGET ${target})
    if(FETCHCONTENT_SOURCE_DIR_${upper})
      FetchContent_Declare(${name} SOURCE_DIR "${FETCHCONTENT_SOURCE_DIR_${upper}}"
        EXCLUDE_FROM_ALL SYSTEM)
      FetchContent_MakeAvailable(${name})
    else()
      set(wanted_version ${version})
      if(version STREQUAL "0")
        set(wanted_version "")
      endif()
      find_package(${package} ${wanted_version} QUIET GLOBAL)
    endif()
  endif()
  if(TARGET ${target})
    set(${name}_AVAILABLE TRUE PARENT_SCOPE)
  else()
    set(${name}_AVAILABLE FALSE PARENT_SCOPE)
    message(STATUS "torchpace: ${name} not found, so without ${part}. "
      "Get it: apt install ${debian_package}, "
      "or -D FETCHCONTENT_SOURCE_DIR_${upper}=<its source folder>")
  endif()
endfunction()

# Options of the projects that may be built from a folder: static, and nothing but the library.
macro(torchpace_dependency_options)
  set(BUILD_SHARED_LIBS OFF)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_GTEST_TESTS OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  set(BENCHMARK_ENABLE_WERROR OFF)
  set(INSTALL_GTEST OFF)
  set(CLI11_SINGLE_FILE OFF)
  set(CLI11_BUILD_TESTS OFF)
  set(CLI11_BUILD_EXAMPLES OFF)
  set(CLI11_INSTALL OFF)
  set(JSON_BuildTests OFF)
  set(JSON_Install OFF)
  set(FMT_INSTALL OFF)
  set(FMT_TEST OFF)
  set(FMT_DOC OFF)
endmacro()
