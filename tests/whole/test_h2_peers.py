# SPDX-License-Identifier: Apache-2.0
"""Peers that we did not write, against the null server of the bench: grpcio, curl, nghttp, h2load."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

ROOT = Path(__file__).resolve().parents[2]
REPLY = b"\x0a\x02\x08\x01"  # what the null server answers to a unary call

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.h2_null", "serve"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def channel(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield channel


def test_grpcio_calls_unary(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/null/Unary")
    assert [call(b"x" * size, timeout=10) for size in (0, 1, 100, 100_000)] == [REPLY] * 4


def test_grpcio_has_many_calls_in_flight_each_with_its_own_deadline_and_metadata(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/null/Unary")
    futures = [
        call.future(b"%d" % number, timeout=10 + number / 7, metadata=[("token", f"t{number}")])
        for number in range(2000)
    ]
    assert {future.result() for future in futures} == {REPLY}


def test_grpcio_streams_messages_larger_than_every_window(channel: grpc.Channel) -> None:
    messages = [bytes((number,)) * (number * 40_000) for number in range(20)]
    answers = channel.stream_stream("/null/Stream")(iter(messages), timeout=30)
    assert list(answers) == messages


def test_grpcio_sees_an_unknown_method(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/null/Nothing")(b"x", timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "unknown method /null/Nothing"


def test_grpcio_sees_a_message_that_is_too_large(channel: grpc.Channel) -> None:
    answers = channel.stream_stream("/null/Stream")(iter([b"x" * 4_194_305]), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "grpc: received message larger than max (4194305 vs. 4194304)"


def test_grpcio_cancels_streams_and_goes_on(channel: grpc.Channel) -> None:
    for _ in range(50):
        answers = channel.stream_stream("/null/Stream")(iter([b"x"]), timeout=10)
        assert next(answers) == b"x"
        answers.cancel()
    assert channel.unary_unary("/null/Unary")(b"x", timeout=10) == REPLY


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_curl_posts_json_over_http2(port: int, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(range(256)) * 40_000)
    command = [
        tool("curl"),
        "-sS",
        "--http2-prior-knowledge",
        "-o",
        str(tmp_path / "out"),
        "-w",
        "%{http_version} %{http_code}",
    ]
    done = subprocess.run(
        [*command, "--data-binary", f"@{body}", f"http://127.0.0.1:{port}/v3/lease/grant"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "2 200"
    assert (tmp_path / "out").read_bytes() == body.read_bytes()


def test_curl_gets_431_for_headers_beyond_the_limit(port: int) -> None:
    command = [tool("curl"), "-sS", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code} "]
    for number in range(2_000):  # many small ones: curl refuses to send a single one beyond 64 KiB
        command += ["-H", f"h{number}: x"]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/x"], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "431 "


def test_nghttp_with_padding_continuations_and_a_small_window(port: int, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"y" * 300_000)
    options = ["--padding=200", "--window-bits=10", "--connection-window-bits=12", "--header-table-size=0"]
    done = subprocess.run(
        [tool("nghttp"), *options, "-H", "token: " + "x" * 20_000, "-d", str(body), f"http://127.0.0.1:{port}/x"],
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == body.read_bytes()


def test_h2load_has_all_its_calls_answered(port: int, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"\0\0\0\0\x01x")
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    done = subprocess.run(
        [
            tool("h2load"),
            "-n",
            "5000",
            "-c",
            "5",
            "-m",
            "50",
            "-d",
            str(body),
            *headers,
            f"http://127.0.0.1:{port}/null/Unary",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert re.search(r"5000 succeeded, 0 failed, 0 errored", done.stdout)
