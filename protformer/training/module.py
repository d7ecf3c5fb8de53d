"""The Lightning module: a model, a task, an optimiser; and what makes ranks and micro-batches invisible."""

import resource
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from protformer.data.batch import Batch
from protformer.errors import ProtformerError
from protformer.model import ProteinModel
from protformer.training.optimisation import Optimisation
from protformer.training.tasks.base import Figures, Task


class ProteinModule(LightningModule):
    """Trains `model` on `task`.

    The gradient of an optimiser step is that of (sum of the loss over all its targets, on every rank and micro-batch) /
    (their weight). DDP averages over ranks and Lightning over micro-batches, so each local sum is multiplied by both
    counts and divided by the weight of the whole step, which comes with the batch. (Means of local means were off by
    1e-2.)

    `evaluations` names the evaluation sets in the order of the test dataloaders; "valid" is also scored while training.
    """

    def __init__(
        self,
        *,
        model: ProteinModel,
        task: Task,
        optimisation: Optimisation,
        evaluations: list[str],
        classes: tuple[str, ...] = (),
        freeze_trunk: bool = False,
        compile_model: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.optimisation = optimisation
        self.evaluations = evaluations
        self.freeze_trunk = freeze_trunk
        names = dict.fromkeys(["valid", *evaluations])
        # (Metric names become module names, which must not clash with attributes of ModuleDict.)
        self.figures = nn.ModuleDict({f"set_{name}": task.figures(classes) for name in names})
        if freeze_trunk:
            model.trunk.requires_grad_(False)
        # An attribute set past nn.Module, so that the compiled wrapper does not enter the state dict a second time.
        object.__setattr__(self, "_trunk", torch.compile(model.trunk, dynamic=True) if compile_model else model.trunk)
        self._pending: dict[str, tuple[Tensor, Tensor]] = {}
        self.results: dict[str, dict[str, float]] = {}
        self.details: dict[str, dict[str, Any]] = {}

    def figures_of(self, name: str) -> Figures:
        return self.figures[f"set_{name}"]  # pyright: ignore[reportReturnType]

    def outputs(self, batch: Batch) -> Tensor:
        """The model's answers at the batch's targets, `[targets, ...]`."""
        hidden = self._trunk(batch.tokens, batch.cu_seqlens)  # pyright: ignore[reportCallIssue]
        if self.task_is_per_sequence:
            return self.model.read(hidden, batch.cu_seqlens)[batch.rows]
        return self.model.read(hidden, batch.cu_seqlens, batch.rows)

    @property
    def task_is_per_sequence(self) -> bool:
        return self.task.label_kind in ("class", "multi_label", "number")

    def on_fit_start(self) -> None:
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.freeze_trunk:
            self.model.trunk.eval()  # a frozen trunk is a fixed function: no dropout either

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        outputs = self.outputs(batch)
        loss_sum = self.task.loss_sum(outputs, batch)
        weight = batch.step_weight.clamp_min(1e-12)
        terms = self.task.step_terms(outputs, batch)
        terms["loss"] = loss_sum.detach().double(), torch.zeros((), device=loss_sum.device)
        for name, (total, count) in terms.items():
            before = self._pending.get(name)
            total, count = total.double(), count.double()
            self._pending[name] = (total, count) if before is None else (before[0] + total, before[1] + count)
        self._step_weight = weight
        return loss_sum * (self.trainer.world_size * self.trainer.accumulate_grad_batches / weight)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        names = sorted(self._pending)
        sums = torch.stack([torch.stack(self._pending[name]) for name in names])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self._pending.clear()
        for name, (total, count) in zip(names, sums, strict=True):
            mean = total / (self._step_weight if name == "loss" else count)
            if not torch.isfinite(mean):
                if name == "loss":
                    self._diverged(float(mean))
                continue  # no target of this kind in the step
            if name.startswith("nll_"):
                self._log_step(f"train/perplexity_{name.removeprefix('nll_')}", mean.exp())
            else:
                self._log_step(f"train/{name}", mean, prog_bar=name == "loss")
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if gradients and not any(hasattr(g, "device_mesh") for g in gradients):  # sharded gradients: the norm is FSDP's
            self._log_step("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))

    def _diverged(self, loss: float) -> None:
        """Ends the run before the step is taken: afterwards all weights would be NaN, and so all figures.

        With fp16 the gradient scaler skips such a step and goes on with a smaller scale.
        """
        if self.trainer.precision == "16-mixed":
            return
        raise ProtformerError(
            f"The loss of step {self.trainer.global_step + 1} is {loss}: training has diverged. Lower optimizer.lr,"
            " lengthen optimizer.warmup_steps, or set trainer.gradient_clip_val=1."
        )

    def _log_step(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        self.log(name, value.float(), on_step=True, on_epoch=False, prog_bar=prog_bar, batch_size=1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.figures_of("valid").update(self.outputs(batch), batch)

    def on_validation_epoch_start(self) -> None:
        self.figures_of("valid").reset()

    def on_validation_epoch_end(self) -> None:
        for name, value in self.figures_of("valid").compute().items():
            # the figure is already that of all ranks
            self.log(f"valid/{name}", value, prog_bar=name == self.task.monitor, batch_size=1, rank_zero_only=False)

    def on_test_epoch_start(self) -> None:
        self.results, self.details = {}, {}
        for name in self.evaluations:
            self.figures_of(name).reset()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.figures_of(self.evaluations[dataloader_idx]).update(self.outputs(batch), batch)

    def on_test_epoch_end(self) -> None:
        for name in self.evaluations:
            self.results[name] = self.figures_of(name).compute()
            self.details[name] = self.figures_of(name).details()

    def configure_optimizers(self) -> Any:
        return self.optimisation.configure(self.model, self.trainer.estimated_stepping_batches)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak allocated memory of a CUDA device, or peak resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
