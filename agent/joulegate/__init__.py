"""Joulegate: joules per image, with an uncertainty and a source for every number.

import joulegate
meter = joulegate.connect()
with meter.request("sdxl", images=4, steps=30, width=1024, height=1024) as r:
    images = pipe(prompt).images
r.energy_j, r.uncertainty_j, r.quality

pipe = joulegate.wrap(pipe)

gate = joulegate.gate()
gate.check(tier="free", tenant="acme")                         # raises joulegate.Throttled when it may not run now
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from joulegate.pipelines.gate import Gate
    from joulegate.pipelines.gate_decision import Throttled as Throttled
    from joulegate.pipelines.meter import Meter

__all__ = ["Throttled", "connect", "estimate", "gate", "wrap"]

_P = TypeVar("_P")
_lock = threading.Lock()
_shared: Meter | None = None


def connect(*, tier: str | None = None, tenant: str | None = None, devices: Any = None) -> Meter:
    """A meter for this process: the running daemon's, else one inside this process; never raises for lack of one.

    The socket is looked for at ``$JOULEGATE_SOCKET``, ``$JOULEGATE_STATE_DIR/joulegate.sock`` and
    ``/run/joulegate/joulegate.sock``. Without a daemon the best sensor of this machine is used; figures are then kept
    in memory only. ``tier``, ``tenant`` and ``devices`` (UUIDs or indices) are the defaults of every request.
    """
    from joulegate.pipelines.meter import Meter, NoSink
    from joulegate.pipelines.socket_client import SocketSink, find_socket

    path = find_socket(os.environ)
    if path is not None:
        return Meter(SocketSink(path), tier=tier, tenant=tenant, devices=devices)
    try:
        sink = _local_sink()
    except Exception:  # noqa: BLE001 - a pipeline must run on without a meter (law 4); what it misses is counted
        sink = NoSink()
    return Meter(sink, tier=tier, tenant=tenant, devices=devices)


def wrap(pipe: _P, meter: Meter | None = None, **labels: Any) -> _P:
    """``pipe`` with each of its calls metered: any diffusers pipeline or callable, sync, async or a generator.

    It returns what ``pipe`` returned. ``labels`` are those of ``Meter.request``, such as ``tier`` and ``tenant``.
    """
    from joulegate.pipelines.wrap import wrap as wrap_with

    return wrap_with(pipe, _default_meter() if meter is None else meter, **labels)


def estimate(model: str, gpu: str, **work: Any) -> dict[str, Any]:
    """What a request will take before it runs: joules and CO2e, each with a range, and what they rest on.

    ``work`` is images, steps, width, height, gpus and params, as in ``joulegate estimate``; the answer is that of
    ``joulegate estimate --json``. The CO2e is of the configured site (``JOULEGATE_SITE__COUNTRY``);
    nobody is asked. Raises ``ValueError`` with one line for what cannot be used.
    """
    from joulegate.config import load
    from joulegate.daemon.site import estimate_here
    from joulegate.metering.prior import estimate as before_it_runs

    return estimate_here(before_it_runs(model, gpu, **work), load(environ=os.environ).settings)


def gate(url: str | None = None, **options: Any) -> Gate:
    """The throttle gate of this process: asks the agent at ``url``, else ``$JOULEGATE_URL``, else this host's.

    ``options`` are those of ``Gate``: ``tier``, ``tenant``, ``timeout_s``, ``mode`` ("enforce" or "shadow"),
    ``paid_open``, ``floor_images_per_minute``, ``share``. It never raises for lack of an agent.
    """
    from joulegate.pipelines.gate import Gate

    return Gate(url, **options)


if not TYPE_CHECKING:  # for a type checker, every name would exist

    def __getattr__(name: str) -> Any:
        if name == "Throttled":
            from joulegate.pipelines.gate_decision import Throttled

            return Throttled
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _default_meter() -> Meter:
    """One meter for all that is wrapped in this process."""
    global _shared  # noqa: PLW0603 - wrapped pipelines of one process share their meter
    with _lock:
        if _shared is None:
            _shared = connect()
            atexit.register(_shared.close)
        return _shared


def _local_sink() -> Any:
    from joulegate.config import load
    from joulegate.daemon.wiring import local_meter

    meter = local_meter(load(environ=os.environ).settings)
    atexit.register(meter.close)
    return meter.sink
