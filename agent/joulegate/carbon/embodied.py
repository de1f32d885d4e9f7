"""Embodied CO2e: making the GPU and its share of the server, spread over the years that the operator uses them.

The figures are of devices, cradle to gate, and lie up to five times apart (notes/carbon.md, 4.1); a device that is not
listed has none. The lifetime is the operator's and has no default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from joulegate.carbon.figure import Figure, Missing, Range
from joulegate.carbon.site import Site, spread_of
from joulegate.carbon.tier import Tier, weakest
from joulegate.units import S_PER_HOUR

HOURS_PER_YEAR = 8766
"""365.25 days."""

KG = "kgCO2e"
G = "gCO2e"
_G_PER_KG = 1000.0
_PARAMETRIC = "Boavizta 2.5.0 parametric"
_ALONE_LOW, _ALONE_HIGH = 164 / 273, 575.1 / 273
"""One figure alone is given the spread that those of the H100 have around their middle one."""


@dataclass(frozen=True, slots=True)
class KnownGpu:
    """What is published on one GPU, kgCO2e without its server; ``hgx`` if it sits on an eight-GPU board."""

    pattern: str
    name: str
    low_kg: float
    central_kg: float
    high_kg: float
    source: str
    hgx: bool = False


KNOWN_GPUS = (
    KnownGpu(
        r"\bH100\b(?!.*\b(PCIE|NVL|MIG)\b)",
        "H100 SXM 80 GB",
        164,
        273,
        575.1,
        f"NVIDIA HGX H100 product carbon footprint 1,312 kg / 8 (ISO 14067); EcoLogits 0.11.3; {_PARAMETRIC}",
        hgx=True,
    ),
    KnownGpu(
        r"\bH200\b(?!.*\b(NVL|MIG)\b)",
        "H200 SXM",
        364 * _ALONE_LOW,
        364,
        364 * _ALONE_HIGH,
        "EcoLogits 0.11.3, the only figure; spread of the H100's",
        hgx=True,
    ),
    KnownGpu(
        r"\bB200\b(?!.*\bMIG\b)",
        "B200",
        284,
        634,
        1415,
        f"NVIDIA HGX B200 product carbon footprint 2,274 kg / 8; {_PARAMETRIC}; central: geometric mean",
        hgx=True,
    ),
    KnownGpu(
        r"\bA100\b(?=.*\b40 ?GB\b)",
        "A100 40 GB",
        127.6,
        181,
        321.6,
        f"teardown LCA, arXiv 2509.00093; Hubblo-ADEME parametric 2026; {_PARAMETRIC}",
    ),
    KnownGpu(
        r"\bL4\b",
        "L4",
        123.5 * _ALONE_LOW,
        123.5,
        123.5 * _ALONE_HIGH,
        f"{_PARAMETRIC}, the only figure; spread of the H100's",
    ),
)
HGX_GPUS = 8
HGX_SERVER_KG = (3072.0, 5700.0, 12199.0)
HGX_SERVER_SOURCE = (
    "EcoLogits 0.11.3, p5.48xlarge without its GPUs; range: Boavizta 2.5.0 for the whole less eight GPUs"
)


@lru_cache(maxsize=256)
def find_gpu(name: str) -> KnownGpu | None:
    """What is known of the GPU that the driver calls ``name`` (``NVIDIA H100 80GB HBM3``), or ``None``."""
    plain = name.upper().replace("-", " ")
    return next((known for known in KNOWN_GPUS if re.search(known.pattern, plain)), None)


@dataclass(frozen=True, slots=True)
class DeviceFigure:
    """kgCO2e for one GPU with its share of the server, what was assumed for it, and what it leaves out."""

    kg: Figure
    assumed: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


@lru_cache(maxsize=256)
def device_figure(site: Site, gpu_name: str | None) -> DeviceFigure:
    """The operator's own figures first, else those of the table; never another device's."""
    known = find_gpu(gpu_name) if gpu_name else None
    gpu, gpu_assumed = _gpu_kg(site, known)
    if gpu is None:
        device = f"no figure for {gpu_name}" if gpu_name else "the GPU is not known"
        return DeviceFigure(Missing(f"{device}; set site.gpu_embodied_kg", KG))
    server, server_assumed = _server_kg(site, known)
    if server is None:
        return DeviceFigure(gpu, gpu_assumed, ("the server around the GPU (site.server_embodied_kg is not set)",))
    both = Range(
        gpu.low + server.low,
        gpu.central + server.central,
        gpu.high + server.high,
        KG,
        weakest((gpu.tier, server.tier)),
    )
    return DeviceFigure(both, gpu_assumed + server_assumed)


def _gpu_kg(site: Site, known: KnownGpu | None) -> tuple[Range | None, tuple[str, ...]]:
    if site.gpu_embodied_kg is not None:
        return Range(*spread_of(site.gpu_embodied_kg), KG, Tier.MODELLED), ()
    if known is None:
        return None, ()
    text = f"embodied {known.name}: {known.central_kg:g} kg ({known.low_kg:.0f} to {known.high_kg:.0f}; {known.source})"
    return Range(known.low_kg, known.central_kg, known.high_kg, KG, Tier.DEFAULT), (text,)


def _server_kg(site: Site, known: KnownGpu | None) -> tuple[Range | None, tuple[str, ...]]:
    if site.server_embodied_kg is not None and site.gpus_per_server:
        whole = Range(*spread_of(site.server_embodied_kg), KG, Tier.MODELLED)
        return whole.scaled(1 / site.gpus_per_server), ()
    if known is None or not known.hgx:
        return None, ()
    gpus = site.gpus_per_server or HGX_GPUS
    low, central, high = HGX_SERVER_KG
    text = f"embodied server: {central:g} kg ({low:g} to {high:g}) for {gpus} GPUs ({HGX_SERVER_SOURCE})"
    return Range(low, central, high, KG, Tier.DEFAULT).scaled(1 / gpus), (text,)


def embodied_g(site: Site, device: DeviceFigure, device_s: float) -> Figure:
    """Grams for ``device_s`` seconds of one device: TE x time reserved / lifetime (SCI, ISO/IEC 21031)."""
    if isinstance(device.kg, Missing):
        return Missing(device.kg.why, G)
    if not site.lifetime_years:
        return Missing("site.lifetime_years is not set; how long hardware is used is the operator's to say", G)
    share = device_s / (site.lifetime_years * HOURS_PER_YEAR * S_PER_HOUR)
    grams = device.kg.scaled(_G_PER_KG * share)
    return Range(grams.low, grams.central, grams.high, G, grams.tier)
