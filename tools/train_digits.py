"""Train the digit pipeline from scikit-learn's bundled scans, measure it and write its weights and model card."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import statistics
import tempfile
import textwrap
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, logging

from joulegate.pipelines.digits import DEFAULT_STEPS, PROMPTS, SIZE, WORDS, load_pipeline

PHRASINGS = ("a handwritten {word}", "a handwritten {word}", "{word}", "the digit {numeral}", "a handwritten {numeral}")
UNCONDITIONAL = len(WORDS)
UNCONDITIONAL_SHARE = 0.1
SCAN_SIZE = 8
SCAN_MAX = 16
LATENT_CHANNELS = 4
TOKENS = 16
TEXT_WIDTH = 64
TRAIN_TIMESTEPS = 1000
BATCH = 32
VAE_RATE = 2e-3
UNET_RATE = 1.5e-3
KL_WEIGHT = 1e-4
AVERAGE_DECAY = 0.995
LOSS_WINDOW = 200
REPORT_SECONDS = 5.0

MEASURED_STEPS = (1, 2, 4, 8, 16, 32)
MEASURED_PROMPTS = list(PROMPTS) * 10
GUIDANCE = 7.5
TIMED_RUNS = 9
EVALUATION_SEED = 1
LINE_LENGTH = 120

LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "scikit-learn", "numpy")
DATASET = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, "
    "https://doi.org/10.24432/C50P49, CC BY 4.0, as bundled with scikit-learn (sklearn.datasets.load_digits)"
)

CARD = """# Digit model

A text-to-image diffusion model with {parameters:,} parameters that draws one handwritten digit, {size} x {size} pixels,
from a prompt such as "{prompt}". Joulegate uses it for demonstrations and tests on machines without a GPU.
It runs in an ordinary `StableDiffusionPipeline`: CLIP text encoder, UNet, VAE and DDIM scheduler, only much smaller.

## Data

{dataset}

The 1,797 scans were enlarged from 8 x 8 to {size} x {size} pixels, and all of them were used for training.

## Training

`tools/train_digits.py --seed {seed} --vae-steps {vae_steps} --unet-steps {unet_steps}`,
{minutes:.1f} minutes of processor time on one core, finished {date}.
Loss, averaged over the last {window} steps: VAE {vae_loss:.4f}, UNet {unet_loss:.4f}.
The weights are stored as float16 and run as float32.

{libraries}

## Figures

All are taken over {images} images, ten for each prompt, at guidance {guidance}, the default of the pipeline.

- Agreement is the share of images in which a support vector classifier trained on the same scans reads the digit that
  the prompt asked for. In five-fold cross-validation on the scans that classifier is right {judge:.1%} of the time.
- Variety is the standard deviation of pixels among images of one digit, relative to that among the scans.
- Difference is the root mean square difference of pixels, which lie between 0 and 1, from the images that the same
  seed gives at {most_steps} steps.
- Times are processor time on one thread of {machine}; other machines differ.

| steps | agreement | variety | difference | ms per image, batch of {images} | ms per image, one at a time |
| ---: | ---: | ---: | ---: | ---: | ---: |
{rows}

With the weights as trained, before rounding to float16, agreement at {default_steps} steps is {unrounded:.2f}.

## Limits

{wordings}

Agreement says that digits are legible, not that they are new, for the classifier saw the same scans as the model.
It can be high even at one step, because the average shape of a digit is legible; variety and difference show what
further steps add.

## Files

{files}
"""


class Progress:
    """Prints a line every few seconds and keeps the mean of the latest losses."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self.total = total
        self._losses: deque[float] = deque(maxlen=LOSS_WINDOW)
        self._started = self._reported = time.monotonic()

    @property
    def loss(self) -> float:
        """Mean loss over the latest steps."""
        return statistics.fmean(self._losses)

    def record(self, step: int, loss: float) -> None:
        """Take the loss of a step, counted from zero, and print if it is time to."""
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS or step + 1 == self.total:
            self._reported = now
            elapsed = now - self._started
            print(f"{self._name} step {step + 1}/{self.total} loss {self.loss:.4f} {elapsed:.0f} s", flush=True)


def load_scans() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scans as RGB images in [-1, 1] at the model's size, and the digit in each."""
    pixels, digits = load_digits(return_X_y=True)
    scans = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, SCAN_SIZE, SCAN_SIZE) / SCAN_MAX
    images = functional.interpolate(scans, (SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1) * 2 - 1
    return images.repeat(1, 3, 1, 1), torch.tensor(digits)


def build_tokenizer() -> CLIPTokenizer:
    """Build a CLIP tokenizer in which each word of the prompts is one token and any other text falls back to bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = list(dict.fromkeys(merge for word in ("handwritten", "digit", "the", *WORDS) for merge in spell(word)))
    merged = [left + right for left, right in merges]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *merged, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=TOKENS
    )


def spell(word: str) -> list[tuple[str, str]]:
    """List the merges that build a word letter by letter."""
    letters = [*word[:-1], word[-1] + "</w>"]
    return [("".join(letters[:length]), letters[length]) for length in range(1, len(letters))]


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build an untrained text encoder."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_vae() -> AutoencoderKL:
    """Build an untrained image autoencoder that halves each side."""
    return AutoencoderKL(
        sample_size=SIZE,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Build an untrained denoiser for the autoencoder's latents."""
    return UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def build_scheduler() -> DDIMScheduler:
    """Build the noise schedule, the same for training and drawing."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )


def optimise(
    modules: torch.nn.Module, rate: float, loss_of: Callable[[], torch.Tensor], progress: Progress, average: bool
) -> None:
    """Minimise a loss with a cosine learning rate; ``average`` leaves a running mean of the weights."""
    optimiser = torch.optim.AdamW(modules.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, progress.total, eta_min=rate / 100)
    averaged = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY)) if average else None
    modules.train()
    for step in range(progress.total):
        loss = loss_of()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if averaged is not None:
            averaged.update_parameters(modules)
        progress.record(step, loss.item())
    if averaged is not None:
        modules.load_state_dict(averaged.module.state_dict())
    modules.eval()


def train_vae(vae: AutoencoderKL, images: torch.Tensor, steps: int) -> float:
    """Train the autoencoder and return its final loss."""

    def loss_of() -> torch.Tensor:
        batch = images[torch.randint(len(images), (BATCH,))]
        posterior = vae.encode(batch).latent_dist
        restored = vae.decode(posterior.sample()).sample
        return functional.mse_loss(restored, batch) + KL_WEIGHT * posterior.kl().mean()

    progress = Progress("vae", steps)
    optimise(vae, VAE_RATE, loss_of, progress, average=False)
    return progress.loss


def encode_latents(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Encode the images and set the autoencoder's scaling so that the latents have unit variance."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in images.split(256)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return latents * vae.config.scaling_factor


def tokenize_phrasings(tokenizer: CLIPTokenizer) -> list[torch.Tensor]:
    """Return, for each phrasing, the token ids of the ten prompts followed by those of the empty prompt."""
    tables = []
    for phrasing in PHRASINGS:
        prompts = [phrasing.format(word=word, numeral=numeral) for numeral, word in enumerate(WORDS)]
        encoded = tokenizer([*prompts, ""], padding="max_length", max_length=TOKENS, truncation=True)
        tables.append(torch.tensor(encoded["input_ids"]))
    return tables


def train_denoiser(
    modules: torch.nn.ModuleList, tables: list[torch.Tensor], latents: torch.Tensor, digits: torch.Tensor, steps: int
) -> float:
    """Train the two modules, denoiser and text encoder, together and return their final loss."""
    unet, text_encoder = modules
    scheduler = build_scheduler()

    def loss_of() -> torch.Tensor:
        chosen = torch.randint(len(latents), (BATCH,))
        prompts = digits[chosen].where(torch.rand(BATCH) >= UNCONDITIONAL_SHARE, UNCONDITIONAL)
        text = text_encoder(random.choice(tables)).last_hidden_state[prompts]
        clean, noise = latents[chosen], torch.randn(BATCH, *latents.shape[1:])
        timesteps = torch.randint(TRAIN_TIMESTEPS, (BATCH,))
        predicted = unet(scheduler.add_noise(clean, noise, timesteps), timesteps, text).sample
        return functional.mse_loss(predicted, scheduler.get_velocity(clean, noise, timesteps))

    progress = Progress("unet", steps)
    optimise(modules, UNET_RATE, loss_of, progress, average=True)
    return progress.loss


def save_weights(components: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    """Save each component in a folder of its own: its settings, and a model's weights in the given type."""
    components["tokenizer"].save_pretrained(folder / "tokenizer")
    components["text_encoder"].config.save_pretrained(folder / "text_encoder")
    for name in ("vae", "unet", "scheduler"):
        components[name].save_config(folder / name)
    for name in ("vae", "unet", "text_encoder"):
        tensors = {key: tensor.to(dtype) for key, tensor in components[name].state_dict().items()}
        (folder / name / "model.safetensors").write_bytes(safetensors.torch.save(tensors))


def draw(pipe: Any, prompts: list[str], steps: int) -> np.ndarray:
    """Draw one image for each prompt from the evaluation seed."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    settings = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "generator": generator}
    images: np.ndarray = pipe(prompts, **settings, output_type="np").images
    return images


def spread(images: np.ndarray, digits: np.ndarray) -> float:
    """Return the standard deviation of a pixel among images of the same digit, averaged over pixels and digits."""
    grey = images.mean(-1)
    return float(np.mean([grey[digits == digit].std(axis=0, ddof=1).mean() for digit in range(len(WORDS))]))


class Judge:
    """Compares what the model draws, given the ten prompts over and over, with the scans."""

    def __init__(self) -> None:
        pixels, digits = load_digits(return_X_y=True)
        self.accuracy = float(cross_val_score(SVC(gamma=0.001, C=10), pixels, digits, cv=5).mean())
        self._classifier = SVC(gamma=0.001, C=10).fit(pixels, digits)
        images, _ = load_scans()
        self._spread = spread(images.permute(0, 2, 3, 1).numpy() / 2 + 0.5, digits)

    def agreement(self, images: np.ndarray) -> float:
        """Return the share of images in which a classifier trained on the scans reads the digit asked for."""
        grey = torch.tensor(images).mean(-1)[:, None]
        scans = functional.interpolate(grey, (SCAN_SIZE, SCAN_SIZE), mode="area").reshape(len(images), -1) * SCAN_MAX
        return float((self._classifier.predict(scans.numpy()) == np.arange(len(images)) % len(WORDS)).mean())

    def variety(self, images: np.ndarray) -> float:
        """Return how much images of the same digit differ, as a share of how much the scans do."""
        return spread(images, np.arange(len(images)) % len(WORDS)) / self._spread


def measure(pipe: Any, judge: Judge, steps: int, finest: np.ndarray) -> dict[str, float]:
    """Measure the quality at a number of steps, also against the finest images, and the processor time per image."""
    started = time.process_time()
    images = draw(pipe, MEASURED_PROMPTS, steps)
    batch_seconds = time.process_time() - started
    alone = []
    for _ in range(TIMED_RUNS):
        started = time.process_time()
        draw(pipe, [PROMPTS[7]], steps)
        alone.append(time.process_time() - started)
    figures = {
        "steps": steps,
        "agreement": round(judge.agreement(images), 4),
        "variety": round(judge.variety(images), 4),
        "difference_from_finest": round(float(np.sqrt(np.mean((images - finest) ** 2))), 4),
        "batch_cpu_ms_per_image": round(batch_seconds * 1000 / len(images), 2),
        "single_cpu_ms_per_image": round(statistics.median(alone) * 1000, 2),
    }
    print(json.dumps(figures), flush=True)
    return figures


def agreement_before_rounding(components: dict[str, Any], judge: Judge) -> float:
    """Return the agreement at the default steps with the weights kept as float32."""
    with tempfile.TemporaryDirectory() as folder:
        save_weights(components, Path(folder), torch.float32)
        images = draw(load_pipeline(weights=Path(folder)), MEASURED_PROMPTS, DEFAULT_STEPS)
    return judge.agreement(images)


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def machine_name() -> str:
    """Return the processor's model name, as far as the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def wrap(text: str) -> str:
    """Break a paragraph into lines of the usual length."""
    return textwrap.fill(text, LINE_LENGTH, break_long_words=False, break_on_hyphens=False)


def describe(figures: dict[str, Any]) -> str:
    """Write the model card from the figures."""
    rows = "\n".join(
        f"| {row['steps']} | {row['agreement']:.2f} | {row['variety']:.2f} | {row['difference_from_finest']:.3f} "
        f"| {row['batch_cpu_ms_per_image']:.1f} | {row['single_cpu_ms_per_image']:.1f} |"
        for row in figures["by_steps"]
    )
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    wordings = ", ".join(f'"{phrasing.format(word=WORDS[7], numeral=7)}"' for phrasing in dict.fromkeys(PHRASINGS))
    copied = ("seed", "vae_steps", "unet_steps", "vae_loss", "unet_loss", "date", "machine")
    return CARD.format(
        **{key: figures[key] for key in copied},
        parameters=sum(figures["parameters"].values()),
        size=SIZE,
        prompt=PROMPTS[7],
        minutes=figures["training_cpu_seconds"] / 60,
        window=LOSS_WINDOW,
        dataset=wrap(f"{figures['dataset']}."),
        libraries=wrap(f"Libraries: {versions}."),
        images=len(MEASURED_PROMPTS),
        guidance=GUIDANCE,
        judge=figures["judge_accuracy"],
        rows=rows,
        wordings=wrap(f"It understands {wordings}; any other prompt gives an arbitrary digit-like shape."),
        default_steps=DEFAULT_STEPS,
        most_steps=max(MEASURED_STEPS),
        unrounded=figures["agreement_before_rounding"],
        files="\n".join(f"- `weights/{name}` {digest}" for name, digest in figures["sha256"].items()),
    )


def train(seed: int, vae_steps: int, unet_steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train every part and return the pipeline's components and the figures of the training."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random.seed(seed)
    started = time.process_time()
    images, digits = load_scans()
    tokenizer = build_tokenizer()
    vae, unet, text_encoder = build_vae(), build_unet(), build_text_encoder(tokenizer)
    vae_loss = train_vae(vae, images, vae_steps)
    latents = encode_latents(vae, images)
    denoiser = torch.nn.ModuleList([unet, text_encoder])
    unet_loss = train_denoiser(denoiser, tokenize_phrasings(tokenizer), latents, digits, unet_steps)
    models = {"vae": vae, "unet": unet, "text_encoder": text_encoder}
    figures = {
        "seed": seed,
        "vae_steps": vae_steps,
        "unet_steps": unet_steps,
        "vae_loss": vae_loss,
        "unet_loss": unet_loss,
        "training_cpu_seconds": round(time.process_time() - started, 1),
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
    }
    return {**models, "tokenizer": tokenizer, "scheduler": build_scheduler()}, figures


def evaluate(components: dict[str, Any], weights: Path) -> dict[str, Any]:
    """Measure the pipeline as saved and return the figures."""
    judge = Judge()
    pipe = load_pipeline(weights=weights)
    finest = draw(pipe, MEASURED_PROMPTS, max(MEASURED_STEPS))
    return {
        "by_steps": [measure(pipe, judge, steps, finest) for steps in MEASURED_STEPS],
        "images_measured": len(MEASURED_PROMPTS),
        "guidance": GUIDANCE,
        "agreement_before_rounding": agreement_before_rounding(components, judge),
        "judge_accuracy": judge.accuracy,
        "machine": machine_name(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "dataset": DATASET,
        "sha256": hash_files(weights),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    package = Path(__file__).parents[1] / "agent" / "joulegate" / "pipelines" / "digits"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=package, help="folder for the weights, figures and model card")
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole training")
    parser.add_argument("--vae-steps", type=int, default=3000, help="training steps of the autoencoder")
    parser.add_argument("--unet-steps", type=int, default=6000, help="training steps of the denoiser")
    return parser.parse_args()


def main() -> None:
    """Train, save, measure and describe the digit model."""
    arguments = parse_arguments()
    logging.set_verbosity_error()
    components, figures = train(arguments.seed, arguments.vae_steps, arguments.unet_steps)
    save_weights(components, arguments.out / "weights", torch.float16)
    figures |= evaluate(components, arguments.out / "weights")
    (arguments.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    (arguments.out / "MODEL_CARD.md").write_text(describe(figures))


if __name__ == "__main__":
    main()
