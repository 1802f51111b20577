# Lists what a shared library exports, without the functions' parameters, and compares that with
# exported_symbols.txt, so that nothing becomes public, or ceases to be, unseen:
#
#   cmake -DNM=nm -DLIBRARY=libdescramble_fast.so [-DRENEW=ON] -P exported_symbols.cmake
#
# RENEW writes the list instead.
set(list_file ${CMAKE_CURRENT_LIST_DIR}/exported_symbols.txt)
execute_process(COMMAND ${NM} -D --defined-only --demangle ${LIBRARY}
  OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]+" lines "${output}")
set(symbols)
foreach(line IN LISTS lines)
  string(REGEX REPLACE "^[0-9a-f]* . " "" symbol "${line}")
  string(REGEX REPLACE "[[]abi:cxx11[]]|[(].*" "" symbol "${symbol}")
  # (Templates are listed with the types that they return.)
  string(REGEX REPLACE "^descramble_fast::[^ ]* " "" symbol "${symbol}")
  if(NOT symbol MATCHES "^(typeinfo for |typeinfo name for |vtable for )?descramble_fast::[A-Za-z]|^descramble_[a-z]"
     OR symbol MATCHES "descramble_fast::(cpu|cuda)::")
    message(SEND_ERROR "exported, but not of the public interface: ${line}")
  else()
    list(APPEND symbols "${symbol}")
  endif()
endforeach()
list(SORT symbols)
list(REMOVE_DUPLICATES symbols)
if(RENEW)
  list(JOIN symbols "\n" text)
  file(WRITE ${list_file} "${text}\n")
  return()
endif()
file(STRINGS ${list_file} listed)
set(added ${symbols})
set(gone ${listed})
list(REMOVE_ITEM added "" ${listed})
list(REMOVE_ITEM gone "" ${symbols})
list(TRANSFORM added PREPEND "\n  + ")
list(TRANSFORM gone PREPEND "\n  - ")
if(added OR gone)
  message(FATAL_ERROR "${LIBRARY} does not export what ${list_file} lists:" ${added} ${gone})
endif()
