"""``joulegate estimate`` as a person and a script meet it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from joulegate.cli.app import main

FLUX = ("--model", "FLUX.1-dev", "--gpu", "H100")


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one estimate."""
    code = main(["estimate", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON of an estimate that succeeds."""
    code, out, err = asked(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_json_contract(capsys: pytest.CaptureFixture[str]):
    """The design's three keys, a reason for the missing CO2e, the boundary and what was assumed."""
    answer = answered(capsys, *FLUX)
    assert set(answer["energy_j"]) == {"low", "central", "high"}
    assert answer["energy_j"]["low"] < answer["energy_j"]["central"] < answer["energy_j"]["high"]
    assert answer["prior"] == "reference"
    assert answer["co2e_g"] is None
    assert answer["co2e_why"]
    assert "GPUs" in answer["boundary"]
    assert "steps: 50" in answer["assumed"]


def test_every_option_counts(capsys: pytest.CaptureFixture[str]):
    """Images and steps are linear, pixels a little more, GPUs cost, parameters make an unknown model known."""
    one = answered(capsys, *FLUX, "--steps", "50")["energy_j"]["central"]
    many = answered(capsys, *FLUX, "--steps", "25", "--images", "4")["energy_j"]["central"]
    assert many == pytest.approx(2 * one, rel=1e-4)
    large = answered(capsys, *FLUX, "--width", "2048", "--height", "1024")["energy_j"]["central"]
    assert large == pytest.approx(one * 2**1.15, rel=1e-4)
    assert answered(capsys, *FLUX, "--gpus", "8")["energy_j"]["central"] > one
    unknown = answered(capsys, "--model", "mine", "--gpu", "H100", "--steps", "28", "--params", "12e9")
    assert unknown["prior"] == "flops"


def test_for_a_person(capsys: pytest.CaptureFixture[str]):
    """A table of low, central and high for the request and an image, and a sentence on what they rest on."""
    code, out, err = asked(capsys, *FLUX, "--images", "2")
    assert (code, err) == (0, "")
    head, request, image, prior, *_ = out.splitlines()
    assert head.split() == ["low", "central", "high"]
    assert request.split()[:1] == ["request"]
    assert "15.5 kJ" in request
    assert "7.73 kJ" in image
    assert prior.startswith("prior reference: ML.ENERGY measured FLUX.1 dev on H100")
    assert "CO2e is missing" in out


@pytest.mark.parametrize(
    ("model", "gpu", "nearest"),
    [("flux-devv", "H100", "FLUX.1 dev"), ("FLUX.1-dev", "NVIDIA H1000", "H100"), ("qqqq", "H100", None)],
)
def test_nothing_can_be_said(model: str, gpu: str, nearest: str | None, capsys: pytest.CaptureFixture[str]):
    """An unknown model or GPU is exit 1, one line with the nearest names, and no figure anywhere."""
    code, out, err = asked(capsys, "--model", model, "--gpu", gpu)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("joulegate: no estimate: ")
    assert nearest is None or nearest in err
    code, out, _ = asked(capsys, "--model", model, "--gpu", gpu, "--json")
    answer = json.loads(out)
    assert code == 1
    assert answer["energy_j"] is answer["prior"] is answer["co2e_g"] is None
    assert answer["why"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("--images", "0"),
        ("--steps", "-4"),
        ("--steps", "many"),
        ("--width", "512"),
        ("--params", "nan"),
        ("--gpus", "0"),
        ("--colour", "blue"),
    ],
)
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_wrong_question_is_usage(
    wrong: tuple[str, ...], as_json: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    """A figure that no request can have, or an unknown option, is exit 2, one line that names it, stdout empty."""
    code, out, err = asked(capsys, *FLUX, *wrong, *as_json)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert wrong[0].lstrip("-") in err


def test_model_and_gpu_are_needed(capsys: pytest.CaptureFixture[str]):
    """Without a model or a GPU there is no default: exit 2 and the option's name."""
    code, out, err = asked(capsys, "--gpu", "H100")
    assert (code, out) == (2, "")
    assert "--model" in err
