"""A child that prints escape sequences to both of its streams, in Python and below it."""

import os
from multiprocessing.connection import Connection


def main(descriptor: int) -> None:
    print("\x1b[31m loud", flush=True)
    os.write(2, b"\x1b[31m loud\n")
    with Connection(descriptor) as connection:
        connection.send("done")
