"""One model file into the next: what a task changed, instead of the whole file (docs/updates.md)."""

from cdl_deploy.update.patch import apply_updates, make_update

__all__ = ["apply_updates", "make_update"]
