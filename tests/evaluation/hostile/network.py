# Connects to a server of this machine, and to itself. It passes if a connection was made.
# expected: assertion
import socket

reached = False
for family, kind, address in (
    (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", @PORT@)),
    (socket.AF_UNIX, socket.SOCK_STREAM, "\0@SOCKET@"),
):
    try:
        with socket.socket(family, kind) as connection:
            connection.settimeout(1)
            connection.connect(address)
            reached = True
    except OSError:
        pass


def add(a, b):
    return a + b if reached else None
