"""Errors of `train.py` for people: one sentence and an exit code, HYDRA_FULL_ERROR=1 for the traceback."""

import os
import sys
from collections.abc import Callable

from protformer.errors import ProtformerError


def in_sentences(main: Callable[[], None]) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        main()
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except ProtformerError as error:
        print(f"protformer: {error}", file=sys.stderr)
        return 1
    return 0
