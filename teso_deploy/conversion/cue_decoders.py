"""Export a language model from PyTorch with Optimum, with keys and values as inputs and outputs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from teso_deploy.conversion.cue_weights import call_quietly, store_graph
from teso_deploy.cues.contracts import Message
from teso_deploy.cues.language.conversation import write_out
from teso_deploy.cues.model_bundle import TOKENIZER_FILE, ChatEntry, DecoderEntry, ModelEntry, WeightPrecision
from teso_deploy.cues.tokens import Tokens
from teso_deploy.errors import CheckpointError, InputNotFoundError, MissingExtraError
from teso_deploy.models.file_kinds import identify
from teso_deploy.models.weight_folders import find_weight_files
from teso_deploy.requirements import write_install_command
from teso_deploy.small_files import parse_json, read_text
from teso_deploy.text import to_one_line

TASK = "text-generation-with-past"
#: The template for models that have no chat template.
_PLAIN = ChatEntry(
    before_system="", system_to_user="\n\nUser: ", before_user="User: ", user_to_assistant="\nAssistant: ",
    assistant_to_user="\n\nUser: ", user_to_answer="\nAssistant:",
)  # fmt: skip


def import_cue_libraries() -> Any:
    """Import Optimum's ONNX exporter. Raises :class:`MissingExtraError`."""
    try:
        import optimum.exporters.onnx as exporters
        import optimum.exporters.onnx.model_configs  # noqa: F401  (fills the list of what is supported)
        import transformers.dynamic_module_utils as remote_code
    except ImportError as error:
        raise MissingExtraError(
            f"export-cues needs Optimum and transformers: {write_install_command('cues')}"
        ) from error
    # For parts of a model the library does not pass `trust_remote_code` on. With a timeout of 0 it refuses remote code
    # instead of asking the user.
    remote_code.TIME_OUT_REMOTE_CODE = 0
    return exporters


def list_supported(task: str) -> list[str]:
    """List the architectures (``model_type``) that Optimum exports for a task."""
    import_cue_libraries()
    from optimum.exporters.tasks import TasksManager

    return sorted(TasksManager.get_supported_model_type_for_task(task, "onnx"))


def read_config(source: Path) -> dict[str, Any]:
    """Read ``config.json`` of a Hugging Face folder.

    Raises :class:`InputNotFoundError`, :class:`CheckpointError`.
    """
    if not source.exists():
        raise InputNotFoundError(f"no model {source}: name a Hugging Face folder or a .gguf file")
    path = source / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{source} has no config.json: name a folder as `save_pretrained` writes it")
    wanted = "that of a folder as `save_pretrained` writes it"
    config = parse_json(read_text(path, wanted, error=CheckpointError), path, error=CheckpointError)
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{path} names no model_type: name a folder as `save_pretrained` writes it")
    return config


def name_of(source: Path) -> str:
    """Name a model by its folder or file; a snapshot is named by its repository."""
    if source.parent.name == "snapshots":
        return source.parent.parent.name.removeprefix("models--").replace("--", "/")
    return source.stem if source.is_file() else source.resolve().name


def refuse_unreadable(source: Path, what: str, error: BaseException) -> CheckpointError:
    """Make the error to raise if transformers can't read a model.

    Args:
        source: The model's folder or file.
        what: The kind of model that was expected, for the message.
        error: The error of transformers.

    Returns:
        The error.
    """
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return CheckpointError(
            f"{source} needs its own code, which is never run: take a model whose architecture is in transformers"
        )
    return CheckpointError(f"{source} can't be read as {what} ({take_first_line(error)}): check its files")


def check_architecture(model_type: str, allowed: Sequence[str], what: str) -> None:
    """Refuse an architecture that can't be exported.

    Args:
        model_type: The architecture.
        allowed: The architectures that can be exported.
        what: The kind of model, for the message.

    Raises:
        CheckpointError: The architecture is not among the allowed ones.
    """
    if model_type not in allowed:
        raise CheckpointError(
            f"{what} of architecture {model_type!r} can't be exported: take one of {', '.join(allowed)}"
        )


def export_decoder(source: Path, out: Path, precision: WeightPrecision) -> ModelEntry:
    """Export a language model as the graph "decoder", with its tokenizer.

    Args:
        source: A Hugging Face folder or a ``.gguf`` file.
        out: Existing folder for the graph and the tokenizer.
        precision: Precision of the weights.

    Returns:
        The model's entry in the manifest.

    Raises:
        InputNotFoundError: The folder or file does not exist.
        CheckpointError: There is no config, Optimum does not export the architecture with a cache, or a file is
            damaged.
        MissingExtraError: A package is not installed.
    """
    exporters = import_cue_libraries()
    model, tokenizer, licence = _load(source)
    write_tokenizer(tokenizer, out)
    end = ends_of(model, tokenizer)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        work = Path(folder)
        call_quietly(exporters.onnx_export_from_model, model, work, task=TASK, do_validation=False, slim=False)
        graph = work / "model.onnx"
        keep_last_logits(graph)
        store_graph(graph, out / "decoder.onnx", precision)
    return ModelEntry(
        kind="decoder",
        folder=out.name,
        name=name_of(source),
        architecture=str(model.config.model_type),
        precision=precision,
        graphs={"decoder": "decoder.onnx"},
        decoder=describe_decoder(out / "decoder.onnx", model.config, end=end),
        chat=find_chat_texts(tokenizer, Tokens(out / TOKENIZER_FILE)),
        licence=licence,
    )


def _load(source: Path) -> tuple[Any, Any, str]:
    """Load a model and its tokenizer, and read its licence."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf_file: dict[str, Any] = {}
    folder = source
    if source.is_file():
        if identify(source) != "gguf":
            raise CheckpointError(f"{source} is a file, and not GGUF: name a Hugging Face folder or a .gguf file")
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(f".gguf files need the package gguf: {write_install_command('cues')}") from error
        gguf_file, folder = {"gguf_file": source.name}, source.parent
    else:
        check_architecture(str(read_config(source)["model_type"]), list_supported(TASK), "a reasoner")
        find_weight_files(source)  # refuses weights that are pointers of Git LFS
    try:
        tokenizer = call_quietly(
            AutoTokenizer.from_pretrained, str(folder), local_files_only=True, trust_remote_code=False, **gguf_file
        )

        def load(attention: str) -> Any:
            return call_quietly(
                AutoModelForCausalLM.from_pretrained, str(folder), local_files_only=True, trust_remote_code=False,
                dtype="float32", attn_implementation=attention, **gguf_file,
            ).eval()  # fmt: skip

        try:
            model = load("sdpa")
        except ValueError:  # GPT-J, BLOOM and others have only eager attention
            model = load("eager")
    except Exception as error:  # transformers and its readers raise errors of many types
        raise refuse_unreadable(source, "a language model", error) from error
    check_architecture(str(model.config.model_type), list_supported(TASK), "a reasoner")
    return model, tokenizer, read_licence(source)


def take_first_line(error: BaseException) -> str:
    """Shorten the message of another library's error to its first line."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return to_one_line(line, 200)


def read_licence(source: Path) -> str:
    """Read the licence from the model's card or file; "unknown" if neither names one."""
    if source.is_file():
        from gguf import GGUFReader

        field = GGUFReader(str(source)).get_field("general.license")
        return str(field.contents()) if field is not None else "unknown"
    try:
        card = (source / "README.md").read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return "unknown"
    found = re.search(r"^license:\s*([^\n]+)$", card, re.MULTILINE)
    return found[1].strip() if found else "unknown"


def write_tokenizer(tokenizer: Any, out: Path) -> None:
    """Write ``tokenizer.json``. Raises :class:`CheckpointError` if the tokenizer is not a fast one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError("its tokenizer has no fast version: save the model with a fast tokenizer")
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(out / TOKENIZER_FILE))


def ends_of(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer."""
    ids = set[int]()
    for of in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        ids |= set(of) if isinstance(of, list | tuple) else {of} if of is not None else set()
    for turn in ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"):
        number = tokenizer.get_vocab().get(turn)
        ids |= {number} if number is not None else set()
    if not ids:
        raise CheckpointError("the model has no token that ends an answer: set eos_token_id in its config")
    return tuple(sorted(int(number) for number in ids))


def keep_last_logits(path: Path) -> None:
    """Change a graph in place so that it computes the logits (B, 1, V) of its last token only.

    For a prompt of 1,500 tokens and a vocabulary of 49,152, all logits take 295 MB and a sixth of the graph's time.
    """
    model = ir.load(path)
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    node = logits.producer()
    following = [logits]
    while node is not None and node.op_type in _ELEMENTWISE:  # limits, scales and biases after the product
        varying = [value for value in node.inputs if value is not None and not _is_constant(value)]
        if len(varying) != 1:
            return
        following.append(varying[0])
        node = varying[0].producer()
    if node is None or node.op_type != "MatMul" or node.inputs[0] is None:
        return  # something else follows the product: keep all of it
    last = ir.tensor([-1], dtype=ir.DataType.INT64, name="last_token")
    index = ir.Value(name="last_token", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64), const_value=last)
    model.graph.register_initializer(index)
    taken = ir.node("Gather", [node.inputs[0], index], {"axis": 1}, name="hidden_of_last_token")
    taken.outputs[0].name = "hidden_of_last_token"
    model.graph.insert_before(node, taken)
    node.replace_input_with(0, taken.outputs[0])
    for value in following:
        if value.shape is not None:
            value.shape = ir.Shape([value.shape[0], 1, value.shape[2]])
    ir.save(model, path, external_data=f"{path.name}.last.data")


_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Tanh", "Cast", "Identity"})


def _is_constant(value: ir.Value) -> bool:
    """Whether a value does not depend on the graph's inputs."""
    node = value.producer()
    if node is None:
        return value.const_value is not None
    return all(_is_constant(taken) for taken in node.inputs if taken is not None)


def describe_decoder(graph: Path, config: Any, *, end: Sequence[int], start: Sequence[int] = ()) -> DecoderEntry:
    """Read the sizes of an exported decoder from its graph.

    Args:
        graph: The decoder's file.
        config: The model's configuration, for its context and vocabulary.
        end: Ids that end an answer.
        start: Ids that start an answer. Default: none.

    Returns:
        The decoder's entry in the manifest.
    """
    model = onnx.load(str(graph), load_external_data=False)
    keys = [value for value in model.graph.input if re.fullmatch(r"past_key_values\.\d+\.(decoder\.)?key", value.name)]
    _, heads, _, head_dim = (dim.dim_value for dim in keys[0].type.tensor_type.shape.dim)
    logits = next(value for value in model.graph.output if value.name == "logits")
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    context = next(
        (int(size) for name in ("max_position_embeddings", "n_positions", "n_ctx")
         if (size := getattr(text, name, None))), 2048,
    )  # fmt: skip
    return DecoderEntry(
        layers=len(keys),
        heads=heads,
        head_dim=head_dim,
        vocabulary=logits.type.tensor_type.shape.dim[-1].dim_value or int(text.vocab_size),
        context=context,
        start=tuple(start),
        end=tuple(end),
    )


def find_chat_texts(tokenizer: Any, tokens: Tokens) -> ChatEntry:
    """Find the texts that a chat template puts between turns, by letting it write marked turns.

    Raises :class:`CheckpointError` if the template does not write the turns one after the other.
    """
    if not getattr(tokenizer, "chat_template", None):
        return add_begin_token(_PLAIN, tokenizer)
    marks = ["MARKONE", "MARKTWO", "MARKTHREE", "MARKFOUR"]

    in_parts = _takes_parts(tokenizer)

    def render(*messages: tuple[str, str], answer: bool = False) -> str:
        turns = _make_turns(messages, in_parts)
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer))

    system, user, assistant, again = zip(("system", "user", "assistant", "user"), marks, strict=True)
    try:
        try:
            before, to_user, to_assistant, to_again, _ = _split_between(render(system, user, assistant, again), marks)
            before_system: str | None = before
        except Exception:  # a template that refuses a system turn may raise any error
            before_system, to_user = None, ""
            _, to_assistant, to_again, _ = _split_between(render(user, assistant, again), marks[1:])
        before_user, _ = _split_between(render(user), marks[1:2])
        _, to_answer = _split_between(render(user, answer=True), marks[1:2])
    except Exception as error:
        raise CheckpointError(
            f"its chat template can't be used ({take_first_line(error)}): export the model with another template"
        ) from error
    chat = ChatEntry(
        before_system=before_system,
        system_to_user=to_user,
        before_user=before_user,
        user_to_assistant=to_assistant,
        assistant_to_user=to_again,
        user_to_answer=to_answer,
    )
    turns = [("user", "A dog?"), ("assistant", "Yes."), ("user", "A cat?"), ("assistant", "No."), ("user", "A cow?")]
    trial = [("system", "Be brief."), *turns]
    trial = trial if before_system is not None else trial[1:]
    ours = tokens.ids(write_out([Message(*turn) for turn in trial], chat, tokens))  # type: ignore[arg-type]
    theirs = tokenizer.apply_chat_template(_make_turns(trial, in_parts), add_generation_prompt=True)
    if ours != theirs:
        raise CheckpointError(
            "its chat template depends on the position of a turn: export the model with a simpler template"
        )
    return chat


def add_begin_token(chat: ChatEntry, tokenizer: Any) -> ChatEntry:
    """Add the token that the tokenizer puts before every text, because a template may rely on the tokenizer for it."""
    bos = tokenizer.bos_token
    if not bos or tokenizer("x").input_ids[:1] != [tokenizer.bos_token_id]:
        return chat
    texts = {name: getattr(chat, name) for name in ("before_system", "before_user")}
    return chat.model_copy(
        update={name: bos + text for name, text in texts.items() if text is not None and not text.startswith(bos)}
    )


def _takes_parts(tokenizer: Any) -> bool:
    """Whether a template takes a turn as a list of typed parts, as those of vision-language models do."""
    try:
        return "MARK" not in tokenizer.apply_chat_template(_make_turns([("user", "MARK")], False), tokenize=False)
    except Exception:  # a template that takes no parts may raise any error
        return True


def _make_turns(messages: Sequence[tuple[str, str]], in_parts: bool) -> list[Mapping[str, Any]]:
    return [
        {"role": role, "content": [{"type": "text", "text": content}] if in_parts else content}
        for role, content in messages
    ]


def _split_between(text: str, marks: Sequence[str]) -> list[str]:
    """Return the texts before, between and after marks, each of which occurs once, in order."""
    found = []
    for mark in marks:
        before, is_there, text = text.partition(mark)
        if not is_there:
            raise ValueError(f"a turn is missing: {mark}")
        found.append(before)
    return [*found, text]
