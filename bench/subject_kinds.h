// The list of all subjects. A new rival is added here and in CMakeLists.txt.
#pragma once

#include <string>
#include <vector>

#include "bench/subject.h"

namespace bench {

// Weak symbols: the address is nullptr if the library of a rival was not found and its file was not
// compiled.
[[gnu::weak]] MakeSubject make_whycache;        // through the public API
[[gnu::weak]] MakeSubject make_whycache_state;  // the state alone
[[gnu::weak]] MakeSubject make_boost_flat;
[[gnu::weak]] MakeSubject make_absl;
[[gnu::weak]] MakeSubject make_unordered_map;
[[gnu::weak]] MakeSubject make_lmdb;       // a read transaction renewed for every read
[[gnu::weak]] MakeSubject make_lmdb_long;  // one read transaction for all reads
[[gnu::weak]] MakeSubject make_boost_interprocess;
[[gnu::weak]] MakeSubject make_tkrzw_hash;
[[gnu::weak]] MakeSubject make_tkrzw_tree;
[[gnu::weak]] MakeSubject make_redis;
[[gnu::weak]] MakeSubject make_memcached;

struct SubjectKind {
  std::string name;
  MakeSubject* make;  // nullptr if its library was not found
};

inline const std::vector<SubjectKind> subject_kinds = {
    {"whycache", make_whycache},
    {"whycache_state", make_whycache_state},
    {"boost_flat", make_boost_flat},
    {"absl", make_absl},
    {"unordered_map", make_unordered_map},
    {"lmdb", make_lmdb},
    {"lmdb_long", make_lmdb_long},
    {"boost_interprocess", make_boost_interprocess},
    {"tkrzw_hash", make_tkrzw_hash},
    {"tkrzw_tree", make_tkrzw_tree},
    {"redis", make_redis},
    {"memcached", make_memcached},
};

}  // namespace bench
