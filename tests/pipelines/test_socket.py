"""The socket between pipelines and the daemon: real sockets, real processes, real forks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest
from tests.pipelines.journal_daemon import ENERGY_MJ_AN_IMAGE, DaemonThread, JournalIngest

from joulegate.metering.entry import Status
from joulegate.metering.span import Member, Outcome, Span, Work
from joulegate.pipelines.courier import Pace
from joulegate.pipelines.meter import Meter
from joulegate.pipelines.socket_client import SocketSink, find_socket
from joulegate.pipelines.socket_server import Limits, SocketFault, SocketInUse, SocketServer, ranges

HERE = Path(__file__).parent
QUICK = Pace(first_retry_s=0.01, slowest_retry_s=0.05)


def until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait for ``condition``; a test that needs it fails when it does not come true."""
    deadline_s = monotonic() + within_s
    while not condition():
        assert monotonic() < deadline_s, "it did not happen"
        sleep(0.002)


def run_requests(sink: SocketSink, ids: list[str]) -> None:
    """Begin and end one request for each id."""
    for request_id in ids:
        now_s = monotonic()
        sink.begin(Span(request_id, (), now_s, members=(Member(request_id, Work(images=2)),)))
        sink.end(request_id, now_s, Outcome.OK)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A short folder for socket files."""
    return tmp_path


@pytest.fixture
def daemon(place: Path) -> Iterator[DaemonThread]:
    """A serving daemon."""
    with DaemonThread(place / "j.sock", place / "journal") as running:
        yield running


@pytest.fixture
def sink(place: Path) -> Iterator[SocketSink]:
    """A sink on the daemon's socket, whether one serves it or not."""
    made = SocketSink(place / "j.sock", {}, QUICK)
    yield made
    made.close()


def client(path: Path) -> socket.socket:
    """A bare connection."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(5)
    connection.connect(os.fspath(path))
    return connection


def say(connection: socket.socket, **message: object) -> None:
    """Send one message of the protocol."""
    connection.sendall(json.dumps({"v": 1, **message}).encode() + b"\n")


def hear(connection: socket.socket) -> dict:
    """The next message, or an empty one when the daemon closed the connection."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            return {}
        line += byte
    return json.loads(line)


class DaemonProcess:
    """The journalling daemon in a process of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it serves."""
        command = [
            sys.executable,
            str(HERE / "journal_daemon.py"),
            str(self.place / "j.sock"),
            str(self.place / "journal"),
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        )
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def process(place: Path) -> Iterator[DaemonProcess]:
    """A daemon that runs in a process of its own, until the test kills it or ends."""
    daemon = DaemonProcess(place)
    daemon.start()
    yield daemon
    daemon.kill()


def test_a_request_gets_provisional_and_final_figures_over_the_socket(daemon: DaemonThread, sink: SocketSink) -> None:
    """A request in this process is metered by the daemon: pending while it runs, final and whole after its end."""
    meter = Meter(sink)
    with meter.request("sdxl", images=4, steps=30, tier="free", tenant="acme") as request:
        assert request.energy_j is None
        until(lambda: request.energy_j is not None)
        assert sink.lookup(request.request_id).status is Status.PENDING
    result = request.result(timeout=10)
    assert (result.energy_j, result.uncertainty_j) == (4 * ENERGY_MJ_AN_IMAGE / 1000, 0.5)
    assert (request.energy_j, request.quality) == (result.energy_j, result.quality)
    assert result.entries[0].devices.keys() == {"GPU-aaaa", "GPU-bbbb"}
    span = daemon.ingest.spans[request.request_id]
    assert (span.model, span.tier, span.tenant, span.work.steps) == ("sdxl", "free", "acme", 30)
    assert sink.dropped == 0


def test_the_process_uses_the_devices_that_cuda_lets_it_see(daemon: DaemonThread, place: Path) -> None:
    """The daemon's devices are narrowed by CUDA_VISIBLE_DEVICES, also for a request that began before the welcome."""
    sink = SocketSink(place / "j.sock", {"CUDA_VISIBLE_DEVICES": "1"}, QUICK)
    meter = Meter(sink)
    first, second = meter.start("m"), meter.start("m", devices=0)
    for request in (first, second):
        request.stop()
        request.result(timeout=10)
        assert daemon.ingest.spans[request.request_id].devices == ("GPU-bbbb",)
    assert meter.start("m", devices="GPU-aaaa").devices == ("GPU-aaaa",)
    assert sink.visible_devices() == ("GPU-bbbb",)
    sink.close()


async def test_a_result_can_be_awaited(daemon: DaemonThread, sink: SocketSink) -> None:
    """An event loop waits for final figures without holding a thread."""
    async with Meter(sink).request("sdxl", images=1) as request:
        pass
    assert (await request.result_async(10)).status is Status.FINAL
    assert daemon.ingest.ends[request.request_id].outcome is Outcome.OK


def test_a_batch_gets_figures_for_each_member(daemon: DaemonThread, sink: SocketSink) -> None:
    """Members of a batch are one span at the daemon, and each has its own entry."""
    members = [{"request_id": "a", "images": 1}, {"request_id": "b", "images": 3}]
    with Meter(sink).batch(members, "sdxl") as batch:
        pass
    result = batch.result(timeout=10)
    assert [entry.energy_mj for entry in result.entries] == [ENERGY_MJ_AN_IMAGE, 3 * ENERGY_MJ_AN_IMAGE]
    assert result.energy_j == 4 * ENERGY_MJ_AN_IMAGE / 1000
    assert daemon.ingest.spans["a"] is daemon.ingest.spans["b"]


def test_threads_share_one_sink(daemon: DaemonThread, sink: SocketSink) -> None:
    """Spans of many threads all arrive, each once, by one courier thread."""
    names = [[f"{thread}-{number}" for number in range(200)] for thread in range(8)]
    threads = [threading.Thread(target=run_requests, args=(sink, ids)) for ids in names]
    for thread in threads:
        thread.start()
    assert sum(thread.name == "joulegate-courier" for thread in threading.enumerate()) <= 1
    for thread in threads:
        thread.join()
    until(lambda: len(daemon.ingest.ends) == 1600)
    assert (daemon.ingest.repeated, sink.dropped) == (0, 0)


def test_a_killed_and_restarted_daemon_loses_and_doubles_nothing(
    place: Path, sink: SocketSink, process: DaemonProcess
) -> None:
    """A daemon killed with -9 again and again while spans flow ends up with each span exactly once."""
    ids = [f"r-{number}" for number in range(3000)]

    def pipeline() -> None:
        for start in range(0, len(ids), 20):
            run_requests(sink, ids[start : start + 20])
            sleep(0.004)

    thread = threading.Thread(target=pipeline)
    thread.start()
    for _ in range(3):
        before = sink.counts.connections
        sleep(0.1)
        process.kill()
        process.start()
        until(lambda before=before: sink.counts.connections > before)
    thread.join()
    until(lambda: all(sink.lookup(i) is not None and sink.lookup(i).status is Status.FINAL for i in ids))
    process.kill()
    records = [json.loads(line) for line in (place / "journal").read_text().splitlines()]
    begun = [record["begin"]["request_id"] for record in records if "begin" in record]
    ended = [record["end"][0] for record in records if "end" in record]
    assert sorted(begun) == sorted(ended) == sorted(ids)
    assert sink.dropped == 0


def test_what_was_sent_and_not_acknowledged_is_sent_again(place: Path, sink: SocketSink) -> None:
    """A daemon that took messages and died before they were durable has them again from its clients."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(place / "j.sock"))
        listener.listen(1)
        run_requests(sink, ["r-1", "r-2"])
        connection, _ = listener.accept()
        with connection:
            assert hear(connection)["type"] == "hello"
            say(connection, type="welcome", devices=[])
            kinds = [hear(connection)["type"] for _ in range(4)]
            say(connection, type="ack", seqs=[[1, 2]])
            until(lambda: len(sink._courier._unacknowledged) == 2)
    assert kinds == ["begin", "end", "begin", "end"]
    with DaemonThread(place / "j.sock", place / "journal") as daemon:
        until(lambda: "r-2" in daemon.ingest.ends)
        assert (list(daemon.ingest.spans), sink.dropped) == (["r-2"], 0)


def test_figures_that_became_final_while_the_daemon_was_away_are_fetched(place: Path) -> None:
    """After a reconnection the client asks again for what it waits for, and gets it."""
    ended = Span("r-1", ("GPU-aaaa",), monotonic(), members=(Member("r-1", Work(images=1)),))
    sink = SocketSink(place / "j.sock", {}, QUICK)
    with DaemonThread(place / "j.sock", place / "journal") as first:
        sink.begin(ended)
        until(lambda: sink.lookup("r-1") is not None)
        until(lambda: not sink._courier._unacknowledged)
    first_line = (place / "journal").read_text()
    (place / "journal").write_text(first_line + json.dumps({"end": ["r-1", monotonic(), "ok"]}) + "\n")
    with DaemonThread(place / "j.sock", place / "journal"):
        assert sink.wait("r-1", 10).status is Status.FINAL
    assert first.server.counts.rejected == 0
    sink.close()


def test_a_dead_daemon_costs_nothing_and_is_told_later_what_was_dropped(place: Path) -> None:
    """Without a daemon the newest messages are kept within bounds, the oldest are counted, and it hears of them."""
    sink = SocketSink(place / "j.sock", {}, Pace(box=10, first_retry_s=0.01, slowest_retry_s=0.05))
    run_requests(sink, [f"r-{number}" for number in range(20)])
    assert (sink.dropped, sink.lookup("r-19"), sink.wait("r-19", 0.01)) == (30, None, None)
    with DaemonThread(place / "j.sock", place / "journal") as daemon:
        until(lambda: len(daemon.ingest.ends) == 5)
        assert sorted(daemon.ingest.ends) == [f"r-{number}" for number in range(15, 20)]
        until(lambda: daemon.ingest.dropped == 30)
        assert daemon.server.counts.dropped_by_clients == 30
    sink.close()


@pytest.mark.parametrize("accepts", [False, True])
def test_a_daemon_that_never_reads_holds_nobody_up(place: Path, accepts: bool) -> None:
    """A hung daemon, before or after its welcome, fills the bounded boxes and nothing else."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(place / "j.sock"))
        listener.listen(1)
        pace = Pace(box=100, unacknowledged=50, unsent_bytes=1024, first_retry_s=0.01, close_s=0.05)
        sink = SocketSink(place / "j.sock", {}, pace)
        run_requests(sink, ["r-0"])
        connection, _ = listener.accept()
        if accepts:
            connection.sendall(b'{"v":1,"type":"welcome","devices":[]}\n')
            until(lambda: sink._courier._welcomed)
            for number in range(20):
                run_requests(sink, [f"early-{number}-{part}" for part in range(10)])
                sleep(QUICK.tick_s / 2)
            assert len(sink._courier._unacknowledged) == 50
        run_requests(sink, [f"r-{number}" for number in range(1, 5000)])
        assert len(sink._courier.box) <= 100
        assert len(sink._courier._unacknowledged) <= 50
        assert sink.dropped >= 9998 - 150
        sink.close()
        connection.close()


def test_a_full_daemon_makes_its_clients_keep_their_messages(place: Path, sink: SocketSink) -> None:
    """While the ingest has no room nothing is lost: it takes the rest when there is room again."""
    with DaemonThread(place / "j.sock", place / "journal", Limits(full_pause_s=0.002), room=7) as daemon:
        ids = [f"r-{number}" for number in range(300)]
        run_requests(sink, ids)
        until(lambda: len(daemon.ingest.ends) == 300)
        assert (list(daemon.ingest.ends), daemon.ingest.repeated, sink.dropped) == (ids, 0, 0)


def test_a_forked_child_sends_its_own_spans_and_none_of_its_parent(daemon: DaemonThread, sink: SocketSink) -> None:
    """After a fork the child has a courier of its own, resends nothing, and does not end its parent's requests."""
    meter = Meter(sink)
    outer = meter.start("parent")
    until(lambda: outer.request_id in daemon.ingest.spans)
    run_requests(sink, [f"parent-{number}" for number in range(50)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads; they are the point here
        child = os.fork()
    if child == 0:
        code = 1
        try:
            outer.stop(Outcome.FAILED)
            with meter.request("child", request_id="child-1"):
                pass
            code = 0 if sink.wait("child-1", 10) is not None else 2
            sink.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    outer.stop()
    until(lambda: len(daemon.ingest.ends) == 52)
    assert daemon.ingest.repeated == 0
    assert daemon.ingest.ends[outer.request_id].outcome is Outcome.OK
    assert daemon.ingest.spans["child-1"].model == "child"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_last_spans_of_a_worker_process_arrive(daemon: DaemonThread, place: Path, method: str) -> None:
    """A multiprocessing worker that ends at once after its request still delivers it."""
    program = f"""
import multiprocessing
from pathlib import Path
from joulegate.pipelines.meter import Meter
from joulegate.pipelines.socket_client import SocketSink

meter = None

def work(path):
    with Meter(SocketSink(Path(path))).request("m", request_id="worker"):
        pass

if __name__ == "__main__":
    worker = multiprocessing.get_context({method!r}).Process(target=work, args=({str(place / "j.sock")!r},))
    worker.start()
    worker.join()
"""
    script = place / "worker.py"
    script.write_text(program)
    subprocess.run(
        [sys.executable, script], check=True, timeout=30, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    until(lambda: "worker" in daemon.ingest.ends)


def test_a_short_program_delivers_at_its_exit(daemon: DaemonThread, place: Path) -> None:
    """A process that only runs one request and ends, also by an error, has it delivered with its outcome."""
    program = (
        "import sys; from pathlib import Path; from joulegate.pipelines.meter import Meter; "
        "from joulegate.pipelines.socket_client import SocketSink\n"
        "with Meter(SocketSink(Path(sys.argv[1]))).request('m', request_id='short'): raise SystemError('boom')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(place / "j.sock")],
        check=False, timeout=30, capture_output=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert b"SystemError: boom" in done.stderr
    until(lambda: "short" in daemon.ingest.ends)
    assert daemon.ingest.ends["short"].outcome is Outcome.FAILED


def test_an_unusable_message_is_rejected_counted_and_forgotten(daemon: DaemonThread, sink: SocketSink) -> None:
    """What the daemon cannot take is not sent for ever: the client hears why and counts it."""
    sink.begin(Span("bad", ("GPU-aaaa",), 5.0, ended_s=1.0))
    sink.begin(Span("early", ("GPU-aaaa",), monotonic() + 100))
    run_requests(sink, ["good"])
    until(lambda: "good" in daemon.ingest.ends)
    until(lambda: sink.counts.rejected == 2)
    assert sink.counts.last_rejection == "started_s: is in the future"
    assert not daemon.ingest.spans.keys() & {"bad", "early"}
    sink.begin(Span("huge", (), 1.0, members=tuple(Member(f"{number:>200}") for number in range(400))))
    until(lambda: sink.dropped == 3)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b'{"v":1,"type":"hello"}\n' + b"x" * 70_000, "line_too_long"),
        (b"[" * 60_000 + b"\n", "not_json"),
        (b'{"v":1,"type":"hello"}\n\xff\xfe\n', "not_json"),
        (b'{"v":1,"type":"hello"}\n{"v":1,"type":"end","seq":1,"request_id":"a","ended_s":NaN}\n', "not_json"),
        (b'{"v":1,"type":"hello"}\n[1]\n', "not_json"),
        (b'{"v":2,"type":"hello"}\n', "version"),
        (b'{"v":1,"type":"begin","seq":1}\n', "no_hello"),
        (b'{"v":1,"type":"hello"}\n{"v":1,"type":"begin","seq":"1"}\n', "no_seq"),
        (b'{"v":1,"type":"hello"}\n{"v":1,"type":"watch","request_ids":[1]}\n', "bad_watch"),
    ],
)
def test_a_hostile_client_is_dropped_and_counted(
    daemon: DaemonThread, sink: SocketSink, sent: bytes, reason: str
) -> None:
    """A client that breaks the protocol is told why in one line and dropped; others go on."""
    with client(sink.path) as hostile:
        hostile.sendall(sent)
        messages = []
        while message := hear(hostile):
            messages.append(message)
    assert messages[-1]["type"] == "error"
    assert "\n" not in messages[-1]["why"]
    assert daemon.server.counts.refused_clients == {reason: 1}
    run_requests(sink, ["other"])
    assert sink.wait("other", 10) is not None


def test_a_client_that_does_not_read_is_dropped_and_delays_nobody(place: Path, sink: SocketSink) -> None:
    """A client that sends and never reads loses its connection when its bounded buffer is full."""
    with (
        DaemonThread(place / "j.sock", place / "journal", Limits(unsent_bytes=10_000)) as daemon,
        client(place / "j.sock") as slow,
    ):
        say(slow, type="hello")
        for number in range(20_000):
            if daemon.server.counts.refused_clients:
                break
            try:
                say(slow, type="end", seq=number, request_id="x" * 300, ended_s=1.0)
            except OSError:
                break
        until(lambda: daemon.server.counts.refused_clients == {"does_not_read": 1})
        run_requests(sink, ["other"])
        assert sink.wait("other", 10) is not None


def test_silent_and_surplus_connections_are_bounded(place: Path) -> None:
    """A connection that says nothing is closed after a while, and one too many at once."""
    limits = Limits(connections=2, hello_s=0.1)
    with DaemonThread(place / "j.sock", place / "journal", limits) as daemon:
        with client(place / "j.sock") as silent, client(place / "j.sock") as greeted:
            say(greeted, type="hello")
            assert hear(greeted)["type"] == "welcome"
            with client(place / "j.sock") as surplus:
                assert hear(surplus)["type"] == "error"
            assert hear(silent)["type"] == "error"
        assert daemon.server.counts.refused_clients == {"too_many_connections": 1, "no_hello": 1}


async def test_the_socket_is_for_owner_and_group_and_goes_with_the_daemon(place: Path) -> None:
    """The socket file has mode 0660 while it is served, and is removed after."""
    server = SocketServer(place / "j.sock", JournalIngest(place / "journal"))
    await server.start()
    assert (place / "j.sock").stat().st_mode & 0o777 == 0o660
    await server.close()
    assert not (place / "j.sock").exists()


async def test_a_stale_socket_file_is_taken_over_and_a_live_one_is_not(place: Path) -> None:
    """A file that nobody answers on is replaced; where a daemon answers, a second one says so and leaves it alone."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(place / "j.sock"))
    first = SocketServer(place / "j.sock", JournalIngest(place / "journal"))
    await first.start()
    with pytest.raises(SocketInUse) as fault:
        await SocketServer(place / "j.sock", JournalIngest(place / "other")).start()
    assert str(place / "j.sock") in str(fault.value)
    assert "\n" not in str(fault.value)
    assert find_socket({"JOULEGATE_SOCKET": str(place / "j.sock")}) == place / "j.sock"
    await first.close()


@pytest.mark.parametrize("name", ["missing/j.sock", "x" * 120, "plain"])
async def test_a_place_where_no_socket_can_be_is_one_clear_line(place: Path, name: str) -> None:
    """A missing folder, a path too long for a socket and a plain file are named, and the file stays."""
    (place / "plain").write_text("mine")
    with pytest.raises(SocketFault) as fault:
        await SocketServer(place / name, JournalIngest(place / "journal")).start()
    assert str(fault.value).startswith(f"socket {place / name}: ")
    assert "JOULEGATE_SOCKET" in str(fault.value)
    assert (place / "plain").read_text() == "mine"


def test_the_socket_is_looked_for_in_the_documented_order(place: Path) -> None:
    """$JOULEGATE_SOCKET comes before $JOULEGATE_STATE_DIR, and a file that nobody answers on does not count."""
    (place / "state").mkdir()
    own, state = place / "own.sock", place / "state" / "joulegate.sock"
    environ = {"JOULEGATE_SOCKET": str(own), "JOULEGATE_STATE_DIR": str(state.parent)}
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.bind(os.fspath(own))
        second.bind(os.fspath(state))
        second.listen()
        assert find_socket(environ) == state
        first.listen()
        assert find_socket(environ) == own
        assert find_socket({"JOULEGATE_STATE_DIR": str(state.parent)}) == state


def test_figures_are_kept_within_bounds(daemon: DaemonThread, place: Path) -> None:
    """A long-lived pipeline keeps the figures of its newest requests and forgets the oldest."""
    sink = SocketSink(place / "j.sock", {}, Pace(figures=10))
    run_requests(sink, [f"r-{number}" for number in range(40)])
    assert sink.wait("r-39", 10) is not None
    assert sink.lookup("r-0") is None
    assert len(sink._figures) == 10
    assert len(daemon.ingest.ends) == 40
    sink.close()


def test_after_close_nothing_is_sent_and_everything_is_counted(daemon: DaemonThread, sink: SocketSink) -> None:
    """A closed sink counts what it is given, can be closed again, and still knows its figures."""
    run_requests(sink, ["r-1"])
    assert sink.wait("r-1", 10) is not None
    sink.close()
    sink.close()
    run_requests(sink, ["r-2"])
    assert (sink.dropped, sink.lookup("r-1").status) == (2, Status.FINAL)
    assert "r-2" not in daemon.ingest.spans


def test_acknowledged_numbers_become_ranges() -> None:
    """Numbers in any order become the fewest closed ranges."""
    assert ranges([3, 1, 2, 7, 9, 8, 20]) == [[1, 3], [7, 9], [20, 20]]
    assert ranges([]) == []


def test_a_stopped_daemon_is_survived_and_caught_up_with(sink: SocketSink, process: DaemonProcess) -> None:
    """A daemon that is stopped (SIGSTOP) and goes on later gets every span once."""
    run_requests(sink, ["before"])
    assert sink.wait("before", 10) is not None
    process.process.send_signal(signal.SIGSTOP)
    ids = [f"r-{number}" for number in range(2000)]
    run_requests(sink, ids)
    process.process.send_signal(signal.SIGCONT)
    until(lambda: all(sink.lookup(i) is not None and sink.lookup(i).status is Status.FINAL for i in ids))
    assert sink.dropped == 0
