#include "base/file_system.h"

#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>

namespace whycache {
namespace {

// linux/magic.h does not define these.
constexpr std::int64_t zfs_type = 0x2fc12fc1;
constexpr std::int64_t cifs_type = 0xff534d42;
constexpr std::int64_t smb2_type = 0xfe534d42;
constexpr std::int64_t bcachefs_type = 0xca451a4e;

constexpr std::array file_systems = {
    FileSystem{TMPFS_MAGIC, "tmpfs", true},
    FileSystem{EXT4_SUPER_MAGIC, "ext4", true},
    FileSystem{XFS_SUPER_MAGIC, "xfs", true},
    FileSystem{BTRFS_SUPER_MAGIC, "btrfs", true},
    FileSystem{F2FS_SUPER_MAGIC, "f2fs", true},
    FileSystem{zfs_type, "zfs", true},
    FileSystem{bcachefs_type, "bcachefs", true},
    FileSystem{RAMFS_MAGIC, "ramfs", true},
    FileSystem{HUGETLBFS_MAGIC, "hugetlbfs", true},
    FileSystem{OVERLAYFS_SUPER_MAGIC, "overlay", true},
    FileSystem{NFS_SUPER_MAGIC, "nfs", false},
    FileSystem{cifs_type, "cifs", false},
    FileSystem{smb2_type, "smb2", false},
    FileSystem{V9FS_MAGIC, "9p", false},
    FileSystem{FUSE_SUPER_MAGIC, "fuse or virtiofs", false},
    FileSystem{CEPH_SUPER_MAGIC, "ceph", false},
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

}  // namespace whycache
