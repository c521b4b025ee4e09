"""The promise: every flag in ``examples/cluster`` exists, according to the program that will read it.

Parsers of frameworks are their own where they are installed. vLLM's options are recorded (``vllm_options.json``, by
``record_vllm_options.py``), since it seldom is. Slurm's ``#SBATCH`` lines and Ray's client are not checked.
"""

import importlib.util
import json
import math
import re
import shlex
from pathlib import Path

import pytest

from heliostat.config import load_recipe
from heliostat.scaling import H100, MODELS, GpuLayout, estimate, job_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "cluster"
VLLM_OPTIONS = json.loads((ROOT / "tests" / "reference" / "vllm_options.json").read_text())


def arguments(script: str, program: str) -> list[str]:
    """What stands after a program in a script, with variables as the word X."""
    text = (EXAMPLES / script).read_text().replace("\\\n", " ")
    text = re.sub(r"\$\{?\w+(\[\d+\])?\}?", "X", text)
    lines = [line for line in text.splitlines() if f" {program} " in line and not line.startswith("#")]
    found = [line.partition(program + " ")[2] for line in lines]
    assert len(found) == 1, f"{program} stands {len(found)} times in {script}"
    words = shlex.split(found[0])
    return words[: words.index("&")] if "&" in words else words


def test_the_extraction_finds_what_stands_there():
    words = arguments("trl.sbatch", "torchrun")
    assert words[:4] == ["--nnodes", "4", "--nproc-per-node", "8"]
    assert "X:29500" in words
    assert arguments("trl.sbatch", "trl vllm-serve")[-2:] == ["--max_model_len", "4096"]


def test_the_recipe_loads_with_the_scripts_options():
    path, *words = arguments("server.sbatch", "heliostat train")
    options = dict(zip((word.lstrip("-") for word in words[::2]), words[1::2], strict=True))
    assert options.pop("run").startswith("/shared/"), "a folder that all ranks see"
    recipe = load_recipe(str(EXAMPLES / path), options)
    assert recipe.rollout.engine == "vllm"
    assert recipe.rollout.server_url == "http://X:8000"


def test_server_and_recipe_speak_of_the_same_model():
    model = load_recipe(str(EXAMPLES / "server.toml")).model.path
    assert arguments("server.sbatch", "vllm serve")[0] == model


def test_torchrun_joins_the_trainers_of_a_server():
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(arguments("server.sbatch", "torchrun"))
    assert (parsed.nnodes, parsed.nproc_per_node) == ("2", "8")
    words = parsed.training_script_args
    assert (parsed.training_script, words[0]) == ("heliostat", "train")


def test_the_model_fits_the_trainers_gpus():
    recipe = load_recipe(str(EXAMPLES / "server.toml"))
    shape = MODELS[Path(recipe.model.path).name.removesuffix("-Instruct").lower()]
    layout = GpuLayout(16, recipe.distributed.placement == "sharded", num_samplers=8, sampler_ways=8)
    assert estimate(shape, job_of(recipe, prompt_tokens=512), layout, H100).obstacles == ()


def test_the_server_uses_the_gpus_of_its_node():
    words = arguments("server.sbatch", "vllm serve")
    ways = [int(words[words.index(f"--{kind}-parallel-size") + 1]) for kind in ("tensor", "pipeline")]
    asked = re.search(r"--gpus-per-node=(\d+)", (EXAMPLES / "server.sbatch").read_text())
    assert math.prod(ways) == int(asked[1])


def test_vllm_knows_the_options():
    words = [word for word in arguments("server.sbatch", "vllm serve") if word.startswith("--")]
    assert [word for word in words if word not in VLLM_OPTIONS["options"]] == []
    assert "processed_logprobs" in VLLM_OPTIONS["options"]["--logprobs-mode"]


def test_torchrun_knows_the_options():
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(arguments("trl.sbatch", "torchrun"))
    assert parsed.nnodes == "4"
    assert parsed.training_script == "train_trl.py"


def module():
    spec = importlib.util.spec_from_file_location("train_trl", EXAMPLES / "train_trl.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.peers
def test_trl_knows_the_training_options(tmp_path):
    pytest.importorskip("trl")
    words = arguments("trl.sbatch", "torchrun")
    words = words[words.index("train_trl.py") + 1 :]
    here = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"]  # no accelerator for bfloat16 here
    _, config, model, objective = module().parser().parse_args_and_config([*words, *here])
    assert config.objective == "pmd-mean"
    assert config.steps_per_generation == 16
    assert objective.tau == 0.1
    assert model.model_name_or_path == "X"


@pytest.mark.peers
def test_trl_knows_the_servers_options():
    pytest.importorskip("trl")
    from trl import TrlParser
    from trl.scripts.vllm_serve import ScriptArguments

    (parsed,) = TrlParser(ScriptArguments).parse_args_and_config(arguments("trl.sbatch", "trl vllm-serve"))
    assert parsed.data_parallel_size == 2


def test_the_reward_of_the_example_reads_the_end():
    pytest.importorskip("trl")
    correct = module().correct
    assert correct(["so 12", "12 or 13"], ["12", "12"]) == [1.0, 0.0]
    assert correct([[{"role": "assistant", "content": "= 12"}]], ["12"]) == [1.0]


@pytest.mark.peers
def test_verl_knows_the_options():
    pytest.importorskip("verl")
    hydra = pytest.importorskip("hydra")
    config = Path(importlib.util.find_spec("verl").origin).parent / "trainer" / "config"
    with hydra.initialize_config_dir(str(config), version_base=None):
        composed = hydra.compose("ppo_trainer", overrides=arguments("verl.sh", "-m verl.trainer.main_ppo"))
    assert composed.actor_rollout_ref.actor.policy_loss.loss_mode == "heliostat"
    assert composed.algorithm.adv_estimator == "heliostat"


def test_the_environment_of_the_verl_example_is_an_objective():
    text = (EXAMPLES / "verl.sh").read_text()
    environment = json.loads(text.partition("--runtime-env-json '")[2].partition("'")[0])["env_vars"]
    described = json.loads(environment["HELIOSTAT_OBJECTIVE"])
    from ragged import build

    assert build(**described).tau == 0.1
    assert environment["VERL_USE_EXTERNAL_MODULES"] == "heliostat.adapters.verl"
