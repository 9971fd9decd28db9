"""Generate pictures from text with a backbone, and measure their distance from real pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from data import CANVAS, Pictures
from figures import Figures, batches, cpu_generator, decode_all, eight_bits, one_caption
from inst import Backbone
from inst.backbone.text import TextEmbedding
from inst.errors import InstError
from inst.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from inst.evaluation.networks.inception import InceptionFID
from sample import sample


def generate(
    backbone: Backbone, text: Tensor, *, steps: int, guidance: float, generator: torch.Generator, batch: int
) -> Tensor:
    """Generate pictures [N, 3, 256, 256] for text [N, L, d]. The batch size does not change them."""
    null, side = backbone.embed_text([""]), CANVAS // backbone.downscale
    pictures = []
    for part in batches(len(text), batch):
        latents = sample(
            backbone.predict_noise,
            TextEmbedding(text[list(part)]),
            null,
            backbone.alphas_cumprod,
            (len(part), backbone.latent_channels, side, side),
            steps=steps,
            guidance=guidance,
            generator=generator,
            device=backbone.device,
        )
        pictures.append(decode_all(backbone, latents, batch))
    return torch.cat(pictures)


def frechet_figures(
    backbone: Backbone, every: Pictures, inception: InceptionFID, samples: int, steps: int, guidance: float, batch: int
) -> Figures:
    """Compute the Frechet distance between `samples` pictures, generated from held-out captions, and the hold-out.

    With so few reference pictures, even real pictures have a distance well above 0. So the distance of `samples`
    training pictures to the same hold-out is also measured, as a floor.
    """
    held_out, train = every.held_out(), (~every.holdout).nonzero().flatten()
    if min(len(held_out), len(train), samples) < 2:
        raise InstError("the Frechet distance needs at least 2 samples and 2 held-out pictures: give --data more")
    inception = inception.to(backbone.device)
    reference, generated, floor = (FeatureStatistics(2048) for _ in range(3))
    for part in batches(len(held_out), batch):
        reference.update(inception(held_out.at_size(CANVAS, part).to(backbone.device)))
    drawn = train[torch.randperm(len(train), generator=cpu_generator(8))[:samples]].tolist()
    for part in batches(len(drawn), batch):
        floor.update(inception(every.at_size(CANVAS, [drawn[i] for i in part]).to(backbone.device)))
    captions = one_caption(backbone, held_out, seed=9)
    generator = cpu_generator(10)
    for part in batches(samples, batch):
        text = backbone.embed_text([captions[i % len(captions)] for i in part]).tokens
        pictures = generate(backbone, text, steps=steps, guidance=guidance, generator=generator, batch=batch)
        generated.update(inception(eight_bits(pictures).to(backbone.device)))

    def to_reference(other: FeatureStatistics) -> float:
        return round(frechet_distance(other.mean, other.covariance, reference.mean, reference.covariance), 3)

    return {
        "network": "Inception port (weights of the TensorFlow graph of 2015)",
        "samples": samples,
        "reference": f"the {len(held_out)} held-out pictures at {CANVAS} px",
        "prompts": "captions of the hold-out",
        "steps": steps,
        "guidance": guidance,
        "distance": to_reference(generated),
        "floor": {"pictures": f"{len(drawn)} training pictures", "distance": to_reference(floor)},
    }
