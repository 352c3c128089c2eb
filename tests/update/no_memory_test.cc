// Memory that is missing for a moment: the thread compresses and decompresses once there is some.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <zstd.h>

#include <new>
#include <string>
#include <thread>

#include "update/compression.h"

namespace {
thread_local bool contexts_fail = false;

template <typename Context>
Context* create_context(const char* name) {
  if (contexts_fail) return nullptr;
  return reinterpret_cast<Context* (*)()>(::dlsym(RTLD_NEXT, name))();
}
}  // namespace

// Take the place of the functions of libzstd.
extern "C" ZSTD_CCtx* ZSTD_createCCtx() { return create_context<ZSTD_CCtx>("ZSTD_createCCtx"); }
extern "C" ZSTD_DCtx* ZSTD_createDCtx() { return create_context<ZSTD_DCtx>("ZSTD_createDCtx"); }

namespace whycache::testing {
namespace {

TEST(NoMemory, thread_that_once_had_none_compresses_and_decompresses_later) {
  const std::string text(10'000, 'a');
  std::thread([&text] {
    std::string frame;
    contexts_fail = true;
    EXPECT_THROW(append_compressed(frame, text), std::bad_alloc);
    contexts_fail = false;
    frame.clear();
    ASSERT_TRUE(append_compressed(frame, text));

    std::string back(text.size(), '\0');
    contexts_fail = true;
    EXPECT_THROW(decompress(frame, back.data(), back.size(), "text"), std::bad_alloc);
    contexts_fail = false;
    decompress(frame, back.data(), back.size(), "text");
    EXPECT_EQ(back, text);
  }).join();
}

}  // namespace
}  // namespace whycache::testing
