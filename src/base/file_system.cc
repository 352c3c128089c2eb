#include "base/file_system.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>

namespace whycache {
namespace {

// linux/magic.h does not define these.
constexpr std::int64_t zfs_type = 0x2fc12fc1;
constexpr std::int64_t cifs_type = 0xff534d42;
constexpr std::int64_t smb2_type = 0xfe534d42;
constexpr std::int64_t bcachefs_type = 0xca451a4e;

constexpr std::array file_systems = {
    FileSystem{TMPFS_MAGIC, "tmpfs", true, true},
    FileSystem{EXT4_SUPER_MAGIC, "ext4", true, true},
    FileSystem{XFS_SUPER_MAGIC, "xfs", true, true},
    FileSystem{BTRFS_SUPER_MAGIC, "btrfs", true, false},
    FileSystem{F2FS_SUPER_MAGIC, "f2fs", true, true},
    FileSystem{zfs_type, "zfs", true, false},
    FileSystem{bcachefs_type, "bcachefs", true, false},
    FileSystem{RAMFS_MAGIC, "ramfs", true, true},
    FileSystem{HUGETLBFS_MAGIC, "hugetlbfs", true, true},
    FileSystem{OVERLAYFS_SUPER_MAGIC, "overlay", true, true},
    FileSystem{NFS_SUPER_MAGIC, "nfs", false, false},
    FileSystem{cifs_type, "cifs", false, false},
    FileSystem{smb2_type, "smb2", false, false},
    FileSystem{V9FS_MAGIC, "9p", false, false},
    FileSystem{FUSE_SUPER_MAGIC, "fuse or virtiofs", false, false},
    FileSystem{CEPH_SUPER_MAGIC, "ceph", false, false},
};

}  // namespace

std::optional<std::int64_t> file_system_type(const std::string& path) noexcept {
  struct statfs status;
  if (::statfs(path.c_str(), &status) != 0) return std::nullopt;
  // f_type is signed on some machines, and some types use its highest bit.
  return static_cast<std::int64_t>(static_cast<std::uint32_t>(status.f_type));
}

const FileSystem* find_file_system(std::int64_t type) noexcept {
  const auto found = std::ranges::find(file_systems, type, &FileSystem::type);
  return found == file_systems.end() ? nullptr : &*found;
}

bool turn_off_copy_on_write(int descriptor) noexcept {
  int flags = 0;
  if (::ioctl(descriptor, FS_IOC_GETFLAGS, &flags) != 0) return false;
  flags |= FS_NOCOW_FL;
  return ::ioctl(descriptor, FS_IOC_SETFLAGS, &flags) == 0;
}

bool can_share_blocks(int descriptor) noexcept {
  struct statfs status;
  if (::fstatfs(descriptor, &status) != 0) return true;
  const auto type = static_cast<std::int64_t>(static_cast<std::uint32_t>(status.f_type));
  return type == XFS_SUPER_MAGIC || type == OVERLAYFS_SUPER_MAGIC;
}

namespace {

// Whether the file shares a block with another one. If the kernel does not say, it does not.
bool shares_blocks(int descriptor) noexcept {
  constexpr std::uint32_t extents_max = 64;
  // The request, and the extents that the kernel writes behind it.
  alignas(struct fiemap)
      std::byte buffer[sizeof(struct fiemap) + extents_max * sizeof(struct fiemap_extent)];
  for (std::uint64_t offset = 0;;) {
    struct fiemap request;
    std::memset(&request, 0, sizeof request);
    request.fm_start = offset;
    request.fm_length = FIEMAP_MAX_OFFSET - offset;
    request.fm_extent_count = extents_max;
    std::memcpy(buffer, &request, sizeof request);
    if (::ioctl(descriptor, FS_IOC_FIEMAP, buffer) != 0) return false;
    std::memcpy(&request, buffer, sizeof request);
    struct fiemap_extent extent = {};
    for (std::uint32_t i = 0; i < request.fm_mapped_extents; ++i) {
      std::memcpy(&extent, buffer + sizeof request + i * sizeof extent, sizeof extent);
      if ((extent.fe_flags & FIEMAP_EXTENT_SHARED) != 0) return true;
    }
    if (request.fm_mapped_extents == 0 || (extent.fe_flags & FIEMAP_EXTENT_LAST) != 0) return false;
    offset = extent.fe_logical + extent.fe_length;
  }
}

}  // namespace

int unshare_blocks(int descriptor, std::uint64_t bytes) noexcept {
  // On a full disk, xfs refuses to unshare even what is not shared.
  if (!shares_blocks(descriptor)) return 0;
  int result;
  do {
    result = ::fallocate(descriptor, FALLOC_FL_UNSHARE_RANGE, 0, static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

}  // namespace whycache
