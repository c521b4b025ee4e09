"""Measure a model with lm-evaluation-harness, on its own tasks or on local ones (extra: lm-eval).

The harness renders prompts and scores answers in its own way, so its results are not those of ``evaluate``. It has the
benchmarks that model cards quote.

Left out: Heliostat's evaluation on the held-out problems of a recipe (``train.evaluation``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat import __version__
from heliostat.config import ConfigError, ModelSection, nearest
from heliostat.extras import require
from heliostat.models.loading.load import load_model

PACKAGE = "lm_eval"


@dataclass(frozen=True, slots=True)
class HarnessScore:
    """One metric of one task.

    Attributes:
        task: the name that the harness shows.
        filter: how the answer was taken from the text, ``none`` for no filter.
        value: in the metric's own unit.
        stderr: standard error of ``value``; ``None`` where the harness computes none.
        num_samples: documents that were scored; ``None`` for a group of tasks.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    num_samples: int | None


@dataclass(frozen=True, slots=True)
class HarnessReport:
    """Results of one model.

    Attributes:
        results: the dictionary of the harness, with ``heliostat_version`` and ``heliostat_model`` added.
    """

    model: str
    results: Mapping[str, Any]

    @property
    def version(self) -> str:
        """The version of lm-evaluation-harness."""
        return str(self.results["lm_eval_version"])

    def scores(self) -> Iterator[HarnessScore]:
        """Yield every metric of every task and group, in the order of the harness."""
        counts = self.results.get("n-samples", {})
        for name, values in self.results["results"].items():
            for key, value in values.items():
                metric, comma, filter_ = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                    continue
                stderr = values.get(f"{metric}_stderr,{filter_}")
                yield HarnessScore(
                    values.get("alias", name),
                    metric,
                    filter_,
                    float(value),
                    float(stderr) if isinstance(stderr, (int, float)) else None,
                    counts.get(name, {}).get("effective"),
                )

    def to_json(self) -> str:
        """Return the harness's results as JSON."""
        return json.dumps(self.results, indent=2, default=str, ensure_ascii=False)


def check_installed() -> None:
    """Refuse to go on without the harness.

    Raises:
        ConfigError: the package is missing.
    """
    require("--with lm-eval", "lm-eval", PACKAGE)


def evaluate_with_harness(
    model: str,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    num_problems: int | None = None,
    chat_template: bool = False,
    batch_size: int = 8,
) -> HarnessReport:
    """Measure one model on tasks of lm-evaluation-harness.

    Args:
        model: run folder, model folder, hub id, or the name of a bundled model.
        tasks: names of tasks or groups.
        include_path: folder with YAML files of further tasks; paths in them are relative to the working directory.
        num_problems: documents of each task, from its beginning; ``None``: all.
        chat_template: whether prompts are rendered as chats by the model's template.
        batch_size: sequences of one forward pass.

    Raises:
        ConfigError: the harness is not installed, a task or the folder does not exist, the model cannot be loaded or
            has no chat template, or a task's data cannot be read.
    """
    check_installed()
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"there is no folder {include_path} with YAML files of tasks")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    _check_tasks(tasks, manager.all_tasks, include_path)
    loaded = load_model(ModelSection(path=model), seed=0)
    if chat_template and loaded.tokenizer.chat_template is None:
        raise ConfigError(f"the model '{model}' has no chat template; leave out --chat-template")
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)  # its warnings are about options that are not given here
    try:
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=num_problems,
            apply_chat_template=chat_template,
            log_samples=False,
        )
    except (OSError, LookupError, ValueError) as error:
        raise ConfigError(
            f"lm-eval failed on {' '.join(tasks)}: {str(error).strip() or type(error).__name__}"
        ) from error
    return HarnessReport(model, {"heliostat_version": __version__, "heliostat_model": model, **results})


def _check_tasks(tasks: Sequence[str], known: Sequence[str], include_path: Path | None) -> None:
    for task in tasks:
        if task not in known:
            where = "" if include_path is None else f" or in {include_path}"
            way = "; --include-path names a folder of own tasks" if include_path is None else ""
            raise ConfigError(f"there is no task '{task}' in lm-eval{where}{nearest(task, known)}{way}")
