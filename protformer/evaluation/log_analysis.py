"""An experiment's rows and pictures in W&B: a table that can be sorted and plotted there, beside the training runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from protformer.errors import shown_path
from protformer.evaluation.analysis import Analysis, write_analysis
from protformer.evaluation.members import Ended, require_all
from protformer.training.loggers import job_logger
from protformer.training.settings import JobSettings


def conclude(
    analysis: Analysis, settings: JobSettings, show: Callable[[], None], *, ended: Sequence[Ended] = ()
) -> None:
    """An experiment's end: its rows in the run folder and in the configuration's logger, `show` for the terminal, and
    where the rows lie. ProtformerError, after all that, where one of its members failed (`ended`)."""
    path = write_analysis(analysis, settings.run_dir)
    log_analysis(analysis, job_logger(settings))
    show()
    print(f"Rows: {shown_path(path)}")
    require_all(ended, path)


def log_analysis(
    analysis: Analysis, logger: Logger | None, *, name: str | None = None, pictures: Sequence[Path] = ()
) -> None:
    """`rows` of the analysis as a table NAME/rows, and the PNG files of `pictures` as images.

    `name` is the analysis' kind unless it is given. Other loggers than W&B's get nothing: the rows are in rows.json.
    """
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    room = name or analysis.kind
    columns: list[Any] = list(dict.fromkeys(key for row in analysis.rows for key in row))
    data = [[_scalar(row.get(column)) for column in columns] for row in analysis.rows]
    # (rows of different methods may have a figure, or none)
    table = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
    images = {f"{room}/{path.stem}": wandb.Image(str(path)) for path in pictures if path.suffix == ".png"}
    logger.experiment.log({f"{room}/rows": table, **images})
    logger.experiment.summary[f"{room}/notes"] = "\n".join([analysis.question, *analysis.notes])


def _scalar(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
