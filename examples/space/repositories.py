"""A check of a folder or a repository before anything of it is loaded."""

from __future__ import annotations

from hf_lam import verify
from hf_lam.loading import loading


def check_repository(source: str) -> str:
    """What `hf_lam.verify` finds, as HTML; none of the code in it runs.

    Raises:
        LoadingError: if the repository or the Hub cannot be read.
        ValueError: if it is neither a folder nor the id of a repository.
    """
    with loading(source):
        found = verify(source)
    return "".join(table.to_html() for table in found.tables())
