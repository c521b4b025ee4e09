"""``heliostat scale``: one table, and what does not fit."""

import json
from typing import Any

import pytest

from heliostat.cli import main
from heliostat.scaling.catalog import CONFIGS


def test_one_table_of_what_a_step_takes(capsys):
    line = "scale qwen2.5-7b --gpus 8 --samplers 8 --ways 2 --distributed.placement sharded"
    assert main([*line.split(), "--train.gradient_checkpointing", "true"]) == 0
    printed = capsys.readouterr().out
    assert "7.616 billion weights" in printed
    assert "8 train, 8 sample" in printed
    assert "weights 1.9, gradients 3.81, optimizer 11.4" in printed
    assert "whole step, asynchronous, s" in printed
    assert "does not fit" not in printed


def test_what_does_not_fit_is_said_and_is_the_exit_code(capsys):
    assert main(["scale", "qwen2.5-7b"]) == 1
    assert "does not fit: weights, gradients and optimizer take 137 GB of 72 GB" in capsys.readouterr().out


def test_sizes_come_from_a_folder_and_a_recipe(tmp_path, capsys):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 128, **sizes}))
    assert main(["scale", str(tmp_path), "--recipe", "demo", "--mean-tokens", "3"]) == 0
    assert "completions at once" in capsys.readouterr().out


def test_what_cannot_be_is_refused_in_one_line(capsys):
    for words, says in (
        (["no-such-model"], "unknown model 'no-such-model'"),
        (["qwen2.5-7b", "--gpus", "6", "--ways", "4"], "6 GPUs cannot sample in teams of 4"),
        (["qwen2.5-7b", "--mean-tokens", "100"], "100 tokens on average cannot be at most 64 long"),
    ):
        assert main(["scale", *words]) == 2
        printed = capsys.readouterr().err
        assert says in printed
        assert printed.count("\n") == 1


def figures(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Run ``heliostat scale ... --json`` and return its object."""
    main(["scale", *words, "--json"])
    return json.loads(capsys.readouterr().out)


def test_gpu_hours_and_cost_follow_from_gpus_seconds_and_price(capsys):
    for num_gpus in (1, 4):
        found = figures(capsys, "qwen2.5-0.5b", "--gpus", str(num_gpus), "--price", "2.5")
        assert found["gpus"]["train"] == num_gpus
        hours = num_gpus * found["seconds"]["synchronous"] / 3600
        assert found["gpu_hours"] == pytest.approx({"step": hours, "run": hours * found["num_steps"]})
        assert found["dollars"] == pytest.approx({name: 2.5 * value for name, value in found["gpu_hours"].items()})


def test_sharded_trainers_divide_the_state_and_replicas_do_not(capsys):
    def state(*words: str) -> float:
        found = figures(capsys, "qwen2.5-0.5b", *words)["training_bytes"]
        return found["weights"] + found["gradients"] + found["optimizer"]

    assert state("--gpus", "4") == state()
    assert state("--gpus", "4", "--distributed.placement", "sharded") == pytest.approx(state() / 4)


def test_a_folder_has_the_figures_of_the_same_shape_by_name(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["qwen2.5-0.5b"]))
    options = ("--gpus", "2", "--price", "2")
    assert figures(capsys, str(tmp_path), *options) == figures(capsys, "qwen2.5-0.5b", *options)


def test_a_hub_id_has_the_figures_of_its_cached_config(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["scale", "someone/half-b"]) == 2
    printed = capsys.readouterr().err
    assert "HF_HUB_OFFLINE is set and its config.json is not in the local cache" in printed
    assert printed.count("\n") == 1
    stored = tmp_path / "models--someone--half-b"
    for path, text in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/config.json", CONFIGS["qwen2.5-0.5b"])):
        (stored / path).parent.mkdir(parents=True)
        (stored / path).write_text(text if isinstance(text, str) else json.dumps(text))
    assert figures(capsys, "someone/half-b") == figures(capsys, "qwen2.5-0.5b")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "it is gated"),
        ("RepositoryNotFoundError", "check the spelling"),
        ("RemoteEntryNotFoundError", "it has no config.json"),
        ("HfHubHTTPError", "HfHubHTTPError, the hub's own words"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(error, says, capsys, monkeypatch):
    import httpx2
    from huggingface_hub import errors

    def refuse(repo_id: str, filename: str) -> str:
        assert (repo_id, filename) == ("someone/some-model", "config.json")
        response = httpx2.Response(404, request=httpx2.Request("HEAD", "https://hub"))
        raise getattr(errors, error)("the hub's own words.", response=response)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    assert main(["scale", "someone/some-model"]) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1


def test_json_has_the_printed_figures(capsys):
    words = ("qwen2.5-0.5b", "--gpus", "2", "--price", "2")
    found = figures(capsys, *words)
    main(["scale", *words])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{found['gpu_hours']['step']:.3g} a step, {found['gpu_hours']['run']:.3g} for" in printed
    assert f"{found['dollars']['step']:.3g} a step, {found['dollars']['run']:.3g} for" in printed
    assert f"training, GB on each {found['training_bytes']['total'] / 1e9:.3g} (" in printed
    assert f"whole step, s {found['seconds']['synchronous']:.3g}; {found['tokens_per_gpu_s']:.3g} tokens" in printed


def test_a_teacher_in_the_trainers_has_weights_and_forward_passes(capsys):
    plain = figures(capsys, "qwen2.5-0.5b")
    for placement, num in (("replicated", 1), ("sharded", 4)):
        words = ("--gpus", str(num), "--distributed.placement", placement)
        alone = figures(capsys, "qwen2.5-0.5b", *words)
        found = figures(capsys, "qwen2.5-0.5b", *words, "--teacher.path", "qwen2.5-7b")
        weights = 2 * 7_615_616_512 / num
        assert found["training_bytes"]["teacher"] == found["teacher"]["weight_bytes"] == weights
        assert found["training_bytes"]["total"] - alone["training_bytes"]["total"] == pytest.approx(weights)
        assert found["seconds"]["training"] - alone["seconds"]["training"] == pytest.approx(found["seconds"]["teacher"])
        assert found["teacher"]["flops"] > 0
    assert plain["teacher"] is None
    own = figures(capsys, "qwen2.5-0.5b", "--teacher.path", "self", "--teacher.hint", "answer")
    assert own["training_bytes"] == plain["training_bytes"]
    assert 0 < own["seconds"]["teacher"] < plain["seconds"]["training"]


def test_a_teacher_on_a_server_is_counted_in_tokens_and_requests(capsys):
    words = ("qwen2.5-0.5b", "--prompt-tokens", "100", "--mean-tokens", "20", "--rollout.prompts_per_step", "10")
    teacher = ("--teacher.url", "http://host:8000", "--teacher.model", "large", "--rollout.group_size", "8")
    found = figures(capsys, *words, *teacher)["teacher"]
    assert found == {
        "weights": 0,
        "weight_bytes": 0.0,
        "flops": 0.0,
        "sent_tokens": 80 * 120,
        "sent_requests": 8,
    }
    main(["scale", *words, *teacher])
    assert "on a server, which reads 9,600 tokens in 8 requests a step" in " ".join(capsys.readouterr().out.split())


def test_a_teacher_whose_sizes_cannot_be_read_is_named(capsys):
    assert main(["scale", "qwen2.5-0.5b", "--teacher.path", "./nowhere"]) == 2
    assert "teacher.path: unknown model './nowhere'" in capsys.readouterr().err
