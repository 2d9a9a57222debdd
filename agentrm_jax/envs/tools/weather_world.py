"""AgentBoard's weather tools on open-meteo's archive."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from agentrm_jax.core.errors import UserError
from agentrm_jax.envs.tools.calls import Call, Tool, ToolError
from agentrm_jax.envs.tools.episode import Result
from agentrm_jax.envs.tools.final import final
from agentrm_jax.envs.tools.http import Service

URLS = {
    "archive": "https://archive-api.open-meteo.com/v1/archive",
    "geocoding": "https://geocoding-api.open-meteo.com/v1/search",
    "air_quality": "https://air-quality-api.open-meteo.com/v1/air-quality",
    "elevation": "https://api.open-meteo.com/v1/elevation",
}
SERVICE = Service("weather")
INSTALL = "geographiclib is not installed: pip install 'agentrm-jax[tools]'"

_PLACE = ("latitude", "longitude")
_SPAN = (*_PLACE, "start_date", "end_date")
_DAY = (*_PLACE, "current_date")
TOOLS = (
    Tool("get_user_current_date", (), "today's date, YYYY-MM-DD."),
    Tool("get_user_current_location", (), "the city where the user is."),
    Tool("get_historical_temp", _SPAN, "daily temperatures (°C) of days before today."),
    Tool("get_historical_rain", _SPAN, "daily rain (mm) of days before today."),
    Tool("get_historical_snow", _SPAN, "daily snowfall (cm) of days before today."),
    Tool("get_snow_forecast", _SPAN, "daily snowfall of days after today."),
    Tool("get_current_snow", _DAY, "today's snowfall."),
    Tool("get_current_temp", _DAY, "today's temperatures."),
    Tool("get_latitude_longitude", ("name",), "where places of this name are."),
    Tool("get_elevation", _PLACE, "metres above the sea."),
    Tool("get_temp_forecast", _SPAN, "daily temperatures of days after today."),
    Tool("get_rain_forecast", _SPAN, "daily rain of days after today."),
    Tool("get_current_rain", _DAY, "today's rain."),
    Tool(
        "get_distance",
        ("latitude1", "longitude1", "latitude2", "longitude2"),
        "kilometres between two places.",
    ),
    Tool("get_historical_air_quality_index", _SPAN, "PM2.5 index at noon, days before today."),
    Tool("get_current_air_quality_index", _DAY, "today's PM2.5 index at noon."),
    Tool("get_air_quality_level", ("air_quality_index",), "an index in words."),
    Tool("check_valid_actions", (), "the names of all tools."),
    Tool("finish", ("answer",), "ends with the answer."),
)
_TEMPERATURES = ("temperature_2m_max", "temperature_2m_min", "temperature_2m_mean")
_DAILY = {"temp": ",".join(_TEMPERATURES), "rain": "rain_sum", "snow": "snowfall_sum"}
_NOT_SHOWN = (
    "elevation", "generationtime_ms", "timezone", "timezone_abbreviation", "utc_offset_seconds"
)  # fmt: skip
_NOT_SHOWN_OF_PLACES = ("elevation", "feature_code", "timezone", "population", "postcodes")
_TOO_LONG = (
    "Error: Sorry, at present, we support a maximum time span of 30 days between start_date and "
    "end_date in a single query. Your input exceeds this range. You can split your current query "
    "into multiple sub-queries that meet our criteria."
)


@dataclasses.dataclass(frozen=True, slots=True)
class WeatherWorld:
    """The day and the city of the user; the weather comes from the service."""

    today: str
    city: str

    @property
    def tools(self) -> Sequence[Tool]:
        return TOOLS

    def call(self, call: Call) -> tuple[Result, WeatherWorld]:
        given = call.arguments
        match call.name.split("_"):
            case ["get", "user", "current", "date"]:
                return _answer(self.today), self
            case ["get", "user", "current", "location"]:
                return _answer(self.city), self
            case ["get", "historical", ("temp" | "rain" | "snow") as what]:
                return self._span(what, [given[name] for name in _SPAN], later=False), self
            case ["get", ("temp" | "rain" | "snow") as what, "forecast"]:
                return self._span(what, [given[name] for name in _SPAN], later=True), self
            case ["get", "current", ("temp" | "rain" | "snow") as what]:
                latitude, longitude, day = (given[name] for name in _DAY)
                return _archive(what, latitude, longitude, day, day), self
            case ["get", "latitude", "longitude"]:
                return _places(given["name"]), self
            case ["get", "elevation"]:
                parameters = {"latitude": given["latitude"], "longitude": given["longitude"]}
                reply = SERVICE.get(URLS["elevation"], parameters)
                return _answer(reply.json()) if reply.ok else Result(reply.text, valid=False), self
            case ["get", "distance"]:
                names = ("latitude1", "longitude1", "latitude2", "longitude2")
                return _answer(_distance(*(given[name] for name in names))), self
            case ["get", "historical", "air", "quality", "index"]:
                latitude, longitude, start, end = (given[name] for name in _SPAN)
                self._check(start, end, later=False)
                return _air(latitude, longitude, start, end), self
            case ["get", "current", "air", "quality", "index"]:
                latitude, longitude, day = (given[name] for name in _DAY)
                _check_length(day, day)
                return _air(latitude, longitude, day, day), self
            case ["get", "air", "quality", "level"]:
                return _answer(_level(given["air_quality_index"])), self
        return final(call, TOOLS), self

    def _span(self, what: str, given: Sequence[Any], *, later: bool) -> Result:
        latitude, longitude, start, end = given
        self._check(start, end, later=later)
        return _archive(what, latitude, longitude, start, end)

    def _check(self, start: Any, end: Any, *, later: bool) -> None:
        """Raises a `ToolError` where the days are not all before today, or all after it."""
        today = _day(self.today)
        for name, value in (("start_date", start), ("end_date", end)):
            if value is None:
                continue
            if later and _day(value) <= today:
                raise ToolError(f"Error: {name} should be later than current_date")
            if not later and _day(value) >= today:
                raise ToolError(f"Error: {name} should be earlier than current_date")
        _check_length(start, end)


def _day(text: Any) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d")


def _check_length(start: Any, end: Any) -> None:
    first, last = _day(start), _day(end)
    if last - first > timedelta(days=30):
        raise ToolError(_TOO_LONG)


def _answer(value: Any) -> Result:
    """Temperatures do not count where days and place of an answer are part of a goal."""
    reached = value
    if isinstance(value, Mapping) and _TEMPERATURES[0] in value.get("daily", {}):
        reached = copy.deepcopy(dict(value))
        for name in _TEMPERATURES:
            reached["daily"].pop(name)
    return Result(value, reached=reached)


def _archive(what: str, latitude: Any, longitude: Any, start: Any, end: Any) -> Result:
    _check_length(start, end)
    reply = SERVICE.get(
        URLS["archive"],
        {
            "latitude": latitude,
            "longitude": longitude,
            "start_date": start,
            "end_date": end,
            "timezone": "GMT",
            "daily": _DAILY[what],
        },
    )
    if not reply.ok:
        return Result(reply.text, valid=False)
    return _answer({key: v for key, v in reply.json().items() if key not in _NOT_SHOWN})


def _air(latitude: Any, longitude: Any, start: Any, end: Any) -> Result:
    reply = SERVICE.get(
        URLS["air_quality"],
        {
            "latitude": latitude,
            "longitude": longitude,
            "start_date": start,
            "end_date": end,
            "timezone": "GMT",
            "hourly": "european_aqi_pm2_5",
        },
    )
    if not reply.ok:
        return Result(reply.text, valid=False)
    found = reply.json()
    hours = found["hourly"]
    noons = range(12, len(hours["time"]) // 24 * 24, 24)
    daily = {
        key: [values[hour] for hour in noons] if key in ("time", "european_aqi_pm2_5") else values
        for key, values in hours.items()
    }
    return _answer(
        {
            "latitude": found["latitude"],
            "longitude": found["longitude"],
            "daily_units": found["hourly_units"],
            "daily": daily,
        }
    )


def _places(name: Any) -> Result:
    parameters = {"name": name, "count": 3, "language": "en", "format": "json"}
    reply = SERVICE.get(URLS["geocoding"], parameters)
    if not reply.ok:
        return Result(reply.text, valid=False)
    found = reply.json()
    found["results"] = [_place(item) for item in found["results"]]
    found.pop("generationtime_ms", None)
    return _answer(found)


def _place(item: Mapping[str, Any]) -> dict[str, Any]:
    hidden = (*_NOT_SHOWN_OF_PLACES, *(["country"] if "country_code" in item else []))
    return {
        key: value
        for key, value in item.items()
        if key not in hidden and not key.endswith("id") and "admin" not in key
    }


def _distance(latitude1: Any, longitude1: Any, latitude2: Any, longitude2: Any) -> float:
    """Kilometres on the WGS 84 ellipsoid."""
    if importlib.util.find_spec("geographiclib") is None:
        raise UserError(INSTALL)
    from geographiclib.geodesic import Geodesic

    numbers = [float(n or 0.0) for n in (latitude1, longitude1, latitude2, longitude2)]
    if max(abs(numbers[0]), abs(numbers[2])) > 90:
        raise ValueError("Latitude must be in the [-90; 90] range.")
    return Geodesic.WGS84.Inverse(*numbers, outmask=Geodesic.DISTANCE)["s12"] / 1000


def _level(index: Any) -> str:
    """In AgentBoard's bounds, between which a gap of one is extremely poor."""
    for low, high, word in (
        (None, 20, "good"),
        (21, 40, "fair"),
        (41, 60, "moderate"),
        (61, 80, "poor"),
        (81, 100, "very poor"),
    ):
        if (low is None or low < index) and index <= high:
            return word
    return "extremely poor"
