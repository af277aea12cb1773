"""Whether this checkout still has its symbolic links.

training/ and export/ stand beside cdl_deploy/, which reaches them as `cdl_deploy/training → ../training` and
`cdl_deploy/export → ../export`. A zip file, and git on Windows unless told otherwise, turn such a link into a text file
that holds its target. An installed package has folders there, and nothing to be checked.
"""

from __future__ import annotations

from pathlib import Path

from cdl_deploy.errors import CdlError

LINKED = ("training", "export")
"""The subpackages that are links in a checkout."""

REPAIR = (
    "git config core.symlinks true && git checkout -- cdl_deploy/training cdl_deploy/export",
    "ln -sf ../training ../export cdl_deploy/",
)
"""What makes the links again, in the root of the checkout: with git, and without."""


class CheckoutError(CdlError):
    """A checkout whose symbolic links are lost."""


def check_checkout(package: Path = Path(__file__).parent) -> None:
    """Raise CheckoutError unless the folder `package` has training/ and export/, by links or otherwise."""
    for name in LINKED:
        if not (package / name).is_dir():
            found = "a file" if (package / name).exists() else "missing"
            raise CheckoutError(
                f"{package / name} is {found}, expected a symbolic link to ../{name}: zip files and Windows lose them. "
                f"In the root of the checkout: {REPAIR[0]} (on Windows switch its Developer Mode on first), "
                f"or without git: {REPAIR[1]}"
            )
