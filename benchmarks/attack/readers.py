"""One reader for every kind of file: whole ones to damage, and what a user would do with the damaged one.

A reader raises a `CdlError` for what is refused. Where it accepts a file, it checks that nothing outside was read, and
that what must be exact is.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks.attack.damage import BYTES, Damage, piece_of_text, piece_of_yaml, value_of_json
from benchmarks.attack.labels import LabelsFiles, Processors
from benchmarks.attack.mutations import OutsideError
from benchmarks.attack.trees import Trees
from benchmarks.attack.weights_files import ForeignWeights
from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.runtime import running
from cdl_deploy.runtime.bundle import Bundle, encode_metadata
from cdl_deploy.runtime.bundle_parts import Method, RunOrigin, Weights
from cdl_deploy.runtime.classifier import Classifier

CLASSES = ("red", "green", "blue")
LOCATIONS = ("w.bin", "../outside.bin", "sub/../../outside.bin", "link.bin", "{outside}", "none.bin", "", "folder")


class Reader(Protocol):
    """Reads damaged files of one kind, all in one folder."""

    def read(self, rng: random.Random) -> None:
        """Damage a whole file and read it."""
        ...


def tiny_model(path: Path, scale: float = 1.0) -> bytes:
    """Mean colour times weights: the smallest model that cdl could have exported."""
    weights = np.array([[4, -1, -1], [-1, 4, -1], [-1, -1, 4]], dtype=np.float32) * np.float32(scale)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("TopK", ["probabilities", "k"], ["topk_probability", "best"], axis=1),
        helper.make_node("Gather", ["names", "best"], ["topk_label"]),
        helper.make_node("MatMul", ["probabilities", "owners"], ["task_scores"]),
    ]
    outputs = dict.fromkeys(("logits", "probabilities", "topk_probability"), (TensorProto.FLOAT, 3))
    outputs |= {"topk_label": (TensorProto.STRING, 3), "task_scores": (TensorProto.FLOAT, 1)}
    constants = {
        "weights": weights, "k": np.array([3], dtype=np.int64), "owners": np.ones((3, 1), dtype=np.float32),
        "names": np.array(CLASSES, dtype=object),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 3, 8, 8])],
        [helper.make_tensor_value_info(name, kind, ["B", size]) for name, (kind, size) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    bundle = Bundle(
        path=path, role="student", classes=CLASSES, tasks=(CLASSES,),
        preprocessing=Preprocessing(8, 8, 8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        method=Method("coda", "kdp", "full", "in-graph"), weights=Weights("mini"), run=RunOrigin(0, 1, "f" * 8),
        parameters=9, top_k=3,
    )  # fmt: skip
    helper.set_model_props(model, encode_metadata(bundle))
    return bytes(model.SerializeToString())


class Models:
    """ONNX files: opened, and run on an image."""

    def __init__(self, folder: Path) -> None:
        running.SECONDS_AN_IMAGE = 5.0
        self.folder = folder / "model"
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "sub").mkdir(parents=True)
        (self.folder / "folder").mkdir()
        self.outside = folder / "outside.bin"
        values = np.eye(3, dtype=np.float32).tobytes()
        self.outside.write_bytes(values)
        (self.folder / "w.bin").write_bytes(values)
        (self.folder / "link.bin").symlink_to(self.outside)
        self.path = self.folder / "student.onnx"
        self.whole = tiny_model(self.path)
        self.image = Image.new("RGB", (9, 9), (200, 20, 20))

    def read(self, rng: random.Random) -> None:
        content = self._apart(rng) if rng.random() < 0.3 else self.whole
        if content is self.whole or rng.random() < 0.5:
            content = rng.choice((*BYTES, self._metadata))(content, rng)
        self.path.write_bytes(content)
        classifier = Classifier(self.path, threads=1)
        self._check_places(content)
        list(classifier.predict([self.image, self.image]))

    def _metadata(self, content: bytes, rng: random.Random) -> bytes:
        model = onnx.load_from_string(content)
        entry = rng.choice(model.metadata_props)
        damage = rng.choice((value_of_json, piece_of_text))
        entry.value = damage(entry.value.encode(), rng).decode("utf-8", "replace")
        return bytes(model.SerializeToString())

    def _apart(self, rng: random.Random) -> bytes:
        model = onnx.load_from_string(self.whole)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        location = rng.choice(LOCATIONS).format(outside=self.outside)
        tensor.external_data.add(key="location", value=location)
        if rng.random() < 0.3:
            tensor.external_data.add(key="offset", value=rng.choice(("0", "-1", "99999999999", "x")))
        return bytes(model.SerializeToString())

    def _check_places(self, content: bytes) -> None:
        """A model that was opened has its values in its folder: by onnx's own reader, which opens no other file."""
        for tensor in onnx.load_from_string(content).graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location" and tensor.data_location == TensorProto.EXTERNAL:
                    place = (self.folder / entry.value).resolve()
                    if not place.is_relative_to(self.folder.resolve()):
                        raise OutsideError(f"values of '{tensor.name}' from {place}")


class OrtModels:
    """The same in onnxruntime's own format."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        model, self.path = folder / "student.onnx", folder / "student.ort"
        model.write_bytes(tiny_model(model))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(self.path)
        options.add_session_config_entry("session.save_model_format", "ORT")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.whole = self.path.read_bytes()
        self.image = Image.new("RGB", (9, 9), (200, 20, 20))

    def read(self, rng: random.Random) -> None:
        self.path.write_bytes(rng.choice(BYTES)(self.whole, rng))
        list(Classifier(self.path, threads=1).predict([self.image]))


class Updates:
    """`.cdlup` files: applied, and what they make compared."""

    def __init__(self, folder: Path) -> None:
        from cdl_deploy.update.patch import make_update

        self.old, self.out, self.update = (folder / name for name in ("old.onnx", "out.onnx", "a.cdlup"))
        self.old.write_bytes(tiny_model(self.old))
        new = folder / "new.onnx"
        new.write_bytes(tiny_model(self.old, scale=1.5))
        make_update(self.old, new, self.update)
        self.whole, self.before, self.after = self.update.read_bytes(), self.old.read_bytes(), new.read_bytes()

    def read(self, rng: random.Random) -> None:
        from cdl_deploy.update.patch import apply_updates

        content = rng.choice((*BYTES, self._header))(self.whole, rng)
        if rng.random() < 0.5:  # whole again, as whoever means harm would make it
            content = content[:-32] + hashlib.sha256(content[:-32]).digest()
        self.update.write_bytes(content)
        self.out.write_bytes(self.before)
        try:
            apply_updates(self.old, [self.update], self.out)
        finally:
            if self.out.read_bytes() not in (self.before, self.after) or self.old.read_bytes() != self.before:
                raise AssertionError("neither the old model nor the new one is there")

    @staticmethod
    def _header(content: bytes, rng: random.Random) -> bytes:
        size = int.from_bytes(content[8:12], "little")
        text = value_of_json(content[12 : 12 + size], rng)
        return content[:8] + len(text).to_bytes(4, "little") + text + content[12 + size :]


class Records:
    """run.json: read, and shown as `cdl runs` and `cdl compare` show it."""

    def __init__(self, folder: Path) -> None:
        from tests.records import run_json

        self.folder = folder
        self.whole = json.dumps(run_json()).encode()

    def read(self, rng: random.Random) -> None:
        from rich.console import Console

        from cdl_deploy.cli.compare import comparison_table
        from cdl_deploy.cli.run_groups import group_runs
        from cdl_deploy.cli.run_table import run_table
        from cdl_deploy.cli.runs import history_table
        from cdl_deploy.run.record import read_record

        damage: Damage = rng.choice((*BYTES, *[value_of_json] * 6, piece_of_text))
        (self.folder / "run.json").write_bytes(damage(self.whole, rng))
        record = read_record(self.folder)
        if record.tasks:
            console = Console(file=io.StringIO(), width=80)
            console.print(run_table(record), history_table(record), comparison_table(group_runs([self.folder])))


class Configs:
    """Files for --config."""

    def __init__(self, folder: Path, suffix: str) -> None:
        import yaml

        from cdl_deploy.run.config import RunConfig

        values = RunConfig().to_dict()
        self.path = folder / f"config{suffix}"
        self.is_yaml = suffix == ".yaml"
        self.whole = (yaml.safe_dump(values) if self.is_yaml else json.dumps(values)).encode()

    def read(self, rng: random.Random) -> None:
        from cdl_deploy.run.config_file import read_config_file

        own: tuple[Damage, ...] = (piece_of_yaml,) if self.is_yaml else (value_of_json,)
        self.path.write_bytes(rng.choice((*BYTES, *own * 6, piece_of_text))(self.whole, rng))
        read_config_file(self.path)


class Images:
    """Photographs in every format that is read, through the runtime's loader or training's."""

    def __init__(self, folder: Path, training: bool) -> None:
        self.training = training
        self.path = folder / "class" / "photo.png"
        self.path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        self.whole = []
        for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA", "PCX"):
            buffer = io.BytesIO()
            picture.save(buffer, kind)
            self.whole.append(buffer.getvalue())
        model = folder / "student.onnx"
        model.write_bytes(tiny_model(model))
        self.classifier = Classifier(model, threads=1)

    def read(self, rng: random.Random) -> None:
        from cdl_deploy.data.sources import unreadable
        from cdl_deploy.errors import DataError

        self.path.write_bytes(rng.choice(BYTES)(rng.choice(self.whole), rng))
        if not self.training:
            self.classifier.prepare(self.path)
        elif bad := unreadable([self.path]):
            raise DataError(bad[self.path])


class TrainedWeights:
    """Checkpoints of a run, and files for --student-weights."""

    def __init__(self, folder: Path) -> None:
        import torch

        from cdl_deploy.training.backbones.loading import create_vit
        from cdl_deploy.training.run_directory import RunDirectory

        torch.manual_seed(0)
        self.directory = RunDirectory(folder)
        self.path = folder / "weights.safetensors"
        self.vit = create_vit("mini_student", 32)
        tensors = dict(self.vit.state_dict())
        self.directory.save_tensors(self.path, tensors, {"tasks": [1], "known": []})
        self.whole = self.path.read_bytes()
        self.expected = {name: value.clone() for name, value in tensors.items()}

    def read(self, rng: random.Random) -> None:
        import torch

        from cdl_deploy.training.backbones.loading import load_weights_file

        self.path.write_bytes(rng.choice((*BYTES, self._header))(self.whole, rng))
        if rng.random() < 0.5:
            load_weights_file(self.vit, self.path)
            return
        tensors, _ = self.directory.load_tensors(self.path)
        if not all(torch.equal(tensors[name], value) for name, value in self.expected.items()):
            raise AssertionError("other values than were written")

    @staticmethod
    def _header(content: bytes, rng: random.Random) -> bytes:
        size = int.from_bytes(content[:8], "little")
        text = rng.choice((value_of_json, piece_of_text))(content[8 : 8 + size], rng)
        return len(text).to_bytes(8, "little") + text + content[8 + size :]


class Sums:
    """The statistics of a closed-form head."""

    def __init__(self, folder: Path) -> None:
        from cdl_deploy.closed_form.features import FeatureMap
        from cdl_deploy.closed_form.head_rule import HeadRule
        from cdl_deploy.closed_form.history import History
        from cdl_deploy.closed_form.statistics import gather
        from cdl_deploy.closed_form.statistics_file import StoredStatistics, write_statistics

        rng = np.random.default_rng(0)
        sums = gather(rng.normal(size=(30, 6)), np.arange(30) % 3, CLASSES)
        self.path = folder / "student.statistics.safetensors"
        write_statistics(self.path, StoredStatistics(History(sums), FeatureMap(), HeadRule(), "ab" * 32))
        self.whole = self.path.read_bytes()

    def read(self, rng: random.Random) -> None:
        from cdl_deploy.closed_form.head_rule import solve_head
        from cdl_deploy.closed_form.statistics_file import read_statistics

        self.path.write_bytes(rng.choice((*BYTES, TrainedWeights._header))(self.whole, rng))
        stored = read_statistics(self.path)
        solve_head(stored.history.total, stored.rule)


KINDS: dict[str, Callable[[Path], Reader]] = {
    "models": Models,
    "models-ort": OrtModels,
    "updates": Updates,
    "records": Records,
    "config-yaml": lambda folder: Configs(folder, ".yaml"),
    "config-json": lambda folder: Configs(folder, ".json"),
    "images-training": lambda folder: Images(folder, training=True),
    "images-runtime": lambda folder: Images(folder, training=False),
    "folders": Trees,
    "labels": LabelsFiles,
    "processors": Processors,
    "weights": TrainedWeights,
    "weights-files": ForeignWeights,
    "statistics": Sums,
}
"""By the name of the kind."""
