"""Packed batches for Lightning: the same global batch on any number of ranks, in the place a resumed run left off."""

from collections.abc import Iterator
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, Sampler

from protformer.data.batch import Batch, collate, concatenated
from protformer.data.objectives import Objective
from protformer.data.packing import PackingPlan
from protformer.errors import ProtformerError

Index = tuple[int, int, int]  # epoch, optimiser step of the epoch, micro-batch of the step


class MicroBatches(Dataset[Batch]):
    """One rank's micro-batches: its share of each optimiser step's sequences."""

    def __init__(
        self,
        objective: Objective,
        plan: PackingPlan,
        *,
        rank: int,
        world_size: int,
        micro_batches: int = 1,
        concatenate: int | None = None,
    ) -> None:
        self.objective = objective
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self.micro_batches = micro_batches
        self.concatenate = concatenate

    def __getitem__(self, index: Index) -> Batch:
        epoch, step, micro = index
        sequences = self.plan.epoch_steps(epoch)[step]
        shares = self.plan.deal(sequences, self.world_size * self.micro_batches)
        mine = shares[micro * self.world_size + self.rank].tolist()
        batch = collate(
            [self.objective.example(record, epoch) for record in mine],
            mine,
            self.objective.weight(sequences),
            per_sequence=self.objective.per_sequence,
            empty=self.objective.empty,
        )
        return batch if self.concatenate is None else concatenated(batch, self.concatenate)


class TrainingOrder(Sampler[Index]):
    """The rest of the current epoch, from the optimiser step that the trainer is at.

    Lightning calls `set_epoch` on no sampler of this kind and starts the data over when it resumes in mid-epoch; but it
    restores `global_step`, and the plan is a pure function of it. With `repeat` there are only the
    plan's first `repeat` steps, again and again.
    """

    def __init__(self, trainer: Trainer, plan: PackingPlan, micro_batches: int, repeat: int | None = None) -> None:
        self.repeat = None if repeat is None else min(repeat, len(plan.epoch_steps(0)))
        self.trainer = trainer
        self.plan = plan
        self.micro_batches = micro_batches
        self.epoch, _ = self._place()

    def _place(self) -> tuple[int, int]:
        if self.repeat is not None:
            return 0, self.trainer.global_step % self.repeat
        return self.plan.locate(self.trainer.global_step)

    def __iter__(self) -> Iterator[Index]:
        epoch, first = self._place()
        for step in range(first, self.repeat or len(self.plan.epoch_steps(epoch))):
            for micro in range(self.micro_batches):
                yield epoch, step, micro

    def __len__(self) -> int:
        # of the whole epoch: Lightning counts the batches that a resumed run has behind it
        return (self.repeat or len(self.plan.epoch_steps(self.epoch))) * self.micro_batches


class EvaluationOrder(Sampler[Index]):
    """Every batch once, in a fixed order."""

    def __init__(self, plan: PackingPlan) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[Index]:
        return ((0, step, 0) for step in range(len(self.plan.epoch_steps(0))))

    def __len__(self) -> int:
        return len(self.plan.epoch_steps(0))


class PackedDataModule(LightningDataModule):
    """Objectives by split ("train", "valid", "test", ...) as packed dataloaders.

    Args:
        objectives: what is asked of each split.
        batch_tokens: tokens of one optimiser step over all ranks and micro-batches, specials included.
        eval_tokens: tokens of an evaluation batch over all ranks.
        seed: of the order of the training sequences.
        num_workers: processes that prepare batches; 0 prepares them in the training process, which is faster on few
            cores.
        concatenate: join proteins into segments of at most so many tokens, in which each sees the others
            (`batch.concatenated`); for objectives with targets per residue. None: every protein is a segment.
        repeat_steps: train on the first so many steps alone, again and again, to see whether the loss falls.
    """

    def __init__(
        self,
        *,
        objectives: dict[str, Objective],
        batch_tokens: int,
        eval_tokens: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        concatenate: int | None = None,
        repeat_steps: int | None = None,
    ) -> None:
        super().__init__()
        if batch_tokens < 3:
            raise ValueError(f"data.batch_tokens must be at least 3 (<cls>, a residue, <eos>), not {batch_tokens}")
        if concatenate is not None and (concatenate < 3 or any(o.per_sequence for o in objectives.values())):
            raise ValueError(
                f"data.concatenate={concatenate} joins proteins of at least 3 tokens (<cls>, a residue, <eos>), for"
                " tasks with targets per residue: leave it out (null) for a label of each sequence"
            )
        self.objectives = objectives
        self.concatenate = concatenate
        self.seed = seed
        if repeat_steps is not None and repeat_steps < 1:
            raise ValueError(f"data.repeat_steps must be at least 1, not {repeat_steps}")
        self.num_workers = num_workers
        self.repeat_steps = repeat_steps
        self.plans = {
            name: PackingPlan(
                objective.corpus.lengths + 2,
                budget=batch_tokens if name == "train" else eval_tokens or batch_tokens,
                seed=seed,
                shuffle=name == "train",
            )
            for name, objective in objectives.items()
        }

    def refuse_longer(self, longest: int | None) -> None:
        """ProtformerError where a segment of any split has more than `longest` tokens: before training, not at the
        step that meets it, nor at the evaluation after hours of training."""
        if longest is None:
            return
        over = [
            f"{int((plan.lengths > longest).sum()):,} of {len(plan.lengths):,} sequences of {name}"
            for name, plan in self.plans.items()
            if plan.longest > longest
        ]
        wanted = max(plan.longest for plan in self.plans.values())
        if self.concatenate is not None and self.concatenate > longest:
            over.append(f"segments of data.concatenate={self.concatenate}")
            wanted = max(wanted, self.concatenate)
        if over:
            raise ProtformerError(
                f"This attention takes at most {longest:,} tokens (attention.length), start and end included; longer"
                f" are {', '.join(over)}: write attention.length={wanted} (in a sweep, in a line"
                " of its own for this method, with the same hydra.sweep.dir), or leave them out."
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        trainer = self._trainer()
        micro_batches = trainer.accumulate_grad_batches
        plan = self.plans["train"]
        return self._loader("train", TrainingOrder(trainer, plan, micro_batches, self.repeat_steps), micro_batches)

    def val_dataloader(self) -> Any:
        return self.evaluation_loader("valid") if "valid" in self.objectives else []

    def evaluation_loader(self, name: str) -> DataLoader[Batch]:
        return self._loader(name, EvaluationOrder(self.plans[name]), 1)

    def _loader(self, name: str, order: Sampler[Index], micro_batches: int) -> DataLoader[Batch]:
        trainer = self._trainer()
        dataset = MicroBatches(
            self.objectives[name],
            self.plans[name],
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            micro_batches=micro_batches,
            concatenate=self.concatenate,
        )
        return DataLoader(
            dataset,
            batch_size=None,  # an item is a batch already
            sampler=order,
            num_workers=self.num_workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )

    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer yet: pass it to trainer.fit(datamodule=...)")
        return self.trainer
