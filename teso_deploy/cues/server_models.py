"""A captioner and a language model on a server."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.cues.chat_server import ChatServer
from teso_deploy.cues.contracts import CueMoment, Message

#: The token limits of a caption, of an answer, and of an answer that thinks aloud first.
CAPTION_TOKENS, ANSWER_TOKENS, REASONING_TOKENS = 160, 200, 800
#: The largest side of a picture that is sent, in pixels, and the quality of its JPEG.
MAX_PICTURE_SIDE, JPEG_QUALITY = 768, 90


def as_data_url(image: NDArray[np.uint8]) -> str:
    """Encode a picture (H, W, 3) as JPEG in a ``data:`` address."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


class ServerCaptioner:
    """A vision model on a server. ``frames``: how many of the latest pictures a model of videos is shown."""

    def __init__(self, server: ChatServer, prompt: str, frames: int = 1) -> None:
        self._server, self._prompt, self._frames = server, prompt, frames

    @property
    def identity(self) -> str:
        """The identities of server, model and prompt."""
        return f"{self._server.identity}:{self._frames}:{self._prompt}"

    def caption(self, moment: CueMoment) -> str:
        """Describe the picture, see :class:`Captioner`."""
        shown = [*moment.earlier, moment.frame][-self._frames :]
        pictures = [{"type": "image_url", "image_url": {"url": as_data_url(frame.image)}} for frame in shown]
        content = [*pictures, {"type": "text", "text": self._prompt}]
        return self._server.complete([{"role": "user", "content": content}], CAPTION_TOKENS).strip()

    def close(self) -> None:
        """Close the server."""
        self._server.close()


class ServerReasoner:
    """A language model on a server.

    ``reasons``: True if it thinks aloud first. Otherwise its answer is kept to the JSON schema.
    """

    def __init__(self, server: ChatServer, *, reasons: bool = True) -> None:
        self._server, self._reasons = server, reasons

    @property
    def identity(self) -> str:
        """The identities of server and model."""
        return f"{self._server.identity}:{self._reasons}"

    def answer(self, messages: Sequence[Message]) -> str:
        """Continue a conversation, see :class:`Reasoner`."""
        turns = [{"role": role, "content": content} for role, content in messages]
        tokens = REASONING_TOKENS if self._reasons else ANSWER_TOKENS
        return self._server.complete(turns, tokens, as_object=not self._reasons).strip()

    def close(self) -> None:
        """Close the server."""
        self._server.close()
