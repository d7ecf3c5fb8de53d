"""A job as plain values, which can be handed to another process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRAINING = "protformer.training.job.execute"
"""The job of a configuration that trains a model."""


@dataclass
class JobSettings:
    """The resolved configuration of one job, where it runs, and what the command line chose."""

    config: dict[str, Any]
    run_dir: str
    choices: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    group: str | None = None

    def chose(self, *groups: str) -> bool:
        """Whether the command line touched one of these groups."""
        return any(o.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] in groups for o in self.overrides)

    @property
    def chose_attention(self) -> bool:
        """Whether the command line says which attention, so that `init_from` gives the weights of another one."""
        return self.chose("attention", "features", "method")

    @property
    def run_name(self) -> str:
        if self.config.get("job", TRAINING) != TRAINING:
            return f"{self.choices.get('experiment', 'experiment')} seed {self.config['seed']}"
        attention = [self.choices.get("attention", "")]
        if "features" in (self.config.get("attention") or {}):
            attention.append(self.choices.get("features", ""))
        model, start = [self.choices.get("model", "")], self.config.get("init_from")
        if start is not None:  # shape and attention come from there, unless the command line says otherwise
            attention = attention if self.chose_attention else []
            own = Path(str(start))
            named = own.parent.name if own.name == "model" else own.name
            model = [*(model if self.chose("model") else []), f"from {named}"]
        names = [self.choices.get("task", "run"), *attention, *model]
        return " ".join([*filter(None, names), f"seed {self.config['seed']}"])
