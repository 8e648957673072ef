"""Small networks drawn at random, and weights set to zero in them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, fx, nn


class Residual(nn.Module):
    def __init__(self, body: nn.Module, product: bool) -> None:
        super().__init__()
        self.body, self.product = body, product

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x) if self.product else x + self.body(x)


class Concatenation(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), x, self.second(x)], dim=1)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(channels, 1, 1))
        self.register_buffer("shift", torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x + 0.5 * self.shift


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat([second, torch.relu(first)], 1)


class Padded(nn.Module):
    def __init__(self, widths: tuple[int, ...], value: float) -> None:
        super().__init__()
        self.widths, self.value = widths, value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.widths, value=self.value)


class Front(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1 : 1 + self.count, ::1]


class View(nn.Module):
    def __init__(self, size: int, kind: str) -> None:
        super().__init__()
        self.size, self.kind = size, kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "view":
            return x.view(-1, self.size)
        if self.kind == "reshape":
            return x.reshape((x.shape[0], self.size))
        if self.kind == "function":
            return torch.reshape(x, (x.shape[0], self.size))
        return x.flatten(1) if self.kind == "flatten" else x.view(x.size(0), -1)


def _reshape_is_traced() -> bool:
    """Whether torch.fx takes a size that it traces as the first one in torch.reshape; that of torch 2.4 does not."""
    try:
        fx.symbolic_trace(View(1, "function"))
    except TypeError:
        return False
    return True


VIEWS = ("view", "reshape", "flatten", "-1", *(["function"] if _reshape_is_traced() else []))


class Heads(nn.Module):
    """Attention over positions, written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, 3
        self.q, self.k, self.v = (nn.Linear(width, heads * 3) for _ in range(3))
        self.out = nn.Linear(heads * 3, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, length, self.heads * self.size))


ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.Identity,
    nn.Tanh,
    lambda: nn.ReLU(inplace=True),
)


def _convolution(draw: Any, channels: int, out: int | None = None, same: bool = False) -> tuple[nn.Module, int]:
    out = out or draw(st.integers(1, 6))
    size = draw(st.sampled_from([1, 3]))
    padding = size // 2 if same else draw(st.integers(0, 1))
    mode = draw(st.sampled_from(["zeros", "zeros", "replicate", "circular"])) if padding else "zeros"
    bias = draw(st.booleans())
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 3, channels) if channels % g == 0 and out % g == 0]))
    return nn.Conv2d(channels, out, size, padding=padding, padding_mode=mode, bias=bias, groups=groups), out


def _body(draw: Any, channels: int, out: int) -> nn.Module:
    """Keeps the size of the images."""
    first, between = _convolution(draw, channels, same=True)
    second, _ = _convolution(draw, between, out, same=True)
    steps: list[nn.Module] = [first, nn.BatchNorm2d(between), draw(st.sampled_from(ACTIVATIONS))(), second]
    return nn.Sequential(*steps, *([nn.BatchNorm2d(out)] if draw(st.booleans()) else []))


def _step(draw: Any, channels: int) -> tuple[nn.Module, int]:
    kind = draw(st.sampled_from(KINDS))
    if kind == "conv":
        return _convolution(draw, channels, same=draw(st.booleans()))
    if kind == "transposed":
        out = draw(st.integers(1, 5))
        groups = draw(st.sampled_from([g for g in (1, 1, channels) if out % g == 0]))
        return nn.ConvTranspose2d(channels, out, 3, padding=1, groups=groups, bias=draw(st.booleans())), out
    if kind == "depthwise":
        times = draw(st.integers(1, 2))
        padding = draw(st.integers(0, 1))
        return nn.Conv2d(
            channels, times * channels, 2 * padding + 1, padding=padding, groups=channels
        ), times * channels
    if kind == "residual":
        return Residual(_body(draw, channels, channels), draw(st.booleans())), channels
    if kind == "cat":
        first, second = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        return Concatenation(_body(draw, channels, first), _body(draw, channels, second)), channels + first + second
    if kind == "pad":
        before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        value = draw(st.sampled_from([0.0, 0.7]))
        return Padded((0, 1, 1, 0, before, after), value), channels + before + after
    if kind == "front":
        count = draw(st.integers(1, channels))
        count = min(count, channels - 1) or 1
        return (Front(count), count) if channels > 1 else (nn.Identity(), channels)
    makers = {
        "bn": lambda: nn.BatchNorm2d(channels),
        "instance": lambda: nn.InstanceNorm2d(channels, affine=True, track_running_stats=draw(st.booleans())),
        "group": lambda: nn.GroupNorm(1, channels),
        "act": lambda: draw(st.sampled_from(ACTIVATIONS))(),
        "prelu": lambda: nn.PReLU(draw(st.sampled_from([1, channels]))),
        "max": lambda: nn.MaxPool2d(3, 1, padding=1),
        "avg": lambda: nn.AvgPool2d(3, 1, padding=draw(st.integers(0, 1)), count_include_pad=draw(st.booleans())),
        "se": lambda: SqueezeExcite(channels),
        "scale": lambda: Scale(channels),
        "halves": lambda: Halves() if channels > 1 else nn.Identity(),
        "drop": lambda: nn.Dropout(0.5),
        "up": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    }
    return makers[kind](), channels


KINDS = [
    *("conv", "conv", "conv", "depthwise", "transposed", "residual", "residual", "cat", "bn", "bn", "act", "act"),
    *("instance", "group", "prelu", "max", "avg", "se", "scale", "halves", "pad", "front", "drop", "up"),
]


@st.composite
def networks(draw: Any) -> nn.Module:
    """From [N, 2, 6, 6] to [N, 3], float64, in evaluation mode, with statistics as after a training."""
    seed = draw(st.integers(0, 2**30))
    torch.manual_seed(seed)
    steps: list[nn.Module] = []
    channels = 2
    for _ in range(draw(st.integers(1, 7))):
        step, channels = _step(draw, channels)
        # Images that are not too small for the next step.
        steps += [step, nn.AdaptiveAvgPool2d(6)] if draw(st.booleans()) else [step]
        try:
            shape = nn.Sequential(*steps).eval()(torch.zeros(1, 2, 6, 6)).shape
        except RuntimeError:
            steps, channels = steps[:-1], 2
            steps, shape = [nn.Conv2d(2, 2, 3, padding=1)], torch.Size((1, 2, 6, 6))
        if shape[-1] < 4 or shape[-1] > 12:
            steps.append(nn.AdaptiveMaxPool2d(6))
    shape = nn.Sequential(*steps).eval()(torch.zeros(1, 2, 6, 6)).shape
    size = shape[1] * shape[2] * shape[3]
    steps += [View(size, draw(st.sampled_from(VIEWS))), nn.Linear(size, 5)]
    steps += [nn.BatchNorm1d(5)] if draw(st.booleans()) else []
    steps += [draw(st.sampled_from(ACTIVATIONS))(), nn.Linear(5, 3)]
    network = as_after_training(nn.Sequential(*steps).double(), draw(st.booleans()))
    zero_out(network, draw(st.sampled_from([0.0, 0.3, 0.6, 0.9])), draw(st.sampled_from([0.0, 0.3, 0.8])))
    return network


def as_after_training(network: nn.Module, zero_biases: bool = False) -> nn.Module:
    """Statistics, scales and shifts that are not those of the start."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)):
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif zero_biases and getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    return network.eval()


def zero_out(network: nn.Module, rows: float, columns: float) -> nn.Module:
    """Sets these shares of the rows (filters) and columns (input channels) of every weight to zero."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() >= 2 and weight.numel() > max(weight.shape):
                weight[torch.rand(weight.shape[0]) < rows] = 0.0
                weight[:, torch.rand(weight.shape[1]) < columns] = 0.0
    return network
