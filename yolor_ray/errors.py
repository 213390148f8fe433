"""Name the failures a caller may want to tell apart.

YolorError
├── UserError              the caller can mend it; jobs exit with status 2
│   ├── ConfigError        a setting is unknown, out of range or contradicts another
│   ├── DataError          annotations, shards or a dataset.json are not as expected
│   ├── StorageError       a URL cannot be read or written
│   │   ├── AbsentError    nothing is at the URL
│   │   └── DamagedError   what was read is not what was written
│   ├── WeightsError       a weights folder or checkpoint does not fit or does not verify
│   └── ImageError         one image cannot be used; carries a stable code
├── TrainingError          training cannot go on; jobs exit with status 1
│   ├── NonFiniteLossError the loss stayed NaN or infinite
│   ├── LedgerError        an epoch took a record twice or left one out: a fault of this package
│   └── SupersededError    another job goes on with the same run
└── Preempted              training was asked to end, and lost nothing; jobs exit with status 143
"""


class YolorError(Exception):
    """Base of every failure that this package raises on purpose."""


class UserError(YolorError):
    """Something that the caller can mend: the message says what was found, what was expected and where."""


class ConfigError(UserError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(UserError):
    """Annotations, shards or a dataset.json are not as expected."""


class StorageError(UserError):
    """A URL cannot be read or written."""


class NotFoundError(StorageError):
    """Nothing is at the URL."""


class IntegrityError(StorageError):
    """What was read is not what was written: cut, altered, or not all there."""


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
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss stayed NaN or infinite for too many steps in a row."""


class LedgerError(TrainingError):
    """An epoch took a record twice or left one out: a fault of this package, never of its user."""


class SupersededError(TrainingError):
    """Another job goes on with the same run."""


class Preempted(YolorError):
    """Training was asked to end, and did so after a checkpoint; the same command goes on."""


def check(ok: bool, name: str, found: object, expected: str) -> None:
    """Raise ConfigError with what was found and what was expected unless `ok`; `name` is the dotted flag."""
    if not ok:
        raise ConfigError(f"{name}: found {found!r}, expected {expected}")
