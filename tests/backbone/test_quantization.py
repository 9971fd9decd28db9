"""Weights in 8 bits: less memory for a slightly different picture, in every use of a backbone."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inst
from inst import Backbone, complete, generate, learn, transfer
from inst.backbone.graphs import Graphs, signature
from inst.backbone.quantization import check_quantization, quantize_weights
from inst.errors import InstError, UsageError
from inst.learning.run import LearningRun
from inst.pictures.reading import Photo
from inst.synthesis.record import PictureRecord
from tiny import save_family, tiny_unet

CPU = torch.device("cpu")
KINDS = ["int8", "fp8"]
ERROR = {"int8": 0.02, "fp8": 0.08}
"""The largest difference of a random UNet's output, relative to its norm. The error of a weight is at most 1/254 of the
largest one in its row with int8, and 1/16 of itself with fp8. A picture is made of several outputs."""

pytest.importorskip("torchao")


def picture(seed: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def random_unet(**more: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        unet = tiny_unet(
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
            attention_head_dim=8,
            cross_attention_dim=32,
            **more,
        )
    return unet.requires_grad_(False).eval()


def quantised_layers(unet: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in unet.named_modules() if hasattr(getattr(layer, "weight", None), "qdata")}


def in_full(unet: nn.Module) -> Any:
    """Return a UNet of plain layers with the weights that torchao gives back."""
    plain = random_unet()
    weights = dict(plain.state_dict())
    for name, layer in quantised_layers(unet).items():
        rows, like = layer.weight.dequantize(), weights[f"{name}.weight"]
        if like.dim() == 4 and layer.channels_last:
            rows = rows.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)
        weights[f"{name}.weight"] = rows.reshape(like.shape)
    plain.load_state_dict(weights)
    return plain


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def quantised(tiny_backbone_folder: Path, kind: Any) -> Backbone:
    return Backbone.load(tiny_backbone_folder, "cpu", "float32", quantize=kind)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients_are_those_of_the_weights_that_torchao_gives_back(kind: Any, layout: Any) -> None:
    unet = random_unet().to(memory_format=layout)
    quantize_weights(unet, kind, CPU)
    expected = in_full(unet)
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32)
    results = []
    for model in (unet, expected):
        inputs = [x.clone().requires_grad_(), text.clone().requires_grad_()]
        out = model(inputs[0], 500, inputs[1], return_dict=False)[0]
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), inputs)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_predicted_noise_hardly_changes(kind: Any, family: str, tmp_path: Path) -> None:
    folder = save_family(tmp_path / family, family)
    latents = torch.randn(2, 4, 8, 8)
    found, expected = (
        backbone.predict_noise(latents, 500, backbone.embed_text(["a dog"]))
        for backbone in (Backbone.load(folder, "cpu", "float32", quantize=one) for one in (kind, None))
    )
    assert 0 < difference(found, expected) < ERROR[kind]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_number_takes_one_byte_in_every_layer_but_the_first_and_the_last(kind: Any, dtype: str) -> None:
    unet = random_unet().to(getattr(torch, dtype))
    layers = {name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    numbers = {name: unet.get_submodule(name).weight.numel() for name in layers}
    quantize_weights(unet, kind, CPU)
    quantised = quantised_layers(unet)
    assert quantised.keys() == layers - {"conv_in", "conv_out"}
    for name, layer in quantised.items():
        assert layer.weight.qdata.nbytes == numbers[name]
        assert layer.weight.scale.numel() == len(layer.weight), "one for each row"
    assert unet.dtype == getattr(torch, dtype)


def test_large_outputs_in_float16_and_rows_of_zeros_stay_finite(kind: Any) -> None:
    model = nn.Sequential(nn.Linear(64, 2, bias=False))
    model[0].weight = nn.Parameter(torch.stack([torch.full((64,), 1e-3), torch.zeros(64)]).half(), requires_grad=False)
    quantize_weights(model, kind, CPU)
    out = model(torch.full((1, 64), 10000.0, dtype=torch.float16))
    torch.testing.assert_close(out, torch.tensor([[640.0, 0.0]], dtype=torch.float16), rtol=0.01, atol=1e-6)


def test_the_model_is_still_known_by_its_fingerprints(quantised: Backbone, tiny_backbone: Backbone) -> None:
    assert quantised.fingerprint == tiny_backbone.fingerprint
    assert quantised.denoiser_fingerprint == tiny_backbone.denoiser_fingerprint


@pytest.mark.parametrize("settings", [{}, {"style_attention": 0.0}, {"inversion": "ddim"}], ids=str)
def test_pictures_are_close_and_the_same_with_low_memory(
    kind: Any, settings: dict[str, Any], tiny_backbone: Backbone, tiny_backbone_folder: Path
) -> None:
    lean = Backbone.load(tiny_backbone_folder, "cpu", "float32", quantize=kind, low_memory=True)
    quantised = Backbone.load(tiny_backbone_folder, "cpu", "float32", quantize=kind)
    painting, same = Photo(picture(1)), {"steps": 4, "seed": 3, "size": 64, **settings}
    plain, found, frugal = (
        complete(transfer(backbone, picture(2), inst.instant_style(backbone, painting), **same))
        for backbone in (tiny_backbone, quantised, lean)
    )
    assert 0 < difference(found, plain) < 3 * ERROR[kind]
    torch.testing.assert_close(frugal, found, rtol=1e-4, atol=1e-4)


def test_generation_works(quantised: Backbone, tiny_backbone: Backbone) -> None:
    style = inst.instant_style(tiny_backbone, Photo(picture(1)))
    found, plain = (
        complete(generate(backbone, "a river by [C]", style, steps=3, seed=1, size=64))
        for backbone in (quantised, tiny_backbone)
    )
    assert 0 < difference(found, plain) < 3 * ERROR[quantised.quantize or ""]


def test_learning_works_and_is_not_resumed_with_other_weights(
    kind: Any, quantised: Backbone, tiny_backbone: Backbone
) -> None:
    settings: dict[str, Any] = {"variant": "direct", "steps": 3, "vectors": 2, "crops": 2, "validate_every": 0}
    paintings = [Photo(picture(1))]
    for step, expected in zip(*(learn(b, paintings, **settings) for b in (quantised, tiny_backbone)), strict=True):
        assert step.loss == pytest.approx(expected.loss, rel=3 * ERROR[kind])
        state = step.state()
    with pytest.raises(InstError, match=f"precision.*{kind}"):
        next(learn(tiny_backbone, paintings, **settings, resume=state))


def test_the_backward_pass_keeps_no_weights_in_full(kind: Any) -> None:
    plain, unet = random_unet(), random_unet()
    quantize_weights(unet, kind, CPU)
    kept = []
    for model in (plain, unet):
        storages: dict[int, int] = {}

        def pack(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        text = torch.randn(1, 5, 32, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(1, 4, 8, 8), 500, text)
        kept.append(sum(storages.values()))
    assert kept[1] <= kept[0]


def test_a_graph_depends_on_the_places_of_the_quantised_numbers(quantised: Backbone) -> None:
    before = signature(quantised.unet)
    assert before is not None
    assert signature(quantised.unet) == before
    layer = quantised.unet.mid_block.attentions[0].proj_in
    layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
    assert signature(quantised.unet) not in (None, before)


def test_transfer_and_learning_run_by_graphs(quantised: Backbone) -> None:
    built = []

    def record(function: Callable[..., Any], inputs: Any) -> Any:
        built.append(1)
        outputs: list[Tensor] = []

        def replay() -> None:
            outputs[:] = function(inputs)

        return replay, outputs

    graphed = replace(quantised, graphs=Graphs(record))
    style = inst.instant_style(quantised, Photo(picture(1)))
    eager, by_graph = (
        complete(transfer(backbone, picture(2), style, steps=4, seed=3, size=64)) for backbone in (quantised, graphed)
    )
    assert built
    assert torch.equal(by_graph, eager)
    assert LearningRun._find_places(_Networks(quantised, Graphs(record))) is not None  # type: ignore[arg-type]


class _Networks:
    def __init__(self, backbone: Backbone, graphs: Graphs) -> None:
        self.backbone, self.graphs = backbone, graphs


def test_a_record_says_how_the_weights_were_stored(quantised: Backbone, tiny_backbone: Backbone) -> None:
    for backbone in (quantised, tiny_backbone):
        record = PictureRecord.from_text(PictureRecord.of("transfer", backbone, {}, {}).to_text())
        assert record.quantize == backbone.quantize
        assert ("torchao" in record.versions) == (backbone is quantised)


def test_an_unknown_kind_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    for wrong in ("int4", True, 8):
        with pytest.raises(UsageError, match="use one of int8, fp8"):
            Backbone.load("mini", "cpu", quantize=wrong)  # type: ignore[arg-type]


def test_a_missing_or_an_old_torchao_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    quantization = sys.modules["torchao.quantization"]

    class Old:
        version = 1

    monkeypatch.setattr(quantization, "Int8WeightOnlyConfig", Old)
    with pytest.raises(InstError, match=r"older than 0\.18: install torchao 0\.18 or newer"):
        check_quantization("int8", CPU)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(InstError, match=r"torchao, which is not installed: run pip install 'inst\[quantize\]'"):
        Backbone.load("mini", "cpu", quantize="int8")
    check_quantization(None, CPU)


def test_a_device_without_fp8_is_refused_and_int8_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*size: int) -> Any:
        class Refusing:
            def to(self, *given: object) -> None:
                raise TypeError("Trying to convert Float8_e4m3fn to the MPS backend")

        return Refusing()

    monkeypatch.setattr("inst.backbone.quantization.torch.ones", ones)
    check_quantization("int8", CPU)
    with pytest.raises(UsageError, match='no numbers of the type fp8: use quantize="int8"'):
        check_quantization("fp8", CPU)


def test_a_unet_with_lora_layers_is_refused_and_unchanged() -> None:
    peft = pytest.importorskip("peft")
    unet = random_unet()
    unet.add_adapter(peft.LoraConfig(target_modules=["to_q"], init_lora_weights=False))
    with pytest.raises(InstError, match="merge them first"):
        quantize_weights(unet, "int8", CPU)
    assert not quantised_layers(unet)
