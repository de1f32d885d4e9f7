"""python -m benchmarks.throttle: run the host's hour under controllers and judge them."""

from __future__ import annotations

import sys

from benchmarks.throttle.judge import main

if __name__ == "__main__":
    sys.exit(main())
