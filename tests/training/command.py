"""`python train.py ...` in this process, which spares each test the imports."""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def load_train() -> Any:
    spec = importlib.util.spec_from_file_location("train_script", ROOT / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def logging_restored() -> Iterator[None]:
    """Hydra sets handlers on the root logger that write where this test's output goes."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in root.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def run_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], int]:
    """Runs command lines in `folder`; a line's exit code."""
    module = load_train()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    # Hydra looks for conf/ beside the script when the script is what runs
    monkeypatch.setenv("HYDRA_MAIN_MODULE", "__main__")

    def run(arguments: Sequence[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with logging_restored():
            code = module.in_sentences(module.main)
        assert "HYDRA_FULL_ERROR" not in os.environ
        assert not GlobalHydra.instance().is_initialized()
        return code

    return run


@pytest.fixture
def train_py(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Sequence[str]], int]:
    return run_in(tmp_path, monkeypatch)


def write_fasta(path: Path, sequences: int = 12) -> Path:
    letters = "LAGVSERTIDPKQNFYMHWC"
    lines = [f">p{i}\n{(letters[i:] + letters[:i]) * 2}" for i in range(sequences)]
    path.write_text("\n".join(lines) + "\n")
    return path
