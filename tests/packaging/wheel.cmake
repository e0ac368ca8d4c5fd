# Builds the wheel into a fresh environment that has torch, runs its program from another folder,
# and configures a project that finds its headers. Arguments (-D): SOURCE, PYTHON (has torch, numpy
# and scikit-build-core), BINARY (folder to write), BUILD (another, for the build), COMPILER. Where
# BUILD lies beside a build of the tree by the same compiler, ccache knows what that has compiled.
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE "${BINARY}" "${BUILD}")
execute_process(COMMAND "${PYTHON}" -c "import scikit_build_core, pip, jsonschema"
  RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
if(NOT status EQUAL 0)
  message("SKIPPED: ${PYTHON} has no scikit-build-core, pip or jsonschema")
  return()
endif()

# What the interpreter has is seen from the new environment, as if torch had been installed there.
execute_process(COMMAND "${PYTHON}" -m venv "${BINARY}/venv" COMMAND_ERROR_IS_FATAL ANY)
set(python "${BINARY}/venv/bin/python")
set(purelib "import sysconfig; print(sysconfig.get_path('purelib'))")
execute_process(COMMAND "${PYTHON}" -c "${purelib}"
  OUTPUT_VARIABLE from OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${python}" -c "${purelib}"
  OUTPUT_VARIABLE to OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
file(WRITE "${to}/packages.pth" "${from}\n")

set(ENV{CXX} "${COMPILER}")
unset(ENV{PYTHONPATH})
unset(ENV{TORCHPACE_PYTHON})
execute_process(COMMAND "${python}" -m pip install --no-deps --no-build-isolation
  --config-settings "build-dir=${BUILD}" "${SOURCE}/python"
  WORKING_DIRECTORY / COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE_RECURSE "${BUILD}")

set(ENV{TORCHPACE_CACHE} "${BINARY}/cache")
execute_process(
  COMMAND "${BINARY}/venv/bin/torchpace" compare --preset smoke --cases dnn_wide_inference
          --runtimes "*-eager,*-torchscript" --device cpu --max-seconds 20
          --output "${BINARY}/report"
  WORKING_DIRECTORY / COMMAND_ERROR_IS_FATAL ANY)
execute_process(
  COMMAND "${python}" "${SOURCE}/tests/check_results.py" "${BINARY}/report/results.json"
          --cases "dnn_wide_inference/*"
          --runtimes "py-eager,cpp-eager,py-torchscript,cpp-torchscript"
  WORKING_DIRECTORY / COMMAND_ERROR_IS_FATAL ANY)

execute_process(COMMAND "${python}" -c "import torchpace; print(torchpace.cmake_prefix_path)"
  WORKING_DIRECTORY / OUTPUT_VARIABLE prefix OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(
  COMMAND "${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_LIST_DIR}/find_package" -B "${BINARY}/project"
          -D "CMAKE_PREFIX_PATH=${prefix}" -D "TORCHPACE_PYTHON=${python}"
          -D CMAKE_DISABLE_FIND_PACKAGE_benchmark=ON
  COMMAND_ERROR_IS_FATAL ANY)
