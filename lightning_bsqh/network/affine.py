"""Which modules are affine in their parameters: for them the closed forms of method §3 are exact."""

from __future__ import annotations

from torch import nn

#: Modules whose output is affine in their own ``weight`` and ``bias``, whatever their input.
AFFINE_MODULES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.PReLU,
    nn.Bilinear,
)


def is_affine_module(module: nn.Module) -> bool:
    """Whether a module is known to be affine in its own parameters, which are ``weight`` and ``bias``."""
    # A subclass counts as long as it runs the forward that is known.
    known = any(isinstance(module, t) and type(module).forward is t.forward for t in AFFINE_MODULES)
    # Reparametrized modules (weight_norm) are of these types too, but hold other names.
    plain = all(name in ("weight", "bias") for name, _ in module.named_parameters())
    # Embeddings with max_norm rescale their rows in every forward.
    return known and plain and getattr(module, "max_norm", None) is None
