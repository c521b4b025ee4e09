"""Only the saved model and its card reach the hub, and only when asked; the hub here is a server on this machine."""

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from heliostat.config import ConfigError, ModelSection
from heliostat.models import load_model
from heliostat.models.saving import CARD_HERE, save_model
from heliostat.publish import prepare
from tests.support import small
from tests.support.fake_hub import FakeHub, serving
from tests.support.nano import NANO

SECRETS = ("checkpoints/step_000001/optimizer.pt", "metrics.jsonl", "transcripts.jsonl", "model/notes.txt")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my runs") / "one run"
    save_model(load_model(ModelSection(path="tiny", settings=NANO), 0), folder / "model")
    (folder / "recipe.toml").write_text("")
    (folder / "model" / "README.md").write_text(f"# card\n\n{CARD_HERE}\n")
    for name in SECRETS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret")
    return folder


def push(run, *options, endpoint="http://127.0.0.1:9", token="hf_of_the_test"):
    variables = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    variables |= {"HF_HOME": str(run.parent / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = small.command("push", run, "org/name", *options)
    return subprocess.run(
        command, env=variables, text=True, capture_output=True, timeout=240, stdin=subprocess.DEVNULL, check=False
    )


@pytest.mark.slow
def test_a_push_sends_the_model_and_its_card_alone(run):
    hub = FakeHub()
    with serving(hub) as endpoint:
        asked = push(run, endpoint=endpoint)
        dry = push(run, "--dry-run", endpoint=endpoint)
        assert hub.calls == []
        done = push(run, "--yes", "--private", endpoint=endpoint)
    assert (asked.returncode, asked.stderr.count("\n")) == (2, 1)
    assert "--yes uploads without a question" in asked.stderr
    assert dry.returncode == 0, dry.stderr
    assert "dry run: nothing was uploaded" in dry.stdout
    assert 'name = "org/name"' in dry.stdout
    assert done.returncode == 0, done.stderr
    assert hub.files.keys() == {path.name for path in (run / "model").iterdir()} - {"notes.txt"}
    assert hub.files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert hub.files["README.md"] == b'# card\n\nname = "org/name"\n'
    path, body, token = hub.calls[0]
    assert (path, token) == ("/api/repos/create", "Bearer hf_of_the_test")
    assert json.loads(body)["name"] == "name"
    assert "private" in body.decode()


@pytest.fixture
def with_adapter(tmp_path):
    pytest.importorskip("peft")
    (tmp_path / "recipe.toml").write_text("")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "tiny"}))
    save_file({"q_proj.lora_A.weight": torch.ones(2, 4)}, adapter / "adapter_model.safetensors")
    (adapter / "README.md").write_text("# an adapter\n")
    (adapter / "optimizer.pt").write_text("secret")
    return tmp_path


@pytest.mark.slow
def test_an_adapter_goes_to_a_branch(with_adapter):
    hub = FakeHub()
    with serving(hub) as endpoint:
        done = push(with_adapter, "--yes", "--adapter", "--revision", "trial", endpoint=endpoint)
    assert done.returncode == 0, done.stderr
    assert hub.files.keys() == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    paths = [path for path, _, _ in hub.calls]
    made, sent = paths.index("/api/models/org/name/branch/trial"), paths.index("/api/models/org/name/commit/trial")
    assert made < sent
    assert not any(path.endswith("/commit/main") for path in paths)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "sentence"), [(401, "does not accept the token"), (403, "may not write to org/name")]
)
def test_a_refusal_is_one_sentence(run, status, sentence):
    with serving(FakeHub(refuses=status)) as endpoint:
        done = push(run, "--yes", endpoint=endpoint)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_missing_token_is_one_sentence(run):
    done = push(run, "--yes", token="")
    assert done.returncode == 2
    assert "there is no token of the Hugging Face hub" in done.stderr


def test_what_cannot_be_published_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="has no owner"):
        prepare(run, "name")
    with pytest.raises(ConfigError, match="cannot be a repository"):
        prepare(run, "org/name/more")
    with pytest.raises(ConfigError, match="is not a run folder"):
        prepare(tmp_path, "org/name")
    with pytest.raises(ConfigError, match="has no adapter"):
        prepare(run, "org/name", adapter=True)
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(ConfigError, match="has no model: a run saves it at its end"):
        prepare(tmp_path, "org/name")
    (tmp_path / "model").mkdir()
    for path in (run / "model").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        prepare(tmp_path, "org/name")
