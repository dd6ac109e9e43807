"""The networks that the papers name: their sizes to the parameter and byte, and the shapes at the cuts they are measured at."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.models import MODELS, build, join, split_blocks
from sl_common.models.auxiliary import Classifier, Fit
from sl_common.network.network import Network


def halves(
    name: str, cut: int | str, input: tuple[int, ...], classes: int, **args: object
) -> tuple[nn.Module, nn.Module]:
    return split_blocks(build(name, input=input, classes=classes, args=args, seed=0), cut)


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
    ("vgg19", "conv15", 32, {}, (512, 2, 2)),
    ("vgg16", "conv1", 32, {}, (64, 32, 32)),
    ("vgg16", "conv7", 32, {}, (256, 4, 4)),
    ("vgg16", "conv13", 32, {}, (512, 1, 1)),
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


# --- layer by layer as in the authors' programs; `Identity` and `Flatten` compute nothing and are left out

LRN = "LocalResponseNorm 4 a=0.000111111 b=0.75 k=1"
POOL = "MaxPool2d 3/2+1"
LAYERS = {
    ("cnn_lrn", (3, 24, 24), 10): [
        *("Conv2d 3>64 5/1+2", "ReLU", POOL, LRN),
        *("Conv2d 64>64 5/1+2", "ReLU", LRN, POOL),
        *("Linear 2304>384", "ReLU", "Linear 384>192", "ReLU", "Linear 192>10"),
    ],
    ("cnn_emnist", (1, 28, 28), 62): [
        *("Conv2d 1>32 3/1+0", "Conv2d 32>64 3/1+0", "MaxPool2d 2/2+0", "Dropout 0.25"),
        *("Linear 9216>128", "ReLU", "Dropout 0.5", "Linear 128>62"),
    ],
}
CLASSIFIER = [
    *("Linear 512>4096", "ReLU", "Dropout 0.5", "Linear 4096>4096", "ReLU", "Dropout 0.5", "Linear 4096>10"),
]


def told(layer: nn.Module) -> str:
    """One layer in a line."""
    name = type(layer).__name__
    if isinstance(layer, nn.Conv2d):
        return f"Conv2d {layer.in_channels}>{layer.out_channels} {layer.kernel_size[0]}/{layer.stride[0]}+{layer.padding[0]}"
    if isinstance(layer, nn.MaxPool2d):
        return f"MaxPool2d {layer.kernel_size}/{layer.stride}+{layer.padding}"
    if isinstance(layer, nn.LocalResponseNorm):
        return f"LocalResponseNorm {layer.size} a={layer.alpha:.6g} b={layer.beta:g} k={layer.k:g}"
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features}>{layer.out_features}"
    return f"{name} {layer.p:g}" if isinstance(layer, nn.Dropout) else name


def layers_of(name: str, input: tuple[int, ...], classes: int) -> list[str]:
    blocks = build(name, input=input, classes=classes, args={}, seed=0)
    leaves = [m for _, block in blocks for m in block.modules() if not list(m.children())]
    return [told(m) for m in leaves if not isinstance(m, nn.Flatten | nn.Identity)]


@pytest.mark.parametrize(("name", "input", "classes"), LAYERS)
def test_the_nets_of_cse_fsl_are_its_authors_layer_by_layer(name: str, input: tuple[int, ...], classes: int) -> None:
    assert layers_of(name, input, classes) == LAYERS[name, input, classes]


@pytest.mark.parametrize(
    ("name", "input", "classes", "client", "aux", "server"),
    [
        ("cnn_lrn", (3, 24, 24), 10, 107_328, 23_050, 960_970),
        ("cnn_emnist", (1, 28, 28), 62, 18_816, 571_454, 1_187_774),
    ],
)
def test_the_nets_of_cse_fsl_have_these_parameters(
    name: str, input: tuple[int, ...], classes: int, client: int, aux: int, server: int
) -> None:
    """On each side of the paper's cut and in the linear auxiliary, by which a round's bytes are counted: 2C (client + aux) · 4."""
    lower, head = halves(name, "conv2", input, classes)
    cut = tuple(lower(torch.zeros(1, *input)).shape[1:])
    made = Classifier().make(Fit(cut=cut, input=input, classes=classes, head=list))
    assert (parameters(lower), parameters(made), parameters(head)) == (client, aux, server)
    assert nbytes(lower) == 4 * client, "no buffers: what is averaged is the weights alone"


@pytest.mark.parametrize(("name", "convolutions", "size"), [("vgg16", 13, 33_646_666), ("vgg19", 16, 38_958_922)])
def test_vggs_end_in_the_classifier_of_ms(name: str, convolutions: int, size: int) -> None:
    """Two hidden layers of 4,096 with dropout; of a 1×1 map, whose mean is itself."""
    found = layers_of(name, (3, 32, 32), 10)
    assert found[-8:] == ["AdaptiveAvgPool2d", *CLASSIFIER]
    assert sum(layer.startswith("Conv2d") for layer in found) == convolutions
    assert found.count("MaxPool2d 2/2+0") == 5
    plan = build(name, input=(3, 32, 32), classes=10, args={}, seed=0)
    assert sum(parameters(block) for _, block in plan) == size
    channels = (3, *(block[0].out_channels for label, block in plan if label.startswith("conv")))
    features = sum(9 * a * b + 3 * b for a, b in pairwise(channels))  # bias, scale, shift
    assert size == features + 513 * 4096 + 4097 * 4096 + 4097 * 10


def _normalised(x: Tensor) -> Tensor:
    """Channel c by the squares of c - 2 to c + 1, written out."""
    out = torch.empty_like(x)
    for c in range(x.shape[1]):
        near = x[:, max(0, c - 2) : c + 2]
        out[:, c] = x[:, c] / (1 + 0.001 / 9 / 4 * (near**2).sum(1)) ** 0.75
    return out


def _pooled(x: Tensor) -> Tensor:
    """The largest of 3×3 around every second pixel, written out."""
    side = x.shape[-1]
    rows = [range(max(0, i - 1), min(side, i + 2)) for i in range(0, side, 2)]
    return torch.stack(
        [torch.stack([x[..., list(r), :][..., list(c)].amax((-2, -1)) for c in rows], -1) for r in rows], -2
    )


def plain_lrn(w: dict[str, Tensor], x: Tensor) -> Tensor:
    z = _normalised(_pooled(F.conv2d(x, w["conv1.0.weight"], w["conv1.0.bias"], padding=2).clamp(min=0)))
    z = _pooled(_normalised(F.conv2d(z, w["conv2.0.weight"], w["conv2.0.bias"], padding=2).clamp(min=0))).flatten(1)
    z = (z @ w["fc1.1.weight"].T + w["fc1.1.bias"]).clamp(min=0)
    z = (z @ w["fc2.0.weight"].T + w["fc2.0.bias"]).clamp(min=0)
    return z @ w["out.weight"].T + w["out.bias"]


def plain_emnist(w: dict[str, Tensor], x: Tensor) -> Tensor:
    z = F.conv2d(x, w["conv1.weight"], w["conv1.bias"])
    z = F.conv2d(z, w["conv2.0.weight"], w["conv2.0.bias"])
    z = z.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax((3, 5)).flatten(1)
    return (z @ w["fc1.1.weight"].T + w["fc1.1.bias"]).clamp(min=0) @ w["out.weight"].T + w["out.bias"]


@pytest.mark.parametrize(
    ("name", "input", "plain"), [("cnn_lrn", (3, 24, 24), plain_lrn), ("cnn_emnist", (1, 28, 28), plain_emnist)]
)
def test_they_compute_what_is_written_out(
    name: str, input: tuple[int, ...], plain: Callable[[dict[str, Tensor], Tensor], Tensor]
) -> None:
    """Pixels far beyond a data set's, so that the normalisation's divisor is no mere 1; evaluated, so that nothing is dropped."""
    net = join(build(name, input=input, classes=10, args={}, seed=3)).eval().double()
    x = 100 * torch.randn(2, *input, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(net(x), plain(net.state_dict(), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [4, 5, 6, 7, 9, 32])
def test_cnn_lrn_takes_any_side(side: int) -> None:
    """Each pool makes ⌈n / 2⌉ of n, and fc1 is as wide as that."""
    lower, head = halves("cnn_lrn", "conv2", (1, side, side + 1), 10)
    z = lower(torch.zeros(1, 1, side, side + 1))
    assert z.shape == (1, 64, -(-side // 4), -(-(side + 1) // 4))
    assert head(z).shape == (1, 10)


def test_dropout_of_cnn_emnist_is_on_both_sides_of_the_papers_cut() -> None:
    lower, head = halves("cnn_emnist", "conv2", (1, 28, 28), 62)
    z = lower(torch.ones(1, 1, 28, 28))
    assert 0.2 < float((z == 0).double().mean()) < 0.3
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.5]


@pytest.mark.parametrize("name", ["resnet16", "resnet18", "resnet34"])
def test_resnets_begin_as_torchvisions(name: str) -> None:
    """Convolutions N(0, 2 / (outputs · kernel²)), BatchNorm 1 and 0, the linear layer torch's own."""
    for module in join(build(name, input=(3, 32, 32), classes=10, args={}, seed=0)).modules():
        if isinstance(module, nn.Conv2d):
            weight, std = module.weight.detach(), (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            few = 6 / weight.numel() ** 0.5  # eight standard errors of a normal sample's deviation, six of its mean
            assert module.bias is None
            assert float(weight.std()) == pytest.approx(std, rel=few)
            assert abs(float(weight.mean())) < few * std
            assert float(weight.abs().max()) > 2.2 * std, "not bounded as a uniform distribution is"
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
        elif isinstance(module, nn.Linear):
            assert float(module.weight.detach().abs().max()) <= module.in_features**-0.5


def test_an_auxiliary_cut_out_of_a_resnet_begins_likewise() -> None:
    """FSL-SAGE's: its layer3 is drawn by the same rule, from a seed of its own."""
    sets = ["model.name=resnet18", "model.cut=layer2_1", "data.name=cifar10"]
    aux = Network.build(RunConfig.from_toml('[protocol]\npreset = "fsl_sage"', sets)).aux
    assert aux is not None
    widest = max((m for m in aux.modules() if isinstance(m, nn.Conv2d)), key=lambda m: m.weight.numel())
    assert float(widest.weight.detach().std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


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
