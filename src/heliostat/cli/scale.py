"""``heliostat scale``: estimates memory, traffic and seconds of a step on GPUs that are not at hand.

Left out: the formulas (``heliostat.scaling``).
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from heliostat.cli.json_output import print_json

if TYPE_CHECKING:
    from heliostat.scaling import Estimate, GpuLayout, TeacherLoad


def scale(args: Namespace) -> int:
    """Run ``heliostat scale``: print one table or one JSON object; exit code 1 if something does not fit."""
    from heliostat.run_models import recipe_for
    from heliostat.scaling import H100, MODELS, GpuLayout, estimate, job_of, read_shape, teacher_load

    recipe = recipe_for([], args.recipe, args.overrides)
    shape = read_shape(args.model, MODELS)
    compute = recipe.distributed.compute_dtype
    job = job_of(recipe, args.prompt_tokens, args.mean_tokens)
    layout = GpuLayout(
        num_trainers=args.gpus,
        sharded=recipe.distributed.placement == "sharded",
        num_samplers=args.samplers,
        sampler_ways=args.ways,
    )
    found = estimate(
        shape,
        job,
        layout,
        H100,
        stored="bfloat16" if recipe.model.dtype == "auto" else recipe.model.dtype,
        computed=None if compute == "stored" else compute,
        teacher=teacher_load(recipe, shape, job, layout, MODELS),
    )
    if args.json:
        print_json(args, _to_json(found, recipe.train.num_steps, args.price))
    else:
        _show(found, recipe.train.num_steps, args.price)
    return 1 if found.obstacles else 0


def _division(layout: GpuLayout) -> str:
    """State the assumption by which GPUs divide the work."""
    memory = "fully sharded" if layout.sharded else "replicated"
    samplers = f"{layout.num_samplers} samplers" if layout.num_samplers else "the trainers"
    return f"data parallel, weights and optimizer {memory}; completions divided evenly over {samplers}"


def _to_json(found: Estimate, num_steps: int, price: float | None) -> dict[str, Any]:
    """Return the figures of the table as one object, in bytes, seconds, hours and dollars."""
    trainer, sampler, seconds, hours = found.trainer, found.sampler, found.seconds, found.gpu_hours
    return {
        "model": {"weights": found.shape.num_parameters, "weights_of_a_token": found.shape.num_active},
        "gpus": {"train": found.layout.num_trainers, "sample": found.layout.num_samplers, "type": found.hardware.name},
        "division": _division(found.layout),
        "training_bytes": {**asdict(trainer), "total": trainer.peak},
        "sampling_bytes": {"weights": sampler.weights, "cache": sampler.cache, "total": sampler.peak},
        "completions_at_once": sampler.num_rows,
        "sent_bytes": found.traffic.wire(found.layout.num_trainers),
        "seconds": {
            **asdict(seconds),
            "sampling": seconds.sampling,
            "training": seconds.training,
            "synchronous": seconds.synchronous,
            "asynchronous": seconds.asynchronous if found.layout.num_samplers else None,
        },
        "tokens_per_gpu_s": found.tokens_per_gpu_s,
        "num_steps": num_steps,
        "gpu_hours": _of_step_and_run(hours, num_steps),
        "dollars": None if price is None else _of_step_and_run(price * hours, num_steps),
        "teacher": None if found.teacher is None else asdict(found.teacher),
        "obstacles": list(found.obstacles),
    }


def _show(found: Estimate, num_steps: int, price: float | None) -> None:
    from heliostat.cli.tables import Page, print_lines

    shape, layout, trainer, sampler = found.shape, found.layout, found.trainer, found.sampler
    seconds = found.seconds
    order = "traffic overlaps compute" if seconds.overlapped else "traffic follows compute"
    lines = {
        "model": f"{shape.num_parameters / 1e9:.4g} billion weights, {shape.num_active / 1e9:.4g} used by a token",
        "GPUs": f"{layout.num_trainers} train, {layout.num_samplers or 'the same'} sample; {found.hardware.name}",
        "division of work": _division(layout),
        "training, GB on each": _sum(
            trainer.peak,
            1e9,
            weights=trainer.weights,
            gradients=trainer.gradients,
            optimizer=trainer.optimizer,
            gathered=trainer.gathered,
            activations=trainer.activations,
            teacher=trainer.teacher,
        ),
        "sampling, GB on each": _sum(sampler.peak, 1e9, weights=sampler.weights, cache=sampler.cache)
        + f"; {sampler.num_rows} completions at once",
        "sent by a trainer, GB": f"{found.traffic.wire(layout.num_trainers) / 1e9:.3g}",
        "sampling, s": _sum(seconds.sampling, 1, prompts=seconds.prefill, tokens=seconds.decode),
        "training, s": _sum(
            seconds.training,
            1,
            compute=seconds.compute,
            traffic=seconds.traffic,
            optimizer=seconds.optimizer,
            teacher=seconds.teacher,
        )
        + f"; {order}" * (layout.num_trainers > 1),
        "weight sync, s": f"{seconds.sync:.3g}",
        "whole step, s": f"{seconds.synchronous:.3g}; {found.tokens_per_gpu_s:.3g} tokens per second and GPU",
    }
    if found.teacher is not None:
        lines["teacher"] = _teacher(found.teacher)
    if layout.num_samplers:
        lines["whole step, asynchronous, s"] = f"{seconds.asynchronous:.3g}"
    hours = found.gpu_hours
    lines["GPU-hours"] = f"{_bill(hours, num_steps)}; synchronous"
    if price is not None:
        lines["cost, dollars"] = _bill(price * hours, num_steps)
    print_lines("one step", lines)
    for obstacle in found.obstacles:
        Page().print(f"does not fit: {obstacle}", markup=False, soft_wrap=True)


def _teacher(load: TeacherLoad) -> str:
    if load.sent_requests:
        sent = f"{load.sent_tokens:,.0f} tokens in {load.sent_requests} requests"
        return f"on a server, which reads {sent} a step; its own time and memory are not in this table"
    what = f"{load.weights / 1e9:.4g} billion weights in the trainers" if load.weights else "the policy itself"
    return f"{what}; {load.flops:.3g} FLOPs a step"


def _of_step_and_run(of_step: float, num_steps: int) -> dict[str, float]:
    return {"step": of_step, "run": num_steps * of_step}


def _bill(of_step: float, num_steps: int) -> str:
    amounts = _of_step_and_run(of_step, num_steps)
    return f"{amounts['step']:.3g} a step, {amounts['run']:.3g} for {num_steps} steps"


def _sum(total: float, unit: float, **parts: float) -> str:
    named = ", ".join(f"{name} {value / unit:.3g}" for name, value in parts.items() if value)
    return f"{total / unit:.3g} ({named})"
