import os

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_bsqh.export import save_sparse
from lightning_bsqh.report import RunFolderError, read_run, read_runs
from lightning_bsqh.report.settings import MOST, flatten, show_setting
from tests.report.made_runs import made_weights, make_checkpoint, make_metrics, make_run


def test_reads_metrics_settings_and_weights(tmp_path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert run.name == "run"
    assert run.metrics["test_accuracy"] == ([60], [0.9861])
    assert run.settings["trainer.strategy.init_args.eta"] == 1e-4
    assert run.settings["trainer.callbacks.0.class_path"] == "A"
    assert (run.checkpoint, run.checkpoint_step) == (tmp_path / "run/checkpoints/best.ckpt", 40)
    assert [(w.name, w.zeros, w.nonzero.numel(), w.zero_slices) for w in run.weights] == [
        ("network.conv1.weight", 5, 18, 0),
        ("network.fc1.weight", 20, 40, 2),
    ]
    assert all(weights.counted for weights in run.weights)
    assert run.notes == []


def test_weights_that_are_not_regularised_are_told(tmp_path) -> None:
    run = read_run(make_run(tmp_path, layers=["network.fc1"]))
    assert [weights.counted for weights in run.weights] == [False, True]
    # A block as one layer counts with all that is inside it.
    assert all(weights.counted for weights in read_run(make_run(tmp_path, layers=["network"])).weights)


def test_the_best_checkpoint_is_taken_where_the_newest_names_it(tmp_path) -> None:
    folder = make_run(tmp_path)
    newest = folder / "checkpoints" / "last.ckpt"
    make_checkpoint(newest, made_weights(), step=60, best="/elsewhere/checkpoints/best.ckpt")
    os.utime(newest, (2e9, 2e9))
    assert read_run(folder).checkpoint_step == 40
    (folder / "checkpoints" / "best.ckpt").unlink()
    assert read_run(folder).checkpoint_step == 60


def test_without_checkpoint_and_settings(tmp_path) -> None:
    run = read_run(make_metrics(tmp_path))
    assert (run.checkpoint, run.weights, run.settings, run.settings_file) == (None, [], {}, None)
    assert "no checkpoint" in run.notes[0]


def test_a_checkpoint_may_be_a_sparse_file(tmp_path) -> None:
    pytest.importorskip("safetensors")
    folder = make_run(tmp_path)
    (folder / "checkpoints" / "best.ckpt").unlink()
    file = folder / "checkpoints" / "best.safetensors"
    save_sparse(made_weights(), file)
    run = read_run(folder)
    assert (run.checkpoint, run.checkpoint_step, run.notes) == (file, None, [])
    assert [weights.zeros for weights in run.weights] == [5, 20]
    file.write_bytes(b"torn")
    assert "best.safetensors could not be read" in read_run(folder).notes[0]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 torn"])
def test_unreadable_checkpoint_is_a_note(tmp_path, content: bytes) -> None:
    (make_run(tmp_path) / "checkpoints" / "best.ckpt").write_bytes(content)
    run = read_run(tmp_path)
    assert run.weights == []
    assert "best.ckpt could not be read" in run.notes[0]


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_checkpoint_of_a_plain_loop(tmp_path) -> None:
    state = {"w": torch.eye(2).to_sparse(), "index": torch.ones(2, 2, dtype=torch.int64), "weight": torch.eye(2)}
    make_run(tmp_path)
    torch.save({"state_dict": state, "callbacks": []}, tmp_path / "checkpoints" / "best.ckpt")
    run = read_run(tmp_path)
    assert [(w.name, w.zeros, w.counted) for w in run.weights] == [("weight", 2, False)]
    assert (run.checkpoint_step, run.notes) == (None, [])


class _Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path)
    torch.save({"state_dict": {}, "x": _Evil()}, tmp_path / "checkpoints" / "best.ckpt")
    assert "could not be read" in read_run(tmp_path).notes[0]
    assert not (tmp_path / "evil").exists()


def test_unreadable_settings_are_a_note(tmp_path) -> None:
    (make_run(tmp_path) / "config.yaml").write_text("a: !!python/object:os.system {}", encoding="utf-8")
    (tmp_path / "hparams.yaml").write_text("num_classes: 10\n", encoding="utf-8")
    run = read_run(tmp_path)
    assert run.settings == {"num_classes": 10}
    assert "config.yaml could not be read" in run.notes[0]


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": [{"f": None}]}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d": [1, 2], "e.0.f": None}


_PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.binary(max_size=4) | st.text(max_size=8)
)
_KEYS = st.text(max_size=6) | st.integers() | st.none() | st.dates()
_NESTED = st.recursive(_PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3))


@given(st.dictionaries(_KEYS, _NESTED, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_settings_are_shown(tmp_path, content: dict) -> None:
    make_metrics(tmp_path, steps=3)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    run = read_run(tmp_path)
    assert all(isinstance(show_setting(value), str) for value in run.settings.values())
    assert len(run.notes) == 1  # of the missing checkpoint only


# A billion entries from ten lines.
_NINE = ("{" + ", ".join(f"k{j}: *a{i - 1}" for j in range(9)) + "}" for i in range(1, 10))
_BILLION = "\n".join(["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {nine}" for i, nine in enumerate(_NINE, 1))])


@pytest.mark.parametrize(
    "content",
    [
        "a: &x\n  b: *x\n",
        "a: &x [*x]\n",
        _BILLION,
        "? [1, 2]\n: 3\n",
        "a: 2020-13-45\n",
        "a: !!timestamp x\n",
        "[" * 5_000,
        "- 1\n- 2\n",
        "just words",
        "\u0000",
    ],
)
def test_odd_settings_are_shown_or_noted(tmp_path, content: str) -> None:
    make_metrics(tmp_path, steps=3)
    (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    run = read_run(tmp_path)
    assert len(run.settings) <= MOST
    assert run.settings or "config.yaml could not be read" in run.notes[0]
    assert all(len(show_setting(value)) <= 1_001 for value in run.settings.values())


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {1: torch.eye(3), None: torch.eye(2), "w": torch.eye(4)}, "global_step": 10**5000},
        {"state_dict": {"w": torch.zeros(1).expand(10**7, 10**7)}},
        {"state_dict": {"w": torch.zeros(4, 4, device="meta")}},
        {"state_dict": {"w": torch.eye(4).to(torch.float8_e4m3fn)}, "global_step": True, "callbacks": {"a": 3}},
        {"state_dict": {}, "callbacks": {"a": {"best_model_path": 5}, "b": {"best_model_path": "a\0b"}}},
        {"state_dict": [torch.eye(3)]},
        [1, 2],
    ],
)
def test_odd_checkpoints_are_shown_or_noted(tmp_path, content: object) -> None:
    torch.save(content, make_metrics(tmp_path, steps=3) / "a.ckpt")
    run = read_run(tmp_path)
    assert all(isinstance(weights.name, str) and weights.zeros >= 0 for weights in run.weights)
    assert run.weights or run.notes or content["state_dict"] == {}


def test_a_folder_named_as_a_checkpoint_is_none(tmp_path) -> None:
    (make_metrics(tmp_path, steps=3) / "sharded.ckpt").mkdir()
    (tmp_path / "gone.ckpt").symlink_to(tmp_path / "nowhere")
    assert "no checkpoint" in read_run(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("settings_", "target"),
    [
        ({"trainer": {"strategy": {"init_args": {"regularizer": {"init_args": {"sparsity": 0.95}}}}}}, 0.95),
        ({"trainer": {"callbacks": [{"class_path": "x"}, {"init_args": {"sparsity": 0.9}}]}}, 0.9),
        ({"trainer": {"strategy": {"init_args": {"regularizer": {"fc*": {"init_args": {"sparsity": 0.5}}}}}}}, None),
        ({"trainer": {"strategy": "bsqh"}}, None),
    ],
)
def test_target(tmp_path, settings_: dict, target: float | None) -> None:
    assert read_run(make_run(tmp_path, settings=settings_)).target == target


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"has no metrics\.csv: train with a CSVLogger"),
        ("", "no values of bsqh/"),
        ("step,bsqh/epsilon\n", "no values of bsqh/"),
        ("step,train_loss\n0,1.0\n", "another program has written it: train with"),
        ("epoch,bsqh/epsilon\n0,1.0\n", "not what Lightning's CSVLogger writes"),
        ("step,bsqh/epsilon\n0,abc\n", "not what Lightning's CSVLogger writes"),
        ("bsqh/epsilon,step\n1.0\n", "not what Lightning's CSVLogger writes"),
    ],
)
def test_refuses_other_folders(tmp_path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content, encoding="utf-8")
    with pytest.raises(RunFolderError, match=sentence):
        read_run(tmp_path)


def test_refuses_a_binary_file_and_a_missing_folder(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_bytes(b"\x80\x81\xff\x00")
    with pytest.raises(RunFolderError, match="not what Lightning's CSVLogger writes"):
        read_run(tmp_path)
    with pytest.raises(RunFolderError, match="There is no run folder"):
        read_run(tmp_path / "none")


def test_names_the_version_that_was_meant(tmp_path) -> None:
    make_metrics(tmp_path / "version_0")
    make_metrics(tmp_path / "version_1")
    with pytest.raises(RunFolderError, match=r"did you mean .*version_1\?"):
        read_run(tmp_path)


def test_refuses_the_same_folder_twice_and_none(tmp_path) -> None:
    make_metrics(tmp_path)
    with pytest.raises(RunFolderError, match="given twice"):
        read_runs([tmp_path, tmp_path / ".." / tmp_path.name])
    with pytest.raises(ValueError, match="at least one run folder"):
        read_runs([])
