"""Run in a network of its own whose only name server swallows every question: what still works is printed as JSON."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import threading
import time

from joulegate.sources.grid.choice import make_monitor
from joulegate.sources.grid.options import GridOptions

SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def main() -> None:
    """Refresh against a name that never resolves, read meanwhile, and leave without waiting."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    swallower = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    swallower.bind(("127.0.0.1", 53))
    options = GridOptions(provider="electricity-maps", zone="DE", token="tok-x", base_url="https://api.black-hole.test")
    monitor = make_monitor(options, factors=None, state_dir=None, clock=time.time)
    monitor.start_refresh()
    asked, _ = swallower.recvfrom(512)
    labels = {monitor.state.intensity(time.time()).label.value for _ in range(1000)}
    second = monitor.start_refresh()
    monitor.close(0.0)
    hanging = [thread.name for thread in threading.enumerate() if thread.name == "joulegate-grid"]
    print(json.dumps({"asked": b"black-hole" in asked, "labels": sorted(labels), "second": second, "hanging": hanging}))


if __name__ == "__main__":
    main()
