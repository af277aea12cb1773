"""The hub's weights without its patience: where its host cannot be reached at all, say so at once. Snapshots by name.

huggingface_hub tries every file six times and logs each try, which takes most of a minute and a dozen lines where there
is no network. A network that is merely slow keeps its six tries; it is never asked to answer faster.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from timm.models import get_pretrained_cfg

from cdl_deploy.errors import WeightsError
from cdl_deploy.training.backbones.weights_files.stored import IN_A_FOLDER, shards

LOGGERS = ("huggingface_hub", "httpx", "httpx2", "timm")
FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm looks for, in its order."""
NAME = re.compile(r"(?:hf[_-]hub:|(?=timm/))(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
BESIDE = ("config.json", "preprocessor_config.json", "open_clip_config.json")
"""What says how pixels are to be, and is fetched with the weights."""


def unreachable() -> str | None:
    """Why the hub's host cannot be reached, or None where it can be, or might be by way of a proxy.

    Only what the system refuses is believed: an unknown host, no route, a refused connection. Silence is left to the
    hub's own timeouts.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address = urlsplit(constants.ENDPOINT)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    if address.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return None
    try:
        with socket.create_connection((host, port), timeout=10):
            return None
    except TimeoutError:
        return None
    except OSError as error:
        return f"{host}: {error.strerror or error}"


def cached_weights(model: str) -> str | None:
    """The file that an earlier download of this timm model left, or None."""
    config = get_pretrained_cfg(model, allow_unregistered=True)
    if config is None or not config.hf_hub_id:
        return None
    for name in (config.hf_hub_filename, *FILES):
        found = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name) if name else None
        if isinstance(found, str) and os.path.exists(found):
            return found
    return None


def on_the_hub(model: str) -> bool:
    """Whether timm would ask the hub for this model's weights."""
    config = get_pretrained_cfg(model, allow_unregistered=True)
    return config is not None and bool(config.hf_hub_id) and not config.file


def is_name(weights: str) -> bool:
    """Whether this is a name on the hub, `hf_hub:OWNER/NAME` or `timm/NAME`, and no file or folder here."""
    return NAME.fullmatch(weights) is not None and not Path(weights).exists()


def located(weights: str) -> Path:
    """Where the weights lie: as given, or fetched from the hub, or left by an earlier download where it is away."""
    named = NAME.fullmatch(weights)
    if named is None or Path(weights).exists():
        return Path(weights)
    repository, revision = named["repository"], named["revision"]
    reason = unreachable()

    def fetched(name: str) -> Path | None:
        try:
            with quiet():
                return Path(
                    huggingface_hub.hf_hub_download(
                        repository, name, revision=revision, local_files_only=reason is not None
                    )
                )
        except EntryNotFoundError:  # there, or in the cache where the hub is away
            return None

    try:
        file = next((found for name in IN_A_FOLDER if (found := fetched(name)) is not None), None)
        if file is None and reason is not None:
            raise WeightsError(
                f"cannot get '{weights}': the hub cannot be reached ({reason}) and no earlier download is here; "
                "check the network, or give a file"
            )
        if file is None:
            raise WeightsError(f"'{weights}' has no weights that are known: expected {', '.join(IN_A_FOLDER)}")
        for name in BESIDE:
            fetched(name)
        for shard in shards(file, there=False) if file.name.endswith(".index.json") else ():
            fetched(shard.name)
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001  hub, network and disk errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"cannot get '{weights}' from the hub ({type(error).__name__}: {reason}): check the name and the network, "
            "or give a file"
        ) from None
    return file


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of every try: what fails in the end is raised, and told once."""
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
