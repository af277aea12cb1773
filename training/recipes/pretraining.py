"""What recipes that pretrain a backbone share: schedule, optimisers, averaged weights, and a state to go on from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor, nn

from cdl_deploy.errors import OptionError, WeightsError
from cdl_deploy.files import write_atomic


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 5 %, then a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


class MuonInFloat32(torch.optim.Muon):
    """Muon that orthogonalises in float32, for processors without bf16 instructions.

    torch's own always does so in bf16, which there is slower than all the rest of a step. Everything else is what
    torch's does by default: Nesterov's momentum, and the step scaled by the original sqrt(max(1, rows / columns)).
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all matrices from the gradients they have; no closure is taken."""
        for group in self.param_groups:
            matrices: list[Tensor] = []
            gradients: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, matrices, gradients, buffers)
            for matrix, gradient, buffer in zip(matrices, gradients, buffers, strict=True):
                buffer.lerp_(gradient, 1 - group["momentum"])
                direction = zeropower_via_newtonschulz(
                    gradient.lerp(buffer, group["momentum"]),
                    group["ns_steps"],
                    [group["ns_coefficients"]],
                    eps=group["eps"],
                    dtype=torch.float32,
                )
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-group["lr"] * get_lr_scale(matrix.shape, "original"))


def make_optimizers(model: nn.Module, bf16: bool = True) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices (in bf16 or in float32), AdamW for embeddings, norms, biases and the head."""
    matrices = [value for name, value in model.named_parameters() if "blocks" in name and value.ndim == 2]
    chosen = {id(value) for value in matrices}
    rest = [value for value in model.parameters() if id(value) not in chosen]
    return [
        (torch.optim.Muon if bf16 else MuonInFloat32)(matrices, lr=0.01, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02),
    ]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float = 0.998) -> None:
    """Exponential moving average of the parameters, faster while there is little to average."""
    decay = min(decay, (1 + step) / (10 + step))
    for kept, current in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(current, 1 - decay)


def save_tensors(tensors: dict[str, Tensor], file: Path, about: dict[str, str] | None = None) -> None:
    """Write safetensors, with `about` in their header, whole or not at all."""
    data = safetensors.torch.save(tensors, about)
    write_atomic(file, lambda path: path.write_bytes(data))


def save_half(model: nn.Module, file: Path) -> None:
    """The weights in half precision."""
    save_tensors({name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}, file)


class State:
    """What a continued pretraining needs: weights, their average, optimiser moments, position; one safetensors file."""

    def __init__(
        self, file: Path, recipe: str, model: nn.Module, average: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        """`recipe` is what decides the result; a state that was saved under another one is refused."""
        self.file, self.recipe = file, recipe
        self.model, self.average, self.optimizers = model, average, optimizers

    def save(self, step: int, seconds: float) -> None:
        """After `step` steps and `seconds` of work."""
        state = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"average/{name}": value for name, value in self.average.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                state |= {f"optimizer/{number}/{index}/{name}": torch.as_tensor(m) for name, m in moments.items()}
        state |= {"step": torch.tensor(step), "seconds": torch.tensor(seconds)}
        save_tensors({name: value.contiguous() for name, value in state.items()}, self.file, {"recipe": self.recipe})

    def load(self) -> tuple[int, float]:
        """Restore everything; returns the steps done and the seconds spent, (0, 0.0) where nothing was saved.

        Raises OptionError for a state of another recipe, WeightsError for a damaged one.
        """
        if not self.file.exists():
            return 0, 0.0
        try:
            with safetensors.safe_open(self.file, "pt") as file:
                begun = (file.metadata() or {}).get("recipe")
        except (OSError, safetensors.SafetensorError):
            raise WeightsError(f"{self.file} cannot be read: remove it, and the same command begins again") from None
        if begun != self.recipe:
            raise OptionError(f"{self.file} was begun as {begun}, not as {self.recipe}: ask for the same, or remove it")
        state = safetensors.torch.load_file(self.file)
        for part, module in (("model/", self.model), ("average/", self.average)):
            module.load_state_dict({n.removeprefix(part): v for n, v in state.items() if n.startswith(part)})
        for number, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in state.items():
                if name.startswith(f"optimizer/{number}/"):
                    _, _, index, moment = name.split("/")
                    moments.setdefault(int(index), {})[moment] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        return int(state["step"]), float(state["seconds"])
