"""The kind of an address, and that credentials are never shown."""

from __future__ import annotations

import pytest

from teso_deploy.errors import MediaError
from teso_deploy.media.address import Address, open_options


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("clip.mp4", "file", "clip.mp4"),
        ("file:///a%20b.mp4", "file", "/a b.mp4"),
        ("-", "pipe", "-"),
        ("rtsp://cam/live", "rtsp", "rtsp://cam/live"),
        ("RTSP://me:secret@cam:554/live", "rtsp", "rtsp://***@cam:554/live"),
        ("https://h/x.ts?token=abc&b=1", "http", "https://h/x.ts?token=***&b=1"),
        ("rtsp://cam/user=me_password=k12_channel=1.sdp", "rtsp", "rtsp://cam/user=me_password=***"),
        ("http://h/x?a=1;token=abc#key=def", "http", "http://h/x?a=1;token=***"),
        ("rtmps://h/app", "rtmp", "rtmps://h/app"),
        ("udp://:1234", "mpegts", "udp://:1234"),
        ("tcp://[::1]:9", "mpegts", "tcp://[::1]:9"),
        ("udp://@239.0.0.1:1234", "mpegts", "udp://@239.0.0.1:1234"),
        ("rtmp://h/live/stream-key?x=abc", "rtmp", "rtmp://h/live/***?x=***"),
        ("http://h/live/me/my-word/1.ts", "http", "http://h/live/***/***/1.ts"),
    ],
)
def test_kinds(text: str, kind: str, shown: str) -> None:
    address = Address.parse(text)
    assert (address.kind, address.shown) == (kind, shown)
    assert address.is_live == (kind != "file") and "secret" not in repr(address)
    assert ("rtsp_transport" in open_options(address)) == (kind == "rtsp")


@pytest.mark.parametrize(
    "text",
    [
        "srt://h:1",
        "foo://x",
        "rtsp://",
        "http://h:99999/x",
        "http://[::1/x",
        "rtmp://me@secret:/a",
        "http://me@secret:[::1]:1",
    ],
)
def test_what_can_t_be_read(text: str) -> None:
    with pytest.raises(MediaError, match=r"give a file|write \w+://") as raised:
        Address.parse(text)
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)
    assert ("ffmpeg -i" in str(raised.value)) == text.startswith("srt")


def test_a_message_of_others_is_cleaned() -> None:
    address = Address.parse("rtsp://user-name:p%40ss%20word@cam/x?api_key=k123456")
    message = f"failed: '{address.url}' with p@ss word, p%40ss%20word, user-name and k123456"
    assert address.clean(message) == "failed: 'rtsp://***@cam/x?api_key=***' with ***, ***, *** and ***"
