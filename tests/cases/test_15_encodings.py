"""The progress bar can be written wherever the output goes."""

import io
import sys

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_bsqh import BSQHStrategy
from tests.cases.helpers import Net, loader, trainer


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
@pytest.mark.parametrize("strategy", ["auto", "bsqh"])
def test_bar(strategy, encoding, monkeypatch):
    """A training with a bar ends well on an output of this encoding."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    made = trainer(
        BSQHStrategy() if strategy == "bsqh" else strategy,
        max_epochs=1,
        enable_progress_bar=True,
        callbacks=[TQDMProgressBar()],
    )
    failed = None
    try:
        made.fit(Net(), loader())
    except UnicodeEncodeError as error:
        failed = str(error)
    assert failed is None
    assert raw.getvalue()
