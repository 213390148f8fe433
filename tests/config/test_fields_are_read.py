"""Every field of a configuration is read by the code that it configures.

mypy finds the class that owns each attribute read. So a read of `serve.compute_threads` does not count for `cluster.compute_threads`.
Reads inside the config package are checks and defaults, and do not count, except in a property that other code reads.
Reads by `getattr` do not count, and no field needs them.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mypy import build
from mypy.modulefinder import BuildSource
from mypy.options import Options
from mypy.plugin import AttributeContext, Plugin
from mypy.types import Type

import yolor_ray

PACKAGE = Path(yolor_ray.__file__).parent


@dataclass(frozen=True)
class Read:
    """Read of an attribute that the class `owner` defines."""

    owner: str
    name: str
    path: Path
    line: int


class ReadRecorder(Plugin):
    """mypy plugin that records attribute reads."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.reads: set[Read] = set()

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type]:
        owner, _, name = fullname.rpartition(".")

        def record(context: AttributeContext) -> Type:
            if not context.is_lvalue:
                self.reads.add(Read(owner, name, Path(context.api.path), context.context.line))
            return context.default_attr_type

        return record


def module_of(path: Path, package: Path) -> str:
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def typed_reads(package: Path) -> set[Read]:
    options = Options()
    options.incremental = False
    options.check_untyped_defs = True
    # Other packages are not analysed: their types are Any. That takes 4 s for this package instead of a minute.
    options.follow_imports = "skip"
    options.ignore_missing_imports = True
    options.python_executable = None
    recorder = ReadRecorder(options)
    sources = [BuildSource(str(path), module_of(path, package)) for path in sorted(package.rglob("*.py"))]
    build.build(sources, options, extra_plugins=[recorder])
    return recorder.reads


def config_classes(package: Path) -> Iterator[tuple[str, Path, ast.ClassDef]]:
    """Yield full name, file and syntax tree of each dataclass in the package's config package."""
    for path in sorted((package / "config").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                yield f"{module_of(path, package)}.{node.name}", path, node


def config_fields(package: Path) -> list[tuple[str, str]]:
    """Return full name of the class and name of each field."""
    return [
        (owner, statement.target.id)
        for owner, _, node in config_classes(package)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]


def fields_read(package: Path, reads: Iterable[Read]) -> set[tuple[str, str]]:
    """Return class and name of each attribute that is read outside the config package, or in a property that is read there.

    To mypy, a frozen dataclass owns the fields that it inherits, too. Such reads also count for the base class.
    """
    inside = [read for read in reads if read.path.is_relative_to(package / "config")]
    outside = {(read.owner, read.name) for read in reads if not read.path.is_relative_to(package / "config")}
    # From the last class to the first, as bases are defined before the classes that inherit from them.
    for owner, path, node in reversed(list(config_classes(package))):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and (owner, method.name) in outside:
                lines = range(method.lineno, method.end_lineno + 1)
                outside |= {(read.owner, read.name) for read in inside if read.path == path and read.line in lines}
        for base in node.bases:
            outside |= {(f"{owner.rpartition('.')[0]}.{ast.unparse(base)}", name) for reader, name in outside if reader == owner}
    return outside


@pytest.fixture(scope="module")
def read_in_package() -> set[tuple[str, str]]:
    return fields_read(PACKAGE, typed_reads(PACKAGE))


@pytest.mark.parametrize(("owner", "name"), config_fields(PACKAGE))
def test_every_field_is_read(owner, name, read_in_package):
    assert (owner, name) in read_in_package, f"{owner}.{name} is a setting without effect"


CONFIG = """
from dataclasses import dataclass, field

@dataclass(frozen=True)
class Optim:
    lr: float = 0.01
    threads: int = 1
    checked: int = 1
    workers: str = "0"
    hidden: str = ""

    def __post_init__(self) -> None:
        if self.checked < 1:
            raise ValueError(self.checked)

    @property
    def worker_count(self) -> int:
        return int(self.workers)

    @property
    def unused(self) -> str:
        return self.hidden

@dataclass(frozen=True)
class Job:
    output: str = ""
    log: str = ""

@dataclass(frozen=True)
class Serve(Job):
    threads: int = 1

@dataclass(frozen=True)
class Train:
    optim: Optim = field(default_factory=Optim)
"""
JOB = """
from dataclasses import replace
from synthetic.config.all import Serve, Train

def run(train: Train, serve: Serve) -> float:
    changed = replace(train.optim, lr=0.1)
    print(serve.output)
    return sum(optim.lr * optim.worker_count for optim in (train.optim, changed)) * serve.threads
"""


def unread_fields(folder: Path, job: str) -> set[str]:
    package = folder / "synthetic"
    (package / "config").mkdir(parents=True, exist_ok=True)
    for name, text in {"__init__": "", "config/__init__": "", "config/all": CONFIG, "job": job}.items():
        (package / f"{name}.py").write_text(text)
    read = fields_read(package, typed_reads(package))
    return {f"{owner.rpartition('.')[2]}.{name}" for owner, name in config_fields(package) if (owner, name) not in read}


def test_a_field_is_reported_if_only_another_class_or_a_check_or_an_unread_property_reads_it(tmp_path):
    assert unread_fields(tmp_path, JOB) == {"Optim.threads", "Optim.checked", "Optim.hidden", "Job.log"}


def test_a_field_is_reported_when_its_only_read_is_removed(tmp_path):
    assert "Serve.threads" in unread_fields(tmp_path, JOB.replace("* serve.threads", ""))
    assert "Optim.workers" in unread_fields(tmp_path, JOB.replace("* optim.worker_count", ""))
    assert "Job.output" in unread_fields(tmp_path, JOB.replace("serve.output", ""))
    assert "Optim.lr" in unread_fields(tmp_path, JOB.replace("optim.lr * ", ""))
