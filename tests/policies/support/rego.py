"""The Rego samples in a real interpreter; an answer of the agent is given as OPA's http.send would give it."""

from __future__ import annotations

import json
from email.utils import formatdate
from pathlib import Path
from typing import Any

import regopy

FOLDER = Path(__file__).resolve().parents[3] / "dashboards" / "policies" / "rego"
THROTTLE = "data.joulegate.throttle.decision"
DECIDE = "data.joulegate.decide.decision"
NOW_S = 1_795_539_603


def sent(body: Any, *, age_s: float = 0.0, status: int = 200) -> dict[str, Any]:
    """What http.send returns for an answer of that age."""
    headers = {"date": [formatdate(NOW_S - age_s, usegmt=True)], "content-type": ["application/json"]}
    return {"status_code": status, "headers": headers, "body": body}


NO_ANSWER: dict[str, Any] = {"status_code": 0, "error": {"code": "eval_http_send_network_error"}}


class Policies:
    """Both policies with what is recorded and set; ``decide`` may be asked again and again."""

    def __init__(self, recorded: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        self._interpreter = regopy.Interpreter()
        for name in ("throttle", "decide"):
            self._interpreter.add_module(name, (FOLDER / f"{name}.rego").read_text())
        data: dict[str, Any] = {"recorded": {"now_ns": NOW_S * 10**9, **recorded}}
        if settings is not None:
            data["joulegate_settings"] = settings
        self._interpreter.add_data_json(json.dumps(data))

    def decide(self, question: Any, query: str = THROTTLE) -> Any:
        """The decision."""
        self._interpreter.set_input_term(json.dumps(question))
        (decision,) = json.loads(str(self._interpreter.query(query)))["expressions"]
        return decision


def decide(question: Any, *, query: str = THROTTLE, settings: dict[str, Any] | None = None, **recorded: Any) -> Any:
    """One decision; ``recorded`` holds ``answer`` (of /v1/throttle) and ``decided`` (of /v1/throttle/decide)."""
    return Policies(recorded, settings).decide(question, query)
