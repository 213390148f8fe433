"""Define the exceptions of this package.

YolorError
├── UserError              the caller can correct the cause; jobs exit with status 2
│   ├── ConfigError        a setting is unknown, out of range or contradicts another
│   ├── DataError          annotations, shards or a dataset.json are not as expected
│   ├── StorageError       a URL cannot be read or written
│   │   ├── NotFoundError  nothing is at the URL
│   │   └── IntegrityError the content at a URL is not the content that was written
│   ├── WeightsError       a weights folder or checkpoint does not fit or does not verify
│   └── ImageError         one image cannot be used; has a stable code
├── TrainingError          training cannot continue; jobs exit with status 1
│   ├── NonFiniteLossError the loss stayed NaN or infinite
│   ├── LedgerError        an epoch took a record twice or left one out: a bug of this package
│   ├── CapacityError      the cluster had no capacity for the fewest workers for too long
│   ├── SupersededError    another job continues the same run
│   └── LoaderError        the process that prepares batches ended
├── ServiceError           a service answered with an error, or not at all; has code, status and request id
│   ├── RefusedError       the service refused a request; a UserError besides
│   ├── BusyError          the service was too busy, or not ready, for too long
│   └── UnreachableError   the service gave no answer
├── CheckFailed            a check found what it was told to fail on; carries the result; jobs print it and exit with status 1
└── Preempted              training stopped after a stop signal, with a checkpoint; jobs exit with status 143,
                            after Ctrl-C with 130
"""

from typing import Any


class YolorError(Exception):
    """Base class of all exceptions of this package."""


class UserError(YolorError):
    """A failure that the caller can correct: the message has the value, the expectation and the place."""


class ConfigError(UserError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(UserError):
    """Annotations, shards or a dataset.json are not as expected."""


class StorageError(UserError):
    """A URL cannot be read or written."""


class NotFoundError(StorageError):
    """Nothing is at the URL."""


class IntegrityError(StorageError):
    """The content at a URL is not the content that was written: cut, altered or incomplete."""


class WeightsError(UserError):
    """A weights folder or checkpoint does not fit or does not verify."""


class ImageError(UserError):
    """One image cannot be used.

    `code` is one of `empty_image`, `unsupported_image`, `truncated_image`, `image_too_large`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.code, str(self))


class TrainingError(YolorError):
    """Training cannot continue."""


class NonFiniteLossError(TrainingError):
    """The loss stayed NaN or infinite for too many steps in a row."""


class LedgerError(TrainingError):
    """An epoch took a record twice or left one out: a bug of this package, never a mistake of the user."""


class CapacityError(TrainingError):
    """The cluster had no capacity for the fewest workers for too long."""


class SupersededError(TrainingError):
    """Another job continues the same run."""


class LoaderError(TrainingError):
    """The process that prepares the batches of a worker ended, for example because the memory of its node was full."""


class ServiceError(YolorError):
    """A service answered with an error, or not at all."""

    def __init__(self, message: str, code: str, status: int, request_id: str) -> None:
        """Keep the facts of an answer.

        Args:
            message: message of the service.
            code: stable code of the service, such as `truncated_image`; `unreachable` without an answer.
            status: HTTP status, 0 without an answer.
            request_id: id of the request, which the log of the service has.
        """
        super().__init__(f"{code}: {message} (status {status}, request {request_id})")
        self.message, self.code, self.status, self.request_id = message, code, status, request_id

    def __reduce__(self) -> tuple[type["ServiceError"], tuple[str, str, int, str]]:
        return type(self), (self.message, self.code, self.status, self.request_id)


class RefusedError(ServiceError, UserError):
    """A service refused a request for a reason that the caller can correct."""


class BusyError(ServiceError):
    """A service had too many requests, or was not ready, until the time limit of the call."""


class UnreachableError(ServiceError):
    """A service gave no answer."""


class CheckFailed(YolorError):
    """A check found what it was told to fail on; `result` is the result of the check, which is complete."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[type["CheckFailed"], tuple[str, dict[str, Any]]]:
        return type(self), (str(self), self.result)


class Preempted(YolorError):
    """Training stopped after a stop signal and a checkpoint; the same command continues the run."""

    def __init__(self, message: str, signal_name: str = "SIGTERM") -> None:
        """Keep the name of the signal, which determines the exit status."""
        super().__init__(message)
        self.signal_name = signal_name


def check(valid: bool, name: str, value: object, expected: str) -> None:
    """Raise ConfigError with the dotted name, the value and the expectation unless the value is valid."""
    if not valid:
        raise ConfigError(f"{name}: found {value!r}, expected {expected}")
