"""Sums over images: all that a closed-form head needs to know about the images it has seen.

Kept are, in float64, for C classes and features φ ∈ R^D:

    n_c  images of class c          μ_c = Σ_{i in c} φ_i / n_c          S = Σ_i (φ_i − μ_c(i)) (φ_i − μ_c(i))ᵀ

which hold the same as n_c, s_c = Σ φ and G = Σ φφᵀ (`gram`): s_c = n_c μ_c, G = S + Σ_c n_c μ_c μ_cᵀ. They are kept
about the class means because S = G − Σ n μμᵀ loses all digits where means are large against the spread. Two sets, a and
b, are merged by the update of Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American
Statistician 37 (1983), eq. 2.1, in its form for matrices:

    δ_c = μ_c,b − μ_c,a     μ_c = μ_c,a + n_b/n δ_c     S = S_a + S_b + Σ_c n_c,a n_c,b / n_c δ_c δ_cᵀ

and one number more for each class, its spread Σ_{i in c} ‖φ_i − μ_c‖², merged in the same way: no head needs it, but
how sure a head may be does (`model_world`), as do two sums on how sure heads were (`overconfidence`). Size: C·D + D²
numbers, whatever the number of images and of tasks.

Forgetting a class takes its name, its count and its mean away, exactly. Its images' scatter around their own mean has
been added into S with that of all others, and S would have to be kept for each class (C·D² numbers) to take it out: it
stays, as evidence on noise, and with it the number of images that S comes from (`noise_images`). So:

* slda: Σ = S / `noise_images` still averages over the forgotten images, and nothing else of them is left.
* ridge: as if every forgotten image φ had been moved to the grand mean of the others, φ − μ_forgotten + mean, with the
  mean target: a penalty on directions in which the forgotten images vary, and no pull towards any class.
* Whoever still has the images takes all of it out: `subtract(gather(...))`.

What is left in S is a sum of outer products over all images: no image, and no class's mean, can be read from it, but it
is not nothing. Who must be sure that nothing is left subtracts, or gathers the sums anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cdl_deploy.closed_form.errors import StatisticsError
from cdl_deploy.closed_form.teacher_sums import Floats, TeacherSums
from cdl_deploy.errors import nearest

CHUNK = 2048
"""Images whose float64 copy is held at a time."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Counts, means and pooled within-class scatter; never changed, every operation returns new ones."""

    classes: tuple[str, ...]
    """Names, C of them."""
    counts: NDArray[np.int64]
    """[C]: n_c; 0 for a class that has been named and not seen."""
    means: Floats
    """[C, D]: μ_c, zeros where n_c is 0."""
    spread: Floats
    """[C]: Σ_{i in c} ‖φ_i − μ_c‖²."""
    scatter: Floats
    """[D, D]: S, exactly symmetric."""
    noise_images: int
    """Images that S comes from: Σ n_c, and those of forgotten classes."""
    teacher: TeacherSums | None = None
    """Sums with a teacher's outputs; for all images or for none."""
    overconfidence: Floats = field(default_factory=lambda: np.zeros(2))
    """[2]: images on which it was measured, and the sum of log κ over them; see `overconfidence.py`."""

    @property
    def temperature_factor(self) -> float:
        """κ: what the temperature that the other sums suggest is multiplied by."""
        images, log_factor = self.overconfidence
        return float(np.exp(log_factor / images)) if images else 1.0

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.means.shape[1])

    @property
    def images(self) -> int:
        """Σ n_c."""
        return int(self.counts.sum())

    def grand_mean(self) -> Floats:
        """[D]: the mean over all images of known classes."""
        mean: Floats = self.counts @ self.means / max(self.images, 1)
        return mean

    def gram(self) -> Floats:
        """[D, D]: G = Σ φφᵀ = S + Σ_c n_c μ_c μ_cᵀ."""
        return self.scatter + _outer(self.means, self.counts)

    def centred_gram(self) -> Floats:
        """[D, D]: Σ (φ − mean)(φ − mean)ᵀ about the grand mean."""
        return self.scatter + _outer(self.means - self.grand_mean(), self.counts)

    def merge(self, other: Statistics) -> Statistics:
        """The sums over the images of both. Classes are matched by name; new ones are put behind the known."""
        if other.dimension != self.dimension:
            raise StatisticsError(
                f"the statistics are of features with {self.dimension} and {other.dimension} dimensions, expected the "
                "same: gather both with the same model and features"
            )
        teachers = self._teachers(other)
        known = set(self.classes)
        names = self.classes + tuple(name for name in other.classes if name not in known)
        a, b = self.arranged(names), other.arranged(names)
        counts = a.counts + b.counts
        share = b.counts / np.maximum(counts, 1)
        weight = a.counts * share
        delta = np.where((weight > 0)[:, None], b.means - a.means, 0)
        teacher = None
        if teachers:
            ours, theirs = (item.arranged(names).teacher or _no_teacher(len(names), self.dimension) for item in (a, b))
            teacher = ours.merged(theirs, share, weight, delta)
        return Statistics(
            names,
            counts,
            a.means + (b.means - a.means) * share[:, None],
            a.spread + b.spread + weight * (delta**2).sum(axis=1),
            a.scatter + b.scatter + _outer(delta, weight),
            a.noise_images + b.noise_images,
            teacher,
            self.overconfidence + other.overconfidence,
        )

    def subtract(self, other: Statistics) -> Statistics:
        """What is left when the images of `other`, all added before, are taken out; classes without images vanish.

        Exact up to rounding, at 1e-16 of the sums' size. To take an addition back bit by bit, see `History`.
        """
        places = self._places(other.classes)
        if other.dimension != self.dimension or (other.teacher is None) != (self.teacher is None):
            raise StatisticsError("statistics of other features cannot be subtracted: gather both in the same way")
        b = other.arranged(self.classes)
        left = self.counts - b.counts
        if (left < 0).any() or other.noise_images > self.noise_images:
            worst = self.classes[int(left.argmin())]
            raise StatisticsError(
                f"cannot subtract {int(b.counts[left.argmin()])} images of class '{worst}' from "
                f"{int(self.counts[left.argmin()])}: only what has been added can be taken out"
            )
        share = b.counts / np.maximum(left, 1)
        means = np.where((left > 0)[:, None], self.means + (self.means - b.means) * share[:, None], 0)
        weight = left * b.counts / np.maximum(self.counts, 1)
        delta = np.where((weight > 0)[:, None], b.means - means, 0)
        noise_images = self.noise_images - b.noise_images
        teacher = None
        if self.teacher and b.teacher:
            teacher = self.teacher.subtracted(b.teacher, share, weight, delta)
        rest = Statistics(
            self.classes,
            left,
            means,
            np.where(left > 1, np.maximum(self.spread - b.spread - weight * (delta**2).sum(axis=1), 0), 0),
            self.scatter - b.scatter - _outer(delta, weight) if noise_images else np.zeros_like(self.scatter),
            noise_images,
            teacher,
            np.maximum(self.overconfidence - other.overconfidence, 0),
        )
        gone = set(places[left[places] == 0])
        return rest._kept([c for c in range(len(self.classes)) if c not in gone])

    def forget(self, name: str) -> Statistics:
        """Without this class; what stays of it is said at the top of this file."""
        (gone,) = self._places([name])
        return self._kept([c for c in range(len(self.classes)) if c != gone])

    def forget_added(self, name: str, before: Statistics) -> Statistics:
        """Without this class, where these sums are an addition to `before`, from which it is forgotten too.

        The scatter between the class's two means is in neither of the two, but in their total. It stays as well, and
        goes with the addition: forgetting from parts and from their total are then the same.
        """
        if name not in self.classes:
            return self
        if name not in before.classes:
            return self.forget(name)
        extra = set(before.classes) - set(self.classes) if self.teacher else set()  # columns of its outputs
        names = self.classes + tuple(other for other in before.classes if other in extra)
        b = self.arranged(names)
        known = [c for c, other in enumerate(before.classes) if other in set(names)]
        a = before._kept(known).arranged(names)
        c = names.index(name)
        weight = a.counts[c] * b.counts[c] / max(a.counts[c] + b.counts[c], 1)
        delta = b.means[c] - a.means[c]
        teacher = b.teacher
        if teacher and a.teacher:
            step = teacher.means[c] - a.teacher.means[c]
            cross = teacher.cross + weight * np.outer(delta, step)
            teacher = replace(teacher, cross=cross, square=teacher.square + weight * step**2)
        return replace(b, scatter=b.scatter + weight * np.outer(delta, delta), teacher=teacher).forget(name)

    def arranged(self, classes: Sequence[str]) -> Statistics:
        """The same sums with the classes in this order; more names than known may be given, fewer not."""
        names = tuple(classes)
        if names == self.classes:
            return self
        position = {name: place for place, name in enumerate(names)}
        _check_names(names)
        if missing := [name for name in self.classes if name not in position]:
            raise StatisticsError(f"class '{missing[0]}' has statistics and no place: name it, or forget it")
        places = np.array([position[name] for name in self.classes], dtype=np.intp)
        counts = np.zeros(len(names), dtype=np.int64)
        counts[places] = self.counts
        means = np.zeros((len(names), self.dimension))
        means[places] = self.means
        spread = np.zeros(len(names))
        spread[places] = self.spread
        teacher = self.teacher.arranged(places, len(names)) if self.teacher else None
        return replace(self, classes=names, counts=counts, means=means, spread=spread, teacher=teacher)

    def seen(self) -> Statistics:
        """The same without classes that have been named and of which there is no image."""
        places = [place for place, count in enumerate(self.counts) if count]
        return self if len(places) == len(self.counts) else self._kept(places)

    def _kept(self, places: list[int]) -> Statistics:
        index = np.array(places, dtype=np.intp)
        return replace(
            self,
            classes=tuple(self.classes[c] for c in places),
            counts=self.counts[index],
            means=self.means[index],
            spread=self.spread[index],
            teacher=self.teacher.kept(index) if self.teacher else None,
        )

    def _places(self, names: Iterable[str]) -> NDArray[np.intp]:
        position = {name: place for place, name in enumerate(self.classes)}
        for name in names:
            if name not in position:
                hint = nearest(name, self.classes)
                raise StatisticsError(f"class '{name}' is not in the statistics of {len(self.classes)} classes{hint}")
        return np.array([position[name] for name in names], dtype=np.intp)

    def _teachers(self, other: Statistics) -> bool:
        """Whether the two have sums with a teacher; one without any image has them if the other does."""
        have = {item.teacher is not None for item in (self, other) if item.noise_images}
        if len(have) > 1:
            raise StatisticsError(
                "some images have a teacher's outputs and others have none: expected them for all images or for none"
            )
        return have == {True}


def empty(dimension: int, classes: Sequence[str] = ()) -> Statistics:
    """Statistics of no image, with features of `dimension` numbers."""
    names = tuple(classes)
    _check_names(names)
    C, D = len(names), dimension
    return Statistics(names, np.zeros(C, dtype=np.int64), np.zeros((C, D)), np.zeros(C), np.zeros((D, D)), 0)


def gather(
    features: NDArray[np.floating],
    labels: ArrayLike,
    classes: Sequence[str],
    teacher: NDArray[np.floating] | None = None,
    first: int = 0,
) -> Statistics:
    """The sums over some images: `features` [n, D], `labels` [n] as places in `classes`.

    `teacher` [n, K] holds a teacher's outputs for the first K of `classes`; it need not know them all. `first` is the
    number of the first image, for messages. Holds a float64 copy of `CHUNK` images at a time. The class means are
    computed first, and corrected by what rounding left (Chan et al., "corrected two-pass algorithm").
    """
    names = tuple(classes)
    _check_names(names)
    place = np.asarray(labels)
    _check(features, place, names, teacher, first)
    order = np.argsort(place, kind="stable")
    place = place[order].astype(np.intp)
    counts = np.bincount(place, minlength=len(names))
    D, C = features.shape[1], len(names)

    def chunks() -> Iterable[tuple[NDArray[np.intp], Floats, Floats | None]]:
        for start in range(0, len(order), CHUNK):
            rows = order[start : start + CHUNK]
            outputs = None
            if teacher is not None:
                outputs = np.zeros((len(rows), C))
                outputs[:, : teacher.shape[1]] = teacher[rows]
            yield place[start : start + CHUNK], features[rows].astype(np.float64), outputs

    divisor = np.maximum(counts, 1)[:, None]
    means, outputs_mean = np.zeros((C, D)), np.zeros((C, C if teacher is not None else 0))
    for of, values, outputs in chunks():
        _sum_by_class(values, of, means)
        if outputs is not None:
            _sum_by_class(outputs, of, outputs_mean)
    means /= divisor
    outputs_mean /= divisor
    left, outputs_left = np.zeros_like(means), np.zeros_like(outputs_mean)
    spread = np.zeros(C)
    scatter, sums = np.zeros((D, D)), _no_teacher(C, D)
    for of, values, outputs in chunks():
        values -= means[of]
        _sum_by_class(values, of, left)
        scatter += values.T @ values
        spread += np.bincount(of, weights=np.einsum("nd,nd->n", values, values), minlength=C)
        if outputs is not None:
            outputs -= outputs_mean[of]
            _sum_by_class(outputs, of, outputs_left)
            sums = replace(sums, cross=sums.cross + values.T @ outputs, square=sums.square + (outputs**2).sum(axis=0))
    scatter -= _outer(left, 1 / divisor[:, 0])
    if teacher is not None:
        sums = TeacherSums(
            outputs_mean + outputs_left / divisor,
            sums.cross - (left / divisor).T @ outputs_left,
            np.maximum(sums.square - (outputs_left**2 / divisor).sum(axis=0), 0),
        )
    spread = np.where(counts > 1, np.maximum(spread - (left**2 / divisor).sum(axis=1), 0), 0)
    known = sums if teacher is not None else None
    return Statistics(names, counts, means + left / divisor, spread, scatter, len(order), known)


def _sum_by_class(values: Floats, of: NDArray[np.intp], into: Floats) -> None:
    """Add each row of `values` [n, D] to the row of `into` [C, D] that `of` [n], ascending, says."""
    starts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]])
    into[of[starts]] += np.add.reduceat(values, starts, axis=0)


def _outer(rows: Floats, weight: NDArray[np.floating] | NDArray[np.int64]) -> Floats:
    """[D, D]: Σ_c weight_c row_c row_cᵀ, exactly symmetric."""
    used = weight > 0
    scaled = rows[used] * np.sqrt(weight[used])[:, None]
    product: Floats = scaled.T @ scaled
    return product


def _no_teacher(classes: int, dimension: int) -> TeacherSums:
    return TeacherSums(np.zeros((classes, classes)), np.zeros((dimension, classes)), np.zeros(classes))


def _check_names(names: tuple[str, ...]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise StatisticsError(f"class '{twice}' is named twice among {len(names)} classes, expected each once")


def _check(
    features: NDArray[np.floating],
    labels: NDArray[np.generic],
    classes: tuple[str, ...],
    teacher: NDArray[np.floating] | None,
    first: int,
) -> None:
    if features.ndim != 2 or not features.shape[1]:
        raise StatisticsError(f"features have shape {features.shape}, expected [images, dimensions]")
    if not len(features):
        raise StatisticsError("there are no images to add: expected at least one")
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise StatisticsError(
            f"labels are {labels.dtype} of shape {labels.shape}, expected {len(features)} whole numbers, one an image"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))  # type: ignore[operator]
    if len(wrong):
        raise StatisticsError(
            f"image {first + wrong[0]} has label {labels[wrong[0]]}, expected 0 to {len(classes) - 1}: the place of "
            "its class"
        )
    outputs = teacher.shape if teacher is not None else (len(features), 0)
    if len(outputs) != 2 or outputs[0] != len(features) or outputs[1] > len(classes):
        raise StatisticsError(
            f"the teacher's outputs have shape {outputs}, expected [{len(features)}, at most {len(classes)}]"
        )
    for what, values in (("feature", features), ("teacher's output", teacher)):
        for start in range(0, len(features) if values is not None else 0, CHUNK):
            assert values is not None
            good = np.isfinite(values[start : start + CHUNK]).all(axis=1)
            if not good.all():
                image = start + int(good.argmin())
                bad = values[image][~np.isfinite(values[image])][0]
                raise StatisticsError(
                    f"the {what} of image {first + image} holds {bad}, expected finite numbers: is the image damaged, "
                    "or the model in half precision?"
                )
