"""The meter that a pipeline holds: it makes requests that report to one sink, with one set of defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, Self

from joulegate.metering.entry import RequestEntry
from joulegate.metering.span import Member, Outcome, Span, StartSource
from joulegate.metering.wire import text_fault
from joulegate.pipelines.labels import NO_LABELS, checked_labels, checked_work
from joulegate.pipelines.ports import SpanSink
from joulegate.pipelines.request import EdgeTiming, Faults, Request, request_ids
from joulegate.pipelines.torch_timing import CudaTiming
from joulegate.pipelines.visible import device_names, resolve_devices

DeviceChoice = int | str | Iterable[int | str] | None
MemberChoice = Member | Mapping[str, object]


class NoSink:
    """Nobody meters here: every span is counted as dropped, and there are no figures."""

    def __init__(self) -> None:
        self.dropped = 0

    def begin(self, span: Span) -> None:  # noqa: ARG002 - the port's parameter
        """Count the span."""
        self.dropped += 1

    def end(self, request_id: str, ended_s: float, outcome: Outcome) -> None:
        """Its begin was counted."""

    def lookup(self, request_id: str) -> RequestEntry | None:  # noqa: ARG002 - the port's parameter
        """No figures."""
        return None

    def wait(self, request_id: str, timeout_s: float) -> RequestEntry | None:  # noqa: ARG002 - the port's parameters
        """No figures will come, so there is nothing to wait for."""
        return None

    def visible_devices(self) -> tuple[str, ...]:
        """No devices."""
        return ()

    def close(self) -> None:
        """Nothing to flush."""


class Meter:
    """Meters requests into ``sink``; ``tier``, ``tenant`` and ``devices`` are the defaults of every request.

    It never raises into a pipeline: a label that cannot be used is left out and counted in ``mislabelled``, a wrapped
    call whose arguments cannot be read in ``unlabelled``, a message that could not be handed on in ``dropped``. Edges
    are timed on the GPU where torch uses CUDA, unless ``timing`` says otherwise (``HostTiming``).
    """

    def __init__(
        self,
        sink: SpanSink,
        *,
        tier: str | None = None,
        tenant: str | None = None,
        devices: DeviceChoice = None,
        timing: EdgeTiming | None = None,
    ) -> None:
        self.sink = sink
        self.faults = Faults()
        self._tier = tier
        self._tenant = tenant
        self._timing: EdgeTiming = CudaTiming() if timing is None else timing
        self._named = None if devices is None else device_names(devices)
        self._devices: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def dropped(self) -> int:
        """Messages of this process that did not reach whoever meters."""
        parts = (self.sink, self._timing)
        return self.faults.dropped + sum(int(getattr(part, "dropped", 0)) for part in parts)

    @property
    def mislabelled(self) -> int:
        """Labels, ids and counts that could not be used as given."""
        return self.faults.mislabelled

    @property
    def unlabelled(self) -> int:
        """Wrapped calls that were metered without what their arguments would have told."""
        return self.faults.unlabelled

    def request(
        self,
        model: str | None = None,
        *,
        images: int | None = None,
        steps: int | None = None,
        width: int | None = None,
        height: int | None = None,
        tier: str | None = None,
        tenant: str | None = None,
        devices: DeviceChoice = None,
        request_id: str | None = None,
        arrived_s: float | None = None,
        power_class: str | None = None,
        members: Iterable[MemberChoice] | None = None,
        batch_id: str | None = None,
        start_source: StartSource = StartSource.DECLARED,
    ) -> Request:
        """A request that begins when its ``with`` is entered.

        ``devices`` are GPUs by UUID or by index among the visible ones (all of them by default), ``arrived_s`` is when
        it began to wait (``time.monotonic()``), ``power_class`` groups requests that draw alike (by default the model),
        and ``members`` makes it a batch whose energy is split by their work.
        """
        try:
            labels = checked_labels(model, power_class, tier or self._tier, tenant or self._tenant, batch_id)
            work, unusable = checked_work(images, steps, width, height)
        except Exception:  # noqa: BLE001 - whatever a label is, the request is metered (law 4)
            (work, unusable), labels = checked_work(None, None, None, None), NO_LABELS
        own_id = request_ids.next_id() if request_id is None else self._usable_id(request_id)
        batch_id = labels[4]
        if members is None:
            billed: tuple[Member, ...] = (Member(own_id, work),)
        else:
            billed = self._members(members)
            batch_id = batch_id or own_id
        if arrived_s is not None:
            arrived_s = self._usable_arrival(arrived_s)
        if unusable or labels[5]:
            self.faults.mislabelled += unusable + labels[5]
        chosen = self._devices if devices is None and self._devices else self._device_ids(devices)
        draft = (own_id, chosen, arrived_s, start_source, billed, batch_id, labels)
        return Request(self.sink, self._timing, self.faults, draft)

    def start(self, model: str | None = None, **labels: Any) -> Request:
        """A request that has begun; ``stop()`` ends it. The labels are those of ``request``."""
        request = self.request(model, **labels)
        request.begin()
        return request

    def batch(self, members: Iterable[MemberChoice], model: str | None = None, **labels: Any) -> Request:
        """One span for requests that run together.

        ``members`` are ``Member`` or mappings with request_id, images, steps, width and height, all optional.
        """
        return self.request(model, members=members, **labels)

    def close(self) -> None:
        """Flush what can be flushed in a short time."""
        self.sink.close()

    def _device_ids(self, devices: DeviceChoice) -> tuple[str, ...]:
        try:
            visible = self.sink.visible_devices()
            names = self._named if devices is None else device_names(devices)
            chosen = visible if names is None else resolve_devices(names, visible)
            if devices is None and visible:
                self._devices = chosen
            return chosen
        except Exception:  # noqa: BLE001 - whatever a device is, the request is metered (law 4)
            self.faults.mislabelled += 1
            return ()

    def _members(self, members: Iterable[MemberChoice]) -> tuple[Member, ...]:
        made: dict[str, Member] = {}
        try:
            for choice in members:
                member = choice if isinstance(choice, Member) else self._member(choice)
                if member.request_id in made:
                    member = Member(request_ids.next_id(), member.work)
                    self.faults.mislabelled += 1
                made[member.request_id] = member
        except Exception:  # noqa: BLE001 - whatever a member is, the others are metered (law 4)
            self.faults.mislabelled += 1
        return tuple(made.values())

    def _member(self, choice: Mapping[str, object]) -> Member:
        work, unusable = checked_work(*(choice.get(name) for name in ("images", "steps", "width", "height")))
        self.faults.mislabelled += unusable
        request_id = choice.get("request_id")
        return Member(request_ids.next_id() if request_id is None else self._usable_id(request_id), work)

    def _usable_id(self, request_id: object) -> str:
        if isinstance(request_id, str) and request_id and text_fault(request_id) is None:
            return request_id
        self.faults.mislabelled += 1
        return request_ids.next_id()

    def _usable_arrival(self, arrived_s: object) -> float | None:
        if isinstance(arrived_s, int | float) and 0 <= arrived_s <= monotonic():
            return float(arrived_s)
        self.faults.mislabelled += 1
        return None
