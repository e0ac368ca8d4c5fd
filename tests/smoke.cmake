# Runs the first, smallest case of each function of a benchmark program and reads the JSON that it
# writes. Arguments (-D):
#   PROGRAM   the benchmark program
#   OUTPUT    the JSON file to write
#   PACKAGE   of a compiled training step, for the case NAME_compiled_train; without it that case
#             must be skipped
cmake_minimum_required(VERSION 3.25)
execute_process(COMMAND "${PROGRAM}" --benchmark_list_tests
  OUTPUT_VARIABLE list COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]+" cases "${list}")
set(chosen "")
set(functions "")
foreach(case IN LISTS cases)
  string(REGEX REPLACE "/.*" "" function "${case}")
  if(NOT function IN_LIST functions)
    list(APPEND functions "${function}")
    list(APPEND chosen "${case}")
  endif()
endforeach()
set(compiled "${functions}")
list(FILTER compiled INCLUDE REGEX "_compiled_train$")
set(package_options "")
if(PACKAGE)
  set(package_options "--training_package=${PACKAGE}" --threads=1)
else()
  list(FILTER chosen EXCLUDE REGEX "_compiled_train/")
endif()
list(LENGTH chosen expected)
if(expected EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} lists no cases")
endif()
list(JOIN chosen "|" filter)

file(REMOVE "${OUTPUT}")
execute_process(
  COMMAND "${PROGRAM}" "--benchmark_filter=^(${filter})$" --benchmark_min_time=0.01
          --benchmark_format=json ${package_options}
  OUTPUT_FILE "${OUTPUT}" COMMAND_ERROR_IS_FATAL ANY)

file(READ "${OUTPUT}" json)
string(JSON found LENGTH "${json}" benchmarks)
if(NOT found EQUAL expected)
  message(FATAL_ERROR "expected ${expected} measured cases, found ${found} in ${OUTPUT}")
endif()
math(EXPR last "${found} - 1")
foreach(i RANGE ${last})
  string(JSON name GET "${json}" benchmarks ${i} name)
  string(JSON time ERROR_VARIABLE missing GET "${json}" benchmarks ${i} real_time)
  string(JSON iterations ERROR_VARIABLE missing GET "${json}" benchmarks ${i} iterations)
  string(JSON peak ERROR_VARIABLE missing GET "${json}" benchmarks ${i} peak_bytes)
  string(JSON failure ERROR_VARIABLE no_failure GET "${json}" benchmarks ${i} error_message)
  if(NOT no_failure)
    message(FATAL_ERROR "${name}: ${failure}")
  endif()
  if(missing OR NOT time GREATER 0 OR NOT iterations GREATER 0)
    message(FATAL_ERROR "${name}: expected real_time and iterations above 0 and peak_bytes, "
      "found '${time}', '${iterations}', '${peak}'")
  endif()
  message("${name}: ${time}")
endforeach()
foreach(key IN ITEMS torchpace.torch torchpace.build_type torchpace.threads)
  string(JSON value ERROR_VARIABLE missing GET "${json}" context ${key})
  if(missing OR value STREQUAL "")
    message(FATAL_ERROR
      "the context has no ${key}: what the numbers depend on must stand beside them")
  endif()
endforeach()

# Google Benchmark's own main would call both of these a success.
execute_process(COMMAND "${PROGRAM}" --benchmark_filter=^there_is_no_such_case$
  RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
if(NOT status EQUAL 4)
  message(FATAL_ERROR "a filter that matches nothing: expected exit code 4, found ${status}")
endif()
foreach(case IN LISTS compiled)
  execute_process(COMMAND "${PROGRAM}" "--benchmark_filter=^${case}/"
    RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_QUIET)
  if(NOT status EQUAL 77 OR NOT output MATCHES "expected --training_package=FILE")
    message(FATAL_ERROR "${case} without a package: expected exit code 77 and the reason, "
      "found ${status}: ${output}")
  endif()
  execute_process(
    COMMAND "${PROGRAM}" "--benchmark_filter=^${case}/"
            "--training_package=${CMAKE_CURRENT_LIST_FILE}"
    RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_QUIET)
  if(NOT status EQUAL 1 OR NOT output MATCHES "expected a zip archive")
    message(FATAL_ERROR "${case} with a text as package: expected exit code 1 and the reason, "
      "found ${status}: ${output}")
  endif()
endforeach()
execute_process(COMMAND "${PROGRAM}" --settings=optimizer=none
  RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
if(NOT status EQUAL 2)
  message(FATAL_ERROR "--settings=optimizer=none: expected exit code 2, found ${status}")
endif()
execute_process(COMMAND "${PROGRAM}" --threads=0 RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
if(NOT status EQUAL 2)
  message(FATAL_ERROR "--threads=0: expected exit code 2, found ${status}")
endif()
