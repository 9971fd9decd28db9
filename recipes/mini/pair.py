"""Stage 3: the text and image encoders, learned together by contrast (CLIP, Radford et al. 2021) and by distillation.

    torchrun --nproc-per-node 4 recipes/mini/pair.py --data SHARDS --tokenizer runs/tokenizer/tokenizer \
        --out runs/pair --minutes 8

Writes `text_encoder/`, `image_encoder/`, `feature_extractor/` and, for the stages to come, the `tokenizer/` that it was
given into --out. 20,000 pictures are few for a contrastive pair, so the image encoder also learns from networks trained
on ImageNet: its pooled state predicts the features of the Inception network (what is shown), its patch tokens predict
local statistics of VGG-16 layers (how it is painted; what the inversion module later reads).
"""

from __future__ import annotations

if __name__ == "__main__":
    from files import guarded

    guarded("pair")

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed.nn.functional as dist_functional
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from captions import CaptionBank, plain
from data import cut, load_shards, random_squares
from files import need, write_folder
from inst.backbone.loading.part import load_weights
from inst.backbone.text import encode_text
from inst.errors import UsageError
from inst.evaluation.networks.inception import InceptionFID
from inst.evaluation.networks.vgg import VGG16Features
from options import real, whole
from sample import sheet
from tokenizer import digest
from tokenizer import load as load_tokenizer
from tokenizer import save as save_tokenizer
from training import EMA, TimeBox, Training, arguments, channels_last, learning_rate, optimiser, settings_of
from workers import Workers

SIZE, PATCH = 224, 16
GRID = SIZE // PATCH
HEAD = 32
"""Width of an attention head of both encoders."""
TEXTURE_BLOCKS = 4
"""VGG-16 blocks whose local means and root mean squares the patch tokens predict."""
_TEXTURE_WIDTH = 2 * (64 + 128 + 256 + 512)
CONTENT_WEIGHT, TEXTURE_WEIGHT = 0.5, 0.5
TEMPERATURE_FLOOR = 0.02
SMALLEST_BATCH = 4
"""The features of half of a batch are brought to unit variance, for which it takes two."""


def build_text(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attention_dropout=0.1,
        )
    )


def build_vision(width: int, layers: int) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD,
            image_size=SIZE,
            patch_size=PATCH,
            projection_dim=width,
            attention_dropout=0.1,
        )
    )


@torch.no_grad()
def start_from(folder: Path, text: CLIPTextModelWithProjection, vision: nn.Module, tokenizer: CLIPTokenizer) -> int:
    """Copy the weights of an earlier pair, and of its token table the rows of the tokens that `tokenizer` has too.

    Returns the number of tokens that were not found there; their rows stay as they are.

    Raises:
        InstError: a part of the earlier pair is missing or broken.
        UsageError: its encoders are of other sizes.
    """
    earlier = load_tokenizer(folder / "tokenizer").get_vocab()
    old = load_weights(CLIPTextModelWithProjection, need(folder / "text_encoder"), torch.float32)
    table, old_table = text.get_input_embeddings().weight, old.get_input_embeddings().weight
    pairs = [(row, earlier[token]) for token, row in tokenizer.get_vocab().items() if token in earlier]
    rows, old_rows = (torch.tensor(column) for column in zip(*pairs, strict=True))
    old_vision = load_weights(CLIPVisionModelWithProjection, need(folder / "image_encoder"), torch.float32)
    kept = table.clone()
    try:
        kept[rows] = old_table[old_rows]
        old.set_input_embeddings(nn.Embedding.from_pretrained(kept))
        text.load_state_dict(old.state_dict())
        vision.load_state_dict(old_vision.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"{folder}: its encoders are of other sizes; give its --width, --text-layers and --image-layers, "
            "and a tokenizer of its --length"
        ) from error
    return len(tokenizer) - len(rows)


class Normalise(nn.Module):
    """Pictures in [-1, 1] to the image encoder's input, with the feature extractor's mean and deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, processor: CLIPImageProcessorPil) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(processor.image_std).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return (pictures / 2 + 0.5 - self.mean) / self.std


class Teachers(nn.Module):
    """Frozen networks and the heads that predict their features; none of it is shipped."""

    def __init__(self, width: int, vgg: VGG16Features, inception: InceptionFID) -> None:
        super().__init__()
        self.vgg, self.inception = vgg, inception
        self.content_head = nn.Linear(width, 2048)
        self.texture_head = nn.Linear(width, _TEXTURE_WIDTH)
        # Targets are standardised by the batch's statistics: features of all layers count alike.
        self.content_scale = nn.BatchNorm1d(2048, affine=False)
        self.texture_scale = nn.BatchNorm1d(_TEXTURE_WIDTH, affine=False)

    @torch.no_grad()
    def content(self, pictures: Tensor) -> Tensor:
        """[B, 3, 224, 224] -> [B, 2048] standardised."""
        return self.content_scale(self.inception(pictures).float()).clamp(-5, 5)

    @torch.no_grad()
    def texture(self, pictures: Tensor) -> Tensor:
        """[B, 3, 224, 224] -> [B, 196, texture width] standardised."""
        parts = []
        for features in self.vgg(pictures)[:TEXTURE_BLOCKS]:
            # max(GRID) keeps the last block's 14 x 14 places as they are.
            mean = F.adaptive_avg_pool2d(features.float(), GRID)
            power = F.adaptive_avg_pool2d(features.float().square(), GRID).sqrt()
            parts += [mean, power]
        stacked = torch.cat(parts, 1).flatten(2).transpose(1, 2)
        return self.texture_scale(stacked.flatten(0, 1)).clamp(-5, 5).view_as(stacked)


def contrast(pictures: Tensor, texts: Tensor, scale: Tensor, sentence: Tensor, world: int) -> Tensor:
    """Symmetric cross-entropy over all processes' pairs; equal sentences are all positives of one another."""
    if world > 1:
        pictures = torch.cat(dist_functional.all_gather(pictures))
        texts = torch.cat(dist_functional.all_gather(texts))
        sentence = torch.cat(dist_functional.all_gather(sentence))
    logits = scale * F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).T
    same = (sentence[:, None] == sentence[None, :]).float()
    target = same / same.sum(1, keepdim=True)  # symmetric: both directions share it
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


@torch.no_grad()
def recall(pictures: Tensor, texts: Tensor, sentence: Tensor, group: int = 100, at: int = 5) -> float:
    """Share of texts whose picture (or one of the same sentence) is among the `at` nearest of its group."""
    hits = []
    for p, t, s in zip(pictures.split(group), texts.split(group), sentence.split(group), strict=True):
        near = (F.normalize(t, dim=-1) @ F.normalize(p, dim=-1).T).topk(min(at, len(p))).indices
        hits.append((s[near] == s[:, None]).any(1).float())
    return float(torch.cat(hits).mean())


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments("Train mini's text and image encoders.")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--warm-start", type=Path, help="begin with the encoders of this folder (and its `tokenizer/`)")
    parser.add_argument("--batch", type=whole(SMALLEST_BATCH), default=2048, help="pairs a step and process")
    parser.add_argument("--rate", type=real(), default=1e-3)
    parser.add_argument("--width", type=whole(HEAD, multiple=HEAD), default=256)
    parser.add_argument("--text-layers", type=whole(1), default=4)
    parser.add_argument("--image-layers", type=whole(1), default=6)
    parser.add_argument("--vgg", type=Path, help="VGG-16 weights (default: fetched)")
    parser.add_argument("--inception", type=Path, help="Inception weights (default: fetched)")
    options = parser.parse_args(given)
    box = TimeBox(options.minutes, options.steps)
    tokenizer = load_tokenizer(options.tokenizer)
    workers = Workers.join()
    device = workers.device
    torch.manual_seed(options.seed)

    everything = load_shards(options.data)
    pictures, apart = everything.train(), everything.held_out()
    pictures = pictures.to(device)
    bank = CaptionBank(pictures.captions, tokenizer, device)
    bank_apart = CaptionBank(apart.captions, tokenizer, device, variants=1)

    text = build_text(tokenizer, options.width, options.text_layers)
    vision = build_vision(options.width, options.image_layers)
    if options.warm_start:
        unknown = start_from(options.warm_start, text, vision, tokenizer)
        print(f"{options.warm_start}: {unknown} of {len(tokenizer)} tokens are new", flush=True)
    text, vision = text.to(device), vision.to(device)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    prepare = Normalise(processor).to(device)
    teachers = Teachers(options.width, VGG16Features.load(options.vgg), InceptionFID.load(options.inception)).to(device)
    channels_last(teachers.vgg)
    channels_last(teachers.inception)
    scale = nn.Linear(1, 1, bias=False, device=device)
    nn.init.constant_(scale.weight, 2.66)  # log(1 / 0.07)
    learned = nn.ModuleDict(
        {
            "text": text,
            "vision": vision,
            "scale": scale,
            "content": teachers.content_head,
            "texture": teachers.texture_head,
        }
    )
    workers.same_everywhere(learned)
    see = vision if options.no_compile else torch.compile(vision)
    content = teachers.content if options.no_compile else torch.compile(teachers.content)
    texture = teachers.texture if options.no_compile else torch.compile(teachers.texture)

    generator = torch.Generator(device).manual_seed(options.seed + workers.rank)
    torch.manual_seed(options.seed + workers.rank)
    adam = optimiser([learned], options.rate, 0.1, (0.9, 0.98))
    training = Training(
        workers,
        options.out,
        {"learned": learned, "content_scale": teachers.content_scale, "texture_scale": teachers.texture_scale},
        {"learned": adam},
        {"learned": EMA(learned, 0.998)},
        generator,
        box,
        settings_of(options) | {"pictures": len(pictures), "tokenizer": digest(tokenizer)},
    )
    training.resume()
    held_out = apart.to(device).at_size(SIZE)
    half, quarter = options.batch // 2, max(2, options.batch // 4)

    def advance(progress: float) -> Mapping[str, Tensor]:
        for group in adam.param_groups:
            group["lr"] = learning_rate(progress, training.step, options.rate)
        learned.train()
        index = torch.randint(len(pictures), (options.batch,), generator=generator, device=device)
        boxes, flips = random_squares(pictures, index, (0.6, 1.0), generator)
        seen = cut(pictures, index, boxes, flips, SIZE)
        # Some patches are hidden: the rest must do, and what lies there must be guessed.
        share = 0.4 * torch.rand(len(index), 1, 1, 1, generator=generator, device=device)
        kept = torch.rand(len(index), 1, GRID, GRID, generator=generator, device=device) >= share
        hidden = prepare(seen) * F.interpolate(kept.float(), SIZE)
        ids, slots, sentence = bank.draw(index, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = see(pixel_values=hidden)
            _, said = encode_text(text, ids, slots, None)
            tokens, pooled = output.last_hidden_state[:, 1:], output.last_hidden_state[:, 0]
            content_guess = teachers.content_head(vision.vision_model.post_layernorm(pooled[:half]))
            texture_guess = teachers.texture_head(tokens[:quarter])
            content_truth, texture_truth = content(seen[:half]), texture(seen[:quarter])
        sharp = scale.weight.exp().clamp(max=1 / TEMPERATURE_FLOOR).squeeze()
        values = {
            "contrast": contrast(output.image_embeds.float(), said.float(), sharp, sentence, workers.world),
            "content": F.mse_loss(content_guess.float(), content_truth),
            "texture": F.mse_loss(texture_guess.float(), texture_truth),
        }
        total = values["contrast"] + CONTENT_WEIGHT * values["content"] + TEXTURE_WEIGHT * values["texture"]
        adam.zero_grad(set_to_none=True)
        total.backward()
        workers.average_gradients(learned.parameters())
        values["gradient"] = nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        adam.step()
        return {"loss": total, **values, "sharpness": sharp}

    @torch.no_grad()
    def draw(path: Path) -> None:
        learned.eval()
        seen = torch.cat([vision(pixel_values=prepare(part)).image_embeds.float() for part in held_out.split(100)])
        said = encode_text(text, bank_apart.ids, bank_apart.slots, None)[1][bank_apart.sentence[:, 0]].float()
        numbers = bank_apart.sentence[:, 0]
        flickr = torch.tensor([i for i, s in enumerate(apart.sources) if s == "flickr8k"], device=device)
        print(f"held out: R@5 of 100 {recall(seen, said, numbers):.3f}", end="")
        if len(flickr):
            print(f", flickr8k {recall(seen[flickr], said[flickr], numbers[flickr]):.3f}", end="")
        print(flush=True)
        questions = [
            "a dog runs on a beach",
            "a baroque portrait",
            "a street with people",
            "a mountain",
            "flowers",
            "a ukiyo-e print",
            "an impressionist painting of a river",
            "a church",
        ]
        bank_asked = CaptionBank([[q] for q in questions], tokenizer, device, variants=1, form=plain)
        asked = encode_text(text, bank_asked.ids, bank_asked.slots, None)[1].float()
        near = (F.normalize(asked, dim=-1) @ F.normalize(seen, dim=-1).T).topk(min(8, len(apart))).indices
        labels = [q if i == 0 else "" for q in questions for i in range(near.shape[1])]
        sheet(apart.at_size(128, near.flatten().cpu()), labels, path, columns=near.shape[1])

    training.run(advance, sheet=draw, log_every=options.log_every, save_every_seconds=options.save_every)
    if workers.leads:
        training.emas["learned"].swap()
        for model, name in ((text, "text_encoder"), (vision, "image_encoder")):
            model.config.attention_dropout = 0.0
            write_folder(options.out / name, model.save_pretrained)
        write_folder(options.out / "feature_extractor", processor.save_pretrained)
        write_folder(options.out / "tokenizer", lambda folder: save_tokenizer(tokenizer, folder))
