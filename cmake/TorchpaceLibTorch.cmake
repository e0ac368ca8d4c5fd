# Makes the target torchpace::libtorch; with TORCHPACE_WITH_CUDA_HEADERS defined where LibTorch has
# CUDA and its headers are found.
#
# A parent project's target `torch` wins. Otherwise the LibTorch folder is looked for in this order:
#   1. TORCHPACE_LIBTORCH   a folder with lib/ and include/: an unpacked libtorch zip or an
#                           installed torch package
#   2. TORCHPACE_PYTHON     an interpreter whose torch package is to be used
#   3. Torch_DIR, CMAKE_PREFIX_PATH
#   4. Python: .venv beside the top-level CMakeLists.txt, the active virtual environment, python3
# Each of them may be a CMake variable or an environment variable. torch is never imported to find
# it, and TorchConfig is not used: for a CUDA wheel it needs nvcc, a toolkit and an NVTX switch,
# even for plain C++.
# Sets TORCHPACE_LIBTORCH_DIR, TORCHPACE_TORCH_VERSION, TORCHPACE_TORCH_PYTHON (when Python was
# asked) and TORCHPACE_TORCH_HAS_CUDA.
include_guard(GLOBAL)

set(TORCHPACE_TORCH_MINIMUM 2.11)
set(TORCHPACE_TORCH_NEWEST_TESTED 2.15)
set(TORCHPACE_LIBTORCH "" CACHE PATH "LibTorch folder (lib/, include/); empty: search")
set(TORCHPACE_PYTHON "" CACHE FILEPATH "Python interpreter that holds torch; empty: search")

set(_torchpace_needed_file include/torch/csrc/api/include/torch/torch.h)

function(_torchpace_is_libtorch folder result)
  if(EXISTS "${folder}/${_torchpace_needed_file}" AND EXISTS "${folder}/lib/libtorch_cpu.so")
    set(${result} TRUE PARENT_SCOPE)
  else()
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()

# The folder of the package that an interpreter would import by this name, "" if there is none.
function(_torchpace_ask_python interpreter package result)
  set(${result} "" PARENT_SCOPE)
  set(environment "")
  if(DEFINED SKBUILD)  # pip hides by PYTHONPATH what is installed, torch among it, from a build
    set(environment "${CMAKE_COMMAND}" -E env --unset=PYTHONPATH)
  endif()
  string(CONCAT print_folder "import importlib.util as u; s = u.find_spec('${package}'); "
    "print(s.submodule_search_locations[0] if s and s.origin else '')")
  execute_process(
    COMMAND ${environment} "${interpreter}" -c "${print_folder}"
    OUTPUT_VARIABLE folder ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE status)
  if(status EQUAL 0 AND folder)
    set(${result} "${folder}" PARENT_SCOPE)
  endif()
endfunction()

function(_torchpace_find_libtorch)
  foreach(name IN ITEMS TORCHPACE_LIBTORCH TORCHPACE_PYTHON)
    if(NOT ${name} AND NOT "$ENV{${name}}" STREQUAL "")
      set(${name} "$ENV{${name}}")
    endif()
  endforeach()
  set(folder "")
  set(python "")

  # What was named is used or refused, never silently replaced.
  if(TORCHPACE_LIBTORCH)
    get_filename_component(folder "${TORCHPACE_LIBTORCH}" ABSOLUTE BASE_DIR "${CMAKE_SOURCE_DIR}")
    _torchpace_is_libtorch("${folder}" usable)
    if(NOT usable)
      message(FATAL_ERROR "torchpace: TORCHPACE_LIBTORCH=${TORCHPACE_LIBTORCH} is no LibTorch "
        "folder: expected lib/libtorch_cpu.so and ${_torchpace_needed_file} in it. Name the folder "
        "`libtorch` of an unpacked libtorch zip or the folder `torch` of an installed Python "
        "package.")
    endif()
  elseif(TORCHPACE_PYTHON)
    set(python "${TORCHPACE_PYTHON}")
    _torchpace_ask_python("${python}" torch folder)
    if(NOT folder)
      message(FATAL_ERROR "torchpace: TORCHPACE_PYTHON=${TORCHPACE_PYTHON} has no torch: expected "
        "an interpreter that can import it. Install it there (pip install torch) or name another "
        "interpreter.")
    endif()
  else()
    set(prefixes ${Torch_DIR} $ENV{Torch_DIR} ${CMAKE_PREFIX_PATH})
    string(REPLACE ":" ";" from_environment "$ENV{CMAKE_PREFIX_PATH}")
    foreach(prefix IN LISTS prefixes from_environment)
      string(REGEX REPLACE "/share/cmake(/Torch)?/?$" "" prefix "${prefix}")
      _torchpace_is_libtorch("${prefix}" usable)
      if(usable)
        set(folder "${prefix}")
        break()
      endif()
    endforeach()
    if(NOT folder)
      foreach(interpreter IN ITEMS
          "${CMAKE_SOURCE_DIR}/.venv/bin/python" "$ENV{VIRTUAL_ENV}/bin/python" python3)
        _torchpace_ask_python("${interpreter}" torch folder)
        if(folder)
          set(python "${interpreter}")
          break()
        endif()
      endforeach()
    endif()
    if(NOT folder)
      message(FATAL_ERROR "torchpace: no LibTorch found. Do one of these:\n"
        "  pip install torch                                 "
        "into .venv, the active virtual environment or python3\n"
        "  cmake -D TORCHPACE_PYTHON=/path/to/python ...     an interpreter that has torch\n"
        "  cmake -D TORCHPACE_LIBTORCH=/path/to/libtorch ... an unpacked libtorch zip")
    endif()
  endif()

  _torchpace_is_libtorch("${folder}" usable)
  if(NOT usable)
    message(FATAL_ERROR "torchpace: the torch package ${folder} lacks lib/libtorch_cpu.so or its "
      "headers. Install torch from a wheel (pip install torch) or set TORCHPACE_LIBTORCH.")
  endif()
  set(TORCHPACE_LIBTORCH_DIR "${folder}" PARENT_SCOPE)
  set(TORCHPACE_TORCH_PYTHON "${python}" PARENT_SCOPE)
endfunction()

function(_torchpace_read_version folder result)
  set(version "")
  foreach(header IN ITEMS torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(NOT version AND EXISTS "${folder}/include/${header}")
      file(STRINGS "${folder}/include/${header}" lines
        REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) [0-9]+")
      string(REGEX REPLACE "[^0-9;]" "" numbers "${lines}")
      string(REPLACE ";" "." version "${numbers}")
    endif()
  endforeach()
  if(NOT version)
    message(FATAL_ERROR "torchpace: ${folder}/include has no torch/version.h with "
      "TORCH_VERSION_MAJOR: expected LibTorch ${TORCHPACE_TORCH_MINIMUM} or newer.")
  elseif(version VERSION_LESS TORCHPACE_TORCH_MINIMUM)
    message(FATAL_ERROR "torchpace: LibTorch ${version} in ${folder} is too old: expected "
      "${TORCHPACE_TORCH_MINIMUM} or newer.")
  endif()
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" minor_version "${version}")
  if(minor_version VERSION_GREATER TORCHPACE_TORCH_NEWEST_TESTED)
    message(WARNING "torchpace: LibTorch ${version} is newer than the newest tested "
      "(${TORCHPACE_TORCH_NEWEST_TESTED}).")
  endif()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

function(_torchpace_make_libtorch folder)
  add_library(torchpace::libtorch INTERFACE IMPORTED GLOBAL)
  foreach(name IN ITEMS c10 torch_cpu)
    add_library(torchpace::${name} SHARED IMPORTED GLOBAL)
    set_target_properties(torchpace::${name} PROPERTIES
      IMPORTED_LOCATION "${folder}/lib/lib${name}.so" IMPORTED_NO_SONAME TRUE)
  endforeach()
  # Includes of an imported target are SYSTEM, so LibTorch's own warnings stay out of strict builds.
  target_include_directories(torchpace::libtorch INTERFACE
    "${folder}/include" "${folder}/include/torch/csrc/api/include")
  target_compile_features(torchpace::libtorch INTERFACE cxx_std_20)

  set(abi 1)
  if(EXISTS "${folder}/share/cmake/Torch/TorchConfig.cmake")
    file(STRINGS "${folder}/share/cmake/Torch/TorchConfig.cmake" flags
      REGEX "_GLIBCXX_USE_CXX11_ABI=0")
    if(flags)
      set(abi 0)
    endif()
  endif()
  target_compile_definitions(torchpace::libtorch INTERFACE _GLIBCXX_USE_CXX11_ABI=${abi})

  # libstdc++ first: LibTorch's libraries export their own, partial copies of std::filesystem, and a
  # program that binds to those crashes in std::filesystem::remove_all. The others are not referred
  # to by symbol: a linker with --as-needed drops them, and with them the CUDA kernels.
  set(registered ",-lstdc++")
  foreach(name IN ITEMS torch_cuda c10_cuda torch)
    if(EXISTS "${folder}/lib/lib${name}.so")
      string(APPEND registered ",\"${folder}/lib/lib${name}.so\"")
    endif()
  endforeach()
  find_package(Threads REQUIRED)
  target_link_libraries(torchpace::libtorch INTERFACE
    "-Wl,--push-state,--no-as-needed${registered},--pop-state"
    torchpace::torch_cpu torchpace::c10 Threads::Threads)

  # The wheel keeps NCCL, cuDNN and others beside torch; without these folders the linker takes the
  # system's, which may be too old ("undefined reference to ncclCommResume").
  file(REAL_PATH "${folder}/lib/libtorch_cpu.so" real_library)
  get_filename_component(real_folder "${real_library}" DIRECTORY)
  file(GLOB wheel_folders "${real_folder}/../../nvidia/*/lib")
  foreach(wheel_folder IN LISTS wheel_folders)
    file(REAL_PATH "${wheel_folder}" wheel_folder)
    target_link_options(torchpace::libtorch INTERFACE "LINKER:-rpath-link,${wheel_folder}")
  endforeach()
  target_link_options(torchpace::libtorch INTERFACE "LINKER:-rpath-link,${real_folder}")
endfunction()

# Headers of the CUDA runtime, for code that captures graphs: for all units alike, since they change
# inline functions. Needs no compiler of CUDA, no driver, and no library beside LibTorch's own.
function(_torchpace_add_cuda_headers folder)
  file(REAL_PATH "${folder}/lib" real_folder)
  file(GLOB wheel_headers "${real_folder}/../../nvidia/cu[0-9]*/include"
    "${real_folder}/../../nvidia/cuda_runtime/include")
  find_path(TORCHPACE_CUDA_INCLUDE_DIR cuda_runtime_api.h
    HINTS ${wheel_headers} "$ENV{CUDA_HOME}/include" "$ENV{CUDA_PATH}/include"
    PATHS /usr/local/cuda/include
    DOC "Folder with cuda_runtime_api.h")
  mark_as_advanced(TORCHPACE_CUDA_INCLUDE_DIR)
  if(TORCHPACE_CUDA_INCLUDE_DIR)
    target_include_directories(torchpace::libtorch INTERFACE "${TORCHPACE_CUDA_INCLUDE_DIR}")
    target_compile_definitions(torchpace::libtorch INTERFACE TORCHPACE_WITH_CUDA_HEADERS)
  endif()
endfunction()

set(TORCHPACE_TORCH_HAS_CUDA FALSE)
if(TARGET torch)
  add_library(torchpace::libtorch INTERFACE IMPORTED GLOBAL)
  # The order: see _torchpace_make_libtorch.
  target_link_libraries(torchpace::libtorch INTERFACE "-lstdc++" torch)
  if(TARGET torch_cuda)
    set(TORCHPACE_TORCH_HAS_CUDA TRUE)
  endif()
  set(TORCHPACE_LIBTORCH_DIR "")
  set(TORCHPACE_TORCH_PYTHON "")
  set(TORCHPACE_TORCH_VERSION "${Torch_VERSION}")
  message(STATUS "torchpace: using this project's target torch ${Torch_VERSION}")
else()
  _torchpace_find_libtorch()
  _torchpace_read_version("${TORCHPACE_LIBTORCH_DIR}" TORCHPACE_TORCH_VERSION)
  _torchpace_make_libtorch("${TORCHPACE_LIBTORCH_DIR}")
  if(EXISTS "${TORCHPACE_LIBTORCH_DIR}/lib/libtorch_cuda.so")
    set(TORCHPACE_TORCH_HAS_CUDA TRUE)
    _torchpace_add_cuda_headers("${TORCHPACE_LIBTORCH_DIR}")
  endif()
  if(TORCHPACE_TORCH_HAS_CUDA)
    message(STATUS "torchpace: LibTorch ${TORCHPACE_TORCH_VERSION} with CUDA in "
      "${TORCHPACE_LIBTORCH_DIR}")
  else()
    message(STATUS "torchpace: LibTorch ${TORCHPACE_TORCH_VERSION} for the CPU in "
      "${TORCHPACE_LIBTORCH_DIR}")
  endif()
endif()
