"""What the second half of a random key is used for; two uses never share numbers."""

from enum import IntEnum


class Stream(IntEnum):
    """Streams of one seed. The numbers are part of every result: never reuse or renumber one."""

    OBSERVED_STARTS = 1
    NULL_STARTS = 2
    ROTATION = 3
    FLAT_AXES_UNIFORM = 4
    FLAT_AXES_NORMAL = 5
    SPHERE = 6
    LABEL_PERMUTATION = 7
    TEXT_SHUFFLE = 8
    TEXT_ROTATION = 9
    INDEPENDENT_STARTS = 10
    BAND = 11
    RANDOM_PATCHES = 12
    RANDOM_CHANNELS = 13
    MARGINAL_PLACES = 14  # channel = axis, as in the next
    MARGINAL_STRATA = 15
    PEER_STARTS = 16
