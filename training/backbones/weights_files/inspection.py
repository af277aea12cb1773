"""What there is to say of a file of weights, and the same weights as timm's own safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from cdl_deploy.errors import WeightsError
from cdl_deploy.files import write_atomic
from cdl_deploy.training.backbones import hub
from cdl_deploy.training.backbones.loading import check_family, create_vit, known_model
from cdl_deploy.training.backbones.weights_files.described import differences
from cdl_deploy.training.backbones.weights_files.filling import fill
from cdl_deploy.training.backbones.weights_files.fits import Fits, Measured, find_fits, measure
from cdl_deploy.training.backbones.weights_files.weights import Weights, read_weights


@dataclass(frozen=True)
class Report:
    """A file, and the timm model that takes it."""

    weights: Weights
    measured: Measured | None
    fits: Fits
    model: str | None
    """The likeliest of those that fit, or the one that was asked for."""
    image_size: int | None
    left_out: tuple[str, ...]
    """Names of tensors that the model has no place for, those beside the network included."""
    refused: str | None
    """Why `cdl train` does not take this model; None where it does."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        measured, said = self.measured, self.weights.description
        return {
            "file": str(self.weights.file),
            "layout": self.weights.layout,
            "prefix": self.weights.place or None,
            "not_taken": list(self.weights.others),
            "width": measured and measured.width,
            "depth": measured and measured.depth,
            "patch": measured and list(measured.patch),
            "heads": self.weights.heads,
            "model": self.model,
            "image_size": self.image_size,
            "also_fits": [fit.model for fit in self.fits.found if fit.model != self.model],
            "nearest": self.fits.nearest,
            "nearest_differs": self.fits.why,
            "left_out": list(self.left_out),
            "pixels": {name: list(v) if isinstance(v, tuple) else v for name, v in self.weights.pixels.items()},
            "said_by": list(said.sources),
            "checked": self.weights.checked,
            "refused_by_train": self.refused,
        }


def inspect_weights(path: str, model: str | None = None) -> Report:
    """Of a file, a folder or a name on the hub. Raises WeightsError for what is no weights, or not of `model`."""
    weights = read_weights(hub.located(path))
    fits = find_fits(weights)
    fit = fits.found[0] if fits.found else None
    if model is not None:
        name = known_model(model).partition(".")[0]
        fit = next((found for found in fits.found if found.model == name), None)
        if fit is None:
            others = ", ".join(found.model for found in fits.found[:3]) or "no model of timm's"
            raise WeightsError(f"weights {path} do not fit {name}: they fit {others}")
    left_out = (*weights.beside, *(fit.left_out if fit is not None else ()))
    if fit is None:
        return Report(weights, measure(weights.tensors), fits, None, None, left_out, None)
    try:
        check_family(fit.model, fit.image_size)
        refused = None
    except WeightsError as error:
        refused = str(error)
    return Report(weights, measure(weights.tensors), fits, fit.model, fit.image_size, left_out, refused)


def write_timm(report: Report, out: Path) -> int:
    """Write the weights as timm's safetensors, float32, with what is known of pixels; returns the number of tensors.

    Raises WeightsError where no timm model takes them.
    """
    weights = report.weights
    if report.model is None or report.image_size is None:
        nearest = f"; nearest is {report.fits.nearest}: {report.fits.why}" if report.fits.nearest else ""
        raise WeightsError(f"weights {weights.file} fit no model of timm's{nearest}")
    network = create_vit(report.model, report.image_size)
    fill(network, weights.tensors, weights.file)
    wrong, _ = differences(weights, network)
    if wrong:
        raise WeightsError(f"weights {weights.file} are of another network than {report.model}: {'; '.join(wrong)}")
    side = report.image_size
    config: dict[str, Any] = {"architecture": report.model, "input_size": (3, side, side)}
    config |= {name: value for name, value in weights.pixels.items() if name != "input_size"}
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    content = safetensors.torch.save(state, {"format": "pt", "pretrained_cfg": json.dumps(config)})
    write_atomic(out, lambda file: file.write_bytes(content))
    return len(state)
