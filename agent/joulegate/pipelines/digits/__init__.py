"""A small text-to-image model that draws handwritten digits on a CPU, for demonstrations and tests."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = tuple(f"a handwritten {word}" for word in WORDS)
SIZE = 16
DEFAULT_STEPS = 8
WEIGHTS = Path(__file__).parent / "weights"

_QUIET_AND_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


class DiffusersUnavailable(ModuleNotFoundError):
    """A library that the digit pipeline runs on is not installed."""


def load_pipeline(threads: int = 1, weights: Path = WEIGHTS) -> StableDiffusionPipeline:
    """Load the digit model from local files, with PyTorch limited to ``threads`` threads in this process."""
    for name, value in _QUIET_AND_OFFLINE.items():
        os.environ.setdefault(name, value)
    try:
        import diffusers
        import torch
        import transformers
    except ModuleNotFoundError as error:
        message = f"the digit pipeline needs {error.name}: pip install 'joulegate[diffusers]'"
        raise DiffusersUnavailable(message, name=error.name) from error

    torch.set_num_threads(threads)
    text_config = transformers.CLIPTextConfig.from_pretrained(weights / "text_encoder", local_files_only=True)
    return _assemble(
        vae=_fill(_build(diffusers.AutoencoderKL, weights / "vae"), weights / "vae"),
        text_encoder=_fill(transformers.CLIPTextModel(text_config), weights / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(weights / "tokenizer", local_files_only=True),
        unet=_fill(_build(diffusers.UNet2DConditionModel, weights / "unet"), weights / "unet"),
        scheduler=_build(diffusers.DDIMScheduler, weights / "scheduler"),
    )


def clone(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """Make a pipeline for another thread: it shares the weights of ``pipe`` but not its scheduler or tokenizer.

    Both of those keep state that a call changes, so two threads must not share them.
    """
    return _assemble(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=copy.deepcopy(pipe.tokenizer),
        unet=pipe.unet,
        scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config),
    )


def _build(component_class: Any, folder: Path) -> Any:
    return component_class.from_config(component_class.load_config(folder, local_files_only=True))


def _fill(model: Any, folder: Path) -> Any:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.float().eval()


def _assemble(**components: Any) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
