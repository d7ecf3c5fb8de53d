"""An experiment's rows and pictures in W&B: a table that can be sorted and plotted there, beside the training runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from protformer.evaluation.analysis import Analysis, write_analysis
from protformer.training.loggers import job_logger
from protformer.training.settings import JobSettings


def conclude(analysis: Analysis, settings: JobSettings) -> Path:
    """Write an experiment's rows into its run folder, and log them as the configuration says; where they are."""
    path = write_analysis(analysis, settings.run_dir)
    log_analysis(analysis, job_logger(settings))
    return path


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
