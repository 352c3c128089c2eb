// All subjects there are. The one file to change, besides CMakeLists.txt, when a rival is added.
#pragma once

#include <string>
#include <vector>

#include "bench/subject.h"

namespace bench {

// Weak: the address of a rival's is nullptr when its library was not there and its file was not
// compiled.
[[gnu::weak]] MakeSubject make_whycache;
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
  MakeSubject* make;  // nullptr: its library was not there when this was built
};

inline const std::vector<SubjectKind> subject_kinds = {
    {"whycache", make_whycache},
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
