"""A cache in namespaces, on special file systems, without resources, and in unusual hosts.

Each test asserts right values or a clear error, no crash, no hang, and that afterwards a process in
the ordinary environment reads, writes, and finds the state and the log whole.
"""

import contextlib
import errno
import os
import pathlib
import signal
import shutil
import subprocess
import tempfile
import time

from harness import NOBODY, EnvironmentTest, Machine, deny, main

BOOT_TIME_OFFSET = "100000"


class NamespaceTest(EnvironmentTest):
    """Inside: a reader with a view, a writer, a follower, a rebuild. Outside: a reader and a writer
    with the state open."""

    def in_namespace(self, *unshare):
        self.require("unshare")
        self.run_or_skip("unshare", *unshare, "true")
        machine = self.machine
        machine.begin()
        outside = machine.start("open", "hold", "pause", "get=inside", "held=a", "set=outside:4",
                                "pause")
        outside.wait_for_pause()
        inside = machine.start("open", "get=a", "hold", "set=inside:3", "set=a:changed", "held=a",
                               "pause", "get=outside", "update", "view=b", "pause", "get=elsewhere",
                               "update", "get=elsewhere", "held=a", prefix=["unshare", *unshare])
        inside.wait_for_pause()
        outside.resume()
        outside.wait_for_pause()
        inside.resume()
        inside.wait_for_pause()
        machine.change_elsewhere("elsewhere", "5", rewrites=True)
        inside.resume()
        steps = inside.finish()
        for name, value in {"get=a": "1", "held=a": "1", "get=outside": "4", "view=b": "2",
                            "get=elsewhere": "5"}.items():
            self.assertEqual(steps[name].value, value, steps)
        self.assertTrue(all(step.ok for step in steps.values()), steps)
        outside.resume()
        steps = outside.finish()
        self.assertEqual(steps["get=inside"].value, "3")
        self.assertEqual(steps["held=a"].value, "1")
        machine.verify(a="changed", inside="3", outside="4", elsewhere="5")
        done = machine.command("update", prefix=["unshare", *unshare])
        self.assertEqual(done.returncode, 0, done)

    def test_mount_namespace_shares_state(self):
        self.require_root()
        self.in_namespace("--mount")

    def test_pid_namespace_shares_state(self):
        self.require_root()
        self.in_namespace("--pid", "--fork", "--kill-child")

    def test_pid_namespace_with_its_own_proc_shares_state(self):
        self.require_root()
        self.in_namespace("--pid", "--fork", "--kill-child", "--mount-proc")

    def test_user_namespace_shares_state(self):
        self.in_namespace("--user", "--map-root-user")

    def test_user_namespace_without_a_mapping_gives_right_values_or_errors(self):
        self.run_or_skip("unshare", "--user", "true")
        self.machine.begin()
        steps = self.machine.run("open", "get=a", "set=c:3", "get=c", prefix=["unshare", "--user"])
        self.assert_right_or_error(steps["get=a"], "1")
        self.assert_right_or_error(steps["get=c"], "3")
        self.machine.verify(a="1", b="2")

    def test_time_namespace_shares_state(self):
        self.require_root()
        self.in_namespace("--time", "--boottime", BOOT_TIME_OFFSET, "--monotonic", "500")

    def test_ipc_and_uts_namespaces_share_state(self):
        self.require_root()
        self.in_namespace("--ipc", "--uts")

    def test_all_namespaces_at_once_share_state(self):
        self.require_root()
        self.in_namespace("--mount", "--ipc", "--uts", "--net", "--pid", "--fork", "--kill-child",
                          "--mount-proc", "--time", "--boottime", BOOT_TIME_OFFSET)

    def test_namespace_without_proc_gives_right_values_or_errors(self):
        self.require_root()
        self.run_or_skip("unshare", "--mount", "true")
        self.machine.begin()
        hide = 'mount -t tmpfs none /proc && exec "$@"'
        steps = self.machine.run("open", "get=a", "view=b", "set=c:3", "get=c", "update",
                                 prefix=["unshare", "--mount", "sh", "-c", hide, "sh"])
        self.assert_right_or_error(steps["get=a"], "1")
        self.assert_right_or_error(steps["view=b"], "2")
        self.assert_right_or_error(steps["get=c"], "3")
        self.machine.verify(a="1", b="2")

    def test_killed_pid_namespace_leaves_state_to_others(self):
        self.require_root()
        self.require("unshare")
        self.run_or_skip("unshare", "--pid", "--fork", "--kill-child", "true")
        machine = self.machine
        machine.begin()
        inside = machine.start("open", "hold", "set=c:3", "pause",
                               prefix=["unshare", "--pid", "--fork", "--kill-child"])
        inside.wait_for_pause()
        inside.end()
        machine.verify(a="1", c="3")


class FileSystemTest(EnvironmentTest):
    def test_read_only_mount_of_the_directory_gives_right_values_or_errors(self):
        self.require_root()
        self.run_or_skip("unshare", "--mount", "true")
        machine = Machine(self, tempfile.mkdtemp(dir=self.directory), self.directory)
        machine.begin()
        bind = (f'mount --bind {machine.directory} {machine.directory} && '
                f'mount -o remount,bind,ro {machine.directory} && exec "$@"')
        steps = machine.run("open", "get=a", "view=b", "set=c:3", "update",
                           prefix=["unshare", "--mount", "sh", "-c", bind, "sh"])
        self.assert_right_or_error(steps["get=a"], "1")
        self.assert_right_or_error(steps["view=b"], "2")
        self.assertFalse(steps["set=c:3"].ok, steps)
        self.assertIn(steps["set=c:3"].kind, ("invalid", "uncertain"), steps)
        machine.verify(a="1", b="2")

    def overlay(self):
        self.require_root()
        layers = self.mount("-t", "tmpfs", "none")  # overlayfs needs xattrs of its upper layer
        for name in ("lower", "upper", "work"):
            os.mkdir(f"{layers}/{name}", 0o700)
        return layers, (f"lowerdir={layers}/lower,upperdir={layers}/upper,"
                        f"workdir={layers}/work")

    def test_state_made_in_an_overlay_is_shared(self):
        layers, options = self.overlay()
        directory = self.mount("-t", "overlay", "overlay", "-o", options)
        machine = Machine(self, directory, self.directory)
        for chosen in ((), ("any_file_system",)):
            steps = machine.run("open", "set=a:1", "get=a", options=chosen)
            if not steps["open"].ok:
                self.assert_error(steps["open"], {"invalid"}, "file system")
            else:
                self.assertEqual(steps["get=a"].value, "1", steps)
        if steps["open"].ok:
            holder = machine.start("open", "get=a", "pause", "get=b", options=["any_file_system"])
            holder.wait_for_pause()
            machine.run("open", "set=b:2", options=["any_file_system"])
            holder.resume()
            self.assertEqual(holder.finish()["get=b"].value, "2")

    def test_state_of_a_lower_layer_is_not_mixed_up_with_its_copy(self):
        layers, options = self.overlay()
        below = Machine(self, f"{layers}/lower", self.directory)
        below.begin()
        directory = self.mount("-t", "overlay", "overlay", "-o", options)
        machine = Machine(self, directory, self.directory)
        # A reader maps the lower file; the first writer makes the kernel copy it.
        reader = machine.start("open", "get=a", "pause", "update", "get=a",
                               options=["any_file_system"])
        steps = {step.name: step for step in reader.wait_for_pause()}
        self.assert_right_or_error(steps["get=a"], "1")
        written = machine.run("open", "set=a:2", "get=a", options=["any_file_system"])
        self.assert_right_or_error(written["get=a"], "2")
        reader.resume()
        self.assert_right_or_error(reader.finish()["get=a"], "2" if written["set=a:2"].ok else "1")
        below.verify(b="2")

    def test_attached_reader_of_a_lower_layer_goes_over_to_its_copy(self):
        for host in ((), ("close_range",)):
            layers, options = self.overlay()
            below = Machine(self, f"{layers}/lower", self.directory)
            below.begin()
            directory = self.mount("-t", "overlay", "overlay", "-o", options)
            machine = Machine(self, directory, self.directory)
            reader = machine.start("attach", "hold", *host, "pause", "await=4", "get=a", "held=a",
                                   options=["any_file_system"])
            steps = {step.name: step for step in reader.wait_for_pause()}
            self.assertTrue(steps["attach"].ok, steps)
            written = machine.run("open", "set=a:2", "set=a:3", options=["any_file_system"])
            self.assertTrue(written["set=a:3"].ok, written)
            reader.resume()
            steps = reader.finish()
            self.assertEqual((steps["get=a"].value, steps["held=a"].value), ("3", "1"), steps)
            below.verify(b="2")

    def scenarios_on(self, kind):
        directory = self.make_file_system(kind, 512 if kind == "xfs" else 64)
        self.run_scenarios(directory)

    def run_scenarios(self, directory):
        program = os.path.dirname(self.machine.host) + "/environment_scenario"
        names = subprocess.run([program, "list"], check=True, capture_output=True, text=True)
        for name in names.stdout.split():
            for log in ("file", "sqlite"):
                with self.subTest(scenario=name, log=log):
                    where = tempfile.mkdtemp(dir=directory)
                    url = f"file://{where}/log" if log == "file" else f"sqlite://{where}/log.db"
                    for verb in ("run", "verify"):
                        done = subprocess.run([program, verb, name, url, where], timeout=300,
                                              capture_output=True)
                        self.assertEqual(done.returncode, 0, done)
                    shutil.rmtree(where)

    def test_scenarios_on_ext4(self):
        self.scenarios_on("ext4")

    def test_scenarios_on_xfs(self):
        self.scenarios_on("xfs")

    def fill(self, directory):
        path = f"{directory}/filler"
        with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 65536)
        with open(path, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 512)
        os.sync()
        return path

    def full(self, kind):
        directory = self.make_file_system(kind, 320 if kind == "xfs" else 128)
        machine = Machine(self, directory, self.directory)
        machine.begin()
        writer = machine.start("open", "pause", *(f"set=k{i}:*60000" for i in range(40)),
                               "get=a", "pause", "set=later:1", "get=later")
        writer.wait_for_pause()
        filler = self.fill(directory)
        writer.resume()
        steps = {step.name: step for step in writer.wait_for_pause()}
        self.assertEqual(steps["get=a"].value, "1")
        failed = [step for name, step in steps.items() if name.startswith("set=k") and not step.ok]
        self.assertTrue(failed, "the disk was not full")
        for step in failed:
            self.assert_error(step, {"limit", "uncertain"})
            self.assertEqual(step.errno, errno.ENOSPC, step)
        os.unlink(filler)
        os.sync()
        writer.resume()
        self.assertEqual(writer.finish()["get=later"].value, "1")
        machine.verify(a="1", b="2", later="1")

    def test_full_ext4_is_an_error_and_no_signal(self):
        self.full("ext4")

    def test_full_xfs_is_an_error_and_no_signal(self):
        self.full("xfs")

    def test_btrfs_is_refused(self):
        machine = Machine(self, self.make_file_system("btrfs", 128), self.directory)
        self.assert_error(machine.run("open")["open"], {"invalid"}, "state_path")

    def test_full_disk_of_log_and_state_is_an_error_and_no_signal(self):
        directory = self.make_file_system("ext4", 64)
        for log in ("file", "sqlite"):
            with self.subTest(log=log):
                machine = Machine(self, tempfile.mkdtemp(dir=directory), log=log)
                machine.begin()
                reader = machine.start("open", "pause", "get=a", "view=b")
                reader.wait_for_pause()
                writer = machine.start("open", "pause", "set=c:*60000", "get=a", "pause",
                                       "set=d:4")
                writer.wait_for_pause()
                filler = self.fill(directory)
                writer.resume()
                steps = {step.name: step for step in writer.wait_for_pause()}
                self.assertEqual(steps["get=a"].value, "1", steps)
                reader.resume()
                read = reader.finish()
                self.assertEqual((read["get=a"].value, read["view=b"].value), ("1", "2"), read)
                os.unlink(filler)
                os.sync()
                writer.resume()
                self.assertTrue(writer.finish()["set=d:4"].ok)
                machine.verify(a="1", d="4")

    def frozen(self, kind):
        self.require("fsfreeze")
        directory = self.make_file_system(kind, 320 if kind == "xfs" else 128)
        machine = Machine(self, directory, directory)
        machine.begin()
        reader = machine.start("open", "get=a", "pause", "get=a", "get=b", "pause")
        writer = machine.start("open", "pause", "set=c:3", "get=c")
        reader.wait_for_pause()
        writer.wait_for_pause()
        subprocess.run(["fsfreeze", "-f", directory], check=True)
        try:
            writer.resume()
            time.sleep(0.5)
            reader.resume()
            steps = {step.name: step for step in reader.wait_for_pause()}
        finally:
            subprocess.run(["fsfreeze", "-u", directory], check=True)
        self.assertEqual((steps["get=a"].value, steps["get=b"].value), ("1", "2"), steps)
        reader.resume()
        reader.finish()
        steps = writer.finish()
        self.assert_right_or_error(steps["get=c"], "3" if steps["set=c:3"].ok else "(absent)")
        machine.verify(a="1", b="2")

    def test_frozen_ext4_stops_writers_only(self):
        self.frozen("ext4")

    def test_frozen_xfs_stops_writers_only(self):
        self.frozen("xfs")

    def test_file_system_that_is_remounted_read_only_gives_errors_until_it_is_writable(self):
        directory = self.make_file_system("ext4", 64)
        machine = Machine(self, directory, directory)
        machine.begin()
        # The kernel refuses to remount while a process can write to one of its files.
        host = machine.start("pause", "open", "get=a", "set=c:3", "pause", "open", "set=d:4",
                             "get=d")
        host.wait_for_pause()
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        host.resume()
        steps = {step.name: step for step in host.wait_for_pause()}
        self.assertFalse(steps["set=c:3"].ok, steps)
        self.assert_right_or_error(steps["get=a"], "1")
        subprocess.run(["mount", "-o", "remount,rw", directory], check=True)
        host.resume()
        self.assertEqual(host.finish()["get=d"].value, "4")
        machine.verify(a="1", b="2", d="4")

    def test_disk_that_shuts_down_under_the_state_gives_errors(self):
        self.require("xfs_io")
        directory = self.make_file_system("ext4", 64)
        machine = Machine(self, tempfile.mkdtemp(dir=directory), self.directory)
        machine.begin()
        host = machine.start("open", "get=a", "pause", "get=a", "set=c:3", "update")
        host.wait_for_pause()
        self.run_or_skip("xfs_io", "-x", "-c", "shutdown", directory)
        host.resume()
        self.assert_right_or_error(host.finish()["get=a"], "1")


class UserTest(EnvironmentTest):
    def test_other_user_reads_what_the_mode_allows(self):
        self.require_root()
        machine = self.machine
        machine.for_other_users()
        machine.begin(options=["mode=0644"])
        steps = machine.run("open", "get=a", "view=b", "set=c:3", "get=a", options=["mode=0644"],
                            user=NOBODY, group=NOBODY, extra_groups=[])
        self.assertEqual((steps["get=a"].value, steps["view=b"].value), ("1", "2"), steps)
        self.assert_error(steps["set=c:3"], {"invalid"})
        self.assertEqual(steps["set=c:3"].errno, errno.EACCES, steps)
        machine.verify(a="1", b="2")

    def test_other_user_is_refused_without_permission(self):
        self.require_root()
        machine = self.machine
        machine.for_other_users()
        machine.begin()
        steps = machine.run("open", "get=a", user=NOBODY, group=NOBODY, extra_groups=[])
        self.assert_error(steps["open"], {"invalid"}, machine.state)
        machine.verify(a="1", b="2")

    def test_host_that_changes_its_user_reads_on(self):
        self.require_root()
        machine = self.machine
        machine.for_other_users()
        machine.begin()
        steps = machine.run("open", "get=a", f"setuid={NOBODY}", "get=b", "view=a", "set=c:3",
                            "update", "get=b", "close")
        self.assertEqual((steps["get=b"].value, steps["view=a"].value), ("2", "1"), steps)
        self.assertFalse(steps["set=c:3"].ok, steps)
        machine.verify(a="1", b="2")

    def test_setuid_program_gives_right_values_or_errors(self):
        self.require_root()
        machine = self.machine
        machine.for_other_users()
        machine.begin()
        os.chmod(machine.host, 0o4755)
        steps = machine.run("open", "get=a", "set=c:3", "get=c", user=NOBODY, group=NOBODY,
                            extra_groups=[])
        self.assert_right_or_error(steps["get=a"], "1")
        self.assert_right_or_error(steps["get=c"], "3")
        machine.verify(a="1", b="2")


class ResourceTest(EnvironmentTest):
    def test_exhausted_descriptors_leave_reads_and_views(self):
        self.machine.begin()
        steps = self.machine.run("open", "get=a", "limit=NOFILE:used", "get=b", "view=a", "set=c:3",
                                 "update", "unlimit=NOFILE", "set=d:4", "get=d")
        self.assertEqual((steps["get=b"].value, steps["view=a"].value), ("2", "1"), steps)
        self.assert_error(steps["set=c:3"], {"limit"})
        self.assertEqual(steps["get=d"].value, "4", steps)
        self.machine.verify(a="1", d="4")

    def test_exhausted_descriptors_from_the_start_are_a_limit(self):
        self.machine.begin()
        for free in range(3, 12):
            with self.subTest(descriptors=free):
                steps = self.machine.run(f"limit=NOFILE:{free}", "open", "get=a", "set=c:3",
                                         "unlimit=NOFILE", "open", "get=b")
                if not steps["open"].ok:
                    self.assert_error(steps["open"], {"limit"}, "Too many open files")
                self.assertEqual(steps["get=b"].value, "2", steps)
        self.machine.verify(a="1", b="2")

    def test_exhausted_address_space_leaves_reads(self):
        self.machine.begin()
        steps = self.machine.run("open", "get=a", "limit=AS:used", "get=b", "set=c:3", "update",
                                 "unlimit=AS", "set=d:4", "get=d")
        self.assertEqual(steps["get=b"].value, "2", steps)
        self.assertEqual(steps["get=d"].value, "4", steps)
        self.machine.verify(a="1", d="4")

    def test_small_address_space_is_used_or_named(self):
        self.machine.begin()
        for mebibytes in (16, 32, 64, 128, 256, 1024, 8192):
            with self.subTest(mebibytes=mebibytes):
                steps = self.machine.run(f"limit=AS:{mebibytes << 20}", "open", "get=a", "set=c:3",
                                         "get=c")
                self.assert_right_or_error(steps["get=a"], "1")
                self.assert_right_or_error(steps["get=c"],
                                           "3" if steps["set=c:3"].ok else "(absent)")
        self.machine.verify(a="1", b="2")

    def test_exhausted_memory_leaves_reads(self):
        self.machine.begin()
        steps = self.machine.run("open", "get=a", "limit=DATA:used", "get=b", "set=c:3", "update",
                                 "unlimit=DATA", "set=d:4", "get=d")
        self.assert_right_or_error(steps["get=b"], "2")
        self.assertEqual(steps["get=d"].value, "4", steps)
        self.machine.verify(a="1", d="4")

    def limited_file_size(self, kibibytes):
        machine = Machine(self, tempfile.mkdtemp(dir=self.directory))
        machine.begin()
        steps = machine.run("open", f"limit=FSIZE:{kibibytes << 10}", "get=a",
                            *(f"set=k{i}:*100000" for i in range(10)), "get=b")
        self.assertEqual((steps["get=a"].value, steps["get=b"].value), ("1", "2"), steps)
        machine.verify(a="1", b="2")

    def test_file_size_limit_is_an_error_and_no_signal(self):
        for kibibytes in (4, 128, 256, 1024, 1536):
            with self.subTest(kibibytes=kibibytes):
                self.limited_file_size(kibibytes)

    def test_file_size_limit_of_nothing_is_an_error_and_no_signal(self):
        self.limited_file_size(0)

    def test_no_more_threads_is_an_error(self):
        self.require_root()
        machine = self.machine
        machine.for_other_users()
        os.chmod(self.directory, 0o777 | 0o1000)
        machine.begin(user=NOBODY, group=NOBODY, extra_groups=[])
        steps = machine.run("limit=NPROC:1", "open", "get=a", "set=c:3", "get=c", "update",
                            "set_async=e:5", "unlimit=NPROC", "set=d:4", "get=d", "set_async=f:6",
                            user=NOBODY, group=NOBODY,
                            extra_groups=[])
        self.assertEqual(steps["get=a"].value, "1", steps)
        self.assert_error(steps["set_async=e:5"], {"limit"}, "thread")
        self.assertEqual(steps["get=d"].value, "4", steps)
        self.assertTrue(steps["set_async=f:6"].ok, steps)
        os.chmod(self.directory, 0o755)
        self.assertEqual(machine.command("check", "--quiet", user=NOBODY, group=NOBODY,
                                         extra_groups=[]).returncode, 0)

    def test_small_stack_is_enough(self):
        self.machine.begin()
        steps = self.machine.run("open", "get=a", "update", "set=c:3", "get=c", "rewrite",
                                 prefix=["sh", "-c", 'ulimit -s 256 && exec "$@"', "sh"])
        self.assertEqual(steps["get=c"].value, "3", steps)
        self.assertTrue(all(step.ok for step in steps.values()), steps)
        self.machine.verify(a="1", c="3")


class DeniedCallTest(EnvironmentTest):
    """System calls that a seccomp filter denies, in a reader, writer, follower and rebuild."""

    def denied(self, call, error, must_work):
        machine = self.machine
        machine.begin()
        host = machine.start("open", "get=a", "view=b", "set=c:3", "get=c", "pause", "update",
                             "get=elsewhere", preexec_fn=deny([call], error))
        steps = {step.name: step for step in host.wait_for_pause()}
        self.assert_right_or_error(steps["get=a"], "1")
        self.assert_right_or_error(steps["view=b"], "2")
        self.assert_right_or_error(steps["get=c"], "3" if steps["set=c:3"].ok else "(absent)")
        machine.change_elsewhere("elsewhere", "5", rewrites=True)
        host.resume()
        steps = host.finish()
        if steps["update"].ok:
            self.assertEqual(steps["get=elsewhere"].value, "5", steps)
        if must_work:
            self.assertTrue(all(step.ok for step in steps.values()), steps)
        # A first state, too.
        new = Machine(self, tempfile.mkdtemp(dir=self.directory), self.directory)
        new.log = machine.log
        steps = new.run("open", "get=a", preexec_fn=deny([call], error))
        self.assert_right_or_error(steps["get=a"], "1")
        if must_work:
            self.assertTrue(steps["open"].ok, steps)
        machine.verify(a="1", b="2", elsewhere="5")


def add_denied_calls():
    # A container runtime answers EPERM, an older kernel ENOSYS. What must work does so without.
    must_work = {"statx", "membarrier", "memfd_create", "madvise", "clone3", "rseq"}
    for call in ("statx", "membarrier", "memfd_create", "madvise", "clone3", "getrandom",
                 "fallocate", "statfs", "rseq", "prlimit64", "fchmod"):
        for error in (errno.EPERM, errno.ENOSYS):
            # The C library falls back from clone3 only after ENOSYS, as kernels before 5.3 answer.
            works = call in must_work and not (call == "clone3" and error == errno.EPERM)

            def test(self, call=call, error=error, works=works):
                self.denied(call, error, works)

            name = f"test_{call}_denied_with_{errno.errorcode[error]}"
            setattr(DeniedCallTest, name, test)


class DescriptorTest(EnvironmentTest):
    """Hosts that close descriptors that are not theirs."""

    def noise_on_closed(self, closed):
        steps = self.machine.run("open", "noise", "get=a", "set=c:3", "noise", "view=c", "update",
                                 "noise", prefix=["sh", "-c", f'exec "$@" {closed}', "sh"])
        self.assertEqual((steps["get=a"].value, steps["view=c"].value), ("1", "3"), steps)
        self.machine.verify(a="1", c="3")

    def test_noise_on_one_or_two_closed_standard_descriptors_does_not_reach_the_state(self):
        self.machine.begin()
        for closed in ("<&-", ">&-", "2>&-", "<&- >&-"):
            with self.subTest(closed=closed):
                self.noise_on_closed(closed)

    def test_noise_on_closed_standard_descriptors_does_not_reach_the_state(self):
        self.machine.begin()
        self.noise_on_closed("<&- >&- 2>&-")

    def test_command_line_with_closed_standard_descriptors_harms_nothing(self):
        self.machine.begin()
        for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            for command in (("get", "a"), ("set", "c", "3"), ("get", "absent"), ("check",),
                            ("update",)):
                with self.subTest(closed=closed, command=command):
                    self.machine.command(*command,
                                         prefix=["sh", "-c", f'exec "$@" {closed}', "sh"])
        self.machine.verify(a="1", b="2", c="3")

    def test_forked_child_reads_and_writes(self):
        self.machine.begin()
        steps = self.machine.run("open", "hold", "fork", "get=a", "set=c:3", "update", "view=c",
                                 "close")
        self.assertEqual((steps["get=a"].value, steps["view=c"].value), ("1", "3"), steps)
        self.machine.verify(a="1", c="3")

    def test_daemon_gives_right_values_or_errors(self):
        self.machine.begin()
        steps = self.machine.run("open", "get=a", "set=c:3", "daemonise", "get=b", "view=c",
                                 "set=d:4", "get=d", "update", "close", "open", "get=a", "set=e:5",
                                 "get=e")
        self.assert_right_or_error(steps["get=b"], "2")
        self.assert_right_or_error(steps["view=c"], "3")
        self.assert_right_or_error(steps["get=e"], "5" if steps["set=e:5"].ok else "(absent)")
        self.machine.verify(a="1", c="3")

    def test_closed_descriptors_give_right_values_or_errors(self):
        for log in ("file", "sqlite"):
            with self.subTest(log=log):
                machine = Machine(self, tempfile.mkdtemp(dir=self.directory), log=log)
                machine.begin()
                steps = machine.run("open", "get=a", "set=c:3", "close_range", "get=b", "view=c",
                                    "set=d:4", "get=d", "update", "close", "open", "set=e:5",
                                    "get=e")
                self.assertEqual(steps["get=b"].value, "2", steps)
                self.assert_right_or_error(steps["view=c"], "3")
                self.assert_right_or_error(steps["get=e"],
                                           "5" if steps["set=e:5"].ok else "(absent)")
                machine.verify(a="1", c="3")

    def test_descriptors_that_the_host_reuses_are_not_written(self):
        for log in ("file", "sqlite"):
            with self.subTest(log=log):
                machine = Machine(self, tempfile.mkdtemp(dir=self.directory), log=log)
                machine.begin()
                precious = f"{machine.directory}/precious"
                content = os.urandom(300_000)
                pathlib.Path(precious).write_bytes(content)
                steps = machine.run("open", "get=a", "set=c:3", "close_range", f"occupy={precious}",
                                    "get=b", "view=c", "set=d:4", "update", "rewrite", "close")
                self.assertEqual(steps["get=b"].value, "2", steps)
                self.assertEqual(pathlib.Path(precious).read_bytes(), content)
                machine.verify(a="1", c="3")

    def test_stopped_reader_does_not_stop_the_writer(self):
        self.machine.begin()
        reader = self.machine.start("open", "hold", "pause", "held=a")
        reader.wait_for_pause()
        os.kill(reader.process.pid, signal.SIGSTOP)
        steps = self.machine.run("open", *(f"set=a:{i}" for i in range(50)), "get=a")
        self.assertEqual(steps["get=a"].value, "49", steps)
        os.kill(reader.process.pid, signal.SIGCONT)
        reader.resume()
        self.assertEqual(reader.finish()["held=a"].value, "1")
        self.machine.verify(a="49", b="2")


add_denied_calls()
if __name__ == "__main__":
    main()
