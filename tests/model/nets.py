"""Networks as people write them: every kind of layer, forward pass and wrapping, all tiny."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune


def conv(inputs: int, outputs: int, **options: Any) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    options = {"padding": 1, **options}
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, **options), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class LeNet(nn.Module):
    """Grey pictures of 28 pixels; everything by functions."""

    def __init__(self, width: int = 6, in_chans: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_chans, width, 5), nn.Conv2d(width, 2 * width, 5)
        self.fc1, self.fc2 = nn.Linear(2 * width * 16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(F.dropout(F.relu(self.fc1(x)), training=self.training))


class AlexNetLike(nn.Module):
    """Groups, dilation, several linear layers with dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2), nn.ReLU(inplace=True)),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 3))
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(48, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16)),
            *(nn.ReLU(), nn.Linear(16, 5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def vgg_like() -> nn.Module:
    """A nested nn.Sequential."""
    blocks = nn.Sequential(conv(3, 4), nn.MaxPool2d(2), conv(4, 6), conv(6, 8), nn.MaxPool2d(2))
    head = nn.Sequential(nn.Linear(8 * 16, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 5))
    return nn.Sequential(blocks, nn.AdaptiveMaxPool2d(4), nn.Flatten(), head)


class Residual(nn.Module):
    """A block with a sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, stride=stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """A smaller map."""
        return F.relu(self.shortcut(x) + self.second(self.first(x)))


class ResNetLike(nn.Module):
    """Cam-ready: a mean and one linear layer."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(8, classes)  # registered before the layers that run first
        self.blocks = nn.ModuleList([Residual(3, 4, 2), Residual(4, 8, 2)])

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(dim=[2, 3]))


class ResNetWithTwoLayers(ResNetLike):
    """Two linear layers after the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for block in self.blocks:
            x = block(x)
        return self.fc(self.hidden(x.mean(dim=[2, 3])))


class DenseNetLike(nn.Module):
    """Every layer reads all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(3 + 4 * n, 4) for n in range(3)])
        self.fc1, self.fc2 = nn.Linear(15 * 4, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        x = F.adaptive_avg_pool2d(torch.cat(maps, 1), 2)
        return self.fc2(self.fc1(x.reshape(x.shape[0], -1)).relu())


class InceptionLike(nn.Module):
    """Branches that are joined, and two kinds of pooling in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4, stride=2)
        self.branches = nn.ModuleDict(
            {"a": nn.Conv2d(4, 3, 1), "b": conv(4, 3), "c": nn.Conv2d(4, 2, 5, padding=2)}
        )
        self.fc = nn.Sequential(nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        x = torch.cat([self.branches["a"](x), self.branches["b"](x), self.branches["c"](x)], 1)
        pooled = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
        return self.fc(torch.cat(pooled, 1).flatten(1))


class UNetEncoder(nn.Module):
    """A trunk without a head, whose result is a map."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(3, 4), conv(4, 6), conv(6, 8)])

    def forward(self, x: Tensor) -> Tensor:
        """A map."""
        for index, block in enumerate(self.down):
            x = block(x if index == 0 else F.max_pool2d(x, 2))
        return x


class BatchNormHead(nn.Module):
    """BatchNorm1d between the linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 6, stride=2), nn.AvgPool2d(2))
        self.head = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.BatchNorm1d(8)),
            *(nn.ReLU(), nn.Linear(8, 5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x))


class ConvHead(nn.Module):
    """NiN, SqueezeNet: a 1x1 convolution makes the class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 6, stride=2), conv(6, 8, stride=2))
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(8, 5, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return F.adaptive_avg_pool2d(self.classifier(self.features(x)), 1)[:, :, 0, 0]


class PooledConvHead(ConvHead):
    """1x1 convolutions after the pooling, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Conv2d(8, 12, 1), nn.Hardswish(), nn.Conv2d(12, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1)).flatten(1)


class SqueezeExcite(nn.Module):
    """Linear layers and flattening long before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 8, stride=2), conv(8, 8)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8)
        )
        self.fc = nn.Sequential(nn.Linear(8 * 4, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.conv1(x)
        x = self.conv2(x * self.gate(x).sigmoid()[:, :, None, None])
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Recurrent(nn.Module):
    """One layer several times, and a branch on a setting."""

    def __init__(self, times: int = 3) -> None:
        super().__init__()
        self.stem, self.step, self.times = conv(3, 6, stride=2), conv(6, 6), times
        self.fc = nn.Sequential(nn.Linear(6 * 6, 7), nn.ReLU(), nn.Linear(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        for _ in range(self.times):
            x = x + self.step(x) if self.times > 1 else self.step(x)
        return self.fc(F.adaptive_avg_pool2d(x, (2, 3)).flatten(1))


def lazy() -> nn.Module:
    """Layers that take their shapes from the first pictures."""
    return nn.Sequential(
        *(nn.LazyConv2d(6, 3, stride=4), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(8, 3)),
        *(nn.ReLU(), nn.MaxPool2d(8), nn.Flatten(), nn.LazyLinear(7), nn.ReLU(), nn.LazyLinear(5)),
    )


class Shared(nn.Module):
    """Two layers with one weight, and a buffer that is computed with."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 6), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
        self.b.weight = self.a.weight
        self.register_buffer("scale", torch.tensor([2.0]))
        self.fc = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.b(F.relu(self.a(self.stem(x) / (self.scale + 1))))
        x = x.clone()
        x.relu_()  # its result is not used
        return self.fc(x.amax((2, 3)))


class Subclass(torchvision.models.VGG):
    """A torchvision network with another forward pass."""

    def __init__(self) -> None:
        features = nn.Sequential(conv(3, 6, stride=2), nn.MaxPool2d(2))
        super().__init__(features, num_classes=5, init_weights=False)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x.sub(0.5))


@dataclass
class Output:
    """What networks of Hugging Face return."""

    logits: Tensor
    loss: Tensor | None = None


class HuggingFaceLike(ResNetWithTwoLayers):
    """An object with logits, and options that are not given."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:  # noqa: ANN401
        """Logits in an object."""
        logits = super().forward(pixel_values)
        return Output(logits, None if labels is None else F.cross_entropy(logits, labels))


class WithLightning(pl.LightningModule):
    """A Lightning module around a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = AlexNetLike()
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.net(x)


class Branching(nn.Module):
    """Branches on the values of its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv(3, 4), conv(4, 6, stride=2)
        self.fc = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x / 255 if x.max() > 100 else x)
        return self.fc(self.body(x).mean((2, 3)))


class WithFeatures(Branching):
    """Says itself what its features are."""

    def forward_features(self, x: Tensor) -> Tensor:
        """A map."""
        return self.body(self.stem(x / 255 if x.max() > 100 else x))


def run(network: nn.Module) -> nn.Module:
    """A network that has seen pictures."""
    network(torch.zeros(2, 3, 64, 96))
    return network


def pruned() -> nn.Module:
    """A pruned network that has run with gradients."""
    network = AlexNetLike()
    prune.l1_unstructured(network.features[0], "weight", 0.5)
    return run(network)


def hooked() -> nn.Module:
    """A network with hooks."""
    network = vgg_like()
    for module in network.modules():
        module.register_forward_hook(lambda *args: None)
    return network


def normed() -> nn.Module:
    """A weight norm and a spectral norm."""
    network = AlexNetLike()
    parametrizations.weight_norm(network.features[0])
    parametrizations.spectral_norm(network.features[3])
    return network


class ManyInputs(ResNetLike):
    """Needs more than pictures."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x * mask)


class ManyOutputs(ResNetLike):
    """Returns two tensors."""

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401
        """Logits, twice."""
        return super().forward(x), super().forward(x)


def named_layers() -> nn.Module:
    """A nn.Sequential with names."""
    layers = OrderedDict[str, nn.Module](conv=conv(3, 4), pool=nn.LPPool2d(2, 2))
    return nn.Sequential(OrderedDict(layers, flat=nn.Flatten(), fc=nn.LazyLinear(5)))


# What converts by itself, by name: the network, the cut, the channels of its features.
NETWORKS: dict[str, tuple[Any, str, int]] = {
    "LeNet": (LeNet, "relu_1", 12),
    "LeNet in colour": (lambda: LeNet(in_chans=3), "relu_1", 12),
    "AlexNet-like": (AlexNetLike, "features.4", 8),
    "VGG-like": (vgg_like, "0.3.2", 8),
    "ResNet-like": (ResNetLike, "blocks.1.relu", 8),
    "two layers after a mean": (ResNetWithTwoLayers, "blocks.1.relu", 8),
    "DenseNet-like": (DenseNetLike, "cat_3", 15),
    "Inception-like": (InceptionLike, "cat", 8),
    "U-Net encoder": (UNetEncoder, "down.2.2", 8),
    "BatchNorm1d head": (BatchNormHead, "body.0.2", 6),
    "1x1 convolution makes the scores": (ConvHead, "features.1.2", 8),
    "1x1 convolutions after the mean": (PooledConvHead, "features.1.2", 8),
    "squeeze and excite": (SqueezeExcite, "conv2.2", 8),
    "a layer in a loop": (Recurrent, "add_2", 6),
    "lazy layers": (lambda: run(lazy()), "4", 8),
    "named layers": (lambda: run(named_layers()), "conv.2", 4),
    "shared weights": (Shared, "relu_", 6),
    "DataParallel": (lambda: nn.DataParallel(AlexNetLike()), "features.4", 8),
    "compiled": (lambda: torch.compile(AlexNetLike()), "features.4", 8),
    "half precision": (lambda: AlexNetLike().half(), "features.4", 8),
    "bfloat16": (lambda: AlexNetLike().bfloat16(), "features.4", 8),
    "double precision": (lambda: AlexNetLike().double(), "features.4", 8),
    "pruned": (pruned, "features.4", 8),
    "with hooks": (hooked, "0.3.2", 8),
    "parametrized weights": (normed, "features.4", 8),
    "subclass of torchvision's": (Subclass, "features.0.2", 6),
    "Hugging Face's output": (HuggingFaceLike, "blocks.1.relu", 8),
    "Lightning module": (WithLightning, "net.features.4", 8),
    "forward_features": (WithFeatures, "forward_features", 6),
}
# What is refused, by name: the network and a part of the one sentence.
REFUSED: dict[str, tuple[Any, str]] = {
    "branches on values": (Branching, "name the submodule that gives its last feature map with"),
    "lazy layers": (lazy, "right size, or give its class or a function"),
    "scripted": (lambda: torch.jit.script(AlexNetLike()), "give the module that was scripted"),
    "several inputs": (ManyInputs, "takes mask beside x; wrap it in a module"),
    "several outputs": (ManyOutputs, "wrap it in a module that returns its logits alone"),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "no convolution"),
    "a loss": (nn.CrossEntropyLoss, "takes target beside input"),
}
