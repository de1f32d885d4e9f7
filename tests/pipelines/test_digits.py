"""Tests of the digit pipeline."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from joulegate.pipelines import digits

PACKAGE = Path(digits.__file__).parent
SEED = 7


def draw(pipe: Any, prompts: list[str], steps: int = digits.DEFAULT_STEPS) -> np.ndarray:
    """Draw one image for each prompt from the fixed seed."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(SEED)
    images: np.ndarray = pipe(prompts, num_inference_steps=steps, generator=generator, output_type="np").images
    return images


def read_digits(images: np.ndarray) -> np.ndarray:
    """Read the images with a classifier trained on the scans."""
    datasets, svm = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.svm")
    classifier = svm.SVC(gamma=0.001, C=10).fit(*datasets.load_digits(return_X_y=True))
    halved = images.mean(-1).reshape(-1, 8, 2, 8, 2).mean((2, 4))
    read: np.ndarray = classifier.predict(halved.reshape(len(images), -1) * 16)
    return read


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The digit pipeline on one thread."""
    pytest.importorskip("diffusers")
    return digits.load_pipeline()


@pytest.fixture(scope="module")
def drawn(pipe: Any) -> np.ndarray:
    """The ten prompts drawn from the fixed seed."""
    return draw(pipe, list(digits.PROMPTS))


def test_draws_the_digit_that_the_prompt_names(drawn: np.ndarray) -> None:
    """A classifier reads the digit asked for in at least eight of the ten images."""
    assert drawn.shape == (10, digits.SIZE, digits.SIZE, 3)
    assert (read_digits(drawn) == np.arange(10)).sum() >= 8


def test_draws_the_same_from_the_same_seed(pipe: Any, drawn: np.ndarray) -> None:
    """The same prompts and seed give the same images."""
    assert np.array_equal(draw(pipe, list(digits.PROMPTS)), drawn)


def test_clones_draw_concurrently(pipe: Any) -> None:
    """Two clones drawing at the same time with different steps give the images that each gives alone."""
    jobs = [(digits.clone(pipe), steps) for steps in (3, 8)]

    def draw_all(job: tuple[Any, int]) -> list[np.ndarray]:
        return [draw(job[0], [prompt], job[1]) for prompt in digits.PROMPTS]

    alone = [draw_all(job) for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(draw_all, jobs))
    assert np.array_equal(alone, together)


def test_clone_shares_weights_only(pipe: Any) -> None:
    """A clone uses the very models of its original, and a scheduler and tokenizer of its own."""
    other = digits.clone(pipe)
    assert all(getattr(other, name) is getattr(pipe, name) for name in ("unet", "vae", "text_encoder"))
    assert other.scheduler is not pipe.scheduler
    assert other.tokenizer is not pipe.tokenizer


def test_weights_are_those_that_were_measured() -> None:
    """The published figures list every weight file with its hash."""
    listed = json.loads((PACKAGE / "figures.json").read_text())["sha256"]
    files = [path for path in digits.WEIGHTS.rglob("*") if path.is_file()]
    found = {path.relative_to(digits.WEIGHTS).as_posix(): path.read_bytes() for path in files}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == listed


def test_import_loads_no_framework_and_drawing_prints_nothing() -> None:
    """Importing the package does not import PyTorch, and loading and drawing print nothing even without settings."""
    pytest.importorskip("diffusers")
    script = (
        "import sys; from joulegate.pipelines import digits; assert 'torch' not in sys.modules;"
        "pipe = digits.load_pipeline(); pipe(digits.PROMPTS[7], num_inference_steps=1)"
    )
    hidden = ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_settings_of_the_user_are_kept(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the pipeline leaves a verbosity that the user has set as it is."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    digits.load_pipeline()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without diffusers, loading fails with one line that names the extra to install."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        digits.load_pipeline()
    assert str(caught.value) == "the digit pipeline needs diffusers: pip install 'joulegate[diffusers]'"
