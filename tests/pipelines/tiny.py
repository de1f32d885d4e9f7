"""Tiny real diffusers pipelines: built from configurations, random weights from a seed, nothing is downloaded.

Schedulers, denoising loop, guidance, text encoders, VAE, tokenizers and callbacks are the real ones; the weights are
noise, and so are the images. The same seed gives the same image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

WIDTH = 32
PRINTABLE = [chr(code) for code in range(33, 127)]


def clip_tokenizer() -> CLIPTokenizer:
    """Single characters, and the same at the end of a word."""
    tokens = [*PRINTABLE, *(char + "</w>" for char in PRINTABLE), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5TokenizerFast:
    """Single characters with a log-probability each."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((char, -8.0) for char in PRINTABLE)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=64)


def clip_text(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def t5_text(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """Two layers."""
    config = T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval()


def vae(latent_channels: int = 4, **settings: Any) -> AutoencoderKL:
    """Halves the side once: a scale factor of 2."""
    return AutoencoderKL(
        block_out_channels=(32, 64),
        latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **settings,
    ).eval()


def stable_diffusion() -> StableDiffusionPipeline:
    """A UNet of two blocks; 64 x 64 by default."""
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flux() -> FluxPipeline:
    """One double and one single block; its own default would be 256 x 256."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=1.5),
        text_encoder=clip_text(clip),
        tokenizer=clip,
        text_encoder_2=t5_text(t5),
        tokenizer_2=t5,
        transformer=transformer,
    )


def pixart() -> PixArtAlphaPipeline:
    """Two layers; knows only the older ``callback``; 64 x 64 by default."""
    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=32,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=WIDTH,
        cross_attention_dim=WIDTH,
        use_additional_conditions=False,
    ).eval()
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text(tokenizer),
        vae=vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


BUILDERS: dict[str, Callable[[], Any]] = {"sd": stable_diffusion, "flux": flux, "pixart": pixart}


def build(kind: str) -> Any:
    """The pipeline, always with the same weights."""
    torch.manual_seed(0)
    pipe = BUILDERS[kind]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
