"""What a model file says about itself, in words."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdl_deploy.cli.cells import ending, named
from cdl_deploy.counted import at_most, counted
from cdl_deploy.data.preprocessing import Preprocessing
from cdl_deploy.evaluation.inspection import Inspection, Port
from cdl_deploy.printable import printable
from cdl_deploy.runtime.bundle import Bundle
from cdl_deploy.runtime.bundle_parts import SCORES, Method, PatchTokens


def inspection_tables(found: Inspection) -> RenderableType:
    """The model, then its tasks with their classes."""
    bundle = found.bundle
    if bundle is None:
        return _from_elsewhere(found)
    method = bundle.method
    parts = [name for name in (method.continual, method.distillation) if name not in (None, "none")]
    learned = " + ".join(map(str, parts)) or "a frozen backbone"
    rows = {
        "model": f"{bundle.role}: {found.bytes / 1e6:.2f} MB, {bundle.parameters:,} parameters",
        "knows": f"{counted(len(bundle.classes), 'class')} in {counted(sum(map(bool, bundle.tasks)), 'task')}",
        "learned with": f"{learned}, seed {bundle.run.seed}, run {bundle.run.fingerprint}",
        "backbone": bundle.weights.model + (f", sha256 {bundle.weights.sha256[:16]}…" if bundle.weights.sha256 else ""),
        "takes": port_words(found.inputs),
        "preprocessing": preprocessing_words(bundle.preprocessing),
        "prompts": selection_words(method),
        "gives": port_words(found.outputs),
        "accuracy": accuracy_words(bundle),
        "parity": _parity(bundle),
        "precision": _precision(bundle),
        **_patch_tokens(bundle),
        **_closed_form(bundle),
        "written by": f"{bundle.producer.name} {bundle.producer.version}",
    }
    tasks = Table()
    tasks.add_column("task", justify="right", no_wrap=True)
    tasks.add_column("classes")
    for number, names in enumerate(bundle.tasks, 1):
        if names:  # of others all classes are forgotten
            tasks.add_row(str(number), named(names))
    return Group(Text(ending(str(found.path), 98)), _facts(rows), tasks)


def _from_elsewhere(found: Inspection) -> RenderableType:
    """What there is to say of a model that cdl did not export."""
    interface = found.interface
    rows = {
        "model": f"not exported by cdl: {found.bytes / 1e6:.2f} MB",
        "knows": counted(len(interface.classes), "class"),
        "takes": port_words(found.inputs),
        "preprocessing": preprocessing_words(interface.preprocessing, interface.dtype != "uint8", interface.squash)
        + ("" if interface.assumed is None else " (assumed: nothing says it)"),
        "gives": port_words(found.outputs),
    }
    return Group(Text(ending(str(found.path), 98)), _facts(rows), named(interface.classes))


def _facts(rows: Mapping[str, str]) -> Table:
    facts = Table(show_header=False, title_justify="left")
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in rows.items():
        facts.add_row(name, Text(printable(text)))
    return facts


def preprocessing_words(
    preprocessing: Preprocessing, normalised: bool = True, squash: tuple[int, int] | None = None
) -> str:
    """What happens to pixels, and where."""
    p = preprocessing
    resized = f"shorter edge to {p.resize}" if squash is None else f"squashed to {squash[1]}×{squash[0]}"
    steps = f"{resized} ({p.interpolation}, antialiased), middle {p.width}×{p.height}"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (p.mean, p.std))
    steps += f", /255, minus ({mean}), by ({std})" if normalised else ""
    return f"in the graph: {steps}" if p.input == "image" else f"before the graph, by the caller: {steps}"


def selection_words(method: Method) -> str:
    """How prompts are chosen for an image."""
    if method.select is None:
        return "the same for every image: nothing is selected"
    if method.select.startswith("task:"):
        return f"chosen at export: those of task {method.select.removeprefix('task:')}, for every image"
    if method.select == "images":
        return "chosen at export by sample images, the same for every image"
    query = method.query or "full"
    where = (
        f"after {query.removeprefix('block:')} blocks of the same pass"
        if query != "full"
        else "after a pass of its own"
    )
    whose = "" if method.task_scores else "; prompts belong to no task"
    return f"selected by each image, in the graph, {where}{whose}"


def port_words(ports: tuple[Port, ...]) -> str:
    """Name, type as numpy calls it, and shape of each."""
    kinds = {
        "tensor(float)": "float32",
        "tensor(uint8)": "uint8",
        "tensor(int64)": "int64",
        "tensor(string)": "string",
        "tensor(float16)": "float16",
    }
    return "; ".join(
        f"{port.name} {kinds.get(port.type, port.type)} [{', '.join('?' if n is None else str(n) for n in port.shape)}]"
        for port in ports
    )


def accuracy_words(bundle: Bundle) -> str:
    """What the run measured, and whether it is the file's."""
    accuracy = bundle.accuracy
    if accuracy is None:
        return "not recorded"
    if bundle.method.select not in (None, "in-graph"):
        return (
            f"not measured with prompts chosen at export; {accuracy.final_average_accuracy:.1f} % where images choose"
        )
    if bundle.patch_tokens is not None:
        return f"{accuracy.final_average_accuracy:.1f} % with all patch tokens (measured by the run)"
    lost = "" if accuracy.forgetting is None else f", forgetting {accuracy.forgetting:.1f}"
    return f"{accuracy.final_average_accuracy:.1f} % over all classes, mean over tasks{lost} (measured by the run)"


def _parity(bundle: Bundle) -> str:
    parity = bundle.parity
    if parity is None:
        return "not recorded"
    return (
        f"logits within {at_most(parity.max_abs_logit_difference).removeprefix('≤ ')} of the trained model, "
        f"the same class for {parity.top1_agreement:.1%} of {counted(parity.images, 'image')}"
    )


def _patch_tokens(bundle: Bundle) -> dict[str, str]:
    """Of a model that merges some."""
    return {} if bundle.patch_tokens is None else {"patch tokens": patch_tokens_words(bundle.patch_tokens)}


def patch_tokens_words(tokens: PatchTokens) -> str:
    """How many are left, and what that did."""
    text = f"{tokens.left} of {tokens.patches} are left, the others merge (--tokens {tokens.share:g})"
    if tokens.accuracy_before is not None and tokens.accuracy_after is not None:
        text += (
            f"; {tokens.accuracy_before:.1f} % right with all of them, {tokens.accuracy_after:.1f} % so, on "
            f"{counted(tokens.images, 'held-out image')} when it was exported"
        )
    return f"{text}; the head was {'solved anew' if tokens.head == 'solved' else 'trained with all of them'}"


def _closed_form(bundle: Bundle) -> dict[str, str]:
    """Features, sums and threshold of a model that has them."""
    features, statistics, rule = bundle.features, bundle.statistics, bundle.unknown_rule
    if features is None:
        return {}
    then = " at unit length" if features.unit_length else ""
    if features.projection:
        then += f", {features.projection.features} random features of them (seed {features.projection.seed})"
    rows = {"features": f"{features.parts}, {features.dimension} numbers{then}; sha256 {features.sha256[:16]}…"}
    rows["statistics"] = (
        f"{statistics.file}, sha256 {statistics.sha256[:16]}…" if statistics else "none that fit these features"
    )
    if bundle.unknown_threshold is None or rule is None:
        rows["unknown above"] = "no threshold was measured"
    else:
        source = f"{rule.images} {rule.source}" if rule.images else f"images as the {rule.source} describe them"
        rows["unknown above"] = f"distance {bundle.unknown_threshold:g}: {rule.percent:g} % of {source} are nearer"
    return rows


def _precision(bundle: Bundle) -> str:
    quantization = bundle.quantization
    if quantization is None:
        return "float32"
    parts = [quantization.kind, "" if quantization.batch_invariant else "results depend on the batch"]
    scores = [name for name in quantization.kept_float if name == SCORES]
    layers = len(quantization.kept_float) - len(scores)
    kept = [*scores, *([counted(layers, "layer")] if layers else [])]
    if kept:
        parts.append(f"{' and '.join(kept)} in float32")
    if quantization.accuracy_before is not None and quantization.accuracy_after is not None:
        parts.append(f"{quantization.accuracy_before:.1f} % before, {quantization.accuracy_after:.1f} % after")
    return ", ".join(part for part in parts if part)
