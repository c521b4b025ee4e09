"""Publish a finished run's model or adapter on the Hugging Face hub: the saved files and their card, and nothing else.

    prepare   check that the folder is intact and loads, and list the files
    send      create the repository if needed, and upload the files in one commit

Checkpoints, optimizer states, logs, transcripts and data are never sent: only files that a saved model consists of are
listed.

Left out: asking for permission (``cli.push``), and the content of the card (``train.model_card``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from heliostat.config import ConfigError, ModelSection
from heliostat.models.loading.load import load_model
from heliostat.models.saving import CARD, CARD_HERE, is_model_file
from heliostat.run_models import run_folder_of
from heliostat.storage import changed_files


class PublishError(RuntimeError):
    """The hub refused the upload or was not reached; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A checked folder on its way to a repository.

    Attributes:
        repo_id: ``owner/name``.
        files: paths of the files to send, sorted by name.
        card: the card as it will be published; empty if the folder has none.
    """

    folder: Path
    repo_id: str
    files: tuple[Path, ...]
    card: str

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum(path.stat().st_size for path in self.files)


def prepare(run: Path, repo_id: str, adapter: bool = False) -> Upload:
    """Check a run's model or adapter, and list what would be uploaded; nothing is sent.

    Raises:
        ConfigError: the id is no ``owner/name``, there is no saved model here, it has changed, or it does not load.
    """
    _check_id(repo_id)
    found = run_folder_of(run)
    if found is None:
        raise ConfigError(f"'{run}' is not a run folder; push takes the folder of a finished run")
    folder = found / ("adapter" if adapter else "model")
    if not folder.is_dir():
        what = "adapter: only runs with lora.rank above 0 save one" if adapter else "model: a run saves it at its end"
        raise ConfigError(f"run folder '{run}' has no {what}")
    mine = str(folder / "")
    changed = [one for one in changed_files(found) if one.startswith((mine, f"{folder}/")) and f"/{CARD} " not in one]
    if changed:
        raise ConfigError(f"nothing is uploaded: {changed[0]}")
    files = sorted(path for path in folder.iterdir() if path.name == CARD or is_model_file(path))
    files = [path for path in files if path.is_file() and not path.is_symlink()]
    if adapter:
        _check_adapter(folder)
    else:
        load_model(ModelSection(path=str(folder)), seed=0)
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    return Upload(folder, repo_id, tuple(files), card.replace(CARD_HERE, f'name = "{repo_id}"'))


def send(upload: Upload, private: bool = False, revision: str | None = None) -> str:
    """Create the repository if it is missing, and upload the files in one commit; returns the commit's address.

    Args:
        private: whether a new repository is private; an existing one stays as it is.
        revision: branch to commit to, created if it is missing; ``None``: the main branch.

    Raises:
        PublishError: there is no token, or the hub refused or was not reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, errors, get_token

    if get_token() is None:
        raise PublishError("there is no token of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    contents = {path.name: path.read_bytes() if path.name == CARD else path for path in upload.files}
    if upload.card:
        contents[CARD] = upload.card.encode()
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    try:
        api.create_repo(upload.repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(upload.repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            upload.repo_id, operations, commit_message="Upload a model trained with Heliostat", revision=revision
        )
    except (errors.HfHubHTTPError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise PublishError(_reason(upload.repo_id, error)) from error
    return str(commit.commit_url)


def _reason(repo_id: str, error: Exception) -> str:
    """Describe a failed upload in a sentence, with the way out that its status suggests."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"the hub does not accept the token (401): run `hf auth login` again to upload to {repo_id}"
    if status == 403:
        return f"the token may not write to {repo_id} (403): use a token with write access to its owner"
    line = str(error).strip().split("\n")[0].rstrip(".")
    return f"the upload to {repo_id} failed: {line or type(error).__name__}"


def _check_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"'{repo_id}' cannot be a repository: {str(error).rstrip('.')}") from None
    if "/" not in repo_id:
        raise ConfigError(f"'{repo_id}' has no owner; give owner/name")


def _check_adapter(folder: Path) -> None:
    """Read an adapter's configuration and the names of its tensors; its base may not be at hand."""
    from peft import PeftConfig
    from safetensors import SafetensorError, safe_open

    try:
        PeftConfig.from_pretrained(str(folder))
        with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as tensors:
            names = list(tensors.keys())
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"nothing is uploaded: the adapter in {folder} cannot be read: {error}") from error
    if not names:
        raise ConfigError(f"nothing is uploaded: the adapter in {folder} is empty")
