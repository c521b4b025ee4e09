"""Episodes as a judge reads them: the question that the policy was shown, and a transcript as the answer.

    prompt with its first observation | replayed turns | sampled turns  -->  problem, transcripts

A transcript has every turn as the environment read it, and every answer as the policy read it. The answer to the last
turn is not in it, because no policy reads that one.

Left out: what a judge makes of a transcript (``questions``, ``reward_model``), and the rewards (``tasks.judging``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from heliostat.models import LoadedModel, decode_to_stop, observation_text
from heliostat.tasks import Judging
from heliostat.tasks.transcripts import ASSISTANT, ENVIRONMENT, Transcript, turns_and_answers
from heliostat.train.model_bundle import ModelBundle
from heliostat.types import Completion, Group, Problem, Prompt


@dataclass(frozen=True, slots=True)
class EpisodeReader:
    """Reads groups of episodes for a judge (``Judging.read``).

    Attributes:
        loaded: the model whose tokens they are.
        stop: strings that end a turn, which is read up to them.
    """

    loaded: LoadedModel
    stop: tuple[str, ...] = ()

    def __call__(self, group: Group) -> tuple[Problem, list[Transcript]]:
        """Return the problem as it was shown, with the first observation in its prompt, and the transcripts."""
        problem, shown = group.prompt.problem, group.prompt.shown
        if shown is not None:
            problem = replace(problem, prompt=shown, markup=())
        return problem, [self.transcript(group.prompt, completion) for completion in group.completions]

    def transcript(self, prompt: Prompt, completion: Completion) -> Transcript:
        """Write an episode down, from the turns that its prompt replays on."""
        return Transcript(tuple(self._parts(prompt, completion)))

    def _parts(self, prompt: Prompt, completion: Completion) -> Iterator[tuple[str, str]]:
        for ids, turns in ((prompt.prefix_ids, prompt.prefix_turns), (completion.token_ids, completion.turns)):
            for turn, part in turns_and_answers(ids, turns):
                if turn is not None:
                    yield ASSISTANT, decode_to_stop(self.loaded, part, self.stop)
                else:
                    yield ENVIRONMENT, observation_text(self.loaded, part).strip("\n")


def about_episodes(judging: Judging | None, bundle: ModelBundle) -> Judging | None:
    """Return the judging of a model's episodes, which are read whole; without an environment, unchanged."""
    if judging is None or not bundle.recipe.environment.enabled:
        return judging
    return replace(judging, read=EpisodeReader(bundle.loaded, tuple(bundle.recipe.rollout.stop)))
