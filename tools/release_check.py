"""Whether version, citation and changelog agree on a release: `python tools/release_check.py v0.1.0`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def disagreements(tag: str, project: Path = PROJECT) -> list[str]:
    """What would be wrong with a release under `tag`, a line each; none if all is well."""
    version = tag.removeprefix("v")
    found: list[str] = []
    if tag != f"v{version}" or not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        found.append(f"the tag is {tag}, expected v and a version, such as v1.2.3")
    written = re.search(r'__version__ = "(.*)"', (project / "cdl_deploy/version.py").read_text(encoding="utf-8"))
    if written is None or written[1] != version:
        found.append(f"cdl_deploy/version.py says {written[1] if written else 'nothing'}, expected {version}")
    cited = re.search(r"^version: (\S+)$", (project / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1] != version:
        found.append(f"CITATION.cff says {cited[1] if cited else 'nothing'}, expected {version}")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(heading, (project / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE):
        found.append(f"CHANGELOG.md has no dated section, expected a line ## [{version}] - YYYY-MM-DD")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit("\n".join(disagreements(sys.argv[1])) or None)
