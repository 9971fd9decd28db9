"""Stage 3: the text and image encoders, trained with CLIP's contrast (Radford et al. 2021) and by distillation.

    torchrun --nproc-per-node 4 recipes/mini/pair.py --data SHARDS --tokenizer runs/tokenizer/tokenizer \
        --out runs/pair --minutes 8

Writes `text_encoder/`, `image_encoder/`, `feature_extractor/` and a copy of the `tokenizer/` into --out.

20,000 pictures are few for a contrastive pair, so the image encoder also learns from networks trained on ImageNet. Its
pooled state predicts the features of the Inception network (the content). Its patch tokens predict local statistics of
VGG-16 layers (the painting style, which the inversion module reads later).
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
from files import require_folder, write_folder
from inst.backbone.loading.part import load_weights
from inst.backbone.text import encode_text
from inst.errors import UsageError
from inst.evaluation.networks.inception import InceptionFID
from inst.evaluation.networks.vgg import VGG16Features
from options import real_number, whole_number
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
"""Number of VGG-16 blocks. The patch tokens predict their local means and root mean squares."""
_TEXTURE_WIDTH = 2 * (64 + 128 + 256 + 512)
CONTENT_WEIGHT, TEXTURE_WEIGHT = 0.5, 0.5
TEMPERATURE_FLOOR = 0.02
SMALLEST_BATCH = 4
"""The features of half of a batch are normalised to unit variance, which needs two pictures."""


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
    """Copy the weights of an earlier pair, and the rows of its token table for the tokens that `tokenizer` also has.

    Returns the number of tokens that the earlier pair does not have. Their rows are not changed.

    Raises:
        InstError: a part of the earlier pair is missing or broken.
        UsageError: its encoders have other sizes.
    """
    earlier = load_tokenizer(folder / "tokenizer").get_vocab()
    old = load_weights(CLIPTextModelWithProjection, require_folder(folder / "text_encoder"), torch.float32)
    table, old_table = text.get_input_embeddings().weight, old.get_input_embeddings().weight
    pairs = [(row, earlier[token]) for token, row in tokenizer.get_vocab().items() if token in earlier]
    rows, old_rows = (torch.tensor(column) for column in zip(*pairs, strict=True))
    old_vision = load_weights(CLIPVisionModelWithProjection, require_folder(folder / "image_encoder"), torch.float32)
    kept = table.clone()
    try:
        kept[rows] = old_table[old_rows]
        old.set_input_embeddings(nn.Embedding.from_pretrained(kept))
        text.load_state_dict(old.state_dict())
        vision.load_state_dict(old_vision.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"{folder}: its encoders have other sizes; give its --width, --text-layers and --image-layers, "
            "and a tokenizer of its --length"
        ) from error
    return len(tokenizer) - len(rows)


class Normalise(nn.Module):
    """Converts pictures in [-1, 1] to the image encoder's input, with the feature extractor's mean and deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, processor: CLIPImageProcessorPil) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(processor.image_std).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return (pictures / 2 + 0.5 - self.mean) / self.std


class Teachers(nn.Module):
    """Frozen networks and the heads that predict their features. They are not part of the exported model."""

    def __init__(self, width: int, vgg: VGG16Features, inception: InceptionFID) -> None:
        super().__init__()
        self.vgg, self.inception = vgg, inception
        self.content_head = nn.Linear(width, 2048)
        self.texture_head = nn.Linear(width, _TEXTURE_WIDTH)
        # Targets are standardised with the batch's statistics, so that features of all layers count the same.
        self.content_scale = nn.BatchNorm1d(2048, affine=False)
        self.texture_scale = nn.BatchNorm1d(_TEXTURE_WIDTH, affine=False)

    @torch.no_grad()
    def content(self, pictures: Tensor) -> Tensor:
        """Return standardised features [B, 2048] of pictures [B, 3, 224, 224]."""
        return self.content_scale(self.inception(pictures).float()).clamp(-5, 5)

    @torch.no_grad()
    def texture(self, pictures: Tensor) -> Tensor:
        """Return standardised features [B, 196, texture width] of pictures [B, 3, 224, 224]."""
        parts = []
        for features in self.vgg(pictures)[:TEXTURE_BLOCKS]:
            # The last block has 14 x 14 positions already, so the pooling does not change it.
            mean = F.adaptive_avg_pool2d(features.float(), GRID)
            power = F.adaptive_avg_pool2d(features.float().square(), GRID).sqrt()
            parts += [mean, power]
        stacked = torch.cat(parts, 1).flatten(2).transpose(1, 2)
        return self.texture_scale(stacked.flatten(0, 1)).clamp(-5, 5).view_as(stacked)


def contrast(pictures: Tensor, texts: Tensor, scale: Tensor, sentence: Tensor, world: int) -> Tensor:
    """Compute the symmetric cross-entropy over the pairs of all processes. Equal sentences count as positives."""
    if world > 1:
        pictures = torch.cat(dist_functional.all_gather(pictures))
        texts = torch.cat(dist_functional.all_gather(texts))
        sentence = torch.cat(dist_functional.all_gather(sentence))
    logits = scale * F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).T
    same = (sentence[:, None] == sentence[None, :]).float()
    target = same / same.sum(1, keepdim=True)  # symmetric: the same for both directions
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


@torch.no_grad()
def recall(pictures: Tensor, texts: Tensor, sentence: Tensor, group: int = 100, at: int = 5) -> float:
    """Return the share of texts with their picture, or one of the same sentence, among the `at` nearest of a group."""
    hits = []
    for p, t, s in zip(pictures.split(group), texts.split(group), sentence.split(group), strict=True):
        near = (F.normalize(t, dim=-1) @ F.normalize(p, dim=-1).T).topk(min(at, len(p))).indices
        hits.append((s[near] == s[:, None]).any(1).float())
    return float(torch.cat(hits).mean())


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments("Train mini's text and image encoders.")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder tokenizer/ of stage 1")
    parser.add_argument("--warm-start", type=Path, help="begin with the encoders of this folder (and its `tokenizer/`)")
    parser.add_argument(
        "--batch",
        type=whole_number(SMALLEST_BATCH),
        default=2048,
        help="pairs for each step and process (default 2048)",
    )
    parser.add_argument("--rate", type=real_number(), default=1e-3, help="peak learning rate (default 1e-3)")
    parser.add_argument(
        "--width", type=whole_number(HEAD, multiple=HEAD), default=256, help="width of both encoders (default 256)"
    )
    parser.add_argument("--text-layers", type=whole_number(1), default=4, help="layers of the text encoder (default 4)")
    parser.add_argument(
        "--image-layers", type=whole_number(1), default=6, help="layers of the image encoder (default 6)"
    )
    parser.add_argument("--vgg", type=Path, help="file with VGG-16 weights (default: downloaded)")
    parser.add_argument("--inception", type=Path, help="file with Inception weights (default: downloaded)")
    options = parser.parse_args(given)
    box = TimeBox(options.minutes, options.steps)
    tokenizer = load_tokenizer(options.tokenizer)
    workers = Workers.join()
    device = workers.device
    torch.manual_seed(options.seed)

    everything = load_shards(options.data)
    pictures, held_out_pictures = everything.train(), everything.held_out()
    pictures = pictures.to(device)
    bank = CaptionBank(pictures.captions, tokenizer, device)
    bank_held_out = CaptionBank(held_out_pictures.captions, tokenizer, device, variants=1)

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
    workers.broadcast(learned)
    compiled_vision = vision if options.no_compile else torch.compile(vision)
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
    held_out = held_out_pictures.to(device).at_size(SIZE)
    half, quarter = options.batch // 2, max(2, options.batch // 4)

    def advance(progress: float) -> Mapping[str, Tensor]:
        for group in adam.param_groups:
            group["lr"] = learning_rate(progress, training.step, options.rate)
        learned.train()
        index = torch.randint(len(pictures), (options.batch,), generator=generator, device=device)
        boxes, flips = random_squares(pictures, index, (0.6, 1.0), generator)
        crops = cut(pictures, index, boxes, flips, SIZE)
        # Some patches are hidden, and their features must be predicted from the other patches.
        share = 0.4 * torch.rand(len(index), 1, 1, 1, generator=generator, device=device)
        kept = torch.rand(len(index), 1, GRID, GRID, generator=generator, device=device) >= share
        hidden = prepare(crops) * F.interpolate(kept.float(), SIZE)
        ids, slots, sentence = bank.draw(index, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            output = compiled_vision(pixel_values=hidden)
            _, text_embeds = encode_text(text, ids, slots, None)
            tokens, pooled = output.last_hidden_state[:, 1:], output.last_hidden_state[:, 0]
            content_guess = teachers.content_head(vision.vision_model.post_layernorm(pooled[:half]))
            texture_guess = teachers.texture_head(tokens[:quarter])
            content_truth, texture_truth = content(crops[:half]), texture(crops[:quarter])
        sharp = scale.weight.exp().clamp(max=1 / TEMPERATURE_FLOOR).squeeze()
        values = {
            "contrast": contrast(output.image_embeds.float(), text_embeds.float(), sharp, sentence, workers.world),
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
        picture_embeds = torch.cat(
            [vision(pixel_values=prepare(part)).image_embeds.float() for part in held_out.split(100)]
        )
        text_embeds = encode_text(text, bank_held_out.ids, bank_held_out.slots, None)[1][
            bank_held_out.sentence[:, 0]
        ].float()
        numbers = bank_held_out.sentence[:, 0]
        flickr = torch.tensor([i for i, s in enumerate(held_out_pictures.sources) if s == "flickr8k"], device=device)
        print(f"held out: R@5 of 100 {recall(picture_embeds, text_embeds, numbers):.3f}", end="")
        if len(flickr):
            print(f", flickr8k {recall(picture_embeds[flickr], text_embeds[flickr], numbers[flickr]):.3f}", end="")
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
        question_bank = CaptionBank([[q] for q in questions], tokenizer, device, variants=1, form=plain)
        question_embeds = encode_text(text, question_bank.ids, question_bank.slots, None)[1].float()
        near = (
            (F.normalize(question_embeds, dim=-1) @ F.normalize(picture_embeds, dim=-1).T)
            .topk(min(8, len(held_out_pictures)))
            .indices
        )
        labels = [q if i == 0 else "" for q in questions for i in range(near.shape[1])]
        sheet(held_out_pictures.at_size(128, near.flatten().cpu()), labels, path, columns=near.shape[1])

    training.run(advance, sheet=draw, log_every=options.log_every, save_every_seconds=options.save_every)
    if workers.is_first:
        training.emas["learned"].swap()
        for model, name in ((text, "text_encoder"), (vision, "image_encoder")):
            model.config.attention_dropout = 0.0
            write_folder(options.out / name, model.save_pretrained)
        write_folder(options.out / "feature_extractor", processor.save_pretrained)
        write_folder(options.out / "tokenizer", lambda folder: save_tokenizer(tokenizer, folder))
