"""Real databases for the tests: PostgreSQL, a replica of it, PgBouncer.

A server runs as an unprivileged user in a scratch folder, with its own port. The fixture
`postgres` is a server for the session, `database` a new database in it; a test that kills a
server, replicates it or changes its settings starts its own: `with Postgres() as server`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from support import PATIENCE, at_end, eventually

INSTALL = "apt install postgresql pgbouncer"
PREFIX = "infermux-databases"
OWNER, SERVICE, PASSWORD = "ledger_owner", "ledger_service", "s3cret-of-the-ledger"
# `fsync` matters when the machine loses power; a server that is killed loses nothing without it.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "200",
    "max_wal_size": "64MB",
    "wal_keep_size": "32MB",  # what a replica may lag behind
    "listen_addresses": "127.0.0.1",
    "timezone": "Asia/Kolkata",  # nobody may rely on the server's being UTC
}
ROLES = f"""
CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}';
CREATE ROLE {SERVICE} LOGIN PASSWORD '{PASSWORD}';
"""
START_SECONDS = 4 * PATIENCE  # of programs: a busy machine takes half a minute for an `initdb`
_count = itertools.count()


# -- programs --------------------------------------------------------------------------------------


def program(name: str) -> str:
    """Return the path of a program, of Debian's newest PostgreSQL if it is one of its; or skip."""
    own = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4])
    )
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = str(own[-1]) if own else shutil.which(name, path=places)
    if not found:
        pytest.skip(f"{name} is not installed: {INSTALL}")
    return found


@functools.cache
def user() -> pwd.struct_passwd | None:
    """Return whom servers run as if the tests run as root, which they refuse; else None."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("the tests run as root, and there is no user postgres or nobody")


def scratch() -> Path:
    """Return a new folder that belongs to the servers' user, removed at the end."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):  # of a session that was killed
        try:
            os.kill(int(old.name.split("-")[2]), 0)
        except ProcessLookupError:
            shutil.rmtree(old, ignore_errors=True)
        except PermissionError:
            pass
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-"))
    own(folder)
    at_end.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def own(path: Path) -> None:
    """Give a file or folder to the servers' user."""
    if (other := user()) is not None:
        os.chown(path, other.pw_uid, other.pw_gid)


def _as_user() -> dict[str, Any]:
    other = user()
    ids = {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []} if other else {}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {"cwd": "/", "env": clean | {"LC_ALL": "C"}, "stdin": subprocess.DEVNULL} | ids


def execute(*command: str) -> str:
    """Run a program of PostgreSQL to its end; return what it wrote."""
    ended = subprocess.run(
        [program(command[0]), *command[1:]],
        text=True,
        capture_output=True,
        timeout=START_SECONDS,
        check=False,
        **_as_user(),
    )
    assert ended.returncode == 0, f"{' '.join(command)}:\n{ended.stderr}"
    return ended.stdout


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Daemon:
    """A server in the foreground of a child process; it ends with this process, however that ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def launch(
        self, command: Sequence[str], ready: Callable[[], Any], stop: signal.Signals
    ) -> None:
        here = threading.current_thread() is threading.main_thread()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                list(command),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=functools.partial(_end_with_parent, stop) if here else None,
                **_as_user(),
            )

        def up() -> Any:
            assert self.process is not None
            assert self.process.poll() is None, f"{command[0]} ended:\n{self.log[-3000:]}"
            return ready()

        try:
            eventually(up, f"{command[0]} serving", START_SECONDS)
        except BaseException:
            self.signal(signal.SIGKILL)
            raise

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def processes(self) -> list[int]:
        """The ids of the server's process and of its children."""
        if self.process is None:
            return []
        pid, children = self.process.pid, ""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [pid, *map(int, children.split())]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and to its children."""
        for pid in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, number: signal.Signals) -> None:
        """Send a signal to the server alone, and wait for its end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            try:
                self.process.wait(START_SECONDS)
            finally:
                self.signal(signal.SIGKILL)
                self.process.wait()


def _end_with_parent(number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


# -- PostgreSQL ------------------------------------------------------------------------------------


class Database(NamedTuple):
    """A database with the ledger's two roles: its owner, and the service, which creates nothing."""

    server: Postgres
    name: str

    @property
    def url(self) -> str:
        """The URL of the owner."""
        return self.server.url(self.name)

    @property
    def service(self) -> str:
        """The URL of the role that only selects, inserts, updates and deletes."""
        return self.server.url(self.name, SERVICE)

    def at(self, port: int, role: str = OWNER) -> str:
        """Return the URL through a proxy, a pooler or a replica at *port*."""
        return self.server.url(self.name, role, port)

    def sql(self, text: str) -> list[list[str]]:
        """Return the rows of a query, each value as text, asked as superuser."""
        return self.server.sql(text, database=self.name)


class Postgres(Daemon):
    """A PostgreSQL server on a port of its own; `with` starts it, and at the end removes it.

    *settings* are of postgresql.conf, on top of those of SETTINGS.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, data: Path | None = None) -> None:
        super().__init__(data.parent if data else scratch())
        self.data = data or self.folder / "data"
        self.settings = SETTINGS | dict(settings or {})
        self.port = free_port()

    def __enter__(self) -> Self:
        if not self.data.exists():
            subprocess.run(["cp", "-R", _template(), self.data], check=True, **_as_user())
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server, or start it again, on the same port."""
        settings = self.settings | {
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
        }
        command = [program("postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        # What a killed server leaves would be read as the new one's.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.launch(command, self._ready, signal.SIGQUIT)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and lines[7].strip() == "ready"
        return False

    def stop(self) -> None:
        """Stop the server as an operator does (a fast shutdown)."""
        self.end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the server and all of its processes with SIGKILL; `start` lets it recover."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def restart(self) -> None:
        """Kill the server, and start it again."""
        self.kill()
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the server stand still: it accepts connections and answers nothing."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def url(self, database: str, role: str = OWNER, port: int = 0) -> str:
        return f"postgresql://{role}:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def sql(self, *texts: str, database: str = "postgres") -> list[list[str]]:
        """Return the rows of queries, each value as text, asked as superuser."""
        asked = ["-h", str(self.folder), "-p", str(self.port), "-U", "postgres", "-d", database]
        asked += ["-XAtq", "-F", "\x1f", "-v", "ON_ERROR_STOP=1"]
        for text in texts:  # each is a transaction
            asked += ["-c", text]
        return [line.split("\x1f") for line in execute("psql", *asked).splitlines()]

    def database(self) -> Database:
        """Create an empty database, owned by OWNER, where SERVICE may use what OWNER creates."""
        name = f"ledger_{next(_count)}"
        default = f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT"
        self.sql(
            f"CREATE DATABASE {name} OWNER {OWNER}",
            f"\\c {name}",
            f"{default} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {SERVICE}",
            f"{default} USAGE ON SEQUENCES TO {SERVICE}",
        )
        return Database(self, name)

    def drop(self, database: Database) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {database.name} WITH (FORCE)")

    def configure(self, **settings: str) -> None:
        """Change settings of the running server."""
        changes = [f"ALTER SYSTEM SET {name} = '{value}'" for name, value in settings.items()]
        self.sql(*changes, "SELECT pg_reload_conf()")

    # -- a replica

    def replica(self, *, synchronous: bool = False) -> Postgres:
        """Return a streaming replica, not yet started; leave it before this server.

        With *synchronous*, once it runs (`follow`), a commit waits until the replica has it.
        """
        folder = scratch()
        source = ["-h", str(self.folder), "-p", str(self.port), "-U", "postgres"]
        execute("pg_basebackup", *source, "-D", str(folder / "data"), "-R", "-X", "stream", "-c", "fast")  # fmt: skip
        made = Postgres(self.settings, folder / "data")
        if synchronous:
            self.configure(synchronous_standby_names="*")
        return made

    def caught_up(self, replica: Postgres) -> None:
        """Wait until the replica has replayed what this server has written."""
        [[position]] = self.sql("SELECT pg_current_wal_lsn()")
        behind = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
        eventually(lambda: replica.sql(behind) == [["t"]], "the replica catching up")

    def promote(self) -> None:
        """Make this replica a primary."""
        assert self.sql(f"SELECT pg_promote(true, {PATIENCE:.0f})") == [["t"]]
        self.configure(synchronous_standby_names="")

    def read_only(self, on: bool = True) -> None:
        """Refuse writes of new transactions, as a server does that is about to be replaced."""
        self.configure(default_transaction_read_only="on" if on else "off")

    def disconnect(self, database: str = "") -> int:
        """End the connections of clients to a database, or to all; return how many."""
        where = f"AND datname = '{database}'" if database else ""
        text = f"""SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid != pg_backend_pid() {where}"""
        return int(self.sql(text)[0][0])

    def connections(self, database: str) -> int:
        """Return how many clients a database has."""
        text = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"
        return int(self.sql(text)[0][0])


_INITDB = (
    *("--username", "postgres", "--auth-local", "trust", "--auth-host", "scram-sha-256"),
    *("--encoding", "UTF8", "--locale", "C", "--no-sync", "--wal-segsize", "1"),
)


@functools.cache
def _template() -> Path:
    """Return the folder of a stopped server that has the roles, made once per session."""
    server = Postgres()
    execute("initdb", *_INITDB, "-D", str(server.data))
    server.start()
    server.sql(ROLES)
    server.stop()
    return server.data


# -- PgBouncer -------------------------------------------------------------------------------------


class PgBouncer(Daemon):
    """PgBouncer in front of a server, with its settings as installed but for the pool's mode."""

    def __init__(self, server: Postgres, mode: str = "transaction", pool: int = 20) -> None:
        super().__init__(scratch())
        self.port = free_port()
        users = "".join(f'"{role}" "{PASSWORD}"\n' for role in (OWNER, SERVICE))
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self.folder / "users.txt",
            "pool_mode": mode,
            "default_pool_size": pool,
            "server_login_retry": 1,
        }
        text = "[databases]\n" + f"* = host=127.0.0.1 port={server.port}\n" + "[pgbouncer]\n"
        text += "".join(f"{name} = {value}\n" for name, value in settings.items())
        for name, content in (("users.txt", users), ("pgbouncer.ini", text)):
            (self.folder / name).write_text(content)
            own(self.folder / name)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        command = [program("pgbouncer"), str(self.folder / "pgbouncer.ini")]
        self.launch(command, lambda: answers(self.port), signal.SIGTERM)

    def kill(self) -> None:
        self.end(signal.SIGKILL)


def answers(port: int) -> bool:
    """Return whether something accepts connections at a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server of the session: for tests that neither stop it nor change its settings."""
    with Postgres() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    """A new, empty database."""
    made = postgres.database()
    yield made
    postgres.drop(made)


@pytest.fixture(scope="session")
def pgbouncer(postgres: Postgres) -> Iterator[PgBouncer]:
    """PgBouncer in transaction mode in front of the session's server."""
    with PgBouncer(postgres) as pooler:
        yield pooler
