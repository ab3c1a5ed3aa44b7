"""The common part of the sources ``llm`` and ``openai``: a captioner and a language model."""

from __future__ import annotations

from teso_deploy.cues.answers import read_answer
from teso_deploy.cues.caption_words import is_mentioned
from teso_deploy.cues.contracts import Captioner, CueAnswer, CueMoment, Reasoner
from teso_deploy.cues.prompts import Prompt
from teso_deploy.cues.sources.parts import describe
from teso_deploy.errors import NoCueAnswerError
from teso_deploy.text import to_one_line
from teso_deploy.types import CueSourceName

#: How much of a model's answer a message shows.
SHOWN_CHARACTERS = 120


class ReasonedSource:
    """The paper's source: a captioner describes the picture, a language model names the things in it that sound.

    Names that the caption does not have are omitted, and listed in the answer as ungrounded. So a picture, or a text
    in it, can make a model say anything, but can't make it offer a cue.

    Args:
        name: The name in the registry, ``llm`` or ``openai``.
        captioner: The model that describes the picture.
        reasoner: The language model.
        prompt: The prompt for the language model.
    """

    def __init__(self, name: CueSourceName, *, captioner: Captioner, reasoner: Reasoner, prompt: Prompt) -> None:
        self.name, self._captioner, self._reasoner, self._prompt = name, captioner, reasoner, prompt

    @property
    def identity(self) -> str:
        """The identities of captioner, reasoner and prompt."""
        return f"{self.name}:{self._captioner.identity}:{self._reasoner.identity}:{self._prompt.identity}"

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """Ask the reasoner what sounds. Raises :class:`NoCueAnswerError` if its answer can't be read."""
        caption = describe(self._captioner, moment)
        reasoning = self._reasoner.answer(self._prompt.messages(caption))
        read = read_answer(reasoning)
        if read.sounding is None:
            said = to_one_line(reasoning, SHOWN_CHARACTERS)
            raise NoCueAnswerError(
                f"the language model named no objects ({f'it wrote {said!r}' if said else 'it wrote nothing'}): take "
                "another model or prompt"
            )
        surest = dict(zip(read.sounding, read.confidences, strict=False))
        names = tuple(name for name in read.sounding if is_mentioned(caption, name))
        return CueAnswer(
            names,
            self.name,
            moment.frame.pts_seconds,
            tuple(surest[name] for name in names) if surest else (),
            objects=tuple(name for name in read.objects if is_mentioned(caption, name)),
            ungrounded=tuple(name for name in read.sounding if name not in names),
            caption=caption,
            reasoning=reasoning,
        )

    def close(self) -> None:
        """Close captioner and reasoner."""
        self._captioner.close()
        self._reasoner.close()
