import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.urls import redacted


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://door:554/Streaming/Channels/101", "rtsp://door:554/Streaming/Channels/101"),
        ("rtsp://[fe80::1%25eth0]:554/ch01.264", "rtsp://[fe80::1%25eth0]:554/ch01.264"),
        ("rtsp://user:pass@door/1", "rtsp://door/1"),
        ("rtsp://us@er:p@s@s@door/1", "rtsp://door/1"),
        ("rtsp://user:p%40ss%40door/1", "rtsp://***/1"),
        ("rtsp://user:secret", "rtsp://***"),
        ("http://user:pa/ss@host/1", "http://***"),
        ("http://proxy/http://user:pass@host/1", "http://***"),
        ("http://cam/video?user=me&pwd=secret", "http://cam/video?***"),
        ("rtsp://10.6.3.57:554/user=admin&password=&channel=1.sdp", "rtsp://10.6.3.57:554/***"),
        ("rtsps://10.0.0.1:7441/AbCdEf0123456789?enableSrtp", "rtsps://10.0.0.1:7441/***?***"),
        ("http://host/live/SECRETTOKEN/v.m3u8", "http://host/live/***/***"),
        ("user:pass@host/1", "***@host/1"),
        ("rtsp%3A%2F%2Fuser%3Apass%40host", "***@host"),
        ("host/video?user=me&pwd=secret", "host/video?***"),
        ("user:pass@rtsp://host/1", "***://host/1"),
        ("/dev/video2", "/dev/video2"),
        ("C:\\films\\talk.mp4", "C:\\films\\talk.mp4"),
    ],
)
def test_addresses_are_shown_without_credentials(address, shown):
    assert redacted(address) == shown
    assert redacted(shown) == shown


SECRET = st.text(string.ascii_letters + string.digits + string.punctuation, min_size=6, max_size=20)


@given(
    st.sampled_from(["rtsp", "rtsps", "http", "https", "rtmp", "srt"]),
    st.text(string.ascii_letters + string.digits + "@%:", max_size=8),
    SECRET,
    SECRET,
)
def test_no_part_of_a_password_or_query_value_is_shown(scheme, user, password, token):
    shown = redacted(f"{scheme}://{user}:{password}@door:554/live/1?{user}={token}")
    rest = shown.replace(f"{scheme}://", "", 1).replace("door:554/live/1?***", "", 1)
    assert rest in ("", "***")


def test_address_in_the_wrong_place_of_the_command_line_is_refused_without_its_password(run_step):
    done = run_step("realtime.webcam", "rtsp://user:hunter2@door/1")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "unexpected extra argument" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
