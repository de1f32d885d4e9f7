# May this request for images run? By the recommendation of GET /v1/throttle, for OPA and whatever embeds Rego.
#
# Ask for data.joulegate.throttle.decision with
#   input: {"tier": "free", "request_id": "..."}      or "bucket": a number from 0 below 1 that spreads requests evenly
# and get
#   {"allow": false, "reason": "rate", "retry_after_s": 20, "tier": "free", "fraction": 0.4, "source": "recommendation",
#    "decision_id": "..."}
#
# This one counts nothing: it admits a fraction of the requests, by the hash of each. Rates, bursts and quotas such as
# three images a day need a counter; decide.rego asks the agent, which has one.
#
# Optional data: {"joulegate_settings": {"url": "http://gpu-7:9288", "paid": ["pro", "plus"], "last": "free",
# "floor_fraction": 0.25}}. Run by regopy in tests/policies/test_rego.py with answers given as data.recorded.answer;
# regopy has no http.send, so that call was not run for real.

package joulegate.throttle

import rego.v1

default url := "http://127.0.0.1:9288"

url := data.joulegate_settings.url

# Tiers that stay open when there is no answer. The last tier is the one that an unknown tier is treated as.
default paid := ["pro", "plus"]

paid := data.joulegate_settings.paid

default last := "free"

last := data.joulegate_settings.last

default floor_fraction := 0.25

floor_fraction := data.joulegate_settings.floor_fraction

# The agent says max-age=5 and sends an ETag: OPA asks again at most every 5 s. raise_error: an agent that is down makes
# status_code 0 here, not an undefined decision.
answer := data.recorded.answer if {
	data.recorded.answer
} else := http.send({
	"method": "GET",
	"url": sprintf("%s/v1/throttle", [url]),
	"timeout": "150ms",
	"raise_error": false,
	"cache": true,
})

# Older than its time to live, by the Date of the answer against the clock here: then it is no answer.
age_s := abs((now_ns / 1000000000) - sent_s)

# "Tue, 24 Nov 2026 17:00:00 GMT" (RFC 9110, IMF-fixdate), taken apart so that every engine reads it alike.
sent_s := (midnight_ns / 1000000000) + (((clock[0] * 3600) + (clock[1] * 60)) + clock[2]) if {
	[_, day, month, year, time_of_day, "GMT"] := split(answer.headers.date[0], " ")
	midnight_ns := time.parse_ns("2006-01-02", sprintf("%s-%s-%s", [year, months[month], day]))
	clock := [to_number(part) | some part in split(time_of_day, ":")]
}

months := {
	"Jan": "01", "Feb": "02", "Mar": "03", "Apr": "04", "May": "05", "Jun": "06",
	"Jul": "07", "Aug": "08", "Sep": "09", "Oct": "10", "Nov": "11", "Dec": "12",
}

default now_ns := 0

now_ns := data.recorded.now_ns if {
	data.recorded.now_ns
} else := time.now_ns()

body := answer.body if {
	answer.status_code == 200
	is_object(answer.body)
	is_object(answer.body.tiers)
}

known if well_formed(body.tiers[input.tier])

default tier := "free"

tier := input.tier if {
	known
} else := last

limit := body.tiers[tier] if well_formed(body.tiers[tier])

well_formed(members) if {
	is_number(members.admit_fraction)
	members.admit_fraction >= 0
	members.admit_fraction <= 1
	members.action in {"admit", "limit", "defer", "reject"}
}

default fresh := false

fresh if {
	limit
	is_number(body.ttl_s)
	age_s <= body.ttl_s
}

# The share of this tier's requests that may run.
default fraction := 0

fraction := limit.admit_fraction if {
	fresh
	limit.action in {"admit", "limit"}
} else := 0 if {
	fresh
} else := 1 if {
	asked_tier in paid
} else := min([floor_fraction, limit.admit_fraction]) if {
	limit
} else := floor_fraction

# Without an answer nobody says which tiers there are: then the settings here do.
default asked_tier := ""

asked_tier := tier if {
	body
} else := input.tier

# Where the caller gives no place in [0, 1), the hash of the request's id does; a request without either comes last.
default bucket := 1

bucket := input.bucket if {
	is_number(input.bucket)
	input.bucket >= 0
	input.bucket < 1
} else := hashed if {
	is_string(input.request_id)
}

hashed := (((digit(0) * 4096) + (digit(1) * 256)) + ((digit(2) * 16) + digit(3))) / 65536

digit(place) := indexof("0123456789abcdef", substring(crypto.sha256(input.request_id), place, 1))

default allow := false

allow if fraction >= 1

allow if bucket < fraction

default reason := "stale"

reason := "admitted" if {
	allow
} else := "deferred" if {
	fresh
	limit.action == "defer"
} else := "capacity" if {
	fresh
	limit.action == "reject"
} else := "rate" if {
	fresh
}

default retry_after_s := 20

retry_after_s := 0 if {
	allow
} else := max([1, limit.retry_after_s]) if {
	fresh
	is_number(limit.retry_after_s)
}

default source := "fail_safe"

source := "recommendation" if fresh

default decision_id := null

decision_id := body.decision_id if fresh

shown := tier if {
	body
} else := asked_tier

decision := {
	"allow": allow,
	"reason": reason,
	"retry_after_s": retry_after_s,
	"tier": shown,
	"fraction": fraction,
	"source": source,
	"decision_id": decision_id,
}
