"""Stage 2: the autoencoder, trained with L1 + LPIPS + a little KL on random crops, and later a patch discriminator.

    torchrun --nproc-per-node 4 recipes/mini/autoencoder.py --data SHARDS --out runs/autoencoder --minutes 10

Writes `vae/` (diffusers' AutoencoderKL) into --out. Crops are taken at the pictures' own resolution, because an
autoencoder that is trained on enlarged pictures learns to blur. After a denoiser was trained on the latents,
`--warm-start VAE --decoder-only` continues with the decoder alone.
"""

from __future__ import annotations

if __name__ == "__main__":
    from files import guarded

    guarded("autoencoder")

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from data import CANVAS, Pictures, exact_crops, load_shards
from files import require_folder, write_folder
from inst.backbone.loading.part import load_weights
from inst.errors import InstError, UsageError
from inst.evaluation.metrics.lpips import LPIPS
from options import real_number, whole_number
from sample import sheet
from training import EMA, TimeBox, Training, arguments, channels_last, learning_rate, optimiser, settings_of
from workers import Workers

LATENT_CHANNELS = 8
GROUPS = 16
"""Number of groups for group normalisation. Every width must be a multiple of it."""
KL_WEIGHT = 1e-4
SCALE_WEIGHT = 0.25
ADVERSARIAL_WEIGHT = 0.04


def build(widths: tuple[int, ...]) -> AutoencoderKL:
    """Build a convolutional autoencoder, f8. It has no attention: it is trained on crops and used at any size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        mid_block_add_attention=False,
        sample_size=256,
        scaling_factor=1.0,
    )


class PatchDiscriminator(nn.Sequential):
    """Classifies overlapping patches of about 38 px as real or not (Isola et al. 2017), [B, 3, H, W] -> logits."""

    def __init__(self, width: int = 64) -> None:
        def down(a: int, b: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(8, b), nn.LeakyReLU(0.2)]

        super().__init__(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            *down(width, 2 * width),
            *down(2 * width, 4 * width),
            nn.Conv2d(4 * width, 1, 3, 1, 1),
        )


class Losses(nn.Module):
    """Computes the reconstruction losses of one batch, as one graph for the compiler."""

    def __init__(self, vae: AutoencoderKL, lpips: LPIPS, lpips_weight: float, scaled: bool) -> None:
        super().__init__()
        self.vae, self.lpips, self.lpips_weight, self.scaled = vae, lpips, lpips_weight, scaled

    def compare(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        return (made.float() - real).abs().mean(), self.lpips(made, real).mean()

    def forward(self, real: Tensor, noise: Tensor, extra: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (reconstructions, losses) for real [B, 3, S, S] and noise [B, C, S/8, S/8].

        `extra` [B, 1, 1, 1] is the standard deviation of noise on the latents, besides that of the posterior.
        """
        moments = self.vae.quant_conv(self.vae.encoder(real)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + (log_variance.exp() + extra**2).sqrt() * noise
        made = self.vae.decoder(self.vae.post_quant_conv(latents))
        l1, lpips = self.compare(made, real)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        total = l1 + self.lpips_weight * lpips + KL_WEIGHT * kl
        values = {"l1": l1, "lpips": lpips, "kl": kl}
        if not self.scaled:
            return made, {"loss": total, **values}
        # Scaled and rotated latents must decode to the scaled and rotated picture. Such latents have little fine noise,
        # and a diffusion model learns them faster (EQ-VAE, Kouzelis et al. 2025).
        half = len(real) // 2
        small = torch.rot90(F.avg_pool2d(latents[:half], 2), 1, (2, 3))
        small_l1, small_lpips = self.compare(
            self.vae.decoder(self.vae.post_quant_conv(small)), torch.rot90(F.avg_pool2d(real[:half], 2), 1, (2, 3))
        )
        scaled = small_l1 + self.lpips_weight * small_lpips
        return made, {"loss": total + SCALE_WEIGHT * scaled, **values, "scaled": scaled}


@torch.no_grad()
def normalise(vae: AutoencoderKL, pictures: Pictures, batch: int, generator: torch.Generator) -> None:
    """Normalise every latent channel to zero mean and unit variance over the data, inside the 1 x 1 convolutions.

    Stable Diffusion's pipelines have only one factor, so per-channel statistics must go into the convolutions. The
    remaining factor, 1/std over all channels, is measured and stored as `scaling_factor`.
    """
    device = pictures.pixels.device

    def sample_latents() -> Tensor:
        batches = []
        for _ in range(16):
            index = torch.randint(len(pictures), (batch,), generator=generator, device=device)
            batches.append(vae.encode(exact_crops(pictures, index, 128, generator)).latent_dist.mean.float())
        return torch.cat(batches)

    latents = sample_latents()
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    # mean rows: (w z + b - mean) / std; log-variance rows: minus 2 log std.
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std[None, :, None, None]
    vae.register_to_config(scaling_factor=round(float(1 / sample_latents().std()), 4))


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments("Train mini's autoencoder.")
    parser.add_argument(
        "--batch", type=whole_number(2), default=64, help="crops for each step and process (default 64)"
    )
    parser.add_argument(
        "--crop",
        type=whole_number(32, CANVAS, multiple=16),
        default=128,
        help="side of the crops in pixels (default 128)",
    )
    parser.add_argument("--rate", type=real_number(), default=5e-4, help="peak learning rate (default 5e-4)")
    parser.add_argument(
        "--widths",
        type=whole_number(GROUPS, multiple=GROUPS),
        nargs=4,
        default=[48, 96, 160, 192],
        help="channels of the four levels",
    )
    parser.add_argument("--lpips-weight", type=real_number(), default=0.5, help="weight of LPIPS (default 0.5)")
    parser.add_argument(
        "--adversarial-from",
        type=real_number(1),
        default=0.5,
        help="share of the run after which the discriminator is used (default 0.5)",
    )
    parser.add_argument("--warm-start", type=Path, help="begin with the autoencoder of this folder")
    parser.add_argument("--decoder-only", action="store_true", help="train the decoder only; the latents do not change")
    parser.add_argument(
        "--latent-noise",
        type=real_number(),
        default=0.0,
        help="largest standard deviation of noise on the latents, which the decoder learns to remove (default 0)",
    )
    parser.add_argument("--perceptual", type=Path, help="file with VGG-16 and LPIPS weights (default: downloaded)")
    options = parser.parse_args(given)
    if options.latent_noise and not options.decoder_only:
        raise UsageError("--latent-noise would change the latents: give it with --decoder-only")
    if options.decoder_only and not options.warm_start:
        raise UsageError("--decoder-only needs a trained autoencoder: give --warm-start FOLDER")
    box = TimeBox(options.minutes, options.steps)
    workers = Workers.join()
    device = workers.device
    torch.manual_seed(options.seed)

    pictures = load_shards(options.data, device=device, only="train")
    held_out = load_shards(options.data, only="holdout")
    sheet_pictures = held_out.subset(range(min(16, len(held_out)))).at_size(256).to(device)
    large_enough = (pictures.native >= options.crop).nonzero().flatten()
    if not len(large_enough):
        raise InstError(
            f"no picture is as large as a crop of {options.crop} px: give --data larger pictures, or a smaller --crop"
        )
    vae = build(tuple(options.widths))
    if options.warm_start:
        vae = load_weights(AutoencoderKL, require_folder(options.warm_start), torch.float32)
    if options.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    vae = vae.to(device).train()
    discriminator = PatchDiscriminator().to(device)
    channels_last(vae)
    channels_last(discriminator)
    workers.broadcast(vae)
    workers.broadcast(discriminator)
    lpips = LPIPS.load(options.perceptual).to(device).requires_grad_(False)
    # If the encoder does not change, the loss of scaled latents has no use.
    losses = Losses(vae, lpips, options.lpips_weight, scaled=not options.decoder_only)
    compiled_losses = losses if options.no_compile else torch.compile(losses)
    compiled_discriminator = discriminator if options.no_compile else torch.compile(discriminator)

    generator = torch.Generator(device).manual_seed(options.seed + workers.rank)
    vae_optimiser = optimiser([vae], options.rate, 0.01, (0.9, 0.99))
    discriminator_optimiser = optimiser([discriminator], options.rate / 2, 0.0, (0.5, 0.9))
    training = Training(
        workers,
        options.out,
        {"vae": vae, "discriminator": discriminator},
        {"vae": vae_optimiser, "discriminator": discriminator_optimiser},
        {"vae": EMA(vae, 0.999)},
        generator,
        box,
        settings_of(options) | {"pictures": len(pictures)},
    )
    training.resume()

    def advance(progress: float) -> Mapping[str, Tensor]:
        for opt, peak in ((vae_optimiser, options.rate), (discriminator_optimiser, options.rate / 2)):
            for group in opt.param_groups:
                group["lr"] = learning_rate(progress, training.step, peak)
        at = torch.randint(len(large_enough), (options.batch,), generator=generator, device=device)
        real = exact_crops(pictures, large_enough[at], options.crop, generator)
        real = real.contiguous(memory_format=torch.channels_last)
        side = options.crop // 8
        noise = torch.randn(options.batch, LATENT_CHANNELS, side, side, generator=generator, device=device)
        extra = torch.zeros(options.batch, 1, 1, 1, device=device)
        if options.latent_noise:
            extra = options.latent_noise * torch.rand(extra.shape, generator=generator, device=device)
        adversarial = progress >= options.adversarial_from
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            made, values = compiled_losses(real, noise, extra)
            total = values["loss"]
            if adversarial:
                discriminator.requires_grad_(False)
                values["fooling"] = -compiled_discriminator(made).float().mean()
                discriminator.requires_grad_(True)
                # The discriminator is untrained at first, so its weight grows over a twentieth of the run.
                weight = ADVERSARIAL_WEIGHT * min(1.0, (progress - options.adversarial_from) * 20)
                total = total + weight * values["fooling"]
        vae_optimiser.zero_grad(set_to_none=True)
        total.backward()
        workers.average_gradients(vae.parameters())
        values["gradient"] = nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        vae_optimiser.step()
        if adversarial:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                on_real, on_made = compiled_discriminator(real).float(), compiled_discriminator(made.detach()).float()
                values["judging"] = F.relu(1 - on_real).mean() + F.relu(1 + on_made).mean()
            discriminator_optimiser.zero_grad(set_to_none=True)
            values["judging"].backward()
            workers.average_gradients(discriminator.parameters())
            discriminator_optimiser.step()
        values["psnr"] = -10 * (((made.detach().float() - real) / 2) ** 2).mean((1, 2, 3)).log10().mean()
        return values

    @torch.no_grad()
    def draw(path: Path) -> None:
        made = vae.decode(vae.encode(sheet_pictures).latent_dist.mean).sample.clamp(-1, 1)
        psnr = [-10 * float((((m - s) / 2) ** 2).mean().log10()) for m, s in zip(made, sheet_pictures, strict=True)]
        print(
            f"held out: {sum(psnr) / len(psnr):.2f} dB, LPIPS {float(lpips(made, sheet_pictures).mean()):.3f}",
            flush=True,
        )
        pairs = torch.stack([sheet_pictures, made], 1).flatten(0, 1).cpu()
        sheet(pairs, [text for p in psnr for text in ("", f"{p:.1f} dB")], path, columns=8)

    training.run(advance, sheet=draw, log_every=options.log_every, save_every_seconds=options.save_every)
    if workers.is_first:
        training.emas["vae"].swap()
        vae.to(memory_format=torch.contiguous_format)
        if not options.decoder_only:
            normalise(vae, pictures, options.batch, generator)
        write_folder(options.out / "vae", vae.save_pretrained)
