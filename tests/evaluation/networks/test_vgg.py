"""VGG-19 against the architecture of AdaIN's release written out, and its weights against AdaIN's decoder."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from inst import demo
from inst.evaluation.networks.vgg import VGG19Features
from inst.pictures.reading import read_picture
from inst.pictures.resizing import resize

DECODER = ("conv4_1", "up", "conv3_4", "conv3_3", "conv3_2", "conv3_1", "up")
DECODER = (*DECODER, "conv2_2", "conv2_1", "up", "conv1_2", "conv1_1")


def written_out(model: VGG19Features) -> nn.Sequential:
    """The first 44 layers of AdaIN's vgg, one after the other, with this model's weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    widths = [3, 64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512, 512, 512, 512, "pool", 512]
    before = 3
    for width in widths[1:]:
        if width == "pool":
            layers.append(nn.MaxPool2d(2, 2, 0, ceil_mode=True))
        else:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(before, int(width), 3), nn.ReLU()]
            before = int(width)
    network = nn.Sequential(*layers)
    convolutions = [one for one in network if isinstance(one, nn.Conv2d)]
    for one, other in zip(convolutions, model.children(), strict=True):
        one.load_state_dict(other.state_dict())
    return network


def test_vgg19_gives_the_same_features_as_adains_network() -> None:
    torch.manual_seed(0)
    model = VGG19Features().requires_grad_(False)
    pictures = torch.rand(2, 3, 45, 70) * 2 - 1  # odd sizes: the poolings round up
    network, x, expected = written_out(model), (pictures + 1) / 2, []
    for place, layer in enumerate(network):
        x = layer(x)
        if place in (3, 10, 17, 30, 43):  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
            expected.append(x)
    got = model(pictures)
    assert [one.shape[1:] for one in got] == [(64, 45, 70), (128, 23, 35), (256, 12, 18), (512, 6, 9), (512, 3, 5)]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_adains_decoder_turns_the_features_back_into_the_picture(weights_file: Callable[[str], Path]) -> None:
    """Only the right weights in the right places, on both sides, give the picture back."""
    picture = resize(read_picture(demo.PHOTOS[0]), (160, 192))[None]
    model, decoder = VGG19Features.load(weights_file("vgg19")), load_file(weights_file("adain-decoder"))
    features = model(picture)
    assert all(0.7 < one.mean() < 1.5 for one in features)  # normalised to a mean activation of 1 over photographs
    x = features[3]
    for name in DECODER:
        if name == "up":
            x = F.interpolate(x, scale_factor=2)
        else:
            x = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), decoder[f"{name}.weight"], decoder[f"{name}.bias"])
            x = x if name == "conv1_1" else F.relu(x)
    decoded = 2 * x - 1
    assert torch.corrcoef(torch.stack([decoded.flatten(), picture.flatten()]))[0, 1] > 0.8
