"""What the continual-learning methods, the distillations and the heads can be told: a class of options each.

The class that computes has the same class of options as its `Config`. They are here, and not beside it, since the
command line reads them without PyTorch. A package of its own registers its class by an entry point: see plugins.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdl_deploy.errors import OptionError
from cdl_deploy.run.feature_parts import EXPECTED, parts_of
from cdl_deploy.run.options import Options, option

CALIBRATIONS = ("none", "statistics")
HEAD_STARTS = ("zeros", "linear")
KD_CLASSES = ("task", "seen")
KD_PROMPT_STARTS = ("uniform", "orthogonal")
KD_TOKEN_STARTS = ("class-token", "uniform", "none")
HEADS = ("learned", "slda", "ridge", "ncm")
ADAPT = ("all", "first", "none")
UNSEEN_KEYS = ("masked", "chosen")
COMPONENT_STARTS = ("exact", "one-pass")
APT_TEACHERS = ("trained", "merged")
PRIORS = ("uniform", "observed")
REHEAD_OPTIONS = (
    "head", "teacher_head", "features", "teacher_features", "random_features", "priors", "shrinkage", "ridge_penalty",
    "ridge_teacher_weight",
)  # fmt: skip
"""What `cdl head` may change of a finished run: what closed-form heads are, and nothing that trains."""

# ---- methods ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptOptions(Options):
    """What methods have in common that choose prompts."""

    prompt_length: int | None = option(
        None,
        "Prompt length, of keys and of values.",
        metavar="N",
        low=1,
        default_text="L2P and DualPrompt 10, CODA 4",
        teacher=True,
        was="prompt_rows",
    )
    """Length of a prompt for the keys, and as much for the values; by default the method's own."""


@dataclass(frozen=True)
class KeyOptions(PromptOptions):
    """Those of methods that learn keys by a loss of their own."""

    key_loss_weight: float = option(
        1.0,
        "L2P, DualPrompt: weight of the key loss.",
        metavar="WEIGHT",
        low=0,
        teacher=True,
        was="pull_weight",
    )
    """Weight of the loss that pulls the chosen keys towards the query; 2 in the paper's published runs."""


@dataclass(frozen=True)
class L2PConfig(KeyOptions):
    """L2P."""

    pool_size: int = option(30, "L2P: prompts in the pool.", metavar="N", low=1, teacher=True)
    """Prompts in the pool."""
    top_k: int = option(5, "L2P: prompts an image gets.", metavar="N", low=1, teacher=True)
    """Prompts an image gets."""

    def check(self) -> None:
        """An image cannot get more prompts than there are."""
        if self.top_k > self.pool_size:
            raise OptionError(f"--top-k {self.top_k} is more than the --pool-size of {self.pool_size}: ask for fewer")


@dataclass(frozen=True)
class DualPromptConfig(KeyOptions):
    """DualPrompt."""

    shared_prompt_length: int = option(
        3,
        "DualPrompt: length of the shared prompts, of keys and of values.",
        metavar="N",
        low=1,
        teacher=True,
        was="shared_prompt_rows",
    )
    """Length for the keys, and as much for the values, of the prompts that all tasks share."""
    unseen_keys: str = option(
        "masked", "DualPrompt: keys of tasks to come cannot be chosen, or can.", choices=UNSEEN_KEYS, teacher=True
    )
    """`masked`: an image gets the entry of a task that has come. `chosen`: of any, as in the paper; the entries of
    tasks to come are there from the beginning, as they were drawn."""
    entries: int | None = option(
        None,
        "DualPrompt: entries there from the beginning, with --unseen-keys chosen.",
        metavar="N",
        low=1,
        default_text="one a task",
        teacher=True,
    )
    """How many tasks have an entry from the beginning where keys of tasks to come can be chosen."""

    def check(self) -> None:
        """Entries of tasks to come are of use only where they can be chosen."""
        if self.entries is not None and self.unseen_keys == "masked":
            raise OptionError("--entries is of --unseen-keys chosen: give it as well, or leave --entries out")


@dataclass(frozen=True)
class CodaConfig(PromptOptions):
    """CODA-Prompt."""

    components_per_task: int = option(10, "CODA: components a task.", metavar="N", low=1, teacher=True)
    """Components each task brings (the paper's 100 over 10 tasks)."""
    components: int | None = option(
        None,
        "CODA: components shared out among the tasks, rounded down, in place of --components-per-task.",
        metavar="N",
        low=1,
        teacher=True,
    )
    """Components of all planned tasks together. `components_per_task` follows from it when a run begins; tasks that are
    added later bring as many."""
    component_start: str = option(
        "exact",
        "CODA: new components orthogonal to all before, or less their projections on each, once.",
        choices=COMPONENT_STARTS,
        teacher=True,
    )
    """`exact`: orthogonal to the span of all earlier ones. `one-pass`, as in the paper: less its projection on each of
    them, as if these were orthogonal to one another, which they are no longer once trained."""
    orthogonality: float = option(
        0.0,
        "CODA: weight of keeping components orthogonal.",
        metavar="WEIGHT",
        low=0,
        teacher=True,
    )
    """μ, weight of the loss that keeps keys, attentions and prompts orthogonal; the paper's runs have 0."""


@dataclass(frozen=True)
class APTConfig(Options):
    """APT."""

    merge_share: float = option(
        0.7, "APT: what merged prompts keep of earlier tasks.", metavar="SHARE", low=0, high=1, teacher=True
    )
    """e, what the merged prompts keep of themselves when a task ends; the rest is what the task has learned."""
    apt_teacher: str = option(
        "trained",
        "APT: the teacher distils with the prompts it has trained, or with those merged before the task.",
        choices=APT_TEACHERS,
        teacher=True,
    )
    """`trained`: what the teacher has just learned. `merged`, as in the paper: the average up to the task before, in
    the first task zeros."""


# ---- distillations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlphaOptions(Options):
    """What all distillations have in common."""

    group = "Distillation"

    alpha: float = option(0.5, "Weight of the teacher in loss and prediction.", metavar="SHARE", low=0, high=1)
    """α: weight of the teacher in the loss, and of the KD head in the prediction."""


@dataclass(frozen=True)
class KDConfig(AlphaOptions):
    """KD on the class head; also a part of FitNets, ReviewKD, DeiT and KDP."""

    group = "Distillation"

    temperature: float = option(2.0, "Temperature of the distillation.", metavar="T", above=0)
    """T of the distillation loss."""
    kd_classes: str = option(
        "task", "kd, kdp, deit: distil logits of the task's classes, or of all seen.", choices=KD_CLASSES
    )
    """The teacher's logits that are distilled: of the `task`'s classes, as in the paper, or of all classes `seen`. Rows
    of earlier tasks stand still either way."""


@dataclass(frozen=True)
class DKDConfig(AlphaOptions):
    """DKD."""

    group = "Distillation"

    dkd_target_weight: float = option(1.0, "DKD: weight of TCKD.", metavar="WEIGHT", low=0)
    """Weight of TCKD."""
    dkd_nontarget_weight: float = option(4.0, "DKD: weight of NCKD.", metavar="WEIGHT", low=0)
    """Weight of NCKD."""
    dkd_temperature: float = option(4.0, "DKD: a temperature of its own.", metavar="T", above=0)
    """Its own T."""


@dataclass(frozen=True)
class FitNetsConfig(KDConfig):
    """FitNets."""

    group = "Distillation"

    fitnets_weight: float = option(0.1, "FitNets: weight of the feature term.", metavar="WEIGHT", low=0)
    """Weight of the feature term; 0.2 in the paper's published runs."""


@dataclass(frozen=True)
class ReviewKDConfig(KDConfig):
    """ReviewKD."""

    group = "Distillation"

    reviewkd_weight: float = option(0.2, "ReviewKD: weight of the feature term.", metavar="WEIGHT", low=0)
    """Weight of the feature term; 0.4 in the paper's published runs."""


@dataclass(frozen=True)
class DeiTConfig(KDConfig):
    """DeiT's distillation token; also a part of KDP."""

    group = "Distillation"

    kd_lr_scale: float = option(0.1, "Share of the learning rate for KD token and prompts.", metavar="SHARE", low=0)
    """Share of the learning rate that KD token and KD prompts get; the paper's is 1."""
    alpha_holdout: float = option(
        0.0,
        "Images held out to choose the prediction's alpha by task, such as 0.1.",
        metavar="SHARE",
        low=0,
        below=1,
        expected="a share from 0 to below 1: try 0.1",
    )
    """Share of every task's training images the student does not train on; they choose the α of the prediction for the
    task's classes. With 0 it is `alpha`."""


@dataclass(frozen=True)
class KDPConfig(DeiTConfig):
    """KDP: the KD token, and KD prompts."""

    group = "Distillation"

    kd_prompt_length: int = option(
        3, "KDP: length of the KD prompts, of keys and of values.", metavar="N", low=0, was="kd_prompt_rows"
    )
    """Length for the keys, and as much for the values, in every block after the first ("length 6")."""
    kd_prompt_blocks: int | None = option(
        None, "KDP: blocks with KD prompts, from the second on.", metavar="N", low=0, default_text="all"
    )
    """How many blocks get KD prompts, counted from the one after the first."""
    kd_prompt_start: str = option("uniform", "KDP: how KD prompts start.", choices=KD_PROMPT_STARTS)
    """KD prompts start `uniform` in [0, 1), as in the paper, or `orthogonal` to each other in every block and of unit
    length."""
    kd_prompt_scale: float = option(1.0, "KDP: factor on what KD prompts start as.", metavar="FACTOR", low=0)
    """Factor on what KD prompts start as."""
    kd_token_start: str = option(
        "class-token",
        "KDP: how the KD token starts; without one the KD head reads the class token.",
        choices=KD_TOKEN_STARTS,
    )
    """The KD token starts as the backbone's class token (as an average patch where there is none), or `uniform` in
    [0, 1) as in the paper. With `none` there is no such token, and the KD head reads the class token: the extra head
    alone."""


# ---- heads -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadOptions(Options):
    """The heads of both learners, and the student's own.

    A head is learned by gradient, task by task, or it is closed form: solved from sums over the images of every task.
    """

    group = "Head"

    head: str = option(
        "learned",
        "What classifies: a Gaussian classifier, ridge regression or the nearest mean in closed form, or learned.",
        choices=HEADS,
        default_text="slda; learned with --preset paper",
        teacher=True,
    )
    """`slda` (one Gaussian a class, one covariance), `ridge` or `ncm` (nearest class mean): solved from sums of
    features, which forget nothing. `learned`: by gradient, as in the paper."""
    teacher_head: str | None = option(
        None, "The teacher's, where it differs.", choices=HEADS, default_text="as --head", teacher=True
    )
    """What the teacher classifies with. It always distils with its learned head."""
    features: str | None = option(
        None,
        "What a closed-form head reads: class, patches, patches@K of an earlier block K, from 0, and kd, joined by +.",
        metavar="class+patches",
        default_text="class+patches, and kd where there is a KD token",
        teacher=True,
    )
    """`class` token, mean of the `patches`, and `kd` token after the final norm, together; a teacher has no `kd`.
    `patches@8`: the mean of the patches after block 8, counted from 0, through the same norm. What a class token was
    never trained to tell may still be in earlier blocks."""
    teacher_features: str | None = option(
        None,
        "What the teacher's closed-form head reads, where it differs: its blocks are others.",
        metavar="class+patches",
        default_text="as --features, without kd",
        teacher=True,
    )
    random_features: int = option(
        0, "Project features to M random ones with a ReLU first (RanPAC).", metavar="M", low=0, teacher=True
    )
    """M of RanPAC's random projection; 0 for none. It is drawn from the run's seed."""
    adapt: str | None = option(
        None,
        "Tasks in which prompts and distillation train; any other task is one pass over its images.",
        choices=ADAPT,
        default_text="first; all with a learned head, none where nothing could train",
        teacher=True,
    )
    """`all`; the `first` task, after which the features stand still; or `none`: the backbone as it is, no prompts."""
    priors: str = option("uniform", "slda: every class as likely, or as observed.", choices=PRIORS, teacher=True)
    """π of slda: 1/C, or the share of the images."""
    shrinkage: float | None = option(
        None, "slda: rho of its covariance.", metavar="SHARE", low=0, high=1, default_text="OAS's", teacher=True
    )
    """ρ; by default what OAS says of the sums."""
    ridge_penalty: float | None = option(
        None, "ridge: lambda.", metavar="WEIGHT", low=0, default_text="by cross-validation", teacher=True
    )
    """λ; by default what generalised cross-validation says of the sums."""
    ridge_teacher_weight: float = option(
        0.0, "ridge: share of the teacher's probabilities in the targets.", metavar="SHARE", low=0, high=1
    )
    """β of the student's targets (1−β) · one-hot + β · teacher."""
    head_start: str = option("zeros", "How heads start.", choices=HEAD_STARTS, teacher=True)
    """Heads start at `zeros`, or `linear`, drawn as `torch.nn.Linear` does, as in the paper."""
    student_head: str = option("method", "Kind of the student's heads.", metavar="method|cosine|…")
    """The student's heads: as its `method` has them, linear but for APT, or `cosine`, normalised as APT's are, or any
    other name in `cdl_deploy.training.heads.HEADS`."""
    calibration: str = option(
        "none",
        "Calibrate the student's logits between tasks, from feature statistics without images.",
        choices=CALIBRATIONS,
    )
    """`statistics`: after every task the student's logits are scaled and shifted, task by task, by what Gaussians of
    each class's features say. No image is kept. `none`: they are answered with as they are."""

    def check(self) -> None:
        """The features must be some that there are, and what is said of a head must fit it."""
        for flag, text in (("--features", self.features), ("--teacher-features", self.teacher_features)):
            if text is not None and parts_of(text) is None:
                raise OptionError(f"{flag} is '{text}', {EXPECTED}")
        if "kd" in (self.teacher_features or "").split("+"):
            raise OptionError(f"--teacher-features {self.teacher_features}: a teacher has no KD token: leave kd out")
        kinds = {self.head, self.teacher_head or self.head}
        if kinds == {"learned"}:
            for name in (
                "features",
                "teacher_features",
                "random_features",
                "shrinkage",
                "ridge_penalty",
                "ridge_teacher_weight",
            ):
                if getattr(self, name):
                    flag = f"--{name.replace('_', '-')}"
                    raise OptionError(f"{flag} is of closed-form heads: add --head slda, ridge or ncm, or leave it out")
        if "learned" in kinds and self.adapt in ("first", "none"):
            raise OptionError(
                f"--adapt {self.adapt} leaves tasks untrained, and a learned head learns in every task: "
                "give --head slda, ridge or ncm for student and teacher, or leave it out"
            )
        if self.ridge_teacher_weight and self.head != "ridge":
            raise OptionError(f"--ridge-teacher-weight is of --head ridge, not of {self.head}: leave it out")
        if self.calibration != "none" and self.head != "learned":
            raise OptionError(
                f"--calibration is of learned heads: the head {self.head} has a temperature of its own, leave it out"
            )

    @property
    def heads(self) -> dict[str, str]:
        """Kind of each learner's head, by role."""
        return {"student": self.head, "teacher": self.teacher_head or self.head}


METHOD_CONFIGS: dict[str, type[Options]] = {
    "none": Options, "l2p": L2PConfig, "dualprompt": DualPromptConfig, "coda": CodaConfig, "apt": APTConfig,
}  # fmt: skip
DISTILLATION_CONFIGS: dict[str, type[Options]] = {
    "none": Options, "kd": KDConfig, "dkd": DKDConfig, "fitnets": FitNetsConfig, "reviewkd": ReviewKDConfig,
    "deit": DeiTConfig, "kdp": KDPConfig,
}  # fmt: skip
