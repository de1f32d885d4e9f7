"""What a call of a generation pipeline asks for, read from its arguments, and the marks of its denoising steps.

Known by its shape and never imported: the parameter names are those of diffusers pipelines (``prompt``,
``num_images_per_prompt``, ``num_inference_steps``, ``height``, ``width``), which many other callables share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any

Marked = Callable[[Callable[[], None]], dict[str, Any]]
"""Given what to call after each step, the keyword arguments of the call."""

_PROMPT_NAMES = ("prompt", "prompt_embeds", "prompt_2", "image")
_PER_PROMPT_NAMES = ("num_images_per_prompt", "num_images", "n")
_STEP_NAMES = ("num_inference_steps", "steps")
_DENOISERS = ("unet", "transformer", "prior", "decoder")


class CallReader:
    """Reads the calls of one callable; whatever cannot be read raises, and its caller goes on without."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._is_pipeline = not inspect.isroutine(target) and hasattr(target, "scheduler")
        try:
            self._signature: inspect.Signature | None = inspect.signature(target)
        except (TypeError, ValueError):
            self._signature = None

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Marked | None]:
        """Labels for ``Meter.request``, and how to mark steps where the callable has a callback for them."""
        labels: dict[str, Any] = {"model": model_name(self._target)}
        if self._signature is None:
            return labels, None
        bound = self._signature.bind(*args, **kwargs)
        marked = _marking(self._signature, bound, kwargs)
        bound.apply_defaults()
        asked = _flat(bound, self._signature)
        labels["images"] = _images(asked)
        labels["steps"] = _steps(asked)
        labels["height"], labels["width"] = self._size(asked)
        return labels, marked

    def _size(self, asked: Mapping[str, Any]) -> tuple[int | None, int | None]:
        height, width = asked.get("height"), asked.get("width")
        if height is not None and width is not None:
            return height, width
        default_height, default_width = _image_size(asked.get("image")) or (
            _default_size(self._target) if self._is_pipeline else (None, None)
        )
        return height or default_height, width or default_width


def model_name(target: Any) -> str | None:
    """Last part of the name a pipeline was loaded by, else its class; of a function, its name."""
    if inspect.isroutine(target) or isinstance(target, partial):
        return getattr(target, "__name__", None)
    config = getattr(target, "config", None)
    origin = config.get("_name_or_path") if isinstance(config, Mapping) else getattr(config, "_name_or_path", None)
    parts = PurePosixPath(str(origin).replace("\\", "/")).parts if origin else ()
    cached = [part for part in parts if part.startswith("models--")]
    if cached:  # a folder of the hub's cache ends in a commit hash, and names the model further up
        return cached[-1].rpartition("--")[2]
    return parts[-1] if parts else type(target).__name__


def _flat(bound: inspect.BoundArguments, signature: inspect.Signature) -> dict[str, Any]:
    """Arguments by name, with those of ``**kwargs`` beside the others."""
    flat = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(flat.pop(name, {}))
    return flat


def _images(asked: Mapping[str, Any]) -> int | None:
    per_prompt = next((asked[name] for name in _PER_PROMPT_NAMES if asked.get(name) is not None), None)
    prompts = next((_length(asked[name]) for name in _PROMPT_NAMES if asked.get(name) is not None), None)
    if prompts is None and per_prompt is None:
        return None
    return (prompts or 1) * (per_prompt or 1)


def _length(prompt: Any) -> int:
    """Number of prompts in text, a list, or a tensor of embeddings (its first dimension)."""
    if isinstance(prompt, list | tuple):
        return len(prompt)
    shape = getattr(prompt, "shape", None)
    return int(shape[0]) if shape is not None and len(shape) > 1 else 1


def _steps(asked: Mapping[str, Any]) -> int | None:
    for name in ("timesteps", "sigmas"):
        own = asked.get(name)
        if own is not None and hasattr(own, "__len__"):
            return len(own)
    return next((asked[name] for name in _STEP_NAMES if asked.get(name) is not None), None)


def _image_size(image: Any) -> tuple[int, int] | None:
    """Height and width of an input image (PIL: ``size`` is width, height) or of the first of a list."""
    if isinstance(image, list | tuple) and image:
        image = image[0]
    size = getattr(image, "size", None)
    return (int(size[1]), int(size[0])) if isinstance(size, tuple) and len(size) == 2 else None


def _default_size(pipe: Any) -> tuple[int | None, int | None]:
    """The size a pipeline takes by itself: its sample size in latents times the VAE's scale."""
    scale = getattr(pipe, "vae_scale_factor", None)
    sample = getattr(pipe, "default_sample_size", None)
    for name in _DENOISERS:
        if sample is None:
            sample = getattr(getattr(getattr(pipe, name, None), "config", None), "sample_size", None)
    if scale is None or sample is None:
        return None, None
    height, width = (sample, sample) if isinstance(sample, int) else (sample[0], sample[1])
    return int(height * scale), int(width * scale)


def _marking(signature: inspect.Signature, bound: inspect.BoundArguments, kwargs: Mapping[str, Any]) -> Marked | None:
    """How to put our mark into the callback the callable has; a callback given by position is left alone."""
    names = signature.parameters.keys()
    if "callback_on_step_end" in names:
        name, marking = "callback_on_step_end", _mark_step_ends
    elif {"callback", "callback_steps"} <= names:
        name, marking = "callback", _mark_callback
    else:
        return None
    if name in bound.arguments and name not in kwargs:
        return None
    return partial(marking, kwargs)


def _mark_step_ends(kwargs: Mapping[str, Any], step: Callable[[], None]) -> dict[str, Any]:
    """``callback_on_step_end`` that marks, then does and returns what the user's own would."""
    own = kwargs.get("callback_on_step_end")

    def on_step_end(pipe: Any, index: Any, timestep: Any, tensors: Any) -> Any:
        step()
        return tensors if own is None else own(pipe, index, timestep, tensors)

    changed = {**kwargs, "callback_on_step_end": on_step_end}
    wanted = getattr(own, "tensor_inputs", None)
    if wanted is not None:  # of a PipelineCallback the pipeline asks which tensors it wants; of our function it cannot
        changed["callback_on_step_end_tensor_inputs"] = wanted
    return changed


def _mark_callback(kwargs: Mapping[str, Any], step: Callable[[], None]) -> dict[str, Any]:
    """The older ``callback``, at the user's own ``callback_steps`` when there is a user's callback, else at each."""
    own = kwargs.get("callback")

    def callback(*args: Any, **named: Any) -> Any:
        step()
        return None if own is None else own(*args, **named)

    changed = {**kwargs, "callback": callback}
    if own is None:
        changed["callback_steps"] = 1
    return changed
