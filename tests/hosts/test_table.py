"""The page of hosts says what the tests beside this file show."""

from __future__ import annotations

from hosts.write_table import PAGE, write_page


def test_the_page_is_what_the_table_says() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == write_page(), "renew docs/hosts.md: PYTHONPATH=tests python -m hosts.write_table"
