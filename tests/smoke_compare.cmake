# Runs one small comparison of C++ and Python, end to end, and reads its results. Arguments (-D):
#   PROGRAM, PYTHON   the program torchpace; the interpreter that has torch
#   OUTPUT            folder to write
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE "${OUTPUT}")
execute_process(COMMAND "${PYTHON}" -c "import jsonschema" RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
if(NOT status EQUAL 0)
  message("SKIPPED: ${PYTHON} has no jsonschema")
  return()
endif()

set(ENV{TORCHPACE_PYTHON} "${PYTHON}")
set(ENV{TORCHPACE_CACHE} "${OUTPUT}/cache")
execute_process(
  COMMAND "${PROGRAM}" compare --preset smoke --cases dnn_wide_inference --runtimes cpp-eager,py-eager --device cpu
          --max-seconds 20 --output "${OUTPUT}/report"
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(
  COMMAND "${PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/check_results.py" "${OUTPUT}/report/results.json" --cases "dnn_wide_inference/*"
  COMMAND_ERROR_IS_FATAL ANY)
