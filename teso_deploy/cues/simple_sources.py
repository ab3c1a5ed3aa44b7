"""The sources of text cues that need nothing but what they are given; see :mod:`teso_deploy.cues.contracts`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from teso_deploy.bundle import TaggerEntry
from teso_deploy.cues.answers import read_answer
from teso_deploy.cues.asking import Allowance
from teso_deploy.cues.contracts import Captioner, CueAnswer, CueMoment, CueSource, Reasoner
from teso_deploy.cues.nouns import find_nouns, mentions
from teso_deploy.cues.prompts import Prompt
from teso_deploy.cues.table import variants
from teso_deploy.errors import CueSourceError, NoCueAnswerError
from teso_deploy.text import to_one_line
from teso_deploy.types import CueSourceName

#: Of what a model wrote, a message shows so much.
SHOWN_CHARACTERS = 120


class TaggerSource:
    """The bundle's own tagger: what it sees, with its thresholds. Has no answer where it sees nothing."""

    name = "tagger"

    def __init__(self, tagger: TaggerEntry) -> None:
        self._tagger = tagger
        self.identity = f"tagger:{tagger.threshold}"

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """Words above the threshold, surest first."""
        if moment.tags is None:
            raise CueSourceError("the tagger gave no tags: use a bundle that has one")
        sure = sorted((-score, word) for word, score in moment.tags.items() if score >= self._tagger.threshold)
        if not sure:
            return None
        names = tuple(word for _, word in sure)
        scores = tuple(min(1.0, max(0.0, -score)) for score, _ in sure)
        return CueAnswer(names, "tagger", moment.frame.pts_seconds, scores, objects=names)

    def close(self) -> None:
        """Nothing to let go of."""


class NounSource:
    """TeSOn: the nouns of a caption, those of ``classes`` (what the model can segment) first.

    ``known``: words with an embedding.
    """

    name = "nouns"

    def __init__(self, captioner: Captioner, known: Collection[str], classes: Sequence[str] = ()) -> None:
        self._captioner, self._known, self._classes = captioner, frozenset(known), frozenset(classes)
        words = json.dumps([sorted(self._known), sorted(self._classes)])
        self._words = hashlib.sha256(words.encode()).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """Of its captioner, and of the words that it looks for."""
        return f"nouns:{self._captioner.identity}:{self._words}"

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """Nouns of the caption; no answer where it has none that is known."""
        caption = _caption_of(self._captioner, moment)
        names = tuple(find_nouns(caption, self._known, self._classes))
        if not names:
            return None
        return CueAnswer(names, "nouns", moment.frame.pts_seconds, objects=names, caption=caption)

    def close(self) -> None:
        """Of its captioner."""
        self._captioner.close()


class ReasonedSource:
    """The paper's: a captioner describes the picture, a language model says what of it sounds.

    ``name``: ``llm`` or ``openai``. Names that the caption does not have are left out, and told apart in the answer: a
    picture, or a text in it, can make a model say anything, but not offer it.
    """

    def __init__(self, name: CueSourceName, captioner: Captioner, reasoner: Reasoner, prompt: Prompt) -> None:
        self.name, self._captioner, self._reasoner, self._prompt = name, captioner, reasoner, prompt

    @property
    def identity(self) -> str:
        """Of captioner, reasoner and prompt."""
        return f"{self.name}:{self._captioner.identity}:{self._reasoner.identity}:{self._prompt.identity}"

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """What sounds, by the reasoner. Raises :class:`NoCueAnswerError` where it wrote nothing that can be read."""
        caption = _caption_of(self._captioner, moment)
        reasoning = self._reasoner.answer(self._prompt.messages(caption))
        read = read_answer(reasoning)
        if read.sounding is None:
            said = to_one_line(reasoning, SHOWN_CHARACTERS)
            raise NoCueAnswerError(
                f"the language model named no objects ({f'it wrote {said!r}' if said else 'it wrote nothing'}): take "
                "another model or prompt"
            )
        surest = dict(zip(read.sounding, read.confidences, strict=False))
        names = tuple(name for name in read.sounding if mentions(caption, name))
        return CueAnswer(
            names,
            self.name,
            moment.frame.pts_seconds,
            tuple(surest[name] for name in names) if surest else (),
            objects=tuple(name for name in read.objects if mentions(caption, name)),
            ungrounded=tuple(name for name in read.sounding if name not in names),
            caption=caption,
            reasoning=reasoning,
        )

    def close(self) -> None:
        """Of captioner and reasoner."""
        self._captioner.close()
        self._reasoner.close()


def _caption_of(captioner: Captioner, moment: CueMoment) -> str:
    """A caption. Raises :class:`NoCueAnswerError` where it is empty."""
    caption = captioner.caption(moment)
    if not caption.strip():
        raise NoCueAnswerError("the captioner wrote nothing: take a model that sees pictures")
    return caption


class FilterSource:
    """The paper's baseline (table 6): of what the masks show, what another source names too."""

    name = "filter"

    def __init__(self, inner: CueSource) -> None:
        self._inner = inner

    @property
    def identity(self) -> str:
        """Of the inner source."""
        return f"filter:{self._inner.identity}"

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """Predicted classes among the inner source's names; no answer where that has none, or nothing was predicted."""
        if moment.predicted is None:
            return None
        answer = self._inner.ask(moment)
        if answer is None:
            return None
        named = {variant for name in answer.names for variant in variants(name)}
        names = tuple(label for label in moment.predicted if label in named)
        return replace(answer, names=names, confidences=(), source="filter")

    def close(self) -> None:
        """Of the inner source."""
        self._inner.close()


class ChainSource:
    """The first of several sources that answers. One that fails is passed over; where all do, the first tells why.

    An answer that nothing sounds is an answer. One that failed is not asked again before its pause is over; one that
    answered nothing about a picture is asked about the next.
    ``passed_over``: how often a source failed where a later one did not, ``troubles``: what those that fail now say.
    """

    def __init__(self, sources: Sequence[CueSource], clock: Callable[[], float] = time.monotonic) -> None:
        self._sources, self._clock = tuple(sources), clock
        self._allowances = [Allowance(budget_per_minute=1) for _ in sources]  # of which the pauses alone are used
        self._failures: dict[int, CueSourceError] = {}
        self.name = ",".join(source.name for source in sources)
        self.passed_over = 0
        self._is_closed = False

    @property
    def identity(self) -> str:
        """Of all of them."""
        return "chain:" + ",".join(source.identity for source in self._sources)

    @property
    def troubles(self) -> tuple[str, ...]:
        """See the class."""
        return tuple(f"{self._sources[k].name}: {error}" for k, error in sorted(self._failures.items()))

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """See the class."""
        failures: list[CueSourceError] = []
        for number, (source, allowance) in enumerate(zip(self._sources, self._allowances, strict=True)):
            if allowance.wait_seconds(self._clock()) > 0:
                failures.append(self._failures[number])
                continue
            try:
                answer = source.ask(moment)
            except CueSourceError as error:
                if self._is_closed:  # which ended the question
                    raise
                if isinstance(error, NoCueAnswerError):
                    allowance.answered()
                else:
                    allowance.failed(self._clock(), error.retry_after_seconds)
                self._failures = self._failures | {number: error}
                failures.append(error)
                continue
            allowance.answered()
            self._failures = {k: failure for k, failure in self._failures.items() if k != number}
            if answer is not None:
                self.passed_over += len(failures)
                return answer
        if failures and len(failures) == len(self._sources):
            raise failures[0]
        self.passed_over += len(failures)
        return None

    def close(self) -> None:
        """Of all of them."""
        self._is_closed = True
        for source in self._sources:
            source.close()
