"""A language model that judges, behind an endpoint of OpenAI's form.

    question  --cache, else POST /v1/chat/completions, temperature 0-->  reply  -->  score

Questions are asked while other groups are still sampled, a bounded number at a time. A request that times out, is
refused or answered in another form leaves its completion unscored.

Left out: the words of a question (``questions``), the form of requests and answers (``chat_completions``), HTTP and
retries (``rollout.server.client``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from heliostat.rollout import ServerError
from heliostat.rollout.completions import SamplingStopped
from heliostat.rollout.server.client import Server
from heliostat.tasks.judging import JudgeCounts, JudgeFailed, Mark
from heliostat.train.judges.chat_completions import ChatCompletions, read_reply
from heliostat.train.judges.questions import Ask, Messages
from heliostat.train.judges.reply_cache import Reply, ReplyCache, digest
from heliostat.types import Problem


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices per million tokens, and the sum that must not be exceeded; 0: no limit."""

    prompt: float = 0.0
    reply: float = 0.0
    budget: float = 0.0

    def cost(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Return the cost of tokens."""
        return (self.prompt * prompt_tokens + self.reply * reply_tokens) / 1e6


class Question(Protocol):
    """The questions about the completions of one problem (``ScoreQuestion``, ``PairQuestion``)."""

    def begin(self, ask: Ask, problem: Problem, texts: Sequence[str]) -> Any:
        """Ask, and return a ticket."""

    def replies(self, ticket: Any) -> Sequence[Future[Reply]]:
        """Return the replies that a ticket's marks need."""

    def marks(self, ticket: Any) -> tuple[Mark, ...]:
        """Wait for the replies to a ticket's questions, and return the texts' marks."""


@dataclass(slots=True)
class LanguageModelJudge:
    """A judge that asks a language model about completions, each alone or in pairs.

    Attributes:
        num_requests: requests at a time.
        max_tokens: tokens of a reply.
        prices: with this rank's share of the budget.
        num_ranks: ranks that share the cost.

    **Limits** A question that the cache knows is not asked. Equal completions of one problem are one question.
    """

    server: Server
    model: str
    question: Question
    cache: ReplyCache
    num_requests: int = 8
    max_tokens: int = 512
    prices: Prices = field(default_factory=Prices)
    num_ranks: int = 1
    _chat: ChatCompletions = field(init=False)
    _threads: ThreadPoolExecutor = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pending: dict[str, Future[Reply]] = field(default_factory=dict)
    _counts: JudgeCounts = field(default_factory=JudgeCounts)
    _tokens: tuple[int, int] = (0, 0)
    _reads_others: bool = True

    def __post_init__(self) -> None:
        self._chat = ChatCompletions(self.server, self.model, self.max_tokens)
        self._threads = ThreadPoolExecutor(self.num_requests, thread_name_prefix="judge")
        prompt_tokens, reply_tokens = self.cache.tokens()  # of all ranks: each takes its share of what was spent
        self._tokens = prompt_tokens // self.num_ranks, reply_tokens // self.num_ranks

    @property
    def name(self) -> str:
        return f"judge '{self.model}' at {self.server.url}"

    @property
    def fingerprint(self) -> str:
        """The digest of the model's name, the rubric and the form of a reply; the address is left out."""
        return digest([self.model, repr(self.question), self.max_tokens])

    def begin(self, problem: Problem, texts: Sequence[str]) -> Any:
        """Ask about the completions of a problem; what another rank asked in an earlier step is not asked again."""
        if self.num_ranks > 1 and self._reads_others:
            self._reads_others = False
            self.cache.read()
        return self.question.begin(self.ask, problem, texts)

    def wait(self, ticket: Any, timeout_s: float) -> bool:
        """Wait for a ticket's replies; those that come later are kept for the next time that they are needed."""
        return not wait(self.question.replies(ticket), timeout_s).not_done

    def finish(self, tickets: Sequence[Any]) -> list[tuple[Mark, ...]]:
        """Wait for all replies."""
        marks = [self.question.marks(ticket) for ticket in tickets]
        self.count_texts([mark for group in marks for mark in group])
        return marks

    def take_counts(self) -> JudgeCounts:
        """Return the work since the last call; the cost is that of the whole run so far, in this process."""
        self._reads_others = True  # all ranks have written the step's replies before one goes on
        with self._lock:
            counts, self._counts = self._counts, JudgeCounts()
            return replace(counts, cost=self.prices.cost(*self._tokens))

    def close(self) -> None:
        """Cancel all requests."""
        self.server.abort()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def ask(self, messages: Messages, read: Callable[[str], float]) -> Future[Reply]:
        """Ask a question, unless the same one is known or on its way.

        Args:
            read: reads the score from a reply, or raises ``Unreadable``.
        """
        question = digest([self.model, messages, self.max_tokens])
        with self._lock:
            known = self.cache.get(question)
            if known is not None or question in self._pending:
                self._counts = replace(self._counts, cached=self._counts.cached + 1)
            if known is not None:
                done: Future[Reply] = Future()
                done.set_result(known)
                return done
            if question not in self._pending:
                self._pending[question] = self._threads.submit(self._reply, question, messages, read)
            return self._pending[question]

    def count_texts(self, marks: Sequence[Mark]) -> None:
        """Count judged texts."""
        unscored = sum(mark.score is None for mark in marks)
        with self._lock:
            before = self._counts
            self._counts = replace(before, texts=before.texts + len(marks), unscored=before.unscored + unscored)

    def _reply(self, question: str, messages: Messages, read: Callable[[str], float]) -> Reply:
        try:
            self._refuse_overspending()
            try:
                reply = self._counted(read_reply(self._chat.post(messages), read))
            except ServerError as error:
                reply = None
                failure = Reply(None, str(error), 0, 0)
            if reply is not None:
                self.cache.add(question, reply)
            found = reply or failure
            self._count(found)
            return found
        except SamplingStopped:
            return Reply(None, f"{self.name} was closed", 0, 0)
        finally:
            with self._lock:
                self._pending.pop(question, None)

    def _count(self, reply: Reply) -> None:
        with self._lock:
            before, tokens = self._counts, reply.prompt_tokens + reply.reply_tokens
            self._tokens = self._tokens[0] + reply.prompt_tokens, self._tokens[1] + reply.reply_tokens
            self._counts = replace(
                before,
                calls=before.calls + 1,
                failed=before.failed + (reply.score is None),
                tokens=before.tokens + tokens,
            )

    def _counted(self, reply: Reply) -> Reply:
        """Refuse a reply whose tokens are not known where a budget has to count them."""
        if self.prices.budget and not reply.prompt_tokens + reply.reply_tokens:
            raise JudgeFailed(
                f"{self.name} does not say how many tokens its answers took ('usage'), so judge.budget cannot be kept; "
                "set judge.budget = 0, or use a server that says so"
            )
        return reply

    def _refuse_overspending(self) -> None:
        with self._lock:
            spent = self.prices.cost(*self._tokens)
        if self.prices.budget and spent >= self.prices.budget:
            raise JudgeFailed(
                f"{self.name} has cost {spent:.4g} in this run, and its share of judge.budget is "
                f"{self.prices.budget:.4g}; raise judge.budget and continue the run"
            )
