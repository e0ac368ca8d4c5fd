# For torchpace's own programs and tests; a project that uses the library never reads this file.

# torch/torch.h costs 20 s and more a unit: it is compiled once into one precompiled header, and
# ccache keeps the rest.
if(TORCHPACE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(TORCHPACE_CCACHE_PROGRAM ccache)
  mark_as_advanced(TORCHPACE_CCACHE_PROGRAM)
  if(TORCHPACE_CCACHE_PROGRAM)
    # Without the first, ccache refuses every unit that uses a precompiled header. By the second it
    # knows a unit again in another build folder beside this one; by the third, messages of the
    # compiler name files as ever.
    set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env
      "CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime"
      "CCACHE_BASEDIR=${torchpace_SOURCE_DIR}" CCACHE_ABSSTDERR=1
      "${TORCHPACE_CCACHE_PROGRAM}")
  endif()
endif()

# Warnings of our own code; LibTorch's headers are SYSTEM.
add_library(torchpace_warnings INTERFACE)
target_compile_options(torchpace_warnings INTERFACE -Wall -Wextra -Wconversion -Wshadow
  # GCC 12 sees overlaps in std::string that are not there (GCC bug 105651).
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>)

# Optimization of a release for what is measured, and less for what is only run: compiled in half of
# the time.
set(torchpace_test_options $<$<CONFIG:Release>:-O0>)
set(torchpace_tool_options $<$<CONFIG:Release>:-O1>)

function(torchpace_precompile target)
  add_library(${target} OBJECT EXCLUDE_FROM_ALL "${torchpace_BINARY_DIR}/generated/pch.cpp")
  target_link_libraries(${target} PRIVATE torchpace torchpace_warnings)
  target_precompile_headers(${target} PRIVATE <torch/torch.h>)
  target_compile_options(${target} PRIVATE -fpch-preprocess ${ARGN})
endfunction()
file(CONFIGURE OUTPUT "${torchpace_BINARY_DIR}/generated/pch.cpp" CONTENT "// Generated.\n")
torchpace_precompile(torchpace_pch)
torchpace_precompile(torchpace_test_pch ${torchpace_test_options})

function(_torchpace_reuse target precompiled)
  target_link_libraries(${target} PRIVATE torchpace torchpace_warnings)
  target_precompile_headers(${target} REUSE_FROM ${precompiled})
  target_compile_options(${target} PRIVATE -fpch-preprocess ${ARGN})
endfunction()

# A program or library of ours that includes LibTorch.
function(torchpace_use_torch target)
  _torchpace_reuse(${target} torchpace_pch)
endfunction()

# The same for a test.
function(torchpace_test_torch target)
  _torchpace_reuse(${target} torchpace_test_pch ${torchpace_test_options})
endfunction()
