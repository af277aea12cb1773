"""Weights under other libraries' names, in every container: what --student-weights and `cdl weights` read."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.attack.damage import BYTES, piece_of_text, value_of_json


class ForeignWeights:
    """Safetensors in parts, torch checkpoints, arrays of JAX, ONNX, and the configuration beside them."""

    def __init__(self, folder: Path) -> None:
        import numpy as np
        import torch
        from safetensors.torch import save

        from tests.training import foreign_names as names
        from tests.training.conftest import make_vit
        from tests.training.encoder_graph import encoder_graph

        vit = make_vit(depth=2)
        state = {name: value.clone() for name, value in vit.state_dict().items()}
        theirs = names.renamed(state, names.EMBEDDINGS, names.VIT_FILE, "encoder.layer.")
        pth, npz = io.BytesIO(), io.BytesIO()
        torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}}, pth)  # noqa: TID251
        np.savez(npz, **names.big_vision(state, heads=3))
        shape: dict[str, Any] = {"img_size": 56, "patch_size": 14, "init_values": 1.0}
        onnx = encoder_graph(make_vit(depth=1, **shape))
        index = {"weight_map": dict.fromkeys(theirs, "part.safetensors")}
        config = {"num_attention_heads": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_mean": [0.5] * 3}
        self.folder, self.vit = folder, vit
        self.whole = {
            "model.safetensors": save(theirs),
            "a.pth": pth.getvalue(),
            "a.npz": npz.getvalue(),
            "a.onnx": onnx,
            "model.safetensors.index.json": json.dumps(index).encode(),
            "config.json": json.dumps(config).encode(),
        }
        (folder / "part.safetensors").write_bytes(save(theirs))

    def read(self, rng: random.Random) -> None:
        from cdl_deploy.training.backbones.weights_files.filling import fill
        from cdl_deploy.training.backbones.weights_files.weights import read_weights

        name = rng.choice(list(self.whole))
        damages = (*BYTES, piece_of_text, *([value_of_json] * 6 if name.endswith("json") else []))
        (self.folder / "model.safetensors").write_bytes(self.whole["model.safetensors"])
        (self.folder / name).write_bytes(rng.choice(damages)(self.whole[name], rng))
        weights = read_weights(self.folder / ("model.safetensors" if name == "config.json" else name))
        if name != "a.onnx":
            fill(self.vit, weights.tensors, weights.file)
