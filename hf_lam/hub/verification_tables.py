"""The result of `verify`, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..result_tables import Column, ResultTable, printable

if TYPE_CHECKING:
    from .verification import Verification


def verification_text(found: Verification) -> str:
    """The same as lines, in which no message is broken: findings by their kinds."""
    table = verification_table(found)
    lines = [table.title]
    for kind in dict.fromkeys(finding.kind for finding in found.findings):
        lines.append(f"{kind}:")
        of_kind = [finding for finding in found.findings if finding.kind == kind]
        lines += [f"  {': '.join(filter(None, (finding.file, finding.message)))}" for finding in of_kind]
    return "\n".join(map(printable, [*lines, *table.notes]))


def verification_table(found: Verification) -> ResultTable:
    """The verdict, what is wrong, and what loading would touch."""
    count = len(found.findings)
    verdict = "passed" if found.passed else f"NOT PASSED: {count} finding{'s' if count > 1 else ''}"
    version = f"hf_lam {found.version}" if found.version is not None else "of no released hf_lam"
    notes = [f"code: {version}, {len(found.code)} files"]
    for title, touched in (
        ("imports besides its own files", found.imports),
        ("would reach", found.hosts),
        ("would read", found.reads),
        ("would write", found.writes),
    ):
        notes.append(f"{title}: {', '.join(touched) or 'nothing'}")
    if found.revision is not None:
        notes.append(f"commit: {found.revision}")
    if found.passed and found.revision is not None:
        pin = f'revision="{found.revision}", code_revision="{found.revision}"'
        notes.append(f'load it:  AutoModel.from_pretrained("{found.source}", trust_remote_code=True, {pin})')
    columns = [Column(heading, is_number=False) for heading in ("kind", "file", "finding")] if count else []
    kinds = list(dict.fromkeys(finding.kind for finding in found.findings))
    rows = [(x.kind, x.file, x.message) for kind in kinds for x in found.findings if x.kind == kind]
    return ResultTable(f"{found.source}: {verdict}", columns, rows, notes=notes)
