# Runs one small comparison or explanation of C++ and Python, end to end, and reads its results.
# Arguments (-D):
#   PROGRAM, PYTHON   the program torchpace; the interpreter that has torch
#   ARGUMENTS         of the program, but for --output
#   CHECKS            of check_results.py, but for the file
#   OUTPUT            folder to write
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE "${OUTPUT}")
execute_process(COMMAND "${PYTHON}" -c "import jsonschema"
  RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
if(NOT status EQUAL 0)
  message("SKIPPED: ${PYTHON} has no jsonschema")
  return()
endif()

set(ENV{TORCHPACE_PYTHON} "${PYTHON}")
set(ENV{TORCHPACE_CACHE} "${OUTPUT}/cache")
separate_arguments(ARGUMENTS UNIX_COMMAND "${ARGUMENTS}")
separate_arguments(CHECKS UNIX_COMMAND "${CHECKS}")
execute_process(COMMAND "${PROGRAM}" ${ARGUMENTS} --output "${OUTPUT}/report"
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(
  COMMAND "${PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/check_results.py"
          "${OUTPUT}/report/results.json" ${CHECKS}
  COMMAND_ERROR_IS_FATAL ANY)
