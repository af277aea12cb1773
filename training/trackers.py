"""Where the curves of a run can go: TensorBoard and Weights & Biases, each a class with the same three methods.

Both write below RUN/logs. A run that continues after an interruption goes on where its last checkpoint ends, and may
write again what the interrupted process wrote after that; each class says what happens to it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from cdl_deploy.errors import MissingExtraError, OptionError, RunError
from cdl_deploy.files import write_text
from cdl_deploy.run.record import RunRecord


class Tracker(Protocol):
    """Keeps values by name and number; numbers only rise."""

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Everything there is to say at `number`."""

    def flush(self) -> None:
        """Where it can be had, what was written outlives a kill of this process from here on."""

    def close(self, finished: bool) -> None:
        """Nothing follows. `finished`: the run did all it had to do."""


class TensorBoard:
    """An event file in RUN/logs/tensorboard, one for every process that worked on the run.

    Each begins with the number it continues at, from which on TensorBoard forgets what earlier files say.
    """

    def __init__(self, run: Path, record: RunRecord, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "logs" / "tensorboard"), purge_step=first)

    def write(self, number: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, number)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, finished: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, the same one however often training is interrupted; local files in RUN/logs/wandb.

    Its id is drawn when it begins and kept in RUN/logs/wandb-id. What is written twice has the same numbers, and the
    first counts. Offline (WANDB_MODE=offline) every process leaves a folder, which `wandb sync` uploads.
    """

    def __init__(self, run: Path, record: RunRecord, first: int) -> None:
        import wandb

        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "cdl-deploy"),
                name=run.resolve().name,
                id=stable_id(run / "logs" / "wandb-id"),
                resume="allow",
                dir=str(run / "logs"),
                config=record.recorded_config(),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            reason = str(error).split("\n")[0]
            raise RunError(
                f"--log wandb: {reason}; with WANDB_MODE=offline nothing is sent until wandb sync; "
                "the last checkpoint is intact"
            ) from None

    def write(self, number: int, values: Mapping[str, float]) -> None:
        if number >= self.run.step:  # otherwise it is there already
            self.run.log(dict(values), step=number, commit=True)

    def flush(self) -> None:
        """Nothing: the process that wandb starts writes when it likes, so a kill may lose its last rows."""

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, type[TensorBoard | WeightsAndBiases]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
"""By the name that `--log` takes, which is also the package's and that of the extra."""


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise MissingExtraError for one that is not installed, OptionError for Weights & Biases without a login."""
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"--log {name}", name, (error.name or name).partition(".")[0]) from None
    if "wandb" in names:
        check_login()


def check_login() -> None:
    """Raise OptionError where Weights & Biases would ask for a key."""
    import wandb

    settings: Any = wandb.setup(settings=wandb.Settings(silent=True)).settings
    if settings.mode in ("online", "run", "shared") and not wandb.login(prompt=False, verify=False):
        raise OptionError(
            "--log wandb: no key is known: run wandb login, or set WANDB_MODE=offline and upload later with wandb sync"
        )


def stable_id(file: Path) -> str:
    """The id kept in `file`; the first to ask draws it."""
    if not file.exists():
        write_text(file, uuid.uuid4().hex + "\n")
    return file.read_text(encoding="utf-8").strip()
