"""The networks that the papers name: their sizes to the parameter and byte, and the shapes at the cuts they are measured at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sl_common.config import RunConfig
from sl_common.errors import ConfigError
from sl_common.models import MODELS, build, split
from sl_common.models.auxiliary import Classifier, Fit
from sl_common.network import Network


def halves(
    name: str, cut: int | str, input: tuple[int, ...], classes: int, **args: object
) -> tuple[nn.Module, nn.Module]:
    return split(build(name, input=input, classes=classes, args=args, seed=0), cut)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def fit(cut: tuple[int, ...], input: tuple[int, ...]) -> Fit:
    """Ten classes, no head."""
    return Fit(cut=cut, input=input, classes=10, head=list)


def nbytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def test_resnet18_is_split_as_in_fsl_sage() -> None:
    """fsl_sage.md d: parameters, and bytes with buffers."""
    lower, head = halves("resnet18", "layer2_1", (3, 32, 32), 10)
    assert (parameters(lower), nbytes(lower)) == (683_072, 2_740_048)
    assert (parameters(head), nbytes(head)) == (10_498_570, 42_025_080)
    assert lower(torch.zeros(2, 3, 32, 32)).shape == (2, 128, 4, 4)
    assert nbytes(halves("resnet18", "layer2_1", (3, 32, 32), 100)[1]) == 42_209_760


def test_its_auxiliaries_have_the_papers_sizes() -> None:
    """fsl_sage.md d: linear 1,290 parameters; the default is the head's layer3 and a classifier, 2,102,282 and 8,419,408 bytes."""
    assert parameters(Classifier(form="pooled").make(fit((128, 4, 4), (3, 32, 32)))) == 1290

    def sized(aux: str) -> nn.Module:
        sets = ["model.name=resnet18", "model.cut=layer2_1", "data.name=cifar10", f"protocol.learner.aux={aux}"]
        found = Network.build(RunConfig.from_toml('[protocol]\npreset = "fsl_sage"', sets)).aux
        assert found is not None
        return found

    default = sized("{}")
    assert (parameters(default), nbytes(default)) == (2_102_282, 8_419_408)
    assert f"{nbytes(sized('{ blocks = 1 }')) / 2**20:.3f}" == "3.522"  # half
    full = sized('{ kind = "classifier", blocks = 99 }')  # as many as there are
    assert (parameters(full), nbytes(full)) == (10_498_570, 42_025_080)


def test_resnet16_leaves_nine_layers_with_the_client() -> None:
    """sglr.md d: s = (32, 16, 16) of 32×32 images; a layer is a convolution on the main path, or the last linear one."""

    def layers(module: nn.Module) -> int:
        found = [
            m
            for m in module.modules()
            if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
        ]
        return len(found)

    lower, head = halves("resnet16", "layer2_1", (3, 32, 32), 10)
    assert (layers(lower), layers(head)) == (9, 7)
    assert lower(torch.zeros(2, 3, 32, 32)).shape == (2, 32, 16, 16)


# ms.md d: smashed shapes of 32×32 images, and of ImageNet's.
CUTS = [
    ("vgg19", "conv2", 32, {}, (64, 16, 16)),
    ("vgg19", "conv8", 32, {}, (256, 4, 4)),
    ("vgg19", "conv12", 32, {}, (512, 2, 2)),
    ("resnet18", "stem", 32, {"stem": "cifar"}, (64, 32, 32)),
    ("resnet18", "layer2_1", 32, {"stem": "cifar"}, (128, 16, 16)),
    ("resnet18", "layer3_1", 32, {"stem": "cifar"}, (256, 8, 8)),
    ("resnet34", "stem", 224, {}, (64, 56, 56)),
    ("resnet34", "layer2_3", 224, {}, (128, 28, 28)),
    ("resnet34", "layer3_5", 224, {}, (256, 14, 14)),
    ("alexnet", "conv1", 32, {}, (64, 8, 8)),
    ("cnn_lrn", "conv2", 24, {}, (64, 6, 6)),
]


@pytest.mark.parametrize(("name", "cut", "side", "args", "shape"), CUTS)
def test_cuts_have_the_papers_shapes(
    name: str, cut: str, side: int, args: dict[str, object], shape: tuple[int, ...]
) -> None:
    lower, head = halves(name, cut, (3, side, side), 10, **args)
    z = lower(torch.zeros(2, 3, side, side))
    assert z.shape == (2, *shape)
    assert head(z).shape == (2, 10)


def test_the_nets_of_cse_fsl_have_the_papers_features() -> None:
    """baselines.md 6."""
    assert halves("cnn_lrn", "conv2", (3, 24, 24), 10)[0](torch.zeros(1, 3, 24, 24)).numel() == 2304
    assert halves("cnn_emnist", "conv2", (1, 28, 28), 62)[0](torch.zeros(1, 1, 28, 28)).numel() == 9216
    assert parameters(Classifier().make(fit((64, 6, 6), (3, 24, 24)))) == 2304 * 10 + 10


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_resnets_have_their_published_sizes(name: str) -> None:
    whole = sum(parameters(block) for _, block in build(name, input=(3, 224, 224), classes=1000, args={}, seed=0))
    assert whole == {"resnet18": 11_689_512, "resnet34": 21_797_672}[name]


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"mlp", "cnn"}))
def test_what_does_not_fit_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model '{name}' needs input"):
        build(name, input=(784,), classes=10, args={}, seed=0)


def test_an_unknown_stem_is_told() -> None:
    with pytest.raises(ConfigError, match="stem = 'vit', known are imagenet and cifar"):
        build("resnet18", input=(3, 32, 32), classes=10, args={"stem": "vit"}, seed=0)
