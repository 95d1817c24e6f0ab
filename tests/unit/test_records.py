"""A record is a dataclass in everything but how its methods come about."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import pytest

import gstalk
from gstalk import records
from gstalk.records import record


@record(frozen=True)
class Place:
    """A record."""

    host: str
    port: int = 11300
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Twin:
    """The same, made by `dataclasses`."""

    host: str
    port: int = 11300
    tags: list[str] = dataclasses.field(default_factory=list)


@record(frozen=True, kw_only=True)
class Named:
    host: str
    port: int = 11300


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        (("a",), {}),
        (("a", 1, ["x"]), {}),
        (("a",), {"port": 1}),
        ((), {"host": "a", "tags": ["x"]}),
        (("a",), {"host": "b"}),
        (("a",), {"colour": "red"}),
        (("a", 1, [], 2), {}),
    ],
)
def test_call_gives_what_a_dataclass_gives(values, named):
    def outcome(cls: Any) -> object:
        try:
            return vars(cls(*values, **named))
        except TypeError:
            return TypeError

    assert outcome(Place) == outcome(Twin)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Place(), "Place.__init__() missing a required argument: 'host'"),
        (lambda: Place("a", host="b"), "Place.__init__() got multiple values for argument 'host'"),
        (lambda: Place("a", colour=1), "Place.__init__() got an unexpected keyword argument 'colour'"),
        (lambda: Place("a", 1, [], 2), "Place.__init__() takes 3 positional arguments but 4 were given"),
        (lambda: Named("a"), "Named.__init__() takes 0 positional arguments but 1 were given"),
    ],
)
def test_wrong_call_is_refused_in_python_s_words(call, message):
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == message


def test_default_of_a_factory_is_made_anew():
    assert Place("a").tags is not Place("a").tags


def test_repr_is_that_of_a_dataclass():
    assert repr(Place("a")) == repr(Twin("a")).replace("Twin", "Place")


def test_repr_of_a_record_within_itself_ends():
    place = Place("a")
    place.tags.append(place)
    assert repr(place) == "Place(host='a', port=11300, tags=[...])"


def test_equal_are_those_of_one_class_with_the_same_values():
    assert Named(host="a") == Named(host="a") != Named(host="b")
    assert Place("a") != Twin("a")  # type: ignore[comparison-overlap]
    assert hash(Named(host="a")) == hash(Named(host="a"))
    with pytest.raises(TypeError):  # a list among its values
        hash(Place("a"))


def test_is_frozen():
    place = Place("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        place.port = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        del place.port


@pytest.mark.parametrize("parent", [Place, Twin])
def test_heir_may_have_attributes_of_its_own_beside_the_fields(parent):
    """As an heir of a dataclass may."""
    heir = type("Heir", (parent,), {})("a")
    heir.note = 1
    del heir.note
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'port'"):
        heir.port = 1
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'port'"):
        del heir.port


def test_heir_with_fields_of_its_own_is_frozen_too():
    with pytest.raises(TypeError, match="frozen"):
        dataclasses.dataclass(type("Loose", (Place,), {}))


def test_one_with_slots_has_no_other_attributes_and_pickles():
    """Its state is the list of its values, as that of a dataclass with slots."""
    event = gstalk.Event(kind="put", attempt=2)
    assert not hasattr(event, "__dict__")
    assert event.__reduce_ex__(2)[2] == ["put", None, None, None, 2, None, None]
    assert copy.copy(event) == pickle.loads(pickle.dumps(event)) == event


def test_what_dataclasses_knows_of_a_class_is_made_once_when_somebody_asks(monkeypatch):
    made: list[str] = []

    def make(name: str, *args: Any, **named: Any) -> type:
        made.append(name)
        return dataclasses.make_dataclass(name, *args, **named)

    monkeypatch.setattr(records, "make_dataclass", make)

    @record(frozen=True)
    class Late:
        host: str = "a"

    assert repr(Late()).endswith("Late(host='a')")
    assert Late() == Late("a")
    assert hash(Late()) == hash(Late("a"))
    assert not made
    assert dataclasses.is_dataclass(Late)
    assert dataclasses.replace(Late(), host="b") == Late("b")
    assert str(inspect.signature(Late)) == "(host: 'str' = 'a') -> None"
    assert made == ["Late"]


@pytest.mark.skipif(not hasattr(copy, "replace"), reason="came with Python 3.13")
def test_copy_replace_works():
    assert copy.replace(Place("a"), port=1) == Place("a", 1)  # type: ignore[attr-defined]


def test_tools_of_dataclasses_work():
    place = Place("a", tags=["x"])
    assert dataclasses.replace(place, port=1) == Place("a", 1, ["x"])
    assert dataclasses.asdict(place) == {"host": "a", "port": 11300, "tags": ["x"]}
    assert [each.name for each in dataclasses.fields(Place)] == ["host", "port", "tags"]
    assert copy.deepcopy(place) == pickle.loads(pickle.dumps(place)) == place
    match place:
        case Place(host, port):
            assert (host, port) == ("a", 11300)


def test_signature_is_that_of_a_dataclass():
    assert str(inspect.signature(Place)) == str(inspect.signature(Twin))
    assert list(inspect.signature(Place).parameters) == ["host", "port", "tags"]
    assert str(inspect.signature(Named)) == "(*, host: 'str', port: 'int' = 11300) -> None"


def test_heirs_may_have_fields_or_an_init_of_their_own():
    @dataclasses.dataclass(frozen=True)
    class Wider(Place):
        depth: int = 7

    class Other(Place):
        def __init__(self, width: int) -> None:
            super().__init__("a", width)

    assert vars(Wider("a", 1)) == {"host": "a", "port": 1, "tags": [], "depth": 7}
    assert list(inspect.signature(Wider).parameters) == ["host", "port", "tags", "depth"]
    assert Other(9).port == 9
    assert list(inspect.signature(Other).parameters) == ["width"]


def test_heir_s_own_init_gives_its_own_fields():
    """And calls ours for the others, before or after that."""

    @dataclasses.dataclass(frozen=True)
    class Labelled(Named):
        label: str
        depth: int = 7

        def __init__(self, label: str, **named: Any) -> None:
            object.__setattr__(self, "depth", 9)
            super().__init__(**named)
            object.__setattr__(self, "label", label)

    made = Labelled("x", host="a")
    assert vars(made) == {"depth": 9, "host": "a", "port": 11300, "label": "x"}
    assert repr(made).endswith("Labelled(host='a', port=11300, label='x', depth=9)")


def test_heir_that_wants_no_comparison_of_its_own_has_that_of_the_record():
    @dataclasses.dataclass(frozen=True, eq=False, repr=False)
    class Noted(Named):
        notes: list[str] = dataclasses.field(default_factory=list, compare=False)

    assert Noted(host="a", notes=["x"]) == Noted(host="a") != Noted(host="b")
    assert hash(Noted(host="a", notes=["x"])) == hash(Noted(host="a"))
    assert repr(Noted(host="a")).endswith("Noted(host='a', port=11300)")


def test_heir_that_can_be_called_has_the_signature_of_that_call():
    class Settings(gstalk.Config):
        def __call__(self, event: gstalk.Event) -> None: ...

    assert list(inspect.signature(Settings()).parameters) == ["event"]
    assert gstalk.Config(event_func=Settings()).event_func is not None


@pytest.mark.parametrize("kind", [gstalk.ServerStats, gstalk.TubeStats, gstalk.JobStats, gstalk.RetryPolicy])
def test_public_values_pickle_and_compare(kind):
    value = kind()
    assert pickle.loads(pickle.dumps(value)) == value == dataclasses.replace(value)
    assert dataclasses.is_dataclass(value)
