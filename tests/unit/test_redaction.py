"""Secrets in addresses, environments and messages."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from teso_deploy.redaction import RedactedUrl, looks_random, make_child_environment

S = "CANARYs3cr3tQ7"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        # Before the host.
        (f"rtsp://me:{S}@h/x", "rtsp://***@h/x"),
        (f"rtsp://{S}@h:554/x", "rtsp://***@h:554/x"),
        (f"http://me:{S}@h:1/a@b", "http://***@h:1/a@b"),
        (f"HTTP://me:{S}@[::1]:8/", "http://***@[::1]:8/"),
        (f"udp://me:{S}@h:1", "udp://***@h:1"),
        # Values, whatever their name.
        (f"http://h/x?code={S}&jwt={S}", "http://h/x?code=***&jwt=***"),
        (f"http://h/cgi?loginuse=admin&loginpas={S}", "http://h/cgi?loginuse=***&loginpas=***"),
        (f"http://h/x?%74oken={S}", "http://h/x?%74oken=***"),
        (f"http://h/x?Signature={S}&Expires=1", "http://h/x?Signature=***&Expires=1"),
        (f"http://h/x?url=http://u:{S}@i/&fps=25", "http://h/x?url=***&fps=25"),
        (f"http://h/x?url={quote(f'http://u:{S}@i/', safe='')}", "http://h/x?url=***"),
        (f"http://h/x?{S}", "http://h/x?***"),
        (f"http://h/x?{S}=1&{S}={S}", "http://h/x?***=1&***=***"),
        (f"http://h/x?stream={S}&channel=http://u:{S}@i", "http://h/x?stream=***&channel=***"),
        (f"http://h/x;pass={S};a=1#token={S}", "http://h/x;pass=***;a=1"),
        # In the path.
        (f"rtmp://h/live/{S}", "rtmp://h/live/***"),
        ("rtmps://h:443/app/ab?x=abc", "rtmps://h:443/app/***?x=***"),
        ("rtmp://h/app/instance/key", "rtmp://h/app/***/***"),
        (f"http://h/live/user/{S}/1.ts", "http://h/live/***/***/1.ts"),
        ("http://h:80/movie/me/pw/12.mkv", "http://h:80/movie/***/***/12.mkv"),
        ("http://h:80/me/pw/12", "http://h:80/***/***/12"),
        ("http://h/timeshift/me/pw/60/2024-01-01/1.ts", "http://h/timeshift/***/***/60/2024-01-01/1.ts"),
        (f"https://h/hls/{S}/index.m3u8", "https://h/hls/***/index.m3u8"),
        (f"rtsp://h/user=admin_password={S}_channel=1", "rtsp://h/user=admin_password=***"),
        (f"rtsp://h/{quote('user=admin&password=' + S)}", "rtsp://h/***"),
        # Harmless parts are shown.
        ("rtsp://h:554/cam/realmonitor?channel=1&subtype=0&unicast=true&proto=Onvif", None),
        ("rtsp://h/Streaming/Channels/101?transport=tcp", None),
        ("rtsp://h/h264Preview_01_main", None),
        ("rtsp://h/axis-media/media.amp?videocodec=h264&resolution=1280x720&fps=25&camera=quad", None),
        ("http://h/mjpg/video.mjpg?width=640&height=480&compression=30", None),
        ("udp://239.0.0.1:1234?fifo_size=50000&overrun_nonfatal=1", None),
        ("https://h/live/garden/index.m3u8", None),
        ("https://h.example/openai/deployments/gpt-4o-mini-2024-07-18?api-version=2024-02-01", None),
        ("http://h/a%20b/Größe/recording_2024-01-02_10-11-12.ts", None),
        ("rtmp://h/live", None),
    ],
)
def test_what_is_shown(url: str, shown: str | None) -> None:
    redacted = RedactedUrl.parse(url)
    assert redacted.shown == (url if shown is None else shown)
    assert S not in repr(redacted)


@pytest.mark.parametrize("secret", [S, "p@ss w/ä+:#", "ab", "x&y=z%"])
@pytest.mark.parametrize(
    "template", ["rtsp://me:{}@h:5/x", "http://{}@h/x", "http://h/x?p={}", "http://h/x?fps=2&url=http://u:{}@i/&b=1"]
)
def test_no_message_shows_a_secret(template: str, secret: str) -> None:
    url = template.format(quote(secret, safe=""))
    redacted = RedactedUrl.parse(url)
    bare = url.split("://", 1)[1]
    others = f"{template.format(secret)!r}; {template.format(quote(secret))}"
    cleaned = redacted.clean(f"can't open '{url}' ({bare}), {bare.rpartition('@')[2]}: {others}")
    for form in (secret, quote(secret, safe=""), quote(secret), quote(secret, safe="").lower()):
        for before, after in ((":", "@"), ("//", "@"), ("p=", "")):
            assert f"{before}{form}{after}" not in cleaned, cleaned
        assert len(form) < 3 or form not in cleaned, cleaned
    assert cleaned.startswith(f"can't open '{redacted.shown}'")


def test_messages_of_others_become_one_line() -> None:
    redacted = RedactedUrl.parse(f"rtmp://h/live/{S}")
    assert redacted.clean(f"no\n\x1b[31mstream {S}") == "no stream ***"
    assert len(redacted.clean("x" * 1000)) == 300


@pytest.mark.parametrize(
    ("text", "is_random"),
    [
        (S, True),
        (f"{S}.m3u8", True),
        ("8f14e45fceea167a5a36dedd4bea2543", True),
        ("f47ac10b-58cc-4372-a567-0e02b2c3d479", True),
        ("abcd-efgh-ijkl-mnop-qrst", True),
        ("aBcDeFgHiJkL", True),
        ("MyP%40ssw0rd", True),
        ("live_stream_1080p60", False),
        ("LiveStreamCamera", False),
        ("chunklist_w1234567.m3u8", False),
        ("1700000000123.ts", False),
        ("s3cr3t", False),  # too short to decide
    ],
)
def test_what_may_be_a_key(text: str, is_random: bool) -> None:
    assert looks_random(text) is is_random


def test_a_malformed_address_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="IPv6"):
        RedactedUrl.parse("http://[::1")


def test_no_key_goes_to_another_process() -> None:
    harmless = {
        "PATH": "/bin", "HOME": "/root", "KEYBOARD": "de", "PASSIVE": "1", "TOKENIZERS_PARALLELISM": "false",
        "XDG_CACHE_HOME": "x", "OMP_NUM_THREADS": "1", "AUTHOR": "me", "MONKEY": "1",
    }  # fmt: skip
    secret = [
        "TESO_CUES_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "PGPASSWORD",
        "MY_SECRET", "GOOGLE_APPLICATION_CREDENTIALS", "openai_apikey", "API_KEY", "SSH_PASS", "TOKEN", "HTTP_AUTH",
    ]  # fmt: skip
    assert make_child_environment({**harmless, **dict.fromkeys(secret, S)}) == harmless
    assert "PATH" in make_child_environment()
