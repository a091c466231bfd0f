"""Runs `infermux` commands in forks of one process that has imported all of it.

A command has its own arguments, environment, folder and standard streams, and ends as a Python
program does; only the imports, most of the time of a short command, are made once.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pkgutil
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

SECONDS = 60.0  # that a command may take
_lock = threading.Lock()
_server: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []


def run(
    *args: str, cwd: Path, env: Mapping[str, str], given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `infermux` with *args* to its end, with no variables but *env*."""
    about = json.dumps([args, str(cwd), dict(env)]).encode()
    with (
        tempfile.TemporaryFile() as read,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        read.write(given.encode())
        read.seek(0)
        with _lock:
            peer = _server[0][0] if _server else _started()
            socket.send_fds(peer, [about], [each.fileno() for each in (read, out, err)])
            code = int(peer.recv(100))
        return subprocess.CompletedProcess(args, code, _text(out), ageless(_text(err)))


def ageless(text: str) -> str:
    """Return *text* without the line that says that the shipped prices are old, as they will be."""
    return re.sub(r"infermux: the shipped prices are from .*\n", "", text)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _started() -> socket.socket:
    """Start the process that forks; it ends with this one."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, __file__, str(its.fileno())],
        pass_fds=[its.fileno()],
        env=dict(os.environ) | {"PYTHONPATH": path.rstrip(os.pathsep)},
    )
    its.close()
    mine.settimeout(SECONDS)
    _server.append((mine, process))
    atexit.register(_end)
    return mine


def _end() -> None:
    for peer, process in _server:
        peer.close()
        process.wait()


def _serve(peer: socket.socket) -> list[str] | None:
    """Fork for each command, in which this returns its arguments; return None at the end."""
    import infermux.cli

    for module in pkgutil.iter_modules(infermux.cli.__path__):
        importlib.import_module(f"infermux.cli.{module.name}")
    while True:
        about, files, *_ = socket.recv_fds(peer, 1 << 20, 3)
        if not about:
            return None
        if (child := os.fork()) == 0:
            return _become(peer, about, files)
        for each in files:
            os.close(each)
        peer.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become(peer: socket.socket, about: bytes, files: list[int]) -> list[str]:
    """Make this process one that was started for a command."""
    peer.close()
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    args, cwd, env = json.loads(about)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[0] = ""  # as `python -m` has it
    return [str(each) for each in args]


if __name__ == "__main__":
    # where a terminal interrupts the tests, they end this
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    found = _serve(socket.socket(fileno=int(sys.argv[1])))
    if found is not None:
        from infermux.cli.main import main

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["infermux", *found]
        main(prog_name="infermux")
