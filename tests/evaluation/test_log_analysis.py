"""An experiment's rows become a W&B table; other loggers are left alone."""

import csv
from typing import Any

import pytest

from protformer.evaluation.analysis import Analysis
from protformer.evaluation.log_analysis import log_analysis
from protformer.training.loggers import csv_logger, wandb_logger

ROWS = [{"method": "exact", "error": 0.0, "seeds": {"0": 1.0}}, {"method": "linformer", "steps": 3}]
ANALYSIS = Analysis(
    kind="cost", title="Cost", question="What does it cost?", rows=ROWS, views=[], columns={}, notes=["n"]
)


def logger(make: Any, folder: Any) -> Any:
    return make(run_dir=folder, run_name="a report", run_group="a group", overrides=[], run_config={})


def test_rows_and_pictures_are_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "cost.png")
    run = logger(wandb_logger, tmp_path)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(run.experiment, "log", logged.update)
    log_analysis(ANALYSIS, run, pictures=[tmp_path / "cost.png", tmp_path / "cost.svg"])
    assert set(logged) == {"cost/rows", "cost/cost"}
    table = logged["cost/rows"]
    assert table.columns == ["method", "error", "seeds", "steps"]
    assert table.data == [["exact", 0.0, "{'0': 1.0}", None], ["linformer", None, None, 3]]
    run.experiment.finish()


@pytest.mark.parametrize("make", [csv_logger, None])
def test_other_loggers_get_nothing(make, tmp_path):
    log_analysis(ANALYSIS, logger(make, tmp_path) if make else None)
    assert not list(tmp_path.rglob("*cost*"))


def test_a_run_that_goes_on_keeps_what_was_logged_before(tmp_path, recwarn):
    """The last line was cut as the process was killed; figures that are new get a column of their own."""
    for number, figures in enumerate(({"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0, "valid": 0.5})):
        run = logger(csv_logger, tmp_path)
        run.log_metrics(figures, step=number)
        run.save()
        if not number:
            with (tmp_path / "csv" / "metrics.csv").open("a") as file:
                file.write("9.0,1")
    with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"loss": "3.0", "step": "0", "valid": ""}, {"loss": "2.0", "step": "1", "valid": ""},
        {"loss": "1.0", "step": "2", "valid": "0.5"},
    ]  # fmt: skip
    assert not [warning for warning in recwarn if "will be deleted" in str(warning.message)]
