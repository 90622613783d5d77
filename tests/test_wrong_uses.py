"""At least sixty wrong uses: each is refused with an error of ours, as docs/errors.md has it."""

from __future__ import annotations

import pytest

from tests.wrong_uses import GROUPS
from tests.wrong_uses.table import PAGE, render, try_all


@pytest.fixture(scope="module")
def page(tmp_path_factory, all_images):
    folder = tmp_path_factory.mktemp("wrong").resolve()
    found = try_all(folder)
    return found, render(found, folder)


@pytest.mark.slow
def test_every_wrong_use_is_refused_in_few_words(page):
    found, _ = page
    assert len(found) == sum(map(len, GROUPS.values())) >= 60
    for words, error in found.items():
        assert len(str(error).splitlines()) <= 12, words


def test_the_page_is_up_to_date(page):
    assert PAGE.read_text(encoding="utf-8") == page[1], "run python -m tests.wrong_uses.table docs/errors.md"
