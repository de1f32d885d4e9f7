"""NVIDIA GPUs through NVML: the only package that imports ``pynvml``."""

from joulegate.sources.nvml.source import NvmlSource, NvmlUnavailable

__all__ = ["NvmlSource", "NvmlUnavailable"]
