"""The program accepts the documentation's commands and Python, also those that can't run here."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main

from teso_deploy.cli import app
from tests.support.code_blocks import ROOT, CodeBlock, find_commands, find_pages

BLOCKS = [block for blocks in find_pages().values() for block in blocks]


def _name(block: CodeBlock) -> str:
    return f"{block.page}:{block.line}"


def _parse(arguments: list[str]) -> None:
    """Parse a command line with the program's own parser. Raises the parser's error."""
    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="teso-deploy")
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if arguments == ["--version"]:
        return
    command = group.get_command(context, arguments[0])
    assert command is not None, f"no command {arguments[0]}"
    inner = command.context_class(command, info_name=arguments[0], parent=context)
    given, rest, _ = command.make_parser(inner).parse_args(list(arguments[1:]))
    assert not rest, f"left over: {rest}"
    missing = [each.name for each in command.params if each.required and not each.envvar and not given.get(each.name)]
    assert not missing, f"missing: {missing}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "bash"], ids=_name)
def test_commands_are_accepted(block: CodeBlock) -> None:
    for arguments in find_commands(block):
        if "COMMAND" not in arguments:
            _parse(arguments)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=_name)
def test_python_compiles(block: CodeBlock) -> None:
    compile(block.code, _name(block), "exec")


def test_reasons_are_given() -> None:
    """A block that is not run gives a reason, and its notes have a spelling that the tests understand."""
    for block in BLOCKS:
        assert block.notes.keys() <= {"notest", "slow", "needs"}, _name(block)
        assert all(block.notes.values()), _name(block)


def test_every_fence_is_found() -> None:
    """A block with an unreadable first line would be skipped."""
    for page, blocks in find_pages().items():
        fences = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith("```")]
        assert len(fences) == 2 * len(blocks), page


def test_an_unknown_option_is_found() -> None:
    block = CodeBlock("page.md", 1, "bash", {}, "cd x && teso-deploy run a.mp4 --oyt b.mp4 | cat\n")
    (arguments,) = find_commands(block)
    assert arguments == ["run", "a.mp4", "--oyt", "b.mp4"]
    with pytest.raises(Exception, match="oyt"):
        _parse(arguments)
