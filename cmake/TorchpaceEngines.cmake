# Other engines than PyTorch, each optional: their C++ runtimes are built where they are found.

set(TORCHPACE_ENGINES openvino onnxruntime)

# Makes the target torchpace_openvino. The Python package has library, headers and CMake files; then
# comes what CMAKE_PREFIX_PATH or OpenVINO_DIR names.
function(torchpace_find_openvino)
  _torchpace_ask_python("${TORCHPACE_TORCH_PYTHON}" openvino folder)
  if(folder)
    set(paths PATHS "${folder}/cmake")
  endif()
  find_package(OpenVINO QUIET COMPONENTS Runtime ${paths})
  if(OpenVINO_FOUND)
    add_library(torchpace_openvino INTERFACE)
    target_link_libraries(torchpace_openvino INTERFACE torchpace openvino::runtime)
    message(STATUS "torchpace: OpenVINO ${OpenVINO_VERSION}")
  else()
    message(STATUS "torchpace: OpenVINO not found, so without cpp-openvino. "
      "Get it: pip install openvino")
  endif()
endfunction()

# Makes the target torchpace_onnxruntime. Headers: those that CMAKE_PREFIX_PATH leads to or
# TORCHPACE_ONNXRUNTIME_INCLUDE names; the Python package has none. Library: that of the Python
# package, else the one beside the headers.
function(torchpace_find_onnxruntime)
  find_path(TORCHPACE_ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h
    PATH_SUFFIXES onnxruntime onnxruntime/core/session
    DOC "Folder of ONNX Runtime's C++ headers; empty: search")
  _torchpace_ask_python("${TORCHPACE_TORCH_PYTHON}" onnxruntime folder)
  file(GLOB library "${folder}/capi/libonnxruntime.so.*")
  if(NOT library)
    find_library(TORCHPACE_ONNXRUNTIME_LIBRARY onnxruntime)
    mark_as_advanced(TORCHPACE_ONNXRUNTIME_LIBRARY)
    set(library "${TORCHPACE_ONNXRUNTIME_LIBRARY}")
  endif()
  if(TORCHPACE_ONNXRUNTIME_INCLUDE AND library)
    add_library(torchpace_onnxruntime INTERFACE)
    target_include_directories(torchpace_onnxruntime SYSTEM INTERFACE
      "${TORCHPACE_ONNXRUNTIME_INCLUDE}")
    target_compile_definitions(torchpace_onnxruntime INTERFACE
      "TORCHPACE_ONNXRUNTIME_LIBRARY=\"${library}\"")
    target_link_libraries(torchpace_onnxruntime INTERFACE torchpace ${CMAKE_DL_LIBS})
    message(STATUS "torchpace: ONNX Runtime ${library}")
  else()
    message(STATUS "torchpace: ONNX Runtime's C++ headers or library not found, so without "
      "cpp-onnxruntime. Get them: pip install onnxruntime, and unpack the headers of a release; "
      "-D TORCHPACE_ONNXRUNTIME_INCLUDE=<their folder>")
  endif()
endfunction()
