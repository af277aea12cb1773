"""What a script writes into a page: the text between two comments that name it."""

from __future__ import annotations


def between(page: str, name: str, block: str) -> str:
    """`page` with `block` between `<!-- name -->` and `<!-- /name -->`; as it is where it has no such place."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in page:
        return page
    head, rest = page.split(begin, 1)
    return f"{head}{begin}\n{block}\n{end}{rest.split(end, 1)[1]}"
