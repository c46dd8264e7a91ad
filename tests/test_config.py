"""Settings: every wrong type, number or name is one line that says what was expected."""

import json
from dataclasses import asdict
from inspect import unwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip2sam.clip.methods import CLEARCLIP, CLIP_SURGERY, METHODS, RAW_CLIP, Method, as_method
from clip2sam.config import MAX_GRID, MAX_RESOLUTION, Config
from clip2sam.errors import ConfigError
from clip2sam.models.presets import Preset, get_preset

FIELDS = tuple(asdict(Config()))

WRONG = {
    "method": ["magic", "", None, 7, ["raw"], Config()],
    "feature_surgery": [1, 0, None, "yes"],
    "resolution": [0, -1, 2.5, "224", True, 100_000, 10**400, [224], np.nan],
    "background_prompts": ["sky", ("sky", " "), (1,), None, 7, {"sky": 1}],
    "presence_threshold": ["0.1", np.nan, np.inf, -np.inf, 10**400, True, [0.1], 1j, ()],
    "grid": [1, 0, -3, 20_000, "full", 7.0, True, None, (7, 7), np.nan],
    "prompts": ["box", "", None, 7, ["label"]],
    "point_threshold": [0, 0.0, -1, 1.5, np.nan, np.inf, "0.8", True, 1j],
    "max_objects": [0, -1, 1.5, 65, "3", True, None],
    "min_share": [-0.1, 1.5, np.nan, np.inf, "0.5", None, True],
    "max_positive": [-1, 1.5, "3", True, np.nan, 10**400],
    "max_negative": [-1, 1.5, "3", True, np.inf, 10**400],
    "tile": [0, 31, 2.5, "64", True, None, "on", np.nan],
    "tile_overlap": [-0.1, 0.95, np.nan, "0.5", None, True],
    "candidate": ["best", None, 7, [], ("both",)],
}


def made(kind, **values):
    """`kind(**values)` as outside the tests, whose own checks of types would refuse them first."""
    record = object.__new__(kind)
    unwrap(kind.__init__)(record, **values)
    return record


def refusal(**changes) -> str:
    with pytest.raises(ConfigError) as caught:
        made(Config, **changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def test_every_field_has_its_wrong_values():
    assert set(WRONG) == set(FIELDS)


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, wrong in WRONG.items() for v in wrong])
def test_wrong_values_are_named_with_what_was_expected(field, value):
    message = refusal(**{field: value})
    assert field in message
    if field == "method":
        assert "choose one of raw, maskclip, surgery, clearclip" in message
    else:
        assert "must be" in message
        assert "but got " in message


def test_tiles_are_for_objects():
    message = refusal(tile="auto", prompts="label")
    assert message.startswith('tile must be "off" with one prompt a label')


def test_long_values_are_cut():
    assert "..." in refusal(grid=np.arange(10_000))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_may_be_given_by_name(name):
    assert made(Config, method=name) == Config(method=METHODS[name])


def test_numbers_of_numpy_become_pythons():
    """Settings go into a run's manifest, as JSON."""
    config = made(
        Config,
        resolution=np.int64(224),
        presence_threshold=np.float32(0.5),
        grid=np.uint8(5),
        point_threshold=1,
        max_positive=np.int32(3),
        background_prompts=["sky", "road"],
    )
    assert config == Config(
        resolution=224,
        presence_threshold=0.5,
        grid=5,
        point_threshold=1.0,
        max_positive=3,
        background_prompts=("sky", "road"),
    )
    values = {name: value for name, value in asdict(config).items() if name != "method"}
    assert json.loads(json.dumps(values))["grid"] == 5
    assert isinstance(config.background_prompts, tuple)
    hash(config)


def test_limits_themselves_are_allowed():
    config = Config(resolution=MAX_RESOLUTION, grid=MAX_GRID, point_threshold=1.0, max_positive=0)
    assert (config.resolution, config.grid) == (8192, 64)
    assert Config(resolution=1, grid=2, presence_threshold=None).presence_threshold is None
    assert Config(grid="half").grid == "half"


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.one_of(st.integers(), st.text()), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.just(len),
    st.just(object()),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=4))
def test_any_value_is_a_setting_or_a_config_error(changes):
    try:
        config = made(Config, **changes)
    except ConfigError as error:
        config, message = Config(), str(error)
        assert "\n" not in message
    json.dumps({k: v for k, v in asdict(config).items() if not callable(v) and k != "method"})


# Methods and presets


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 7}, "name must be a text"),
        ({"attention": "magic"}, "attention must be a function or one of qk, vv"),
        ({"attention": ["vv"]}, "attention must be"),
        ({"blocks": -1}, "blocks must be a whole number of 0 or more, but got -1"),
        ({"blocks": 1.0}, "blocks must be"),
        ({"blocks": True}, "blocks must be"),
        ({"residual": "1"}, "residual must be True, False or a finite number, .* but got '1'"),
        ({"residual": float("nan")}, "residual must be True, False or a finite number"),
        ({"residual": 10**400}, "residual must be True, False or a finite number"),
        ({"residual": None}, "residual must be True, False or a finite number"),
        ({"iterations": -1}, "iterations must be a whole number of 0 or more, but got -1"),
        ({"iterations": 2}, 'only the attention "self-self" has iterations, but got 2 of them for'),
        ({"feed_forward": None}, "feed_forward must be True or False"),
        ({"prior": 3}, "prior must be a function or None, but got 3"),
    ],
)
def test_wrong_values_of_a_method(changes, message):
    with pytest.raises(ConfigError, match=message):
        made(Method, **{**vars(CLIP_SURGERY), **changes})


@pytest.mark.parametrize("method", ["magic", None, 7, ["raw"], {}])
def test_what_is_no_method(method):
    with pytest.raises(ConfigError, match="choose one of raw, maskclip, surgery, clearclip"):
        unwrap(as_method)(method)
    assert as_method("raw") is RAW_CLIP
    assert as_method(CLEARCLIP) is CLEARCLIP
    assert isinstance(as_method(Method("own", len, 1, True, True)), Method)


@pytest.mark.parametrize("preset", [None, 7, ["tiny"], {}, ""])
def test_what_is_no_preset(preset):
    with pytest.raises(ConfigError, match="choose one of tiny, mobile"):
        unwrap(get_preset)(preset)


@pytest.mark.parametrize("resolution", [0, -1, 2.5, 100_000])
def test_a_presets_resolution_is_checked(resolution):
    tiny = get_preset("tiny")
    with pytest.raises(ConfigError, match="resolution must be"):
        made(Preset, **{**vars(tiny), "resolution": resolution})
