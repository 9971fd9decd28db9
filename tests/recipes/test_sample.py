from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from sample import LABEL_HEIGHT, ddim, guided, sample, sheet

SCHEDULE = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=True,
    timestep_spacing="trailing",
)
ABAR = SCHEDULE.alphas_cumprod


def test_ddim_reaches_what_a_perfect_denoiser_knows() -> None:
    clean = torch.randn(2, 4, 8, 8)

    def predict(latents: Tensor, t: Tensor) -> Tensor:
        abar = ABAR[t].view(-1, 1, 1, 1)
        return (latents - abar.sqrt() * clean) / (1 - abar).sqrt()

    got = ddim(predict, torch.randn(2, 4, 8, 8), [999, 700, 200, 1], ABAR)
    torch.testing.assert_close(got, clean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 10, 25])
def test_sample_equals_diffusers(steps: int) -> None:
    """Where the number of steps divides 1,000; elsewhere diffusers steps to a timestep beside the next one."""
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 0.3

    def predict(latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        mixed = torch.einsum("oc,bchw->bohw", weight, latents)
        return mixed + text.mean((1, 2)).view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1) / 1000

    text, null = torch.randn(3, 5, 6), torch.zeros(1, 5, 6)
    got = sample(predict, text, null, ABAR, (4, 8, 8), steps=steps, guidance=3, generator=torch.manual_seed(1))

    SCHEDULE.set_timesteps(steps)
    latents = torch.randn(3, 4, 8, 8, generator=torch.manual_seed(1))
    for t in SCHEDULE.timesteps:
        with_text, without = predict(latents, t, text), predict(latents, t, null)
        latents = SCHEDULE.step(without + 3 * (with_text - without), t, latents).prev_sample
    torch.testing.assert_close(got, latents, rtol=1e-3, atol=1e-3)


def test_guidance_of_one_saves_half_the_work() -> None:
    sizes = []

    def predict(latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
        sizes.append(len(latents))
        return latents

    text = torch.zeros(2, 1, 1)
    for guidance in (1.0, 2.0):
        guided(predict, text, text[:1], guidance)(torch.ones(2, 1, 1, 1), torch.zeros(2))
    assert sizes == [2, 4]


def test_sheet_shows_each_picture_in_its_place(tmp_path: Path) -> None:
    pictures = torch.stack([torch.full((3, 40, 60), value) for value in (-1.0, 0.0, 1.0)])
    pictures[2, 1:] = -1
    sheet(
        pictures, ["black", "", "a label that is much too long for its picture " * 3], tmp_path / "new" / "sheet.png", 2
    )
    page = Image.open(tmp_path / "new" / "sheet.png")
    assert page.size == (2 * 60 + 4, 2 * (40 + LABEL_HEIGHT) + 4)
    second_row = 40 + LABEL_HEIGHT + 4
    assert [page.getpixel(at) for at in ((30, 20), (94, 20), (30, second_row + 20))] == [
        (0, 0, 0),
        (128, 128, 128),
        (255, 0, 0),
    ]
    darkest = [page.crop((left, 40, left + 60, 40 + LABEL_HEIGHT)).getextrema()[0][0] for left in (0, 64)]
    assert darkest[0] < 128  # there is writing
    assert darkest[1] == 255  # and none under the second
    assert page.crop((62, second_row, 124, page.height)).getextrema() == ((255, 255),) * 3
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "sheet.png"]
