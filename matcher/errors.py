"""The exceptions a user may see. Each carries one sentence: what is wrong, where, and what to do."""


class DualsdError(Exception):
    """Base of every exception that dualsd raises on purpose."""


class InputError(DualsdError):
    """The user's input is wrong. The command line prints the sentence and exits with code 2."""


class MapError(InputError):
    """A feature map is missing, has the wrong shape, or holds values that are not finite."""


class MatchError(InputError):
    """Points, layers, weights or settings that cannot be matched as asked."""
