"""Export to Parquet: a folder or object store, partitioned by run and step, with atomic files.

    <target>/run=<run>/step=<step>/traces-<first>-<last>.parquet

File names depend on their rows, so a second export of the same bank writes the same files. DuckDB, pyarrow and
Hugging Face data sets read the folder; every file holds all columns of ``columns``, run and step included.

Left out: reading (``files``), and formats for anything but exchange.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from heliostat.arguments import PathArg, as_text
from heliostat.storage import publish_file
from heliostat.traces.bank import Bank
from heliostat.traces.checking import whole_traces
from heliostat.traces.columns import to_columns
from heliostat.traces.record import Trace
from heliostat.traces.row_issues import RowIssues

ROWS_PER_FILE = 50_000


def export_bank(bank: Bank, target: PathArg, issues: RowIssues, rows_per_file: int = ROWS_PER_FILE) -> list[str]:
    """Write every readable trace; damaged rows are omitted and reported in ``issues``.

    Args:
        target: a folder, or an fsspec address like ``s3://bucket/traces``.
        rows_per_file: at most this many traces are in memory at once.

    Returns:
        The files, in the order of writing.
    """
    import fsspec

    system, root = fsspec.core.url_to_fs(as_text(target))
    numbered = enumerate(whole_traces(bank, issues), start=1)
    written = []
    for (run, step), part in groupby(numbered, key=lambda item: (item[1].source.run, item[1].source.step)):
        folder = f"{root}/run={quote(run or '-', safe='')}/step={step}"
        for first, last, traces in _chunks(part, rows_per_file):
            name = f"{folder}/traces-{first:09d}-{last:09d}.parquet"
            _publish(system, name, _file(traces))
            written.append(name)
    return written


def _chunks(numbered: Iterable[tuple[int, Trace]], size: int) -> Iterator[tuple[int, int, list[Trace]]]:
    """Yield chunks of at most ``size`` traces, with the numbers of the first and the last."""
    held: list[tuple[int, Trace]] = []
    for item in numbered:
        held.append(item)
        if len(held) == size:
            yield held[0][0], held[-1][0], [trace for _, trace in held]
            held = []
    if held:
        yield held[0][0], held[-1][0], [trace for _, trace in held]


def _parquet_schema() -> Any:
    import pyarrow as pa

    ids, text, whole = pa.list_(pa.uint32()), pa.string(), pa.int64()
    flag, number = pa.bool_(), pa.float64()
    turn = pa.struct(
        [
            *(("start", whole), ("end", whole), ("reward", number), ("success", flag)),
            *(("num_calls", whole), ("num_errors", whole), ("is_invalid", flag)),
        ]
    )
    kinds = {
        "turns": pa.list_(turn),
        **dict.fromkeys(("prompt_ids", "prefix_ids", "completion_ids"), ids),
        **dict.fromkeys(("logp_gen",), pa.list_(pa.float32())),
        **dict.fromkeys(("reward", "flops", "temperature"), number),
        **dict.fromkeys(("success", "reencoded"), flag),
        **dict.fromkeys(("seed", "policy_step", "max_new_tokens"), whole),
    }
    names = (
        *("problem_id", "task", "prompt_ids", "prefix_ids", "cut", "completion_ids", "logp_gen", "text", "reward"),
        *(
            "success",
            "stop_reason",
            "seed",
            "flops",
            "turns",
            "environment",
            "tokenizer",
            "policy",
            "policy_run",
            "policy_step",
        ),
        *("temperature", "max_new_tokens", "verifier", "reencoded"),
    )
    return pa.schema([(name, kinds.get(name, text)) for name in names])


def _file(traces: list[Trace]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pa.Table.from_pylist([to_columns(trace) for trace in traces], schema=_parquet_schema())
    pyarrow.parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def _publish(system: Any, name: str, content: bytes) -> None:
    """Publish a file: rename it into place locally; an object store's single write is atomic by itself."""
    from fsspec.implementations.local import LocalFileSystem

    if not isinstance(system, LocalFileSystem):
        system.pipe_file(name, content)
        return
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_file(path, content)
