"""The sections of problems: ``task``, ``environment``, ``audit``, ``traces``, ``prefix``.

Left out: the keys of a named task, environment or cutting policy, which the package that defines it checks.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from heliostat.config.sections.base import NamedSection, Section


class TaskSection(NamedSection):
    """Problems and their verifier; further keys belong to the named task, like --task.settings.max_terms 3.

    A recipe may have several; ``--task.1.key`` means the second. The further keys are checked by ``heliostat.tasks``.
    """

    name: str = Field(
        "reasoning-gym/chain_sum",
        description="'reasoning-gym/<data set>', 'file' for problems of your own, or 'environment' for those that the "
        "recipe's environment makes",
    )
    num_train: int = Field(2048, ge=1, description="number of training problems")
    num_heldout: int = Field(200, ge=1, description="number of held-out problems, disjoint from training")


class EnvironmentSection(NamedSection):
    """An environment or tools that answer the model over several turns; further keys are the environment's own.

    The further keys, like ``--environment.num_keys 5``, are checked by ``heliostat.tasks.environments``.
    """

    name: str = Field("", description="a shipped environment, or 'my_module:Maze'; empty: none, or tools alone")
    tools: tuple[str, ...] = Field(
        (), strict=False, description="typed functions that the model may call, each 'my_module:lookup'"
    )
    import_from: str = Field(
        "", description="folder that modules are imported from, besides the working directory; a recipe names its own"
    )
    max_turns: int = Field(8, ge=1, description="turns of one episode")
    max_tokens_per_turn: int = Field(64, ge=1, description="sampled tokens of one turn; a turn that needs more is cut")
    max_tokens: int = Field(
        256, ge=1, description="tokens of an episode after its prompt, the environment's answers included"
    )
    timeout_s: float = Field(10.0, gt=0, description="time limit of one call of the environment in seconds")
    memory_mb: int = Field(1024, ge=16, description="memory of one environment process in MiB, after loading")
    num_workers: int = Field(4, ge=1, description="environment processes; each serves many episodes in turn")

    @property
    def enabled(self) -> bool:
        """Return whether the recipe trains on episodes of several turns."""
        return bool(self.name or self.tools)

    @property
    def recorded_name(self) -> str:
        """The names of the environment and its tools in one text, as traces record them; empty: none."""
        return "+".join(filter(None, (self.name, *self.tools)))


class AuditSection(Section):
    """The audit before training: the run's own verifiers grade right answers and known reward hacks."""

    enabled: bool = Field(True, description="audit the reward before training; --no-audit sets it to false")
    num_oracles: int = Field(200, ge=0, description="right answers to grade at most; a random sample if there are more")
    max_refused: float = Field(
        0.1, ge=0, le=1, description="largest share of right answers without reward; above it the run stops"
    )
    budget_s: float = Field(10.0, gt=0, description="time limit of the audit in seconds, from the first verdict")


class TracesSection(Section):
    """The trace bank, which stores rollouts and supplies prefixes."""

    bank: str = Field("", description="SQLite file of the trace bank; empty: none")
    keep: Literal["all", "successes", "none"] = Field("all", description="rollouts of this run to store in the bank")


class PrefixSection(NamedSection):
    """Prompts that begin with part of a stored solution or trajectory; further keys belong to the named policy.

    The further keys, like ``--prefix.low 0.3``, are checked by ``heliostat.traces.cuts``.
    """

    name: str = Field(
        "none", description="'none', or the policy that cuts solutions: band, annealed, targeted, backtracking"
    )
    share: float = Field(0.75, gt=0, le=1, description="share of a step's problems that get a prefix")
    mode: Literal["prefix", "hint", "unrelated"] = Field(
        "prefix",
        description="prefix: the start of the answer; controls: hint shows it in the question, unrelated takes it "
        "from another problem",
    )
    separator: str = Field(
        "", description="cut solutions only directly after this text, which ends each of their steps; empty: anywhere"
    )
