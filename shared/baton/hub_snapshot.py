"""Some files of a Hugging Face repository, from the cache or the hub. No torch."""

from __future__ import annotations

from pathlib import Path

from baton.errors import ModelLoadError
from baton.progress import LongBar


def fetch_snapshot(repository: str, revision: str | None, patterns: tuple[str, ...], *, field: str) -> Path:
    """Fetch the files of a revision that match; return the folder of its snapshot.

    A pattern without a folder matches at the top level only.

    Args:
        field: the setting that named the repository, for errors.

    Raises:
        ModelLoadError: no such repository or revision, no access, or no network, and nothing in the cache.
    """
    from huggingface_hub import errors, snapshot_download

    name = f"{field}={repository!r}"
    # `original/` and the like hold copies in other formats
    ignored = [f"*/{pattern}" for pattern in patterns if "/" not in pattern]
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=ignored,
                tqdm_class=LongBar,
            )
        )
    except errors.GatedRepoError:
        reason = f"{name} is gated. Accept its licence on huggingface.co and set HF_TOKEN."
    except errors.RepositoryNotFoundError:
        spelling = "Check the spelling; for a private one set HF_TOKEN."
        reason = f"{name} is neither a folder here nor a model on the hub. {spelling}"
    except errors.RevisionNotFoundError:
        reason = f"{name} has no revision={revision!r}. Give a branch, tag or commit that it has."
    except errors.LocalEntryNotFoundError:
        reason = (
            f"{name} is neither a folder here nor in the cache, and the hub cannot be reached (offline?). "
            "Fetch it where there is a network with `hf download`, or give a folder."
        )
    except errors.HFValidationError as error:
        reason = f"{name} is neither a folder here nor a valid model id: {error}"
    except Exception as error:  # the hub client's errors have no common class
        reason = f"{name} could not be fetched from the hub: {type(error).__name__}: {error}"
    raise ModelLoadError(reason)
