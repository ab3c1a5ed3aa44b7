"""Speed of captioners on this machine: the first word of a picture's caption, and the words after it.

    python -m benchmarks run captioners --write FOLDER
    python -m benchmarks run captioners MODELS [MODELS ...] [--pictures 9] [--threads 2]

``MODELS`` are folders of ``teso-deploy export-cues --captioner``. The weights may be random, because all captions have
the same length. All models take turns. ``--write`` makes checkpoints to export: ViT-B with GPT-2, and a LLaVA of
CLIP-L/336 and 0.27 billion parameters of LLaMA.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_files import add_out, record
from teso_deploy.comparison.report import environment_of
from teso_deploy.cues.language.captioner import LocalCaptioner
from teso_deploy.cues.model_bundle import CueModels
from teso_deploy.errors import CueSourceError, TesoError

PROMPT = "Describe what is to be seen."
#: Tokens of a caption: a little more than COCO's captions have.
TOKENS = 17


def measure(folders: list[Path], pictures: int, threads: int) -> list[dict[str, Any]]:
    """Measure each folder, and return one row per folder."""
    captioners = []
    for folder in folders:
        models = CueModels.open(folder)
        entry = models.manifest.captioner
        if entry is None:
            raise CueSourceError(f"{folder} has no captioner: export one with --captioner")
        entry = entry.model_copy(update={"decoder": entry.decoder.model_copy(update={"end": ()})})
        captioners.append(
            [LocalCaptioner(folder, entry, identity="x", threads=threads, max_new_tokens=n) for n in (1, TOKENS)]
        )
    seconds: dict[tuple[int, int], list[float]] = {}
    images = np.random.default_rng(0).integers(0, 256, (pictures + 1, 360, 640, 3), dtype=np.uint8)
    for image in images:
        for k, pair in enumerate(captioners):
            for which, captioner in enumerate(pair):
                began = time.perf_counter()
                captioner.caption(image, PROMPT)
                seconds.setdefault((k, which), []).append(time.perf_counter() - began)
    rows = []
    for k, folder in enumerate(folders):
        entry = CueModels.open(folder).manifest.captioner
        assert entry is not None
        first, whole = (float(np.median(seconds[k, which][1:])) for which in (0, 1))  # the first run is the warm-up
        rows.append(
            {
                "name": entry.name,
                "architecture": entry.architecture,
                "precision": entry.precision,
                "megabytes": round(sum(p.stat().st_size for p in (folder / entry.folder).iterdir()) / 1e6),
                "first_token_s": round(first, 3),
                "caption_s": round(whole, 3),
                "tokens_per_second": round((TOKENS - 1) / (whole - first), 1),
            }
        )
    return rows


def write_checkpoints(folder: Path) -> None:
    """Write two checkpoints of real size in Hugging Face's format, with random weights."""
    import transformers as hf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: k + 4 for k, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = Tokenizer(models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2, "<image>": 3, **letters}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=library, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    gpt2 = hf.GPT2Config(add_cross_attention=True, is_decoder=True, bos_token_id=1, eos_token_id=2)
    both = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(hf.ViTConfig(), gpt2)
    captioner: Any = hf.VisionEncoderDecoderModel(both)
    for of in (captioner.config, captioner.generation_config):
        of.decoder_start_token_id, of.eos_token_id, of.pad_token_id = 1, 2, 0
    clip = hf.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    llama = hf.LlamaConfig(
        vocab_size=32064, hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=4096,
    )  # fmt: skip
    seeing = hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=clip, text_config=llama, image_token_index=3, image_seq_length=576)
    )
    cut = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    for name, parts in (
        ("vit-gpt2", (captioner, tokenizer, hf.ViTImageProcessor())),
        ("llava-clip-l", (seeing, tokenizer, cut)),
    ):
        for part in parts:
            part.save_pretrained(folder / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write random checkpoints there, and end")
    parser.add_argument("--pictures", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    add_out(parser)
    given = parser.parse_args(arguments)
    if given.write is not None:
        write_checkpoints(given.write)
        return 0
    if not given.models:
        parser.error("give folders of models, or --write")
    try:
        environment = environment_of(given.threads, weights="random")
        rows = measure(given.models, given.pictures, given.threads)
    except TesoError as error:
        print(f"captioners: {error}", file=sys.stderr)
        return error.exit_code
    note = f"Medians over {given.pictures} pictures of 640 x 360, taking turns; captions of {TOKENS} tokens."
    report = {"schema_version": 1, "rows": rows, "bound_by": note, "environment": environment}
    record("captioners-cpu", "How fast captioners of real size caption", report, out=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
