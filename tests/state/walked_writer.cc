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

// Sanitizers take over the signals and mmap, and the trap flag is specific to x86-64.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define WHYCACHE_CAN_WALK 1
#endif

namespace whycache::testing {

#ifdef WHYCACHE_CAN_WALK
namespace {

constexpr std::uintptr_t page_bytes = 4096;
constexpr greg_t trap_flag = 0x100;

// State of the child only.
const WalkPlan* plan = nullptr;
WalkedWriter::Progress* progress = nullptr;
std::uint64_t mapped_bytes = 0;
bool watching = false;
char* file_begin = nullptr;  // of the read-only mapping
std::array<char*, 2> open_pages;
std::size_t open_page_count = 0;

// The number of stores of each instruction.
struct Instruction {
  greg_t address = 0;
  std::uint64_t stores = 0;
};
std::array<Instruction, 8192> instructions;

std::uint64_t count_store(greg_t address) {
  for (auto i = static_cast<std::size_t>(address) % instructions.size();;
       i = (i + 1) % instructions.size()) {
    Instruction& instruction = instructions[i];
    if (instruction.address == 0) instruction.address = address;
    if (instruction.address == address) return ++instruction.stores;
  }
}

std::uint64_t next_random() {
  static std::uint64_t counter = plan->seed;
  counter += 0x9e3779b97f4a7c15;  // SplitMix64
  std::uint64_t mixed = (counter ^ counter >> 30) * 0xbf58476d1ce4e5b9;
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
  for (const WalkPlan::FileRange& range : plan->watched_ranges) {
    if (offset >= range.offset && offset - range.offset < range.bytes) return true;
  }
  return false;
}

bool record_store(std::uint64_t offset, greg_t instruction) {
  static bool was_watched = false;
  const std::uint64_t number = ++progress->stores;
  const bool follows_watched = was_watched;
  was_watched = is_watched(offset);
  const bool sampled = take_sample(number);
  const bool rare = count_store(instruction) <= plan->stores_per_instruction;
  return plan->every_store || number == plan->stop_at_store || sampled || rare || was_watched ||
         follows_watched;
}

void before_store(int, siginfo_t* info, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  auto* const address = static_cast<char*>(info->si_addr);
  const bool is_ours =
      file_begin != nullptr && address >= file_begin && address < file_begin + mapped_bytes;
  if (!is_ours || open_page_count == open_pages.size()) {
    ::signal(SIGSEGV, SIG_DFL);  // the instruction faults again, and the child dies
    return;
  }
  // A store across the end of a page faults twice.
  if (open_page_count == 0 &&
      record_store(static_cast<std::uint64_t>(address - file_begin), registers[REG_RIP]))
    ::raise(SIGSTOP);
  char* const page = address - reinterpret_cast<std::uintptr_t>(address) % page_bytes;
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
  if (child_ <= 0) return;  // the child has ended
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
// Replaces the C library's function, so that the walked child maps the file read-only.
extern "C" void* mmap(void* address, std::size_t bytes, int protection, int flags, int descriptor,
                      off_t offset) noexcept {
  using namespace whycache::testing;
  const bool is_watched = watching && bytes == mapped_bytes && (protection & PROT_WRITE) != 0 &&
                          (flags & MAP_SHARED) != 0;
  if (is_watched) protection &= ~PROT_WRITE;
  void* const mapped = reinterpret_cast<void*>(
      ::syscall(SYS_mmap, address, bytes, protection, flags, descriptor, offset));
  if (is_watched && mapped != MAP_FAILED) file_begin = static_cast<char*>(mapped);
  return mapped;
}
#endif
