"""Experiments 1 to 4 (cost, approximation error, learning, long context) at ESM-2 8M's size on one GPU.

    python benchmarks/gpu_experiments.py OUT --data FOLDER                    # all four, then a report of them
    python benchmarks/gpu_experiments.py OUT --data FOLDER --only cost        # one of them; OUT keeps what is there
    python benchmarks/gpu_experiments.py OUT --data FOLDER --device cpu --rehearse   # the same lines, small, anywhere

FOLDER holds train.fasta.xz, valid.fasta.xz and test.fasta.xz. Each experiment is the command that a user would type; a
line that has ended is taken as it is when it is run again, and a training that was cut goes on. Approximation error
looks at the exact model that the learning comparison has trained.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ("cost", "learning", "approximation", "long_context")
METHODS = "exact,uniform,performer_softmax,performer_relu,performer_favor_plus_plus,sparse_window"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for rows and runs")
    parser.add_argument("--data", type=Path, required=True, help="folder with train, valid and test.fasta.xz")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps of a learning run")
    parser.add_argument("--methods", default=METHODS, help="of learning and long context, between commas")
    parser.add_argument("--seeds", default="0,1,2", help="of learning, between commas")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model, few steps, short lengths")
    args = parser.parse_args()
    output, failed = args.output.resolve(), []
    for name in [name for name in EXPERIMENTS if name in args.only]:
        line = [sys.executable, str(ROOT / "train.py"), *_line(name, args, output)]
        print(f"\n{name}: {shlex.join(line[1:])}", flush=True)
        if subprocess.run(line, cwd=ROOT, check=False).returncode:
            failed.append(name)
    rows = [output / name for name in EXPERIMENTS if (output / name).is_dir() and name not in failed]
    if rows:
        compare = [
            sys.executable,
            "-m",
            "protformer.cli.main",
            "compare",
            *map(str, rows),
            "-o",
            str(output / "report"),
        ]
        if subprocess.run([*compare, "--no-wandb"], cwd=ROOT, env=_with_package(), check=False).returncode:
            failed.append("report")
    if failed:
        print(f"failed: {', '.join(failed)}; the same line takes what has ended and runs these again", file=sys.stderr)
    return 1 if failed else 0


def _line(name: str, args: argparse.Namespace, output: Path) -> list[str]:
    """The overrides of one experiment."""
    shape = ["model=tiny"] if args.rehearse else ["model=esm2_8m"]
    data = [f"data.{split}={(args.data / f'{split}.fasta.xz').resolve()}" for split in ("train", "valid", "test")]
    training = [*shape, *data, "logger=csv", f"trainer={'gpu' if args.device == 'cuda' else 'cpu'}"]
    if name == "cost":
        lengths = "[256,512]" if args.rehearse else "[1024,2048,4096,8192,16384,32768,65536,131072]"
        return ["experiment=cost", *shape, f"cost.device={args.device}", f"cost.lengths={lengths}", "logger=csv",
                f"cost.dtype={'bfloat16' if args.device == 'cuda' else 'float32'}",
                f"hydra.run.dir={output / name}"]  # fmt: skip
    if name == "approximation":
        few = ["approximation.length=256", "approximation.samples=2", "approximation.features=[16,32]"]
        return ["experiment=approximation_error", f"approximation.model={_exact_run(output / 'learning')}",
                f"approximation.proteins={(args.data / 'test.fasta.xz').resolve()}", "logger=csv",
                *(few if args.rehearse else []), f"hydra.run.dir={output / name}"]  # fmt: skip
    budgets = {"learning": (args.steps, 16384, args.seeds), "long_context": (args.steps // 5, 32768, "0")}
    steps, tokens, seeds = (4, 2048, "0") if args.rehearse else budgets[name]
    experiment = "compare_attention" if name == "learning" else name
    own = ["data=fasta"] if name == "learning" else []
    if args.rehearse:
        own += ["evaluate.sample=5", "optimizer.warmup_steps=1", "data.eval_tokens=4096"]
        own += ["data.concatenate=2048"] if name == "long_context" else []
    return ["-m", f"experiment={experiment}", *own, *training, f"method={args.methods}", f"seed={seeds}",
            f"trainer.max_steps={steps}", f"trainer.val_check_interval={max(steps // 10, 1)}",
            f"data.batch_tokens={tokens}", f"hydra.sweep.dir={output / name}"]  # fmt: skip


def _exact_run(sweep: Path) -> Path:
    for file in sorted(sweep.glob("*/metrics.json")):
        if json.loads(file.read_text(encoding="utf-8"))["method"] == "exact":
            return file.parent
    raise SystemExit(f"{sweep} holds no exact model that has ended: run --only learning first.")


def _with_package() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


if __name__ == "__main__":
    sys.exit(main())
