"""A complete model in Stable Diffusion's folder layout, a thousand times smaller, with random weights."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from inst.inversion import AttentionInversion, InversionConfig

WIDTH = 32
POSITIONS = 24
LATENT_CHANNELS = 4
PICTURE_SIZE = 64
WORDS = ["a", "painting", "photo", "of", "in", "the", "style", "river", "mountain", "dog", "church", "and", "by"]


def write_tiny_backbone(folder: Path, prediction_type: str = "v_prediction") -> Path:
    """Writes the model's parts into `folder`, fp16, with everything that mini has. The same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        parts = {
            "vae": AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                block_out_channels=[8, 8, 8, 8],
                layers_per_block=1,
                latent_channels=LATENT_CHANNELS,
                norm_num_groups=4,
                scaling_factor=0.7,
            ),
            "unet": UNet2DConditionModel(
                sample_size=8,
                in_channels=LATENT_CHANNELS,
                out_channels=LATENT_CHANNELS,
                down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
                block_out_channels=[8, 16],
                layers_per_block=1,
                norm_num_groups=4,
                attention_head_dim=8,
                cross_attention_dim=WIDTH,
            ),
            "text_encoder": tiny_text_encoder(tokenizer),
            "image_encoder": CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=WIDTH,
                    intermediate_size=2 * WIDTH,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    image_size=PICTURE_SIZE,
                    patch_size=16,
                    projection_dim=WIDTH,
                )
            ),
            "inversion": AttentionInversion(InversionConfig(WIDTH, WIDTH, WIDTH, vectors=3, layers=1, heads=4)),
        }
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    for name in ("text_encoder", "image_encoder"):
        edit_json(folder / name / "config.json", dtype="float32")
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")
    size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": PICTURE_SIZE}, crop_size=size).save_pretrained(
        folder / "feature_extractor"
    )
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over single bytes and a few whole words."""
    letters = list(bytes_to_unicode().values())
    vocab = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        symbols = [*word[:-1], word[-1] + "</w>"]
        for end in range(2, len(symbols) + 1):
            merges.append(("".join(symbols[: end - 1]), symbols[end - 1]))
    merges = list(dict.fromkeys(merges))
    vocab += dict.fromkeys(left + right for left, right in merges)
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(dict.fromkeys(vocab))},
        merges=merges,
        model_max_length=POSITIONS,
    )


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def edit_json(path: Path, **changes: object) -> None:
    """Sets entries of a JSON object; a value of None takes the entry out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
