"""Whether somebody still listens, asked of real connections."""

import io
import os
import resource
import socket

import pytest

from meloformer.demo.events import EventStream

BEYOND_SELECT = 1500


def test_who_has_sent_more_than_was_asked_for_can_still_go_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname())
        connection, _ = server.accept()
    with connection:
        stream = EventStream(io.BytesIO(), connection)
        assert not stream.is_gone()
        other.sendall(b"the next request")
        assert not stream.is_gone()
        other.close()
        assert stream.is_gone()


def test_a_connection_behind_a_thousand_others_is_still_there() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= BEYOND_SELECT:
        pytest.skip(f"needs more than {BEYOND_SELECT} open files: ulimit -n")
    if soft <= BEYOND_SELECT:
        resource.setrlimit(resource.RLIMIT_NOFILE, (BEYOND_SELECT + 1, hard))
    near, far = socket.socketpair()
    try:
        with near, far, socket.socket(fileno=os.dup2(near.fileno(), BEYOND_SELECT)) as high:
            stream = EventStream(io.BytesIO(), high)
            assert not stream.is_gone()
            far.close()
            assert stream.is_gone()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
