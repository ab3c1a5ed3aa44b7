"""Writes a conversation out in the format that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from teso_deploy.cues.contracts import Message
from teso_deploy.cues.model_bundle import ChatEntry
from teso_deploy.cues.tokens import Tokens
from teso_deploy.errors import CueSourceError


def write_out(messages: Sequence[Message], chat: ChatEntry, tokens: Tokens) -> str:
    """Return the text of a conversation up to the model's answer. Special tokens in the turns are broken up.

    Args:
        messages: An optional system message, then user and assistant in alternation. The last one is the user's.
        chat: The texts between the turns.
        tokens: The model's tokenizer.

    Raises:
        CueSourceError: The messages are in another order.
    """
    turns = [Message(role, tokens.plain(content)) for role, content in messages]
    system = turns.pop(0).content if turns and turns[0].role == "system" else None
    if [turn.role for turn in turns] != ["user" if k % 2 == 0 else "assistant" for k in range(len(turns))]:
        raise CueSourceError("a conversation goes user, assistant, user: give the turns in this order")
    if len(turns) % 2 == 0:
        raise CueSourceError("a conversation that is to be answered ends with a user's turn: add the question")
    if system is not None and chat.before_system is None:  # this format has no system turns
        turns[0] = Message("user", f"{system}\n\n{turns[0].content}")
        system = None
    text = chat.before_user if system is None else f"{chat.before_system}{system}{chat.system_to_user}"
    for number, turn in enumerate(turns):
        following = chat.user_to_assistant if turn.role == "user" else chat.assistant_to_user
        text += turn.content + (chat.user_to_answer if number == len(turns) - 1 else following)
    return text
