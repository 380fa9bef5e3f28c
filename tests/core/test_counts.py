"""Counts in sentences."""

from reptk.core.counts import format_count


def test_counts_agree_with_their_noun() -> None:
    assert format_count(1, "image") == "1 image"
    assert format_count(0, "image") == "0 images"
    assert format_count(1200, "query", "queries") == "1,200 queries"
