"""gstalk.config: defaults as documented, and every field checked when it is made."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import pickle
import ssl
import typing
from collections.abc import Iterator
from datetime import timedelta

import pytest

import gstalk
from gstalk.config import Config, Event, Options, PutParams
from gstalk.errors import InvalidArgumentError
from gstalk.retry import RetryPolicy

DEFAULTS = {
    "multiply": 1,
    "num_greenlets": 10,
    "conn_timeout": 5,
    "put_timeout": 15,
    "reserve_timeout": 30,
    "reconnect_timeout": 3,
    "stop_timeout": 25,
    "tls_context": None,
    "info_func": None,
    "error_func": None,
    "event_func": None,
    "retry": RetryPolicy(),
    "retry_ambiguous": True,
    "given_up_func": None,
    "auto_delete": False,
    "auto_touch": False,
    "time_limit": None,
}
DURATIONS = ["conn_timeout", "put_timeout", "reserve_timeout", "reconnect_timeout", "stop_timeout", "time_limit"]
MAY_BE_NONE = ["conn_timeout", "put_timeout", "stop_timeout", "time_limit", "tls_context"]
MAY_BE_NONE += ["info_func", "error_func", "event_func", "given_up_func"]
FLAGS = ["retry_ambiguous", "auto_delete", "auto_touch"]
HOOKS = ["info_func", "error_func", "event_func", "given_up_func"]


def test_config_defaults_are_the_documented_ones():
    assert {each.name: getattr(Config(), each.name) for each in dataclasses.fields(Config)} == DEFAULTS


def test_config_takes_keywords_only():
    assert {each.kind for each in inspect.signature(Config).parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().multiply = 2


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [2, 2.5, timedelta(seconds=2.5)])
def test_config_duration_becomes_float_seconds(name, value):
    made = getattr(Config(**{name: value}), name)
    assert type(made) is float
    assert made == (2 if value == 2 else 2.5)


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, -math.inf, timedelta(seconds=-1), 10**400])
def test_config_duration_out_of_range_is_refused(name, value):
    with pytest.raises(InvalidArgumentError, match=name):
        Config(**{name: value})


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", ["5", b"5", True, False, [5], 5j])
def test_config_duration_of_wrong_type_is_a_type_error(name, value):
    with pytest.raises(TypeError, match=name):
        Config(**{name: value})


@pytest.mark.parametrize("name", MAY_BE_NONE)
def test_config_none_means_no_limit_or_nothing(name):
    assert getattr(Config(**{name: None}), name) is None


@pytest.mark.parametrize("name", sorted(set(DEFAULTS) - set(MAY_BE_NONE)))
def test_config_none_elsewhere_is_a_type_error(name):
    with pytest.raises(TypeError, match=name):
        Config(**{name: None})


@pytest.mark.parametrize("name", ["put_timeout", "stop_timeout"])
def test_config_zero_means_at_once(name):
    assert getattr(Config(**{name: 0}), name) == 0


@pytest.mark.parametrize("name", ["conn_timeout", "reserve_timeout", "reconnect_timeout", "time_limit"])
def test_config_zero_that_could_never_work_is_refused(name):
    with pytest.raises(InvalidArgumentError, match=name):
        Config(**{name: 0})


def test_config_reserve_timeout_fits_the_server():
    """beanstalkd 1.12 waits for ever from 2147483648 on (S8)."""
    assert Config(reserve_timeout=2**31 - 1).reserve_timeout == 2**31 - 1
    for too_long in (2**31, 1e30):
        with pytest.raises(InvalidArgumentError) as refused:
            Config(reserve_timeout=too_long)
        assert str(refused.value) == f"reserve_timeout must be below 2147483648 seconds, got {float(too_long)}"
    with pytest.raises(InvalidArgumentError, match=r"^reserve_timeout must be 1 second or more, got 0\.5$"):
        Config(reserve_timeout=0.5)


@pytest.mark.parametrize("name", ["multiply", "num_greenlets"])
@pytest.mark.parametrize("value", [1.0, "1", True, None, timedelta(1)])
def test_config_number_of_wrong_type_is_a_type_error(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be an int, got {type(value).__name__}$"):
        Config(**{name: value})


@pytest.mark.parametrize("name", ["multiply", "num_greenlets"])
@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_config_number_out_of_range_is_refused(name, value):
    with pytest.raises(InvalidArgumentError, match=f"^{name} must be from 1 to 1048576, got {value}$"):
        Config(**{name: value})


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [0, 1, "yes"])
def test_config_flag_is_a_bool_and_nothing_like_it(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be a bool, got {type(value).__name__}$"):
        Config(**{name: value})


@pytest.mark.parametrize("name", HOOKS)
def test_config_hook_must_be_callable(name):
    assert getattr(Config(**{name: print}), name) is print
    with pytest.raises(TypeError, match=f"^{name} must be callable, got str$"):
        Config(**{name: "print"})


async def told_async(*told: object) -> None: ...


def told_yielding(*told: object) -> Iterator[None]:
    yield


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("hook", [told_async, functools.partial(told_async), told_yielding])
def test_config_hook_that_would_run_nothing_is_refused(name, hook):
    with pytest.raises(TypeError, match=f"^{name} must be a plain function, "):
        Config(**{name: hook})
    with pytest.raises(TypeError, match=f"^{name} must be a plain function, "):
        Config().replace(**{name: hook})


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("info_func", lambda: None),
        ("error_func", lambda error: None),
        ("event_func", lambda kind, uri: None),
        ("given_up_func", lambda job: None),
    ],
)
def test_config_hook_that_takes_other_arguments_is_refused(name, hook):
    with pytest.raises(TypeError, match=f"^{name} is called with .* argument"):
        Config(**{name: hook})


def test_config_tls_context_must_be_one():
    context = ssl.create_default_context()
    assert Config(tls_context=context).tls_context is context
    with pytest.raises(TypeError, match=r"^tls_context must be an ssl\.SSLContext, got bool$"):
        Config(tls_context=True)


def test_config_retry_must_be_a_policy():
    with pytest.raises(TypeError, match=r"^retry must be a RetryPolicy, got int$"):
        Config(retry=3)


def test_replace_changes_what_is_named_and_checks_it():
    config = Config(multiply=2)
    other = config.replace(num_greenlets=3)
    assert (other.multiply, other.num_greenlets, config.num_greenlets) == (2, 3, 10)
    with pytest.raises(InvalidArgumentError):
        config.replace(multiply=0)


def test_replace_nothing_changes_nothing():
    assert Config(multiply=2).replace() == Config(multiply=2)


@pytest.mark.parametrize("make", [Config, Config().replace])
def test_unknown_option_is_a_type_error(make):
    with pytest.raises(TypeError, match="num_greenlet"):
        make(num_greenlet=3)


def test_put_params_defaults_and_equality():
    params = PutParams()
    assert (params.priority, params.delay, params.ttr) == (1024, 0, 60)
    assert params == PutParams(1024, 0, 60)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.ttr = 1


@pytest.mark.parametrize(
    ("given", "sent"),
    [(0, 0), (1, 1), (0.001, 1), (1.0, 1), (1.5, 2), (timedelta(milliseconds=1), 1), (2**32 - 1,) * 2],
)
def test_put_params_delay_is_rounded_up(given, sent):
    delay = PutParams(delay=given).delay
    assert (delay, type(delay)) == (sent, int)


@pytest.mark.parametrize(("given", "sent"), [(1, 1), (0.001, 1), (59.1, 60), (timedelta(minutes=1), 60)])
def test_put_params_ttr_is_rounded_up(given, sent):
    ttr = PutParams(ttr=given).ttr
    assert (ttr, type(ttr)) == (sent, int)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("priority", value) for value in (-1, 2**32)),
        *(("delay", value) for value in (-1, -0.1, 2**32, 2**32 - 0.5, math.nan, math.inf, timedelta(-1))),
        *(("ttr", value) for value in (0, 0.0, -1, 2**32, math.nan, timedelta(0))),
    ],
)
def test_put_params_out_of_range_is_refused(name, value):
    with pytest.raises(InvalidArgumentError, match=f"^{name} must"):
        PutParams(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("priority", value) for value in (1.0, "1", True, None)),
        *((name, value) for name in ("delay", "ttr") for value in ("1", b"1", True, None)),
    ],
)
def test_put_params_wrong_type_is_a_type_error(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be"):
        PutParams(**{name: value})


def test_event_needs_its_kind_alone_and_takes_no_more():
    event = Event(kind="put")
    assert (event.uri, event.tube, event.job_id, event.attempt, event.exception, event.duration) == (None,) * 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.kind = "other"
    with pytest.raises(TypeError):
        Event("put")
    assert not hasattr(event, "__dict__")


def test_put_params_fields_are_all_that_they_show_and_hand_on():
    params = PutParams(5, 0.5, 7)
    assert vars(params) == dataclasses.asdict(params) == {"priority": 5, "delay": 1, "ttr": 7}
    handed_on = (
        PutParams(**vars(params)),
        dataclasses.replace(params),
        copy.copy(params),
        copy.deepcopy(params),
        pickle.loads(pickle.dumps(params)),
    )
    for each in handed_on:
        assert (each, each.head) == (params, b"put 5 1 7 ")


# -- what type checkers know of options --------------------------------------------------------------------------


def test_options_are_the_fields_of_config_and_none_is_needed():
    """In their order and with their types, but that a duration may be given as a timedelta, and is held in seconds."""
    options = typing.get_type_hints(Options)
    fields = typing.get_type_hints(Config)
    durations = {name for name in fields if name.endswith("_timeout") or name == "time_limit"}
    assert list(options.items()) == [
        (name, held | timedelta if name in durations else held) for name, held in fields.items()
    ]
    assert len(durations) == 6
    assert not Options.__required_keys__


@pytest.mark.parametrize(
    "function",
    [gstalk.dial, gstalk.Producer.__init__, gstalk.Consumer.__init__, Config.replace],
    ids=lambda function: function.__qualname__,
)
def test_options_can_be_read_at_run_time(function):
    """As programs do that inject what a signature names."""
    assert Options in typing.get_args(typing.get_type_hints(function)["options"])
