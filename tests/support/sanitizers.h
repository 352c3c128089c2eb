// Macros for what the sanitizers cannot do. Each ends the test that begins with it and says why.
#pragma once

#include <gtest/gtest.h>

#if defined(__SANITIZE_THREAD__)
#define SKIP_WITHOUT_THREADS_IN_CHILD()                                                        \
  GTEST_SKIP() << "NOT TESTED: ThreadSanitizer cannot start a thread in a child whose parent " \
                  "had threads, and takes the parent's threads for the child's"
#define SKIP_IF_OTHER_THREADS_SWITCH() \
  GTEST_SKIP() << "NOT TESTED: a thread of ThreadSanitizer makes context switches of its own"
#else
#define SKIP_WITHOUT_THREADS_IN_CHILD() static_cast<void>(0)
#define SKIP_IF_OTHER_THREADS_SWITCH() static_cast<void>(0)
#endif

// Looks at an exception or an object through a descriptor.
#if defined(__SANITIZE_ADDRESS__)
#define SKIP_WITHOUT_SPARE_DESCRIPTOR() \
  GTEST_SKIP() << "NOT TESTED: the sanitizer needs a descriptor when an exception is thrown"
#else
#define SKIP_WITHOUT_SPARE_DESCRIPTOR() static_cast<void>(0)
#endif
