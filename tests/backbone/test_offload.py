"""Low memory: the same results, with fewer activations kept and one part on the device at a time."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from inst import Backbone, complete, generate, instant_style, learn, transfer
from inst.backbone.loading.sources import read_parts
from inst.backbone.offload import Offload
from inst.backbone.parts import Parts
from inst.learning.data import embed_paintings
from inst.learning.start import fresh_inversion
from inst.pictures.reading import Photo
from inst.sampling.denoiser import guided
from inst.styles.style import Style
from inst.synthesis.prompts import embed_prompts
from tiny import save_family

SETTINGS: dict[str, Any] = {"steps": 2, "seed": [3, 4], "size": 64}
ACCELERATOR = torch.device("cuda", 0)  # the tests below move nothing there


@pytest.fixture(scope="module", params=["tiny", "sdxl"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_backbone_folder: Path
) -> Path:
    if request.param == "tiny":
        return tiny_backbone_folder
    return save_family(tmp_path_factory.mktemp("memory") / "sdxl", "sdxl")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Backbone:
    return Backbone.load(folder, "cpu", "float32")


@pytest.fixture
def frugal(folder: Path) -> Backbone:
    return Backbone.load(folder, "cpu", "float32", low_memory=True)


@pytest.fixture
def painting() -> Photo:
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Photo(picture, None, "painting.png", "0" * 64)


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


def learned(backbone: Backbone, painting: Photo) -> Any:
    return complete(
        learn(backbone, [painting], variant="direct", steps=3, vectors=2, crops=2, validate_every=2, lr=1e-3)  # type: ignore[arg-type]
    )


def test_low_memory_gives_the_same_results(plain: Backbone, frugal: Backbone, painting: Photo) -> None:
    assert (plain.low_memory, frugal.low_memory) == (False, True)
    style = learned(plain, painting)
    close(learned(frugal, painting).vectors, style.vectors)
    for run in (
        lambda backbone: transfer(backbone, painting.picture, style, **SETTINGS),
        lambda backbone: generate(backbone, "a river by [C]", style, **SETTINGS),
    ):
        close(complete(run(frugal)), complete(run(plain)), atol=1e-4)  # guidance in two calls, and in one


def test_the_autoencoder_sees_one_picture_and_one_small_tile_at_a_time(
    frugal: Backbone, painting: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for part in (frugal.vae.encoder, frugal.vae.decoder):
        part.register_forward_pre_hook(lambda module, given: seen.add(given[0].shape[:1] + given[0].shape[2:]))
    style = learned(frugal, painting)
    complete(transfer(frugal, torch.zeros(2, 3, 100, 150), style, **SETTINGS | {"size": 96}))
    assert seen == {(1, 64, 64), (1, 8, 8)}


@contextmanager
def count_kept_bytes() -> Iterator[dict[int, int]]:
    """Bytes of the storages that autograd keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def test_low_memory_learning_recomputes_activations_instead_of_keeping_them(plain: Backbone, frugal: Backbone) -> None:
    """Although the UNet is in evaluation mode."""
    assert not frugal.unet.training
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    gradients, kept, calls = [], [], []
    for backbone in (plain, frugal):
        count = []
        hook = backbone.unet.mid_block.resnets[1].register_forward_pre_hook(lambda *given, count=count: count.append(1))
        vectors = backbone.token_table[:3].clone().requires_grad_()
        text = backbone.embed_text(["a dog by [C]"], {"[C]": vectors})
        with count_kept_bytes() as storages:
            loss = backbone.predict_noise(latents, torch.tensor([10, 900]), text).square().mean()
        loss.backward()
        hook.remove()
        assert vectors.grad is not None
        gradients.append(vectors.grad)
        kept.append(sum(storages.values()))
        calls.append(len(count))
    close(gradients[1], gradients[0])
    assert kept[1] < kept[0] / 3
    assert calls == [1, 2]


class Moves:
    """What `Offload` does to the parts of a backbone, which stay where they are."""

    def __init__(self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, *offloaded: str) -> None:
        self.moves: list[tuple[str, str]] = []
        self.here: set[str] = set()
        self.running: list[tuple[str, frozenset[str]]] = []
        names = offloaded or ("vae", "unet", "text_encoder", "text_encoder_2", "image_encoder")
        parts = {name: getattr(backbone, name) for name in names if getattr(backbone, name) is not None}
        for name, part in parts.items():
            monkeypatch.setattr(part, "to", lambda device, name=name: self._move(name, torch.device(device)))
        offload = Offload(parts.values(), ACCELERATOR)
        assert self.here == set()
        self.moves.clear()
        bring = offload.pre_forward
        named = {id(part): name for name, part in parts.items()}

        def follow(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            found = bring(module, *args, **kwargs)
            self.running.append((named[id(module)], frozenset(self.here)))
            return found

        monkeypatch.setattr(offload, "pre_forward", follow)

    def _move(self, name: str, device: torch.device) -> None:
        self.moves.append((name, device.type))
        (self.here.add if device == ACCELERATOR else self.here.discard)(name)


def test_each_part_is_alone_on_the_device_while_it_runs(
    folder: Path, plain: Backbone, painting: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = learned(plain, painting)
    expected = complete(transfer(plain, painting.picture, style, **SETTINGS))
    backbone = Backbone.load(folder, "cpu", "float32")
    moves = Moves(backbone, monkeypatch)
    if backbone.inversion is not None:
        instant_style(backbone, [painting])
        assert set(moves.running) == {("image_encoder", frozenset({"image_encoder"}))}
    found = complete(transfer(backbone, painting.picture, style, **SETTINGS))
    assert torch.equal(found, expected)
    assert all(here == {name} for name, here in moves.running)
    assert {name for name, _ in moves.running} >= {"vae", "unet", "text_encoder"}
    assert moves.moves.count(("unet", "cuda")) == 1
    assert moves.here == {"vae"}


def test_the_parts_that_the_gradient_passes_stay_on_the_device_in_learning(
    folder: Path, plain: Backbone, painting: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.load(folder, "cpu", "float32")
    moves = Moves(backbone, monkeypatch)
    needed = {"unet", "text_encoder", "text_encoder_2"} if backbone.text_encoder_2 else {"unet", "text_encoder"}
    graph = []
    monkeypatch.setattr("torch.autograd.grad", follow(torch.autograd.grad, lambda: graph.append(set(moves.here))))
    steps = learn(backbone, [painting], variant="direct", steps=4, vectors=2, crops=2, validate_every=0)
    next(steps)
    moves.moves.clear()
    for _ in steps:
        pass
    assert graph == [needed] * 4
    assert moves.moves == []


@pytest.mark.parametrize("offloaded", [["image_encoder"], []])
def test_the_image_encoder_is_off_the_device_whenever_the_unet_or_vae_runs(
    tiny_backbone: Backbone,
    tiny_backbone_folder: Path,
    painting: Photo,
    offloaded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without low memory, when it alone comes and goes, and with it."""
    backbone = Backbone.load(tiny_backbone_folder, "cpu", "float32")
    moves = Moves(backbone, monkeypatch, *offloaded)
    beside: dict[str, set[bool]] = {"unet": set(), "vae": set()}
    for name, seen in beside.items():
        part = getattr(backbone, name)
        run = "decode" if name == "vae" else "forward"
        monkeypatch.setattr(part, run, follow(getattr(part, run), lambda s=seen: s.add("image_encoder" in moves.here)))

    def styles(of: Backbone) -> list[Style]:
        return [complete(learn(of, [painting], steps=3, validate_every=2)), instant_style(of, [painting])]  # type: ignore[arg-type]

    for found, expected in zip(styles(backbone), styles(tiny_backbone), strict=True):
        assert torch.equal(found.vectors, expected.vectors)
        complete(transfer(backbone, painting.picture, found, **SETTINGS))
    assert beside == {"unet": {False}, "vae": {False}}
    assert moves.moves.count(("image_encoder", "cuda")) == 2  # once for the learning, once for the instant style
    assert ("image_encoder", frozenset({"image_encoder"})) in moves.running


def follow(function: Any, before: Any) -> Any:
    def called(*args: Any, **kwargs: Any) -> Any:
        before()
        return function(*args, **kwargs)

    return called


def test_weights_moved_in_inference_mode_can_still_be_learned_through(folder: Path) -> None:
    """On the CPU both places are one; the moves are real, though, and make new tensors of the weights."""
    backbone = Backbone.load(folder, "cpu", "float32")
    with torch.inference_mode():
        Offload([backbone.unet], torch.device("cpu"))
        backbone.predict_noise(torch.zeros(1, 4, 8, 8), 5, backbone.embed_text(["a dog"]))
    assert not any(weight.is_inference() for weight in backbone.unet.parameters())


@pytest.fixture
def meta_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Parts whose weights come back from PyTorch's device without data, which stands for an accelerator here."""
    parts = read_parts(folder, torch.float32)
    there: dict[tuple[int, str], torch.Tensor] = {}
    here: dict[tuple[int, str], torch.Tensor] = {}

    def move(part: torch.nn.Module, device: torch.device) -> None:
        for module in part.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        key = (id(module), name)
                        here.setdefault(key, tensor)
                        if key not in there:
                            there[key] = tensor.detach().to("meta")
                            if isinstance(tensor, torch.nn.Parameter):
                                there[key] = torch.nn.Parameter(there[key], requires_grad=False)
                        tensors[name] = (there if device.type == "meta" else here)[key]

    for part in vars(parts).values():
        if isinstance(part, torch.nn.Module):
            monkeypatch.setattr(part, "to", lambda device, part=part: move(part, torch.device(device)))
    monkeypatch.setattr("inst.backbone.offload.clear_device_cache", lambda: None)
    return parts


def test_every_computation_runs_where_its_weights_are(meta_parts: Parts) -> None:
    backbone = Backbone.of(meta_parts, torch.device("meta"), torch.float32, "there and here", low_memory=True)
    parts = {"vae": backbone.vae, "unet": backbone.unet, "text": backbone.text_encoder}

    def on_the_device() -> set[str]:
        return {name for name, part in parts.items() if next(part.parameters()).is_meta}

    assert on_the_device() == set()
    vectors = torch.zeros(3, backbone.text_width, device="meta", requires_grad=True)
    for _ in range(2):
        text = backbone.embed_text(["a dog by [C]"], {"[C]": vectors})
        noise = backbone.predict_noise(torch.zeros(1, 4, 8, 8), torch.tensor([5]), text)
        assert on_the_device() == {"unet", "text"}
        noise.square().mean().backward()
        with torch.no_grad():
            backbone.decode(backbone.encode(torch.zeros(2, 3, 64, 64)))
        assert on_the_device() == {"vae"}
    with torch.no_grad():
        style = Style(torch.zeros(2, backbone.text_width), backbone.fingerprint)
        text = embed_prompts(backbone, ["[C]"], {"[C]": style}, 0.5)
        negative = backbone.embed_text([""])
        denoise = guided(backbone.predict_noise, text, negative, 3.0)
        assert denoise(torch.zeros(2, 4, 8, 8), 5).is_meta
        assert on_the_device() == {"unet"}
        if backbone.image_encoder is not None:
            assert backbone.embed_picture(torch.zeros(1, 3, 64, 64))[0].is_meta
            assert on_the_device() == set()
    assert fresh_inversion(backbone, "direct").base.is_meta


def test_the_image_encoder_is_on_the_device_only_while_it_looks_at_paintings(meta_parts: Parts) -> None:
    backbone = Backbone.of(meta_parts, torch.device("meta"), torch.float32, "there and here")
    assert all(next(part.parameters()).is_meta for part in (backbone.vae, backbone.unet, *backbone.text_encoders))
    if backbone.image_encoder is not None:
        assert not next(backbone.image_encoder.parameters()).is_meta
        assert backbone.embed_picture(torch.zeros(1, 3, 64, 64))[0].is_meta
        backbone.encode(torch.zeros(1, 3, 64, 64))
        assert next(backbone.image_encoder.parameters()).is_meta
        with torch.no_grad():
            embed_paintings(backbone, [Photo(torch.zeros(3, 64, 64))])
        assert not next(backbone.image_encoder.parameters()).is_meta


def test_the_benchmark_of_a_gpu_measures_every_part_beside_diffusers(tmp_path: Path) -> None:
    program = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"
    out = tmp_path / "figures.json"
    given = [sys.executable, str(program), "--tiny", "--device", "cpu", "--repeats", "1", "--out", str(out)]
    subprocess.run(given, check=True, capture_output=True, timeout=300)
    figures = json.loads(out.read_text())["figures"]
    assert all(figure >= 0 for figure in figures.values())
    for what in ("diffusers, photo, 35 steps", "transfer, 35 steps", "diffusers, learning step", "learning step"):
        assert figures[f"{what}, batch 2"] > 0


def test_the_benchmarks_model_has_the_sizes_of_stable_diffusion_1() -> None:
    """Published: 860 M in the UNet, 123 M in the text encoder; 83.7 M in the autoencoder."""
    from accelerate import init_empty_weights

    path = Path(__file__).resolve().parents[2] / "benchmarks" / "models.py"
    spec = importlib.util.spec_from_file_location("models", path)
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    with init_empty_weights():
        parts = models.build(models.SIZES["Stable Diffusion 1.4"], torch.float16)
    sizes = [
        sum(weight.numel() for weight in part.parameters()) for part in (parts.unet, parts.text_encoder, parts.vae)
    ]
    assert sizes == [859_520_964, 123_060_480, 83_653_863]
