"""Entry points of the command line and of notebooks: from a recipe to a finished folder and a result.

    run_recipe   warm start, post-train, evaluate, save, report
    run_sft      the warm start alone
    run_eval     held-out results of one model, or of two on the same problems
    run_sample   a few completions to look at

Left out: argument syntax (``cli``) and the loop (``train.trainer``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from heliostat.arguments import PathArg, as_path, as_text
from heliostat.config import ConfigError, Recipe
from heliostat.models.prompts.chat_template import day_of
from heliostat.monitors import standing
from heliostat.monitors.absolute_rules import LONGEST_SOLUTION
from heliostat.nested_runs import refuse_nested
from heliostat.rollout import NonFiniteLogits, ParityError, ServerError
from heliostat.storage import StorageError
from heliostat.tasks import JudgeFailed, Task, VerifierError, VerifierPool
from heliostat.tasks.environment_settings import environment_of
from heliostat.tasks.environments.contract import EnvironmentFailed
from heliostat.tasks.environments.pool import EnvironmentNotLoaded
from heliostat.tasks.sources.demonstrations import demonstrations_of
from heliostat.traces import BankError
from heliostat.trackers import open_services
from heliostat.tracking import JsonlTracker, Tracker, read_metrics
from heliostat.train.accounting.flop_ledger import Ledger
from heliostat.train.accounting.profiler import Profile
from heliostat.train.builders import build_trainer
from heliostat.train.checks.encoding import check_encodable
from heliostat.train.checks.recipe import check_ranks, check_recipe, load_tasks
from heliostat.train.checks.reward_audit import RewardRefused, audit_rewards
from heliostat.train.console.interrupt import Interrupted, InterruptHandler
from heliostat.train.console.notebook import open_display
from heliostat.train.console.progress import Display
from heliostat.train.data.trace_log import TraceLog
from heliostat.train.distributed.ranks import RankLost, Runtime, readable_dist_errors, running
from heliostat.train.episodes import UnlikeWorlds, with_episodes
from heliostat.train.evaluation.evaluate import Evaluation
from heliostat.train.evaluation.rows import recorded_evaluation
from heliostat.train.guard.run_guard import GuardStopped
from heliostat.train.judges.episodes import about_episodes
from heliostat.train.judges.opening import check_own_judge, describe_judge, open_judge
from heliostat.train.logprobs.layout_trial import exact_layouts
from heliostat.train.logprobs.teacher import TeacherFailed
from heliostat.train.model_bundle import ModelBundle, set_up_model
from heliostat.train.results import RunResult
from heliostat.train.run_context import RunContext
from heliostat.train.run_folder.checkpoint_files import CheckpointError
from heliostat.train.run_folder.checkpoints import Checkpoints, ResumePoint
from heliostat.train.run_folder.export import NUM_PROMPTS, ExportError, try_export
from heliostat.train.run_folder.folder import RunFolder, reserve_run_dir
from heliostat.train.run_folder.stored_dtype import begun_in
from heliostat.train.teachers.opening import describe_teacher, open_teacher
from heliostat.train.trainer import Trainer
from heliostat.train.update.safe_step import TrainingDiverged

EXPECTED_FAILURES = (
    *(TrainingDiverged, NonFiniteLogits, CheckpointError, VerifierError),
    *(ParityError, ServerError, GuardStopped, RankLost, ExportError, StorageError, BankError, RewardRefused),
    *(EnvironmentFailed, EnvironmentNotLoaded, UnlikeWorlds, JudgeFailed, TeacherFailed),
)
"""Failures that end a run with a clear message and an intact folder; any other is a bug and keeps its traceback."""


def run_recipe(
    recipe: Recipe,
    run_dir: PathArg | None = None,
    recipe_name: str = "run",
    display: Display | None = None,
    profile: bool = False,
    opened: Callable[[Path], None] | None = None,
) -> RunResult:
    """Train as the recipe says, or continue an unfinished run of the same recipe in ``run_dir``.

    Args:
        opened: called on the main process with the folder of a run that is about to work.

    Raises:
        ConfigError: the recipe cannot be carried out.
        RunLocked: another process uses the folder.
    """
    refuse_nested("a run")
    objective = check_recipe(recipe)
    check_own_judge(recipe.judge)
    tasks = load_tasks(recipe)
    with ExitStack() as stack:
        runtime = stack.enter_context(running(recipe.run, recipe.distributed))
        check_ranks(recipe, runtime)
        path = as_path(run_dir or runtime.run_on_main(lambda: reserve_run_dir(recipe.run, recipe_name)))
        shown = stack.enter_context(display or open_display(quiet=not runtime.is_main))
        with runtime.raise_on_all_ranks():
            reserved = run_dir is None and not recipe.run.name
            folder = RunFolder.open(path, recipe, reserved=reserved) if runtime.is_main else RunFolder(path)
            stack.enter_context(folder)
        shown.note(f"run folder: {path}")
        if runtime.broadcast(folder.is_finished):
            for change in folder.changes() if runtime.is_main else ():
                shown.note(change)
            shown.note("this run is finished already; nothing to do")
            results = (recorded_evaluation(folder.evals, "before"), recorded_evaluation(folder.evals, "after"))
            found = tuple(standing(read_metrics(folder.events)))
            return RunResult(path, "finished", "", *results, is_main_process=runtime.is_main, findings=found)
        for change in folder.changed_parts(recipe):
            shown.note(change)
        if opened is not None and runtime.is_main:
            opened(path)
        with runtime.raise_on_all_ranks():  # report missing packages of a tracker before the model loads
            settings = recipe.model_dump(mode="json")
            services = open_services(recipe.tracking, folder.path, settings, shown.note) if runtime.is_main else []
        for service in services:
            stack.callback(service.close)
        pool = stack.enter_context(VerifierPool(tasks, environment_of(recipe.environment)))
        checkpoints = Checkpoints(folder.checkpoints, recipe.train.keep_checkpoints, runtime)
        point = checkpoints.find_newest()
        recipe = begun_in(recipe, runtime.broadcast(checkpoints.stored_dtype(point.step)))
        with runtime.raise_on_all_ranks():
            bundle = set_up_model(recipe, runtime, lambda today: runtime.broadcast(folder.keep_day(today)))
            bundle = with_episodes(bundle, pool.environments, shown.note)
        for note in _data_notes(tasks, bundle):
            shown.note(note)
        runtime.run_on_main(lambda: check_encodable(recipe, tasks, bundle, shown.note))
        with runtime.raise_on_all_ranks():
            problems = [problem for task in tasks for problem in task.train]
            teacher = open_teacher(recipe, bundle, runtime, problems, folder)
        if teacher is not None:
            stack.callback(teacher.close)
            shown.note(describe_teacher(recipe.teacher, teacher))
        with runtime.raise_on_all_ranks():
            pool.judging = about_episodes(open_judge(recipe, tasks, runtime, folder.replies), bundle)
            if pool.judging is not None:
                stack.callback(pool.judging.judge.close)
                folder.keep_judge(pool.judging.judge.name, pool.judging.judge.fingerprint)
                shown.note(describe_judge(pool.judging))
        refused = ""
        rewards_train = teacher is None or not teacher.alone
        if recipe.audit.enabled and rewards_train and recipe.train.num_steps > 0 and point.step is None:
            refused = runtime.run_on_main(lambda: audit_rewards(recipe, tasks, pool, bundle, folder, shown.note))
        if recipe.train.try_export and not refused and point.step != recipe.train.num_steps:  # else the export is next
            problems = [problem for task in tasks for problem in task.heldout][:NUM_PROMPTS]
            prompts = [bundle.prompt(problem) for problem in problems]
            try_export(bundle.loaded, runtime, folder.path, prompts, resumes=point.step is not None)
        dtype = str(bundle.loaded.model.dtype).removeprefix("torch.")
        shown.note(f"{dtype} weights; sampled with {bundle.engine.way}; scored with {exact_layouts(bundle.loaded).way}")
        _rewind(folder, point, runtime, shown)
        trackers: list[Tracker] = [*services]
        if runtime.is_main:
            trackers.insert(0, JsonlTracker(folder.metrics))
            stack.callback(trackers[0].close)
        interrupt = stack.enter_context(InterruptHandler(shown.note, runtime.any))
        ledger = Profile(loaded=bundle.loaded, show=shown.table) if profile else Ledger()
        traces = stack.enter_context(TraceLog(recipe, tasks, bundle.loaded, path.name, keeps=runtime.is_main))
        context = RunContext(
            recipe=recipe,
            folder=folder,
            checkpoints=checkpoints,
            runtime=runtime,
            tasks=tasks,
            bundle=bundle,
            objective=objective,
            teacher=teacher,
            pool=pool,
            trackers=trackers,
            display=shown,
            interrupt=interrupt,
            ledger=ledger,
            traces=traces,
        )
        return _carry_out(build_trainer(context), recipe_name, refused)


def _data_notes(tasks: Sequence[Task], bundle: ModelBundle) -> Iterator[str]:
    """Yield notes on skipped data and on the date in the chat template."""
    for task in tasks:
        yield from task.notes
    if day := day_of(bundle.loaded):
        yield f"the chat template contains the date; in this run it is {day[:10]} throughout (template_day.txt)"


def _rewind(folder: RunFolder, point: ResumePoint, runtime: Runtime, shown: Display) -> None:
    """Rewind a folder to its newest intact checkpoint, and report damaged files."""
    losses = list(point.losses)
    with runtime.main_first():
        if point.is_intact:
            losses += folder.rewind_to(point.step, point.logs)
    for loss in losses:
        shown.note(loss)


def _carry_out(trainer: Trainer, recipe_name: str, refused: str) -> RunResult:
    """Run unless ``refused`` gives a reason, and write a summary in any case."""
    before = after = None
    status, reason = "finished", ""
    try:
        if refused:
            raise RewardRefused(refused)
        with readable_dist_errors():  # torch itself communicates for sharded weights
            before, after = trainer.run()
    except (Interrupted, KeyboardInterrupt):
        where = f"after step {trainer.counters.step}" if trainer.counters.step > 0 else "before the first step"
        status, reason = (
            "interrupted",
            f"stopped by the user {where}; the same command continues with --run {trainer.context.folder.path}",
        )
    except EXPECTED_FAILURES as error:
        status, reason = "failed", str(error)
        if isinstance(error, RankLost):
            trainer.context.display.note(reason)  # print at once: torchrun is about to end this process as well
    evals = trainer.context.folder.evals
    before = before or recorded_evaluation(evals, "before")
    after = after or recorded_evaluation(evals, "after", trainer.counters.step)  # of a run that the guard ended
    findings = tuple(standing(read_metrics(trainer.context.folder.events)))
    try:
        _summarise(trainer, recipe_name, status, reason, before, after, findings)
    except StorageError as error:
        status, reason = "failed", "; ".join(filter(None, (reason, str(error))))
    return RunResult(
        trainer.context.folder.path, status, reason, before, after, trainer.context.runtime.is_main, findings
    )


def _summarise(
    trainer: Trainer,
    recipe_name: str,
    status: str,
    reason: str,
    before: Evaluation | None,
    after: Evaluation | None,
    findings: Sequence[str],
) -> None:
    trainer.context.folder.write_summary(
        {
            "status": status,
            "reason": reason,
            "recipe": recipe_name,
            "findings": list(findings),
            "longest_solution": trainer.guard.absolute.settings.get(LONGEST_SOLUTION),
            "steps": trainer.counters.step,
            "chosen": {"rollout.max_parity_gap": trainer.metrics.parity_bound},
            "sampled_with": trainer.context.bundle.engine.way,
            "scored_with": exact_layouts(trainer.context.bundle.loaded).way,
            "before": before.summary() if before else None,
            "after": after.summary() if after else None,
            "seconds": {**trainer.context.ledger.seconds, "total": trainer.counters.elapsed_s},
            "flops": trainer.context.ledger.flops,
            "teacher_tokens": trainer.counters.teacher_tokens,
            "tokens": trainer.counters.num_tokens,
            "bad_steps": trainer.counters.num_bad_steps,
            "model": "model" if status == "finished" else None,
            "report": "report.html",
        }
    )


def run_sft(
    recipe: Recipe, data: PathArg | None = None, run_dir: PathArg | None = None, recipe_name: str = "sft"
) -> RunResult:
    """Run supervised training alone: the recipe's warm start, on its task or on worked solutions and conversations.

    Args:
        data: any value of ``task.path``, read with the recipe's columns and template.
    """
    if recipe.warm_start.num_steps == 0:
        raise ConfigError("sft has nothing to do: warm_start.num_steps is 0; set it, for example to 200")
    changes: dict[str, Any] = recipe.model_dump()
    changes["train"]["num_steps"] = 0
    if data is not None:
        changes["task"] = [demonstrations_of(recipe.task[0], as_text(data))]
    return run_recipe(Recipe.model_validate(changes), run_dir, recipe_name)
