"""Updates: made, applied, and everything that must be refused. No model is needed for most: any bytes will do."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cdl_deploy import files
from cdl_deploy.errors import UpdateError
from cdl_deploy.update import patch
from cdl_deploy.update.file import DIGEST_BYTES, MAGIC, MAX_FILE, MAX_HEADER, identify, read_update
from cdl_deploy.update.patch import apply_updates, make_update, rebuilt

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no compressor makes smaller."""
    return b"".join(hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(-(-size // 32)))[:size]


OLD = noise(40_000)
NEW = OLD[:11_111] + noise(90, seed=1) + OLD[11_500:] + b"the end"


@pytest.fixture
def world(tmp_path):
    """`old.onnx`, `new.onnx` and the update `a.cdlup` between them, alone in a folder."""
    (tmp_path / "old.onnx").write_bytes(OLD)
    (tmp_path / "new.onnx").write_bytes(NEW)
    make_update(tmp_path / "old.onnx", tmp_path / "new.onnx", tmp_path / "a.cdlup")
    return tmp_path


def refused(folder: Path, updates: list[Path], pattern: str, base: str = "old.onnx") -> None:
    """Applying them fails with that one line, and nothing in the folder is another than before."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UpdateError, match=pattern) as caught:
        apply_updates(folder / base, updates, folder / "out.onnx")
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def forge(at: Path, payload: bytes, old: bytes = OLD, new: bytes = NEW, **changes: object) -> Path:
    """An update as somebody writes it who knows the format, digest and all, and lies."""
    identities = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in (("base", old), ("result", new))
    }
    header = {
        "format_version": 1,
        "payload_bytes": len(payload),
        "producer": {"name": "cdl-deploy", "version": "0.1.0"},
        **identities,
        **changes,
    }
    return seal(at, json.dumps(header).encode(), payload)


def seal(path: Path, header: bytes, payload: bytes) -> Path:
    content = MAGIC + len(header).to_bytes(4, "little") + header + payload
    path.write_bytes(content + hashlib.sha256(content).digest())
    return path


def packed(new: bytes, old: bytes = OLD, **options: int) -> bytes:
    chosen = {getattr(zstd.CompressionParameter, name): value for name, value in options.items()}
    return zstd.compress(new, options=chosen, zstd_dict=zstd.ZstdDict(old, is_raw=True).as_prefix)


# ---- the right thing -------------------------------------------------------------------------------------------------


def test_the_result_is_the_new_file_and_the_update_is_small(world):
    done = apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "out.onnx")
    assert (world / "out.onnx").read_bytes() == NEW
    assert done.path == world / "out.onnx"
    assert done.updates == (world / "a.cdlup",)
    assert dataclasses.astuple(done.identity) == (len(NEW), hashlib.sha256(NEW).hexdigest())
    assert (world / "a.cdlup").stat().st_size < 90 + 600
    assert sorted(path.name for path in world.iterdir()) == ["a.cdlup", "new.onnx", "old.onnx", "out.onnx"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@example(b"", b"")
@example(b"", b"x")
@example(b"1234567", b"1234567")
@example(OLD, b"")
@example(OLD, OLD)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_survive(tmp_path, old, new):
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    make_update(tmp_path / "old", tmp_path / "new", tmp_path / "u.cdlup")
    done = apply_updates(tmp_path / "old", [tmp_path / "u.cdlup"], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == new
    assert done.identity.bytes == len(new)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(st.data())
def test_pieces_moved_dropped_and_added_survive(tmp_path, data):
    """What a task does to a file: the same blocks, elsewhere, with others between them."""
    blocks = [OLD[i : i + 5000] for i in range(0, len(OLD), 5000)]
    chosen = data.draw(st.lists(st.sampled_from(blocks) | st.binary(max_size=300), max_size=12))
    new = b"".join(chosen)
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "new").write_bytes(new)
    made = make_update(tmp_path / "old", tmp_path / "new", tmp_path / "u.cdlup")
    apply_updates(tmp_path / "old", [tmp_path / "u.cdlup"], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == new
    added = sum(len(block) for block in chosen if len(block) < 5000)
    assert made.header.payload_bytes <= added + 40 * len(chosen) + 100


def test_the_same_files_give_the_same_update_in_any_process(world):
    code = (
        "import sys; from pathlib import Path; from cdl_deploy.update.patch import make_update\n"
        "make_update(*map(Path, sys.argv[1:]))"
    )
    for seed in ("1", "2"):
        arguments = [world / "old.onnx", world / "new.onnx", world / f"{seed}.cdlup"]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        assert (world / f"{seed}.cdlup").read_bytes() == (world / "a.cdlup").read_bytes()


def test_in_place(world):
    (world / "old.onnx").chmod(0o640)
    before = (world / "old.onnx").stat().st_ino
    apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "old.onnx")
    assert (world / "old.onnx").read_bytes() == NEW
    assert (world / "old.onnx").stat().st_mode & 0o777 == 0o640
    assert (world / "old.onnx").stat().st_ino != before, "who has the old file open keeps it"


def test_a_link_stays_a_link(world):
    (world / "current.onnx").symlink_to("old.onnx")
    apply_updates(world / "current.onnx", [world / "a.cdlup"], world / "current.onnx")
    assert (world / "current.onnx").is_symlink()
    assert (world / "old.onnx").read_bytes() == NEW


def test_an_existing_file_is_replaced_whole(world):
    (world / "out.onnx").write_bytes(b"another model")
    apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "out.onnx")
    assert (world / "out.onnx").read_bytes() == NEW


def test_applying_twice_changes_nothing(world):
    apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "old.onnx")
    written = (world / "old.onnx").stat().st_mtime_ns
    done = apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "old.onnx")
    assert done.updates == ()
    assert (world / "old.onnx").stat().st_mtime_ns == written
    done = apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "copy.onnx")
    assert (done.updates, (world / "copy.onnx").read_bytes()) == ((), NEW)


@pytest.fixture
def years(tmp_path):
    """Five versions and the updates `1.cdlup` to `4.cdlup` between them."""
    versions = [OLD[: 30_000 + 2_000 * i] + b"version %d" % i for i in range(5)]
    for i, content in enumerate(versions):
        (tmp_path / f"v{i}.onnx").write_bytes(content)
        if i:
            make_update(tmp_path / f"v{i - 1}.onnx", tmp_path / f"v{i}.onnx", tmp_path / f"{i}.cdlup")
    return tmp_path


@pytest.mark.parametrize("at", range(5))
def test_several_updates_in_any_order_from_any_version(years, at):
    given_updates = [years / f"{i}.cdlup" for i in (3, 1, 4, 2)]
    done = apply_updates(years / f"v{at}.onnx", given_updates, years / "out.onnx")
    assert (years / "out.onnx").read_bytes() == (years / "v4.onnx").read_bytes()
    assert done.updates == tuple(years / f"{i}.cdlup" for i in range(at + 1, 5))


def test_a_gap_between_updates_is_refused(years):
    refused(years, [years / "1.cdlup", years / "3.cdlup"], r"v0.onnx is not the model that .*3.cdlup is for", "v0.onnx")


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_refused(world):
    whole = (world / "a.cdlup").read_bytes()
    with (world / "a.cdlup").open("r+b", buffering=0) as file:
        for bit in range(8 * len(whole)):
            byte = whole[bit // 8]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
            with pytest.raises(UpdateError, match=r"is damaged|is no update: "):
                read_update(world / "a.cdlup")
            os.pwrite(file.fileno(), bytes([byte]), bit // 8)
    read_update(world / "a.cdlup")


def test_every_truncation_and_any_addition_is_refused(world):
    whole = (world / "a.cdlup").read_bytes()
    for size in range(len(whole)):
        (world / "b.cdlup").write_bytes(whole[:size])
        with pytest.raises(UpdateError, match=r"fetch it again"):
            read_update(world / "b.cdlup")
    for more in (b"\0", whole):
        (world / "b.cdlup").write_bytes(whole + more)
        refused(
            world,
            [world / "b.cdlup"],
            r"b.cdlup is damaged or not complete: its [\d,]+ bytes do not fit its digest; fetch it again",
        )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: MAGIC + tail))
def test_anything_else_is_no_update(tmp_path, content):
    (tmp_path / "b.cdlup").write_bytes(content)
    with pytest.raises(UpdateError):
        read_update(tmp_path / "b.cdlup")


def test_a_payload_that_was_tampered_with_never_makes_another_file(world):
    """As if the digest fitted: only the payload and the result's hash can tell. A few bits of a frame mean nothing."""
    made = read_update(world / "a.cdlup")
    payload, refusals = b"".join(made.payload()), 0
    tampered = dataclasses.replace(made, path=world / "payload", payload_at=0)
    tampered.path.write_bytes(payload)
    with tampered.path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(payload)):
            byte = payload[bit // 8]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
            try:
                result = b"".join(rebuilt(OLD, tampered))
            except UpdateError:
                refusals += 1
            else:
                assert result == NEW
            os.pwrite(file.fileno(), bytes([byte]), bit // 8)
    assert refusals > 8 * len(payload) - 20


# ---- the wrong base, and files that are none -------------------------------------------------------------------------


def test_the_wrong_base_is_refused_by_size_or_hash(world):
    (world / "other.onnx").write_bytes(b"\0" * len(OLD))
    other, wanted = (hashlib.sha256(content).hexdigest()[:16] for content in (b"\0" * len(OLD), OLD))
    refused(
        world,
        [world / "a.cdlup"],
        rf"other.onnx is not the model that .*a.cdlup is for: it has SHA-256 {other}… \(40,000 bytes\), expected "
        rf"SHA-256 {wanted}… \(40,000 bytes\); get the update for this model, or the whole new one",
        "other.onnx",
    )
    (world / "other.onnx").write_bytes(b"\0")
    refused(world, [world / "a.cdlup"], r"it has 1 bytes, expected SHA-256", "other.onnx")


def test_files_that_cannot_be_read_are_named(world):
    refused(world, [world / "none.cdlup"], r"none.cdlup: No such file or directory; expected a .cdlup file")
    refused(world, [world / "a.cdlup"], r"none.onnx: No such file or directory; expected a model file", "none.onnx")
    refused(world, [world], r"Is a directory; expected a .cdlup file")
    refused(
        world,
        [world / "new.onnx"],
        r"new.onnx is no update: expected a .cdlup file, as cdl export RUN --onnx --update-from",
    )
    (world / "empty.cdlup").write_bytes(b"")
    refused(world, [world / "empty.cdlup"], r"empty.cdlup has 0 bytes, expected a whole .cdlup file: fetch it again")
    with pytest.raises(UpdateError, match="Is a directory"):
        apply_updates(world, [world / "a.cdlup"], world / "out.onnx")


def test_the_result_is_not_written_over_an_update_or_a_folder(world):
    with pytest.raises(UpdateError, match=r"cannot be written over the update .*a.cdlup: choose another name"):
        apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "a.cdlup")
    (world / "folder").mkdir()
    with pytest.raises(UpdateError, match=r"is a folder, expected the name of a file: give .*folder/old.onnx"):
        apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "folder")


def test_a_newer_format_says_what_to_do(world):
    forge(world / "b.cdlup", packed(NEW), format_version=2)
    refused(
        world, [world / "b.cdlup"], r"has update format 2, this cdl-deploy .* reads up to 1: pip install -U cdl-deploy"
    )


# ---- malice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            {"path": "../../etc/passwd"},
            r"b.cdlup is no update that can be used: header.path is ../../etc/passwd; get it again",
        ),
        ({"format_version": "1"}, r"header.format_version is 1, expected a whole number; get it again"),
        ({"format_version": 0}, r"header.format_version is 0; get it again"),
        ({"format_version": True}, r"header.format_version is True"),
        ({"payload_bytes": -1}, r"header.payload_bytes is -1; get it again"),
        ({"payload_bytes": 1 << 80}, r"it has [\d,]+ bytes, expected [\d,]+; get it again"),
        ({"result": {"bytes": 1 << 40, "sha256": "0" * 64}}, rf"bytes is {1 << 40}, expected 0 to {MAX_FILE}"),
        ({"result": {"bytes": -5, "sha256": "0" * 64}}, r"bytes is -5, expected 0 to"),
        ({"result": {"bytes": 5.5, "sha256": "0" * 64}}, r"header.result.bytes is 5.5, expected a whole number"),
        ({"result": {"bytes": 5, "sha256": "../../x"}}, r"sha256 is '../../x', expected 64 hexadecimal digits"),
        ({"result": None}, r"header.result is None"),
        ({"base": {"bytes": 5, "sha256": "0" * 64, "name": "/bin/sh"}}, r"header.base is .*/bin/sh.*; get it again"),
    ],
)
def test_a_header_that_lies_is_refused(world, changes, pattern):
    refused(world, [forge(world / "b.cdlup", packed(NEW), **changes)], pattern)


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"null", b"{}", b"\xff", b"[" * MAX_HEADER, b"{" + b" " * MAX_HEADER, b'{"format_version": NaN}'],
)
def test_a_header_that_is_none_is_refused(world, header):
    refused(world, [seal(world / "b.cdlup", header, b"")], r"b.cdlup is no update that can be used: (its )?header")


def test_a_size_out_of_proportion_is_refused(world):
    size = 2 * len(OLD) + (64 << 20) + 1
    update_file = forge(world / "b.cdlup", packed(b"\0" * size), new=b"\0" * size)
    refused(
        world,
        [update_file],
        rf"would make {size:,} bytes from {len(OLD):,}, more than the {size - 1:,} that an update may",
    )


@pytest.mark.parametrize(
    ("payload", "pattern"),
    [
        (packed(b"\0" * (8 << 20)), "its payload is of another size than its header says"),
        (packed(b"\0" * (8 << 20), content_size_flag=0), "its payload is of another size than its header says"),
        (packed(NEW) + packed(NEW), "there is more behind its payload|ends too early or too late"),
        (packed(NEW) + b"\0", "ends too early or too late"),
        (packed(NEW)[:-5], "ends too early or too late"),
        (packed(NEW, old=OLD[1:] + b"!"), "it does not make the file of its header"),
        (packed(NEW[::-1]), "it does not make the file of its header"),
        (b"", "cannot be applied: "),
        (b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + packed(NEW), "its payload is of another size|ends too early"),
        (noise(1000), "cannot be applied: "),
    ],
    ids=["bomb", "bomb of unknown size", "two frames", "a byte more", "cut", "another base", "another result", "empty",
         "skippable frame", "noise"],
)  # fmt: skip
def test_a_payload_that_lies_is_refused(world, payload, pattern):
    refused(world, [forge(world / "b.cdlup", payload)], rf"b.cdlup cannot be applied: .*({pattern})|({pattern})")


PEAK = """
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from cdl_deploy.errors import UpdateError
from cdl_deploy.update import patch
from cdl_deploy.update.patch import apply_updates
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = peak()
try:
    apply_updates(*[Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3])])
except UpdateError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""
"""Prints by how many KiB applying an update raised the process's peak of memory."""


def peak_of_applying(folder: Path, update_file: str) -> tuple[int, str]:
    """MiB, and the error."""
    names = [folder / "old.onnx", folder / update_file, folder / "out.onnx"]
    result = subprocess.run([sys.executable, "-c", PEAK, *names], check=True, capture_output=True, text=True)
    return int(result.stdout) >> 10, result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_bomb_is_never_unpacked(world):
    """300 MB of zeros behind a frame header that was edited to promise the size of the result."""
    bomb = bytearray(packed(b"\0" * (300 << 20)))
    assert bomb[4] >> 6 == 2, "the size of the content has four bytes in this frame"
    at = 5 if bomb[4] & 0x20 else 6
    bomb[at : at + 4] = len(NEW).to_bytes(4, "little")
    forge(world / "b.cdlup", bytes(bomb))
    peak, error = peak_of_applying(world, "b.cdlup")
    assert "b.cdlup cannot be applied: " in error
    assert peak < 16
    assert not (world / "out.onnx").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_is_the_base_and_the_result(tmp_path):
    old = noise(32 << 10) * 1024  # 32 MiB
    new = old[: 24 << 20] + noise(1 << 16, seed=3) + old[20 << 20 :]
    (tmp_path / "old.onnx").write_bytes(old)
    (tmp_path / "new.onnx").write_bytes(new)
    make_update(tmp_path / "old.onnx", tmp_path / "new.onnx", tmp_path / "u.cdlup")
    peak, error = peak_of_applying(tmp_path, "u.cdlup")
    assert error == ""
    assert (tmp_path / "out.onnx").read_bytes() == new
    assert peak < (len(old) + len(new) >> 20) + 12


def test_a_huge_window_is_refused(world):
    """A frame may ask its reader for 2 GiB of memory: the limit is what the result has bytes."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 31})
    compressor.set_pledged_input_size(len(NEW))
    frame = bytearray(compressor.compress(NEW) + compressor.flush())
    single, descriptor = frame[4] & 0x20, 5
    assert single, "a frame with all its content in one window names no window"
    # Turn it into one that does: clear the flag, put the window descriptor for 2^31 before the content size.
    frame[4] &= ~0x20
    frame[descriptor:descriptor] = bytes([(31 - 10) << 3])
    assert zstd.get_frame_info(bytes(frame)).decompressed_size == len(NEW)
    refused(world, [forge(world / "b.cdlup", bytes(frame))], r"b.cdlup cannot be applied: .*too much memory")


# ---- interruptions ---------------------------------------------------------------------------------------------------


def test_no_room_is_said_before_anything_is_written(world, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    refused(
        world, [world / "a.cdlup"], rf"out.onnx needs {len(NEW):,} bytes beside the old model, 1 are free on the disk"
    )


def test_a_disk_that_fills_up_meanwhile_leaves_the_old_file(world):
    """A real limit of the system on the size of a file, half of what is needed."""
    code = (
        "import resource, sys\nfrom cdl_deploy.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(NEW) // 2},) * 2)\nmain(sys.argv[1:])"
    )
    before = sorted(world.iterdir())
    arguments = ["update", world / "old.onnx", world / "a.cdlup", "-o", world / "old.onnx"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: {world}/old.onnx: {os.strerror(errno.EFBIG)}; nothing was changed\n"
    assert (world / "old.onnx").read_bytes() == OLD
    assert sorted(world.iterdir()) == before


def test_a_fault_of_the_check_leaves_the_old_file(world):
    def refuse(path):
        assert path.read_bytes() == NEW
        raise UpdateError("no")

    before = sorted(world.iterdir())
    with pytest.raises(UpdateError, match="no"):
        apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "old.onnx", refuse)
    assert (world / "old.onnx").read_bytes() == OLD
    assert sorted(world.iterdir()) == before


def test_killed_in_the_middle_the_old_file_stays_and_the_next_try_cleans_up(world):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom cdl_deploy.update.patch import apply_updates\n"
        "old, patch = map(Path, sys.argv[1:])\n"
        "apply_updates(old, [patch], old, lambda path: os.kill(os.getpid(), signal.SIGKILL))"
    )
    command = [sys.executable, "-c", code, world / "old.onnx", world / "a.cdlup"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert (world / "old.onnx").read_bytes() == OLD
    assert len(list(world.glob(files.TEMPORARY))) == 1
    apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "old.onnx")
    assert (world / "old.onnx").read_bytes() == NEW
    assert list(world.glob(files.TEMPORARY)) == []


def test_the_temporary_file_of_a_running_process_is_left_alone(world):
    busy = world / f".out.onnx.{os.getppid()}.tmp.onnx"
    busy.write_bytes(b"half")
    apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "out.onnx")
    assert busy.read_bytes() == b"half"


def test_a_temporary_file_that_is_held_from_elsewhere_is_left_alone(world):
    """A process of another container on the same volume: its number means nothing here, but its lock does."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held, left = (world / f".out.onnx.{gone.pid}-{name}.tmp.onnx" for name in ("0a", "0b"))
    with held.open("wb") as file:
        left.write_bytes(b"half")
        assert files.lock_open_file(file.fileno())
        apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "out.onnx")
    assert held.exists()
    assert not left.exists()


@pytest.mark.parametrize("locks", [True, False])
def test_two_updates_of_one_file_at_once_never_mix(world, monkeypatch, locks):
    """Two threads have the same process number, as the first processes of two containers do."""
    if not locks:  # a file system that has none
        monkeypatch.setattr(files.filelock.FileLock, "acquire", lambda self: (_ for _ in ()).throw(OSError("no locks")))
    other = bytes(reversed(NEW))
    (world / "other.onnx").write_bytes(other)
    make_update(world / "old.onnx", world / "other.onnx", world / "b.cdlup")
    out, wanted, together = world / "out.onnx", {"a": NEW, "b": other}, threading.Barrier(2)
    finished = []

    def wait(path):
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.3)  # with locks the second one never comes

    def update(name):
        done = apply_updates(world / "old.onnx", [world / f"{name}.cdlup"], out, wait)
        assert out.read_bytes() in (NEW, other)
        assert done.identity == identify(wanted[name])
        finished.append(name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(update, "ab"))
    assert sorted(finished) == ["a", "b"]
    assert out.read_bytes() in ([wanted[finished[-1]]] if locks else [NEW, other])
    assert [path.name for path in world.iterdir() if path.name.startswith(".")] == []


def test_processes_with_one_number_never_mix(world):
    """As in containers: every process believes that it is number 1. The file is one of the results at any time."""
    code = (
        "import os, sys\nos.getpid = lambda: 1\nfrom pathlib import Path\n"
        "from cdl_deploy.update.patch import apply_updates\n"
        "old, patch, out = map(Path, sys.argv[1:])\n"
        "for _ in range(8):\n    apply_updates(old, [patch], out)"
    )
    results = [NEW]
    for number in range(2):
        results.append(NEW[::-1] + bytes([number]))
        (world / "next.onnx").write_bytes(results[-1])
        make_update(world / "old.onnx", world / "next.onnx", world / f"{number}.cdlup")
    started = [
        subprocess.Popen([sys.executable, "-c", code, world / "old.onnx", world / f"{name}.cdlup", world / "out.onnx"])
        for name in ("a", "0", "1")
    ]
    while any(process.poll() is None for process in started):
        if (world / "out.onnx").exists():
            assert (world / "out.onnx").read_bytes() in results
        time.sleep(0.01)
    assert [process.returncode for process in started] == [0, 0, 0]
    assert [path.name for path in world.iterdir() if path.name.startswith(".")] == []


def test_what_is_on_the_disk_is_what_counts(world, monkeypatch):
    monkeypatch.setattr(patch, "rebuilt", lambda content, update: iter([NEW[:-1], b"?"]))
    with pytest.raises(UpdateError, match=r"out\.onnx: what was written .* is not what the update makes"):
        apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "out.onnx")
    assert not (world / "out.onnx").exists()


def test_an_update_that_another_process_holds_up_is_told_so(world, monkeypatch):
    monkeypatch.setattr(patch, "LOCK_SECONDS", 0.05)
    with files.one_writer(world / "out.onnx"), pytest.raises(UpdateError, match=r"out\.onnx is being updated by"):
        apply_updates(world / "old.onnx", [world / "a.cdlup"], world / "out.onnx")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no files")
def test_a_folder_that_takes_no_files_is_named_at_once(world):
    with pytest.raises(UpdateError, match=r"^/proc/out\.onnx: no files can be made in this folder; nothing was "):
        apply_updates(world / "old.onnx", [world / "a.cdlup"], Path("/proc/out.onnx"))


def test_whoever_may_replace_a_file_may_lock_it(world):
    before = os.umask(0o077)
    try:
        with files.one_writer(world / "out.onnx"):
            assert (world / ".out.onnx.lock").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


# ---- making ----------------------------------------------------------------------------------------------------------


def test_making_names_what_it_cannot_read_or_write(world):
    with pytest.raises(UpdateError, match=r"none.onnx: No such file or directory; expected a model file"):
        make_update(world / "none.onnx", world / "new.onnx", world / "b.cdlup")
    (world / "file").write_bytes(b"")
    with pytest.raises(UpdateError, match=r"b.cdlup: (File exists|Not a directory); the update was not written"):
        make_update(world / "old.onnx", world / "new.onnx", world / "file/b.cdlup")
    with (world / "huge.onnx").open("wb") as file:
        file.truncate(MAX_FILE + 1)  # a hole: takes no room
    with pytest.raises(UpdateError, match=r"huge.onnx has 2,147,483,648 bytes, an update handles up to 2,147,483,647"):
        make_update(world / "huge.onnx", world / "new.onnx", world / "b.cdlup")
    assert not (world / "b.cdlup").exists()


def test_an_update_that_does_not_work_is_not_kept(world, monkeypatch):
    """Whatever the compressor did: what is kept has been applied once."""
    payload = packed(NEW[::-1])
    monkeypatch.setattr(zstd, "compress", lambda new, **rest: payload)
    with pytest.raises(UpdateError, match="it does not make the file of its header"):
        make_update(world / "old.onnx", world / "new.onnx", world / "b.cdlup")
    assert not (world / "b.cdlup").exists()


def test_the_file_is_as_documented(world):
    """Read by hand, from docs/updates.md."""
    content = (world / "a.cdlup").read_bytes()
    assert content[:8] == b"\x93CDL\r\n\x1a\n"
    length = int.from_bytes(content[8:12], "little")
    header = json.loads(content[12 : 12 + length])
    assert header["base"] == {"bytes": len(OLD), "sha256": hashlib.sha256(OLD).hexdigest()}
    assert header["result"] == {"bytes": len(NEW), "sha256": hashlib.sha256(NEW).hexdigest()}
    assert header["format_version"] == 1
    payload = content[12 + length : -DIGEST_BYTES]
    assert len(payload) == header["payload_bytes"]
    assert zstd.decompress(payload, zstd_dict=zstd.ZstdDict(OLD, is_raw=True).as_prefix) == NEW
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()
