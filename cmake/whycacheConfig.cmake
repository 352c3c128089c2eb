# find_package(whycache CONFIG) defines whycache::whycache_shared and whycache::whycache_static.
# whycache::whycache is the static one if BUILD_SHARED_LIBS is set to OFF, and the shared one
# otherwise, because only the static one needs the development files of what the logs use.
if(CMAKE_VERSION VERSION_LESS 3.18)  # cannot alias an imported target
  set(whycache_FOUND FALSE)
  set(whycache_NOT_FOUND_MESSAGE "whycache needs CMake 3.18 or newer")
  return()
endif()
if(whycache_FIND_COMPONENTS)
  set(whycache_FOUND FALSE)
  set(whycache_NOT_FOUND_MESSAGE "whycache has no components")
  return()
endif()

include("${CMAKE_CURRENT_LIST_DIR}/whycacheTargets.cmake")

if(NOT TARGET whycache::whycache)
  if(DEFINED BUILD_SHARED_LIBS AND NOT BUILD_SHARED_LIBS)
    add_library(whycache::whycache ALIAS whycache::whycache_static)
  else()
    add_library(whycache::whycache ALIAS whycache::whycache_shared)
  endif()
endif()
