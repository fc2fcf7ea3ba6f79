"""Disks that fail: a small one to be filled, a folder that cannot be written to, files that turn read-only under a process."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

_WRITES = "write,writev,pwrite64,pwritev,ftruncate,truncate,fallocate,fsync,fdatasync,unlink,unlinkat,rename,renameat,mkdir"


def _mount(*arguments: str) -> None:
    """Mounts something, or skips the test where that is refused."""
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs rights that this process does not have ({done.stderr.strip()})")


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


class SmallDisk:
    """A file system in memory that holds so many bytes and no more. `fill` keeps it full until `empty`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._full = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        state = os.statvfs(self.folder)
        return state.f_bavail * state.f_frsize

    def fill(self) -> None:
        """Takes every byte that is free, or becomes free; returns when none is."""
        self._full.set()
        self._thread = threading.Thread(target=self._keep_full, daemon=True)
        self._thread.start()
        while self.free:
            time.sleep(0.01)

    def empty(self) -> None:
        """There is space again."""
        self._full.clear()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        (self.folder / "ballast").unlink(missing_ok=True)

    def _keep_full(self) -> None:
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            while self._full.is_set():
                for size in (65536, 4096, 1):
                    try:
                        while file.write(b"x" * size) == size:
                            pass
                    except OSError as error:
                        assert error.errno == errno.ENOSPC
                time.sleep(0.01)


@contextmanager
def small_disk(folder: Path, mebibytes: int, *, owner: int | None = None) -> Iterator[SmallDisk]:
    """A small file system in place of a folder, with what was in it. Skips the test where it may not be mounted.

    owner: the user and group that it belongs to.
    """
    aside = folder.with_name(f"{folder.name}-before")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, aside)
    try:
        _mount("-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "tmpfs", str(folder))
        disk = SmallDisk(folder)
        try:
            shutil.copytree(aside, folder, dirs_exist_ok=True)
            if owner is not None:
                os.chown(folder, owner, owner)
            yield disk
        finally:
            disk.empty()
            _unmount(folder)
    finally:
        shutil.rmtree(aside)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder on a file system that is mounted read-only. Skips the test where that is refused."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        _unmount(folder)


@contextmanager
def turned_read_only(processes: Sequence[int], paths: Sequence[Path], *, opens: bool = False) -> Iterator[None]:
    """Running processes find that these files are on a file system that has become read-only.

    The kernel remounts by itself after an error, with files open, and lets nobody else do so; so the system calls are made to
    fail as they do then. opens: whether opening fails as well: for files that are opened to be written only.
    """
    with failing_calls(processes, paths, _WRITES + (",openat,open" if opens else ""), "EROFS"):
        yield


@contextmanager
def failing_calls(processes: Sequence[int], paths: Sequence[Path], calls: str, error: str) -> Iterator[None]:
    """Running processes get an error from these system calls on these files.

    calls: their names, with commas between. error: its name, such as `EIO`.
    Skips the test where there is no strace, or it may not do that.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}"]
    command += [argument for path in paths for argument in ("-P", str(path))]
    command += [argument for process in processes for argument in ("-p", str(process))]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until_traced(tracer, processes)
        yield
    finally:
        end_tracer(tracer)


def wait_until_traced(tracer: subprocess.Popen[bytes], processes: Sequence[int]) -> None:
    """Waits until every thread of these processes is traced; skips the test when the tracer gives up."""
    ends = time.monotonic() + 20
    while not all(_is_traced(process) for process in processes):
        if tracer.poll() is not None:
            assert tracer.stderr is not None
            pytest.skip(f"strace may not be used here ({tracer.stderr.read().decode()[-200:].strip()})")
        assert time.monotonic() < ends, "strace did not take hold"
        time.sleep(0.02)


def end_tracer(tracer: subprocess.Popen[bytes]) -> None:
    """Has a tracer let go of its processes."""
    if tracer.poll() is None:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(30)
    if tracer.stderr is not None:
        tracer.stderr.close()


def _is_traced(process: int) -> bool:
    for thread in psutil.Process(process).threads():
        try:
            status = Path(f"/proc/{process}/task/{thread.id}/status").read_text()
        except FileNotFoundError:
            continue
        if "TracerPid:\t0\n" in status:
            return False
    return True
