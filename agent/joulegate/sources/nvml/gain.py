"""Gain error of the power sensor by model: half-widths that hold the errors found against external meters.

Source: Oxford GPU power study, SC'24, published result sheet (notes/measurement.md, section 1.2). "+/-5 %" is a fair
typical figure for data-centre boards; an unlisted consumer card gets 10 %.
"""

from __future__ import annotations

_MEASURED = (
    ("RTX 2060 SUPER", 0.12),
    ("RTX 2080 TI", 0.07),
    ("RTX 3070 TI", 0.05),
    ("RTX 3090", 0.05),
    ("RTX 4090", 0.05),
    ("RTX A5000", 0.07),
    ("A100", 0.06),
    ("K620", 0.41),
    ("K80", 0.09),
    ("P100", 0.05),
)
_CONSUMER = ("GEFORCE", "TITAN")
_DEFAULT, _CONSUMER_DEFAULT = 0.05, 0.10


def gain_error_of(name: str) -> float:
    """Largest relative gain error to assume for the board that NVML calls ``name``."""
    upper = name.upper()
    for pattern, error in _MEASURED:
        if pattern in upper:
            return error
    return _CONSUMER_DEFAULT if any(word in upper for word in _CONSUMER) else _DEFAULT
