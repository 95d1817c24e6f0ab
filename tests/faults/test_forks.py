"""What a child of a fork lets go of, in which order, when, and only once; and that what it makes is its own.

The hooks are called by hand here, but for the last test. `test_fork_under_load.py` looks at whole programs that fork.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.os
import pytest
from gevent import get_hub, getcurrent

from gstalk.connection import forks
from tests.test_layers import sources

OTHERS = -1  # a process id that is not ours


class Thing:
    """Something that a child is to let go of."""


class Forks:
    """`connection.forks` as if nothing had been registered yet; `called` says what was let go of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.called: list[Any] = []
        self.things: list[Thing] = []
        patched = {
            "_living": {kind: type(living)() for kind, living in forks._living.items()},
            "_preparations": [],
            "under_way": [],
            "_early": [],
            "_process": os.getpid(),
            "_generation": 0,
            "_forker": None,
        }
        for name, value in patched.items():
            monkeypatch.setattr(forks, name, value)

    def become_child(self) -> None:
        """What a child finds: all of it is another process's."""
        self._patch.setattr(forks, "_process", OTHERS)

    def register(self, kind: str, name: object, error: BaseException | None = None) -> Thing:
        def let_go(thing: Thing) -> None:
            self.called.append(name)
            if error is not None:
                raise error

        thing = Thing()
        self.things.append(thing)
        forks.register(kind, thing, let_go)
        return thing


@pytest.fixture
def fork(monkeypatch: pytest.MonkeyPatch) -> Forks:
    return Forks(monkeypatch)


# -- what is let go of -------------------------------------------------------------------------------------------------


def test_child_lets_go_in_the_order_of_kinds_whatever_was_registered_first(fork):
    for name in (1, 2):
        for kind in reversed(forks.ORDER):
            fork.register(kind, (kind, name))
    forks._after_in_child()
    assert fork.called == [(kind, name) for kind in forks.ORDER for name in (1, 2)]


def test_order_has_a_place_for_every_kind_that_is_registered_and_no_other():
    """Sockets first, and what a program would do about them last."""
    kinds = {
        call.args[0].value
        for source in sources().values()
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "forks.register"
        and isinstance(call.args[0], ast.Constant)
    }
    assert kinds == set(forks.ORDER)
    assert forks.ORDER[0] == "transport"
    assert list(forks._living) == list(forks.ORDER)


def test_child_is_told_the_thing_itself(fork):
    told: list[object] = []
    thing = Thing()
    forks.register("pool", thing, told.append)
    forks._after_in_child()
    assert told == [thing]


def test_what_nobody_refers_to_any_more_is_not_let_go_of(fork):
    fork.register("pool", "gone")
    fork.things.clear()
    fork.register("pool", "there")
    forks._after_in_child()
    assert fork.called == ["there"]


def test_thing_that_can_not_let_go_keeps_no_other_from_it_and_the_first_error_is_raised_last(fork):
    first = KeyboardInterrupt()
    fork.register("transport", 1, first)
    fork.register("pool", 2, ValueError())
    fork.register("signals", 3)
    with pytest.raises(KeyboardInterrupt) as caught:
        forks._after_in_child()
    assert caught.value is first
    assert fork.called == [1, 2, 3]


def test_what_goes_while_it_is_let_go_of_is_no_trouble(fork):
    def let_go(thing: Thing) -> None:
        fork.things.clear()

    thing = Thing()
    forks.register("transport", thing, let_go)
    fork.register("pool", "last")
    forks._after_in_child()
    assert fork.things == []


# -- when --------------------------------------------------------------------------------------------------------------


def test_parent_lets_go_of_nothing_from_before_a_fork_to_behind_it(fork):
    fork.register("pool", "thing")
    forks._before()
    assert forks.under_way == [getcurrent()]
    forks.look()
    fork.register("pool", "another")
    forks._over()
    assert (fork.called, forks.under_way, forks._early) == ([], [], [])
    assert (forks.generation(), forks.forker()) == (0, None)


def test_child_that_looks_before_our_hook_is_called_lets_go_there_and_not_again(fork):
    fork.register("pool", "thing")
    forks._before()
    fork.become_child()
    for _ in range(2):
        forks.look()
        assert (fork.called, forks.generation(), forks.forker()) == (["thing"], 1, getcurrent())
    forks._after_in_child()
    assert (fork.called, forks.generation(), forks.forker()) == (["thing"], 1, getcurrent())
    assert (forks.under_way, forks._early) == ([], [])


def test_child_that_registers_before_our_hook_is_called_keeps_what_it_has_made(fork):
    fork.register("pool", "inherited")
    forks._before()
    fork.become_child()
    fork.register("pool", "own")
    assert fork.called == ["inherited"]
    forks._after_in_child()
    assert fork.called == ["inherited"]
    forks._after_in_child()  # a child of the child
    assert fork.called == ["inherited", "inherited", "own"]
    assert forks.generation() == 2


def test_what_a_look_has_raised_hits_nobody_who_looks_and_is_told_by_our_hook(fork):
    error = ValueError()
    fork.register("pool", "thing", error)
    forks._before()
    fork.become_child()
    forks.look()
    with pytest.raises(ValueError) as caught:
        forks._after_in_child()
    assert caught.value is error
    assert (fork.called, forks._early) == (["thing"], [])


def test_child_without_a_look_lets_go_when_our_hook_is_called_also_where_its_id_is_its_parents(fork):
    """As in a new namespace."""
    fork.register("pool", "thing")
    forks._before()
    forks._after_in_child()
    assert (fork.called, forks.generation(), forks.forker()) == (["thing"], 1, getcurrent())
    assert forks.under_way == []


def test_child_of_a_fork_that_began_before_a_look_in_its_parent_lets_go_all_the_same(fork):
    """The look was its parent's, in a fork before."""
    fork.register("pool", "thing")
    forks._early.append(None)
    fork.become_child()
    forks._after_in_child()
    assert (fork.called, forks._early, forks._process) == (["thing"], [], os.getpid())


def test_look_where_no_hook_of_ours_was_called_before_the_fork_knows_no_forker(fork):
    fork.become_child()
    forks.look()
    assert (forks.generation(), forks.forker()) == (1, None)
    forks._after_in_child()
    assert (forks.generation(), forks.forker()) == (1, getcurrent())


def test_greenlet_that_forks_while_another_one_does_is_the_forker_of_its_child(fork):
    """A hook of another library's let the hub run."""
    first = gevent.spawn(forks._before)
    first.join()
    forks._before()
    assert forks.under_way == [first, getcurrent()]
    fork.become_child()
    forks.look()
    assert forks.forker() is getcurrent()
    forks._over()
    assert forks.under_way == [first]


def test_end_of_a_fork_that_never_began_is_no_trouble(fork):
    """Ctrl-C has hit our hook before it, or C code forks without Python's hooks."""
    other = gevent.spawn(forks._before)
    other.join()
    forks._over()
    assert forks.under_way == [other]


# -- before ------------------------------------------------------------------------------------------------------------


def test_preparations_are_called_before_each_fork_all_of_them(fork):
    called: list[object] = []

    def fail() -> None:
        called.append("fails")
        raise ValueError

    def note() -> None:
        called.append(list(forks.under_way))

    forks.prepare(fail)
    forks.prepare(note)
    for _ in range(2):
        with pytest.raises(ValueError):
            forks._before()
        forks._over()
    assert called == ["fails", [getcurrent()]] * 2  # by then the fork is under way


# -- whose is a hub ----------------------------------------------------------------------------------------------------


def test_hub_is_here_if_its_thread_and_its_loop_are():
    hub = get_hub()
    mine: Any = SimpleNamespace(loop=object(), thread_ident=hub.thread_ident)
    elsewhere: Any = SimpleNamespace(loop=object(), thread_ident=-1)
    gone: Any = SimpleNamespace(loop=None, thread_ident=hub.thread_ident)
    assert [forks.is_here(each) for each in (hub, mine, elsewhere, gone)] == [True, True, False, False]
    assert hub.threadpool.apply(forks.is_here, (hub,)) is False


# -- a fork ------------------------------------------------------------------------------------------------------------


def in_child(call: Callable[[], object]) -> str:
    """What a call in a child returns, as a text."""
    read, write = os.pipe()
    child = gevent.os.fork_gevent()
    if not child:
        try:
            os.write(write, str(call()).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    said = os.read(read, 1000).decode()
    os.close(read)
    return said


def test_fork_calls_our_hooks(fork):
    called = fork.called
    forks.prepare(lambda: called.append("prepared"))
    fork.register("pool", "let go")
    me = getcurrent()
    said = in_child(lambda: [*called, forks.generation(), forks.forker() is me, forks.under_way])
    assert said == "['prepared', 'let go', 1, True, []]"
    assert (called, forks.generation(), forks.forker(), forks.under_way) == (["prepared"], 0, None, [])
