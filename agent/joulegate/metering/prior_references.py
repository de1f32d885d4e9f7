"""The service's own energies per image, learned from finished requests."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from joulegate.metering.entry import RequestEntry, Status
from joulegate.metering.prior import MeasuredReference
from joulegate.metering.prior_catalogue import Knowledge, plain_gpu, plain_model, shipped
from joulegate.metering.reading import Quality
from joulegate.metering.span import Outcome
from joulegate.units import j_from_mj

MEASURED_QUALITIES = frozenset({Quality.MEASURED, Quality.APPORTIONED})
"""A simulated or modelled figure is never a reference (law 3)."""
_NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Key:
    """Whose energies they are: plain names, so that spellings meet."""

    model: str
    gpu: str
    gpus: int


@dataclass(frozen=True, slots=True)
class MeasuredReferences:
    """References by model and GPU, the most measured setting first."""

    by_key: Mapping[Key, tuple[MeasuredReference, ...]]
    knowledge: Knowledge

    def find(self, model: str, gpu: str, gpus: int, steps: int | None, px: int | None) -> MeasuredReference | None:
        """The reference of that setting, else of the most measured one; a setting not asked for (``None``) fits."""
        found = self.by_key.get(_key(model, gpu, gpus, self.knowledge), ())
        exact = (one for one in found if steps in {None, one.steps} and px in {None, one.px})
        return next(exact, found[0] if found else None)


def learn(
    entries: Iterable[RequestEntry], gpu_names: Mapping[str, str], knowledge: Knowledge | None = None
) -> MeasuredReferences:
    """References from final, measured, successful ``entries``; the order of entries changes nothing.

    ``gpu_names`` maps device ids to product names; a request on unnamed or different GPUs teaches nothing.
    """
    known = shipped() if knowledge is None else knowledge
    samples: defaultdict[tuple[Key, int | None, int | None], list[tuple[float, str, str]]] = defaultdict(list)
    for entry in entries:
        names = {gpu_names.get(device) for device in entry.devices}
        name = next(iter(names)) if len(names) == 1 else None
        if name is None or entry.model is None or not _teaches(entry):
            continue
        work = entry.work
        px = None if work.width is None or work.height is None else work.width * work.height
        key = _key(entry.model, name, len(entry.devices), known)
        image_j = j_from_mj(entry.energy_mj or 0) / (work.images or 1)
        samples[key, work.steps, px].append((image_j, entry.model, name))
    found: defaultdict[Key, list[MeasuredReference]] = defaultdict(list)
    for (key, steps, px), rows in samples.items():
        found[key].append(_reference(key.gpus, steps, px, sorted(rows)))
    return MeasuredReferences({key: tuple(sorted(ones, key=_most_measured)) for key, ones in found.items()}, known)


def _teaches(entry: RequestEntry) -> bool:
    return (
        entry.status is Status.FINAL
        and entry.outcome is Outcome.OK
        and entry.quality in MEASURED_QUALITIES
        and entry.work.images is not None
        and (entry.energy_mj or 0) > 0
    )


def _reference(gpus: int, steps: int | None, px: int | None, rows: list[tuple[float, str, str]]) -> MeasuredReference:
    logs = [math.log(image_j) for image_j, _, _ in rows]
    middle = statistics.median(logs)
    spread = _NORMAL_MAD * statistics.median(abs(value - middle) for value in logs)
    _, model, gpu = rows[0]
    return MeasuredReference(model, gpu, gpus, math.exp(middle), spread, len(rows), steps, px)


def _most_measured(one: MeasuredReference) -> tuple[int, int, int]:
    return -one.n, one.steps or 0, one.px or 0


def _key(model: str, gpu: str, gpus: int, known: Knowledge) -> Key:
    a_model, a_gpu = known.model(model), known.gpu(gpu)
    return Key(
        plain_model(model if a_model is None else a_model.name), plain_gpu(gpu if a_gpu is None else a_gpu.name), gpus
    )
