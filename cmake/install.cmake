# Headers, libraries, and what CMake and pkg-config find them by. Nothing that is installed names a
# folder of this machine, so that the tree can be moved.
include(CMakePackageConfigHelpers)
get_target_property(library_type descramble_fast TYPE)
set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/descramble_fast)

install(DIRECTORY cpp/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN *.h PATTERN *.hpp)
set(targets descramble_fast)
if(TARGET descramble_fast_cuda)
  list(APPEND targets descramble_fast_cuda)
endif()
install(TARGETS ${targets} EXPORT descramble_fast
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT descramble_fast NAMESPACE descramble_fast:: FILE descramble_fast-targets.cmake
  DESTINATION ${config_dir})

set(openblas)
set(lapack ${LAPACK_LIBRARIES} ${BLAS_LIBRARIES})
if(TARGET descramble_fast::openblas)
  install(FILES ${openblas_library} DESTINATION ${CMAKE_INSTALL_LIBDIR})
  if(WIN32)
    cmake_path(REPLACE_EXTENSION openblas_library LAST_ONLY .dll OUTPUT_VARIABLE openblas_dll)
    install(FILES ${openblas_dll} DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
  # Whoever passes it on passes on its terms, and those of the Fortran run time within.
  file(GLOB openblas_licence ${openblas_dir}/../../scipy_openblas64-*.dist-info/licenses/LICENSE.txt)
  set(licence_dir ${CMAKE_INSTALL_DATADIR}/licenses/descramble_fast)
  if(wheel)
    set(licence_dir ${SKBUILD_METADATA_DIR}/licenses)
  endif()
  install(FILES ${openblas_licence} DESTINATION ${licence_dir}/OpenBLAS)
  cmake_path(GET openblas_library FILENAME openblas)
  set(lapack ${openblas_library})
endif()
configure_package_config_file(cmake/config.cmake.in ${PROJECT_BINARY_DIR}/descramble_fast-config.cmake
  INSTALL_DESTINATION ${config_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/descramble_fast-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/descramble_fast-config.cmake
  ${PROJECT_BINARY_DIR}/descramble_fast-config-version.cmake
  DESTINATION ${config_dir})

file(RELATIVE_PATH include_dir /${CMAKE_INSTALL_LIBDIR}/pkgconfig /${CMAKE_INSTALL_INCLUDEDIR})
set(definition)
if(library_type STREQUAL "STATIC_LIBRARY")
  set(definition " -DDESCRAMBLE_FAST_STATIC")
endif()
# What a static library leaves to its users' linkers, who may know no C++.
set(cxx ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(FILTER cxx INCLUDE REGEX "^(std)?c[+][+]$|^m$")
set(private_libraries)
list(REMOVE_DUPLICATES lapack)
foreach(library IN LISTS lapack CMAKE_DL_LIBS cxx)
  cmake_path(GET library STEM name)
  string(REGEX REPLACE "^(-l|lib)" "" name ${name})
  string(APPEND private_libraries " -l${name}")
endforeach()
configure_file(cmake/descramble_fast.pc.in ${PROJECT_BINARY_DIR}/descramble_fast.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/descramble_fast.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
