#include "state/walked_writer.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <stdexcept>
#include <string>

// The signals and mmap belong to the sanitizers there; and the trap flag is of this processor.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define WHYCACHE_CAN_WALK 1
#endif

namespace whycache::testing {

#ifdef WHYCACHE_CAN_WALK
namespace {

constexpr std::uintptr_t page_bytes = 4096;
constexpr greg_t trap_flag = 0x100;

// All of this is the child's.
const WalkPlan* plan = nullptr;
WalkedWriter::Progress* progress = nullptr;
std::uint64_t mapped_bytes = 0;
bool watching = false;
char* file_begin = nullptr;  // as it is mapped
std::array<char*, 2> open_pages;
std::size_t open_page_count = 0;

// How often each instruction stored.
struct Instruction {
  greg_t address = 0;
  std::uint64_t stores = 0;
};
std::array<Instruction, 8192> instructions;

std::uint64_t count_store(greg_t place) {
  for (auto i = static_cast<std::size_t>(place) % instructions.size();;
       i = (i + 1) % instructions.size()) {
    Instruction& one = instructions[i];
    if (one.address == 0) one.address = place;
    if (one.address == place) return ++one.stores;
  }
}

std::uint64_t next_random() {
  static std::uint64_t at = plan->seed;
  at += 0x9e3779b97f4a7c15;  // SplitMix64
  std::uint64_t mixed = (at ^ at >> 30) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
  return mixed ^ mixed >> 31;
}

bool take_sample(std::uint64_t number) {
  static std::uint64_t next = 0;
  if (plan->stride == 0) return false;
  if (next == 0) next = 1 + next_random() % plan->stride;
  if (number < next) return false;
  const std::uint64_t stratum = (number - 1) / plan->stride;
  next = (stratum + 1) * plan->stride + 1 + next_random() % plan->stride;
  return true;
}

bool is_watched(std::uint64_t offset) {
  for (const WalkPlan::FileRange& place : plan->watched_ranges) {
    if (offset >= place.offset && offset - place.offset < place.bytes) return true;
  }
  return false;
}

bool record_store(std::uint64_t offset, greg_t instruction) {
  static bool was_watched = false;
  const std::uint64_t number = ++progress->stores;
  const bool behind_watched = was_watched;
  was_watched = is_watched(offset);
  const bool sampled = take_sample(number);
  const bool rare = count_store(instruction) <= plan->stores_per_instruction;
  return plan->every_store || number == plan->stop_at_store || sampled || rare || was_watched ||
         behind_watched;
}

void before_store(int, siginfo_t* info, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  auto* const place = static_cast<char*>(info->si_addr);
  const bool is_ours =
      file_begin != nullptr && place >= file_begin && place < file_begin + mapped_bytes;
  if (!is_ours || open_page_count == open_pages.size()) {
    ::signal(SIGSEGV, SIG_DFL);  // the fault comes again, and is one
    return;
  }
  // A store across the end of a page faults twice.
  if (open_page_count == 0 &&
      record_store(static_cast<std::uint64_t>(place - file_begin), registers[REG_RIP]))
    ::raise(SIGSTOP);
  char* const page = place - reinterpret_cast<std::uintptr_t>(place) % page_bytes;
  ::mprotect(page, page_bytes, PROT_READ | PROT_WRITE);
  open_pages[open_page_count++] = page;
  registers[REG_EFL] |= trap_flag;
}

void after_store(int, siginfo_t*, void* context) {
  for (; open_page_count > 0; --open_page_count)
    ::mprotect(open_pages[open_page_count - 1], page_bytes, PROT_READ);
  static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL] &= ~trap_flag;
}

void install_handler(int signal, void (*handler)(int, siginfo_t*, void*)) {
  struct sigaction action {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(signal, &action, nullptr);
}

}  // namespace

const char* WalkedWriter::unsupported_reason() { return nullptr; }

WalkedWriter::WalkedWriter(const WalkPlan& walk_plan, std::uint64_t bytes, const Work& work)
    : child_(::fork()) {
  if (child_ < 0) throw std::runtime_error("cannot fork");
  if (child_ > 0) {
    wait_for_stop();
    return;
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  plan = &walk_plan;
  progress = &*progress_;
  mapped_bytes = bytes;
  install_handler(SIGSEGV, before_store);
  install_handler(SIGTRAP, after_store);
  try {
    work([] {
      watching = true;
      ::raise(SIGSTOP);
    });
  } catch (...) {
    ::_exit(2);
  }
  progress->done = true;
  ::raise(SIGSTOP);
  ::_exit(0);
}

#else

const char* WalkedWriter::unsupported_reason() {
  return "needs an x86-64 processor, and no sanitizer";
}

WalkedWriter::WalkedWriter(const WalkPlan&, std::uint64_t, const Work&) : child_(0) {
  throw std::logic_error(unsupported_reason());
}

#endif

WalkedWriter::~WalkedWriter() {
  if (child_ <= 0) return;  // it ended
  ::kill(child_, SIGKILL);
  int status;
  ::waitpid(child_, &status, 0);
}

bool WalkedWriter::walk() {
  ::kill(child_, SIGCONT);
  wait_for_stop();
  return !progress_->done;
}

void WalkedWriter::wait_for_stop() {
  int status;
  ::waitpid(child_, &status, WUNTRACED);
  if (WIFSTOPPED(status)) return;
  child_ = 0;
  throw std::runtime_error("the walked writer ended early: status=" + std::to_string(status));
}

}  // namespace whycache::testing

#ifdef WHYCACHE_CAN_WALK
// Stands before the C library's: it is how the walked child gets the file mapped for reading.
extern "C" void* mmap(void* place, std::size_t bytes, int protection, int flags, int descriptor,
                      off_t offset) noexcept {
  using namespace whycache::testing;
  const bool is_watched = watching && bytes == mapped_bytes && (protection & PROT_WRITE) != 0 &&
                          (flags & MAP_SHARED) != 0;
  if (is_watched) protection &= ~PROT_WRITE;
  void* const mapped = reinterpret_cast<void*>(
      ::syscall(SYS_mmap, place, bytes, protection, flags, descriptor, offset));
  if (is_watched && mapped != MAP_FAILED) file_begin = static_cast<char*>(mapped);
  return mapped;
}
#endif
