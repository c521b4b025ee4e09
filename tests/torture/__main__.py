"""Break runs on purpose and count what survives: ``python -m tests.torture [--seed 0] [--kills 40] [--flips 200]``.

Every row prints "N of N". A run counts as survived if the same call continues it, and it ends with the same model,
checkpoints, metrics, evaluations and transcripts as an undisturbed run, bit for bit. A flip counts as found if it is
said. Half an hour on two cores; ``--short`` takes a minute.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support import replaces, sharded
from tests.support.kills import count_events
from tests.torture import flips, hostile
from tests.torture.courses import Course, ShardedCourse, kills

Row = tuple[str, int, int]


def runs(folder: Path, num_kills: int, num_flips: int, randomness: random.Random) -> Iterator[Row]:
    """Kills of whole runs, and flips in what they leave."""
    courses = {
        "kills of a run, continued to the same bits": Course(folder / "plain"),
        "kills of a run that keeps one checkpoint": Course(folder / "one", train__keep_checkpoints=1),
        "kills of a run that rolls back": Course(folder / "back", rolled_back=True),
        "kills of a run with a reference policy": Course(
            folder / "reference", objective__name="grpo", objective__kl_ref=0.1
        ),
    }
    for name, course in courses.items():
        yield name, *kills(course, num_kills, randomness)
    plain, back, _, reference = (
        courses[name].whole for name in (*list(courses)[:1], list(courses)[2], *list(courses)[2:])
    )
    for breaking in (flips.checkpoint_flips, flips.ended_flips):
        for name, counts in breaking(plain, num_flips, randomness).items():
            yield name, *counts
    for name, counts in flips.log_flips(back, num_flips, randomness).items():
        yield name, *counts
    yield "flips of reference/model.safetensors, found", *flips.reference_flips(reference, num_flips, randomness)


def sharded_runs(folder: Path, num_kills: int, num_flips: int, randomness: random.Random) -> Iterator[Row]:
    """The same of two ranks with sharded weights."""
    course = ShardedCourse(folder / "run")
    yield "kills of a rank of a sharded run", *kills(course, max(1, num_kills // 4), randomness)
    for name, counts in flips.checkpoint_flips(course.whole, num_flips, randomness).items():
        if "/shards/" in name:
            yield name, *counts
    for steps, name in (((2, 4), "a sharded checkpoint"), ((2, 2), "one that is written again")):
        root = folder / name
        events = [(rank, at) for rank, num in enumerate(sharded.num_events(root, steps)) for at in range(1, num + 1)]
        drawn = events if num_kills >= 40 else randomness.sample(events, min(len(events), num_kills))
        yield (
            f"kills of a rank that saves {name}",
            sum(sharded.survives(root, steps[1], *one) for one in drawn),
            len(drawn),
        )


def replaced(folder: Path, num_kills: int, randomness: random.Random) -> Iterator[Row]:
    """Everything else that replaces something, at every event."""
    for name, one in replaces.REPLACES.items():
        root = folder / name
        (root / "count").mkdir(parents=True)
        one.before(root / "count")
        num = count_events(lambda one=one, root=root: one.work(root / "count"))
        events = range(1, num + 1) if num_kills >= 40 else randomness.sample(range(1, num + 1), min(num, num_kills))
        yield (
            f"kills of {name}",
            sum(one.survives(root / "all", event) for event in events),
            len(events),
        )
    yield "a bank's write-ahead log, torn anywhere", *replaces.torn_bank(folder, 10 * num_kills)


def files(folder: Path, num_flips: int, randomness: random.Random) -> Iterator[Row]:
    """Files of their own."""
    yield "flips of prefixes.json, found", *flips.donor_flips(folder, num_flips, randomness)
    yield "flips of a trace bank that change no trace unseen", *flips.bank_flips(folder, num_flips, randomness)
    yield "logs torn at every byte, read and appended to", *flips.torn_logs(folder)


def others(folder: Path, num_flips: int, randomness: random.Random) -> Iterator[Row]:
    """What comes from outside."""
    yield "spoiled files of problems, read or refused in a sentence", *hostile.rows(folder, num_flips, randomness)
    yield "hostile texts on a terminal and a page", *hostile.texts(num_flips, randomness)
    yield "hostile verifiers, after which the next is judged right", *hostile.verifiers()
    yield "hostile answers of a server, refused in a sentence", *hostile.servers()
    yield "matrices of any scale and grading, right or refused", *hostile.matrices(num_flips, randomness)


SECTIONS = {
    "runs": runs,
    "replaced": lambda folder, num_kills, num_flips, chance: replaced(folder, num_kills, chance),
    "files": lambda folder, num_kills, num_flips, chance: files(folder, num_flips, chance),
    "hostile": lambda folder, num_kills, num_flips, chance: others(folder, num_flips, chance),
    "sharded": sharded_runs,
}


def table(folder: Path, seed: int, num_kills: int, num_flips: int, only: Sequence[str] = ()) -> Iterator[Row]:
    """Every row: what was done, how often it was survived, of how many times."""
    for number, (name, rows) in enumerate(SECTIONS.items()):
        if not only or name in only:
            (folder / name).mkdir()
            yield from rows(folder / name, num_kills, num_flips, random.Random(seed + 1000 * number))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kills", type=int, default=40, help="of each kind of run; from 40 on, of others at every event"
    )
    parser.add_argument("--flips", type=int, default=200, help="of each file")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=(), help="some of the table's sections")
    parser.add_argument("--short", action="store_true", help="2 kills and 10 flips of each")
    args = parser.parse_args()
    if args.short:
        args.kills, args.flips = 2, 10
    print(f"seed {args.seed}", flush=True)
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, num, total in table(Path(folder), args.seed, args.kills, args.flips, args.only):
            print(f"{name:70s} {num} of {total}", flush=True)
            lost += total - num
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
