from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("safetensors")

from safetensors.torch import load_file, save_file

from lightning_bsqh.export import load_sparse, save_sparse, sparse_bytes
from lightning_bsqh.export.sparse_coding import from_gaps, from_mask, gaps_length, to_gaps, to_mask
from lightning_bsqh.zoo import LeNet5, SmallLeNet

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32),
    *(torch.uint64, torch.complex64, torch.complex128, torch.float8_e4m3fnuz),
]


def sparse(model: nn.Module, zeros: float) -> nn.Module:
    """Sets this share of the weights of the whole network to zero."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    flat = torch.cat([w.detach().flatten() for w in weights])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[torch.randperm(len(flat))[: round(zeros * len(flat))]] = False
    with torch.no_grad():
        for w, part in zip(weights, keep.split([w.numel() for w in weights]), strict=True):
            w.mul_(part.view(w.shape))
    return model


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return first.numel() == 0 or torch.equal(first.flatten().view(torch.uint8), second.flatten().view(torch.uint8))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1200), st.sampled_from([0.0, 0.002, 0.02, 0.3, 1.0]), st.integers(0, 2**30))
def test_codings_find_what_is_not_zero(size: int, density: float, seed: int) -> None:
    nonzero = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < density
    positions = nonzero.nonzero().flatten()
    assert torch.equal(from_mask(to_mask(nonzero), size), positions)
    codes = to_gaps(nonzero)
    assert len(codes) == gaps_length(nonzero)
    assert torch.equal(from_gaps(codes, size), positions)
    for wrong in (size + 255, size - 255):
        with pytest.raises(ValueError, match="do not fit"):
            from_gaps(codes, wrong)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 2**30),
)
def test_any_tensor_comes_back(tmp_path_factory, shape, dtype, density, big, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = [*shape, 40] if big else shape
    tensor = torch.randint(1, 100, shape, generator=generator).to(dtype)
    # By bytes: not every version of torch has torch.where for every dtype.
    zeros = torch.rand(shape, generator=generator).flatten() >= density
    tensor.flatten().view(torch.uint8).view(tensor.numel(), tensor.element_size())[zeros] = 0
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    size = save_sparse({"a.b": tensor, "c": torch.ones(3)}, path)
    state = load_sparse(path)
    assert list(state) == ["a.b", "c"]
    assert same(state["a.b"], tensor)
    assert size == path.stat().st_size == sparse_bytes({"a.b": tensor, "c": torch.ones(3)})


def test_special_values(tmp_path: Path) -> None:
    tensor = torch.zeros(500)
    tensor[3], tensor[9], tensor[30], tensor[31] = float("nan"), float("inf"), -0.0, 1e-42
    save_sparse({"w": tensor}, tmp_path / "x")
    expected = tensor.clone()
    expected[30] = 0.0
    assert same(load_sparse(tmp_path / "x")["w"], expected)


def test_views_and_shared_memory(tmp_path: Path) -> None:
    base = torch.randn(6, 50)
    state = {"a": base, "b": base.T, "c": base, "d": base[1:3], "e": torch.empty(0), "f": torch.empty(0)}
    save_sparse(state, tmp_path / "x")
    read = load_sparse(tmp_path / "x")
    assert all(same(read[name], tensor.contiguous()) for name, tensor in state.items())
    assert read["c"].data_ptr() == read["a"].data_ptr()
    assert (tmp_path / "x").stat().st_size < 4 * (300 + 300 + 100) + 600


@pytest.mark.parametrize(("zeros", "times"), [(0.9, 7.0), (0.95, 12.0), (0.98, 18.0)])
@pytest.mark.parametrize("network", [LeNet5, SmallLeNet])
def test_a_small_network_becomes_smaller(tmp_path: Path, network, zeros: float, times: float) -> None:
    model = sparse(network(), zeros)
    size = save_sparse(model, tmp_path / "x")
    assert 4 * sum(p.numel() for p in model.parameters()) >= times * size
    other = network()
    other.load_state_dict(load_sparse(tmp_path / "x"))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_half_precision_and_dense_weights_are_never_larger(tmp_path: Path) -> None:
    model = nn.Linear(100, 100)
    size = save_sparse(model, tmp_path / "dense")
    assert size < 4 * 10_100 + 400
    assert save_sparse(sparse(model, 0.9).half(), tmp_path / "half") < 2 * 10_100 / 2.5


@pytest.mark.skipif(os.name == "nt", reason="no permissions of this kind")
def test_a_file_may_be_read_by_whom_any_file_may(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    save_sparse(nn.Linear(2, 2), tmp_path / "x")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_sparse(nn.Linear(2, 2), path)
    assert path.read_text() == "mine"
    save_sparse(nn.Linear(2, 2), path, overwrite=True)
    assert load_sparse(path)["weight"].shape == (2, 2)
    with pytest.raises(IsADirectoryError):
        save_sparse(nn.Linear(2, 2), tmp_path, overwrite=True)
    with pytest.raises(FileNotFoundError, match="none"):
        save_sparse(nn.Linear(2, 2), tmp_path / "none" / "x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


class Wrapped(torch.Tensor):
    """As torchao's and DTensor: made of other tensors."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return [], None


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({"../up": torch.ones(2)}, ValueError, "no name"),
        ({"a/b": torch.ones(2)}, ValueError, "no name"),
        ({"a\\b": torch.ones(2)}, ValueError, "no name"),
        ({"a\nb": torch.ones(2)}, ValueError, "no name"),
        ({"": torch.ones(2)}, ValueError, "no name"),
        ({"a": torch.zeros(999), "a:values": torch.ones(2)}, ValueError, "rename"),
        ({"a": 3}, TypeError, "no tensor"),
        (3, TypeError, "nn.Module or a state_dict, got int"),
        ({"a": torch.eye(3).to_sparse()}, TypeError, "strided"),
        ({"a": torch.ones(2, device="meta")}, TypeError, "strided"),
        ({"a": torch.zeros(2, dtype=torch.uint8).view(torch.bits8)}, TypeError, "dtype"),
        ({"a": torch.ones(2).as_subclass(Wrapped)}, TypeError, "an ordinary tensor, got Wrapped"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path, state, error, words) -> None:
    with pytest.raises(error, match=words):
        save_sparse(state, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_read_back_otherwise_is_not_left(tmp_path: Path, monkeypatch) -> None:
    from lightning_bsqh.export import sparse_file

    monkeypatch.setattr(sparse_file, "load_sparse", lambda path: {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    with pytest.raises(RuntimeError, match="read back"):
        save_sparse(nn.Linear(2, 2), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def rewritten(path: Path, change) -> Path:
    """The file with its tensors and its list of tensors changed."""
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    described = json.loads(metadata["tensors"])
    change(tensors, described, metadata)
    save_file(
        tensors, path, {"tensors": json.dumps(described), **{k: v for k, v in metadata.items() if k != "tensors"}}
    )
    return path


def _rename(tensors, described, metadata) -> None:
    described["../../w"] = described.pop("w")


CHANGES = {
    "newer": lambda t, d, m: m.update(version="2"),
    "version": lambda t, d, m: m.update(version="1e99"),
    "format": lambda t, d, m: m.update(format="other"),
    "missing": lambda t, d, m: t.pop("w:values"),
    "unknown": lambda t, d, m: t.update(more=torch.ones(2)),
    "path": _rename,
    "huge": lambda t, d, m: d.update(w=[d["w"][0], "float32", [2**40]]),
    "overflow": lambda t, d, m: d.update(w=[d["w"][0], "float32", [2**40, 2**40, 2**40]]),
    "negative": lambda t, d, m: d.update(w=[d["w"][0], "float32", [-30, -100]]),
    "fraction": lambda t, d, m: d.update(w=[d["w"][0], "float32", [30.0, 100]]),
    "dtype": lambda t, d, m: d.update(w=[d["w"][0], "object", [30, 100]]),
    "other dtype": lambda t, d, m: d.update(w=[d["w"][0], "float64", [30, 100]]),
    "coding": lambda t, d, m: d.update(w=["pickle", "float32", [30, 100]]),
    "number": lambda t, d, m: d.update(w=7),
    "nothing": lambda t, d, m: d.update(w=None),
    "text": lambda t, d, m: d.update(w="same"),
    "circle": lambda t, d, m: d.update(w=["same", "w"]),
    "few values": lambda t, d, m: t.update({"w:values": t["w:values"][1:].clone()}),
    "matrix of values": lambda t, d, m: t.update({"w:values": t["w:values"][None].clone()}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("density", [0.01, 0.4])
def test_a_damaged_file_ends_with_a_sentence(tmp_path: Path, change, density: float) -> None:
    dense = torch.randn(30, 100)
    save_sparse({"w": dense * (torch.rand(30, 100) < density)}, tmp_path / "x")
    with pytest.raises(ValueError, match="cannot be read as a sparse network"):
        load_sparse(rewritten(tmp_path / "x", change))


def test_a_file_cut_short_or_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_sparse({"w": torch.randn(30, 100)}, path)
    whole = path.read_bytes()
    for length in (0, 4, 8, 50, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            load_sparse(path)
    path.write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    with pytest.raises(ValueError, match="cannot be read"):
        load_sparse(path)
    torch.save({"w": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_sparse(path)
    with pytest.raises(FileNotFoundError):
        load_sparse(tmp_path / "none")


def test_json_without_end(tmp_path: Path) -> None:
    metadata = {"format": "lightning-bsqh-sparse", "version": "1", "tensors": "[" * 200_000}
    save_file({}, tmp_path / "x", metadata)
    with pytest.raises(ValueError, match="cannot be read"):
        load_sparse(tmp_path / "x")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_flipped_bytes_never_do_more_than_raise(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("file") / "x"
    torch.manual_seed(0)
    save_sparse({"w": torch.randn(5, 80) * (torch.rand(5, 80) < 0.05)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert sum(tensor.numel() for tensor in load_sparse(path).values()) <= 255 * len(content)


def test_without_safetensors(tmp_path: Path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        save_sparse(nn.Linear(2, 2), tmp_path / "x")
