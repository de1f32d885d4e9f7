"""The digit model draws what it is asked for, from its own files, quietly and on several threads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from joulegate.pipelines import digits

PACKAGE = Path(digits.__file__).parent
AGENT = PACKAGE.parents[2]
SEED = 7
SETTINGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")

RequireModule = Callable[[str, str], ModuleType]


def draw(pipe: Any, prompts: list[str], steps: int = digits.DEFAULT_STEPS) -> np.ndarray:
    """Draw one image for each prompt from the fixed seed."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    return pipe(prompts, num_inference_steps=steps, generator=generator, output_type="np").images


def run_fresh(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter without any settings of the libraries."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment["PYTHONPATH"] = str(AGENT)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def pipe(require_module: RequireModule) -> Any:
    """The digit pipeline on one thread."""
    for name in ("torch", "transformers", "diffusers"):
        require_module(name, "diffusers")
    return digits.load_pipeline()


@pytest.fixture(scope="module")
def drawn(pipe: Any) -> np.ndarray:
    """The ten prompts drawn from the fixed seed."""
    return draw(pipe, list(digits.PROMPTS))


def test_draws_the_digit_that_the_prompt_names(drawn: np.ndarray):
    """A classifier trained on the scans reads the digit asked for in at least eight of the ten images."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    assert drawn.shape == (10, digits.SIZE, digits.SIZE, 3)
    halved = drawn.mean(-1).reshape(-1, 8, 2, 8, 2).mean((2, 4))
    read = SVC(gamma=0.001, C=10).fit(*load_digits(return_X_y=True)).predict(halved.reshape(10, -1) * 16)
    assert (read == np.arange(10)).sum() >= 8


def test_draws_the_same_from_the_same_seed(pipe: Any, drawn: np.ndarray):
    """The same prompts with the same seed give the same images."""
    assert np.array_equal(draw(pipe, list(digits.PROMPTS)), drawn)


def test_clones_draw_concurrently(pipe: Any):
    """Two clones that draw at the same time with different steps give the images that each gives alone."""
    jobs = [(digits.clone(pipe), steps) for steps in (3, 8)]

    def draw_all(job: tuple[Any, int]) -> list[np.ndarray]:
        return [draw(job[0], [prompt], job[1]) for prompt in digits.PROMPTS]

    alone = [draw_all(job) for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(draw_all, jobs))
    assert np.array_equal(alone, together)


def test_clone_shares_weights_only(pipe: Any):
    """A clone uses the very models of its original with a scheduler and a tokenizer of its own."""
    other = digits.clone(pipe)
    assert all(getattr(other, name) is getattr(pipe, name) for name in ("unet", "vae", "text_encoder"))
    assert other.scheduler is not pipe.scheduler
    assert other.tokenizer is not pipe.tokenizer


def test_weights_are_those_that_were_measured():
    """The published figures list exactly the weight files, each with its hash."""
    listed = json.loads((PACKAGE / "figures.json").read_text(encoding="utf-8"))["sha256"]
    files = [path for path in digits.WEIGHTS.rglob("*") if path.is_file()]
    found = {path.relative_to(digits.WEIGHTS).as_posix(): path.read_bytes() for path in files}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == listed


def test_settings_of_the_user_are_kept(pipe: Any, monkeypatch: pytest.MonkeyPatch):
    """Loading the pipeline leaves a verbosity that the user has set as it is."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    digits.load_pipeline()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"


def test_importing_costs_nothing():
    """The package is imported without PyTorch."""
    done = run_fresh("import sys; from joulegate.pipelines import digits; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_prints_nothing(require_module: RequireModule):
    """Loading and drawing print nothing even where no library is told to be quiet."""
    require_module("diffusers", "diffusers")
    load = "from joulegate.pipelines import digits; pipe = digits.load_pipeline()"
    done = run_fresh(f"{load}; pipe(digits.PROMPTS[7], num_inference_steps=1)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_missing_library_says_what_to_install():
    """Without diffusers, loading fails with one line that names the extra to install."""
    hide = "import sys; sys.modules['diffusers'] = None"
    done = run_fresh(f"{hide}; from joulegate.pipelines import digits; digits.load_pipeline()")
    last_line = done.stderr.splitlines()[-1]
    assert last_line.endswith("Unavailable: the digit pipeline needs diffusers: pip install 'joulegate[diffusers]'")
