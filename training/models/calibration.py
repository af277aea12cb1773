"""TaskCalibration of the answers between tasks, from statistics of the features and without images.

Every task is learned with a cross-entropy over its own classes, so nothing says how its logits compare with those of
other tasks. As SLCA does for fine-tuned networks (Zhang et al., ICCV 2023, arXiv 2303.05118), each class leaves a
Gaussian of the features the heads read, and features drawn from all of them stand in for the images that are gone. What
is fitted to them is a scale and an offset a task, which the exported heads absorb.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cdl_deploy.training.growing import ResizableBuffers
from cdl_deploy.training.seeds import generator
from cdl_deploy.training.shapes import Logits, Tokens

DRAWN_PER_CLASS = 100
STEPS = 50


class TaskCalibration(ResizableBuffers):
    """logits · scale [C] + offset [C]; one value of each a task.

    `mean` [C, n, D] are the features' means by class, `scatter` [n·D, n·D] the sum of their centred products over all
    images, `count` how many these were: one covariance for all classes.
    """

    scale: Tensor
    offset: Tensor
    mean: Tensor
    scatter: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__(
            scale=torch.empty(0),
            offset=torch.empty(0),
            mean=torch.empty(0, 0, 0),
            scatter=torch.empty(0, 0),
            count=torch.zeros(()),
        )

    def begin_task(self, new_classes: int) -> None:
        """The classes of one more task: answered as the heads say until `fit` is called."""
        self.scale = torch.cat([self.scale, self.scale.new_ones(new_classes)])
        self.offset = torch.cat([self.offset, self.offset.new_zeros(new_classes)])

    def forward(self, logits: Logits) -> Logits:
        return logits * self.scale + self.offset

    def largest_sum(self, logits: Logits) -> float:
        """Of the sizes of what adds up to one of these logits [B, C], which are calibrated: all of it is rounded."""
        return float(((logits - self.offset).abs() + self.offset.abs()).max())

    @torch.no_grad()
    def remember(self, features: Tokens, labels: Tensor) -> None:
        """Take the statistics of a task: features [B, n, D] of its training images and their labels [B].

        Classes that were known get the mean of their new images.
        """
        if not len(self.mean):
            size = features[0].numel()
            self.mean = features.new_zeros(0, *features.shape[1:])
            self.scatter = features.new_zeros(size, size)
        missing = len(self.scale) - len(self.mean)
        self.mean = torch.cat([self.mean, self.mean.new_zeros(missing, *self.mean.shape[1:])])
        for label in labels.unique().tolist():
            own = features[labels == label]
            self.mean[label] = own.mean(dim=0)
            centred = (own - self.mean[label]).flatten(1)
            self.scatter += centred.T @ centred
            self.count += len(own)

    def fit(self, answer: Callable[[Tokens], Logits], tasks: Sequence[int], seed: int) -> None:
        """Scales and offsets that lower the cross-entropy, over all classes, of features drawn for every class.

        `answer` gives the uncalibrated logits [B, C] of features [B, n, D]; `tasks` are the class counts.
        """
        classes, size = len(self.mean), self.scatter.shape[0]
        covariance = self.scatter / self.count + 1e-6 * torch.eye(size).to(self.scatter)
        noise = torch.randn(classes, DRAWN_PER_CLASS, size, generator=generator(seed, "calibration", len(tasks)))
        drawn = self.mean.flatten(1)[:, None] + noise.to(self.mean) @ torch.linalg.cholesky(covariance).T
        with torch.no_grad():
            logits = answer(drawn.reshape(-1, *self.mean.shape[1:])).double()
        labels = torch.arange(classes, device=logits.device).repeat_interleave(DRAWN_PER_CLASS)
        task_of = torch.arange(len(tasks)).repeat_interleave(torch.tensor(tasks)).to(logits.device)
        scale = torch.zeros(len(tasks), dtype=torch.float64, device=logits.device, requires_grad=True)
        offset = torch.zeros_like(scale, requires_grad=True)
        search = torch.optim.LBFGS([scale, offset], max_iter=STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            search.zero_grad()
            loss = F.cross_entropy(logits * scale.exp()[task_of] + offset[task_of], labels)
            loss.backward()
            return loss

        search.step(closure)
        self.scale = scale.detach().exp()[task_of].to(self.scale)
        self.offset = offset.detach()[task_of].to(self.offset)
