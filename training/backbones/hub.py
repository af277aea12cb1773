"""The hub's weights without its patience: where its host cannot be reached at all, say so at once.

huggingface_hub tries every file six times and logs each try, which takes most of a minute and a dozen lines where there
is no network. A network that is merely slow keeps its six tries; it is never asked to answer faster.
"""

from __future__ import annotations

import logging
import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants
from timm.models import get_pretrained_cfg

LOGGERS = ("huggingface_hub", "httpx", "httpx2", "timm")
FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm looks for, in its order."""


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
