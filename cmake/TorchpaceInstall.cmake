# `cmake --install BUILD` installs the library and its package. `cmake --install BUILD --component
# bundle --strip` instead collects the programs and tests, with the libraries that they need beside
# LibTorch, for a machine that cannot build.
include(CMakePackageConfigHelpers)
set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/torchpace")

install(DIRECTORY "${torchpace_SOURCE_DIR}/include/torchpace"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT headers FILES_MATCHING PATTERN "*.hpp")
install(TARGETS torchpace torchpace_core EXPORT torchpaceTargets COMPONENT headers)
install(EXPORT torchpaceTargets NAMESPACE torchpace::
  DESTINATION "${package_folder}" COMPONENT headers)
configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/torchpaceConfig.cmake.in"
  "${torchpace_BINARY_DIR}/torchpaceConfig.cmake"
  INSTALL_DESTINATION "${package_folder}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${torchpace_BINARY_DIR}/torchpaceConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(
  FILES
    "${torchpace_BINARY_DIR}/torchpaceConfig.cmake"
    "${torchpace_BINARY_DIR}/torchpaceConfigVersion.cmake"
    "${CMAKE_CURRENT_LIST_DIR}/TorchpaceLibTorch.cmake"
  DESTINATION "${package_folder}" COMPONENT headers)

# The programs with the Python package that they start, and nothing of the source tree. LibTorch is
# not installed: the program finds that of the Python that it is given.
set(workers ${TORCHPACE_ENGINES})
list(TRANSFORM workers PREPEND torchpace_worker_)
foreach(target IN ITEMS torchpace_program torchpace_worker ${workers} torchpace_run)
  if(TARGET ${target})
    install(TARGETS ${target} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT programs)
  endif()
endforeach()
if(TARGET torchpace_program)
  install(DIRECTORY "${torchpace_SOURCE_DIR}/python/torchpace"
    DESTINATION "${CMAKE_INSTALL_DATADIR}/torchpace/python"
    COMPONENT python PATTERN "__pycache__" EXCLUDE PATTERN "native" EXCLUDE)
  install(FILES "${torchpace_SOURCE_DIR}/tools/torchpace/results/results.schema.json"
    DESTINATION "${CMAKE_INSTALL_DATADIR}/torchpace" COMPONENT programs)
endif()

add_custom_target(torchpace_bundled)  # builds them

function(torchpace_bundle)
  foreach(target IN LISTS ARGN)
    if(TARGET ${target})
      add_dependencies(torchpace_bundled ${target})
      set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN")
      install(TARGETS ${target} RUNTIME DESTINATION bin COMPONENT bundle EXCLUDE_FROM_ALL)
    endif()
  endforeach()
endfunction()

torchpace_bundle(torchpace_program torchpace_worker torchpace_run ${TORCHPACE_BENCH_PROGRAMS}
  unit_tests torch_tests)
if(benchmark_AVAILABLE AND TORCHPACE_BENCH_PROGRAMS)
  get_target_property(imported benchmark::benchmark IMPORTED)
  get_target_property(kind benchmark::benchmark TYPE)
  if(imported AND kind STREQUAL SHARED_LIBRARY)
    install(IMPORTED_RUNTIME_ARTIFACTS benchmark::benchmark
      LIBRARY DESTINATION bin COMPONENT bundle EXCLUDE_FROM_ALL)
  endif()
endif()
