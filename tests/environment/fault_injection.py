#!/usr/bin/env python3
"""Fails or kills a process at each system call and each allocation that it makes.

    fault_injection.py calls|kills|allocations --bin BIN [--seconds N | --all] [--seed N]
                       [--scenario NAME]... [--log file|sqlite]... [--call NAME]... [--jobs N]
    fault_injection.py case --bin BIN SCENARIO LOG FAULT     repeats one case, as a failure names it

`calls` counts the system calls that a scenario of scenario_main.cc makes, and runs it once for each
call, each error of its manual page, and both of: fails once, and fails from then on. `kills` ends
the process with SIGKILL at the call instead, and `allocations` makes the N-th malloc() fail.
Afterwards a process without faults verifies what the scenario reported, on this machine's state and
on one that is built from the log, and writes at once.

Cases are taken in random order until --seconds are over. Failures print the command that repeats
them. The exit status is 1 if there was one. FAULT is CALL:N:ERRNO:once, CALL:N:ERRNO:ever,
CALL:N:KILL, or malloc:N:once or malloc:N:ever.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import errno
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "support"))
from memory_directory import memory_directory  # noqa: E402

# What the manual pages list and the kernel can return for correct arguments. EBADF and EFAULT are
# left out: they would mean that the library passed a wrong argument.
PATH = "EACCES ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR"
ERRORS = {
    "openat": PATH + " EDQUOT EEXIST EINTR EISDIR EMFILE ENFILE ENODEV ENOSPC ENXIO EOVERFLOW "
                     "EPERM EROFS ETXTBSY EBUSY EINVAL EIO",
    "read": "EINTR EIO EISDIR EINVAL EAGAIN",
    "pread64": "EINTR EIO EINVAL EOVERFLOW",
    "write": "EDQUOT EFBIG EINTR EIO ENOSPC EPERM EAGAIN EINVAL",
    "pwrite64": "EDQUOT EFBIG EINTR EIO ENOSPC EPERM EINVAL",
    "fdatasync": "EIO ENOSPC EROFS EDQUOT EINVAL EINTR",
    "fsync": "EIO ENOSPC EROFS EDQUOT EINVAL EINTR",
    "fallocate": "EFBIG EINTR EIO ENODEV ENOSPC ENOSYS EOPNOTSUPP EPERM ETXTBSY EDQUOT EINVAL",
    "ftruncate": "EFBIG EINTR EIO EPERM EROFS ETXTBSY EINVAL",
    "newfstatat": PATH + " EOVERFLOW",
    "fstat": "ENOMEM EOVERFLOW",
    "ioctl": "ENOTTY EOPNOTSUPP EINVAL EIO EPERM",
    "stat": PATH + " EOVERFLOW",
    "lstat": PATH + " EOVERFLOW",
    "statx": PATH + " ENOSYS EPERM EINVAL",
    "statfs": PATH + " EINTR EIO ENOSYS EOVERFLOW",
    "fstatfs": "EINTR EIO ENOMEM ENOSYS EOVERFLOW",
    "mmap": "EACCES EAGAIN ENFILE ENODEV ENOMEM EPERM ETXTBSY EOVERFLOW EINVAL",
    "munmap": "ENOMEM",
    "mremap": "EAGAIN ENOMEM",
    "mprotect": "EACCES ENOMEM",
    "madvise": "EAGAIN EIO ENOMEM EINVAL EPERM",
    "msync": "EBUSY ENOMEM EIO",
    "fcntl": "EACCES EAGAIN EINTR EDEADLK ENOLCK EMFILE EPERM EINVAL",
    "link": PATH + " EDQUOT EEXIST EIO EMLINK ENOSPC EPERM EROFS EXDEV",
    "linkat": PATH + " EDQUOT EEXIST EIO EMLINK ENOSPC EPERM EROFS EXDEV",
    "rename": PATH + " EBUSY EDQUOT EEXIST EINVAL EISDIR EMLINK ENOSPC EPERM EROFS EXDEV EIO",
    "renameat2": PATH + " EBUSY EDQUOT EEXIST EINVAL EISDIR EMLINK ENOSPC EPERM EROFS EXDEV EIO",
    "unlink": PATH + " EBUSY EIO EISDIR EPERM EROFS",
    "unlinkat": PATH + " EBUSY EIO EISDIR EPERM EROFS",
    "mkdir": PATH + " EDQUOT EEXIST EMLINK ENOSPC EPERM EROFS",
    "rmdir": PATH + " EBUSY ENOTEMPTY EPERM EROFS",
    "access": PATH + " EIO EROFS ETXTBSY",
    "faccessat2": PATH + " EIO EROFS ETXTBSY",
    "readlink": PATH + " EINVAL EIO",
    "getdents64": "EINVAL ENOENT",
    "lseek": "EINVAL ENXIO EOVERFLOW ESPIPE",
    "chmod": PATH + " EIO EPERM EROFS",
    "fchmod": "EIO ENOMEM EPERM EROFS",
    "fchown": "EIO ENOMEM EPERM EROFS",
    "utimensat": "EACCES EPERM EROFS",
    "close": "EINTR EIO ENOSPC EDQUOT",
    "getrandom": "EINTR EAGAIN ENOSYS",
    "memfd_create": "EMFILE ENFILE ENOMEM EPERM EINVAL ENOSYS",
    "membarrier": "EINVAL ENOSYS EPERM",
    "clone": "EAGAIN ENOMEM EPERM",
    "clone3": "EAGAIN ENOMEM EPERM ENOSYS",
    "clock_nanosleep": "EINTR",
    "prlimit64": "EINVAL EPERM",
    "statmount": "ENOSYS",
}
# These cannot fail, or only the C library uses them when a thread starts or ends. brk() returns the
# old end of the heap if it fails, never an error. The C library ends the process if a futex call
# returns an error that its operation cannot have.
INFALLIBLE = set("""
    brk execve exit exit_group futex getegid geteuid getgid getpid gettid getuid poll
    restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn
    sched_getaffinity sched_yield set_robust_list sysinfo uname wait4""".split())
# Errors that a caller must retry, or that end once another process acts: they do not last.
PASSING = {"EINTR", "EAGAIN"}
# A process that cannot close or unmap keeps what it holds: nothing can be promised of its
# next attempt.
KEEPS_RESOURCES = {"close", "munmap"}

SECONDS_MAX = 40  # of one case
REPORT_HEADER = 24  # report.h


@dataclasses.dataclass(frozen=True)
class Fault:
    call: str
    number: int
    error: str  # an errno, KILL, or "" for malloc
    ever: bool = False

    def __str__(self):
        if self.error == "KILL":
            return f"{self.call}:{self.number}:KILL"
        middle = "" if self.call == "malloc" else self.error + ":"
        return f"{self.call}:{self.number}:{middle}{'ever' if self.ever else 'once'}"

    @staticmethod
    def parse(text):
        words = text.split(":")
        if words[0] == "malloc":
            return Fault("malloc", int(words[1]), "", words[2] == "ever")
        return Fault(words[0], int(words[1]), words[2], words[-1] == "ever")

    def strace_options(self):
        when = f"{self.number}+" if self.ever else f"{self.number}"
        what = "signal=KILL" if self.error == "KILL" else f"error={self.error}"
        return ["-e", f"trace={self.call}", "-e", f"inject={self.call}:{what}:when={when}"]


@dataclasses.dataclass(frozen=True)
class Case:
    scenario: str
    log: str
    fault: Fault

    def __str__(self):
        return f"{self.scenario} {self.log} {self.fault}"


@dataclasses.dataclass
class Outcome:
    reached: int = 0  # how often the fault happened
    failures: list = dataclasses.field(default_factory=list)
    errors: list = dataclasses.field(default_factory=list)  # kind, errno, message
    steps_lost: int = 0  # that failed at every attempt
    indirect: int = 0  # errors that do not name the injected errno

    @property
    def word(self):
        if self.failures:
            return "FAILED"
        if not self.reached:
            return "not reached"
        if not self.errors:
            return "no error seen"
        return "step failed" if self.steps_lost else "failed, then succeeded"


class Run:
    """One run of a scenario in a directory of its own."""

    def __init__(self, programs, scenario, log):
        self.programs, self.scenario = programs, scenario
        parent = programs.directory or memory_directory()
        self.directory = tempfile.mkdtemp(prefix="whycache-faults-", dir=parent)
        self.log = (f"file://{self.directory}/log" if log == "file"
                    else f"sqlite://{self.directory}/log.db")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, verb, *options):
        return [self.programs.scenario, verb, self.scenario, self.log, self.directory, *options]

    @property
    def report(self):
        data = pathlib.Path(self.directory, "report").read_bytes()
        _, size, _, allocations = struct.unpack_from("=IIQQ", data)
        lines = data[REPORT_HEADER:REPORT_HEADER + size].decode(errors="replace").splitlines()
        return [line.split("\t") for line in lines], allocations

    def traced(self, strace_options):
        """Runs the scenario below strace. Returns its exit status (None: it hangs), the trace, and
        what it said on standard error."""
        trace = f"{self.directory}/trace"
        scenario = subprocess.Popen(self.command("run", "--wait"), stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            if scenario.stdout.readline() != b"ready\n":
                raise RuntimeError(scenario.stderr.read().decode())
            strace = subprocess.Popen(
                ["strace", "-f", "-o", trace, *strace_options, "-p", str(scenario.pid)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            first = strace.stderr.readline()
            if b"attached" not in first:
                raise RuntimeError(f"strace cannot attach: {first.decode().strip()}")
            with open(f"{self.directory}/report", "r+b") as report:
                report.write(struct.pack("=I", 1))
            try:
                status = scenario.wait(SECONDS_MAX)
            except subprocess.TimeoutExpired:
                status = None
            scenario.kill()
            scenario.wait()
            strace.wait(SECONDS_MAX)
            strace.stderr.close()
            said = scenario.stderr.read().decode(errors="replace")
            return status, pathlib.Path(trace).read_text(errors="replace"), said
        finally:
            scenario.kill()
            scenario.wait()
            scenario.stdout.close()
            scenario.stderr.close()

    def verify(self):
        """Returns what is wrong afterwards."""
        try:
            done = subprocess.run(self.command("verify"), capture_output=True, timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired:
            return ["the next process hangs"]
        lines = done.stdout.decode(errors="replace").splitlines()
        if done.returncode not in (0, 1) or bool(done.returncode) != bool(lines):
            lines.append(f"the next process died: status={done.returncode} "
                         f"{done.stderr.decode(errors='replace').strip()}")
        return lines

    def check(self):
        """`whycache check`, as an operator would run it."""
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith("WHYCACHE_")}
        environment.update(WHYCACHE_LOG=self.log, WHYCACHE_STATE=f"{self.directory}/a.state")
        done = subprocess.run([self.programs.whycache, "check", "--quiet"], env=environment,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS_MAX)
        if done.returncode == 0:
            return []
        return [f"whycache check: {done.returncode} {done.stdout.decode(errors='replace')} "
                f"{done.stderr.decode(errors='replace')}"]


def count_calls(run):
    """How often each system call is made by the thread that makes it most often."""
    status, trace, said = run.traced([])
    if status != 0:
        raise RuntimeError(f"{run.scenario} fails without a fault: {status} {said} {run.report}")
    counts = collections.Counter()
    begun = False
    for line in trace.splitlines():
        match = re.match(r"(\d+) +([a-z0-9_]+)\(", line)
        if not match:
            continue
        begun = begun or match[2] not in ("poll", "restart_syscall")
        if begun:
            counts[match[1], match[2]] += 1
    most = {}
    for (_, call), count in counts.items():
        most[call] = max(most.get(call, 0), count)
    return most


def judge(case, run, status, said, trace=""):
    """What the scenario reported."""
    outcome = Outcome()
    fault = case.fault
    injected = "".join(line for line in trace.splitlines() if "(INJECTED)" in line)
    events, _ = run.report
    killed = fault.error == "KILL" and status == -signal.SIGKILL
    if status is None:
        outcome.failures.append("hangs")
    elif status != 0 and not killed:
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        outcome.failures.append(f"died: {name} {said.strip()[-300:]}")
    last = {}
    for event in events:
        if event[0] == "wrong":
            outcome.failures.append(" ".join(event))
        if event[0] == "died" and fault.error != "KILL":
            outcome.failures.append("the child " + " ".join(event))
        if event[0] in ("try", "ok", "failed"):
            last[event[1]] = event[0]
        if event[0] == "failed":
            kind, number, message = event[3], int(event[4]), event[5]
            outcome.errors.append((kind, number, f"{event[1]}: {message}"))
            if kind == "unexpected" or not message:
                outcome.failures.append(f"{event[1]}: {kind}: {message}")
            if fault.error == "EIO" and kind in ("corrupt", "limit"):
                outcome.failures.append(f"a failing disk is taken for something else: {kind}: "
                                        f"{message}")
            expected = errno.ENOMEM if fault.call == "malloc" else getattr(errno, fault.error, 0)
            if number != expected and os.strerror(expected) not in message:
                outcome.indirect += 1
    outcome.steps_lost = sum(result == "failed" for result in last.values())
    # strace counts the calls of each thread and each child by themselves.
    lasts = (fault.ever or fault.call in KEEPS_RESOURCES or fault.error == "KILL"
             or injected.count("(INJECTED)") > 1 or "F_UNLCK" in injected)
    if outcome.steps_lost and not lasts:
        outcome.failures.append("still fails once the fault is over: " + outcome.errors[-1][2])
    return outcome


def run_case(programs, case, checks):
    with Run(programs, case.scenario, case.log) as run:
        fault = case.fault
        if fault.call == "malloc":
            option = "--fail-from" if fault.ever else "--fail"
            try:
                done = subprocess.run(run.command("run", option, str(fault.number)),
                                      capture_output=True, timeout=SECONDS_MAX)
                status, said = done.returncode, done.stderr.decode(errors="replace")
            except subprocess.TimeoutExpired:
                status, said = None, ""
            outcome = judge(case, run, status, said)
            outcome.reached = 1
        else:
            status, trace, said = run.traced(fault.strace_options())
            outcome = judge(case, run, status, said, trace)
            outcome.reached = trace.count("(INJECTED)") or status == -signal.SIGKILL
        outcome.failures += run.verify()
        if checks:
            outcome.failures += run.check()
        return outcome


def all_cases(mode, programs, scenario, log, calls):
    if mode == "allocations":
        with Run(programs, scenario, log) as run:
            subprocess.run(run.command("run"), check=True, capture_output=True, timeout=SECONDS_MAX)
            count = run.report[1]
        return [Case(scenario, log, Fault("malloc", number, "", ever))
                for number in range(1, count + 1) for ever in (False, True)], {}, set()
    with Run(programs, scenario, log) as run:
        counts = count_calls(run)
    if calls:
        counts = {call: count for call, count in counts.items() if call in calls}
    unknown = {call for call in counts if call not in ERRORS and call not in INFALLIBLE}
    cases = []
    for call, count in counts.items():
        for number in range(1, count + 1):
            if mode == "kills":
                if call not in ("poll", "exit", "exit_group", "restart_syscall"):
                    cases.append(Case(scenario, log, Fault(call, number, "KILL")))
                continue
            for error in ERRORS.get(call, "").split():
                cases.append(Case(scenario, log, Fault(call, number, error)))
                if error not in PASSING and call not in KEEPS_RESOURCES:
                    cases.append(Case(scenario, log, Fault(call, number, error, True)))
    return cases, counts, unknown


class Programs:
    def __init__(self, directory, parent):
        self.scenario = f"{directory}/environment_scenario"
        self.whycache = f"{directory}/whycache"
        self.directory = parent


def can_trace():
    """Why system calls cannot be injected here; "" if they can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-o", "/dev/null", "-e", "inject=getppid:error=EPERM", "true"],
        capture_output=True)
    return "" if tried.returncode == 0 else "strace cannot trace: " + tried.stderr.decode().strip()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("calls", "kills", "allocations", "case"))
    parser.add_argument("case", nargs="*")
    parser.add_argument("--bin", required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--scenario", action="append")
    parser.add_argument("--log", action="append", choices=("file", "sqlite"))
    parser.add_argument("--call", action="append")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--directory",
                        help="where the states are; default: /dev/shm if it has room")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_intermixed_args()


def repeat(programs, words, verbose):
    case = Case(words[0], words[1], Fault.parse(words[2]))
    outcome = run_case(programs, case, True)
    print(outcome.word)
    for error in outcome.errors:
        print("  error:", *error)
    for failure in outcome.failures:
        print("  FAILED:", failure)
    return bool(outcome.failures)


def main():
    arguments = parse_arguments()
    programs = Programs(os.path.abspath(arguments.bin), arguments.directory)
    if reason := can_trace():
        if arguments.mode != "allocations":
            print(f"NOT TESTED: {reason}")
            return 0
    if arguments.mode == "case":
        return repeat(programs, arguments.case, arguments.verbose)
    seed = arguments.seed
    if seed is None:
        seed = int(os.environ.get("WHYCACHE_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed={seed} (WHYCACHE_TEST_SEED)", flush=True)
    begin = time.monotonic()
    names = arguments.scenario or subprocess.run(
        [programs.scenario, "list"], check=True, capture_output=True, text=True).stdout.split()
    pairs = [(name, log) for name in names for log in arguments.log or ("file", "sqlite")]
    if not arguments.all:
        # Counting takes time, too: a short run takes some of the scenarios, another time others.
        random.Random(seed).shuffle(pairs)
        del pairs[max(4, int(arguments.seconds) // 4):]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        listed = list(pool.map(lambda pair: all_cases(
            arguments.mode, programs, *pair, arguments.call), pairs))
    cases = [case for some, _, _ in listed for case in some]
    unknown = set().union(*(calls for _, _, calls in listed))
    random.Random(seed).shuffle(cases)
    print(f"{len(cases)} cases of {len(pairs)} scenarios, "
          f"{len({case.fault.call for case in cases})} calls, "
          f"{sum(sum(counts.values()) for _, counts, _ in listed)} places")
    if unknown:
        print("calls without errors in the table:", *sorted(unknown))
    end = None if arguments.all else time.monotonic() + arguments.seconds
    outcomes, kinds, tally = collections.Counter(), collections.Counter(), collections.Counter()
    failures = []
    lock = threading.Lock()

    def work(numbered):
        number, case = numbered
        if end and time.monotonic() > end:
            return
        try:
            outcome = run_case(programs, case, number % 10 == 0)
        except Exception as error:  # a fault of this program must not look like a pass
            outcome = Outcome(failures=[f"the test failed: {error!r}"])
        with lock:
            outcomes[outcome.word] += 1
            kinds.update(error[0] for error in outcome.errors)
            tally["errors"] += len(outcome.errors)
            tally["indirect"] += outcome.indirect
            if outcome.failures:
                failures.append((case, outcome.failures))
                print(f"FAILED {case}")
                for failure in outcome.failures:
                    print("   ", failure[:600], flush=True)
            elif arguments.verbose and outcome.errors:
                print(case, *outcome.errors[0], sep=" | ", flush=True)

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(work, enumerate(cases)))
    print(f"{sum(outcomes.values())} of {len(cases)} cases in {time.monotonic() - begin:.0f} s:",
          ", ".join(f"{word}: {count}" for word, count in sorted(outcomes.items())))
    if tally["errors"]:
        print("errors by kind:",
              ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items())) + ";",
              f"{tally['indirect']} of {tally['errors']} do not name the system's error")
    if failures:
        print(f"{len(failures)} cases failed; repeat one with:\n  {sys.argv[0]} case --bin "
              f"{arguments.bin} {failures[0][0]}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
