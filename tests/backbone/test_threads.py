"""Threads that share a backbone get what each of them gets alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch

import inst
from inst.backbone import devices
from inst.backbone.devices import deterministic
from inst.runs import complete


def at_once(*jobs: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [job.result() for job in [pool.submit(job) for job in jobs]]


def test_prompts_of_threads_keep_their_own_styles(tiny_backbone: inst.Backbone) -> None:
    """Every thread waits inside the text encoder until the others are inside too."""
    words = torch.randn(2, 3, tiny_backbone.text_width, generator=torch.Generator().manual_seed(0))
    prompts: list[tuple[list[str], dict[str, torch.Tensor]]] = [
        (["[C]"], {"[C]": words[0]}),
        (["a boat, [C]", "[C]"], {"[C]": words[1]}),
        (["a castle"], {}),
    ]

    @torch.no_grad()
    def embed(prompt: list[str], styles: dict[str, torch.Tensor]) -> torch.Tensor:
        return tiny_backbone.embed_text(prompt, styles).tokens

    alone = [embed(*prompt) for prompt in prompts]
    inside = Barrier(len(prompts))
    table = tiny_backbone.text_encoder.get_input_embeddings()

    def wait(*_: object) -> None:
        inside.wait(timeout=60)

    handle = table.register_forward_pre_hook(wait)
    try:
        together = at_once(*(lambda prompt=prompt: embed(*prompt) for prompt in prompts))
    finally:
        handle.remove()
    for found, expected in zip(together, alone, strict=True):
        assert torch.equal(found, expected)
    assert not table._forward_hooks


def test_learning_and_painting_in_threads(tiny_backbone: inst.Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    paintings = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    photo = torch.rand(3, 64, 64, generator=generator) * 2 - 1
    style = inst.instant_style(tiny_backbone, paintings[0])

    def learn(number: int) -> torch.Tensor:
        return complete(inst.learn(tiny_backbone, paintings[number], steps=6, validate_every=3)).vectors

    def paint() -> torch.Tensor:
        return torch.cat([complete(inst.transfer(tiny_backbone, photo, style, steps=3)) for _ in range(3)])

    alone = [learn(0), learn(1), paint()]
    together = at_once(lambda: learn(0), lambda: learn(1), paint)
    for found, expected in zip(together, alone, strict=True):
        assert torch.equal(found, expected)


def test_the_last_thread_sets_pytorchs_mode_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread leaves the block while another is still in it."""
    monkeypatch.setattr(devices, "_has_fixed_workspace", lambda device: True)
    both_inside, one_left = Barrier(2), Barrier(2)
    modes = []

    def first() -> None:
        with deterministic(torch.device("cuda")):
            both_inside.wait(timeout=60)
        one_left.wait(timeout=60)

    def second() -> None:
        with deterministic(torch.device("cuda")):
            both_inside.wait(timeout=60)
            one_left.wait(timeout=60)
            modes.append(torch.are_deterministic_algorithms_enabled())

    at_once(first, second)
    assert modes == [True]
    assert not torch.are_deterministic_algorithms_enabled()
