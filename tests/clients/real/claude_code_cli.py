"""Claude Code: its shell tool, parallel calls, edits of files, a second turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli import NODE, call, events, output, work
from scenarios import BASE_URL, HELLO, KEY, own_scenarios, png, run, same, says

CLAUDE = str(NODE / ".bin/claude")


def claude(model: str, prompt: str, folder: Path, *options: str) -> dict[str, Any]:
    """Run Claude Code with a prompt; return its result."""
    command = [CLAUDE, "-p", "--output-format", "json", "--permission-mode", "acceptEdits"]
    command += ["--allowedTools", "Bash,Edit,Write,Read", *options, "--", prompt]
    told = output(
        command,
        folder,
        ANTHROPIC_BASE_URL=BASE_URL,
        ANTHROPIC_AUTH_TOKEN=KEY,
        ANTHROPIC_MODEL=model,
        ANTHROPIC_SMALL_FAST_MODEL=model,
        ANTHROPIC_DEFAULT_HAIKU_MODEL=model,
    )
    [result] = events(told)
    assert not result["is_error"], result
    return result


def text(model: str, vendor: str) -> None:
    says(claude(model, HELLO, work())["result"], HELLO)


def shell(model: str, vendor: str) -> None:
    steps = [call("Bash", {"command": f"echo step-$(({n}+{n}))"}) for n in (20, 21)]
    says(claude(model, "\nthen\n".join(steps), work())["result"], "step-42")


def parallel(model: str, vendor: str) -> None:
    calls = [call("Bash", {"command": f"echo at-$(({n}+{n}))"}) for n in (20, 21)]
    says(claude(model, "\n".join(calls), work())["result"], "at-40", "at-42")


def edit(model: str, vendor: str) -> None:
    folder = work()
    notes, new = str(folder / "notes.txt"), str(folder / "new.txt")
    change = {"file_path": notes, "old_string": "two", "new_string": "zwei 🌞"}
    steps = [
        call("Read", {"file_path": notes}),
        call("Edit", change),
        call("Write", {"file_path": new, "content": "neu\n"}),
    ]
    claude(model, "\nthen\n".join(steps), folder)
    same(Path(notes).read_text(), "one\nzwei 🌞\nthree\n")
    same(Path(new).read_text(), "neu\n")


def image(model: str, vendor: str) -> None:
    folder = work()
    (folder / "red.png").write_bytes(png(64))
    asked = call("Read", {"file_path": str(folder / "red.png")})
    says(claude(model, asked, folder)["result"], "(an image)")


def resumed(model: str, vendor: str) -> None:
    folder = work()
    first = claude(model, call("Bash", {"command": "echo first"}), folder)
    says(first["result"], "first")
    again = claude(model, HELLO, folder, "--resume", first["session_id"])
    says(again["result"], HELLO)


run("Claude Code", own_scenarios(globals()))
