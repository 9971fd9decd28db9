from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from inst.backbone.text import TextEmbedding
from inst.pictures.sheets import LABEL_HEIGHT
from sample import sample, sheet

SCHEDULE = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=True,
    timestep_spacing="trailing",
)
ABAR = SCHEDULE.alphas_cumprod


@pytest.mark.parametrize("steps", [1, 10, 25])
def test_sampling_gives_the_same_latents_as_diffusers(steps: int) -> None:
    """Where the number of steps divides 1,000; elsewhere diffusers steps to a timestep beside the next one."""
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 0.3

    def predict(latents: Tensor, t: int | Tensor, text: TextEmbedding) -> Tensor:
        mixed = torch.einsum("oc,bchw->bohw", weight, latents)
        return mixed + text.tokens.mean((1, 2)).view(-1, 1, 1, 1) + t / 1000

    text, null = TextEmbedding(torch.randn(3, 5, 6)), TextEmbedding(torch.zeros(1, 5, 6))
    got = sample(predict, text, null, ABAR, (3, 4, 8, 8), steps=steps, guidance=3, generator=torch.manual_seed(1))

    SCHEDULE.set_timesteps(steps)
    latents = torch.randn(3, 4, 8, 8, generator=torch.manual_seed(1))
    for t in SCHEDULE.timesteps:
        with_text, without = predict(latents, t, text), predict(latents, t, null)
        latents = SCHEDULE.step(without + 3 * (with_text - without), t, latents).prev_sample
    torch.testing.assert_close(got, latents, rtol=1e-3, atol=1e-3)


def test_sheet_shows_each_picture_in_its_place(tmp_path: Path) -> None:
    pictures = torch.stack([torch.full((3, 40, 60), value) for value in (-1.0, 0.0, 1.0)])
    pictures[2, 1:] = -1
    sheet(
        pictures, ["black", "", "a label that is much too long for its picture " * 3], tmp_path / "new" / "sheet.png", 2
    )
    page = Image.open(tmp_path / "new" / "sheet.png")
    gap, pitch, row = 8, 60 + 8, 40 + LABEL_HEIGHT + 8  # a cell is a square of the longest side, between gaps
    assert page.size == (2 * pitch + gap, 2 * row + gap)
    middles = [(gap + 30, gap + 20), (gap + pitch + 30, gap + 20), (gap + 30, gap + row + 20)]
    assert [page.getpixel(at) for at in middles] == [(0, 0, 0), (128, 128, 128), (255, 0, 0)]
    below = [page.crop((left, gap + 40, left + 60, row)).getextrema()[0][0] for left in (gap, gap + pitch)]
    assert below[0] < 128  # there is writing
    assert below[1] == 255  # and none under the second
    assert page.crop((gap + pitch, gap + row, *page.size)).getextrema() == ((255, 255),) * 3
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "sheet.png"]
