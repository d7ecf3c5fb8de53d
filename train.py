"""Train a protein sequence model: `python train.py` (see `python train.py --help` and the README)."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from protformer.training.sentences import in_sentences, one_job
from protformer.training.sweep import register_resolver

os.environ.setdefault("PROTFORMER_ROOT", str(Path(__file__).resolve().parent))
register_resolver()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@one_job
def main(config: DictConfig) -> None:
    from protformer.training.entry import train

    train(config)


if __name__ == "__main__":
    sys.exit(in_sentences(main))
