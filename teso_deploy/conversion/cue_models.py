"""Export a captioner and a reasoner from PyTorch to one folder that :class:`CueModels` opens."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from teso_deploy.backends.onnxruntime import count_cores
from teso_deploy.conversion.captioners import CAPTIONERS, export_captioner
from teso_deploy.conversion.cue_decoders import (
    check_architecture,
    export_decoder,
    import_cue_libraries,
    name_of,
    read_config,
    take_first_line,
)
from teso_deploy.conversion.llava import LLAVA, export_llava
from teso_deploy.cues.contracts import Message
from teso_deploy.cues.language.captioner import LocalCaptioner
from teso_deploy.cues.language.reasoner import LocalReasoner
from teso_deploy.cues.model_bundle import KIND, CueModels, CueModelsManifest, ModelEntry, WeightPrecision
from teso_deploy.errors import CheckpointError, TesoError
from teso_deploy.models.file_kinds import identify
from teso_deploy.models.weight_folders import find_snapshot


def export_cue_models(
    captioner: Path | None,
    reasoner: Path | None,
    out: Path,
    *,
    precision: WeightPrecision = "fp32",
    on_progress: Callable[[str], None] = lambda text: None,
) -> CueModelsManifest:
    """Write the folder of cue models, completely or not at all.

    Args:
        captioner: A Hugging Face folder of a vision-encoder-decoder, a pix2struct or a LLaVA; None for no captioner.
        reasoner: The Hugging Face folder of a language model that Optimum exports with a cache, a ``.gguf`` file, or
            the captioner's LLaVA again, which is then written once; None for no reasoner.
        out: The folder to write.
        precision: Precision of the weights of products. Default: fp32.
        on_progress: Called with the current stage. Default: ignored.

    Returns:
        The manifest of the folder.

    Raises:
        InputNotFoundError: A model does not exist.
        CheckpointError: No model is given, or one can't be exported; the message lists supported ones.
        MissingExtraError: A package is not installed.
        OutputError: The folder can't be written.
    """
    if captioner is None and reasoner is None:
        raise CheckpointError("there is nothing to export: give --captioner, --reasoner or both")
    import_cue_libraries()
    captioner, reasoner = (None if path is None else find_snapshot(path) for path in (captioner, reasoner))
    is_llava = {path: _read_model_type(path) == LLAVA for path in (captioner, reasoner) if path is not None}
    if captioner is not None:
        check_architecture(_read_model_type(captioner), [*CAPTIONERS, LLAVA], "a captioner")
    with KIND.staging(out) as folder:
        written: dict[Path, ModelEntry] = {}
        for name, source in (("captioner", captioner), ("reasoner", reasoner)):
            if source is None or (source in written and is_llava[source]):
                continue
            on_progress(f"{name}: {name_of(source)}")
            export = export_llava if is_llava[source] else export_captioner if name == "captioner" else export_decoder
            (place := folder / name).mkdir()
            written[source] = _export(export, source, place, precision=precision, role=name)
        manifest = CueModelsManifest(
            captioner=None if captioner is None else written[captioner],
            reasoner=None if reasoner is None else written[reasoner],
            provenance={
                name: version(name) for name in ("teso-deploy", "torch", "transformers", "optimum-onnx", "onnx")
            },
            files=KIND.hash_files(folder),
        )
        KIND.write(folder, manifest)
        on_progress("asking them")
        _try_out(folder, manifest)
        on_progress("checking what was written")
        CueModels.open(folder)
    return manifest


def _export(
    export: Callable[[Path, Path, WeightPrecision], ModelEntry],
    source: Path,
    place: Path,
    *,
    precision: WeightPrecision,
    role: str,
) -> ModelEntry:
    try:
        return export(source, place, precision)
    except (TesoError, OSError):
        raise
    except Exception as error:  # exporters raise errors of many types
        raise CheckpointError(f"{source} can't be exported ({take_first_line(error)}): take another {role}") from error


def _try_out(folder: Path, manifest: CueModelsManifest) -> None:
    """Run the exported models once: a caption and an answer of two words.

    Raises :class:`CheckpointError` if a model fails.
    """
    for role, entry in (("captioner", manifest.captioner), ("reasoner", manifest.reasoner)):
        if entry is None:
            continue
        try:
            if role == "captioner":
                picture = np.full((61, 97, 3), 127, np.uint8)
                LocalCaptioner(folder, entry, identity=role, threads=count_cores(), max_new_tokens=2).caption(
                    picture, "What?"
                )
            else:
                reasoner = LocalReasoner(folder, entry, identity=role, threads=count_cores(), max_new_tokens=2)
                reasoner.answer([Message("user", "A dog?")], constrained=False)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise CheckpointError(
                f"{entry.name} was exported, but does not run ({take_first_line(error)}): take another {role}"
            ) from error


def _read_model_type(source: Path) -> str:
    """Return the architecture of a Hugging Face folder, or the format of a file."""
    return f"{identify(source)} file" if source.is_file() else str(read_config(source)["model_type"])
