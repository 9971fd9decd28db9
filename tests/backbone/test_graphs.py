"""CUDA graphs. Without a GPU a replay is a new run of the function on the graph's own tensors.

So these tests find whatever a graph would keep from the call that it was built in.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from torch import Tensor

import inst
from inst.backbone.graphs import Graphs, cuda_graphs, signature
from inst.backbone.self_attention import handled, self_attention_layers
from inst.learning.run import LearningRun
from inst.runs import complete
from inst.styles.style import Style
from recording import Recording

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
def graphed(tiny_backbone: inst.Backbone, recording: Recording) -> inst.Backbone:
    return replace(tiny_backbone, graphs=Graphs(recording))


def picture(seed: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def repeated(call: Callable[[], Tensor]) -> Tensor:
    """Call three times, of which the last two are by a graph, and return the result, which must be the same."""
    results = [call() for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)
    return results[0]


def style(backbone: inst.Backbone, seed: int = 0) -> Style:
    painting = inst.Photo(picture(seed, 64, 96))
    return inst.instant_style(backbone, painting, name=str(seed))


def test_the_second_call_builds_and_later_ones_replay(recording: Recording) -> None:
    graphs = Graphs(recording)
    for number, (built, replayed) in enumerate([(0, 0), (1, 1), (1, 2)]):
        x = torch.full((2,), float(number))
        assert torch.equal(graphs("twice", lambda inputs: [2 * inputs[0]], [x])[0], 2 * x)
        assert (recording.built, recording.replayed) == (built, replayed)
    graphs("twice", lambda inputs: [2 * inputs[0]], [torch.ones(3)])  # another shape
    graphs("thrice", lambda inputs: [3 * inputs[0]], [torch.ones(2)])
    assert recording.built == 1


def test_a_result_does_not_change_in_later_calls() -> None:
    graphs = Graphs(Recording())
    results = [graphs("same", lambda inputs: list(inputs), [torch.full((1,), float(i))])[0] for i in range(4)]
    assert [result.item() for result in results] == [0, 1, 2, 3]


def test_only_the_latest_graphs_are_kept(recording: Recording) -> None:
    graphs = Graphs(recording)
    for _ in range(2):
        for key in range(40):
            graphs(key, lambda inputs: list(inputs), [torch.ones(1)])
    assert recording.built == 0
    for _ in range(2):
        graphs(39, lambda inputs: list(inputs), [torch.ones(1)])
    assert recording.built == 1


def test_what_cannot_be_recorded_runs_eagerly_and_says_so() -> None:
    def refuse(function: object, inputs: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphs = Graphs(refuse)
    for _ in range(3):
        assert graphs("key", lambda inputs: [inputs[0] + 1], [torch.ones(1)])[0].item() == 2
    assert graphs.problem == "operation not permitted when stream is capturing"


def test_a_graph_that_was_built_in_inference_mode_serves_other_calls(graphed: inst.Backbone) -> None:
    latents, text = torch.randn(1, 4, 8, 8), ["a dog"]
    with torch.inference_mode():
        expected = repeated(lambda: graphed.predict_noise(latents, 500, graphed.embed_text(text)))
    with torch.no_grad():
        assert torch.equal(graphed.predict_noise(latents, 500, graphed.embed_text(text)), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"style_attention": 0.0},
        {"style_attention": 0.4, "guidance": 1.0},
        {"query_preservation": 0.5},
        {"inversion": "ddim", "solver": "ddim"},
        {"tile": 32},
        {"tone": "adain", "strength": 0.8},
    ],
    ids=str,
)
def test_transfer_with_graphs_equals_transfer_without(
    tiny_backbone: inst.Backbone, graphed: inst.Backbone, recording: Recording, settings: dict[str, Any]
) -> None:
    for seed in (1, 2, 1):  # other paintings and photos than those that the graphs were built with
        arguments: dict[str, Any] = {"style": style(tiny_backbone, seed), "steps": 3, "seed": seed, **settings}
        expected = complete(inst.transfer(tiny_backbone, picture(seed + 5), **arguments))
        assert torch.equal(complete(inst.transfer(graphed, picture(seed + 5), **arguments)), expected)
    assert 0 < recording.built < recording.replayed


def test_two_threads_share_the_graphs(tiny_backbone: inst.Backbone, graphed: inst.Backbone) -> None:
    def make(backbone: inst.Backbone, seed: int) -> Tensor:
        return complete(inst.transfer(backbone, picture(seed), style(tiny_backbone, seed), steps=3, seed=seed))

    expected = [make(tiny_backbone, seed) for seed in range(2)]
    found: dict[int, list[Tensor]] = {0: [], 1: []}

    def work(seed: int) -> None:
        for _ in range(3):
            found[seed].append(make(graphed, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, results in found.items():
        assert len(results) == 3
        assert all(torch.equal(result, expected[seed]) for result in results)


def test_learning_with_graphs_learns_the_same_and_resumes_to_the_bit(
    tiny_backbone: inst.Backbone, graphed: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording()
    monkeypatch.setattr("inst.learning.run.cuda_graphs", lambda device: Graphs(recording))
    given: dict[str, Any] = {"steps": 6, "validate_every": 3, "crops": 4}
    expected = [step.loss for step in inst.learn(tiny_backbone, inst.Photo(picture(0)), **given)]
    losses, states = [], []
    for step in inst.learn(graphed, inst.Photo(picture(0)), **given):
        losses.append(step.loss)
        states.append(step.state())
    assert losses == pytest.approx(expected, abs=1e-5)  # the learning rate is a float32 tensor here
    assert recording.built == 1
    assert recording.replayed == 6  # the rehearsal counts for nothing
    for step in inst.learn(graphed, inst.Photo(picture(0)), **given, resume=states[2]):
        last = step.state()
    assert all(torch.equal(last.tensors[key], value) for key, value in states[-1].tensors.items())


def test_learning_without_validation_keeps_the_last_finite_parameters(
    tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = inst.learn(tiny_backbone, inst.Photo(picture(0)), steps=5, validate_every=0, crops=4)
    next(learning)
    second = next(learning)
    good = second.style().vectors
    assert not any(value.requires_grad for value in second._run.before.values())
    compute = LearningRun._compute_step

    def spoil(run: LearningRun, inputs: Sequence[Tensor]) -> list[Tensor]:
        return compute(run, [inputs[0] * torch.nan, *inputs[1:]])

    monkeypatch.setattr(LearningRun, "_compute_step", spoil)
    with pytest.raises(inst.LearningDiverged) as found:
        complete(learning)
    assert torch.equal(found.value.last_good.vectors, good)


# Which models can have graphs


@pytest.fixture
def unet(tiny_backbone: inst.Backbone) -> UNet2DConditionModel:
    return copy.deepcopy(tiny_backbone.unet)


def test_a_plain_unet_has_a_signature_also_inside_of_a_handler(unet: UNet2DConditionModel) -> None:
    plain = signature(unet)
    assert plain is not None
    with handled(self_attention_layers(unet, "up"), lambda name, layer, hidden, run: run()):
        assert signature(unet) == plain
    assert signature(unet) == plain
    unet.conv_in.weight.data = unet.conv_in.weight.data.clone()
    assert signature(unet) not in (None, plain)


def train(unet: UNet2DConditionModel) -> None:
    unet.train()


def hook(unet: UNet2DConditionModel) -> None:
    unet.mid_block.register_forward_hook(lambda *given: None)


def offload(unet: UNet2DConditionModel) -> None:
    add_hook_to_module(unet, AlignDevicesHook())


def patch(unet: UNet2DConditionModel) -> None:
    forward = unet.conv_out.forward
    unet.conv_out.forward = lambda x: forward(x)


def slice_attention(unet: UNet2DConditionModel) -> None:
    unet.set_attn_processor(SlicedAttnProcessor(1))


def free_u(unet: UNet2DConditionModel) -> None:
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)


def compiled(unet: UNet2DConditionModel) -> None:
    unet.mid_block.compile()


def own_class(unet: UNet2DConditionModel) -> None:
    class Patched(type(unet.conv_in)):  # type: ignore[misc]
        pass

    unet.conv_in.__class__ = Patched


def adapter(unet: UNet2DConditionModel) -> None:
    peft = pytest.importorskip("peft")
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    unet.eval()


@pytest.mark.parametrize("change", [train, hook, offload, patch, slice_attention, free_u, compiled, own_class, adapter])
def test_a_model_that_other_code_has_changed_runs_eagerly(
    unet: UNet2DConditionModel, change: Callable[[UNet2DConditionModel], None]
) -> None:
    change(unet)
    assert signature(unet) is None


def test_another_plain_processor_is_accepted(unet: UNet2DConditionModel) -> None:
    unet.set_attn_processor(AttnProcessor())
    assert signature(unet) is not None


def test_a_change_between_two_calls_is_seen(graphed: inst.Backbone, recording: Recording) -> None:
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        text = graphed.embed_text(["a dog"])
        expected = repeated(lambda: graphed.predict_noise(latents, 500, text))
        replayed = recording.replayed
        handle = graphed.unet.conv_out.register_forward_hook(lambda module, given, out: 2 * out)
        try:
            assert not torch.allclose(graphed.predict_noise(latents, 500, text), expected, atol=1e-3)
        finally:
            handle.remove()
        assert recording.replayed == replayed
        assert torch.equal(graphed.predict_noise(latents, 500, text), expected)


@needs_cuda
def test_cuda_graphs_equal_the_eager_call() -> None:
    device = torch.device("cuda")
    weight = torch.randn(64, 64, device=device)
    graphs = cuda_graphs(device)
    for seed in range(4):
        x = torch.randn(8, 64, device=device, generator=torch.Generator(device).manual_seed(seed))
        found = graphs("key", lambda inputs: [(inputs[0] @ weight).relu()], [x])[0]
        torch.testing.assert_close(found, (x @ weight).relu())
    assert graphs.problem is None


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fast_way_equals_the_plain_way_on_a_gpu(dtype: str) -> None:
    """The stated tolerance: 1 % of the predicted noise in float32 (TF32 convolutions), 3 % in bfloat16."""
    fast, plain = (inst.Backbone.load("mini", "cuda", dtype, fast=fast) for fast in (True, False))
    latents = torch.randn(2, fast.latent_channels, 32, 32, generator=torch.Generator().manual_seed(0)).cuda()
    with torch.no_grad():
        expected = plain.predict_noise(latents, 500, plain.embed_text(["a dog", "a cat"]))
        for _ in range(3):
            found = fast.predict_noise(latents, 500, fast.embed_text(["a dog", "a cat"]))
            assert (found - expected).norm() < (0.01 if dtype == "float32" else 0.03) * expected.norm()
    assert fast.graphs is not None
    assert fast.graphs.problem is None
