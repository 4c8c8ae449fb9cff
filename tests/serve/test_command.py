"""`vla-rl serve` and `vla-rl bench serve` as processes, and `vla-rl evaluate` against a server."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pendulum_run import pendulum_policy, pendulum_sim

from vla_rl.bench.serve import client_counts, measure, served, tables, to_dict
from vla_rl.cli import main
from vla_rl.config import ConfigError
from vla_rl.evaluate import evaluate
from vla_rl.policies import PolicyError
from vla_rl.policies.openvla import OpenVLAPolicy
from vla_rl.policies.remote import RemotePolicy
from vla_rl.serve.settings import ServeSettings, read_token
from vla_rl.types import EpisodeSpec
from vla_rl.wire import PolicyClient, WireError

TOKEN = "0123456789abcdef"
Start = Callable[..., Any]


def test_sigterm_drains(
    policy: OpenVLAPolicy, observe: Callable[..., Any], local: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request waits for a second client when the signal comes: it is answered, the rest refused, the exit code is 0."""
    policy.save(tmp_path)
    monkeypatch.setenv("VLA_RL_TOKEN", TOKEN)
    with served(tmp_path, ["port=0", "max_wait_ms=700", "threads=1"]) as (url, process):
        with pytest.raises(WireError, match="401"):
            PolicyClient(url)
        with PolicyClient(url, TOKEN) as working, PolicyClient(url, TOKEN) as idle:
            working.send(observe(0))
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(WireError, match="1001 the server is shutting down"):
                idle.receive()
            np.testing.assert_array_equal(working.receive()["actions"], local(observe(0)))
            with pytest.raises(WireError, match="1001 the server is shutting down"):
                working.receive()
            assert process.wait(20) == 0
        with pytest.raises(WireError, match="there is no policy server"):
            PolicyClient(url, TOKEN)


def test_the_benchmark(policy: OpenVLAPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_rl.bench.serve.set_threads", lambda threads: None)  # other tests of this process go on
    policy.save(tmp_path / "mine")
    found = measure(tmp_path / "mine", ["threads=1"], [1, 3], requests=5, image_size=20)
    assert [(one.clients, one.requests) for one in found.latencies] == [(1, 5), (3, 15)]
    for one in found.latencies:
        assert one.infer_ms > 0 and one.infer_ms + one.queue_ms < one.p99_ms + 50
        assert one.p50_ms <= one.p99_ms and 1 <= one.mean_batch <= one.clients
    assert [column.header for column in tables(found)[0].columns][:3] == ["clients", "p50 ms", "p99 ms"]
    record = to_dict(found)
    assert json.loads(json.dumps(record))["policy"] == "mine" and record["machine"]["cpu_cores"]
    assert client_counts("1,8") == [1, 8]
    for text in ("", "0", "1,x"):
        with pytest.raises(ConfigError, match="--clients takes numbers"):
            client_counts(text)


def test_an_evaluation_against_a_server_is_the_local_one(start: Start) -> None:
    """Greedy; the episodes of a round are computed together."""
    policy = pendulum_policy()
    server = start(policy=policy, max_wait_ms=500)
    specs = [EpisodeSpec("pendulum", limit, seed=i) for i, limit in enumerate([6, 14, 9, 14, 6, 11])]
    with closing(pendulum_sim()) as sim, closing(RemotePolicy(server.url)) as remote:
        assert (remote.cameras, remote.chunk_length, remote.action_dim) == (("front",), 4, 1)
        near, far = evaluate(policy, sim, specs), evaluate(remote, sim, specs)
        observation = sim.reset(specs[:4])
    for one, two in zip(near.outcomes, far.outcomes, strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
        assert (one.success, one.steps) == (two.success, two.steps)
    with closing(RemotePolicy(server.url)) as remote:
        seeds = [remote.act(observation, 1.0, torch.Generator().manual_seed(seed)).actions for seed in (1, 1, 2)]
        assert np.array_equal(seeds[0], seeds[1]) and not np.array_equal(seeds[0], seeds[2])
        alone = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7, 8)]
        rows = remote.act(observation, 1.0, alone).actions
        single = remote.act(observation.select([2]), 1.0, [torch.Generator().manual_seed(7)]).actions
        np.testing.assert_array_equal(rows[2:3], single)
        with pytest.raises(PolicyError, match="looks through"):
            remote.act(type(observation)({}, observation.proprio, observation.instruction), 0.0)
        server.stop()
        with pytest.raises(PolicyError, match="closed the connection: 1001"):
            remote.act(observation, 0.0)
    with pytest.raises(PolicyError, match="there is no policy server"):
        RemotePolicy(server.url)


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLA_RL_TOKEN", raising=False)
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert read_token(ServeSettings()) is None
    assert read_token(ServeSettings(token_file=file)) == TOKEN
    assert read_token(ServeSettings(host="::1")) is None and read_token(ServeSettings(host="localhost")) is None
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ConfigError, match="lets other machines drive the policy"):
            read_token(ServeSettings(host=host))
        assert read_token(ServeSettings(host=host, token_file=file)) == TOKEN
    monkeypatch.setenv("VLA_RL_TOKEN", "short")
    with pytest.raises(ConfigError, match=r"VLA_RL_TOKEN must be 16 or more"):
        read_token(ServeSettings())
    with pytest.raises(ConfigError, match="cannot read token_file"):
        read_token(ServeSettings(token_file=tmp_path / "none"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve"], "which policy?"),
        (["serve", "nowhere"], "no policy at nowhere"),
        (["serve", "nowhere", "prot=1"], "did you mean 'port'"),
        (["serve", "nowhere", "port=99999"], "port"),
        (["serve", "nowhere", "host=0.0.0.0"], "lets other machines drive the policy"),
        (["serve", "POLICY", "port=TAKEN"], "Address already in use|address already in use"),
        (["evaluate", "policy.server=ws://127.0.0.1:1"], "there is no policy server at ws://127.0.0.1:1"),
        (["evaluate", "policy.server=nowhere"], "no address of a policy server"),
        (["train", "policy.server=ws://127.0.0.1:1"], "policy.server is for evaluations"),
    ],
)
def test_wrong_words(
    words: list[str],
    message: str,
    policy: OpenVLAPolicy,
    start: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLA_RL_TOKEN", raising=False)
    monkeypatch.setattr("vla_rl.serve.server.set_threads", lambda threads: None)
    if "POLICY" in words:
        policy.save(tmp_path)
        words = ["serve", str(tmp_path), f"port={start().address[1]}"]
    monkeypatch.setattr(sys, "argv", ["vla-rl", *words])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1, error
    assert any(part in error for part in message.split("|")), error
