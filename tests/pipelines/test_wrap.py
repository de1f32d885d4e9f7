"""``wrap`` on callables of every kind."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
from tests.pipelines.recording import BrokenSink, RecordingSink

from joulegate.metering.span import Outcome, Work
from joulegate.pipelines.call_reading import CallReader, model_name
from joulegate.pipelines.meter import Meter
from joulegate.pipelines.request import Request, open_request
from joulegate.pipelines.wrap import last_request, wrap


@pytest.fixture
def sink() -> RecordingSink:
    """An empty sink."""
    return RecordingSink()


@pytest.fixture
def meter(sink: RecordingSink) -> Meter:
    """A meter into the sink."""
    return Meter(sink)


def draw(prompt: str, num_inference_steps: int = 20, *, width: int = 512, height: int = 256) -> tuple:
    """A function that looks like a pipeline."""
    return prompt, num_inference_steps, width, height


def test_a_function_is_metered_and_labelled_from_its_call(sink: RecordingSink, meter: Meter) -> None:
    """A function returns what it returned, and what its parameters say becomes the label."""
    wrapped = wrap(draw, meter, tenant="acme", model="mine")
    assert wrapped("x", 7) == ("x", 7, 512, 256)
    span = sink.span
    assert (span.work, span.model, span.tenant) == (Work(1, 7, 512, 256), "mine", "acme")
    assert wrapped.__name__ == "draw"
    assert inspect.signature(wrapped) == inspect.signature(draw)


def test_labels_given_to_wrap_win_and_unknown_ones_are_told_at_once(sink: RecordingSink, meter: Meter) -> None:
    """A label given by hand wins over what is read; a label that does not exist fails where it is written."""
    wrap(draw, meter, images=8, steps=1)("x")
    assert sink.span.work == Work(8, 1, 512, 256)
    with pytest.raises(TypeError, match="colour"):
        wrap(draw, meter, colour="red")
    with pytest.raises(TypeError, match="int cannot be called"):
        wrap(3, meter)


def test_an_error_of_the_call_raises_on_unchanged(sink: RecordingSink, meter: Meter) -> None:
    """The wrapped callable's error is the caller's, and the request has failed."""
    error = RuntimeError("out of memory")

    def fail() -> None:
        raise error

    with pytest.raises(RuntimeError) as raised:
        wrap(fail, meter)()
    assert raised.value is error
    assert sink.outcome is Outcome.FAILED


def test_a_call_that_cannot_be_read_still_happens(sink: RecordingSink, meter: Meter) -> None:
    """When the arguments cannot be read the call is made all the same, metered without labels, and counted."""

    class Odd:
        @property
        def shape(self) -> tuple:
            raise RuntimeError("no shape today")

    assert wrap(draw, meter)(Odd(), 3)[1] == 3
    assert (sink.span.work, sink.outcome, meter.unlabelled) == (Work(), Outcome.OK, 1)


def test_a_builtin_without_a_signature_can_be_wrapped(sink: RecordingSink, meter: Meter) -> None:
    """A callable that has no signature is metered by its name."""
    assert wrap(max, meter)(3, 5) == 5
    assert sink.span.model == "max"


def test_a_broken_meter_does_not_change_the_call() -> None:
    """Everything wrapped works with a sink that raises on each call."""
    assert wrap(draw, Meter(BrokenSink()))("x") == draw("x")


async def test_a_coroutine_function_is_metered_while_it_is_awaited(sink: RecordingSink, meter: Meter) -> None:
    """The span begins when the coroutine runs, not when it is made, and ends with it."""

    async def draw_later(steps: int) -> int:
        await asyncio.sleep(0)
        assert len(sink.begun) == 1
        return steps

    wrapped = wrap(draw_later, meter)
    assert inspect.iscoroutinefunction(wrapped)
    coroutine = wrapped(5)
    assert (inspect.iscoroutine(coroutine), sink.begun) == (True, [])
    assert await coroutine == 5
    assert (sink.span.work.steps, sink.outcome) == (5, Outcome.OK)


async def test_a_cancelled_coroutine_is_a_cancelled_request(sink: RecordingSink, meter: Meter) -> None:
    """Cancelling the task cancels the request and raises on."""

    async def for_ever() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(wrap(for_ever, meter)())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sink.outcome is Outcome.CANCELLED


def echo() -> Iterator[str]:
    """Yields what it is sent, survives a ValueError, and returns a word."""
    sent = "first"
    while sent != "stop":
        try:
            sent = yield sent
        except ValueError as error:
            sent = f"caught {error}"
    return "done"


def test_a_generator_is_metered_from_its_first_item_to_its_end(sink: RecordingSink, meter: Meter) -> None:
    """Items, what is sent and thrown, and the returned value pass through; the span is the generator's life."""
    generator = wrap(echo, meter)()
    assert sink.begun == []
    assert (next(generator), generator.send("hello"), generator.throw(ValueError("x"))) == (
        "first",
        "hello",
        "caught x",
    )
    assert (len(sink.begun), sink.ended) == (1, [])
    with pytest.raises(StopIteration) as stopped:
        generator.send("stop")
    assert (stopped.value.value, sink.outcome) == ("done", Outcome.OK)


def test_a_generator_that_is_left_early_is_cancelled(sink: RecordingSink, meter: Meter) -> None:
    """Closing a generator ends its request as cancelled."""
    generator = wrap(echo, meter)()
    next(generator)
    generator.close()
    assert sink.outcome is Outcome.CANCELLED


async def echo_async(seen: list) -> AsyncIterator[str]:
    """The same, asynchronously; tells how it ended."""
    sent = "first"
    try:
        while sent != "stop":
            try:
                sent = yield sent
            except ValueError as error:
                sent = f"caught {error}"
    finally:
        seen.append("closed")


async def test_an_async_generator_passes_everything_through(sink: RecordingSink, meter: Meter) -> None:
    """What is sent, thrown and yielded passes through an async generator."""
    seen: list = []
    generator = wrap(echo_async, meter)(seen)
    assert sink.begun == []
    assert await anext(generator) == "first"
    assert await generator.asend("hello") == "hello"
    assert await generator.athrow(ValueError("x")) == "caught x"
    with pytest.raises(StopAsyncIteration):
        await generator.asend("stop")
    assert (seen, sink.outcome) == (["closed"], Outcome.OK)


async def test_an_async_generator_that_is_left_early_is_closed_and_cancelled(sink: RecordingSink, meter: Meter) -> None:
    """Closing reaches the wrapped generator, and its request is cancelled."""
    seen: list = []
    generator = wrap(echo_async, meter)(seen)
    await anext(generator)
    await generator.aclose()
    assert (seen, sink.outcome) == (["closed"], Outcome.CANCELLED)


async def test_a_call_that_returns_an_awaitable_ends_when_that_is_done(sink: RecordingSink, meter: Meter) -> None:
    """A plain function that hands back a coroutine or a future is metered until its result is there."""

    async def work(answer: int) -> int:
        return answer

    assert await wrap(lambda: work(4), meter)() == 4
    assert sink.ended.pop()[2] is Outcome.OK
    with ThreadPoolExecutor(1) as pool:
        future = wrap(partial(pool.submit, int, "no number"), meter)()
        with pytest.raises(ValueError, match="no number"):
            future.result(5)
        assert sink.told.wait(5)
    assert sink.outcome is Outcome.FAILED


class Engine:
    """An object with an asynchronous ``__call__``, state, and a wrapped method."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, images: int) -> int:
        """Count."""
        self.calls += images
        return self.calls

    def draw(self, steps: int) -> int:
        """Count."""
        self.calls += steps
        return self.calls


async def test_an_object_with_an_async_call_is_metered(sink: RecordingSink, meter: Meter) -> None:
    """A class instance is called through its own ``__call__``, and its class names the model."""
    engine = Engine()
    wrapped = wrap(engine, meter)
    assert await wrapped(2) == 2
    assert (wrapped.calls, engine.calls, isinstance(wrapped, Engine)) == (2, 2, True)
    assert (sink.span.model, sink.outcome) == ("Engine", Outcome.OK)
    assert repr(wrapped) == repr(engine)


def test_a_function_wrapped_in_a_class_body_is_a_method(sink: RecordingSink, meter: Meter) -> None:
    """A wrapped function binds to the instance as the function would."""

    class Studio(Engine):
        draw = wrap(Engine.draw, meter)

    assert Studio().draw(steps=6) == 6
    assert sink.span.work.steps == 6


def test_one_call_inside_another_is_one_request(sink: RecordingSink, meter: Meter) -> None:
    """A wrapped function that calls a wrapped pipeline is billed once; another meter's request is another matter."""
    inner = wrap(draw, meter)
    other = RecordingSink()

    def service() -> tuple:
        wrap(draw, Meter(other))("y")
        return inner("x")

    outer = wrap(service, meter)
    outer()
    assert sink.span.model == "service"
    assert other.span.model == "draw"
    assert last_request(inner) is last_request(outer)
    assert open_request(sink) is None
    inner("again")
    assert len(sink.begun) == 2


async def test_concurrent_calls_are_requests_of_their_own(sink: RecordingSink, meter: Meter) -> None:
    """Tasks that run at the same time do not take each other for the outer request."""

    async def work(steps: int) -> int:
        await asyncio.sleep(0.001)
        return steps

    wrapped = wrap(work, meter)
    assert await asyncio.gather(*(wrapped(number) for number in range(1, 20))) == list(range(1, 20))
    assert sorted(span.work.steps for span in sink.begun) == list(range(1, 20))


def test_what_a_generators_consumer_calls_is_not_the_generators(sink: RecordingSink, meter: Meter) -> None:
    """Between two items the consumer is outside: its calls are requests of their own."""
    for _ in wrap(lambda: (yield 1), meter)():
        wrap(draw, meter)("x")
    assert [span.model for span in sink.begun] == ["<lambda>", "draw"]


def test_the_older_callback_keeps_the_users_rhythm() -> None:
    """With a user's own ``callback`` its ``callback_steps`` stays; without one ours is called at each step."""
    seen: list = []

    def pipe(callback=None, callback_steps: int = 3) -> list:
        seen.extend(callback(step, 0, "latents") for step in range(0, 6, callback_steps))
        return seen

    request = Request.__new__(Request)
    request.steps_s = []
    reader = CallReader(pipe)
    _, marked = reader.read((), {})
    pipe(**marked(request.step))
    assert (len(request.steps_s), seen) == (6, [None] * 6)
    _, marked = reader.read((), {"callback": lambda step, _t, _latents: step, "callback_steps": 2})
    pipe(**marked(request.step))
    assert (len(request.steps_s), seen[6:]) == (9, [0, 2, 4])


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ("stabilityai/sdxl-turbo", "sdxl-turbo"),
        ("/models/mine/", "mine"),
        ("/root/.cache/huggingface/hub/models--org--flux-dev/snapshots/0123abcd", "flux-dev"),
        ("", "SimpleNamespace"),
        (None, "SimpleNamespace"),
    ],
)
def test_the_models_name_is_the_last_part_of_where_it_came_from(origin: str | None, name: str) -> None:
    """Repositories, folders and the hub's cache all give the model's own name."""
    assert model_name(SimpleNamespace(config={"_name_or_path": origin})) == name


def test_an_input_image_gives_the_size_where_none_is_asked(sink: RecordingSink, meter: Meter) -> None:
    """Image-to-image calls take the size of their image (width, height, as PIL says it)."""

    def repaint(prompt: str, image: object, height: int | None = None, width: int | None = None) -> None:
        """Nothing."""

    wrap(repaint, meter)("x", SimpleNamespace(size=(640, 480)))
    assert sink.span.work == Work(1, None, 640, 480)
