"""The configuration of a run, under the name it had before it moved to `cdl_deploy.run.config`."""

from cdl_deploy.run.config import *  # noqa: F403
