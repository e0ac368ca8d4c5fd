# Trains the example on this project's own readme: the loss falls, and a run that was stopped and
# resumed is the whole one. Arguments (-D):
#   PROGRAM, PACKAGE   train_without_python; a deterministic package of the smallest GPTlite
#   OUTPUT             folder to write
cmake_minimum_required(VERSION 3.25)
file(REMOVE_RECURSE "${OUTPUT}")
file(MAKE_DIRECTORY "${OUTPUT}")
set(text "${CMAKE_CURRENT_LIST_DIR}/../README.md")

function(train name)
  execute_process(
    COMMAND "${PROGRAM}" "${PACKAGE}" "${text}" --steps 40 --warmup 5 --lr 0.01 --report 10
            --sample 20 --losses "${OUTPUT}/${name}.txt" --model "${OUTPUT}/${name}.pt" ${ARGN}
    OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  message("${output}")
  set(output "${output}" PARENT_SCOPE)
endfunction()

train(whole)
if(NOT output MATCHES "step +40  loss ([0-9.]+)")
  message(FATAL_ERROR "expected the loss of step 40")
endif()
set(last "${CMAKE_MATCH_1}")
file(STRINGS "${OUTPUT}/whole.txt" losses)
list(LENGTH losses count)
list(GET losses 0 first)
if(NOT count EQUAL 40 OR NOT last LESS first)
  message(FATAL_ERROR "expected 40 losses that fall, found ${count} from ${first} to ${last}")
endif()

train(first --until 25 --checkpoint "${OUTPUT}/run.pt")
train(second --resume --checkpoint "${OUTPUT}/run.pt")
file(STRINGS "${OUTPUT}/first.txt" begin)
file(STRINGS "${OUTPUT}/second.txt" end)
if(NOT "${begin};${end}" STREQUAL "${losses}")
  message(FATAL_ERROR "expected the losses of the whole run, found others after the resume")
endif()
execute_process(
  COMMAND "${CMAKE_COMMAND}" -E compare_files "${OUTPUT}/whole.pt" "${OUTPUT}/second.pt"
  COMMAND_ERROR_IS_FATAL ANY)

# What cannot be used is one line.
foreach(wrong IN ITEMS "${OUTPUT}/none.pt2" "${text}" "${OUTPUT}/run.pt")
  execute_process(COMMAND "${PROGRAM}" "${wrong}" "${text}"
    RESULT_VARIABLE status ERROR_VARIABLE error OUTPUT_QUIET)
  if(NOT status EQUAL 2 OR NOT error MATCHES "^train_without_python: [^\n]+\n$")
    message(FATAL_ERROR "${wrong}: expected exit code 2 and one line, found ${status}: ${error}")
  endif()
endforeach()
