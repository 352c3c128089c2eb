// The methods of a cache, by the file that defines them. cache_object.cc has their table.
#pragma once

#include "python.h"

namespace whycache::python {

using Method = PyObject*(PyObject* object, PyObject* argument);
using UnaryMethod = PyObject*(PyObject* object);
using FastMethod = PyObject*(PyObject* object, PyObject* const* arguments, Py_ssize_t count);
using KeywordMethod = PyObject*(PyObject* object, PyObject* const* arguments, Py_ssize_t count,
                                PyObject* names);
using Test = int(PyObject* object, PyObject* argument);
using Length = Py_ssize_t(PyObject* object);

// cache_reads.cc
FastMethod cache_get;
FastMethod cache_get_multi;
Method cache_subscript;
Method cache_view;
Method cache_get_versioned;
Method cache_version_stamp;
FastMethod cache_start_changes;
Test cache_contains;
Length cache_length;
KeywordMethod cache_keys;
KeywordMethod cache_values;
KeywordMethod cache_items;
KeywordMethod cache_count;
UnaryMethod cache_iterate;

// cache_facts.cc
Method cache_applied_id;
Method cache_notify_fd;
Method cache_staleness;
Method cache_digest;
Method cache_read_log_guards;
Method cache_ready;
Method cache_valid;
Method cache_state_path;
Method cache_counters;
Method cache_stats;
Method cache_inspect;

// cache_calls.cc
FastMethod cache_start_set;
FastMethod cache_start_delete;
FastMethod cache_start_write;
FastMethod cache_start_commit;
FastMethod cache_start_set_if;
FastMethod cache_start_set_if_version;
FastMethod cache_start_add;
FastMethod cache_start_acquire;
FastMethod cache_start_renew;
FastMethod cache_start_release;
FastMethod cache_start_set_log_guards;
FastMethod cache_start_update;
FastMethod cache_update_if_fresh;
FastMethod cache_start_wait;
FastMethod cache_start_rewrite;
KeywordMethod cache_start_delete_range;
Method cache_start_delete_all_history;
Method cache_forget_calls;
Method cache_start_close;
Method cache_wait_until_idle;
Method cache_check_value;

}  // namespace whycache::python
