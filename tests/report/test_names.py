from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsqh.report.names import display_names, run_names, short_names, shorten


@given(st.text(max_size=60), st.integers(5, 40))
def test_short_enough_and_with_both_ends(name: str, width: int) -> None:
    shown = shorten(name, width)
    assert len(shown) <= width
    if len(name) <= width:
        assert shown == name
    else:
        head, _, tail = shown.partition("…") if "…" not in name else (name[: (width - 1) // 2], "", "")
        assert name.startswith(head)
        assert name.endswith(tail)


@given(st.lists(st.text("ab.", min_size=1, max_size=40), unique=True, max_size=12))
def test_names_differ(names: list[str]) -> None:
    shown = display_names(names, width=6)
    assert list(shown) == names
    assert len(set(shown.values())) == len(names)


def test_colliding_names_get_numbers() -> None:
    names = [f"encoder.{middle}.projection" for middle in ("first_block", "other_block", "third_block")]
    shown = display_names([*names, "decoder"], width=10)
    assert list(shown.values()) == ["enco…ction", "enco…ction (2)", "enco…ction (3)", "decoder"]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/runs/a"], ["a"]),
        (["/runs/a", "/other/b"], ["a", "b"]),
        (["/runs/a/version_0", "/runs/b/version_0"], ["a/version_0", "b/version_0"]),
        (["/a", "/b/a"], ["a", "b/a"]),
        (["/runs/mnist/version_3"], ["mnist/version_3"]),
    ],
)
def test_run_names(folders: list[str], names: list[str]) -> None:
    assert run_names([Path(folder) for folder in folders]) == names


@pytest.mark.parametrize(
    ("layers", "short"),
    [
        (["network.conv1", "network.fc"], ["conv1", "fc"]),
        (["network.block1.conv1", "network.block1.conv2"], ["conv1", "conv2"]),
        (["net.a", "network.a"], ["net.a", "network.a"]),
        (["network", "network.a"], ["network", "network.a"]),
        (["network.only"], ["only"]),
        ([], []),
    ],
)
def test_short_names(layers: list[str], short: list[str]) -> None:
    assert short_names(layers) == dict(zip(layers, short, strict=True))
