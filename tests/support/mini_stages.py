"""The stages that train mini, on a few generated pictures and with tiny sizes."""

from pathlib import Path

import autoencoder
import pair
import tokenizer
import unet

SMALL = ["--no-compile", "--log-every", "1", "--steps"]


def unet_arguments(shards: Path, out: Path) -> list[str]:
    """Return the arguments of the stage of the denoiser that continues from the stages in `out`."""
    inputs = ["--tokenizer", str(out / "tokenizer"), "--autoencoder", str(out / "autoencoder" / "vae")]
    sizes = ["--widths", "32", "48", "--vectors", "2", "--batch", "2", "--repeats", "2", "--sheet-steps", "1"]
    return ["--data", str(shards), *inputs, "--pair", str(out / "pair"), *sizes]


def run_stages(shards: Path, vgg: Path, inception: Path, out: Path) -> None:
    """Run all stages into `out`, a few steps each."""
    tokenizer.main(["--data", str(shards), "--out", str(out), "--size", "560", "--length", "24"])
    data = ["--data", str(shards)]
    vae = ["--perceptual", str(vgg), "--batch", "2", "--crop", "64", "--widths", "16", "16", "16", "32"]
    autoencoder.main([*data, "--out", str(out / "autoencoder"), *vae, *SMALL, "4"])
    teachers = ["--vgg", str(vgg), "--inception", str(inception)]
    sizes = ["--batch", "4", "--width", "32", "--text-layers", "1", "--image-layers", "1"]
    inputs = ["--tokenizer", str(out / "tokenizer"), *teachers]
    pair.main([*data, "--out", str(out / "pair"), *inputs, *sizes, *SMALL, "2"])
    unet.main([*unet_arguments(shards, out), "--out", str(out / "unet"), *SMALL, "4"])
