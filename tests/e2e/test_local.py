"""``import joulegate`` in a pipeline's own process, with no daemon: it never raises, ends soon and says nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.e2e.service import Service, environment


def run_script(script: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A pipeline's program, with every place where a socket might be kept away from the machine's own."""
    file = tmp_path / "pipeline.py"
    file.write_text(textwrap.dedent(script))
    home = {
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "JOULEGATE_SOCKET": str(tmp_path / "none"),
    }
    command = [sys.executable, "-X", "dev", "-W", "ignore", str(file)]
    return subprocess.run(
        command, env=environment(**{**home, **env}), capture_output=True, text=True, timeout=60, check=False
    )


def test_figures_without_a_daemon(tmp_path: Path) -> None:
    """A request has a provisional figure at its exit and a final one soon after, labelled by its source."""
    done = run_script(
        """
        import time, joulegate
        meter = joulegate.connect()
        time.sleep(1.0)
        with meter.request("sdxl", images=4, steps=30, width=1024, height=1024, tier="free", tenant="acme") as r:
            time.sleep(1.2)
        assert r.energy_j > 0 and r.uncertainty_j > 0 and r.quality == "simulated", (r.energy_j, r.quality)
        final = r.result(timeout=5)
        assert final.status == "final" and final.quality == "simulated"
        assert 100 < final.energy_j < 1500 and final.uncertainty_j > 0, final
        assert r.energy_j == final.energy_j
        print("ok")
        """,
        tmp_path,
        JOULEGATE_SOURCE="twin",
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_the_best_sensor_of_this_machine(tmp_path: Path) -> None:
    """With no source named, figures come from what this machine has, and their quality says how good that is."""
    done = run_script(
        """
        import time, joulegate
        meter = joulegate.connect()
        time.sleep(0.7)
        with meter.request("m") as r:
            time.sleep(1.0)
        final = r.result(timeout=8)
        print(final.status, final.quality, final.energy_j is not None)
        """,
        tmp_path,
    )
    assert done.stderr == ""
    status, quality, known = done.stdout.split()
    assert status == "final"
    assert known == "True"
    assert quality in ("measured", "apportioned", "modelled", "default")


def test_no_sensor_at_all(tmp_path: Path) -> None:
    """Where no source can be used, and where the settings are wrong, requests run, have no figures and are counted."""
    script = """
        import joulegate
        meter = joulegate.connect()
        with meter.request("m") as r:
            pass
        assert r.energy_j is None and r.quality is None
        try:
            r.result(timeout=0.1)
        except TimeoutError:
            print("ok", meter.dropped)
        """
    for env in ({"JOULEGATE_SOURCE": "replay:/nowhere"}, {"JOULEGATE_SOURCE": "nonsense"}):
        done = run_script(script, tmp_path, **env)
        assert (done.stdout, done.stderr, done.returncode) == ("ok 1\n", "", 0)


def test_wrapped_callables(tmp_path: Path) -> None:
    """``wrap`` returns what the callable returned, raises what it raised, and records both."""
    done = run_script(
        """
        import asyncio, joulegate
        def pipe(prompt, num_inference_steps=4):
            if not prompt:
                raise KeyError("prompt")
            return ["image", prompt]
        async def slow(prompt):
            return prompt * 2
        wrapped = joulegate.wrap(pipe)
        assert wrapped("a", num_inference_steps=2) == ["image", "a"]
        try:
            wrapped("")
        except KeyError as error:
            assert error.args == ("prompt",)
        assert asyncio.run(joulegate.wrap(slow)("b")) == "bb"
        print("ok")
        """,
        tmp_path,
        JOULEGATE_SOURCE="twin",
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_the_end_of_the_process_is_quick_and_silent(tmp_path: Path) -> None:
    """A program with an open request and a thread still in one ends within two seconds and prints nothing."""
    done = run_script(
        """
        import atexit, threading, time, joulegate
        atexit.register(lambda: print("ended in time" if time.monotonic() - at_s < 2 else "late"))
        meter = joulegate.connect()
        open_request = meter.start("never ended")
        def work():
            with meter.request("in a thread"):
                time.sleep(60)
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.5)
        at_s = time.monotonic()
        """,
        tmp_path,
        JOULEGATE_SOURCE="twin",
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ended in time\n", "", 0)


def test_a_forked_child_is_harmless(tmp_path: Path) -> None:
    """A forked child's requests cost nothing, have no figures, and neither child nor parent hangs or complains."""
    done = run_script(
        """
        import os, time, joulegate
        meter = joulegate.connect()
        with meter.request("before"):
            time.sleep(0.3)
        child = os.fork()
        if child == 0:
            with meter.request("in the child") as r:
                pass
            assert r.energy_j is None
            assert meter.dropped >= 1
            meter.close()
            raise SystemExit(0)
        _, status = os.waitpid(child, 0)
        with meter.request("after") as r:
            time.sleep(0.5)
        print(status, r.result(timeout=8).status)
        """,
        tmp_path,
        JOULEGATE_SOURCE="twin",
    )
    assert (done.stdout, done.returncode) == ("0 final\n", 0)
    assert "Traceback" not in done.stderr


def test_a_running_daemon_is_found(tmp_path: Path) -> None:
    """With a daemon there, ``connect`` reports to it, and its figures come back; a dead client's request is ended."""
    with Service(tmp_path / "state", "--source", "twin", JOULEGATE_METERING__HOLD_S="0.2") as service:
        service.ready()
        done = run_script(
            """
            import time, joulegate
            meter = joulegate.connect(tenant="acme")
            with meter.request("sdxl", request_id="by-socket") as r:
                time.sleep(0.5)
            print(r.result(timeout=10).quality)
            """,
            tmp_path,
            JOULEGATE_SOCKET=str(service.socket),
        )
        assert (done.stdout, done.stderr) == ("simulated\n", "")
        item = service.get("/v1/requests/by-socket")
        assert (item["tenant"], item["model"], item["status"]) == ("acme", "sdxl", "final")
        assert service.stop() == 0
