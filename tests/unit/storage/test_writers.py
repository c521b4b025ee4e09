"""Whatever the package writes goes through ``heliostat.storage``: other calls that change the disk are listed here."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import heliostat

SOURCES = Path(heliostat.__file__).parent
WRITING_MODES = set("wax+")
ANYWHERE = {
    *("write_text", "write_bytes", "unlink", "rmdir", "rename", "renames", "symlink_to", "hardlink_to", "touch"),
    *("rmtree", "copytree", "copyfile", "copy2", "move", "mkdtemp", "mkstemp", "save_pretrained", "save_file"),
    *("savefig", "write_table", "to_parquet", "to_csv", "tofile", "savez", "pipe_file", "truncate", "ftruncate"),
    *("NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory", "SummaryWriter", "FileSystemWriter", "copytree"),
}
OF_MODULES = {"torch.save", "np.save", "numpy.save", "pickle.dump", "json.dump", "os.open", "os.remove", "os.replace"}
SAVES = {"model.save", "env.save", "policy.save", "image.save", "figure.save"}

LISTED = {
    # into a draft that storage puts in its place
    ("models/lora.py", "save_pretrained"): "into the folder of `replacing`",
    ("models/lora.py", "save_file"): "into the folder of `replacing`",
    ("models/saving.py", "save_pretrained"): "into the folder of `publishing`",
    ("models/loading/smollm2.py", "save_pretrained"): "into a FolderDraft",
    ("train/run_folder/export.py", "write_text"): "the model card, into the folder of `publishing`",
    ("train/run_folder/checkpoint_files.py", "save_file"): "into a FolderDraft",
    ("train/run_folder/checkpoint_files.py", "torch.save"): "into a FolderDraft",
    ("train/run_folder/checkpoint_files.py", "write_text"): "into a FolderDraft",
    ("train/distributed/sharded_checkpoint.py", "torch.save"): "into a checkpoint's FolderDraft",
    ("train/distributed/sharded_checkpoint.py", "FileSystemWriter"): "into a checkpoint's FolderDraft, synced by torch",
    # into memory, and then storage
    ("traces/parquet.py", "write_table"): "into a buffer",
    ("theory/plots.py", "savefig"): "into a buffer",
    ("control/training_run.py", "model.save"): "into a buffer",
    ("optim/conformance.py", "torch.save"): "into a buffer, and nowhere",
    # nothing that is kept
    ("tracker_conformance.py", "TemporaryDirectory"): "a stand-in for a run folder, gone after each check",
    ("tracker_conformance.py", "write_text"): "into it",
    ("traces/parquet.py", "pipe_file"): "an object store, whose single write is whole or absent",
    ("train/run_folder/export.py", "mkdtemp"): "a trial of the export; the next session removes what a kill left",
    ("train/run_folder/export.py", "rmtree"): "the same",
    ("rollout/server/adapter_sync.py", "rmtree"): "adapters that the server has read, or refused",
    ("tasks/verifier_pool/worker_handle.py", "TemporaryFile"): "a pipe's stand-in without a name",
    ("tasks/verifier_pool/worker_handle.py", "ftruncate"): "the same",
    ("tasks/sandbox/interpreter.py", "open"): "a pipe",
    ("tasks/environments/worker.py", "open"): "/dev/null",
    ("tasks/environments/shipped/database.py", "TemporaryDirectory"): "one episode's database, gone with it",
    ("tasks/verifier_pool/worker.py", "open"): "/dev/null",
    ("tasks/reasoning_gym_datasets.py", "open"): "/dev/null",
    ("cli/entry.py", "os.open"): "/dev/null",
    ("train/accounting/machine_peak.py", "write_text"): "a switch in /proc",
    # files of others, or files that nobody needs
    ("models/saving.py", "copy2"): "the same, where the file system has no second names",
    ("models/saving.py", "copytree"): "foreign files are kept beside, before their folder is replaced",
    ("adapters/guard_callback.py", "rename"): "an earlier training's log gets a free name, in one step",
    ("outputs.py", "unlink"): "a folder whose run never began",
    ("outputs.py", "rmdir"): "a folder whose run never began",
    ("train/run_folder/preparation.py", "unlink"): "what killed processes left of writing",
    ("train/run_folder/folder.py", "unlink"): "halves that killed processes left, and logs that begin anew",
    ("train/run_folder/lock.py", "open"): "run.lock, which holds nothing but a process number",
    ("train/run_folder/lock.py", "truncate"): "the same",
    ("train/run_folder/folder.py", "truncate"): "the same, when it is released",
    ("train/teachers/log_prob_cache.py", "replace"): "a cache's older half; what is gone is asked for again",
    # their own transactions
    ("trackers.py", "SummaryWriter"): "TensorBoard's events, of which metrics.jsonl has every number",
}
"""Where, what, and why it may: anything else is a defect."""


def calls():
    """Every call of the package outside of storage that changes the disk: (file, name)."""
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        if name.startswith("storage/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (what := changes_disk(node)):
                yield name, what


def changes_disk(call):
    """What a call does to the disk, by its name; nothing for one that only reads."""
    spoken = ast.unparse(call.func)
    last = spoken.rpartition(".")[2]
    if spoken in OF_MODULES or spoken in SAVES:
        return spoken
    if last in ANYWHERE:
        return last
    if (
        last == "replace"
        and len(call.args) == 1
        and not call.keywords
        and spoken not in ("dataclasses.replace", "replace")
    ):
        return last  # of a path; strings take two
    if last == "open":
        modes = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        written = [one.value for one in modes if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return last if any(set(mode) & WRITING_MODES and len(mode) <= 3 for mode in written) else ""
    return ""


@pytest.mark.slow
def test_nothing_is_written_but_by_storage():
    found = Counter(calls())
    assert sorted(set(found) - set(LISTED)) == []
    assert sorted(set(LISTED) - set(found)) == [], "listed, but gone"


def test_the_search_sees_what_it_should():
    seen = [
        *(
            "path.write_text('x')",
            "open(p, 'w')",
            "p.open('ab')",
            "a.replace(b)",
            "os.replace(a, b)",
            "shutil.move(a, b)",
        ),
        *("torch.save(x, p)", "model.save_pretrained(p)", "p.open(mode='r+')", "tempfile.mkdtemp()"),
    ]
    unseen = ["p.open()", "open(p, 'rb')", "text.replace('a', 'b')", "dataclasses.replace(x, y=1)", "p.read_text()"]
    for text, expected in [*((one, True) for one in seen), *((one, False) for one in unseen)]:
        assert bool(changes_disk(ast.parse(text, mode="eval").body)) is expected, text
