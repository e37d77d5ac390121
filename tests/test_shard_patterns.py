"""Patterns of shards: how many names they stand for is known before they are expanded."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_helpers import message

from psi_fast.images import open_images
from psi_fast.tar_shards import MAX_SHARDS, _count

braceexpand = pytest.importorskip("braceexpand")

MANY = f"stands for more than {MAX_SHARDS:,} shards; check what is in its braces"


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("{a,b}" * 40, MANY),
        ("{a..z}" * 5, MANY),
        ("{" * 20 + "a,b}" + "{c,d}}" * 19, MANY),
        ("{0..1000000}", MANY),
        ("{0..000000000000000000000000002000000000}", "a number of more than 18 digits"),
        ("{" * 3000 + "a,b" + "}" * 3000, "is no pattern of shards"),
        ("{" + "9" * 5000 + "..0}", "is no pattern of shards"),
        ("{" + ",".join(f"{i:03}" for i in range(90)) + "}", "of the 90 shards"),  # longer than a name can be
    ],
)
def test_patterns_of_too_many_or_of_long_names_are_one_line_at_once(tmp_path, pattern, says):
    begun = time.perf_counter()
    text = message(open_images, f"{tmp_path}/{pattern}.tar")
    assert says in text
    assert time.perf_counter() - begun < 60


PIECES = st.sampled_from(
    ["a", "", "{1..3}", "{07..10}", "{9..2..3}", "{a..e}", "{c..A}", "{a..g..0}", "{a,b}", "{", "}", ","]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=5).map("".join))
def test_a_pattern_stands_for_no_more_names_than_are_counted(pattern):
    try:
        names = list(braceexpand.braceexpand(pattern, escape=False))
    except braceexpand.UnbalancedBracesError:
        return
    assert len(names) <= _count(braceexpand, pattern)


@pytest.mark.parametrize("pattern", ["x", "{a,b}", "{1..3}{a..e..2}", "p{2.{5..7},3.{2,3}}", "{x}{,y}", "{-3..3}"])
def test_the_count_of_what_bash_knows_is_exact(pattern):
    assert _count(braceexpand, pattern) == len(list(braceexpand.braceexpand(pattern, escape=False)))
