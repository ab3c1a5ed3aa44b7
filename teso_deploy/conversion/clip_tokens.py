"""Turn sentences into CLIP's tokens: byte pairs of lower-case text (Radford et al., 2021, section 2.4).

If the checkpoint comes with its vocabulary (``tokenizer.json``, or ``vocab.json`` and ``merges.txt``), Hugging Face
``tokenizers`` is used. Otherwise the package ``instant-clip-tokenizer`` is used, which contains OpenAI's vocabulary.
OpenCLIP, ImageBind and all CLIPs of Hugging Face that we know share that vocabulary.
"""

from __future__ import annotations

import html
import importlib.util
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import CheckpointError, CueError, MissingExtraError, RecipeError
from teso_deploy.recipe import ClipTextRecipe
from teso_deploy.requirements import write_install_command
from teso_deploy.text import to_one_line

PACKAGE, PACKAGE_MODULE = "instant-clip-tokenizer", "instant_clip_tokenizer"
PACKAGE_VOCABULARY = 49408
TOKENIZER_FILE, VOCABULARY_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"
#: How CLIP splits a text: into contractions, runs of letters, single digits, and runs of anything else
#: (``clip/simple_tokenizer.py``).
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_STRAIGHT_QUOTES = str.maketrans("ʼ‘’‚‛“”„‟", "'''''\"\"\"\"")

#: A cleaned sentence → ids, without those that start and end a row.
Encode = Callable[[str], list[int]]


def find_vocabulary_folder(beside: Path | None) -> Path | None:
    """Return the folder ``beside``, or the folder of the file ``beside``. None if it has no vocabulary."""
    if beside is None:
        return None
    folder = beside if beside.is_dir() else beside.parent
    split = (folder / VOCABULARY_FILE).is_file() and (folder / MERGES_FILE).is_file()
    return folder if split or (folder / TOKENIZER_FILE).is_file() else None


def check_tokenizer(beside: Path | None) -> None:
    """Raise :class:`MissingExtraError` if the package that :func:`clip_token_rows` will need is not installed."""
    if find_vocabulary_folder(beside) is not None:
        if importlib.util.find_spec("tokenizers") is None:
            raise MissingExtraError(f"embedding cue words needs tokenizers: {write_install_command('export')}")
    elif importlib.util.find_spec(PACKAGE_MODULE) is None:
        raise MissingExtraError(
            f"embedding cue words with CLIP needs {PACKAGE}: {write_install_command('export')}. If "
            f"it has no wheel (Python 3.13), put CLIP's {TOKENIZER_FILE} beside the checkpoint instead"
        )


def clean_sentence(sentence: str) -> str:
    """Clean a sentence as CLIP's training text was cleaned.

    The result has composed characters, straight quotes, no HTML entities, single blanks and lower case. CLIP's own
    tokenizer calls ``ftfy``, which also repairs text in a wrong encoding and ligatures; this function does not.

    >>> clean_sentence("The  dog’s BARK &amp; bite ")
    "the dog's bark & bite"
    """
    composed = html.unescape(html.unescape(unicodedata.normalize("NFC", sentence))).translate(_STRAIGHT_QUOTES)
    return " ".join(composed.split()).lower()


def clip_token_rows(sentences: Sequence[str], recipe: ClipTextRecipe, folder: Path | None) -> NDArray[np.int64]:
    """Turn sentences into rows of ids: start, the sentence, end, zeros. Long sentences are cut before the end.

    Args:
        sentences: N sentences.
        recipe: The text tower's sizes. The two highest ids of its vocabulary start and end a row.
        folder: Folder that may contain the vocabulary, or a file in it (the checkpoint). None: the package's
            vocabulary.

    Returns:
        Ids (N, context) int64.

    Raises:
        MissingExtraError: A package is not installed.
        CheckpointError: The vocabulary is damaged or has another size.
        RecipeError: The package's vocabulary has another size than the recipe's.
        CueError: The vocabulary can't spell a sentence.
    """
    check_tokenizer(folder)
    found = find_vocabulary_folder(folder)
    encode = _make_packaged_encoder(recipe) if found is None else _make_folder_encoder(found, recipe)
    start, end = recipe.vocabulary - 2, recipe.vocabulary - 1
    rows = np.zeros((len(sentences), recipe.context), dtype=np.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        ids = encode(clean_sentence(sentence))
        # Ids from ``start`` on mark start and end of the text. CLIP would stop reading at such an id.
        if any(token >= start for token in ids):
            raise CueError(f"CLIP's vocabulary can't spell {sentence!r}: use ordinary text only")
        ids = [start, *ids[: recipe.context - 2], end]
        row[: len(ids)] = ids
    return rows


def _make_packaged_encoder(recipe: ClipTextRecipe) -> Encode:
    """Return the encoder for OpenAI's vocabulary."""
    if recipe.vocabulary != PACKAGE_VOCABULARY:
        raise RecipeError(
            f"clip_text.vocabulary is {recipe.vocabulary}, but CLIP's has {PACKAGE_VOCABULARY} tokens: "
            f"put the {TOKENIZER_FILE} of such a model beside its checkpoint"
        )
    import instant_clip_tokenizer

    return instant_clip_tokenizer.Tokenizer().encode


def _make_folder_encoder(folder: Path, recipe: ClipTextRecipe) -> Encode:
    """Return the encoder for the vocabulary in a folder."""
    whole = folder / TOKENIZER_FILE
    tokenizer = _read_whole(whole) if whole.is_file() else _build_from_merges(folder)
    highest = (recipe.vocabulary - 2, recipe.vocabulary - 1)
    if (tokenizer.token_to_id(START), tokenizer.token_to_id(END)) != highest:
        raise CheckpointError(
            f"the vocabulary in {folder} does not fit a CLIP with {recipe.vocabulary} tokens, of which {START} and "
            f"{END} are the last: give the files that belong to the checkpoint, or none"
        )

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return encode


def _read_whole(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} is not a tokenizer ({to_one_line(error)}): download it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _build_from_merges(folder: Path) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    try:
        vocabulary = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        lines = (folder / MERGES_FILE).read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        # Text that the vocabulary lacks becomes the end token, which is refused.
        model = models.BPE(vocab=vocabulary, merges=pairs, unk_token=END, end_of_word_suffix="</w>")
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"{VOCABULARY_FILE} and {MERGES_FILE} in {folder} are not a vocabulary of CLIP ({to_one_line(error)}): "
            "download them again"
        ) from error
    tokenizer = Tokenizer(model)
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def make_sentence_tokenizer(beside: Path, recipe: ClipTextRecipe) -> Any:
    """Make a tokenizer (of ``tokenizers``) that does everything that :func:`clip_token_rows` does, except padding.

    Raises :class:`CheckpointError` if the vocabulary is not in the checkpoint's folder: the package's can't be written
    to a file.
    """
    folder = find_vocabulary_folder(beside)
    if folder is None:
        raise CheckpointError(
            f"no vocabulary of CLIP beside {beside}: put its {TOKENIZER_FILE} there, a text encoder needs it"
        )
    from tokenizers import Regex, normalizers, processors

    _make_folder_encoder(folder, recipe)  # checks that it is this model's
    whole = folder / TOKENIZER_FILE
    tokenizer = _read_whole(whole) if whole.is_file() else _build_from_merges(folder)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    start, end = recipe.vocabulary - 2, recipe.vocabulary - 1
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    tokenizer.enable_truncation(recipe.context)
    return tokenizer
