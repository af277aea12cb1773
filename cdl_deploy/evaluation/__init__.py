"""How good an exported model is, and what it selects: from the file alone, with what a device installs.

from cdl_deploy import Classifier
from cdl_deploy.evaluation import evaluate, labelled_folder
report = evaluate(Classifier("student.onnx"), labelled_folder(Path("photos")))
print(report.accuracy, report.calibration_error)
"""

from cdl_deploy.data.labelled import LabelledImages, known_images, labelled_folder
from cdl_deploy.evaluation.agreement import Agreement
from cdl_deploy.evaluation.evaluate import evaluate
from cdl_deploy.evaluation.inspection import Inspection, inspect_model
from cdl_deploy.evaluation.outputs import ImageOutput, model_outputs
from cdl_deploy.evaluation.report import ClassResult, Evaluation, TaskResult
from cdl_deploy.evaluation.selection import PromptUse, PromptUseRow, measure_selection

__all__ = [
    "Agreement",
    "ClassResult",
    "Evaluation",
    "ImageOutput",
    "Inspection",
    "LabelledImages",
    "PromptUse",
    "PromptUseRow",
    "TaskResult",
    "evaluate",
    "inspect_model",
    "known_images",
    "labelled_folder",
    "measure_selection",
    "model_outputs",
]
