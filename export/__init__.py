"""Run directory → folded ONNX bundle (torch, onnx)."""

import sys
from types import ModuleType
from typing import Any

from cdl_deploy.export.export import export_run, left_behind
from cdl_deploy.export.exported import Exported
from cdl_deploy.export.fixed_shapes import parse_image_size
from cdl_deploy.export.options import ExportOptions
from cdl_deploy.export.variants import Shrink
from cdl_deploy.targets.target_options import options_for_target

__all__ = ["ExportOptions", "Exported", "Shrink", "export_run", "left_behind", "options_for_target", "parse_image_size"]


class _Callable(ModuleType):
    """Importing this package gives `cdl_deploy` the attribute `export`, which the function `cdl_deploy.export` was
    until then: so that it can be called before and after, the module is called as the function is.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        from cdl_deploy.api import export

        return export(*args, **options)


sys.modules[__name__].__class__ = _Callable
