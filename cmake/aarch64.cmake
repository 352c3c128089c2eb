# Compiles for aarch64 with Debian's cross compiler, and runs programs below qemu:
# scripts/test_aarch64.sh, which unpacks the libraries into WHYCACHE_AARCH64_PACKAGES.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++-12)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)

set(WHYCACHE_AARCH64_PACKAGES "" CACHE PATH "Where Debian's packages for arm64 are unpacked")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES WHYCACHE_AARCH64_PACKAGES)
set(CMAKE_FIND_ROOT_PATH ${WHYCACHE_AARCH64_PACKAGES})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_LIBDIR} ${WHYCACHE_AARCH64_PACKAGES}/usr/lib/aarch64-linux-gnu/pkgconfig)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${WHYCACHE_AARCH64_PACKAGES})

# A state reserves 64 GiB of addresses unless that much cannot be had. qemu 7.2 keeps 40 bytes for
# each page of them, so it gives programs 4 GiB in all.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu -R 4G)
