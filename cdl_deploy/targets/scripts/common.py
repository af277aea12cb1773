"""What the scripts of this folder share: a model in a runtime, as `worker.py` asks for it.

A job has `model` (the .onnx file), `folder` (which takes what the runtime's converter writes), `batch` (images of the
first run), `dtype` and `shape` (of one image), `threads` and `seed`.
"""

import json
import os
import runpy
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
from worker import serve


class RefusedError(Exception):
    """What the user is told as it is."""


def main(distribution, load, convert=None):
    """`convert(model, folder, first)` → the files that it made of an .onnx file for a batch like `first`; `model` is a
    copy in `folder`. `load(model, first, threads)`, with the first of these or the .onnx file itself → `run(batch)` →
    logits. `distribution`: what the runtime is called where it is installed from.
    """
    memory = runpy.run_path(str(Path(__file__).parents[2] / "process_memory.py"))["peak_memory"]
    serve(lambda job: Runtime(distribution, load, convert, **job), memory, RefusedError)


class Runtime:
    """A model, converted and loaded anew for every size of batch: many converters fix it."""

    def __init__(self, distribution, load, convert, model, folder, batch, dtype, shape, threads, seed):
        self.distribution, self.load_file, self.convert = distribution, load, convert
        self.model, self.folder = Path(model).resolve(), Path(folder).resolve()
        self.batch, self.threads = batch, threads
        os.chdir(self.folder)  # some leave files where they are run
        self.dtype, self.shape, self.seed = np.dtype(dtype), tuple(shape), seed
        self.files, self.runs = {}, {}
        self.convert_for(batch)

    def convert_for(self, batch):
        """What the runtime takes for a batch of this size."""
        if batch not in self.files:
            self.files[batch] = self.made(self.folder / str(batch), batch) if self.convert else [self.model]
        return self.files[batch]

    def made(self, own, batch):
        """Files that are in the folder already, made by an earlier process of the same, or are converted now."""
        record = own / "made.json"
        if not record.exists():
            own.mkdir(parents=True, exist_ok=True)
            copy = own / self.model.name  # some converters write to the file that they are given, or beside it
            shutil.copyfile(self.model, copy)
            made = self.convert(copy, own, self.feed(batch))
            record.write_text(json.dumps([str(it) for it in made]))
        return [Path(it) for it in json.loads(record.read_text())]

    def feed(self, batch):
        """Made-up images."""
        random, shape = np.random.default_rng(self.seed), (batch, *self.shape)
        if self.dtype == np.uint8:
            return random.integers(0, 256, shape, dtype=np.uint8)
        return random.standard_normal(shape).astype(self.dtype)

    def load(self, batch=None):
        """Make it ready for a batch of this size."""
        batch = batch or self.batch
        if batch not in self.runs:
            self.runs[batch] = self.load_file(self.convert_for(batch)[0], self.feed(batch), self.threads)
        return self.runs[batch]

    def run_of(self, batch):
        """A function that runs one batch of made-up images."""
        run, feed = self.load(batch), self.feed(batch)
        return lambda: run(feed)

    def inspect(self, batch):
        """Its version and its files."""
        files = self.convert_for(batch)
        sizes = sum(it.stat().st_size for it in files)
        return {"version": version(self.distribution), "files": list(map(str, files)), "file_bytes": sizes}

    def answer(self, feed, out):
        """Logits of the images of one file, which are one batch, into another."""
        images = np.load(feed)
        np.save(out, np.array(self.load(len(images))(images), np.float32))


def command(*words, folder=None, made=()):
    """Run a converter, which must make the files `made`; its last lines and its exit code where it fails."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, errors="replace", cwd=folder)
    said = done.stdout + done.stderr
    if done.returncode or not all(Path(it).exists() for it in made):
        last = " | ".join(line.strip() for line in said.strip().splitlines()[-5:])
        raise RefusedError(f"{Path(words[0]).name} ended with exit code {done.returncode}: {last[-700:]}")
    return said
