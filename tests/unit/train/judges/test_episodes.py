"""Episodes as a judge reads them: the whole conversation, each part on its side, after what was shown."""

from dataclasses import replace

import numpy as np
import pytest

from heliostat.models import TurnFormat, decode, observation_text
from heliostat.models.loaded_model import assemble, turn_ends
from heliostat.tasks.transcripts import ASSISTANT, ENVIRONMENT
from heliostat.train.judges.episodes import EpisodeReader
from heliostat.types import Completion, Problem, Prompt, StopReason, Turn
from tests.support.checkpoints import chat_tokenizer
from tests.support.trajectories import trajectories
from tests.unit.models.prompts.test_turn_format import CHATML, CONTROLS, LLAMA3, sampled


@pytest.mark.slow
def test_an_episode_is_read_whole_with_its_replayed_turns(nano):
    read = EpisodeReader(nano)
    (group,) = trajectories(nano, num_prompts=1)
    _, whole = read(group)
    assert max(len(told.parts) for told in whole) > 2
    for one, told in zip(group.completions, whole, strict=True):
        sides = [side for side, _ in told.parts]
        assert sides == [ASSISTANT, ENVIRONMENT] * (len(one.turns) - 1) + [ASSISTANT]
        spans = [one.token_ids[turn.start : turn.end] for turn in one.turns]
        assert [text for side, text in told.parts if side == ASSISTANT] == [decode(nano, ids) for ids in spans]
        replies = [one.token_ids[turn.end : after.start] for turn, after in zip(one.turns, one.turns[1:], strict=False)]
        heard = [text for side, text in told.parts if side == ENVIRONMENT]
        assert heard == [observation_text(nano, ids).strip("\n") for ids in replies]
    one = max(group.completions, key=lambda completion: len(completion.turns))
    start, size = one.turns[1].start, one.turns[0].num_tokens
    moved = tuple(replace(turn, start=turn.start - start, end=turn.end - start) for turn in one.turns[1:])
    cut = replace(
        one, token_ids=one.token_ids[start:], turns=moved, logp_gen=one.logp_gen[size:], entropy=one.entropy[size:]
    )
    given = replace(group.prompt, prefix_ids=one.token_ids[:start], prefix_turns=one.turns[:1])
    assert read.transcript(given, cut) == read.transcript(group.prompt, one)


@pytest.mark.parametrize("template", [CHATML, LLAMA3])
@pytest.mark.filterwarnings("ignore:.*in data it stays text")
def test_no_header_of_a_chat_template_and_all_that_was_said_is_in_a_transcript(nano, template):
    loaded = assemble(nano.model, chat_tokenizer(), "m")
    loaded.tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROLS)})
    loaded.tokenizer.chat_template = template
    turn_end_id, eos_ids = turn_ends(nano.model, loaded.tokenizer, loaded.eos_id)
    loaded = replace(loaded, turn_end_id=turn_end_id, eos_ids=eos_ids, context_length=4096)
    said, heard = ("get 37", "I say\nenvironment: 9", "say 52"), ("52 <|im_end|>", "no\nassistant: 1")
    ids, turns = [], []
    form = TurnFormat.of(loaded, Problem("1", "t", "Where?"))
    for text, answer in zip(said, (*heard, None), strict=True):
        turn = sampled(loaded, text)
        turns.append(Turn(len(ids), len(ids) + len(turn)))
        ids += [*turn, *(form.continuation(answer, turn) if answer else ())]
    nothing = np.zeros(sum(turn.num_tokens for turn in turns), np.float32)
    episode = Completion(tuple(ids), nothing, nothing, StopReason.ENVIRONMENT_DONE, "", turns=tuple(turns))
    told = EpisodeReader(loaded).transcript(Prompt(Problem("1", "t", "Where?"), (1,)), episode)
    assert [text for side, text in told.parts if side == ASSISTANT] == list(said)
    assert [text for side, text in told.parts if side == ENVIRONMENT] == list(heard)


@pytest.mark.slow
def test_a_turn_is_read_up_to_the_string_that_ended_it(nano):
    (group,) = trajectories(nano, num_prompts=1)
    (_, text), *_ = EpisodeReader(nano)(group)[1][0].parts
    assert len(text) > 1
    (_, before), *_ = EpisodeReader(nano, (text[1:],))(group)[1][0].parts
    assert before == text[: text.index(text[1:])]


@pytest.mark.slow
def test_the_question_is_what_was_shown(nano):
    (group,) = trajectories(nano, num_prompts=1)
    problem = group.prompt.problem
    assert EpisodeReader(nano)(group)[0] is problem
    shown = replace(group, prompt=replace(group.prompt, shown="1 + 2 =\nyou are in a room"))
    asked, _ = EpisodeReader(nano)(shown)
    assert asked.question == "1 + 2 =\nyou are in a room"
    assert (asked.problem_id, asked.columns, asked.answer) == (problem.problem_id, problem.columns, problem.answer)
