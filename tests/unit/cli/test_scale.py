"""``heliostat scale``: one table, and what does not fit."""

import json

from heliostat.cli import main


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
