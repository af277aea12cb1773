"""What a learner with a closed-form head knows about images, on its way into a file: sums, features, distance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cdl_deploy.closed_form.features import FeatureMap
from cdl_deploy.closed_form.head_rule import HeadRule
from cdl_deploy.closed_form.history import History
from cdl_deploy.closed_form.mahalanobis import Mahalanobis, mahalanobis
from cdl_deploy.closed_form.statistics import Statistics
from cdl_deploy.closed_form.statistics_file import StoredStatistics, write_statistics
from cdl_deploy.data.images import FloatArray
from cdl_deploy.run.record import RunRecord
from cdl_deploy.runtime.bundle import statistics_path
from cdl_deploy.runtime.bundle_parts import Features, RandomFeatures, StatisticsFile
from cdl_deploy.training.backbones.protocol import BlockPrompt
from cdl_deploy.training.models.learner import Learner, QueryEncoder, learner_output
from cdl_deploy.training.shapes import Pixels


@dataclass(frozen=True)
class LearnedSums:
    """Of one learner."""

    statistics: Statistics
    """Of the classes in the file, by their names."""
    map: FeatureMap
    """What φ is."""
    rule: HeadRule
    """The head."""
    width: int
    """Numbers that the head reads."""
    distance: Mahalanobis

    def features(self, sha256: str) -> Features:
        """How a file describes them."""
        projection = self.map.projection
        random = None if projection is None else RandomFeatures(projection.features, projection.seed)
        return Features(self.map.name, self.width, self.map.normalise, random, sha256)

    def write(self, model: Path, features: Features) -> StatisticsFile:
        """Write the sums beside `model`, in float64: what is added to them later loses no digit."""
        path = statistics_path(model)
        stored = StoredStatistics(History(self.statistics), self.map, self.rule, features.sha256)
        return StatisticsFile(path.name, write_statistics(path, stored))


def sums_of(record: RunRecord, learner: Learner) -> LearnedSums | None:
    """None for a learned head."""
    head = learner.closed_form
    if head is None:
        return None
    seen = head.statistics.seen()
    named = replace(seen, classes=tuple(record.classes[int(position)] for position in seen.classes))
    statistics = named.arranged(record.known_classes)
    width = head.width * len(head.features)
    return LearnedSums(
        statistics, head.map, head.rule, width, mahalanobis(statistics, head.rule.shrinkage, rounded=True)
    )


@torch.no_grad()
def trained_features(
    encoder: QueryEncoder, learner: Learner, images: Pixels, prompts: dict[int, BlockPrompt] | None = None
) -> FloatArray:
    """[n, F]: what the trained model's closed-form head reads."""
    rows = [
        learner.closed_form_features(learner_output(encoder, learner, chunk, prompts=prompts))
        for chunk in images.split(64)
    ]
    found: FloatArray = torch.cat(rows).numpy()
    return found
