"""No notation of a path gets more than its last component into a card."""

import pytest

from heliostat.train.model_card.names import id_in_code, last_part, name_in_code, plain_name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/alice/my sums/data one.jsonl", "data one.jsonl"),
        ("~/secret/model", "model"),
        ("~alice", ""),
        ("..", ""),
        ("C:\\Users\\alice\\sums.jsonl", "sums.jsonl"),
        ("C:\\", ""),
        ("\\\\machine\\share\\sums.jsonl", "sums.jsonl"),
        ("\\\\machine", ""),
        ("file:///home/alice/sums.jsonl", "sums.jsonl"),
        ("file://machine/sums.jsonl", "sums.jsonl"),
        ("http://machine:8000", ""),
        ("https://user:key@machine/sums.jsonl?token=secret", "sums.jsonl"),
        ("s3://bucket/", ""),
        ("sums of /home/alice/my data", "my data"),
        ("/home/alice/sums/", "sums"),
        ("rewards:length", "rewards:length"),
        ("chain_sum", "chain_sum"),
    ],
)
def test_last_parts(text, shown):
    assert last_part(text) == shown
    assert last_part(shown) == shown


def test_markup_stays_text():
    assert plain_name("a`|<b>\n[x](y)") == "a___b_ _x_(y)"
    assert name_in_code("/") == "`unnamed`"
    assert id_in_code("Qwen/Qwen2.5-0.5B") == "`Qwen/Qwen2.5-0.5B`"
    assert id_in_code("/home/alice") == "`alice`"
