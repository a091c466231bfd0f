"""The standard suite of langchain-tests for chat models, with each of LangChain's models.

As a program it runs itself under pytest and tells how each test ended. A test that the suite skips
or expects to fail is not told; those with images are skipped, as they fetch them from elsewhere.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from langchain_models import KINDS, Kind
from langchain_tests.integration_tests import ChatModelIntegrationTests
from scenarios import MODELS, tell


def suite(kind: Kind, model: str) -> type:
    """Return LangChain's own tests of a chat model, for one of ours."""
    members = {
        "chat_model_class": kind.of,
        "chat_model_params": kind.usual | {"model": model},
        "supports_image_inputs": False,
        "supports_image_tool_message": False,
    }
    return type("Suite", (ChatModelIntegrationTests,), members)


def name(client: str, vendor: str) -> str:
    return re.sub(r"\W", "_", f"Test_{client}_{vendor}")


SUITES = {
    name(client, vendor): (client, vendor, suite(kind, model))
    for client, kind in KINDS.items()
    for vendor, model in MODELS.items()
}
globals().update({called: made for called, (_, _, made) in SUITES.items()})


class Report:
    """Tells how each test ended."""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if (report.when == "call" and not report.skipped) or report.failed:
            _, called, test = report.nodeid.split("::")
            client, vendor, _ = SUITES[called]
            error = str(report.longrepr)[-600:] if report.failed else ""
            tell(f"{client}, standard suite", vendor, test, error, report.duration)


if __name__ == "__main__":
    quiet = ["-p", "no:terminal", "-W", "ignore", "-p", "no:cacheprovider", "--noconftest"]
    quiet += ["--asyncio-mode=auto", "-o", "asyncio_default_test_loop_scope=session"]
    where = ["-c", os.devnull, "--rootdir", os.getcwd()]
    pytest.main([__file__, *quiet, *where], plugins=[Report()])
