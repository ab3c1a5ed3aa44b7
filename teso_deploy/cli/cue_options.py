"""Options of the commands that ask a source of cues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from teso_deploy.cues.sources.registry import list_sources, list_sources_taking

ModelsOption = Annotated[
    Path | None,
    typer.Option(
        "--models",
        help="A folder of `teso-deploy export-cues`: captioner and reasoner of "
        f"{', '.join(list_sources_taking('models'))}.",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help=f"Of {', '.join(list_sources_taking('server'))}: an OpenAI-compatible server (vLLM, llama.cpp, Ollama). "
        "Its key is in TESO_CUES_API_KEY.",
    ),
]
ServerModelOption = Annotated[str | None, typer.Option("--server-model", help="Default: the server's first.")]
ServerFramesOption = Annotated[
    int,
    typer.Option("--frames", min=1, max=16, help="Of openai: pictures that it is shown at a time."),
]
PromptOption = Annotated[
    str, typer.Option("--prompt", help="Of llm and openai: a shipped prompt by name, or a TOML file.")
]
SourceTimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Seconds that a model or a server may take for an answer.")
]
SOURCE_HELP = f"{', '.join(list_sources())}; several by comma: the first that answers."
