"""Where readings come from: NVML, RAPL, the host power model, a replayed trace, the twin."""
