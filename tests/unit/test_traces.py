"""What errors hold: copies without a traceback, and frames of gstalk's own that are emptied.

That no operation of gstalk leaves an error which keeps anything is for `tests/faults/test_cycles.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gstalk import errors
from gstalk.traces import bare, forget, forgetful, keep_last
from tests.unit.test_errors import SPECIMENS


def test_bare_error_says_the_same_and_is_another_object():
    for error in (each for each in SPECIMENS if isinstance(each, errors.GstalkError)):
        error.__cause__ = cause = ValueError("why")
        fresh = bare(error)
        assert fresh is not error
        assert (type(fresh), str(fresh), fresh.__dict__) == (type(error), str(error), error.__dict__)
        assert (str(fresh.__cause__), fresh.__cause__ is not cause, fresh.__traceback__) == ("why", True, None)


def test_bare_error_may_say_more():
    error = errors.ConnectionLostError("put: cut", "maybe")
    fresh = bare(error, "; again")
    assert (str(fresh), fresh.sent) == ("put: cut; again", "maybe")
    assert str(error) == "put: cut"


def test_bare_error_that_was_raised_keeps_its_fields_and_no_frame_and_leaves_the_other_as_it_is():
    with pytest.raises(errors.ConnectionLostError) as caught:
        raise errors.ConnectionLostError("gone", "maybe") from ValueError("first")
    copied = bare(caught.value, "; again")
    assert (str(copied), copied.sent, copied.__traceback__) == ("gone; again", "maybe", None)
    assert str(caught.value) == "gone"
    assert caught.value.__traceback__ is not None
    assert bare(ValueError("plain")).__cause__ is None


def test_bare_error_has_all_its_causes_bare_and_without_more():
    try:
        try:
            raise KeyError("root")
        except KeyError as root:
            raise OSError("middle") from root
    except OSError as middle:
        error = errors.ConnectError("top")
        error.__cause__ = middle
    copied: Any = bare(error, "; more")
    chain = [copied, copied.__cause__, copied.__cause__.__cause__]
    assert [str(each) for each in chain] == ["top; more", "middle", "'root'"]
    assert [each.__traceback__ for each in chain] == [None] * 3
    assert error.__cause__ is not chain[1]
    assert error.__cause__.__traceback__ is not None


def test_bare_error_with_several_arguments_says_more_in_the_first():
    copied = bare(ValueError("why", 7), "!")
    assert copied.args == ("('why', 7)!", 7)


# -- forget ----------------------------------------------------------------------------------------------------------


class Thing:
    """Something that is there as long as a frame holds it."""


# A module of gstalk's, as far as `forget` can tell.
SOURCE = '''
def hold(call, noted):
    """Hold a thing while something is called that fails."""
    thing = Thing()
    noted.append(ref(thing))
    return call()

def forget_at_once(call, noted):
    """As `hold`, and forget the error while this frame still runs."""
    thing = Thing()
    try:
        hold(call, noted)
    except ValueError as error:
        forget(error)
    return thing

class Holder:
    attribute = 7

    def public(self, call, *, noted):
        """Do it."""
        return hold(call, noted)

    def hot(self, call, *, noted):
        return hold(call, noted)

    def _private(self, call, *, noted):
        return hold(call, noted)

    @property
    def computed(self):
        return 8

    @staticmethod
    def alone():
        return 9
'''


def module(name: str = "gstalk.pretended") -> Any:
    namespace: dict[str, Any] = {"__name__": name, "Thing": Thing, "ref": weakref.ref, "forget": forget}
    exec(SOURCE, namespace)
    return SimpleNamespace(**namespace)


def fail() -> None:
    raise ValueError


def raised(call: Callable[..., object], *args: Any, **options: Any) -> BaseException:
    try:
        call(*args, **options)
    except BaseException as error:
        return error
    raise AssertionError


def frames(error: BaseException) -> dict[str, Any]:
    """The frames that an error has left, by their functions' names."""
    found, trace = {}, error.__traceback__
    while trace is not None:
        found[trace.tb_frame.f_code.co_name] = trace.tb_frame
        trace = trace.tb_next
    return found


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [("gstalk.pool.puts", True), ("gstalk.conn", True), ("gstalks.conn", False), ("program", False), (None, False)],
)
def test_frames_of_gstalks_own_are_emptied_and_no_others(name, forgotten):
    noted: list[Any] = []
    error = raised(module(name).hold, fail, noted)
    assert noted[0]() is not None
    forget(error)
    assert (noted[0]() is None) == forgotten
    assert list(frames(error)) == ["raised", "hold", "fail"]  # the lines stay


def test_frames_are_emptied_however_many_stand_between():
    noted: list[Any] = []
    inner, outer = module(), module()

    def program() -> object:
        return inner.hold(fail, noted)

    forget(raised(outer.hold, program, noted))
    assert [each() for each in noted] == [None, None]


def test_error_without_a_traceback_has_nothing_to_forget():
    error = ValueError()
    forget(error)
    assert error.__traceback__ is None


def test_frame_that_still_runs_is_left_as_it_is():
    noted: list[Any] = []
    assert isinstance(module().forget_at_once(fail, noted), Thing)
    assert noted[0]() is None


def test_generator_of_the_program_is_not_closed():
    """To clear a frame closes a generator that is suspended there."""

    def numbers() -> Iterator[int]:
        yield 1
        yield 2

    def program() -> None:
        for _ in iterator:
            fail()

    iterator = numbers()
    forget(raised(module().hold, program, []))
    assert next(iterator) == 2


# -- a class whose methods forget --------------------------------------------------------------------------------------


def test_forgetful_class_is_the_same_and_does_what_it_did():
    kind = module().Holder
    assert forgetful()(kind) is kind
    thing = kind()
    assert thing.public(lambda: 5, noted=[]) == 5
    assert (thing.computed, kind.alone(), thing.attribute) == (8, 9, 7)
    assert (kind.public.__name__, kind.public.__doc__) == ("public", "Do it.")


@pytest.mark.parametrize(("name", "forgets"), [("public", True), ("hot", False), ("_private", False)])
def test_forgetful_class_forgets_in_public_methods_but_those_that_do_it_themselves(name, forgets):
    thing = forgetful(but=["hot"])(module().Holder)()
    noted: list[Any] = []
    error = raised(getattr(thing, name), fail, noted=noted)
    assert isinstance(error, ValueError)
    assert (noted[0]() is None) == forgets
    if forgets:
        assert set(frames(error)["forgetting"].f_locals) == {"method"}  # nor does the frame that has done it hold any


def test_forgetful_class_forgets_in_all_public_methods_unless_it_is_told_otherwise():
    noted: list[Any] = []
    error = raised(forgetful()(module().Holder)().hot, fail, noted=noted)
    assert (type(error), noted[0]()) == (ValueError, None)


def test_forgetful_method_forgets_what_is_no_exception_too():
    class Interruption(BaseException):
        pass

    def interrupt() -> None:
        raise Interruption

    noted: list[Any] = []
    error = raised(forgetful()(module().Holder)().public, interrupt, noted=noted)
    assert (type(error), noted[0]()) == (Interruption, None)


def test_object_that_is_raised_again_keeps_its_last_raise_only():
    class Held:
        pass

    error = ValueError("made once")

    def deep(depth: int, held: object) -> None:
        if depth:
            deep(depth - 1, held)
        raise error

    def catch(held: object) -> list[str]:
        try:
            deep(2, held)
        except ValueError as caught:
            keep_last(caught)
        trace, names = error.__traceback__, []
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        return names

    held = [Held() for _ in range(3)]
    gone = [weakref.ref(each) for each in held]
    assert [catch(held.pop()) for _ in range(3)] == [["catch", "deep", "deep", "deep"]] * 3
    assert [each() is None for each in gone] == [False, True, True]  # the first one was raised for last


def test_error_that_was_never_raised_has_no_raise_to_keep():
    keep_last(ValueError())
