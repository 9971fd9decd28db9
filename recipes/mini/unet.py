"""Stage 4: the denoiser, and the inversion module that turns any painting into an instant style.

    torchrun --nproc-per-node 4 recipes/mini/unet.py --data SHARDS --tokenizer runs/tokenizer/tokenizer \
        --autoencoder runs/autoencoder/vae --pair runs/pair --out runs/unet --minutes 14

Writes `unet/`, `scheduler/` and `inversion/` into --out. The autoencoder and the two encoders are not changed.

Some of the captions contain `[C]`. The inversion module computes it from ANOTHER random crop of the same picture, so
that it carries the style and not the layout. After this stage it works on new paintings without any learning. (The
paper learns it for each painting.)
"""

from __future__ import annotations

if __name__ == "__main__":
    from files import guarded

    guarded("unet")

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from captions import PROMPTS, CaptionBank, most_vectors, styled
from data import Pictures, cut, exact_crops, load_shards, random_squares
from encoders import PICTURE_CROP, WORD_CROP, Encoders
from files import require_folder, write_folder
from inst.backbone.inversion import AttentionInversion, InversionConfig
from inst.backbone.loading.part import load_weights
from inst.backbone.text import TextEmbedding, encode_text
from inst.errors import UsageError
from inst.evaluation.metrics.lpips import LPIPS
from options import real_number, whole_number
from pair import SIZE
from reference import BLOCKS, LEAST_SIDE, MODES, REFERENCE_CROP, has_reference, read_reference
from sample import sample, sheet
from stylise import Stylisation
from tokenizer import load_matching
from training import EMA, TimeBox, Training, arguments, channels_last, learning_rate, optimiser, settings_of
from workers import Workers

BUCKETS = (224, 256)
"""Training sizes in pixels. A picture is never enlarged to the next size, because the model would learn to blur."""
STYLED_SHARE = {"art": 0.65, "photo": 0.25}
"""Share of the pictures of each kind whose caption contains `[C]`."""
NULL_SHARE = 0.1
"""Share of empty captions, for classifier-free guidance."""
SNR_CAP = 5.0
GROUPS = 8
"""Number of groups for group normalisation, or 32 if it divides all widths. Every width must be a multiple of it."""


def build(latent_channels: int, text_width: int, widths: tuple[int, ...]) -> UNet2DConditionModel:
    """Build a denoiser with cross-attention at every level, because the finest level carries the brushwork."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=text_width,
        # diffusers reads this as the number of heads of each level
        attention_head_dim=tuple(max(1, w // 48) for w in widths),
        norm_num_groups=32 if all(w % 32 == 0 for w in widths) else GROUPS,
    )


def schedule() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule. The denoiser predicts v (Salimans and Ho 2022).

    At high noise, a small error in epsilon is magnified 14 times in the predicted picture and tints it. v does not have
    this problem.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        # With the default spacing, sampling would begin below the highest noise level.
        timestep_spacing="trailing",
    )


def timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """Draw stratified uniform timesteps [count] (Kingma et al. 2021, appendix I). Each batch covers the whole range."""
    device = generator.device
    offset = torch.rand((), generator=generator, device=device)
    spread = (torch.arange(count, device=device) / count + offset) % 1
    order = torch.randperm(count, generator=generator, device=device)
    return (spread[order] * total).long().clamp(max=total - 1)


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments("Train mini's denoiser and inversion module.")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder tokenizer/ of stage 1")
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder vae/ of stage 2")
    parser.add_argument("--pair", type=Path, required=True, help="folder of stage 3")
    parser.add_argument("--warm-start", type=Path, help="begin with the `unet/` and `inversion/` of this folder")
    parser.add_argument(
        "--batch", type=whole_number(1), default=96, help="pictures for each step and process (default 96)"
    )
    parser.add_argument(
        "--repeats", type=whole_number(1), default=3, help="noise levels drawn for each encoded picture"
    )
    parser.add_argument("--rate", type=real_number(), default=5e-4, help="peak learning rate (default 5e-4)")
    parser.add_argument(
        "--widths",
        type=whole_number(GROUPS, multiple=GROUPS),
        nargs="+",
        default=[128, 192, 288],
        help="channels of the levels",
    )
    parser.add_argument(
        "--sheet-steps", type=whole_number(1, 1000), default=30, help="sampling steps for the sheets (default 30)"
    )
    parser.add_argument("--vectors", type=whole_number(1), default=8, help="vectors of a pseudo-word (default 8)")
    parser.add_argument(
        "--reference",
        choices=("none", *MODES),
        default="none",
        help="teach self-attention to read another crop of the picture: besides its own tokens (concat), or for half "
        "of the rows instead of its own tokens (both)",
    )
    parser.add_argument(
        "--reference-blocks", choices=BLOCKS, default="up", help="blocks that read the reference (default up)"
    )
    parser.add_argument(
        "--reference-share",
        type=real_number(1, zero=False),
        default=1.0,
        help="share of the steps that have a reference (default 1)",
    )
    parser.add_argument(
        "--style-pairs",
        type=whole_number(0, multiple=2),
        default=0,
        help="photos for each step and process that are repainted like a painting (default 0); needs --reference",
    )
    parser.add_argument("--style-weight", type=real_number(), default=0.01, help="weight of their loss (default 0.01)")
    parser.add_argument(
        "--gram-weight", type=real_number(), default=1.0, help="weight of the Gram distance in it (default 1)"
    )
    parser.add_argument(
        "--local-weight", type=real_number(), default=1.0, help="weight of the textures of its cells (default 1)"
    )
    parser.add_argument("--perceptual", type=Path, help="file with VGG-16 and LPIPS weights (default: downloaded)")
    options = parser.parse_args(given)
    if options.style_pairs and options.reference == "none":
        raise UsageError("--style-pairs needs a denoiser that reads a reference: give --reference concat or both")
    box = TimeBox(options.minutes, options.steps)
    tokenizer = load_matching(options.pair, options.tokenizer)
    if options.vectors > (most := most_vectors(tokenizer)):
        raise UsageError(
            f"--vectors {options.vectors}: a prompt of this tokenizer has room for {most} at most; give fewer"
        )
    workers = Workers.join()
    device = workers.device
    torch.manual_seed(options.seed)

    everything = load_shards(options.data)
    pictures, held_out = everything.train(), everything.held_out()
    del everything
    pictures = pictures.to(device)
    plain_bank = CaptionBank(pictures.captions, tokenizer, device)
    styled_bank = CaptionBank(pictures.captions, tokenizer, device, vectors=options.vectors, variants=12, form=styled)
    empty_ids = CaptionBank([[""]], tokenizer, device, variants=1).ids  # [1, L]
    styled_share = torch.tensor([STYLED_SHARE.get(kind, 0.25) for kind in pictures.kinds], device=device)

    frozen = Encoders(options.autoencoder, options.pair, device)
    table = frozen.text.get_input_embeddings().weight
    text_width = table.shape[1]
    unet = build(frozen.vae.config.latent_channels, text_width, tuple(options.widths))
    inversion = AttentionInversion(
        InversionConfig(
            picture_width=frozen.vision.config.hidden_size,
            pooled_width=frozen.vision.config.projection_dim,
            text_width=text_width,
            vectors=options.vectors,
        )
    )
    if options.warm_start:
        unet = load_weights(UNet2DConditionModel, require_folder(options.warm_start / "unet"), torch.float32)
        inversion = AttentionInversion.from_pretrained(options.warm_start / "inversion")
        if options.vectors != (vectors := inversion.config.vectors):
            raise UsageError(
                f"--vectors {options.vectors}: the words of {options.warm_start} have {vectors}; give that number"
            )
    channels_last(unet)
    reference = None
    if options.reference != "none":
        reference = read_reference(unet, options.reference, options.reference_blocks)
    unet, inversion = unet.to(device).train(), inversion.to(device).train()
    if not options.warm_start:
        inversion.start_at(table[tokenizer("painting", add_special_tokens=False).input_ids[0]], table)
    workers.broadcast(unet)
    workers.broadcast(inversion)
    denoise, encode = unet, frozen.vae.encoder
    if not options.no_compile:
        denoise, frozen.vae.encoder = torch.compile(unet, dynamic=False), torch.compile(encode, dynamic=False)

    torch.manual_seed(options.seed + workers.rank)  # dropout differs between processes
    generator = torch.Generator(device).manual_seed(options.seed + workers.rank)
    parameters = [*unet.parameters(), *inversion.parameters()]
    adam = optimiser([unet, inversion], options.rate, 0.01, (0.9, 0.99))
    training = Training(
        workers,
        options.out,
        {"unet": unet, "inversion": inversion},
        {"both": adam},
        {"unet": EMA(unet, 0.9995), "inversion": EMA(inversion, 0.9995)},
        generator,
        box,
        settings_of(options) | {"pictures": len(pictures)},
    )
    training.resume()
    scheduler = schedule()
    abar = scheduler.alphas_cumprod.to(device)
    # The smaller bucket has all pictures, the large ones cropped. The larger bucket has only the large pictures.
    by_size = {size: (pictures.native >= size).nonzero().flatten() for size in BUCKETS}
    by_size[BUCKETS[0]] = torch.arange(len(pictures), device=device)
    share_large = len(by_size[BUCKETS[1]]) / len(pictures)
    stylisation = None
    if reference and options.style_pairs:
        word_bank = CaptionBank([["[C]"]], tokenizer, device, vectors=options.vectors, variants=1)
        stylisation = Stylisation(
            frozen=frozen,
            unet=unet,
            inversion=inversion,
            reference=reference,
            perceptual=LPIPS.load(options.perceptual).to(device).requires_grad_(False),
            pictures=pictures,
            word_prompt=(word_bank.ids, word_bank.slots),
            empty_prompt=(empty_ids, torch.full_like(empty_ids, -1)),
            abar=abar,
            gram_weight=options.gram_weight,
            local_weight=options.local_weight,
        )

    def advance(progress: float) -> Mapping[str, Tensor]:
        for group in adam.param_groups:
            group["lr"] = learning_rate(progress, training.step, options.rate)
        # All processes use the same bucket in a step, so that none waits for another.
        turn = int((training.step + 1) * share_large) - int(training.step * share_large)
        size, batch = BUCKETS[turn], options.batch
        paired = reference is not None and has_reference(training.step, options.reference_share)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            at = torch.randint(len(by_size[size]), (batch,), generator=generator, device=device)
            index = by_size[size][at]
            if turn:
                crops = exact_crops(pictures, index, size, generator)
            else:
                crops = cut(pictures, index, *random_squares(pictures, index, PICTURE_CROP, generator), size)
            large = torch.ones(batch, dtype=torch.bool, device=device)  # which rows count in the loss
            if paired:  # from here on, every tensor has the rows of the crops A, then those of the crops B
                boxes, flips = random_squares(pictures, index, REFERENCE_CROP, generator)
                crops = torch.cat([crops, cut(pictures, index, boxes, flips, size)])
                large = torch.cat([large, boxes[:, 2] >= LEAST_SIDE * size])
            latents = frozen.latents(crops.contiguous(memory_format=torch.channels_last), generator)
            squares = random_squares(pictures, index, WORD_CROP, generator)
            pooled, tokens = frozen.tokens(cut(pictures, index, *squares, SIZE))
        draw = torch.rand(2, batch, generator=generator, device=device)
        use_word, use_null = draw[0] < styled_share[index], draw[1] < NULL_SHARE
        ids, slots, _ = plain_bank.draw(index, generator)
        word_ids, word_slots, _ = styled_bank.draw(index, generator)
        ids = torch.where(use_word[:, None], word_ids, ids)
        slots = torch.where((use_word & ~use_null)[:, None], word_slots, -1)
        ids = torch.where(use_null[:, None], empty_ids, ids)

        repeats, copies = options.repeats, 2 if paired else 1
        latents = latents.repeat_interleave(repeats, 0).contiguous(memory_format=torch.channels_last)
        t = timesteps(batch * repeats, len(abar), generator).repeat(copies)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        signal, sigma = abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)
        target = signal * noise - sigma * latents
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            words = inversion(pooled, tokens)
            text, _ = encode_text(frozen.text, ids, slots, words)
            text = text.repeat_interleave(repeats, 0).repeat(copies, 1, 1)
            with reference.paired(paired) if reference else nullcontext():
                guess = denoise(signal * latents + sigma * noise, t, text).sample
        snr = abar[t] / (1 - abar[t])
        # min-SNR (Hang et al. 2023) for v: the error of the predicted clean picture, weighted by min(SNR, 5).
        each = ((guess.float() - target) ** 2).mean((1, 2, 3))
        weighted = each * snr.clamp(max=SNR_CAP) / (snr + 1)
        counted = large.repeat_interleave(repeats)
        loss = _mean(weighted, counted) if paired else weighted.mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        style_values: Mapping[str, Tensor] = {}
        if stylisation:
            style_loss, style_values = stylisation.loss(options.style_pairs, generator)
            (options.style_weight * style_loss).backward()
        workers.average_gradients(parameters)
        gradient = nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        with_word = use_word.repeat_interleave(repeats).repeat(copies)
        values = {
            "loss": loss,
            "v_mse": _mean(each, counted),
            "v_mse_word": _mean(each, counted & with_word),
            "v_mse_plain": _mean(each, counted & ~with_word),
            "gradient": gradient,
            **style_values,
        }
        if paired:
            rows = batch * repeats
            values["v_mse_reference"] = each[:rows].mean()
            values["v_mse_own"] = _mean(each[rows:], counted[rows:])
        return values

    def predict(latents: Tensor, t: int, text: TextEmbedding) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            v = unet(latents, t, text.tokens).sample.float()
        signal, sigma = abar[t].sqrt(), (1 - abar[t]).sqrt()
        return signal * v + sigma * latents

    paintings = _paintings(held_out, 6)

    @torch.no_grad()
    def draw(path: Path) -> None:
        unet.eval(), inversion.eval()
        originals = paintings.at_size(256).to(device)
        words = inversion(*frozen.tokens(paintings.at_size(SIZE).to(device)))
        prompt_bank = CaptionBank([[p] for p in PROMPTS], tokenizer, device, variants=1)
        texts = [encode_text(frozen.text, prompt_bank.ids, prompt_bank.slots, None)[0]]
        for sentence in ("[C]", "a church in the style of [C]", "a dog in the style of [C]"):
            bank = CaptionBank([[sentence]], tokenizer, device, vectors=options.vectors, variants=1)
            ids, slots = bank.ids.expand(len(words), -1), bank.slots.expand(len(words), -1)
            texts.append(encode_text(frozen.text, ids, slots, words)[0])
        null, _ = encode_text(frozen.text, empty_ids, torch.full_like(empty_ids, -1), None)
        text = torch.cat(texts)
        latents = sample(
            predict,
            TextEmbedding(text),
            TextEmbedding(null),
            abar,
            (len(text), unet.config.in_channels, 32, 32),
            steps=options.sheet_steps,
            generator=torch.Generator().manual_seed(1),
            device=device,
        )
        made = frozen.vae.decode(latents / frozen.vae.config.scaling_factor).sample.cpu()
        count = len(PROMPTS)
        labels = [
            *PROMPTS,
            *["painting"] * len(originals),
            *["[C]"] * len(originals),
            *["a church in the style of [C]"] * len(originals),
            *["a dog in the style of [C]"] * len(originals),
        ]
        sheet(torch.cat([made[:count], originals.cpu(), made[count:]]), labels, path, columns=6)
        unet.train(), inversion.train()

    training.run(advance, sheet=draw, log_every=options.log_every, save_every_seconds=options.save_every)
    if workers.is_first:
        for ema in training.emas.values():
            ema.swap()
        unet.eval().to(memory_format=torch.contiguous_format)
        for name, part in (("unet", unet), ("scheduler", scheduler), ("inversion", inversion.eval())):
            write_folder(options.out / name, part.save_pretrained)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of `values` [B] where `counted` [B] is True, or 0 if it is nowhere True."""
    return (values * counted).sum() / counted.sum().clamp_min(1)


def _paintings(held_out: Pictures, count: int) -> Pictures:
    """Return the first held-out artworks, or any pictures if there are no artworks."""
    art = [i for i, kind in enumerate(held_out.kinds) if kind == "art"] or list(range(len(held_out)))
    return held_out.subset([art[i % len(art)] for i in range(count)])
