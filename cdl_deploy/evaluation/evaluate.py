"""A model against images whose classes are known. numpy and onnxruntime are all it takes."""

from __future__ import annotations

from cdl_deploy.data.labelled import LabelledImages, known_images
from cdl_deploy.errors import BundleError, DataError
from cdl_deploy.evaluation.agreement import Agreement, compare_predictions, shared_classes
from cdl_deploy.evaluation.outputs import model_outputs
from cdl_deploy.evaluation.predictions import ImagePredictions, OnImage, collect_predictions
from cdl_deploy.evaluation.report import Evaluation, make_report
from cdl_deploy.runtime.classifier import Classifier


def evaluate(
    classifier: Classifier,
    images: LabelledImages,
    against: Classifier | None = None,
    *,
    skip_unknown: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    on_image: OnImage = lambda done, total: None,
) -> Evaluation:
    """Run every image through the model, and through a second one to compare with.

    Either may be a model that cdl did not export; of such a one nothing is said by task. Open both with `threads=1`:
    each of `workers` threads decodes images and runs the model on them.
    The second model is compared on the images of the classes that both know, each choosing among those alone.
    `skip_unknown`: leave images of classes out that the model does not know; otherwise they are a DataError.
    An image that cannot be read is listed in the result. Raises DataError where none can be read, OptionError for a
    second model with fewer than two classes in common, and BundleError for two classes of one name.
    """
    for model in (classifier, against):
        if model is not None:
            _check_names(model)
    known = known_images(images, classifier.classes, skip_unknown, str(classifier.path))
    shared = _shared(classifier, against) if against is not None else classifier.classes
    in_both = set(shared)
    positions = [index for index, name in enumerate(known.names) if name in in_both]
    if not positions:
        raise DataError(f"{images.source} has no image of the {len(shared)} classes that both models know")
    total = len(known.items) + (len(positions) if against is not None else 0)

    def predictions_of(model: Classifier, own: LabelledImages, done_before: int) -> ImagePredictions:
        places = {name: place for place, name in enumerate(model.classes)}
        among = [places[name] for name in shared]
        outputs = model_outputs(model.prepare, model.probabilities, own.items, batch_size, workers)
        return collect_predictions(
            model.interface, own, outputs, among, lambda done, _: on_image(done_before + done, total)
        )

    predictions = predictions_of(classifier, known, 0)
    agreement = None
    if against is not None:
        both = known.restricted(lambda name: name in in_both)
        second = predictions_of(against, both, len(known.items))
        agreement = _agreement((classifier, against), known, predictions, second, positions)
    return make_report(
        str(classifier.path), classifier.interface, images.source, known.left_out, predictions, agreement
    )


def _shared(first: Classifier, second: Classifier) -> list[str]:
    return shared_classes(first.classes, second.classes, (str(first.path), str(second.path)))


def _check_names(model: Classifier) -> None:
    """Raise `BundleError` where folders, which are named by class, would not tell two classes apart."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(model.classes, 1):
        if name in numbers:
            raise BundleError(
                f"{model.path} has two classes called {name!r}, number {numbers[name]} and {number}, so the names of "
                "folders do not tell them apart: give each label a name of its own"
            )
        numbers[name] = number


def _agreement(
    models: tuple[Classifier, Classifier],
    known: LabelledImages,
    first: ImagePredictions,
    second: ImagePredictions,
    positions: list[int],
) -> Agreement:
    """`positions`: for each image that the second model got, its position among those of the first."""
    one, other = (model.classes for model in models)
    said = {int(image): one[choice] for image, choice in zip(first.images, first.among, strict=True)}
    also = {positions[image]: other[choice] for image, choice in zip(second.images, second.among, strict=True)}
    read = [image for image in also if image in said]
    if not read:
        raise DataError(f"{known.source} has no image that both models can read")
    return compare_predictions(
        str(models[1].path),
        (one, other),
        [known.names[image] for image in read],
        [said[image] for image in read],
        [also[image] for image in read],
    )
