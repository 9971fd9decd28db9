"""What diffusers and transformers import but InST does not run is not imported, and works as soon as it is used."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from inst.backbone import light
from inst.backbone.model import Backbone
from tiny import tiny_controlnet, write_tiny_backbone

HEAVY = [
    "torch._dynamo",
    "torch.distributed.tensor",
    "sympy",
    "scipy",
    "peft",
    "diffusers.hooks",
    "torchao",
]

USE_INST = """
import inst
from inst.demo import PAINTINGS, PHOTOS
backbone = inst.Backbone.load("mini", "cpu")
style = inst.instant_style(backbone, PAINTINGS[0])
before = inst.complete(inst.transfer(backbone, PHOTOS[0], style, size=64, steps=1))
"""

USE_THE_LIBRARIES = """
import numpy, torch
import torch._dynamo, scipy.stats, scipy.optimize, peft, diffusers.hooks, transformers.models, diffusers.models.unets
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection
from transformers import masking_utils, modeling_utils
from transformers.distributed import sharding_utils
from transformers.loss import loss_for_object_detection as loss

DPMSolverMultistepScheduler(use_beta_sigmas=True).set_timesteps(4)  # with scipy.stats
rows, columns = loss.linear_sum_assignment(numpy.eye(2))
assert list(columns) == [1, 0]
assert masking_utils.TransformGetItemToIndex().__class__.__name__ == "TransformGetItemToIndex"
assert id(BasicTransformerBlock) in torch._dynamo.trace_rules._allowed_callable_ids
assert callable(modeling_utils.ALL_ATTENTION_FUNCTIONS["flex_attention"])
assert not modeling_utils._tied_params_are_equal(torch.zeros(2), torch.ones(2))

sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
bert = BertModel(BertConfig(**sizes, vocab_size=9)).eval()
assert bert(torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 32)
clip = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, vocab_size=9, projection_dim=8)).eval()
import tempfile
with tempfile.TemporaryDirectory() as folder:
    clip.save_pretrained(folder)
    again = CLIPTextModelWithProjection.from_pretrained(folder)
assert all(torch.equal(again.state_dict()[key], value) for key, value in clip.state_dict().items())

linear = torch.compile(torch.nn.Linear(2, 2), backend="eager")
assert linear(torch.ones(1, 2)).shape == (1, 2)

unet = UNet2DConditionModel(
    block_out_channels=(32,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    layers_per_block=1, cross_attention_dim=8, attention_head_dim=8,
)
unet.add_adapter(peft.LoraConfig(target_modules=["to_q"], init_lora_weights=False))
latents, text = torch.ones(1, 4, 8, 8), torch.ones(1, 2, 8)
with torch.no_grad():
    scaled, off = (
        unet(latents, 1, text, cross_attention_kwargs={"scale": scale}).sample for scale in (1.0, 0.0)
    )
    unet.disable_adapters()
    torch.testing.assert_close(off, unet(latents, 1, text).sample)
assert not torch.allclose(scaled, off)
"""

SAME_PICTURE = """
after = inst.complete(inst.transfer(backbone, PHOTOS[0], style, size=64, steps=1))
assert torch.equal(before, after)
"""


def run(*programs: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(programs)], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_picture_needs_no_compiler_and_no_other_models() -> None:
    assert run(USE_INST, f"import sys; print(*(name for name in {HEAVY} if name in sys.modules))").strip() == ""


def test_a_controlnet_writes_no_warnings_of_quantisers(tmp_path: Path) -> None:
    path = write_tiny_backbone(tmp_path / "model")
    tiny_controlnet(Backbone.load(path, "cpu").unet).save_pretrained(tmp_path / "net")
    use = f"""
import torch
import inst, sys
from inst.sampling.control import Control, load_controlnet
backbone = inst.Backbone.load({str(path)!r}, "cpu")
control = Control(load_controlnet({str(tmp_path / "net")!r}, backbone), torch.zeros(3, 64, 64), "depth")
style = inst.instant_style(backbone, torch.zeros(3, 64, 64))
inst.complete(inst.generate(backbone, "[C]", style, steps=1, control=control))
"""
    assert run(use, "print('torchao' in sys.modules)").strip() == "False"  # it writes warnings when it is imported


@pytest.mark.parametrize("order", [(USE_INST, USE_THE_LIBRARIES, SAME_PICTURE), (USE_THE_LIBRARIES, USE_INST)])
def test_the_libraries_work_in_full_after_inst_and_before_it(order: tuple[str, ...]) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("scipy")
    run(*order)


def test_a_module_that_uses_at_once_what_was_put_off_gets_it() -> None:
    program = """
import sys, types
from pathlib import Path
import tempfile
folder = Path(tempfile.mkdtemp())
(folder / "eager.py").write_text("from scipy.special import expit\\nHALF = float(expit(0.0))")
(folder / "broken.py").write_text("from scipy.special import expit\\nclass Own(expit): ...\\nraise ValueError")
sys.path.insert(0, str(folder))
from inst.backbone.light import import_lightly
import_lightly("eager", "broken")
import eager, scipy
assert eager.HALF == 0.5
assert "broken" not in sys.modules
assert type(scipy) is types.ModuleType
"""
    pytest.importorskip("scipy")
    run(program)


def test_another_thread_may_import_at_the_same_time() -> None:
    """Python collects garbage while a list is made of the modules, and other threads go on then."""
    names: list[str] = []

    def import_another(*_: object) -> None:
        names.append(f"inst_test_module_{len(names)}")
        sys.modules[names[-1]] = light

    threshold = gc.get_threshold()
    gc.callbacks.append(import_another)
    try:
        gc.set_threshold(1)
        light._take_away()
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(import_another)
        for name in names:
            del sys.modules[name]
