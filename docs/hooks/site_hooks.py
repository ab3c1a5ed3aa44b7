"""What mkdocs calls while it builds the site: render the command line, and take in linked files outside ``docs/``."""

from __future__ import annotations

import html
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the program that is described is that of this checkout

#: Pages of the repository that the navigation lists. Other files outside ``docs/`` are taken in when a page links them.
LISTED = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
#: Folder of the site that holds files from outside ``docs/``.
OUTSIDE = "repository"
COMMANDS_PAGE, COMMANDS_MARK = "reference/commands.md", "<!-- commands -->"
_LINK = re.compile(r"(?P<before>!?\[[^\]]*\]\()(?P<target>[^)\s#]+)(?P<after>(?:#[^)\s]*)?\))")
#: What a code block says to the tests, as in ```bash notest="needs a GPU".
_FOR_TESTS = re.compile(r'^(\s*```[a-z]+)(?: [a-z]+="[^"\n]*")+$', re.M)
_FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def to_site(path: str) -> str:
    """Convert a path of the repository into the path of the same file in the site's sources."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{OUTSIDE}/{path}"


def to_repository(path: str) -> str:
    """Convert a path in the site's sources into the path of the same file in the repository."""
    return path.removeprefix(f"{OUTSIDE}/") if path.startswith(f"{OUTSIDE}/") else f"docs/{path}"


def find_links(markdown: str, page: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to. ``page`` is a path of the repository."""
    for link in _LINK.finditer(_FENCE.sub("", markdown)):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link["target"]))
        if "://" not in link["target"] and (ROOT / target).is_file():
            yield target


def on_files(files: Any, config: Any) -> Any:
    """Add the listed pages, and every file outside ``docs/`` that a page links to."""
    waiting = [to_repository(file.src_uri) for file in files.documentation_pages()]
    waiting += [page for page in LISTED if (ROOT / page).is_file()]
    found = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            level = InclusionLevel.INCLUDED if path in LISTED else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, to_site(path), abs_src_path=str(ROOT / path), inclusion=level))
        if path.endswith(".md"):
            for target in find_links((ROOT / path).read_text(encoding="utf-8"), path):
                if target not in found and not target.startswith("docs/"):
                    found.add(target)
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links to where files lie in the site, and fill in the command line."""
    here = page.file.src_uri
    source = to_repository(here)

    def point(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        if "://" in link["target"] or link["target"].startswith("mailto:"):
            return link[0]
        return link["before"] + posixpath.relpath(to_site(target), posixpath.dirname(here)) + link["after"]

    markdown = _FOR_TESTS.sub(r"\1", _LINK.sub(point, markdown))
    return markdown.replace(COMMANDS_MARK, render_commands()) if here == COMMANDS_PAGE else markdown


def _render_rows(context: Any, parameters: list[Any]) -> Iterator[str]:
    for parameter in parameters:
        if record := parameter.get_help_record(context):
            names, text = (part.replace("|", "\\|") for part in record)
            yield f"| `{names}` | {html.escape(text, quote=False).replace('*', '&#42;')} |"


def _render_table(title: str, context: Any, parameters: list[Any]) -> Iterator[str]:
    if rows := list(_render_rows(context, parameters)):
        yield from ("", f"| {title} | |", "|---|---|", *rows)


def _render_command(group: Any, context: Any, name: str) -> Iterator[str]:
    command = group.get_command(context, name)
    inner = command.context_class(command, info_name=name, parent=context)
    usage = " ".join([f"teso-deploy {name}", *command.collect_usage_pieces(inner)])
    yield from ("", f"## {name}", "", " ".join((command.help or "").split()), "", "```text", usage, "```")
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    yield from _render_table("argument", inner, arguments)
    panels: dict[str, list[Any]] = {}
    for option in command.params:
        if option not in arguments:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "option", []).append(option)
    for title, options in panels.items():
        yield from _render_table(title, inner, options)


def render_commands() -> str:
    """Render every command with its arguments and options, from the program's own parser."""
    os.environ["COLUMNS"] = "200"
    import typer.main

    from teso_deploy.cli import app

    group = typer.main.get_command(app)
    context = group.context_class(group, info_name="teso-deploy")
    return "\n".join(line for name in group.list_commands(context) for line in _render_command(group, context, name))


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Remove the roles of Sphinx that docstrings still have, as in ``:class:`Frame```."""
    return re.sub(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)", "", content)
