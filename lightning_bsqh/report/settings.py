"""The settings of a run, from config.yaml or hparams.yaml, whatever is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

#: A report shows no more settings than this.
MOST = 2_000
# A file of this many bytes was not written by a person or by Lightning.
_LARGEST_FILE = 2_000_000
_DEEPEST = 30


def read_settings(folder: Path, notes: list[str]) -> tuple[dict[str, Any], Path | None]:
    """Settings by dotted key, and the file that they are from; None if there is none that can be read."""
    for name in ("config.yaml", "hparams.yaml"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = _load(file)
        except Exception as error:  # yaml promises no particular one: KeyError, IndexError and RecursionError occur
            sentence = str(error).strip().splitlines() or [type(error).__name__]
            notes.append(f"The settings in {name} could not be read: {sentence[0]}")
            continue
        if isinstance(content, Mapping) and content:
            settings = flatten(content)
            if len(settings) >= MOST:
                notes.append(f"Of the settings in {name} only {MOST:,} are shown.")
            return settings, file
        if content is not None and content != {}:
            notes.append(f"The settings in {name} could not be read: it holds a {type(content).__name__}, no names.")
    return {}, None


def _load(file: Path) -> Any:
    size = file.stat().st_size
    if size > _LARGEST_FILE:
        raise ValueError(f"it has {size:,} bytes, which is too long for settings")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; a list of mappings by number (``callbacks.0.class_path``).

    At most ``MOST``, and nothing below the thirtieth level, so that a file that refers to itself has an end.
    """
    flat: dict[str, Any] = {}
    _flatten(settings, prefix, flat, _DEEPEST)
    return flat


def _flatten(settings: Mapping[Any, Any], prefix: str, flat: dict[str, Any], levels: int) -> None:
    for key, value in settings.items():
        if len(flat) >= MOST:
            return
        inner: Any = value
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            inner = dict(enumerate(value))
        if isinstance(inner, Mapping) and inner and levels:
            _flatten(inner, f"{prefix}{key}.", flat, levels - 1)
        else:
            flat[f"{prefix}{key}"] = value


def show_setting(value: Any, longest: int = 1_000) -> str:
    """A setting as text: a string as it stands, anything else as YAML in one line."""
    if not isinstance(value, str):
        # YAML has a way to write what contains itself, and everything that it has read.
        value = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
        value = value.removesuffix("\n").removesuffix("\n...")
    return value if len(value) <= longest else value[:longest] + "…"
