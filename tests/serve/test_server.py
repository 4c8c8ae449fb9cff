"""A server and its clients."""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from vla_rl.policies import PolicyError
from vla_rl.serve.server import PolicyServer
from vla_rl.wire import PolicyClient, RequestRefused, WireError, decode, encode

TOKEN = "0123456789abcdef"
Start = Callable[..., Any]
Observe = Callable[[int], dict[str, Any]]
Local = Callable[..., np.ndarray]


def ask_concurrently(infer: list[Callable[[dict[str, Any]], dict[str, Any]]], asked: list[dict[str, Any]]) -> list[Any]:
    """Answers to `asked`, of which client i takes every len(infer)-th from i on."""
    answers: list[Any] = [None] * len(asked)

    def work(client: int) -> None:
        for index in range(client, len(asked), len(infer)):
            answers[index] = infer[client](asked[index])

    with ThreadPoolExecutor(len(infer)) as threads:
        list(threads.map(work, range(len(infer))))
    return answers


def test_eight_clients_get_the_answers_of_local_inference(start: Start, observe: Observe, local: Local) -> None:
    """Half of the 200 requests are greedy and half are drawn with seeds of their own; which of them are computed together is
    up to chance, and changes nothing."""
    server = start(max_batch=8, max_wait_ms=20)
    asked = [observe(i) | ({"temperature": 1.0, "seed": i} if i % 2 else {}) for i in range(200)]
    clients = [server.client() for _ in range(8)]
    answers = ask_concurrently([client.infer for client in clients], asked)
    for request, answer in zip(asked, answers, strict=True):
        assert answer["actions"].dtype == np.float32
        np.testing.assert_array_equal(answer["actions"], local(request))
    assert len({answer["actions"].tobytes() for answer in answers}) > 100, "the policy hardly looks at what it is shown"
    assert max(answer["server_timing"]["batch_size"] for answer in answers) > 1
    for client in clients:
        client.close()


def test_openpis_own_client(start: Start, observe: Observe, local: Local) -> None:
    theirs = pytest.importorskip("openpi_client.websocket_client_policy", reason="pip install --no-deps openpi-client==0.1.2")
    server = start(token=TOKEN, max_wait_ms=20)
    host, port = server.address
    clients = [theirs.WebsocketClientPolicy(host, port, api_key=TOKEN) for _ in range(8)]
    assert clients[0].get_server_metadata()["action_dim"] == 7
    asked = [observe(i) for i in range(200)]

    def libero(ours: dict[str, Any]) -> dict[str, Any]:
        """As openpi's LIBERO example sends it: turned frames, float64 state."""
        return {
            "observation/image": np.ascontiguousarray(ours["images/agentview"][::-1, ::-1]),
            "observation/wrist_image": np.ascontiguousarray(ours["images/robot0_eye_in_hand"][::-1, ::-1]),
            "observation/state": ours["proprio"].astype(np.float64),
            "prompt": ours["instruction"],
        }

    answers = ask_concurrently([client.infer for client in clients], [libero(one) for one in asked])
    for request, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer["actions"], local(request))
    with pytest.raises(RuntimeError, match="Error in inference server:\nthe observation lacks"):
        clients[0].infer({})
    np.testing.assert_array_equal(clients[0].infer(libero(asked[0]))["actions"], local(asked[0]))


def test_what_is_answered_beside_actions(start: Start, observe: Observe) -> None:
    with start(max_wait_ms=3000).client() as client:
        assert client.metadata["cameras"] == ["agentview", "robot0_eye_in_hand"]
        assert [client.metadata[key] for key in ("chunk_length", "action_dim", "proprio_dim")] == [3, 7, 8]
        first, second = client.infer(observe(0)), client.infer(observe(0))
        assert first["policy_version"] == client.metadata["policy_version"] == 0
        assert first["actions"].shape == (3, 7)
        # A single client never waits for others.
        assert first["server_timing"]["queue_ms"] < 1000
        assert "prev_total_ms" not in first["server_timing"] and second["server_timing"]["prev_total_ms"] > 0
        assert client.infer({"__ctrl__": "episode_start"}) == {"__ack__": "episode_start"}
        for word in ([1], np.arange(3)):
            assert client.infer({"__ctrl__": word}) == {"__ack__": "ignored"}


def malformed(draw: np.random.Generator, valid: dict[str, Any]) -> bytes | str:
    """A message that is broken in one of the ways that broken or hostile clients choose."""
    good = encode(valid)
    kinds: list[Callable[[], bytes | str]] = [
        lambda: good[: draw.integers(len(good))],
        lambda: draw.bytes(int(draw.integers(1, 200))),
        lambda: bytes([draw.choice([0xC6, 0xDB, 0xDD, 0xDF, 0xC9])]) + b"\xff\xff\xff\xff" + draw.bytes(20),
        lambda: good.replace(b"\xa3|u1", b"\xa2|O"),
        lambda: good.replace(b"\xa3|u1", b"\xa3<f8"),
        lambda: good.replace(b"__ndarray__", b"__ndarr__y_"),
        lambda: good.replace(b"\x93\x14\x14\x03", b"\x93\xcd\xff\xff\x14\x03"),
        lambda: good.decode("latin-1"),
        lambda: "",
        lambda: encode(draw.choice([0, 1]) * [1, 2, {}]),
        lambda: b"\x91" * int(draw.integers(1, 3000)),
        lambda: encode(valid | {"images/agentview": valid["images/agentview"] / np.float32(0)}),
        lambda: encode(valid | {"images/agentview": np.zeros(draw.integers(0, 3, size=draw.integers(0, 5)), np.uint8)}),
        lambda: encode(valid | {"proprio": np.full(8, [np.nan, np.inf][draw.integers(2)])}),
        lambda: encode(valid | {"proprio": draw.normal(size=draw.integers(0, 8))}),
        lambda: encode(valid | {"instruction": "x" * int(draw.integers(1001, 9000))}),
        lambda: encode(valid | {"instruction": np.array(["x"])}).replace(b"x\x00\x00\x00", b"\xff\xff\xff\xff"),
        lambda: encode({key: valid[key] for key in draw.permutation(list(valid))[: draw.integers(len(valid))]}),
        lambda: encode(valid | {"temperature": [-1.0, np.nan, 1e9, "x", [], None][draw.integers(6)]}),
    ]
    return kinds[draw.integers(len(kinds))]()


def test_a_thousand_malformed_messages_cost_nothing(start: Start, observe: Observe, local: Local) -> None:
    server = start(max_message_mib=0.0625)
    draw = np.random.default_rng(0)
    with connect(server.url, compression=None, ping_interval=None, proxy=None) as broken, server.client() as good:
        broken.recv()
        for number in range(1000):
            broken.send(malformed(draw, observe(number)))
            reply = broken.recv(timeout=10)
            assert isinstance(reply, str) and 0 < len(reply) < 400 and "\n" not in reply, (number, reply)
            if number % 100 == 0:
                np.testing.assert_array_equal(good.infer(observe(number))["actions"], local(observe(number)))
        broken.send(encode(observe(0)))
        np.testing.assert_array_equal(decode(broken.recv(timeout=10))["actions"], local(observe(0)))


def test_bytes_that_are_no_websocket_cost_nothing(start: Start, observe: Observe) -> None:
    server = start()
    draw = np.random.default_rng(1)
    opening = (
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    frames = [
        b"\x82\xff" + struct.pack(">Q", 1 << 62) + b"\x00" * 4,
        b"\x82\xfe\xff\xff",
        b"\x82\x05hello",
        b"\xf2\x80\x00\x00\x00\x00",
        b"\x8f\x80\x00\x00\x00\x00",
        b"\x88\x81\x00\x00\x00\x00\x01",
        draw.bytes(100),
    ]
    for data in [
        b"",
        b"\x16\x03\x01\x02\x00",
        b"POST / HTTP/1.1\r\n\r\n",
        draw.bytes(5000),
        opening[:60],
        *(opening + f for f in frames),
    ]:
        with socket.create_connection(server.address) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(10)
            while sock.recv(4096):
                pass
    with server.client() as client:
        assert client.infer(observe(0))["actions"].shape == (3, 7)


def test_clients_that_vanish_cost_the_others_nothing(start: Start, observe: Observe, local: Local) -> None:
    """Before the answer, in the middle of a message, and without a close."""
    server = start(max_batch=2, max_wait_ms=200)
    data = encode(observe(1))
    for cut in (len(data), len(data) // 2):
        client = connect(server.url, compression=None, max_size=None, proxy=None)
        frame = b"\x82\xfe" + struct.pack(">H", len(data)) + b"\x00" * 4 + data
        client.socket.sendall(frame[: len(frame) - len(data) + cut])
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
    with server.client() as client:
        np.testing.assert_array_equal(client.infer(observe(0))["actions"], local(observe(0)))


def test_an_instruction_that_is_too_long_is_one_clear_line(start: Start, observe: Observe, local: Local) -> None:
    with start().client() as client:
        with pytest.raises(WireError, match="instruction must be a text of 1 to 1000 characters; it has 1499"):
            client.infer(observe(0) | {"instruction": " ".join(["lift"] * 300)})
        with pytest.raises(WireError, match=r"an instruction has \d+ tokens with its prompt, and \d+ fit: '5 5 5"):
            client.infer(observe(0) | {"instruction": " ".join(["5"] * 500)})
        np.testing.assert_array_equal(client.infer(observe(0))["actions"], local(observe(0)))


def test_an_oversized_message_ends_its_connection(start: Start, observe: Observe) -> None:
    server = start(max_message_mib=0.01)
    with server.client() as client, server.client() as other:
        with pytest.raises(WireError, match=r"closed the connection: 1009 .*limit"):
            client.infer(observe(0) | {"images/agentview": np.zeros((100, 100, 3), np.uint8)})
        assert other.infer(observe(0))["actions"].shape == (3, 7)


@pytest.mark.parametrize("header", [None, "Bearer 0123456789abcdeX", "Basic " + TOKEN, TOKEN, "Bearer", "Bearer \xff\xfe"])
def test_a_wrong_token_is_refused(start: Start, header: str | None) -> None:
    server = start(token=TOKEN)
    with pytest.raises(InvalidStatus) as refused:
        connect(server.url, additional_headers={"Authorization": header} if header else {}, proxy=None)
    assert refused.value.response.status_code == 401
    with pytest.raises(WireError, match="refuses: 401 a valid token is needed"):
        server.client(token="wrong")


def test_the_right_token_in_both_forms(start: Start, observe: Observe) -> None:
    server = start(token=TOKEN)
    with server.client() as client:
        assert client.infer(observe(0))["actions"].shape == (3, 7)
    with connect(server.url, additional_headers={"Authorization": f"Api-Key {TOKEN}"}, proxy=None) as client:
        assert decode(client.recv())["server"] == "vla_rl"


def test_health_needs_no_token(start: Start) -> None:
    connection = http.client.HTTPConnection(*start(token=TOKEN).address, timeout=10)
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"OK\n")


def test_pages_of_a_browser_are_refused(start: Start) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(start().url, origin="https://example.org", proxy=None)  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403


def test_too_many_clients_and_too_many_requests(start: Start, observe: Observe) -> None:
    server = start(max_connections=2, max_requests_per_s=3)
    with server.client() as first, server.client() as second:
        with pytest.raises(WireError, match="refuses: 503 all 2 connections are in use"):
            server.client()
        begin = time.monotonic()
        outcomes = []
        while len(outcomes) < 8:
            try:
                outcomes.append(first.infer(observe(0))["actions"].shape == (3, 7))
            except RequestRefused as error:
                assert "more than 3 requests a second" in str(error)
                outcomes.append(False)
        allowed = 3 + 3 * (time.monotonic() - begin)
        assert outcomes[:3] == [True] * 3 and 3 <= sum(outcomes) <= allowed and not all(outcomes)
        assert second.infer(observe(0))["actions"].shape == (3, 7), "another client has a rate of its own"
    for _ in range(50):
        try:
            server.client().close()
            break
        except WireError:
            time.sleep(0.02)
    else:
        pytest.fail("a closed connection is never free again")


def test_idle_and_silent_clients_are_disconnected(start: Start) -> None:
    with start(idle_timeout_s=0.2).client() as idle, pytest.raises(WireError, match="1008 no request for 0.2 s"):
        idle.receive()
    server = start(ping_interval_s=0.2)
    with socket.create_connection(server.address) as silent:
        silent.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        silent.settimeout(10)
        received = b""
        while b"keepalive ping timeout" not in received:
            data = silent.recv(4096)
            assert data, "closed without a word"
            received += data


def test_a_drain_finishes_what_is_in_flight_and_refuses_the_rest(start: Start, observe: Observe, local: Local) -> None:
    """The request waits for the second client, which never asks, until the server stops."""
    server = start(max_wait_ms=500)
    working, idle = server.client(), server.client()
    working.send(observe(3))
    time.sleep(0.1)
    server.begin_to_stop()
    with pytest.raises(WireError, match="1001 the server is shutting down"):
        idle.receive()
    np.testing.assert_array_equal(working.receive()["actions"], local(observe(3)))
    with pytest.raises(WireError, match="1001 the server is shutting down"):
        working.receive()
    server.stop()
    with pytest.raises(WireError, match="there is no policy server at"):
        server.client()


def test_a_policy_that_fails_tells_its_client_alone(
    start: Start, observe: Observe, local: Local, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug, actions that are not finite and a refusal, in one batch with a good request."""
    act = policy.act

    def moody(observation: Any, temperature: float, generator: Any = None) -> Any:
        if "explode" in observation.instruction:
            raise ZeroDivisionError("inside")
        if "refuse" in observation.instruction:
            raise PolicyError("an instruction has 999 tokens")
        chunk = act(observation, temperature, generator)
        if "diverge" in observation.instruction:
            chunk.actions[observation.instruction.index("diverge")] = np.nan
        return chunk

    monkeypatch.setattr(policy, "act", moody)
    server = start(max_batch=4, max_wait_ms=3000)
    clients = [server.client() for _ in range(4)]
    asked = [observe(i) for i in range(4)]
    asked[1]["instruction"], asked[2]["instruction"], asked[3]["instruction"] = "explode", "diverge", "refuse"
    for client, request in zip(clients, asked, strict=True):
        client.send(request)
    np.testing.assert_array_equal(clients[0].receive()["actions"], local(asked[0]))
    reasons = ("the policy failed: ZeroDivisionError", "actions that are not finite", "an instruction has 999 tokens")
    for client, reason in zip(clients[1:], reasons, strict=True):
        with pytest.raises(RequestRefused, match=reason):
            client.receive()
        client.close()


def test_a_client_does_not_wait_for_ever(start: Start, observe: Observe, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stall(*_: Any) -> bytes:
        await asyncio.sleep(1)
        return b""

    monkeypatch.setattr(PolicyServer, "_reply", stall)
    client = start().client(timeout=0.2)
    with pytest.raises(WireError, match=r"did not answer within 0\.2 s"):
        client.infer(observe(0))
    with pytest.raises(WireError, match="closed the connection"):
        client.infer(observe(0))


@pytest.mark.parametrize(
    ("url", "reason"), [("http://a", "is no address"), ("ws://127.0.0.1:1", "there is no policy server at ws://127.0.0.1:1")]
)
def test_no_server(url: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        PolicyClient(url)
