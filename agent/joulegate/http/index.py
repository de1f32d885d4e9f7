"""``GET /``: what is served here, for a person with a browser."""

from __future__ import annotations

from html import escape

_ENDPOINTS = (
    ("/v1/devices", "every device now: power, energy, temperature, limits, and where each figure comes from"),
    ("/v1/requests", "finished and pending requests with their joules and uncertainty, newest first"),
    ("/v1/energy", "energy of the last hour, divided into requests, idle and unattributed"),
    ("/v1/energy?by=model,tier", "the same by model and tier"),
    ("/v1/grid", "carbon intensity of the grid now and ahead, and the best window for work that can wait"),
    ("/v1/estimate?model=FLUX.1-dev&gpu=H100", "joules and CO2e that a request would take"),
    ("/v1/throttle", "what hardware, budgets and grid can take next, and why; /v1/throttle/stream sends each change"),
    ("/v1/throttle/scale", "the same as flat numbers for autoscalers"),
    ("/v1/throttle/decisions", "the audit trail of the recommendations"),
    ("/metrics", "Prometheus text, or OpenMetrics where it is asked for"),
    ("/healthz", "does the agent's loop turn"),
    ("/readyz", "how sensors, ledger, sinks and grid do"),
    ("/openapi.json", "the contract; it also tells what POST /v1/spans takes"),
)

_CARBON = ("/v1/grid", "/v1/estimate?model=FLUX.1-dev&gpu=H100")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Joulegate</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem }}
dt {{ font-family: ui-monospace, monospace; margin-top: .8rem }}
dd {{ margin-left: 1.5rem }}
</style>
</head>
<body>
<h1>Joulegate {version}</h1>
<p>{state}</p>
<dl>
{rows}
</dl>
</body>
</html>
"""


def index_page(version: str, state: str, *, carbon: bool, throttle: bool) -> str:
    """The page, with one line on what is metered; ``carbon`` and ``throttle`` tell whether those paths are served."""
    hidden = ("/v1/throttle",) * (not throttle) + _CARBON * (not carbon)
    shown = [(escape(path), text) for path, text in _ENDPOINTS if not path.startswith(hidden)]
    rows = "\n".join(f'<dt><a href="{path}">{path}</a></dt><dd>{text}</dd>' for path, text in shown)
    return _PAGE.format(version=escape(version), state=escape(state), rows=rows)
