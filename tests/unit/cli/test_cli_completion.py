# SPDX-License-Identifier: Apache-2.0
"""How the shells' scripts ask for completions, and what they are answered."""

import pytest
from click.shell_completion import CompletionItem

from lessor.cli import main
from lessor.cli.completion import PowerShellComplete
from lessor.cli.options import COMPLETION


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lessor le", ["lease"]),
        ("lessor lease g", ["grant"]),
        ("lessor --endpoints a:1 get --pri", ["--print-value-only"]),
        ("lessor get -w j", ["json"]),
        ("lessor bogus x", []),
    ],
)
def test_completions(
    words: str, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    monkeypatch.setenv("_LESSOR_COMPLETE", "bash_complete")
    with pytest.raises(SystemExit) as caught:
        main.main([])
    assert not caught.value.code
    said = capsys.readouterr()
    assert ([line.partition(",")[2] for line in said.out.splitlines()], said.err) == (expected, "")


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        (["lessor"], "le", ["lease"]),
        (["lessor", "lease"], "w", ["watch"]),
        (["lessor", "put", "two words", "--lease", "1"], "--hel", ["--help"]),
        (["lessor", "get"], "--write-out=j", ["json"]),
        (["lessor", "get", "-w"], "", ["fields", "json", "protobuf", "simple", "table"]),
        (["lessor", "get", "a\tb"], "--prefi", ["--prefix"]),
        (["lessor", "bogus"], "x", []),
    ],
)
def test_completions_in_powershell(
    words: list[str],
    begun: str,
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("_LESSOR_COMPLETE", "powershell_complete")
    monkeypatch.delenv("COMP_CWORD", raising=False)
    if begun:
        monkeypatch.setenv("COMP_CWORD", begun)
    with pytest.raises(SystemExit) as caught:
        main.main([])
    assert not caught.value.code
    said = capsys.readouterr()
    fields = [line.split("\t") for line in said.out.splitlines() if line]
    assert ([kind_and_value[:2] for kind_and_value in fields], said.err) == (
        [["plain", value] for value in expected],
        "",
    )


def test_a_long_help_stays_in_its_line() -> None:
    shell = PowerShellComplete(main.cli, {}, "lessor", COMPLETION)
    assert shell.format_completion(CompletionItem("a", "plain", "one\n  two\tthree")) == "plain\ta\tone two three"
