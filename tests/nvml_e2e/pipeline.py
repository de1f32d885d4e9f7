"""A pipeline process: it meters what it is told to run with ``joulegate.connect()`` over the daemon's real socket.

Run as a script it takes one JSON line a request on standard input (``id``, ``class``, ``gpus`` by UUID, ``after_s`` or
``at_s``, ``for_s``, and ``members`` for a batch) and says on standard output when each really began and stopped, by its
own ``time.monotonic()``. As a module it gives tests ``Pipeline``, which starts it and tells the driver of these edges.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

AGENT = Path(__file__).parents[2] / "agent"


class Pipeline:
    """The process, its requests by id, and a thread that hands their edges to ``driver``. A context manager."""

    def __init__(self, driver, state_dir: Path, environment: dict[str, str], **connect) -> None:
        self.finals: dict[str, dict] = {}
        self.stopped: set[str] = set()
        self._driver, self._gpus = driver, {}
        self._done: dict[str, threading.Event] = {}
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(connect)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": str(AGENT), "JOULEGATE_STATE_DIR": str(state_dir)},
        )
        self._listener = threading.Thread(target=self._listen, name="pipeline", daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._listener.join(5)
            self.process.stdout.close()

    def run(self, request_id: str, power_class: str, gpus: tuple[int, ...], for_s: float, **more: object) -> None:
        """Have a request run for ``for_s``: at once, ``after_s`` from now, or at ``at_s``."""
        self._gpus[request_id], self._done[request_id] = gpus, threading.Event()
        order = {
            "id": request_id,
            "class": power_class,
            "gpus": [self._driver.uuid(gpu) for gpu in gpus],
            "for_s": for_s,
            **more,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def final(self, request_id: str, timeout_s: float = 40.0) -> dict:
        """What the daemon finally said of a request, as the pipeline got it over the socket."""
        assert self._done[request_id].wait(timeout_s), f"{request_id} never became final"
        return self.finals[request_id]

    def _listen(self) -> None:
        for line in self.process.stdout:
            said = json.loads(line)
            request_id = said["id"]
            gpus = self._gpus[request_id]
            if said["is"] == "begun":
                self._driver.start(request_id, said["class"], gpus, said["at_s"])
            elif said["is"] == "stopped":
                self._driver.stop(request_id, gpus, said["at_s"])
                self.stopped.add(request_id)
            else:
                self.finals[request_id] = said
                self._done[request_id].set()


def _serve(connect: dict) -> None:
    import joulegate

    meter = joulegate.connect(**connect)
    saying = threading.Lock()

    def say(**words: object) -> None:
        with saying:
            print(json.dumps(words), flush=True)

    def run(order: dict) -> None:
        members = order.get("members")
        make = meter.request if members is None else lambda *a, **k: meter.batch(members, *a, **k)
        request = make(order["class"], devices=order["gpus"], request_id=order["id"], **order.get("labels", {}))
        time.sleep(max(0.0, order["at_s"] - time.monotonic()))
        with ExitStack() as open_request:
            open_request.enter_context(request)
            say(**{"is": "begun", "class": order["class"], "id": order["id"], "at_s": time.monotonic()})
            time.sleep(order["for_s"])
            stopped_s = time.monotonic()
        say(**{"is": "stopped", "id": order["id"], "at_s": stopped_s})
        try:
            final = request.result(timeout=35)
        except TimeoutError as late:
            say(**{"is": "final", "id": order["id"], "error": str(late)})
            return
        say(
            **{
                "is": "final",
                "id": order["id"],
                "energy_j": final.energy_j,
                "uncertainty_j": final.uncertainty_j,
                "method": final.method and final.method.value,
                "quality": final.quality.value,
                "dropped": meter.dropped,
            }
        )

    threads = []
    for line in sys.stdin:
        order = json.loads(line)
        order.setdefault("at_s", time.monotonic() + order.get("after_s", 0.0))
        threads.append(threading.Thread(target=run, args=(order,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    meter.close()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
