"""Which implementation runs an op; pure, so that it is tested without the hardware."""

BACKENDS = ("auto", "torch")


def select_backend(name: str) -> str:
    """The implementation that `name` stands for: 'auto' picks the best one available, another name is taken at its word.

    Raises
    ------
    ValueError
        When no such backend exists; the message lists those that do.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are {', '.join(BACKENDS)}")
    return "torch" if name == "auto" else name
