"""``python -m joulegate`` is the ``joulegate`` command."""

from __future__ import annotations

import sys

from joulegate.cli.app import main

sys.exit(main())
