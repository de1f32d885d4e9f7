"""Tests of the recommendation, its tiers and its flat numbers as they are fetched."""

import email.utils
import json
import time

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.http_throttle.stand_ins import FREE, PROBLEM, ThrottleWorld, recommendation

from joulegate.http.throttle_pages import matches
from joulegate.throttle.recommendation import State
from joulegate.throttle.wire import encode

PATHS = ("/v1/throttle", "/v1/throttle/tiers/free", "/v1/throttle/tiers/pro", "/v1/throttle/scale")
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "max-age=5, must-revalidate",
    "content-type": "application/json",
}


@pytest.mark.parametrize("state", list(State))
async def test_every_operational_state_is_200(world: ThrottleWorld, state: State) -> None:
    """The recommendation is served as 200 with its own bytes in every state, emergency, stale and unknown included."""
    world.board.publish("d2", state=state)
    async with world.client() as client:
        for path in PATHS:
            assert (await client.get(path)).status_code == 200
        body = (await client.get("/v1/throttle")).content
    assert body.decode() == encode(recommendation("d2", state=state))


@pytest.mark.parametrize("path", [*PATHS, "/v1/throttle?wait=3"])
async def test_before_the_first_it_is_503(empty: ThrottleWorld, path: str) -> None:
    """Without any recommendation the answer is a 503 problem that says when to come back, and a poll does not hang."""
    async with empty.client() as client:
        answer = await client.get(path)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == PROBLEM
        assert int(answer.headers["retry-after"]) >= 1
        empty.board.publish("d1")
        assert (await client.get(path)).status_code == 200


@pytest.mark.server
@pytest.mark.parametrize("path", PATHS)
async def test_headers_let_a_cache_revalidate(served: httpx.AsyncClient, path: str) -> None:
    """Each page has a strong tag, five seconds of life, the right Date, and the headers that keep browsers off."""
    for _ in range(2):  # the first goes the long way, the second the fast lane
        answer = await served.get(path)
        assert answer.headers.items() >= SAFE.items()
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["etag"].startswith('"d1')
        sent_s = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp()
        assert abs(sent_s - time.time()) < 60
        assert int(answer.headers["content-length"]) == len(answer.content)


async def test_long_way_and_fast_lane_give_the_same(client: httpx.AsyncClient) -> None:
    """The first request of a host, later ones, and one through the framework differ in no header and no byte."""
    answers = [
        await client.get("/v1/throttle"),
        await client.get("/v1/throttle"),
        await client.get("/v1/throttle?wait=0"),
    ]
    assert len({answer.content for answer in answers}) == 1
    assert len({frozenset(answer.headers.multi_items()) for answer in answers}) == 1


@pytest.mark.server
@pytest.mark.parametrize("path", PATHS)
async def test_head_is_get_without_the_body(served: httpx.AsyncClient, path: str) -> None:
    """HEAD has GET's status and headers, length included, and no body."""
    for _ in range(2):
        got, head = await served.get(path), await served.head(path)
        assert head.status_code == got.status_code == 200
        assert head.content == b""
        assert {**head.headers, "date": ""} == {**got.headers, "date": ""}


MATRIX = [
    ('"d1"', 304), ('W/"d1"', 304), ("*", 304), ('"x", "d1"', 304), ('"x",W/"d1" , "y"', 304),
    ('"d0"', 200), ("d1", 200), ('"D1"', 200), ('"d1', 200), ("", 200), ('"d1.scale"', 200), ('"*"', 200),
    ('"d1"' + "," * 9000, 200),
]  # fmt: skip


@pytest.mark.server
async def test_if_none_match(served: httpx.AsyncClient) -> None:
    """A tag that names the newest, weak or in a list or any, is 304 without a body; what is no tag gets the whole."""
    for tags, status in MATRIX * 2:
        for method in ("GET", "HEAD"):
            answer = await served.request(method, "/v1/throttle", headers={"If-None-Match": tags})
            assert answer.status_code == status
            if status == 304:
                assert answer.content == b""
                assert answer.headers["etag"] == '"d1"'
                assert answer.headers["cache-control"] == SAFE["cache-control"]
                assert "date" in answer.headers
                assert "content-length" not in answer.headers


async def test_tags_over_several_lines_are_one_list(client: httpx.AsyncClient) -> None:
    """If-None-Match may come in several lines."""
    for lines in (('"x"', '"d1"'), ('"d1"', '"x"'), ('"x"', '"d1"')):
        answer = await client.get("/v1/throttle", headers=[("if-none-match", line) for line in lines])
        assert answer.status_code == 304


async def test_a_tag_is_of_one_page_and_one_recommendation(world: ThrottleWorld, client: httpx.AsyncClient) -> None:
    """Every page has a tag of its own, and none outlives its recommendation."""
    tags = {path: (await client.get(path)).headers["etag"] for path in PATHS}
    assert len(set(tags.values())) == len(PATHS)
    for path, tag in tags.items():
        assert (await client.get(path, headers={"if-none-match": tag})).status_code == 304
    world.board.publish("d2")
    for path, tag in tags.items():
        answer = await client.get(path, headers={"if-none-match": tag})
        assert answer.status_code == 200
        assert "d2" in answer.text


_TAG_CHARACTERS = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"')


@given(
    known=st.text(_TAG_CHARACTERS, max_size=8),
    others=st.lists(st.tuples(st.booleans(), st.text(_TAG_CHARACTERS, max_size=8)), max_size=6),
    gap=st.sampled_from([",", ", ", " ,\t", ",,"]),
)
def test_lists_of_tags(known: str, others: list[tuple[bool, str]], gap: str) -> None:
    """A list matches exactly when the tag is in it, whatever its commas, spaces and weakness marks."""
    listed = gap.join(f'{"W/" if weak else ""}"{name}"' for weak, name in others)
    assert matches(f'"{known}"'.encode(), listed.encode()) == (known in [name for _, name in others])


@given(st.binary(max_size=200))
@example(b'"' * 199)
def test_no_bytes_disturb_the_comparison(tags: bytes) -> None:
    """Whatever bytes are sent as tags, the comparison says yes or no."""
    assert matches(b'"d1"', tags) in {True, False}


async def test_tier_page_has_the_tier_alone(client: httpx.AsyncClient) -> None:
    """A tier's page is its limit with the recommendation's head, reasons and fail-safe."""
    body = (await client.get("/v1/throttle/tiers/free")).json()
    whole = (await client.get("/v1/throttle")).json()
    head = ("decision_id", "t", "ttl_s", "poll_after_s", "state", "binding", "reasons", "fail_safe")
    assert body == {**{name: whole[name] for name in head}, "tier": "free", **FREE.wire()}


@pytest.mark.parametrize("name", ["a/b", "größe", 'q"uote', "per cent%20", "scale", "..", "a.b"])
async def test_any_tier_name_has_a_page(world: ThrottleWorld, name: str) -> None:
    """A tier with a slash, an umlaut or a quote in its name is served like any other, with a tag that holds."""
    world.board.publish("d2", tiers={name: FREE})
    async with world.client() as client:
        url = httpx.URL("http://127.0.0.1:9288/").copy_with(raw_path=b"/v1/throttle/tiers/" + _quoted(name))
        for _ in range(2):
            answer = await client.get(url)
            assert answer.json()["tier"] == name
            again = await client.get(url, headers={"if-none-match": answer.headers["etag"]})
            assert again.status_code == 304


def _quoted(name: str) -> bytes:
    return "".join(f"%{octet:02X}" for octet in name.encode()).encode()


async def test_unknown_tier_is_a_problem_that_names_the_known(world: ThrottleWorld) -> None:
    """A tier that is not there is a 404 that names at most twenty that are and shows little of what was asked."""
    async with world.client() as client:
        for _ in range(2):
            answer = await client.get("/v1/throttle/tiers/" + "x" * 5000)
            assert answer.status_code == 404
            assert answer.headers["content-type"] == PROBLEM
            assert "free, pro" in answer.json()["detail"]
            assert "x" * 101 not in answer.text
        world.board.publish("d2", tiers={f"tier-{number:02}": FREE for number in range(30)})
        detail = (await client.get("/v1/throttle/tiers/none")).json()["detail"]
    assert detail.count("tier-") == 20
    assert "10 more" in detail


@pytest.mark.parametrize(
    "query", ["tier=free", "scope=host", "wait=31", "wait=-1", "wait=nan", "wait=inf", "wait=x", "wait=", "WAIT=1", "x"]
)
async def test_unknown_query_is_422(client: httpx.AsyncClient, query: str) -> None:
    """A parameter that does not exist, or a wait outside 0 to 30 s, is a 422 problem; the page has none at all."""
    for path in PATHS:
        assert (await client.get(path)).status_code == 200
        answer = await client.get(f"{path}?{query}")
        assert answer.status_code == 422
        assert answer.headers["content-type"] == PROBLEM
        assert answer.json()["faults"][0]["place"] == "query"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
async def test_pages_are_only_read(client: httpx.AsyncClient, method: str) -> None:
    """Any method but GET and HEAD is a 405 problem that names both."""
    for path in PATHS:
        answer = await client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"
        assert answer.headers["content-type"] == PROBLEM


async def test_only_own_hosts_are_served(world: ThrottleWorld) -> None:
    """With a list of hosts a rebound name is a 421 problem, before and after the lane knows a good one."""
    async with world.client(hosts=("127.0.0.1", "localhost")) as client:
        for host, status in [
            ("evil.example", 421),
            ("127.0.0.1:9288", 200),
            ("evil.example", 421),
            ("LOCALHOST", 200),
        ] * 2:
            for path in (*PATHS, "/v1/throttle/authz"):
                assert (await client.get(path, headers={"host": host})).status_code == status


async def test_many_hosts_are_served_without_being_kept(world: ThrottleWorld) -> None:
    """Where any host is served, a thousand different ones get the same answer."""
    async with world.client() as client:
        answers = [await client.get("/v1/throttle", headers={"host": f"h{number}"}) for number in range(200)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1


async def test_fault_of_the_reader_is_counted_and_told_in_one_line(
    world: ThrottleWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that fails is a 500 problem without its text, one line in the log, and one more fault in the count."""

    class Broken:
        def newest(self) -> None:
            raise RuntimeError("secret\nof the board")

    parts = world.parts(reader=Broken())
    transport = httpx.ASGITransport(_app(parts), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        for number, path in enumerate(PATHS, 1):
            answer = await client.get(path)
            assert answer.status_code == 500
            assert answer.headers["content-type"] == PROBLEM
            assert "secret" not in answer.text
            assert parts.faults.total == number
    assert "Traceback" not in caplog.text
    assert caplog.text.count("secret of the board") == len(PATHS)


def _app(parts: object) -> object:
    from joulegate.http.app import create_app

    return create_app(parts)  # type: ignore[arg-type]


async def test_without_throttle_parts_there_are_no_routes(world: ThrottleWorld) -> None:
    """An agent that advises nothing serves none of the paths and does not document them."""
    from dataclasses import replace

    transport = httpx.ASGITransport(_app(replace(world.parts(), throttle=None)))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        for path in (*PATHS, "/v1/throttle/authz", "/v1/throttle/stream"):
            assert (await client.get(path)).status_code == 404
        assert "/v1/throttle" not in (await client.get("/openapi.json")).text
        assert "throttle" not in (await client.get("/")).text


async def test_index_links_to_what_answers(client: httpx.AsyncClient) -> None:
    """The page for people links to throttle paths, and each of them answers."""
    page = await client.get("/")
    links = [part.partition('"')[0] for part in page.text.split('href="')[1:]]
    throttle = [link for link in links if link.startswith("/v1/throttle")]
    assert throttle == ["/v1/throttle", "/v1/throttle/scale", "/v1/throttle/decisions"]
    for link in throttle:
        assert (await client.get(link)).status_code == 200


async def test_body_is_json_without_surprises(client: httpx.AsyncClient) -> None:
    """The body is one line of JSON that reads back to the recommendation's wire form."""
    text = (await client.get("/v1/throttle")).text
    assert "\n" not in text
    assert json.loads(text) == json.loads(json.dumps(recommendation("d1").wire()))
