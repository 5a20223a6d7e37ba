# SPDX-License-Identifier: Apache-2.0
"""`lessor completion`: prints a script for the shell, which asks this program at each press of the tab key.

Law: a key press never gets an error message. A line that cannot be understood so far has no completions.

The scripts are click's, except PowerShell's. A script calls `lessor` with the line so far in the environment, and reads
the answer from stdout.
"""

import os
from contextlib import suppress
from typing import Any, ClassVar

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class

from lessor.cli.failure import ERROR, Failure
from lessor.cli.options import COMPLETION, Command

SHELLS = ("bash", "zsh", "fish", "powershell")

# The positions of the cursor and of the words are counted from the beginning of the same line. File names are not
# answered: PowerShell offers them by itself then. A completion replaces the whole word, so a flag and its = are put
# before it again.
_POWERSHELL = """\
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @()
    $begun = ''
    foreach ($element in $commandAst.CommandElements) {
        $extent = $element.Extent
        if ($extent.EndOffset -lt $cursorPosition) {
            if ($element -is [System.Management.Automation.Language.StringConstantExpressionAst]) {
                $words += $element.Value
            } else {
                $words += $extent.Text
            }
        } elseif ($extent.StartOffset -lt $cursorPosition) {
            $begun = $extent.Text.Substring(0, $cursorPosition - $extent.StartOffset)
        }
    }
    $flag = ''
    if ($begun -match '^--[^=]*=') {
        $flag = $Matches[0]
    }
    try {
        $env:COMP_WORDS = $words -join "`n"
        $env:COMP_CWORD = $begun
        $env:%(complete_var)s = 'powershell_complete'
        %(prog_name)s | ForEach-Object {
            $type, $value, $help = $_ -split "`t", 3
            if ($type -eq 'plain') {
                $text = $flag + $value
                if (-not $help) {
                    $help = $value
                }
                [System.Management.Automation.CompletionResult]::new($text, $value, 'ParameterValue', $help)
            }
        }
    } finally {
        Remove-Item -ErrorAction Ignore -Path 'Env:COMP_WORDS', 'Env:COMP_CWORD', 'Env:%(complete_var)s'
    }
}
"""


class PowerShellComplete(ShellComplete):
    """PowerShell for click, which lacks it. The words come as lines; the one at the cursor comes by itself.

    An answer is a line of type, value and help, with tabs between them.
    """

    name: ClassVar[str] = "powershell"
    source_template: ClassVar[str] = _POWERSHELL

    def get_completion_args(self) -> tuple[list[str], str]:
        words = os.environ.get("COMP_WORDS", "").split("\n")
        return words[1:], os.environ.get("COMP_CWORD", "")  # PowerShell has no empty variables

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return "\t".join((item.type, item.value, " ".join((item.help or "").split())))


add_completion_class(PowerShellComplete)


@click.command("completion", cls=Command)
@click.argument("args", nargs=-1, metavar="bash|zsh|fish|powershell")
@click.pass_context
def completion(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Print a script that completes the command lines of lessor in a shell.

    \b
    bash:  source <(lessor completion bash)
    zsh:   source <(lessor completion zsh)
    fish:  lessor completion fish | source
    PowerShell:  lessor completion powershell | Out-String | Invoke-Expression

    For all sessions put that into ~/.bashrc, ~/.zshrc, ~/.config/fish/config.fish or the file that $PROFILE names.
    """
    from click.shell_completion import get_completion_class

    if len(args) != 1 or args[0] not in SHELLS:
        raise Failure(ERROR, f"completion command needs one argument: {', '.join(SHELLS)}")
    shell = get_completion_class(args[0])
    assert shell is not None
    # Not source(): it looks at the installed bash first, and this may run where the script is only made.
    completer = shell(ctx.find_root().command, {}, "lessor", COMPLETION)
    click.echo(completer.source_template % completer.source_vars())


def complete(cli: click.Command, instruction: str) -> None:
    """Answers the script; `instruction` names the shell and the kind of answer."""
    from click.shell_completion import shell_complete

    with suppress(Failure, click.ClickException):
        shell_complete(cli, {}, "lessor", "", instruction)
