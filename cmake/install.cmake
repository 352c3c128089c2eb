# The files that `cmake --install` installs and `cpack` packs into a .deb. Every header in
# include/whycache is installed: cache.h, options.h, batch.h, lease.h, parse.h, transaction.h,
# value.h, view.h, log.h, error.h, types.h.
include(CMakePackageConfigHelpers)

install(DIRECTORY include/whycache DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h")
install(TARGETS whycache_shared whycache_static EXPORT whycache_targets
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET whycache)
  install(TARGETS whycache RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(TARGET whycache)
  # systemd units are in lib, whatever the architecture's directory of libraries is.
  install(FILES packaging/whycache-follow@.service DESTINATION lib/systemd/system)
endif()
if(TARGET whycache_pages)
  set(pages ${PROJECT_BINARY_DIR}/pages)
  install(DIRECTORY ${pages}/man1 DESTINATION ${CMAKE_INSTALL_MANDIR})
  install(FILES ${pages}/whycache
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
  install(FILES ${pages}/_whycache DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES ${pages}/whycache.fish
    DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()

# find_package(whycache CONFIG)
set(config_directory ${CMAKE_INSTALL_LIBDIR}/cmake/whycache)
install(EXPORT whycache_targets NAMESPACE whycache:: FILE whycacheTargets.cmake
  DESTINATION ${config_directory})
write_basic_package_version_file(whycacheConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  cmake/whycacheConfig.cmake
  ${PROJECT_BINARY_DIR}/whycacheConfigVersion.cmake
  DESTINATION ${config_directory})

# pkg-config derives the prefix from the path of the .pc file, so an installation can be moved.
list(JOIN private_flags " " pc_libs_private)
cmake_path(IS_ABSOLUTE CMAKE_INSTALL_LIBDIR libdir_is_absolute)
if(libdir_is_absolute)
  set(pc_prefix ${CMAKE_INSTALL_PREFIX})
  set(pc_libdir ${CMAKE_INSTALL_LIBDIR})
else()
  cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
    BASE_DIRECTORY ${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig OUTPUT_VARIABLE up)
  set(pc_prefix "\${pcfiledir}/${up}")
  set(pc_libdir "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
endif()
cmake_path(IS_ABSOLUTE CMAKE_INSTALL_INCLUDEDIR includedir_is_absolute)
if(includedir_is_absolute)
  set(pc_includedir ${CMAKE_INSTALL_INCLUDEDIR})
else()
  set(pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
configure_file(cmake/whycache.pc.in whycache.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/whycache.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

if(NOT PROJECT_IS_TOP_LEVEL)
  return()  # another project has packages of its own
endif()
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "The whycache authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY ${PROJECT_DESCRIPTION})
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_SECTION database)
include(CPack)
