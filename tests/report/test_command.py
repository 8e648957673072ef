import sys

import pytest

pytest.importorskip("jsonargparse")

from lightning_bsqh.cli.main import main
from tests.report.made_runs import make_metrics


def test_writes_and_says_how_to_open(tmp_path, capsys) -> None:
    folder = make_metrics(tmp_path / "My Run")
    main(["report", str(folder)])
    printed = capsys.readouterr().out
    assert str(folder / "report.html") in printed
    assert f"Open it in any browser, no network needed: {(folder / 'report.html').as_uri()}" in printed
    assert (folder / "report.html").is_file()


def test_several_folders_and_output(tmp_path, capsys) -> None:
    folders = [str(make_metrics(tmp_path / name)) for name in ("a", "b")]
    main(["report", *folders, "--output", str(tmp_path / "both.html")])
    assert (tmp_path / "both.html").is_file()
    assert str(tmp_path / "both.html") in capsys.readouterr().out


def test_bad_folders_end_with_a_sentence(tmp_path) -> None:
    for content, sentence in [
        (None, r"has no metrics\.csv"),
        ("step,loss\n0,1\n", "another program has written it"),
    ]:
        if content is not None:
            (tmp_path / "metrics.csv").write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit, match=sentence) as error:
            main(["report", str(tmp_path)])
        assert error.value.code not in (0, None)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("arguments", [[], ["a", "--unknown"], ["a", "--output"]])
def test_refuses_bad_arguments(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(["report", *arguments])
    assert error.value.code == 2
    assert "lightning-bsqh report" in capsys.readouterr().err


def test_output_that_cannot_be_written(tmp_path) -> None:
    folder = make_metrics(tmp_path / "run")
    with pytest.raises(SystemExit, match="output must be a file"):
        main(["report", str(folder), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"metrics\.csv"):
        main(["report", str(folder), "--output", str(folder / "metrics.csv" / "report.html")])


def test_without_jinja2(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SystemExit, match="pip install"):
        main(["report", str(make_metrics(tmp_path))])
