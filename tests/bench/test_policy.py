"""What the benchmark of policies counts, and that its ways to decode choose the same tokens."""

import json
from pathlib import Path

import pytest
import torch
from small_policy import small_policy
from typer.testing import CliRunner

from vla_rl.bench import policy_work
from vla_rl.bench.policy import PolicySettings, measure
from vla_rl.bench.policy_report import tables, targets, to_dict
from vla_rl.bench.policy_work import acting, count_flops, decode_without_cache, hf_generate, make_inputs, with_decoding
from vla_rl.cli import app
from vla_rl.policies import PolicyError
from vla_rl.policies.openvla.modeling import OpenVLAModel

NO_CPU = torch.device("cpu")


@pytest.fixture
def model() -> OpenVLAModel:
    return small_policy().model.requires_grad_(False)


def test_flops_by_hand() -> None:
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    # 2 * 3 * 5 * 7.
    assert count_flops(lambda: a @ b) == 210
    # 4 output pixels x 6 output channels, each the sum over 2 channels x 3 x 3: 2 * 4 * 6 * 18.
    assert count_flops(lambda: torch.nn.functional.conv2d(torch.zeros(1, 2, 4, 4), torch.zeros(6, 2, 3, 3))) == 864
    # 2 heads of size 8, 5 queries over 7 keys: 4 * 5 * 7 * 16.
    query, key = torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 7, 8)
    assert count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key)) == 2240


def test_flops_of_a_decoder(model: OpenVLAModel) -> None:
    """One layer of width 32 with an MLP of 64, 9 tokens: 2 x 9 x (4 x 32 x 32 + 3 x 32 x 64) for the weights and 4 x 9 x 9 x 32
    for attention."""
    sequence, mask = torch.zeros(1, 9, 32), torch.ones(1, 1, 9, 9, dtype=torch.bool)
    found = count_flops(lambda: model._decoder(sequence, mask, torch.arange(9)[None]))
    assert found == 2 * 9 * (4 * 32 * 32 + 3 * 32 * 64) + 4 * 9 * 9 * 32


def test_with_and_without_cache_the_tokens_are_the_same(model: OpenVLAModel) -> None:
    serial, inputs = with_decoding(model, "autoregressive"), make_inputs(model.config, 3, NO_CPU)
    expected = serial.decode(inputs, torch.arange(3), policy_work._greedy)[0]
    assert torch.equal(decode_without_cache(serial, inputs), expected)
    # transformers chooses among all tokens: with the others out of the way it chooses the same.
    head = serial.language_model.lm_head.weight
    first = model.config.vocab_size - 256
    head[:first], head[model.config.vocab_size :] = 0.0, 0.0
    generated = hf_generate(serial, inputs)
    assert generated.shape == expected.shape
    agree = generated == expected + first
    assert agree[generated >= first].float().mean() > 0.9


def test_every_way_to_act_gives_all_tokens(model: OpenVLAModel) -> None:
    for work in acting(model, 2, "float32"):
        assert work.run().shape == (2, model.config.num_tokens), work.name
    names = {batch: {work.name for work in acting(model, batch, "float32")} for batch in (1, 2)}
    assert names[1] - names[2] == {"autoregressive, no cache"}
    assert names[2] - names[1] == {"parallel, one prefix", "autoregressive, one prefix"}


def test_a_whole_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr("vla_rl.bench.policy.find_model", lambda *_: small_policy().model)
    found = measure(PolicySettings(batches=(1, 2), seconds=0.0, repeats=2, lora_rank=2))
    assert not [row.problem for row in found.rows if row.problem]
    assert all(len(row.seconds) == 2 and row.flops > 0 for row in found.rows)
    by = {row.key: row for row in found.rows}
    cached, anew = by["autoregressive", 1, "float32"], by["autoregressive, no cache", 1, "float32"]
    assert anew.flops == cached.flops, "what is computed twice is no use"
    assert by["update, recomputed", 1, "float32"].flops == by["update", 1, "float32"].flops
    # The backward pass has two products for each of the forward pass, but for what no parameter lies before.
    share = by["update", 1, "float32"].flops / by["parallel", 1, "float32"].flops
    assert 2.5 < share < 3.6
    assert by["parallel, one prefix", 2, "float32"].flops < by["parallel", 2, "float32"].flops
    record = to_dict(found)
    assert json.loads(json.dumps(record))["machine"]["cpu_cores"] and len(record["rows"]) == len(found.rows)
    assert targets(found)[0].value is not None and len(tables(found)) == 3


def test_what_lacks_memory_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("vla_rl.bench.policy.find_model", lambda *_: small_policy().model)
    monkeypatch.setattr(policy_work, "decode_without_cache", full)
    found = measure(PolicySettings(batches=(1,), dtypes=("float32",), seconds=0.0, repeats=1, lora_rank=0))
    assert [row.name for row in found.rows if row.problem == "out of memory"] == ["autoregressive, no cache"]
    assert found.row("parallel", 1, "float32") and tables(found)


def test_full_size_has_the_published_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """7.5 billion parameters, of which nothing is allocated here."""
    monkeypatch.setattr(OpenVLAModel, "rebuild_buffers", lambda self, device: None)
    monkeypatch.setattr(torch, "Generator", lambda device: type("Draw", (), {"manual_seed": lambda self, seed: None})())
    model = policy_work.full_size(8, torch.device("meta"))
    assert 7.4e9 < sum(p.numel() for p in model.parameters()) < 7.7e9
    assert model.config.image_tokens == 256 and model.config.num_tokens == 56


def test_a_policy_that_does_not_exist_ends_in_one_line() -> None:
    with pytest.raises(PolicyError, match="^there is no policy 'huge'; give a path, openvla-7b, or one of small, state, tiny$"):
        policy_work.find_model("huge", 8, NO_CPU)
    with pytest.raises(PolicyError, match="^there is no dtype 'float8' to measure"):
        PolicySettings(dtypes=("float8",))


def test_the_command_is_there() -> None:
    assert "POLICY" in CliRunner().invoke(app, ["bench", "policy", "--help"]).output
