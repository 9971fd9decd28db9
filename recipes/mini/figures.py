"""The measurements for the model card. Each function takes a backbone and held-out pictures and returns numbers.

All random numbers come from a generator on the CPU with a fixed seed, so that every machine measures the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captions import plain, styled
from data import CANVAS, Pictures, cut, random_squares
from inst import Backbone
from inst.backbone.text import TextEmbedding
from inst.evaluation.metrics.lpips import LPIPS

Figures = dict[str, Any]

COMMON = 224
"""Picture size in pixels for denoising errors: the smaller training size, so that no picture is enlarged."""
TIMESTEPS = (100, 300, 500, 700, 900)
SIZES = (f"{CANVAS} px", "enlarged")
OWN_WORD = styled(["a picture"])[1]
"""A sentence with the pseudo-word, one of the sentences that the inversion module was trained with."""


def batches(count: int, size: int) -> Iterator[range]:
    """Yield range(count) in pieces of `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def cpu_generator(seed: int) -> torch.Generator:
    """Return a generator on the CPU with a seed."""
    return torch.Generator().manual_seed(seed)


def shorten_caption(backbone: Backbone, caption: str) -> str:
    """Return the caption without square brackets, cut after the last word that fits into the text encoder."""
    caption = caption.replace("[", "(").replace("]", ")")
    room = backbone.tokenizer.model_max_length - 2
    while len(backbone.tokenizer(caption, add_special_tokens=False, verbose=False)["input_ids"]) > room:
        caption = caption.rpartition(" ")[0] or caption[:-1]
    return caption


def weights_digest(folder: Path) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over all safetensors files of a backbone's folder.

    It covers the bytes and the relative path of each file, in the order of the paths.
    """
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")):
        with (folder / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{content}  {name}\n".encode())  # the same lines as sha256sum prints
    return digest.hexdigest()[:16]


def one_caption(backbone: Backbone, pictures: Pictures, seed: int) -> list[str]:
    """Return a random caption of each picture."""
    generator = cpu_generator(seed)
    drawn = []
    for captions in pictures.captions:
        choice = plain(captions)[int(torch.randint(len(captions), (), generator=generator))]
        drawn.append(shorten_caption(backbone, choice))
    return drawn


# --- autoencoder ------------------------------------------------------------------------------------------------------


def autoencoder_figures(backbone: Backbone, held_out: Pictures, lpips: LPIPS, per_group: int, batch: int) -> Figures:
    """Measure PSNR in dB (of 8-bit pictures) and LPIPS of reconstructions from the posterior's mean, at 256 px.

    There are four groups of up to `per_group` pictures: photos and art, originals of 256 px and enlarged ones.
    The figures for all photos, or all art, weight the two groups by their share of the hold-out.
    """
    figures: Figures = {}
    order = torch.randperm(len(held_out), generator=cpu_generator(1)).tolist()
    for kind in ("photo", "art"):
        groups: Figures = {}
        for size in SIZES:
            members = [i for i in order if held_out.kinds[i] == kind and _size_of(held_out, i) == size]
            if members:
                groups[size] = _reconstruction(backbone, held_out, lpips, members[:per_group], batch)
                groups[size]["held_out"] = len(members)
        if groups:
            whole = sum(group["held_out"] for group in groups.values())
            groups["all"] = {
                name: round(sum(group[name] * group["held_out"] for group in groups.values()) / whole, 4)
                for name in ("psnr", "lpips_vgg")
            }
            figures[kind] = groups
    return figures


def _size_of(pictures: Pictures, index: int) -> str:
    return SIZES[0] if int(pictures.native[index]) >= CANVAS else SIZES[1]


def _reconstruction(
    backbone: Backbone, pictures: Pictures, lpips: LPIPS, members: Sequence[int], batch: int
) -> Figures:
    psnr: list[float] = []
    distance: list[float] = []
    for part in batches(len(members), full_size_batch(backbone, batch)):
        original = pictures.at_size(CANVAS, [members[i] for i in part]).to(backbone.device)
        rebuilt = eight_bits(backbone.decode(backbone.encode(original)))
        # A peak of 2 in [-1, 1] is a peak of 1 in [0, 1].
        error = (eight_bits(original) - rebuilt).square().mean((1, 2, 3)).clamp_min(1e-10)
        psnr += (10 * torch.log10(4 / error)).tolist()
        distance += lpips(original, rebuilt).tolist()
    return {
        "pictures": len(members),
        "psnr": round(fmean(psnr), 4),
        "psnr_tenth_percentile": round(torch.tensor(psnr).quantile(0.1).item(), 4),
        "lpips_vgg": round(fmean(distance), 4),
    }


def eight_bits(pictures: Tensor) -> Tensor:
    """Round pictures in [-1, 1] to the 256 levels of a file."""
    return ((pictures + 1) * 127.5).round() / 127.5 - 1


# --- text and pictures ------------------------------------------------------------------------------------------------


def retrieval_figures(backbone: Backbone, held_out: Pictures, group: int, batch: int) -> Figures:
    """Measure recall at 1 and 5 from a caption to its picture among `group` held-out pictures, once for each caption.

    The hold-out is divided into random groups. A picture with exactly the same caption also counts as correct, which
    raises the level of chance. So the recall of guessing is also given.
    """
    captions = one_caption(backbone, held_out, seed=2)
    texts, pictures = [], []
    for part in batches(len(held_out), batch):
        texts.append(F.normalize(backbone.embed_caption([captions[i] for i in part]), dim=-1).cpu())
        pooled, _ = backbone.embed_picture(held_out.at_size(CANVAS, part))
        pictures.append(F.normalize(pooled, dim=-1).cpu())
    scores = torch.cat(texts) @ torch.cat(pictures).T

    known = [{shorten_caption(backbone, caption) for caption in plain(own)} for own in held_out.captions]
    figures: Figures = {}
    flickr = [i for i, source in enumerate(held_out.sources) if source == "flickr8k"]
    for name, members in (("all sources", list(range(len(held_out)))), ("flickr8k", flickr)):
        if len(members) > 1:
            figures[name] = _recall(scores, captions, known, members, min(group, len(members)))
    return figures


def _recall(
    scores: Tensor, captions: Sequence[str], known: Sequence[set[str]], members: list[int], group: int
) -> Figures:
    dealt = torch.tensor(members)[torch.randperm(len(members), generator=cpu_generator(3))]
    ranks, positives = [], []
    for start in range(0, len(dealt) - group + 1, group):
        chosen = dealt[start : start + group]
        at = chosen.tolist()
        same = torch.tensor([[i == j or captions[i] in known[j] for j in at] for i in at])
        ordered = scores[chosen][:, chosen].argsort(dim=1, descending=True)
        ranks.append(same.gather(1, ordered).int().argmax(1))
        positives.append(same.sum(1))
    rank, right = torch.cat(ranks), torch.cat(positives)

    def chance(k: int) -> float:
        """Return the mean probability that k random pictures of `group`, without replacement, include a correct one."""
        missed = torch.ones(len(right))
        for drawn in range(k):
            missed *= ((group - right - drawn) / (group - drawn)).clamp_min(0)
        return 1 - missed.mean().item()

    k5 = min(5, group)
    return {
        "captions": len(rank),
        "among": group,
        "recall_at_1": round((rank < 1).float().mean().item(), 4),
        "recall_at_5": round((rank < 5).float().mean().item(), 4),
        "chance_at_1": round(chance(1), 4),
        "chance_at_5": round(chance(k5), 4),
    }


# --- denoising --------------------------------------------------------------------------------------------------------


def denoising_errors(backbone: Backbone, latents: Tensor, noise: Tensor, text: Tensor, timestep: int) -> Tensor:
    """Compute the squared error of the predicted noise at one timestep, as a mean over each picture's latents: [B]."""
    abar = backbone.alphas_cumprod[timestep]
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    return (backbone.predict_noise(noisy, timestep, TextEmbedding(text)) - noise).square().mean((1, 2, 3)).cpu()


def compare_texts(
    backbone: Backbone, latents: Tensor, texts: dict[str, Tensor], timesteps: Sequence[int], batch: int
) -> dict[str, Tensor]:
    """Compute denoising errors [len(timesteps), N] of N latents for each kind of text, all with the same noise.

    Each of `texts` is [N, L, d], or [1, L, d] if all latents share it.
    """
    errors: dict[str, list[Tensor]] = {name: [] for name in texts}
    for timestep in timesteps:
        noise = torch.randn(latents.shape, generator=cpu_generator(timestep)).to(latents.device)
        for name, text in texts.items():
            text = text.expand(len(latents), -1, -1)
            parts = [
                denoising_errors(backbone, latents[at], noise[at], text[at], timestep)
                for at in map(list, batches(len(latents), batch))
            ]
            errors[name].append(torch.cat(parts))
    return {name: torch.stack(rows) for name, rows in errors.items()}


def encode_all(backbone: Backbone, pictures: Tensor, batch: int) -> Tensor:
    """Return the latents (posterior means) of pictures [N, 3, H, W]."""
    parts = batches(len(pictures), full_size_batch(backbone, batch))
    return torch.cat([backbone.encode(pictures[list(part)]) for part in parts])


def decode_all(backbone: Backbone, latents: Tensor, batch: int) -> Tensor:
    """Return the pictures [N, 3, H, W] of latents, on the CPU."""
    parts = batches(len(latents), full_size_batch(backbone, batch))
    return torch.cat([backbone.decode(latents[list(part)]).cpu() for part in parts])


def full_size_batch(backbone: Backbone, batch: int) -> int:
    """Return the batch size for networks that work on whole pictures: 1 on a CPU, which is 1.5x faster (caches)."""
    return 1 if backbone.device.type == "cpu" else batch


def embed_all(backbone: Backbone, prompts: Sequence[str], words: Tensor | None, batch: int) -> Tensor:
    """Return the text embeddings [N, L, d] of N prompts, with the vectors `words` [N, n, d] for [C]."""
    parts = []
    for part in batches(len(prompts), batch):
        styles = None if words is None else {"[C]": words[list(part)]}
        parts.append(backbone.embed_text([prompts[i] for i in part], styles).tokens)
    return torch.cat(parts)


def denoising_figures(backbone: Backbone, held_out: Pictures, count: int, batch: int) -> Figures | None:
    """Measure the epsilon error at fixed timesteps with the picture's caption, another picture's, and the null caption.

    Returns None if there are fewer than two pictures, because there is no caption of another picture.
    """
    chosen = held_out.subset(torch.randperm(len(held_out), generator=cpu_generator(4))[:count])
    if len(chosen) < 2:
        return None
    latents = encode_all(backbone, chosen.at_size(COMMON), batch)
    right = embed_all(backbone, one_caption(backbone, chosen, seed=5), None, batch)
    texts = {"caption": right, "another_caption": right.roll(1, 0), "null": backbone.embed_text([""]).tokens}
    errors = compare_texts(backbone, latents, texts, TIMESTEPS, batch)
    return {
        "pictures": len(chosen),
        "timesteps": list(TIMESTEPS),
        "epsilon_mse": {name: [round(value, 5) for value in rows.mean(1).tolist()] for name, rows in errors.items()},
        "caption_gain_over_null": _gain(errors["caption"], errors["null"]),
    }


def _gain(better: Tensor, worse: Tensor) -> Figures:
    """Return the relative reduction of the error, and the share of pictures with less error (summed over timesteps)."""
    return {
        "relative": round(1 - (better.sum() / worse.sum()).item(), 5),
        "pictures_better": round((better.sum(0) < worse.sum(0)).float().mean().item(), 4),
    }


# --- pseudo-words -----------------------------------------------------------------------------------------------------


def pseudo_words(backbone: Backbone, paintings: Pictures, batch: int, seed: int = 6) -> tuple[Tensor, Tensor]:
    """Return crops [N, 3, 224, 224] of paintings, and the pretrained module's pseudo-words [N, n, d] for them.

    The crops are squares of 50 to 70 % of the side, some mirrored. So a pseudo-word is computed from less than half of
    its painting, without the position of the crop.
    """
    index = torch.arange(len(paintings))
    assert backbone.inversion is not None
    crops = cut(paintings, index, *random_squares(paintings, index, (0.5, 0.7), cpu_generator(seed)), COMMON)
    words = [backbone.inversion(*backbone.embed_picture(crops[list(part)])) for part in batches(len(paintings), batch)]
    return crops, torch.cat(words)


def pseudo_word_figures(backbone: Backbone, held_out: Pictures, count: int, batch: int) -> Figures | None:
    """Measure the epsilon error on paintings with their own pseudo-word, an unrelated one, and the null caption.

    Returns None if there are fewer than two held-out paintings, because there is no unrelated one.
    """
    paintings = paintings_of(held_out, count)
    if len(paintings) < 2:
        return None
    _, words = pseudo_words(backbone, paintings, batch)
    latents = encode_all(backbone, paintings.at_size(COMMON), batch)
    own = embed_all(backbone, [OWN_WORD] * len(words), words, batch)
    texts = {"own_word": own, "unrelated_word": own.roll(1, 0), "null": backbone.embed_text([""]).tokens}
    timesteps = TIMESTEPS[1:4]
    errors = compare_texts(backbone, latents, texts, timesteps, batch)
    return {
        "paintings": len(paintings),
        "timesteps": list(timesteps),
        "epsilon_mse": {name: [round(value, 5) for value in rows.mean(1).tolist()] for name, rows in errors.items()},
        "own_gain_over_unrelated": _gain(errors["own_word"], errors["unrelated_word"]),
        "own_gain_over_null": _gain(errors["own_word"], errors["null"]),
    }


def paintings_of(held_out: Pictures, count: int) -> Pictures:
    """Return up to `count` held-out artworks, in a fixed random order."""
    order = torch.randperm(len(held_out), generator=cpu_generator(7)).tolist()
    return held_out.subset([i for i in order if held_out.kinds[i] == "art"][:count])
