# Optimisation across files, for g++ only: its objects keep ordinary code beside the intermediate
# one, so that libwhycache.a can be linked by programs built without it, and by other compilers.
include(CheckIPOSupported)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  check_ipo_supported(RESULT lto_works LANGUAGES CXX OUTPUT lto_output)
  if(lto_works)
    set(CMAKE_INTERPROCEDURAL_OPTIMIZATION ON)
    set(CMAKE_CXX_COMPILE_OPTIONS_IPO -flto=auto -ffat-lto-objects)
  else()
    message(STATUS "no optimisation across files: ${lto_output}")
  endif()
endif()

# When it optimises across files, g++ 12 takes known sizes for unknown ones, and warns of them in
# libstdc++. It compiles the same code file by file without a warning.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_link_options(-Wno-stringop-overflow -Wno-stringop-overread)
endif()
