# Configures, builds and runs one consumer project from nothing. Arguments (-D):
#   SOURCE, BINARY          the project and its build folder
#   ARGUMENTS               more arguments of cmake, separated by |
#   ENVIRONMENT             words of `cmake -E env`, separated by |
#   EXPECT                  what the configuration must print (a regular expression), if given
#   FAILS                   the configuration must fail
#   CONFIGURE_ONLY          stop after configuring
cmake_minimum_required(VERSION 3.25)
string(REPLACE "|" ";" ARGUMENTS "${ARGUMENTS}")
string(REPLACE "|" ";" ENVIRONMENT "${ENVIRONMENT}")

file(REMOVE_RECURSE "${BINARY}")
execute_process(
  COMMAND "${CMAKE_COMMAND}" -E env ${ENVIRONMENT}
          "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${BINARY}" -D CMAKE_BUILD_TYPE=Debug ${ARGUMENTS}
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(FAILS AND status EQUAL 0)
  message(FATAL_ERROR "expected the configuration to fail")
elseif(NOT FAILS AND NOT status EQUAL 0)
  message(FATAL_ERROR "the configuration failed")
endif()
string(REGEX REPLACE "[ \n]+" " " output "${output}")  # CMake wraps its messages
if(EXPECT AND NOT output MATCHES "${EXPECT}")
  message(FATAL_ERROR "expected the configuration to print: ${EXPECT}")
endif()
if(FAILS OR CONFIGURE_ONLY)
  return()
endif()

execute_process(COMMAND "${CMAKE_COMMAND}" --build "${BINARY}" --parallel 1
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${BINARY}/consumer" OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
message("${output}")
if(output STREQUAL "" AND NOT BINARY MATCHES "google_benchmark")
  message(FATAL_ERROR "expected the consumer to print something")
endif()
