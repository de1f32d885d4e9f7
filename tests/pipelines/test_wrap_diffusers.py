"""``wrap`` on real diffusers pipelines, tiny and with random weights."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.pipelines.recording import RecordingSink

from joulegate.metering.span import Outcome, Work
from joulegate.pipelines.meter import Meter
from joulegate.pipelines.wrap import last_request, wrap

RequireModule = Callable[[str, str], ModuleType]
PROMPT = "a red car"
CLASS_NAMES = {"sd": "StableDiffusionPipeline", "flux": "FluxPipeline", "pixart": "PixArtAlphaPipeline"}


EXTRAS: dict[str, dict[str, Any]] = {
    "sd": {},
    "flux": {"max_sequence_length": 48},
    "pixart": {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 48},
}


@pytest.fixture(scope="module", params=sorted(CLASS_NAMES))
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of pipeline."""
    return request.param


@pytest.fixture(scope="module")
def pipe(kind: str, require_module: RequireModule) -> Any:
    """The bare pipeline."""
    return build(kind, require_module)


@pytest.fixture(scope="module")
def sd(require_module: RequireModule) -> Any:
    """A bare Stable Diffusion pipeline."""
    return build("sd", require_module)


def build(kind: str, require_module: RequireModule) -> Any:
    """A tiny pipeline, where its libraries are there."""
    for name in ("torch", "diffusers", "transformers"):
        require_module(name, "diffusers")
    from tests.pipelines import tiny

    return tiny.build(kind)


@pytest.fixture
def sink() -> RecordingSink:
    """An empty sink."""
    return RecordingSink()


@pytest.fixture
def meter(sink: RecordingSink) -> Meter:
    """A meter into the sink."""
    return Meter(sink)


def generate(pipe: Any, kind: str, prompt: Any = PROMPT, **asked: Any) -> np.ndarray:
    """Images as numbers, from a seeded generator, two steps at 64 x 64 unless asked otherwise."""
    import torch

    generator = torch.Generator().manual_seed(7)
    asked = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"} | EXTRAS[kind] | asked
    return pipe(prompt, generator=generator, **asked).images


def test_a_wrapped_pipeline_gives_the_same_image_and_tells_what_was_asked(
    pipe: Any, kind: str, sink: RecordingSink, meter: Meter
) -> None:
    """The image is the unwrapped one to the bit; images, steps, size and model are read; every step is marked."""
    bare = generate(pipe, kind)
    wrapped = wrap(pipe, meter, tier="free")
    assert np.array_equal(generate(wrapped, kind), bare)
    span = sink.span
    assert (span.work, span.model, span.tier) == (Work(1, 2, 64, 64), CLASS_NAMES[kind], "free")
    steps_s = last_request(wrapped).steps_s
    assert len(steps_s) == 2
    assert span.started_s <= steps_s[0] <= steps_s[1] <= sink.ended[0][1]
    assert (sink.outcome, meter.unlabelled, meter.mislabelled) == (Outcome.OK, 0, 0)


def test_several_prompts_and_images_a_prompt_are_counted(
    pipe: Any, kind: str, sink: RecordingSink, meter: Meter
) -> None:
    """Images are prompts times images per prompt, as many as come out."""
    images = generate(wrap(pipe, meter), kind, [PROMPT, "a dog"], num_images_per_prompt=2)
    assert len(images) == sink.span.work.images == 4


def test_a_users_own_callback_runs_and_its_answer_counts(
    pipe: Any, kind: str, sink: RecordingSink, meter: Meter
) -> None:
    """A callback of the user gets what it would get without us, and what it returns has the same effect."""
    wrapped = wrap(pipe, meter)
    if kind == "pixart":

        def run(pipeline: Any) -> tuple[list, np.ndarray]:
            seen = []
            images = generate(
                pipeline, kind, num_inference_steps=4,
                callback=lambda step, t, latents: seen.append((step, int(t), latents.shape)), callback_steps=2,
            )  # fmt: skip
            return seen, images
    else:

        def run(pipeline: Any) -> tuple[list, np.ndarray]:
            seen = []

            def halve(own: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                seen.append((own is pipe, step, int(t), sorted(tensors)))
                return {"latents": tensors["latents"] / 2}

            return seen, generate(pipeline, kind, num_inference_steps=4, callback_on_step_end=halve)

    seen_bare, bare = run(pipe)
    seen_wrapped, images = run(wrapped)
    assert seen_wrapped == seen_bare
    assert len(seen_bare) == (2 if kind == "pixart" else 4)
    assert np.array_equal(images, bare)
    assert not np.array_equal(images, generate(pipe, kind, num_inference_steps=4)) or kind == "pixart"
    assert len(last_request(wrapped).steps_s) == len(seen_bare)


def test_a_callback_object_still_gets_the_tensors_it_wants(sd: Any, meter: Meter) -> None:
    """A ``PipelineCallback`` is asked for its tensors as without us."""
    from diffusers.callbacks import PipelineCallback

    seen: list[list[str]] = []

    class Wanting(PipelineCallback):
        tensor_inputs = ["latents", "prompt_embeds"]  # noqa: RUF012 - the library's own way

        def callback_fn(self, _pipe: Any, _step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append(sorted(tensors))
            return tensors

    generate(wrap(sd, meter), "sd", callback_on_step_end=Wanting(cutoff_step_ratio=1.0))
    assert seen == [["latents", "prompt_embeds"]] * 2


def test_the_pipelines_own_size_is_read_where_none_is_asked(
    pipe: Any, kind: str, sink: RecordingSink, meter: Meter
) -> None:
    """Without height and width the label is the size of the image that comes out."""
    images = generate(wrap(pipe, meter), kind, height=None, width=None)
    assert (sink.span.work.height, sink.span.work.width) == images.shape[1:3]


def test_embeddings_are_counted_where_there_is_no_prompt(sd: Any, sink: RecordingSink, meter: Meter) -> None:
    """A call with prompt embeddings is counted by their first dimension."""
    embeddings, negative = sd.encode_prompt([PROMPT] * 3, "cpu", 1, True)
    generate(wrap(sd, meter), "sd", None, prompt_embeds=embeddings, negative_prompt_embeds=negative)
    assert sink.span.work.images == 3


def test_the_proxy_is_the_pipeline_in_every_other_way(sd: Any, meter: Meter) -> None:
    """Attributes are read, set and deleted on the pipeline; it is an instance of its class; ``to`` keeps the proxy."""
    from diffusers import DiffusionPipeline

    wrapped = wrap(sd, meter)
    assert isinstance(wrapped, DiffusionPipeline)
    assert wrapped.scheduler is sd.scheduler
    wrapped.mine = 5
    assert sd.mine == 5
    del wrapped.mine
    assert not hasattr(sd, "mine")
    assert wrapped.to("cpu") is wrapped
    assert "unet" in dir(wrapped)
    assert wrapped.components.keys() == sd.components.keys()
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = wrapped.nothing_like_it


def test_the_model_is_called_by_the_name_it_was_loaded_by(sd: Any, sink: RecordingSink, meter: Meter, tmp_path) -> None:
    """A pipeline from a folder or a repository is labelled with the last part of its name."""
    from diffusers import DiffusionPipeline

    sd.save_pretrained(tmp_path / "sd-tiny")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "sd-tiny", local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    generate(wrap(loaded, meter), "sd", num_inference_steps=1)
    assert (sink.span.model, sink.span.power_class) == ("sd-tiny", "sd-tiny")


def test_a_call_with_wrong_arguments_fails_as_it_would_unwrapped(sd: Any, sink: RecordingSink, meter: Meter) -> None:
    """What the pipeline says of wrong arguments is what the caller sees, and the request is failed and unlabelled."""
    wrapped = wrap(sd, meter)
    with pytest.raises(TypeError):
        wrapped(PROMPT, prompt=PROMPT)
    assert meter.unlabelled == 1
    with pytest.raises(ValueError, match="divisible"):
        generate(wrapped, "sd", height=63)
    assert [outcome for _, _, outcome in sink.ended] == [Outcome.FAILED] * 2


def test_interrupting_from_a_callback_works(sd: Any, meter: Meter) -> None:
    """The pipeline handed to a callback is the one that listens to ``_interrupt``."""
    wrapped = wrap(sd, meter)
    steps = []

    def stop_early(own: Any, step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        own._interrupt = step == 1
        return tensors

    generate(wrapped, "sd", num_inference_steps=6, callback_on_step_end=stop_early)
    assert steps == [0, 1]


def test_a_call_inside_a_request_belongs_to_it(sd: Any, sink: RecordingSink, meter: Meter) -> None:
    """A wrapped pipeline inside ``with meter.request`` is not billed twice: one span, with its steps marked."""
    with meter.request("mine", images=1) as request:
        generate(wrap(sd, meter), "sd")
    assert sink.span.model == "mine"
    assert len(request.steps_s) == 2
