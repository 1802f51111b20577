# Kernels built for one instruction set must define no symbol that the linker may merge with that of
# another build: cmake -DNM=nm "-DOBJECTS=a.o;b.o" -P no_weak_symbols.cmake
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} -C ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  if(NOT symbols MATCHES "descramble_fast::cpu::[a-z_]+_(baseline|avx)")
    message(FATAL_ERROR "${object}: the table of kernels is not listed:\n${symbols}")
  endif()
  # nm writes W and V where they are defined, w and v where they are only asked for; u is unique.
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" weak "${symbols}")
  if(weak)
    list(JOIN weak "\n" weak)
    message(FATAL_ERROR "${object} defines weak symbols:\n${weak}")
  endif()
endforeach()
