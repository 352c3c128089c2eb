"""The example service, as its clients see it while its database and its workers fail.

    python3 tests/examples/service_test.py WHYCACHE EXAMPLE_SERVICE [unittest arguments]

Clients send requests all the time. Meanwhile the database is paused, stopped, killed and started
again, and workers are killed. The test prints the longest time of each kind of request.

Times are those that the clients measure, so they include what the machine makes any process wait.
A probe measures that: it sleeps briefly again and again, and takes the longest delay. Requests may
take longer than promised by twice that, and by a quarter of a second.
"""

import collections
import contextlib
import http.client
import json
import os
import pathlib
import random
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cli"))

import servers  # noqa: E402
import support  # noqa: E402

WORKERS = 3
DEADLINE_MS = 400
WRITERS, CHANGERS, READERS = 3, 2, 3
PROMISED_S = 0.05  # how much longer than its deadline a call of the library may take
_service = None

Answer = collections.namedtuple("Answer", "status text headers seconds")


class Service:
    """The service, and requests to it."""

    def __init__(self, test, log, *options):
        self.test = test
        self.errors = open(f"{test.directory}/service.log", "w+")
        test.addCleanup(self.errors.close)
        self.process = subprocess.Popen(
            [
                _service,
                *("--log", log),
                *("--state", f"{test.directory}/service.state"),
                *("--port", "0"),
                *("--workers", str(WORKERS)),
                *("--update-interval-ms", "100"),
                *("--stale-after-ms", "1000"),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=test.machine.environment(),
        )
        test.addCleanup(support.Machine.end, self.process)
        self.port = int(self.process.stdout.readline().rsplit(b":", 1)[1])

    def request(self, method, path, body=None, headers=None):
        """Returns the answer. Throws OSError or HTTPException if a worker died with the request."""
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read().decode()
        return Answer(response.status, text, response.headers, time.monotonic() - began)

    def get(self, path):
        return self.request("GET", path)

    def put(self, path, body, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("PUT", path, body, names)

    def add_products(self):
        lamp = self.put("/catalogue/lamp", '{"price": 40, "stock": 0}', If_None_Match="*")
        desk = self.put("/catalogue/desk", '{"price": 400}', If_None_Match="*")
        self.test.assertEqual((lamp.status, desk.status), (200, 200), lamp.text + desk.text)

    def wait_for_status(self, status):
        """Waits until every worker has it. Returns how long that took, in seconds."""
        began = time.monotonic()

        def all_have_it():
            answers = self.from_every_worker("/health")
            return {json.loads(answer.text)["status"] for answer in answers} == {status}

        self.test.wait_until(all_have_it)
        return time.monotonic() - began

    def metrics(self):
        lines = self.get("/metrics").text.splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    def from_every_worker(self, path):
        """Returns the answer of each worker."""
        answers = {}

        def ask():
            answer = self.get(path)
            answers[answer.headers["Worker"]] = answer
            return len(answers) == WORKERS

        self.test.wait_until(ask)
        return answers.values()

    def worker_processes(self):
        master = self.process.pid
        children = pathlib.Path(f"/proc/{master}/task/{master}/children").read_text()
        return [int(process) for process in children.split()]

    def log_text(self):
        self.errors.seek(0)
        return self.errors.read()


class Probe:
    """Measures how long this machine delays a thread that wants to run."""

    def __init__(self):
        self.longest = 0.0

    def run(self, stop):
        while not stop.is_set():
            began = time.monotonic()
            time.sleep(0.005)
            self.longest = max(self.longest, time.monotonic() - began - 0.005)

    def allowance(self):
        return 0.25 + 2 * self.longest


class Load:
    """Clients that send requests until they are stopped, and check each answer by itself."""

    def __init__(self, service):
        self.service = service
        self.probe = Probe()
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.longest = collections.Counter()  # seconds, by kind of request
        self.slowest = {}  # the headers of that answer
        self.counts = collections.Counter()  # by kind of request and status
        self.faults = []
        self.broken = 0  # requests that a killed worker did not answer
        self.acknowledged = collections.defaultdict(list)  # key: numbers
        self.refused = collections.defaultdict(list)
        self.uncertain = collections.defaultdict(list)
        self.changes = collections.Counter()  # of the stock, by outcome
        actions = [self.probe.run]
        actions += [self.client(self.write, f"w{i}") for i in range(WRITERS)]
        actions += [self.client(self.change_stock) for _ in range(CHANGERS)]
        actions += [self.client(self.read_flag) for _ in range(READERS)]
        actions += [self.client(self.read_catalogue), self.client(self.read_operation)]
        self.threads = [threading.Thread(target=action, args=[self.stopped]) for action in actions]
        for thread in self.threads:
            thread.start()
        service.test.addCleanup(self.stop)

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def client(self, action, *arguments):
        def run(stopped):
            while not stopped.is_set():
                try:
                    action(*arguments)
                except Exception as error:  # a client must go on, and the test must fail
                    self.faults.append(f"{action.__name__}: {error!r}")
                time.sleep(0.002)

        return run

    def expect(self, holds, message):
        if not holds:
            self.faults.append(message)

    def send(self, kind, method, path, body=None, headers=None):
        """Returns the answer, or None if there is none because a worker was killed."""
        try:
            answer = self.service.request(method, path, body, headers)
        except (ConnectionError, http.client.HTTPException):
            with self.lock:
                self.broken += 1
            return None
        with self.lock:
            if answer.seconds > self.longest[kind]:
                self.longest[kind] = answer.seconds
                self.slowest[kind] = answer.headers
            self.counts[kind, answer.status] += 1
        return answer

    def outcome(self, answer):
        """What a client knows of its write: ok, no, or unknown."""
        if answer is None:
            return "unknown"
        if answer.status == 200:
            return "ok"
        written = json.loads(answer.text)["written"]
        self.expect("127.0.0.1" not in answer.text, f"names the server: {answer.text}")
        if answer.status == 503:
            self.expect(written == "no" and answer.headers["Retry-After"], answer.text)
        else:
            self.expect(answer.status == 504 and written == "unknown", answer)
        return written

    def write(self, key):
        """Sets a key that no other client sets to the next number."""
        outcomes = {"ok": self.acknowledged, "no": self.refused, "unknown": self.uncertain}
        number = sum(len(of[key]) for of in outcomes.values()) + 1
        path = f"/flags/{key}?deadline_ms={DEADLINE_MS}"
        outcome = self.outcome(self.send("write", "PUT", path, str(number)))
        outcomes[outcome][key].append(number)

    def change_stock(self):
        """Adds one to a number in a product, if it has not changed meanwhile."""
        lamp = self.send("read catalogue", "GET", "/catalogue/lamp")
        if lamp is None:
            return
        fields = json.loads(lamp.text)
        fields["stock"] += 1
        answer = self.send(
            "write",
            "PUT",
            f"/catalogue/lamp?deadline_ms={DEADLINE_MS}",
            json.dumps(fields),
            {"If-Match": lamp.headers["ETag"]},
        )
        if answer is not None and answer.status == 412:
            outcome = "changed"
        else:
            outcome = self.outcome(answer)
        with self.lock:
            self.changes[outcome] += 1

    def read_flag(self):
        """Reads what the last acknowledged write set, or something newer."""
        key = f"w{random.randrange(WRITERS)}"
        acknowledged = self.acknowledged[key][-1:]
        answer = self.send("read flag", "GET", f"/flags/{key}")
        if answer is not None and acknowledged:
            is_current = answer.status == 200 and int(answer.text) >= acknowledged[0]
            self.expect(is_current, f"{key}: acknowledged {acknowledged}, read {answer}")

    def read_catalogue(self):
        answer = self.send("read catalogue", "GET", "/catalogue?price_max=50")
        if answer is not None:
            products = json.loads(answer.text)["products"]
            self.expect(set(products) == {"lamp"}, f"products: {answer.text}")

    def read_operation(self):
        health = self.send("health", "GET", "/health")
        metrics = self.send("metrics", "GET", "/metrics")
        for answer in (health, metrics):
            self.expect(answer is None or answer.status == 200, f"{answer}")


class ServiceTest(support.CliTest):
    def test_flags_are_set_and_read_in_every_worker(self):
        service = Service(self, self.log)
        service.wait_for_status("ok")
        self.assertEqual(service.get("/flags/dark").status, 404)
        answer = service.put("/flags/dark", "on")
        self.assertEqual((answer.status, json.loads(answer.text)), (200, {"update": 1}))
        self.assertEqual({a.text for a in service.from_every_worker("/flags/dark")}, {"on"})
        self.machine.ok("set", "flags/dark", "off")  # another machine
        self.wait_until(lambda: service.get("/flags/dark").text == "off")
        for query in ("0", "10001", "soon", ""):
            answer = service.put(f"/flags/dark?deadline_ms={query}", "on")
            self.assertEqual((answer.status, json.loads(answer.text)["error"]), (400, "invalid"))
        answer = service.put("/flags/" + 1025 * "k", "on")
        self.assertEqual(answer.status, 400, answer.text)
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        for body, headers in ((1_500_000 * "x", {}), (9_000 * "x", form)):
            answer = service.put("/flags/dark", body, **headers)
            self.assertEqual(answer.status, 413)
            self.assertEqual(json.loads(answer.text)["written"], "no")
            self.assertIn("1 MiB, and 8 KiB", json.loads(answer.text)["message"])
        self.assertEqual(service.put("/flags/dark", 9_000 * "x", Content_Type="text/plain").status,
                         200)
        answer = service.get("/nowhere")
        self.assertEqual((answer.status, json.loads(answer.text)), (404, {"error": "not_found"}))

    def test_products_are_replaced_only_in_the_version_that_was_read(self):
        service = Service(self, self.log)
        service.wait_for_status("ok")
        service.add_products()
        for lamp in service.from_every_worker("/catalogue/lamp"):
            self.assertEqual(lamp.text, '{"price": 40, "stock": 0}')
            self.assertEqual(lamp.headers["ETag"], '"1"')
        self.assertEqual(service.put("/catalogue/lamp", '{"price": 1}').status, 428)
        for condition in ({"If_None_Match": "*"}, {"If_Match": '"2"'}):
            answer = service.put("/catalogue/lamp", '{"price": 1}', **condition)
            self.assertEqual(answer.status, 412)
        answer = service.put("/catalogue/lamp", '{"price": 45}', If_Match='"1"')
        self.assertEqual((answer.status, answer.headers["ETag"]), (200, '"3"'))
        cheap = json.loads(service.get("/catalogue?price_max=45").text)
        self.assertEqual(cheap, {"update": 3, "invalid": 0, "products": {"lamp": {"price": 45}}})

    def test_values_that_are_no_products_are_refused_or_left_out(self):
        service = Service(self, self.log)
        service.wait_for_status("ok")
        service.add_products()
        for text in ("{", "[]", '{"price": "much"}'):
            answer = service.put("/catalogue/lamp", text, If_Match='"1"')
            self.assertEqual(answer.status, 422, answer.text)
            self.assertIn("number `price`", json.loads(answer.text)["message"])
        self.machine.ok("set", "catalogue/lamp", "not by this service")
        self.wait_until(lambda: json.loads(service.get("/catalogue").text)["update"] == 3)
        catalogue = json.loads(service.get("/catalogue").text)
        self.assertEqual((catalogue["invalid"], set(catalogue["products"])), (1, {"desk"}))

    def test_metrics_are_those_of_all_workers(self):
        service = Service(self, self.log)
        service.wait_for_status("ok")
        for _ in range(20):
            service.put("/flags/a", "1")
        service.get("/flags/absent")
        self.wait_until(lambda: service.metrics()["whycache_updates_written_total"] == "20")
        for worker in service.from_every_worker("/metrics"):
            for line in worker.text.splitlines():
                self.assertRegex(line, r'^(# TYPE )?[a-z_]+(\{[a-z]+="\w+",?.*\})? [\w.+-]+$')
            self.assertIn('service_requests_total{route="flags",status="200"} 20', worker.text)
            self.assertIn('service_requests_total{route="flags",status="404"} 1', worker.text)
            self.assertIn("whycache_applied_id 20\n", worker.text)
            self.assertIn("whycache_log_up 1\n", worker.text)

    def test_reads_go_on_while_all_writes_that_are_allowed_wait(self):
        service = Service(self, self.log, "--threads", "3", "--writes-max", "2")
        service.wait_for_status("ok")
        service.put("/flags/a", "1")
        database = sqlite3.connect(self.database)
        self.addCleanup(database.close)
        database.execute("BEGIN EXCLUSIVE")
        answers = []

        def write():
            answers.append(service.put("/flags/a?deadline_ms=1500", "2"))

        writers = [threading.Thread(target=write) for _ in range(10 * WORKERS)]
        for writer in writers:
            writer.start()
        reads = 0
        while any(writer.is_alive() for writer in writers):
            read = service.get("/flags/a")
            self.assertEqual(read.text, "1")
            self.assertLess(read.seconds, 1)
            reads += 1
        for writer in writers:
            writer.join()
        self.assertGreater(reads, 10)
        self.assertEqual({answer.status for answer in answers}, {503})
        waited = [answer for answer in answers if "too many writes" not in answer.text]
        self.assertIn(len(waited), range(1, 2 * WORKERS + 1))
        for answer in waited:
            self.assertLess(answer.seconds, 1.5 + PROMISED_S + 1)  # one second of scheduling delays
        database.rollback()
        service.wait_for_status("ok")
        self.assertEqual(service.put("/flags/a", "3").status, 200)

    def test_malformed_requests_do_not_end_a_worker(self):
        service = Service(self, self.log)
        service.wait_for_status("ok")
        workers = service.worker_processes()
        for request in (
            b"\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"GET  HTTP/1.1\r\n\r\n",
            b"GET /flags/%zz%00%ff HTTP/1.1\r\n\r\n",
            b"GET /flags/" + 8000 * b"x" + b" HTTP/1.1\r\n\r\n",
            b"GET /" + 100_000 * b"x" + b" HTTP/1.1\r\n\r\n",
            b"PUT /flags/a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"PUT /flags/%ff HTTP/1.1\r\nIf-Match: \xff\r\nContent-Length: 1\r\n\r\n\xff",
            b"PUT /catalogue/a HTTP/1.1\r\nIf-Match: \"\xff\"\r\nContent-Length: 0\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):  # not all of the request was read
                    while client.recv(1 << 16):
                        pass
        service.wait_for_status("ok")
        self.assertEqual(service.worker_processes(), workers, service.log_text())

    def test_full_disk_of_a_machine_is_said_to_clients_and_to_the_operator(self):
        service = Service(self, self.log)
        service.wait_for_status("ok")
        service.put("/flags/a", "1")
        processes = service.worker_processes()
        limits = [resource.prlimit(process, resource.RLIMIT_FSIZE) for process in processes]
        size = os.path.getsize(f"{self.directory}/service.state")
        for process, (_, most) in zip(processes, limits):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (size, most))
        answers = []
        while not answers or answers[-1].status != 507:
            self.assertLess(len(answers), 100)
            path = f"/flags/large{len(answers)}?deadline_ms=500"
            answers.append(service.put(path, 30_000 * "x", Content_Type="text/plain"))
        self.assertEqual({answer.status for answer in answers[:-1]} - {200}, {504})
        full = json.loads(answers[-1].text)
        self.assertEqual((full["error"], full["written"]), ("limit", "no"))
        self.assertTrue(answers[-1].headers["Retry-After"])
        for answer in answers:
            self.assertNotIn("service.state", answer.text)
        self.assertEqual(service.get("/flags/a").text, "1")
        service.wait_for_status("degraded")
        for health in service.from_every_worker("/health"):
            self.assertIn("state is full", json.loads(health.text)["update_error"])
        self.assertIn("PUT /flags/large", service.log_text())
        for process, limit in zip(processes, limits):
            resource.prlimit(process, resource.RLIMIT_FSIZE, limit)
        service.wait_for_status("ok")
        # One worker has brought the state up to date. The others notice when they update next.
        self.wait_until(lambda: not any("update_error" in health.text
                                        for health in service.from_every_worker("/health")))
        self.assertEqual(service.get(f"/flags/large{len(answers) - 2}").status, 200)

    def test_requests_in_progress_are_answered_before_the_service_ends(self):
        service = Service(self, self.log)
        service.wait_for_status("ok")
        database = sqlite3.connect(self.database)
        self.addCleanup(database.close)
        database.execute("BEGIN EXCLUSIVE")
        answers = []
        writer = threading.Thread(
            target=lambda: answers.append(service.put("/flags/a?deadline_ms=1000", "1"))
        )
        writer.start()
        time.sleep(0.3)
        service.process.terminate()
        writer.join()
        self.assertEqual([answer.status for answer in answers], [503])
        self.assertEqual(service.process.wait(timeout=20), 0, service.log_text())

    def test_workers_end_if_the_master_is_killed(self):
        service = Service(self, self.log)
        service.wait_for_status("ok")
        service.process.kill()

        def is_closed():
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", service.port)) != 0

        self.wait_until(is_closed)

    def test_service_starts_without_its_database_and_says_so(self):
        service = Service(self, f"mysql://flags@127.0.0.1:{servers.free_port()}/flags")
        health = service.get("/health")
        if "built without" in service.log_text():
            self.skipTest("the library was built without the mysql log")
        self.assertEqual((health.status, json.loads(health.text)["status"]), (503, "starting"))
        self.wait_until(lambda: "127.0.0.1" in service.get("/health").text)
        for answer in (service.get("/flags/a"), service.put("/flags/a?deadline_ms=200", "1")):
            self.assertEqual(answer.status, 503, answer.text)
            self.assertEqual(answer.headers["Retry-After"], "1")
            self.assertEqual(json.loads(answer.text)["error"], "unavailable")
        self.assertEqual(service.get("/metrics").status, 200)

    def test_mistakes_in_settings_end_the_master(self):
        taken = Service(self, self.log).port
        pathlib.Path(f"{self.directory}/a file").touch()
        for options, message in (
            (["--log", "nosuch://log"], "nosuch"),
            (["--log", f"sqlite://{self.directory}/absent/log.db"], "absent"),
            (["--log", f"file://{self.directory}/a%20file"], "a file"),
            (["--log", self.log, "--workers", "none"], "--workers takes a number"),
            (["--log", self.log, "--worker", "1"], "unknown option: --worker"),
            (["--log", self.log, "--port", str(taken)], f"cannot listen on 127.0.0.1:{taken}"),
            ([], "no log given"),
        ):
            state = ["--state", f"{self.directory}/other.state"] if options else []
            environment = self.machine.environment(WHYCACHE_LOG=None)
            done = subprocess.run([_service, *options, *state], env=environment, timeout=60,
                                  capture_output=True)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(message, done.stderr.decode())

    def test_help_names_every_option(self):
        source = pathlib.Path(__file__).resolve().parents[2] / "examples/service/settings.cc"
        options = set(re.findall(r'option == "(--[a-z-]+)"', source.read_text()))
        for help_option in ("--help", "-h"):
            done = subprocess.run([_service, "--port", help_option], timeout=60,
                                  capture_output=True, check=True)
            self.assertEqual(set(re.findall(r"^  (--[a-z-]+) ", done.stdout.decode(), re.M)),
                             options)


class ServiceOutageTest(support.CliTest):
    def test_service_keeps_its_promises_while_database_and_workers_fail(self):
        database = self.database_server()
        log = f"mysql://flags:secret@127.0.0.1:{database.port}/flags"
        service = Service(self, log)
        service.wait_for_status("ok")
        service.add_products()
        load = Load(service)
        kills = 0

        def kill_workers(processes):
            for process in processes:
                os.kill(process, signal.SIGKILL)

        def kill_one_worker():
            kill_workers(random.sample(service.worker_processes(), 1))

        for begin, end, seconds in (
            (database.pause, database.resume, 2),
            (database.stop, database.restart, 0.5),
            (database.kill, database.restart, 0.5),
        ):
            time.sleep(0.5)
            kill_one_worker()
            time.sleep(0.3)
            begin()
            degraded = service.wait_for_status("degraded")
            kill_one_worker()
            kills += 2
            time.sleep(seconds)
            end()
            recovered = service.wait_for_status("ok")
            print(f"{begin.__name__}: degraded after {degraded:.1f} s, ok after {recovered:.1f} s")
        time.sleep(0.5)
        kill_workers(service.worker_processes())
        kills += 1
        self.wait_until(lambda: len(service.worker_processes()) == WORKERS)
        time.sleep(0.5)
        load.stop()

        self.report(load)
        self.assertEqual(load.faults, [])
        self.assertLessEqual(load.broken, kills * (len(load.threads) - 1))
        self.check_times(load)
        self.check_outcomes(service, load, self.another_machine(log=log))
        service.process.terminate()
        self.assertEqual(service.process.wait(timeout=20), 0, service.log_text())
        database.kill()
        last = load.acknowledged["w0"][-1]
        service = Service(self, log)
        for answer in service.from_every_worker("/flags/w0"):
            self.assertGreaterEqual(int(answer.text), last)
        service.wait_for_status("degraded")

    def database_server(self):
        try:
            return servers.Mariadb(self)
        except unittest.SkipTest as reason:
            print("NOT TESTED:", reason)
            raise

    def report(self, load):
        for kind, seconds in sorted(load.longest.items()):
            statuses = {status: n for (of, status), n in sorted(load.counts.items()) if of == kind}
            headers = load.slowest[kind]
            print(f"{kind}: at most {1000 * seconds:.0f} ms, answers {statuses}")
            print(f"  the slowest: worker {headers['Worker']}, there {headers['Server-Timing']}")
        print(f"unanswered because a worker was killed: {load.broken}")
        print(f"longest delay of the machine: {1000 * load.probe.longest:.0f} ms", flush=True)

    def check_times(self, load):
        for kind, seconds in load.longest.items():
            promised = DEADLINE_MS / 1000 + PROMISED_S if kind == "write" else 0
            self.assertLess(seconds, promised + load.probe.allowance(), kind)

    def check_outcomes(self, service, load, other_machine):
        """Compares what clients were told with the log, and with what each worker has."""
        written = collections.defaultdict(list)
        for update in other_machine.ok("log", "--json", "--values").json_lines:
            for change in update["changes"]:
                written[change["key"]].append(change["value"])
        for key in load.acknowledged:
            numbers = [int(value) for value in written[f"flags/{key}"]]
            self.assertEqual(numbers, sorted(set(numbers)), f"{key}: written out of order or twice")
            self.assertEqual(set(load.acknowledged[key]) - set(numbers), set(), f"{key}: lost")
            self.assertEqual(set(load.refused[key]) & set(numbers), set(), f"{key}: refused")
            for answer in service.from_every_worker(f"/flags/{key}"):
                self.assertEqual(int(answer.text), numbers[-1], key)
        stock = json.loads(written["catalogue/lamp"][-1])["stock"]
        self.assertGreaterEqual(stock, load.changes["ok"])
        self.assertLessEqual(stock, load.changes["ok"] + load.changes["unknown"])
        for answer in service.from_every_worker("/catalogue/lamp"):
            self.assertEqual(json.loads(answer.text)["stock"], stock)
        failed = {status for (kind, status) in load.counts if kind == "write"} - {200, 412}
        self.assertLessEqual(failed, {503, 504})
        self.assertGreater(len(failed), 0, "no write failed during the outages")


def main():
    global _service
    if len(sys.argv) < 3 or not os.access(sys.argv[2], os.X_OK):
        sys.exit(f"usage: {sys.argv[0]} WHYCACHE EXAMPLE_SERVICE [unittest arguments]")
    _service = os.path.abspath(sys.argv.pop(2))
    support.main()


if __name__ == "__main__":
    main()
