# Shows that using whycache changes no variable and no setting of the user's CMakeLists.txt.
set(scope_properties COMPILE_DEFINITIONS COMPILE_OPTIONS INCLUDE_DIRECTORIES LINK_DIRECTORIES
  LINK_LIBRARIES LINK_OPTIONS)

# Remembers the variables and the properties of the calling folder.
function(record_scope)
  get_cmake_property(names VARIABLES)
  foreach(name IN LISTS names)
    set_property(GLOBAL PROPERTY "recorded ${name}" "${${name}}")
  endforeach()
  foreach(property IN LISTS scope_properties)
    get_directory_property(value ${property})
    set_property(GLOBAL PROPERTY "recorded property ${property}" "${value}")
  endforeach()
endfunction()

# Fails if one of them differs. Variables whose name matches `ignored` may be new.
function(check_scope ignored)
  get_cmake_property(names VARIABLES)
  foreach(name IN LISTS names)
    if(name MATCHES "^(ARG[CNV]|CMAKE_CURRENT_FUNCTION|CMAKE_MATCH_|(ignored|name|names)$)"
       OR name MATCHES "${ignored}" OR DEFINED CACHE{${name}})
      continue()
    endif()
    get_property(is_old GLOBAL PROPERTY "recorded ${name}" SET)
    get_property(before GLOBAL PROPERTY "recorded ${name}")
    if(NOT is_old OR NOT before STREQUAL "${${name}}")
      message(SEND_ERROR "variable is new or changed: ${name}=${${name}} before=${before}")
    endif()
  endforeach()
  foreach(property IN LISTS scope_properties)
    get_directory_property(value ${property})
    get_property(before GLOBAL PROPERTY "recorded property ${property}")
    if(NOT before STREQUAL value)
      message(SEND_ERROR "property is changed: ${property}=${value} before=${before}")
    endif()
  endforeach()
endfunction()
