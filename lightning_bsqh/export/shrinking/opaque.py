"""What a rule says when it cannot follow a call."""


class Opaque(Exception):
    """A call that cannot be followed: its inputs stay as they are.

    Its text says why, as it stands after "is used by conv1,"; empty for no more than that it cannot.
    """
