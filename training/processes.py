"""The processes of one run: one, or as many as `accelerate launch` or `torchrun` started.

Hugging Face Accelerate connects them. Each holds both models and takes the same steps; of every global batch it sees
its share. Losses are means over the global batch, so gradients are added up with the weight of each share, and it does
not matter how many processes there are or whether a batch divides evenly. Process 0 alone writes and tells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from cdl_deploy.errors import CdlError, MissingExtraError, OptionError, PeerError
from cdl_deploy.training.progress import Progress
from cdl_deploy.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from accelerate import PartialState

Shared = TypeVar("Shared")


class Processes:
    """This process among the processes of the run. Every method but `share` is called by all of them or by none."""

    def __init__(self, device: torch.device, state: PartialState | None = None) -> None:
        """`state`: Accelerate's, where there are several."""
        self.device = device
        self.state = state
        self.index: int = state.process_index if state else 0
        self.count: int = state.num_processes if state else 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    def share(self, batch: Sequence[Shared]) -> Sequence[Shared]:
        """This process's part of a global batch; of a batch with fewer images than processes, maybe none."""
        return batch[self.index :: self.count]

    @property
    def device_name(self) -> str:
        """What the record says of the device: among several processes, each has its own of a kind."""
        return str(self.device) if self.count == 1 else self.device.type

    @property
    def count_here(self) -> int:
        """Processes of this run on this machine, which share its cores."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", str(self.count))) if self.count > 1 else 1

    def progress(self, progress: Progress | None) -> Progress:
        """Where this process tells how far it is: nowhere, unless it is the main one."""
        return progress if progress is not None and self.is_main else Progress()

    def directory(self, root: Path) -> RunDirectory:
        """The run directory, which only the main process changes."""
        return RunDirectory(root) if self.is_main else ReadOnlyRunDirectory(root)

    def add_up(self, parameters: Iterable[Tensor], values: Tensor) -> Tensor:
        """Replace every gradient by its sum over the processes; returns the sum of `values`. One exchange does both."""
        if self.count == 1:
            return values
        gradients = [value.grad for value in parameters if value.grad is not None]
        total = self._sum(torch.cat([values, *(gradient.flatten() for gradient in gradients)]))
        values, *sums = total.split([len(values), *(gradient.numel() for gradient in gradients)])
        for gradient, own in zip(gradients, sums, strict=True):
            gradient.copy_(own.view_as(gradient))
        return values

    def total(self, counts: Sequence[int]) -> list[int]:
        """The sums of counts over the processes."""
        if self.count == 1:
            return list(counts)
        summed: list[int] = self._sum(torch.tensor(counts, dtype=torch.int64, device=self.device)).tolist()
        return summed

    def any(self, said: bool) -> bool:
        """Whether one of the processes says yes, so that all of them act on it in the same step."""
        return self.total([int(said)]) != [0]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Preparations that all processes make: where one fails, all end, and the first to have failed says why."""
        own: CdlError | None = None
        try:
            yield
        except CdlError as error:
            if self.count == 1:
                raise
            own = error
        if self.count == 1:
            return
        from accelerate.utils import gather_object

        messages: list[str | None] = _talk(lambda: gather_object([None if own is None else str(own)]))
        failed = [index for index, message in enumerate(messages) if message is not None]
        if own is not None and failed[0] == self.index:
            raise own
        if failed:
            raise PeerError(f"process {failed[0]} of {self.count} ended: {messages[failed[0]]}")

    @contextmanager
    def holding(self, directory: RunDirectory) -> Iterator[None]:
        """While it lasts, no other command writes to the run; what is read of it now stays true."""
        with ExitStack() as held:
            with self.agreed():
                held.enter_context(directory.lock())
            yield

    def wait(self) -> None:
        """Until all processes are here."""
        if self.state is not None:
            _talk(self.state.wait_for_everyone)

    def _sum(self, values: Tensor) -> Tensor:
        from accelerate.utils import reduce

        return _talk(lambda: reduce(values, "sum"))


class ReadOnlyRunDirectory(RunDirectory):
    """The run directory in the eyes of a process that does not write."""

    def check_free(self) -> None:
        """The main process looks."""

    def create(self) -> None:
        """The main process makes it."""

    def write_record(self, *args: object) -> None:
        """The main process writes."""

    def save_tensors(self, *args: object) -> None:
        """The main process writes."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The main process holds it."""
        yield


@contextmanager
def connected(device: str) -> Iterator[Processes]:
    """The processes of this run, on the device that `--device` names; they are told apart at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(pick_device(device))
        return
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        raise MissingExtraError("training in several processes", "train", "accelerate") from None
    kind = pick_device(device).type
    if kind not in ("cpu", "cuda"):
        raise OptionError(f"--device {device} is one device, but there are several processes: use cuda or cpu")
    state = _talk(lambda: PartialState(cpu=kind == "cpu"))
    processes = Processes(torch.device(state.device), state)
    yield processes
    # Only after a run that went well: where one process has failed, to wait for the others could last for ever.
    processes.wait()
    state.destroy_process_group()
    state._reset_state()


def _talk(exchange: Callable[[], Shared]) -> Shared:
    """An exchange with the other processes. Raises PeerError where one of them is gone."""
    try:
        return exchange()
    except (RuntimeError, ConnectionError) as error:  # torch.distributed has no narrower error for it
        reason = str(error).split("\n")[0]
        raise PeerError(f"another process of this run has ended; the last checkpoint is intact ({reason})") from None


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU. Raises OptionError for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise OptionError(f"--device {name} cannot be used here ({reason}): use auto or cpu") from None
    return device
