"""Send row groups from the trainer to the process of its loader."""

from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection

import pyarrow as pa

from yolor_ray.data.shards.dataset import RowGroup

FAILED = b""
"""Message in place of a table that the trainer could not read."""


class SourceFailed(Exception):
    """The trainer could not read the next row group, and has the reason."""


def send_tables(connection: Connection, tables: Iterable[pa.Table]) -> None:
    """Send each table as an Arrow stream; the other end takes a table when it needs one.

    Raises:
        BrokenPipeError: the other end is closed.
        UserError: reading a table raised the error, of which the other end is told.
    """
    try:
        for table in tables:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            connection.send_bytes(sink.getvalue())
    except ConnectionError:
        raise
    except BaseException:
        connection.send_bytes(FAILED)
        raise


def receive_tables(connection: Connection, groups: Iterable[RowGroup]) -> Iterator[pa.Table]:
    """Yield the table of each row group, in the order in which they are sent.

    Raises:
        EOFError: the other end is closed.
        SourceFailed: the other end could not read a table.
    """
    for _ in groups:
        content = connection.recv_bytes()
        if content == FAILED:
            raise SourceFailed
        yield pa.ipc.open_stream(content).read_all()
