"""The metrics of a run, under the name they had before they moved to `cdl_deploy.run.metrics`."""

from cdl_deploy.run.metrics import *  # noqa: F403
