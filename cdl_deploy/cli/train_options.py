"""The options of `cdl train`: what their help says, and which section of the configuration each belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

ADD, DATA, MODELS, METHOD, OPTIM = "One more task", "Images and tasks", "Models", "Method", "Training"

ADDITION = ("holdout", "skip_bad")
"""Options about images that go with --add; those of training do as well."""

SECTIONS = {
    "data": ("data", "tasks", "classes_per_task", "task_file", "holdout", "class_order", "augmentation", "image_size",
             "skip_bad"),
    "models": ("teacher", "student", "teacher_weights", "student_weights", "teacher_run", "pixel_range"),
    "method": ("method", "distill", "query", "query_regulariser", "prompt_length", "key_loss_weight", "pool_size",
               "top_k", "shared_prompt_length", "merge_share", "orthogonality", "components_per_task", "alpha",
               "temperature", "dkd_target_weight", "dkd_nontarget_weight", "dkd_temperature", "fitnets_weight",
               "reviewkd_weight",
               "kd_prompt_length", "kd_prompt_blocks", "kd_prompt_start", "kd_prompt_scale", "kd_token_start",
               "kd_lr_scale", "kd_classes", "alpha_holdout", "head_start", "student_head", "calibration"),
    "optim": ("epochs", "batch_size", "lr", "schedule", "seed", "device", "precision", "compile", "resident", "workers",
              "log"),
}  # fmt: skip
"""Which section of the run's configuration an option belongs to."""


def sections(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by section of the configuration; paths as text."""
    return {
        section: {
            name: str(given[name]) if isinstance(given[name], Path) else given[name] for name in names if name in given
        }
        for section, names in SECTIONS.items()
    }


def _option(metavar: str, help: str, panel: str, name: str | None = None) -> Any:
    names = [name] if name else []
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


Run = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="The run directory, where --out does not name it.", show_default=False),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="RUN", help="The run directory to write.", show_default=False)
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="default|paper",
        help="Start from these values; a file and options go before them. Default: default.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="YAML or JSON with sections data, models, method, optim, as in run.json; options go before it.",
        show_default=False,
    ),
]
Add = Annotated[
    str | None, _option("DIR", "Learn the classes in this image folder as the next task of a finished RUN.", ADD)
]
Classes = Annotated[str | None, _option("A,B,...", "Only these of its classes, in this order.", ADD)]
AllowKnown = Annotated[bool, _option("", "Train classes that RUN knows on, with the new images.", ADD, "--allow-known")]
Data = Annotated[
    str | None,
    _option(
        "DIR|digits",
        "Image folder (train/CLASS/… with test/ or val/, or CLASS/… with --holdout), or the embedded digits. "
        "Default: digits.",
        DATA,
    ),
]
Tasks = Annotated[int | None, _option("N", "Deal the classes out to N tasks. Default: 5.", DATA)]
ClassesPerTask = Annotated[int | None, _option("N", "Or: N classes a task.", DATA)]
TaskFile = Annotated[Path | None, _option("FILE", "Or: a YAML list of tasks, each a list of classes.", DATA)]
Holdout = Annotated[float | None, _option("SHARE", "Hold out this share of every class, such as 0.2.", DATA)]
ClassOrder = Annotated[str | None, _option("shuffled|natural", "Default: shuffled, by the seed.", DATA)]
Augmentation = Annotated[
    str | None, _option("auto|photo|gentle|none", "Random crops and flips. Default: auto, by the data.", DATA)
]
ImageSize = Annotated[int | None, _option("PIXELS", "Side of the images. Default: the student's own.", DATA)]
SkipBad = Annotated[bool, _option("", "Go on without unreadable images.", DATA, "--skip-bad")]
Teacher = Annotated[str | None, _option("MODEL", "A plain ViT by its timm tag. Default: mini_teacher.", MODELS)]
Student = Annotated[str | None, _option("MODEL", "The same, smaller. Default: mini_student.", MODELS)]
TeacherWeights = Annotated[Path | None, _option("FILE", "Its weights. Default: from the hub.", MODELS)]
StudentWeights = Annotated[Path | None, _option("FILE", "Its weights. Default: from the hub.", MODELS)]
TeacherRun = Annotated[
    Path | None, _option("RUN", "Take the teacher of this run, task by task, instead of teaching one.", MODELS)
]
PixelRange = Annotated[
    str | None, _option("model|unit", "Pixels by the weights' mean and std, or in 0 to 1. Default: model.", MODELS)
]
Method = Annotated[str | None, _option("NAME", "coda, l2p, dualprompt or apt. Default: coda.", METHOD)]
Distill = Annotated[
    str | None,
    _option("NAME", "kd, dkd, fitnets, reviewkd, deit, kdp; none: the student alone. Default: kdp.", METHOD),
]
Query = Annotated[
    str | None,
    _option("full|block:K", "Choose prompts after a pass of their own, or after K blocks. Default: full.", METHOD),
]
QueryRegulariser = Annotated[
    float | None, _option("WEIGHT", "Pull block:K's choice towards that of full. Default: 0.", METHOD)
]
PromptLength = Annotated[
    int | None, _option("N", "Rows of a prompt, twice. Default: L2P and DualPrompt 10, CODA 4.", METHOD)
]
KeyLossWeight = Annotated[
    float | None, _option("WEIGHT", "L2P, DualPrompt: of pulling keys to queries. Default: 1.", METHOD)
]
PoolSize = Annotated[int | None, _option("N", "L2P: prompts in the pool. Default: 30.", METHOD)]
TopK = Annotated[int | None, _option("N", "L2P: prompts an image gets. Default: 5.", METHOD)]
SharedPromptLength = Annotated[
    int | None, _option("N", "DualPrompt: rows of a shared prompt, twice. Default: 3.", METHOD)
]
MergeShare = Annotated[
    float | None, _option("SHARE", "APT: what merged prompts keep of earlier tasks. Default: 0.7.", METHOD)
]
Orthogonality = Annotated[
    float | None, _option("WEIGHT", "CODA: of keeping components orthogonal. Default: 0.", METHOD)
]
ComponentsPerTask = Annotated[int | None, _option("N", "CODA components a task. Default: 10.", METHOD)]
Alpha = Annotated[float | None, _option("SHARE", "Weight of the teacher in loss and prediction. Default: 0.5.", METHOD)]
Temperature = Annotated[float | None, _option("T", "Of the distillation. Default: 2.", METHOD)]
DkdTargetWeight = Annotated[float | None, _option("WEIGHT", "DKD: of TCKD. Default: 1.", METHOD)]
DkdNontargetWeight = Annotated[float | None, _option("WEIGHT", "DKD: of NCKD. Default: 4.", METHOD)]
DkdTemperature = Annotated[float | None, _option("T", "DKD: a temperature of its own. Default: 4.", METHOD)]
FitnetsWeight = Annotated[float | None, _option("WEIGHT", "FitNets: of the feature term. Default: 0.1.", METHOD)]
ReviewkdWeight = Annotated[float | None, _option("WEIGHT", "ReviewKD: of the feature term. Default: 0.2.", METHOD)]
KdPromptLength = Annotated[int | None, _option("N", "KD prompt rows a block, twice. Default: 3.", METHOD)]
KdTokenStart = Annotated[
    str | None,
    _option(
        "class-token|uniform|none",
        "How the KD token starts; without one the KD head reads the class token. Default: class-token.",
        METHOD,
    ),
]
KdPromptBlocks = Annotated[
    int | None, _option("N", "Blocks with KD prompt rows, from the second on. Default: all.", METHOD)
]
KdPromptStart = Annotated[
    str | None, _option("uniform|orthogonal", "How KD prompt rows start. Default: uniform.", METHOD)
]
KdPromptScale = Annotated[float | None, _option("FACTOR", "On the rows KD prompts start as. Default: 1.", METHOD)]
KdClasses = Annotated[
    str | None,
    _option("task|seen", "kd, kdp, deit: distil logits of the task's classes, or of all seen. Default: task.", METHOD),
]
AlphaHoldout = Annotated[
    float | None,
    _option("SHARE", "Images held out to choose the prediction's alpha by task, such as 0.1. Default: 0.", METHOD),
]
StudentHead = Annotated[str | None, _option("method|cosine", "Kind of the student's heads. Default: method.", METHOD)]
Calibration = Annotated[
    str | None,
    _option(
        "none|statistics",
        "Calibrate the student's logits between tasks, from feature statistics without images. Default: none.",
        METHOD,
    ),
]
KdLrScale = Annotated[
    float | None, _option("SHARE", "Share of the learning rate for KD token and prompts. Default: 0.1.", METHOD)
]
HeadStart = Annotated[str | None, _option("zeros|linear", "How heads start. Default: zeros.", METHOD)]
Epochs = Annotated[int | None, _option("N", "Epochs a task, teacher and student each. Default: 20.", OPTIM)]
BatchSize = Annotated[
    int | None, _option("N", "Images a step. Default: 64, fewer where a task has under 1,024 images.", OPTIM)
]
Lr = Annotated[float | None, _option("LR", "Adam's first learning rate. Default: 0.001.", OPTIM)]
Schedule = Annotated[
    str | None, _option("cosine|cosine-late", "Learning rate over the epochs. Default: cosine.", OPTIM)
]
Seed = Annotated[int | None, _option("N", "Everything random follows from it. Default: 0.", OPTIM)]
Device = Annotated[str | None, _option("NAME", "auto, cpu, cuda, mps. Default: auto.", OPTIM)]
Precision = Annotated[
    str | None, _option("auto|fp32|bf16", "Of matrix products. Default: auto, bf16 on GPUs that have it.", OPTIM)
]
Compile = Annotated[bool, _option("", "Compile the backbones: slow to start, then faster.", OPTIM, "--compile")]
Resident = Annotated[
    bool,
    typer.Option(
        "--resident",
        help="Keep all images on the device, decoded once, and augment there: for a GPU and small images.",
        rich_help_panel=OPTIM,
    ),
]
Workers = Annotated[int | None, _option("N", "Processes that load images. Default: by the machine, 0 on a CPU.", OPTIM)]
Log = Annotated[
    str | None,
    _option("tensorboard|wandb", "Curves in RUN/logs as well; both with a comma between. Default: none.", OPTIM),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted RUN as it was configured.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show tasks, parameters, time and memory of a new run; write nothing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the run's record, or the plan, as JSON.")]
