"""The rows of a finished run: its floors and models by evaluation set, from `metrics.json`."""

import json
from pathlib import Path
from typing import Any

from protformer.errors import ProtformerError


def read_metrics(run: Path | str) -> dict[str, Any]:
    """The content of a run folder's `metrics.json`; `ProtformerError` where there is none."""
    file = Path(run) / "metrics.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ProtformerError(f"{run} holds no metrics.json: give the folder of a run that ended.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProtformerError(f"{file} is not JSON ({error}).") from error
    if not isinstance(content, dict) or "sets" not in content:
        raise ProtformerError(f"{file} is no metrics.json of protformer: it names no evaluation sets.")
    return content
