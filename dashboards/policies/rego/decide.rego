# May this request for images run? The agent decides and counts: rate, burst and quota (POST /v1/throttle/decide).
#
# Ask for data.joulegate.decide.decision with input {"tier": "free", "tenant": "acme", "cost": 1, "request_id": "..."}.
# Every question takes from the tenant's quota what it admits, so ask once a request. Without an answer it falls back to
# throttle.rego: paid tiers open, the last tier to its floor. Load both files.
#
# Run by regopy in tests/policies/test_rego.py with answers given as data.recorded.decided; regopy has no http.send, so
# that call was not run for real.

package joulegate.decide

import data.joulegate.throttle
import rego.v1

answer := data.recorded.decided if {
	data.recorded.decided
} else := http.send({
	"method": "POST",
	"url": sprintf("%s/v1/throttle/decide", [throttle.url]),
	"headers": {"Content-Type": "application/json"},
	"body": {"tier": tier, "tenant": tenant, "cost": cost},
	"timeout": "150ms",
	"raise_error": false,
})

default tier := null

tier := input.tier

default tenant := null

tenant := input.tenant

default cost := 1

cost := input.cost

# A question that the agent cannot use (a negative cost, a tenant of a megabyte) is a no, not a lack of an answer.
refused if answer.status_code in {400, 413, 422}

answered if {
	answer.status_code == 200
	is_boolean(answer.body.allow)
}

default retry_after_s := 1

retry_after_s := answer.body.retry_after_s if is_number(answer.body.retry_after_s)

default reason := "capacity"

reason := answer.body.reason if is_string(answer.body.reason)

default decision_id := null

decision_id := answer.body.decision_id if is_string(answer.body.decision_id)

default shown := null

shown := answer.body.tier if is_string(answer.body.tier)

decision := {
	"allow": answer.body.allow,
	"reason": reason,
	"retry_after_s": retry_after_s,
	"tier": shown,
	"source": "agent",
	"decision_id": decision_id,
} if {
	answered
} else := {
	"allow": false,
	"reason": "bad_request",
	"retry_after_s": 0,
	"tier": tier,
	"source": "agent",
	"decision_id": null,
} if {
	refused
} else := throttle.decision
