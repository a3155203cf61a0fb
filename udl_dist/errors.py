"""Every refusal the product makes: one line that says what, where and what to do, and its exit
code.

Knows nothing else of ours. `udl` prints the message and ends with `exit_code`; a library user
catches the class.
"""


class UdlError(Exception):
    """Base of all refusals; `exit_code` is what the command ends with."""

    exit_code = 1


class UsageError(UdlError, ValueError):
    """What was asked makes no sense: an unknown setting, a wrong type, a folder that holds
    something else.
    """

    exit_code = 2


class DataError(UdlError):
    """The images or shards are missing, damaged or not what they claim to be."""

    exit_code = 3


class TrainingError(UdlError):
    """Training itself failed: numbers, memory, checkpoints."""

    exit_code = 4


class ClusterError(UdlError):
    """Ray, its workers or the machines cannot do what was asked."""

    exit_code = 5
