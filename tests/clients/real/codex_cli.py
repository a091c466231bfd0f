"""The Codex CLI: its shell tool, parallel calls, a patch as a custom tool, an image, thoughts."""

from __future__ import annotations

from pathlib import Path

from cli import NODE, call, events, output, work
from scenarios import BASE_URL, KEY, own_scenarios, png, run, same, says

CODEX = str(NODE / ".bin/codex")
PATCH = """*** Begin Patch
*** Update File: notes.txt
@@
-two
+zwei 🌞
*** Add File: more.txt
+more
*** End Patch"""


def codex(model: str, prompt: str, folder: Path, *options: str) -> str:
    """Run Codex with a prompt; return its last message."""
    home = folder.parent / f"{folder.name}-home"
    home.mkdir()
    (home / "config.toml").write_text(
        f"""model = "{model}"
model_provider = "infermux"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.infermux]
name = "InferMux"
base_url = "{BASE_URL}/v1"
wire_api = "responses"
env_key = "KEY"
request_max_retries = 0
stream_max_retries = 0
"""
    )
    command = [CODEX, "exec", "--json", "--skip-git-repo-check"]
    command += ["--dangerously-bypass-approvals-and-sandbox", *options, "--", prompt]
    told = events(output(command, folder, CODEX_HOME=str(home), KEY=KEY))
    items = [event["item"] for event in told if event["type"] == "item.completed"]
    messages = [item["text"] for item in items if item["type"] == "agent_message"]
    assert messages, f"no message: {told}"
    return messages[-1]


def alias(known: str, vendor: str) -> str:
    """Return a name of the vendor's model that Codex takes for one that it knows."""
    return f"{known}-{vendor.replace(' ', '-')}"


def custom(text: str, vendor: str) -> str | dict[str, str]:
    """Return the input of a custom tool, as the vendor's model gives it."""
    return text if vendor == "openai responses" else {"input": text}


def shell(model: str, vendor: str) -> None:
    steps = [call("exec_command", {"cmd": f"echo step-$(({n}+{n}))"}) for n in (20, 21)]
    says(codex(model, "\nthen\n".join(steps), work()), "step-42")


def parallel(model: str, vendor: str) -> None:
    calls = [call("exec_command", {"cmd": f"echo at-$(({n}+{n}))"}) for n in (20, 21)]
    says(codex(model, "\n".join(calls), work()), "at-40", "at-42")


def edit(model: str, vendor: str) -> None:
    folder = work()
    asked = call("exec_command", {"cmd": "sed -i s/two/zwei/ notes.txt && cat notes.txt"})
    says(codex(model, asked, folder), "zwei")
    same((folder / "notes.txt").read_text(), "one\nzwei\nthree\n")


def patch(model: str, vendor: str) -> None:
    folder = work()
    said = codex(alias("gpt-5.5", vendor), call("apply_patch", custom(PATCH, vendor)), folder)
    says(said, "Success")
    same((folder / "notes.txt").read_text(), "one\nzwei 🌞\nthree\n")
    same((folder / "more.txt").read_text(), "more\n")


def code_mode(model: str, vendor: str) -> None:
    script = 'text(await tools.exec_command({"cmd": "echo code-$((20+22))"}))'
    asked = call("exec", custom(script, vendor))
    says(codex(alias("gpt-5.6-sol", vendor), asked, work()), "code-42")


def image(model: str, vendor: str) -> None:
    folder = work()
    (folder / "red.png").write_bytes(png())
    asked = call("view_image", {"path": str(folder / "red.png")})
    says(codex(alias("gpt-5.5", vendor), asked, folder), "(an image)")


run("Codex CLI", own_scenarios(globals()))
